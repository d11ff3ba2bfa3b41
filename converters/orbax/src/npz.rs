//! An `.npz` container as a source: one whole-array chunk per member.
//!
//! Source: numpy's `savez` and `savez_compressed`; big_vision's checkpoints (<https://github.com/google-research/big_vision>), which are such files.
//! Invariant: the zip directory and the npy headers are read once, at open, and must agree on every size; data streams through a CRC-32 check.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::chunk::{decoder, plausible};
use crate::error::{Error, Result};
use crate::npy::read_header;
use crate::zarr::{MAX_ARRAY_BYTES, product};
use crate::{ArrayInfo, Chunk, Source};

/// Members of a container.
const MAX_MEMBERS: usize = 1 << 20;

/// An `.npz` of big_vision or numpy as a source.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    infos: Vec<ArrayInfo>,
    members: Vec<Member>,
}

/// Where a member's bytes are.
#[derive(Debug)]
struct Member {
    start: u64,
    stored: u64,
    deflated: bool,
    crc32: u32,
    header: u64,
    data: u64,
    /// Bytes of the unit to turn around; 1 for little-endian data.
    unit: usize,
}

impl Npz {
    /// Opens the container and every member's header.
    ///
    /// # Errors
    /// Anything that is no zip file, a member that is no npy file, a pickled or structured array, sizes that contradict each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |problem: String| Error::Npz { path: path.to_path_buf(), problem };
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let found = file.metadata().map_err(|e| Error::io(path, e))?;
        if !found.is_file() {
            return Err(bad("not a regular file".to_owned()));
        }
        let mut archive =
            zip::ZipArchive::new(BufReader::new(file)).map_err(|e| bad(format!("not a zip container: {e}")))?;
        if archive.len() > MAX_MEMBERS {
            return Err(bad(format!("{} members, at most {MAX_MEMBERS} are accepted", archive.len())));
        }
        if archive.has_duplicate_names() {
            return Err(bad("two members of one name".to_owned()));
        }
        let mut npz = Npz { path: path.to_path_buf(), infos: Vec::new(), members: Vec::new() };
        for i in 0..archive.len() {
            let mut entry = archive.by_index(i).map_err(|e| bad(format!("member {i}: {e}")))?;
            let full_name = entry.name().map_err(|e| bad(format!("member {i}: {e}")))?.into_owned();
            let bad = |problem: String| bad(format!("member {full_name:?}: {problem}"));
            let Some(name) = full_name.strip_suffix(".npy") else {
                return Err(bad("not an array (no .npy at the end of its name)".to_owned()));
            };
            let deflated = match entry.compression() {
                zip::CompressionMethod::Stored => false,
                zip::CompressionMethod::Deflated => true,
                other => return Err(bad(format!("compression {other:?} is not supported"))),
            };
            let (size, stored, crc32) = (entry.size(), entry.compressed_size(), entry.crc32());
            let start = entry.data_start().ok_or_else(|| bad("its data were not found".to_owned()))?;
            if start.checked_add(stored).is_none_or(|end| end > found.len()) {
                return Err(bad(format!("{stored} bytes at {start} lie outside the file of {}", found.len())));
            }
            let header = read_header(&mut entry).map_err(bad)?;
            let element = u64::try_from(header.dtype.size()).unwrap_or(u64::MAX);
            let data = product(&header.shape)
                .and_then(|n| n.checked_mul(element))
                .filter(|&bytes| bytes <= MAX_ARRAY_BYTES)
                .ok_or_else(|| bad(format!("shape {:?} of {} is too large", header.shape, header.dtype)))?;
            if header.length.checked_add(data) != Some(size) {
                return Err(bad(format!(
                    "shape {:?} of {} takes {} + {data} bytes, the container says {size}",
                    header.shape, header.dtype, header.length
                )));
            }
            if !plausible(stored, size, deflated) {
                return Err(bad(format!("{stored} stored bytes cannot hold {size}")));
            }
            npz.infos.push(ArrayInfo {
                name: name.to_owned(),
                // An empty array has no chunk; its sides stay at least 1.
                chunk_shape: header.shape.iter().map(|&n| n.max(1)).collect(),
                shape: header.shape,
                dtype: header.dtype,
                order: header.order,
            });
            let unit = if header.big_endian { header.dtype.swap_unit() } else { 1 };
            npz.members.push(Member { start, stored, deflated, crc32, header: header.length, data, unit });
        }
        Ok(npz)
    }

    fn member(&self, array: usize, chunk: u64) -> Result<(&Member, &ArrayInfo)> {
        let out_of_range = |name: String, what, found, count: usize| Error::OutOfRange {
            name,
            what,
            found,
            count: u64::try_from(count).unwrap_or(u64::MAX),
        };
        let (Some(member), Some(info)) = (self.members.get(array), self.infos.get(array)) else {
            let found = u64::try_from(array).unwrap_or(u64::MAX);
            return Err(out_of_range(self.path.display().to_string(), "array", found, self.members.len()));
        };
        let chunks = usize::from(member.data > 0);
        if chunk >= u64::try_from(chunks).unwrap_or(0) {
            return Err(out_of_range(info.name.clone(), "chunk", chunk, chunks));
        }
        Ok((member, info))
    }
}

impl Source for Npz {
    fn arrays(&self) -> &[ArrayInfo] {
        &self.infos
    }

    fn chunk(&self, array: usize, chunk: u64) -> Result<Chunk<'_>> {
        let (member, info) = self.member(array, chunk)?;
        let open = || -> io::Result<Box<dyn Read + Send>> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(member.start))?;
            let stored = BufReader::new(file.take(member.stored));
            let plain: Box<dyn Read + Send> =
                if member.deflated { Box::new(flate2::bufread::DeflateDecoder::new(stored)) } else { Box::new(stored) };
            let mut checked = Crc32 { inner: plain, crc: flate2::Crc::new(), expected: member.crc32 };
            // The header was parsed at open; here it only passes through the checksum.
            io::copy(&mut checked.by_ref().take(member.header), &mut io::sink())?;
            let what = format!("{}: member {:?}", self.path.display(), info.name);
            decoder(Box::new(checked), &[], member.unit, member.data, what)
        };
        open().map(Chunk::Stream).map_err(|e| Error::io(&self.path, e))
    }

    fn stored_len(&self, array: usize, chunk: u64) -> Result<u64> {
        self.member(array, chunk).map(|(member, _)| member.stored)
    }
}

/// Compares the CRC-32 when the end is seen.
struct Crc32<R> {
    inner: R,
    crc: flate2::Crc,
    expected: u32,
}

impl<R: Read> Read for Crc32<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.crc.update(buf.get(..n).unwrap_or_default());
        if n == 0 && !buf.is_empty() && self.crc.sum() != self.expected {
            let problem = format!("CRC-32: expected {:08x}, found {:08x}", self.expected, self.crc.sum());
            return Err(io::Error::new(ErrorKind::InvalidData, problem));
        }
        Ok(n)
    }
}

#[cfg(test)]
#[path = "npz_tests.rs"]
mod tests;
