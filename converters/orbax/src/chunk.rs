//! From stored bytes to the bytes of a chunk: a chain of small streaming readers, never a whole chunk in memory.
//!
//! Source: the codecs of TensorStore's zarr drivers (<https://github.com/google/tensorstore> at bc4fbc11f).
//! Invariant: a stream yields exactly the declared number of bytes and then `Ok(0)`; anything else (short, long, a second frame, a byte behind
//! the frame, a wrong checksum) is an error that names the array and the chunk. No declared size is believed: buffers are
//! 128 KiB, a zstd window at most 128 MiB.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use crate::zarr::Codec;

/// log2 of the largest zstd window accepted (zstd's own default limit).
pub(crate) const WINDOW_LOG_MAX: u32 = 27;
/// Bytes buffered between two codecs.
const BUFFER: usize = 128 << 10;
/// Decoded bytes per stored byte, at most, of every codec here (zstd: a 128 KiB block of one value in 4 bytes). TensorStore writes frames
/// without a content size, so this is the only bound there is before decoding.
const MAX_RATIO: u64 = 66_000;
/// Frame headers and such: this much is always believed.
const SMALL: u64 = 1 << 20;

/// Whether `stored` bytes can hold `decoded` ones at all.
pub(crate) fn plausible(stored: u64, decoded: u64, compressed: bool) -> bool {
    let most = if compressed { stored.saturating_mul(MAX_RATIO).max(SMALL) } else { stored };
    decoded <= most
}

type Bytes<'a> = Box<dyn Read + Send + 'a>;

/// Builds the chain; `unit` > 1 swaps the bytes of each unit (big-endian data).
pub(crate) fn decoder<'a>(
    stored: Bytes<'a>,
    codecs: &[Codec],
    unit: usize,
    expected: u64,
    what: String,
) -> io::Result<Bytes<'a>> {
    let mut bytes = stored;
    for codec in codecs {
        let buffered = BufReader::with_capacity(BUFFER, bytes);
        bytes = match codec {
            Codec::Zstd => {
                let mut frame = zstd::stream::read::Decoder::with_buffer(buffered)?.single_frame();
                frame.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(Alone { inner: frame, name: "zstd frame" })
            }
            Codec::Gzip => Box::new(Alone { inner: flate2::bufread::GzDecoder::new(buffered), name: "gzip member" }),
            Codec::Zlib => Box::new(Alone { inner: flate2::bufread::ZlibDecoder::new(buffered), name: "zlib stream" }),
            Codec::Crc32c => Box::new(Checked { inner: buffered, crc: 0, tail: Vec::with_capacity(4) }),
        };
    }
    if unit > 1 {
        bytes = Box::new(Swapped { inner: bytes, unit, buffer: Vec::new(), at: 0 });
    }
    Ok(Box::new(Exact { inner: bytes, left: expected, expected, what, failed: false }))
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem.into())
}

/// A decoder that gives its input back.
trait Frame: Read {
    type Input: BufRead;
    fn input(&mut self) -> &mut Self::Input;
}

impl<R: BufRead> Frame for zstd::stream::read::Decoder<'_, R> {
    type Input = R;
    fn input(&mut self) -> &mut R {
        self.get_mut()
    }
}
impl<R: BufRead> Frame for flate2::bufread::GzDecoder<R> {
    type Input = R;
    fn input(&mut self) -> &mut R {
        self.get_mut()
    }
}
impl<R: BufRead> Frame for flate2::bufread::ZlibDecoder<R> {
    type Input = R;
    fn input(&mut self) -> &mut R {
        self.get_mut()
    }
}

/// One frame and nothing behind it.
struct Alone<D> {
    inner: D,
    name: &'static str,
}

impl<D: Frame> Read for Alone<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.inner.read(buf)?;
        if n == 0 && !self.inner.input().fill_buf()?.is_empty() {
            return Err(invalid(format!("there is something behind the end of the {}", self.name)));
        }
        Ok(n)
    }
}

/// Strips and checks a trailing CRC-32C. The last four bytes seen are always held back.
struct Checked<R> {
    inner: R,
    crc: u32,
    tail: Vec<u8>,
}

impl<R: BufRead> Read for Checked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let input = self.inner.fill_buf()?;
            if input.is_empty() {
                let found: [u8; 4] = self
                    .tail
                    .as_slice()
                    .try_into()
                    .map_err(|_| invalid(format!("{} bytes are too few for a CRC-32C", self.tail.len())))?;
                let found = u32::from_le_bytes(found);
                if found != self.crc {
                    return Err(invalid(format!("CRC-32C: expected {:08x}, found {found:08x}", self.crc)));
                }
                return Ok(0);
            }
            // Take in at most as much as can go out, so that the tail never grows beyond four bytes and a buffer.
            let taken = input.len().min(buf.len());
            self.tail.extend_from_slice(input.get(..taken).unwrap_or_default());
            self.inner.consume(taken);
            let out = self.tail.len().saturating_sub(4).min(buf.len());
            if out > 0 {
                let (target, ready) = (buf.get_mut(..out), self.tail.get(..out));
                if let (Some(target), Some(ready)) = (target, ready) {
                    target.copy_from_slice(ready);
                    self.crc = crc32c::crc32c_append(self.crc, ready);
                }
                self.tail.drain(..out);
                return Ok(out);
            }
        }
    }
}

/// Turns each unit of bytes around.
struct Swapped<R> {
    inner: R,
    unit: usize,
    buffer: Vec<u8>,
    at: usize,
}

impl<R: Read> Read for Swapped<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.buffer.len() {
            // BUFFER is a multiple of every unit; a cut unit at the end is passed on for the length check to complain about.
            self.buffer.clear();
            self.at = 0;
            let limit = u64::try_from(BUFFER).unwrap_or(u64::MAX);
            Read::by_ref(&mut self.inner).take(limit).read_to_end(&mut self.buffer)?;
            self.buffer.chunks_exact_mut(self.unit).for_each(<[u8]>::reverse);
        }
        let ready = self.buffer.get(self.at..).unwrap_or_default();
        let n = ready.len().min(buf.len());
        if let (Some(target), Some(ready)) = (buf.get_mut(..n), ready.get(..n)) {
            target.copy_from_slice(ready);
        }
        self.at = self.at.saturating_add(n);
        Ok(n)
    }
}

/// Exactly so many bytes, every error with the chunk's name. The end is looked for as soon as the last byte is out, so that a reader of
/// exactly `expected` bytes has also seen the frame's end.
struct Exact<R> {
    inner: R,
    left: u64,
    expected: u64,
    what: String,
    failed: bool,
}

impl<R: Read> Exact<R> {
    fn step(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = match buf.get_mut(..room) {
            Some(target) if self.left > 0 => self.inner.read(target)?,
            _ => 0,
        };
        if n == 0 && self.left > 0 {
            let found = self.expected.saturating_sub(self.left);
            return Err(invalid(format!("too short: expected {} bytes, found {found}", self.expected)));
        }
        self.left = self.left.saturating_sub(u64::try_from(n).unwrap_or(u64::MAX));
        if self.left == 0 && self.inner.read(&mut [0])? > 0 {
            return Err(invalid(format!("too long: expected {} bytes, found more", self.expected)));
        }
        Ok(n)
    }
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.failed {
            return Err(invalid(format!("{}: read on after an error", self.what)));
        }
        match self.step(buf) {
            Err(e) if e.kind() == ErrorKind::Interrupted => Err(e),
            Err(e) => {
                self.failed = true;
                Err(io::Error::new(e.kind(), format!("{}: {e}", self.what)))
            }
            ok => ok,
        }
    }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
