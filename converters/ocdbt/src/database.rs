//! A database opened for reading.
//!
//! Invariant: opening reads and checks the whole key tree of one version; values stay on disk and are checked against their file when read.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::ValueReader;
use crate::cursor::Origin;
use crate::error::{Error, Problem, Result};
use crate::file::Store;
use crate::limits::MAX_MANIFEST_BYTES;
use crate::manifest::{Config, Content, Manifest};
use crate::version::{Version, VersionChild};
use crate::walk;

const MANIFEST: &str = "manifest.ocdbt";

/// One version of a database, its whole key list in memory, its values on disk.
#[derive(Debug)]
pub struct Database {
    store: Store,
    /// Path of the manifest that holds the versions.
    manifest: String,
    config: Config,
    /// The newest versions.
    newest: Vec<Version>,
    /// Where the older ones are.
    older: Vec<VersionChild>,
    version: Version,
    entries: Vec<Entry>,
}

/// A key and where its value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Full key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Value,
}

/// Where a value's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Stored in the B+tree itself.
    Inline(Vec<u8>),
    /// A byte range of a data file.
    Indirect {
        /// Path relative to the database directory, checked to stay inside it; empty only where `length` is 0.
        file: Arc<str>,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

impl Value {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Value::Inline(bytes) => bytes.len() as u64,
            Value::Indirect { length, .. } => *length,
        }
    }

    /// No bytes?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Database {
    /// Opens the newest version in `dir`.
    ///
    /// # Errors
    /// A missing or damaged manifest or tree node, named by file and byte; anything above the limits of [`crate::limits`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_store(Store::Directory(dir.as_ref().to_path_buf()), None)
    }

    /// Opens one generation; [`Database::versions`] lists them.
    ///
    /// # Errors
    /// As [`Database::open`]; [`Error::Generation`] where the database does not hold it.
    pub fn open_generation(dir: impl AsRef<Path>, generation: u64) -> Result<Self> {
        Self::open_store(Store::Directory(dir.as_ref().to_path_buf()), Some(generation))
    }

    pub(crate) fn open_store(store: Store, generation: Option<u64>) -> Result<Self> {
        let (manifest, config, newest, older) = read_manifest(&store)?;
        let versions = match generation {
            // The older ones are of no use for the newest or for any that stands beside it.
            Some(wanted) if newest.first().is_some_and(|first| wanted < first.generation) => {
                walk::versions(&store, &manifest, &config, &older, &newest)?
            }
            _ => newest.clone(),
        };
        let last = newest.last().map_or(0, |version| version.generation);
        let wanted = generation.unwrap_or(last);
        let version = versions.into_iter().find(|version| version.generation == wanted);
        let version = version.ok_or_else(|| Error::Generation { file: store.name(&manifest), wanted, newest: last })?;
        let entries = walk::entries(&store, &manifest, &config, &version)?;
        Ok(Self { store, manifest, config, newest, older, version, entries })
    }

    /// The database's settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The version that is open.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// All versions the database still holds, oldest first.
    ///
    /// # Errors
    /// A damaged node of the version tree.
    pub fn versions(&self) -> Result<Vec<Version>> {
        walk::versions(&self.store, &self.manifest, &self.config, &self.older, &self.newest)
    }

    /// All entries, sorted by key.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entries whose keys begin with `prefix`.
    pub fn entries_with_prefix(&self, prefix: &[u8]) -> &[Entry] {
        let start = self.entries.partition_point(|entry| entry.key.as_slice() < prefix);
        let rest = self.entries.get(start..).unwrap_or_default();
        let n = rest.partition_point(|entry| entry.key.starts_with(prefix));
        rest.get(..n).unwrap_or_default()
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Value> {
        let index = self.entries.binary_search_by(|entry| entry.key.as_slice().cmp(key)).ok()?;
        self.entries.get(index).map(|entry| &entry.value)
    }

    /// All of a value's bytes. Never allocates more than the file holds.
    ///
    /// # Errors
    /// A data file that is missing, too short, or not a regular file.
    pub fn read(&self, value: &Value) -> Result<Vec<u8>> {
        self.read_range(value, 0, value.len())
    }

    /// `length` bytes of a value from `offset`.
    ///
    /// # Errors
    /// As [`Database::read`]; [`Error::Range`] where the value has no such part.
    pub fn read_range(&self, value: &Value, offset: u64, length: u64) -> Result<Vec<u8>> {
        match self.locate(value, offset, length)? {
            Part::Memory(bytes) => Ok(bytes.to_vec()),
            Part::File { file, offset } => self.store.open(file)?.read(offset, length),
        }
    }

    /// Streams a value, or the part `[offset, offset + length)` of it. Every reader has its own file handle, so several threads can read at once.
    ///
    /// # Errors
    /// As [`Database::read_range`]. The reader itself fails where the file is cut off meanwhile.
    pub fn reader(&self, value: &Value, offset: u64, length: u64) -> Result<ValueReader<'_>> {
        match self.locate(value, offset, length)? {
            // Inline values are small (at most 1 MiB); a copy frees the reader from the borrow of `value`.
            Part::Memory(bytes) => Ok(Box::new(std::io::Cursor::new(bytes.to_vec()).take(length))),
            Part::File { file, offset } => self.store.open(file)?.stream(offset, length),
        }
    }

    fn locate<'v>(&self, value: &'v Value, offset: u64, length: u64) -> Result<Part<'v>> {
        let outside = || Error::Range { offset, length, value_length: value.len() };
        let end = offset.checked_add(length).filter(|end| *end <= value.len()).ok_or_else(outside)?;
        match value {
            Value::Inline(bytes) => {
                let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
                let part = range.and_then(|(start, end)| bytes.get(start..end));
                part.map(Part::Memory).ok_or_else(outside)
            }
            Value::Indirect { length: 0, .. } => Ok(Part::Memory(&[])),
            Value::Indirect { file, offset: start, .. } => {
                let offset = start.checked_add(offset).ok_or_else(outside)?;
                Ok(Part::File { file, offset })
            }
        }
    }
}

