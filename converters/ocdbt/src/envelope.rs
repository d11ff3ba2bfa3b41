//! What stands around every manifest, B+tree node and version tree node: magic number, length, compression, CRC-32C.
//!
//! Layout: magic u32be, length u64le of the whole piece, version varint32 (0), compression varint32 (0 raw, 1 zstd), body, CRC-32C u32le
//! of all bytes before it. Source: `codec_util.h` in
//! <https://github.com/google/tensorstore/tree/bc4fbc11f/tensorstore/kvstore/ocdbt/format>.
//!
//! Invariant: the checksum is verified before anything after the length is looked at, and a frame is never decompressed past its limit.

use std::borrow::Cow;
use std::io::Read;

use crate::cursor::{Cursor, Origin};
use crate::error::{Problem, Result};
use crate::limits::MAX_ZSTD_WINDOW_LOG2;
use crate::varint;

const MIN_BYTES: u64 = 16;
const CRC_BYTES: usize = 4;

/// Which piece an envelope holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Node,
    VersionNode,
}

impl Kind {
    const fn magic(self) -> u32 {
        match self {
            Kind::Manifest => 0x0cdb_3a2a,
            Kind::Node => 0x0cdb_20de,
            Kind::VersionNode => 0x0cdb_1234,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Kind::Manifest => "manifest",
            Kind::Node => "B+tree node",
            Kind::VersionNode => "version tree node",
        }
    }
}

/// How a piece's body is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// As one zstd frame.
    Zstd {
        /// zstd's level; 0 is its default.
        level: i32,
    },
}

/// The body of an opened envelope.
#[derive(Debug)]
pub(crate) struct Body<'a> {
    bytes: Cow<'a, [u8]>,
    shift: Option<usize>,
    origin: &'a Origin,
}

impl Body<'_> {
    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor::new(&self.bytes, self.origin, self.shift)
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Opens the envelope that `piece` is; its body may have at most `cap` bytes.
pub(crate) fn open<'a>(piece: &'a [u8], origin: &'a Origin, kind: Kind, cap: u64) -> Result<Body<'a>> {
    let length = piece.len() as u64;
    if length < MIN_BYTES {
        return Err(origin.fail(0, Problem::Truncated { what: kind.name(), needed: MIN_BYTES, left: length }));
    }
    let mut cursor = Cursor::new(piece, origin, Some(0));
    let found = cursor.u32be("magic number")?;
    if found != kind.magic() {
        return Err(origin.fail(0, Problem::Magic { what: kind.name(), expected: kind.magic(), found }));
    }
    let stated = cursor.u64le("length")?;
    if stated != length {
        return Err(origin.fail(4, Problem::Length { expected: length, found: stated }));
    }

    let end = piece.len().saturating_sub(CRC_BYTES);
    let (signed, crc) = piece.split_at_checked(end).unwrap_or_default();
    let stored = crc.first_chunk().copied().map(u32::from_le_bytes).unwrap_or_default();
    let computed = crc32c::crc32c(signed);
    if stored != computed {
        return Err(origin.fail(end, Problem::Checksum { stored, computed }));
    }

    let mut cursor = Cursor::new(signed, origin, Some(0));
    cursor.take(12, "header")?;
    let version = cursor.varint32("format version")?;
    if version != 0 {
        return Err(cursor.unexpected("format version", 0, version.into()));
    }
    let compression = cursor.varint32("compression")?;
    let shift = signed.len().saturating_sub(cursor.rest().len());
    match compression {
        0 if cursor.left() > cap => Err(cursor.fail(Problem::Limit { what: "bytes of one body", limit: cap })),
        0 => Ok(Body { bytes: Cow::Borrowed(cursor.rest()), shift: Some(shift), origin }),
        1 => {
            let bytes = decompress(cursor.rest(), cap).map_err(|problem| cursor.fail(problem))?;
            Ok(Body { bytes: Cow::Owned(bytes), shift: None, origin })
        }
        other => Err(cursor.unexpected("compression", "0 (none) or 1 (zstd)", other.into())),
    }
}

/// Decompresses exactly one zstd frame of at most `cap` bytes. The size a frame claims is not believed: output grows as it comes.
fn decompress(frame: &[u8], cap: u64) -> Result<Vec<u8>, Problem> {
    let broken = |error: std::io::Error| Problem::Zstd(error.to_string());
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(broken)?.single_frame();
    decoder.window_log_max(MAX_ZSTD_WINDOW_LOG2).map_err(broken)?;
    let mut bytes = Vec::new();
    decoder.by_ref().take(cap.saturating_add(1)).read_to_end(&mut bytes).map_err(broken)?;
    if bytes.len() as u64 > cap {
        return Err(Problem::Limit { what: "bytes of one decompressed body", limit: cap });
    }
    match decoder.finish().len() {
        0 => Ok(bytes),
        left => Err(Problem::TrailingFrame { left: left as u64 }),
    }
}

/// Puts `body` into an envelope.
///
/// # Errors
/// Only zstd's own, of which none is known for memory to memory compression.
pub(crate) fn seal(kind: Kind, body: &[u8], compression: Compression) -> std::io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(body.len().saturating_add(32));
    piece.extend_from_slice(&kind.magic().to_be_bytes());
    piece.extend_from_slice(&[0; 8]);
    varint::encode(0, &mut piece);
    match compression {
        Compression::None => {
            varint::encode(0, &mut piece);
            piece.extend_from_slice(body);
        }
        Compression::Zstd { level } => {
            varint::encode(1, &mut piece);
            piece.extend_from_slice(&zstd::bulk::compress(body, level)?);
        }
    }
    let length = (piece.len() as u64).saturating_add(CRC_BYTES as u64);
    if let Some(field) = piece.get_mut(4..12) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    let crc = crc32c::crc32c(&piece);
    piece.extend_from_slice(&crc.to_le_bytes());
    Ok(piece)
}
