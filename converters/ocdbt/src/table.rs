//! The data file table at the head of every body, and the references that point into it.
//!
//! Layout (columns): num_files varint64, shared path prefix varint16 of files 1.., path suffix length varint16, base path length varint16,
//! suffixes. A reference is a column each of file index, offset and length. Source: `data_file_id_codec.cc` and `indirect_data_reference_codec.h` in
//! <https://github.com/google/tensorstore/tree/bc4fbc11f/tensorstore/kvstore/ocdbt/format>.
//!
//! Invariant: paths are taken apart but not judged here; `file::check` judges a path before anything is opened by it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::error::{Problem, Result};
use crate::limits::{MAX_FILE_BYTES, MAX_KEY_BYTES, MAX_TABLE_FILES, MAX_TABLE_PATH_BYTES};
use crate::varint;

/// A data file, named relative to the database directory by two parts that are simply joined.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct FilePath {
    /// Empty, or a folder with its final `/`; nodes in this file inherit it as the base of their own tables.
    pub(crate) base: Vec<u8>,
    /// The rest.
    pub(crate) relative: Vec<u8>,
}

impl FilePath {
    pub(crate) fn full(&self) -> Vec<u8> {
        [self.base.as_slice(), self.relative.as_slice()].concat()
    }
}

/// A byte range of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) file: Arc<FilePath>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The files of one body.
#[derive(Debug, Default)]
pub(crate) struct Table {
    files: Vec<Arc<FilePath>>,
}