enum Part<'v> {
    Memory(&'v [u8]),
    File { file: &'v str, offset: u64 },
}

fn read_one(store: &Store, path: &str) -> Result<(Manifest, Origin)> {
    let blob = store.open(path)?;
    let origin = Origin { file: blob.name.clone(), start: 0 };
    if blob.size > MAX_MANIFEST_BYTES {
        let problem = Problem::Limit { what: "bytes of a manifest", limit: MAX_MANIFEST_BYTES };
        return Err(origin.fail(0, problem));
    }
    let size = blob.size;
    let bytes = blob.read(0, size)?;
    Ok((Manifest::decode(&bytes, &origin)?, origin))
}

type Versions = (String, Config, Vec<Version>, Vec<VersionChild>);

/// Reads the manifest, and where it is of the numbered kind the newest numbered one. Never falls back to an older one.
fn read_manifest(store: &Store) -> Result<Versions> {
    let (top, _) = read_one(store, MANIFEST).map_err(|error| match error {
        Error::Missing { file, .. } => Error::Missing { file, hint: " (every OCDBT database has one)" },
        error => error,
    })?;
    if let Content::Single { versions, nodes } = top.content {
        return Ok((MANIFEST.into(), top.config, versions, nodes));
    }
    let number = store.newest_numbered()?.ok_or_else(|| Error::Missing {
        file: store.name("manifest.<number>"),
        hint: " (manifest.ocdbt is of the numbered kind, which needs at least one)",
    })?;
    let path = format!("manifest.{number:016x}");
    let (numbered, origin) = read_one(store, &path)?;
    let differs = |what| origin.fail(0, Problem::Numbered(what));
    let Content::Single { versions, nodes } = numbered.content else {
        return Err(differs("manifest kind"));
    };
    if numbered.config != top.config {
        return Err(differs("configuration"));
    }
    if versions.last().is_none_or(|version| version.generation != number) {
        return Err(differs("newest generation"));
    }
    Ok((path, top.config, versions, nodes))
}
