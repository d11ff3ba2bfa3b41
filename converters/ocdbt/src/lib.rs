//! OCDBT databases, read and written. (Skeleton: the public surface the other rooms build on.)
use std::io::{Read, Write};
use std::path::Path;

/// What is wrong, in which file, at which byte.
#[derive(Debug, thiserror::Error)]
#[error("skeleton")]
pub struct Error;
/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One version of a database, its whole key list in memory, its values on disk.
#[derive(Debug)]
pub struct Database;
/// A key and where its value is.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Full key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Value,
}
/// Where a value's bytes are.
#[derive(Debug, Clone)]
pub enum Value {
    /// Stored in the B+tree itself.
    Inline(Vec<u8>),
    /// A byte range of a data file; `file` is relative to the database directory.
    Indirect {
        /// Relative path, checked.
        file: std::sync::Arc<str>,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}
impl Value {
    /// Bytes.
    pub fn len(&self) -> u64 {
        0
    }
    /// No bytes?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
/// A bounded reader over one value. `Read` only; ends exactly at the value's end.
pub type ValueReader<'a> = Box<dyn Read + Send + 'a>;

impl Database {
    /// Opens the newest version in `dir`.
    pub fn open(_dir: impl AsRef<Path>) -> Result<Self> {
        Err(Error)
    }
    /// Opens one generation.
    pub fn open_generation(_dir: impl AsRef<Path>, _generation: u64) -> Result<Self> {
        Err(Error)
    }
    /// All entries, sorted by key.
    pub fn entries(&self) -> &[Entry] {
        &[]
    }
    /// The value of `key`.
    pub fn get(&self, _key: &[u8]) -> Option<&Value> {
        None
    }
    /// All of a value's bytes. Never allocates more than the file holds.
    pub fn read(&self, _value: &Value) -> Result<Vec<u8>> {
        Err(Error)
    }
    /// `length` bytes of a value from `offset`.
    pub fn read_range(&self, _value: &Value, _offset: u64, _length: u64) -> Result<Vec<u8>> {
        Err(Error)
    }
    /// Streams a value, or the part `[offset, offset + length)` of it.
    pub fn reader(&self, _value: &Value, _offset: u64, _length: u64) -> Result<ValueReader<'_>> {
        Err(Error)
    }
}

/// What a writer cannot know by itself: chance, time and limits are arguments.
#[derive(Debug, Clone)]
pub struct Options {
    /// Database identity.
    pub uuid: [u8; 16],
    /// Nanoseconds since the Unix epoch.
    pub commit_time_ns: u64,
    /// Values up to this many bytes are stored in the tree.
    pub max_inline_value_bytes: u32,
}
/// Writes a database with one version. Several threads can write data files at once.
#[derive(Debug)]
pub struct Writer;
/// A data file being filled by one thread.
#[derive(Debug)]
pub struct DataFile;
/// One value being streamed into a data file; dropped without `finish`, the value does not exist.
#[derive(Debug)]
pub struct ValueWriter<'a>(std::marker::PhantomData<&'a mut DataFile>);
impl Write for ValueWriter<'_> {
    fn write(&mut self, _buf: &[u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("skeleton"))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
impl ValueWriter<'_> {
    /// Ends the value; gives its length in bytes.
    pub fn finish(self) -> Result<u64> {
        Err(Error)
    }
}
impl Writer {
    /// Starts a database in `dir` (created; must be absent or empty).
    pub fn create(_dir: impl AsRef<Path>, _options: Options) -> Result<Self> {
        Err(Error)
    }
    /// A new data file `d/<name>`; `name` is 32 lower-case hex digits.
    pub fn data_file(&self, _name: &str) -> Result<DataFile> {
        Err(Error)
    }
    /// Writes the tree, syncs everything, writes the manifest last by rename.
    pub fn finish(self, _files: Vec<DataFile>) -> Result<()> {
        Err(Error)
    }
}
impl DataFile {
    /// Stores a small value (inline where short enough).
    pub fn put(&mut self, _key: &[u8], _value: &[u8]) -> Result<()> {
        Err(Error)
    }
    /// Streams a large value; always stored in the data file.
    pub fn value(&mut self, _key: &[u8]) -> Result<ValueWriter<'_>> {
        Err(Error)
    }
}