/// Bytes `a` and `b` begin with alike.
pub(crate) fn shared(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Table {
    /// Reads a table; base paths in it stand below `transitive`, the base path of the reference that led here.
    pub(crate) fn decode(cursor: &mut Cursor<'_>, transitive: &[u8]) -> Result<Self> {
        let n = cursor.varint64("number of data files")?;
        cursor.expect_room(n, 2, "data file table")?;
        if n > MAX_TABLE_FILES {
            return Err(cursor.fail(Problem::Limit { what: "files of one table", limit: MAX_TABLE_FILES }));
        }
        let n = cursor.expect_room(n, 2, "data file table")?;
        let mut prefixes = vec![0];
        prefixes.extend(cursor.column16(n.saturating_sub(1), "shared path prefix")?);
        let suffixes = cursor.column16(n, "path suffix length")?;
        let bases = cursor.column16(n, "base path length")?;

        let mut files = Vec::with_capacity(n);
        let mut written_out = 0u64;
        let mut path: Vec<u8> = Vec::new();
        let mut previous_base = 0u16;
        for (index, ((&prefix, &suffix), &base)) in prefixes.iter().zip(&suffixes).zip(&bases).enumerate() {
            if usize::from(prefix) > path.len() {
                let (prefix, previous) = (prefix.into(), path.len() as u64);
                return Err(cursor.fail(Problem::Prefix { what: "data file path", prefix, previous }));
            }
            if prefix > previous_base.min(base) && previous_base != base {
                return Err(cursor.fail(Problem::BasePath { index, prefix: prefix.into() }));
            }
            path.truncate(prefix.into());
            path.extend_from_slice(cursor.take(suffix.into(), "path suffixes")?);
            let full = path.len().saturating_add(transitive.len());
            if full > MAX_KEY_BYTES {
                return Err(cursor.unexpected("bytes of a data file path", "at most 65535", full as u64));
            }
            written_out = written_out.saturating_add(full as u64);
            if written_out > MAX_TABLE_PATH_BYTES {
                let limit = MAX_TABLE_PATH_BYTES;
                return Err(cursor.fail(Problem::Limit { what: "bytes of the paths of one table", limit }));
            }
            let Some((own_base, relative)) = path.split_at_checked(base.into()) else {
                let expected = format!("at most the {} bytes of the path", path.len());
                return Err(cursor.unexpected("base path length", expected, base.into()));
            };
            let base_path = [transitive, own_base].concat();
            files.push(Arc::new(FilePath { base: base_path, relative: relative.to_vec() }));
            previous_base = base;
        }
        Ok(Self { files })
    }

    /// The table that these references need: sorted, each file once; a missing reference stands at the empty path.
    pub(crate) fn of<'a>(references: impl IntoIterator<Item = Option<&'a Location>>) -> Self {
        let nowhere = Arc::new(FilePath::default());
        let unique: BTreeSet<Arc<FilePath>> = references
            .into_iter()
            .map(|reference| reference.map_or_else(|| nowhere.clone(), |r| r.file.clone()))
            .collect();
        Self { files: unique.into_iter().collect() }
    }

    /// Writes the table.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let paths: Vec<Vec<u8>> = self.files.iter().map(|file| file.full()).collect();
        let prefixes: Vec<usize> = self
            .files
            .windows(2)
            .map(|pair| match pair {
                // Shared bytes may reach past the base path only where both have the same one.
                [a, b] if a.base == b.base => a.base.len().saturating_add(shared(&a.relative, &b.relative)),
                [a, b] => shared(&a.base, &b.base),
                _ => 0,
            })
            .collect();
        let suffixes: Vec<&[u8]> = paths
            .iter()
            .zip(std::iter::once(&0).chain(&prefixes))
            .map(|(path, &prefix)| path.get(prefix..).unwrap_or_default())
            .collect();
        varint::encode(self.files.len() as u64, out);
        varint::encode_all(prefixes.iter().map(|prefix| *prefix as u64), out);
        varint::encode_all(suffixes.iter().map(|suffix| suffix.len() as u64), out);
        varint::encode_all(self.files.iter().map(|file| file.base.len() as u64), out);
        for suffix in suffixes {
            out.extend_from_slice(suffix);
        }
    }

    /// The file with this index.
    pub(crate) fn file(&self, cursor: &Cursor<'_>, index: u64) -> Result<Arc<FilePath>> {
        let file = usize::try_from(index).ok().and_then(|index| self.files.get(index));
        file.cloned().ok_or_else(|| cursor.unexpected("data file index", format!("below {}", self.files.len()), index))
    }

    /// The index of `file`; the table must have been made with it.
    pub(crate) fn index(&self, file: &FilePath) -> u64 {
        self.files.partition_point(|other| **other < *file) as u64
    }

    /// Reads `n` references. `None` for a missing one.
    pub(crate) fn decode_references(
        &self,
        cursor: &mut Cursor<'_>,
        n: usize,
        what: &'static str,
    ) -> Result<Vec<Option<Location>>> {
        let indices = cursor.column64(n, "data file index")?;
        let offsets = cursor.column64(n, what)?;
        let lengths = cursor.column64(n, what)?;
        let mut references = Vec::with_capacity(n);
        for ((index, offset), length) in indices.into_iter().zip(offsets).zip(lengths) {
            let file = self.file(cursor, index)?;
            references.push(if offset == u64::MAX && length == u64::MAX {
                None
            } else {
                check_range(cursor, offset, length, what)?;
                Some(Location { file, offset, length })
            });
        }
        Ok(references)
    }

    /// Reads `n` references, none of which may be missing.
    pub(crate) fn decode_locations(
        &self,
        cursor: &mut Cursor<'_>,
        n: usize,
        what: &'static str,
    ) -> Result<Vec<Location>> {
        let references = self.decode_references(cursor, n, what)?;
        let missing = Problem::Overflow { what, offset: u64::MAX, length: u64::MAX };
        references.into_iter().map(|reference| reference.ok_or_else(|| cursor.fail(missing.clone()))).collect()
    }

    /// Writes references; `None` as a missing one.
    pub(crate) fn encode_references<'a>(
        &self,
        references: impl Iterator<Item = Option<&'a Location>> + Clone,
        out: &mut Vec<u8>,
    ) {
        varint::encode_all(references.clone().map(|r| r.map_or(0, |r| self.index(&r.file))), out);
        varint::encode_all(references.clone().map(|r| r.map_or(u64::MAX, |r| r.offset)), out);
        varint::encode_all(references.map(|r| r.map_or(u64::MAX, |r| r.length)), out);
    }
}

/// Refuses a range whose end does not fit.
pub(crate) fn check_range(cursor: &Cursor<'_>, offset: u64, length: u64, what: &'static str) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end < MAX_FILE_BYTES => Ok(()),
        _ => Err(cursor.fail(Problem::Overflow { what, offset, length })),
    }
}
