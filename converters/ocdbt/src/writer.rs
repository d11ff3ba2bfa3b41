//! A database written in one go: data files by any number of threads, then the tree, then the manifest.
//!
//! Invariant: the bytes written are a function of the arguments alone, and a manifest exists only once everything it leads to is on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::envelope::Compression;
use crate::error::{Error, Result, escape};
use crate::file::{display, io_error};
use crate::limits::{MAX_INLINE_VALUE_BYTES, MAX_KEY_BYTES, MAX_NODE_ENTRIES};
use crate::manifest::{Config, Content, Manifest};
use crate::node::{LeafEntry, Stored};
use crate::table::{FilePath, Location};
use crate::tree::{self, Limits};
use crate::version::Version;

/// As Orbax sets it for its databases.
const MAX_DECODED_NODE_BYTES: u32 = 100_000_000;
/// As Orbax and TensorStore set it.
const VERSION_TREE_ARITY_LOG2: u8 = 4;
const BUFFER_BYTES: usize = 1 << 20;

/// What a writer cannot know by itself: chance, time and limits are arguments.
#[derive(Debug, Clone)]
pub struct Options {
    /// Database identity.
    pub uuid: [u8; 16],
    /// Nanoseconds since the Unix epoch.
    pub commit_time_ns: u64,
    /// Values up to this many bytes are stored in the tree. Orbax uses 1024; at most 1 MiB.
    pub max_inline_value_bytes: u32,
}

/// Writes a database with one version. Several threads can write data files at once.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    limits: Limits,
    compression: Compression,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    options: Options,
    made: AtomicUsize,
}

/// A data file being filled by one thread.
#[derive(Debug)]
pub struct DataFile {
    shared: Arc<Shared>,
    name: Arc<FilePath>,
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
    entries: Vec<LeafEntry>,
}

/// One value being streamed into a data file; dropped without `finish`, the value does not exist.
#[derive(Debug)]
pub struct ValueWriter<'a> {
    file: &'a mut DataFile,
    key: Vec<u8>,
    start: u64,
}

impl Write for ValueWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.file.write(buf)?;
        self.file.length = self.file.length.saturating_add(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.file.flush()
    }
}

impl ValueWriter<'_> {
    /// Ends the value; gives its length in bytes.
    ///
    /// # Errors
    /// None at present: errors of the disk come from `write` and from [`Writer::finish`].
    pub fn finish(self) -> Result<u64> {
        let length = self.file.length.saturating_sub(self.start);
        let location = Location { file: self.file.name.clone(), offset: self.start, length };
        self.file.entries.push(LeafEntry { key: self.key, value: Stored::Indirect(location) });
        Ok(length)
    }
}

impl Writer {
    /// Starts a database in `dir` (created; must be absent or empty).
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::Setting`], or the disk's own.
    pub fn create(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        if options.max_inline_value_bytes > MAX_INLINE_VALUE_BYTES {
            let found = options.max_inline_value_bytes.into();
            return Err(Error::Setting { what: "max_inline_value_bytes", expected: "at most 1048576", found });
        }
        fs::create_dir_all(&dir).map_err(io_error(&dir))?;
        if let Some(found) = fs::read_dir(&dir).map_err(io_error(&dir))?.next() {
            let found = found.map_err(io_error(&dir))?.file_name().to_string_lossy().into_owned();
            return Err(Error::NotEmpty { dir: display(&dir), found });
        }
        let data = dir.join("d");
        fs::create_dir(&data).map_err(io_error(&data))?;
        let shared = Arc::new(Shared { dir, options, made: AtomicUsize::new(0) });
        let limits = Limits { entries: MAX_NODE_ENTRIES, bytes: MAX_DECODED_NODE_BYTES };
        Ok(Self { shared, limits, compression: Compression::Zstd { level: 0 } })
    }

    /// Sets how the tree and the manifest are stored; zstd at its default level unless set. Values are never compressed.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Sets the largest node: its entries (2 to 1048576) and its estimated bytes of memory. A tree that needs more gets more levels.
    ///
    /// # Errors
    /// [`Error::Setting`] for fewer than 2 entries or more than the format allows.
    pub fn node_limits(mut self, entries: u32, decoded_bytes: u32) -> Result<Self> {
        let entries = u64::from(entries);
        if !(2..=MAX_NODE_ENTRIES).contains(&entries) {
            return Err(Error::Setting { what: "entries of one node", expected: "2 to 1048576", found: entries });
        }
        self.limits = Limits { entries, bytes: decoded_bytes };
        Ok(self)
    }

    /// A new data file `d/<name>`; `name` is 32 lower-case hex digits.
    ///
    /// # Errors
    /// [`Error::DataFileName`], or the disk's own (among them: the file exists).
    pub fn data_file(&self, name: &str) -> Result<DataFile> {
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if name.len() != 32 || !name.bytes().all(lower_hex) {
            return Err(Error::DataFileName { name: name.into() });
        }
        let path = self.shared.dir.join("d").join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(io_error(&path))?;
        self.shared.made.fetch_add(1, Ordering::SeqCst);
        Ok(DataFile {
            shared: self.shared.clone(),
            name: Arc::new(FilePath { base: Vec::new(), relative: format!("d/{name}").into_bytes() }),
            path,
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            length: 0,
            entries: Vec::new(),
        })
    }

    /// Writes the tree (into the first of `files`), syncs everything, writes the manifest last by rename.
    ///
    /// # Errors
    /// [`Error::DataFiles`] unless `files` are all that were made; [`Error::DuplicateKey`]; or the disk's own.
    pub fn finish(self, mut files: Vec<DataFile>) -> Result<()> {
        let made = self.shared.made.load(Ordering::SeqCst);
        let given = files.iter().filter(|file| Arc::ptr_eq(&file.shared, &self.shared)).count();
        if given != made || files.len() != made {
            return Err(Error::DataFiles { made, given });
        }
        let mut entries: Vec<LeafEntry> = files.iter_mut().flat_map(|file| file.entries.drain(..)).collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        for pair in entries.windows(2) {
            if let [a, b] = pair
                && a.key == b.key
            {
                return Err(Error::DuplicateKey { key: escape(&a.key) });
            }
        }

        let tree = match files.first_mut() {
            Some(file) => tree::build(entries, &self.limits, |node| {
                let piece = node.encode(self.compression).map_err(io_error(&file.path))?;
                file.append(&piece)
            })?,
            None => None,
        };
        for file in files {
            file.sync()?;
        }
        let data = self.shared.dir.join("d");
        sync_dir(&data)?;

        let options = &self.shared.options;
        let version = Version {
            generation: 1,
            commit_time_ns: options.commit_time_ns,
            statistics: tree.as_ref().map(|tree| tree.statistics).unwrap_or_default(),
            height: tree.as_ref().map_or(0, |tree| tree.height),
            root: tree.map(|tree| tree.location),
        };
        let config = Config {
            uuid: options.uuid,
            max_inline_value_bytes: options.max_inline_value_bytes,
            max_decoded_node_bytes: self.limits.bytes,
            version_tree_arity_log2: VERSION_TREE_ARITY_LOG2,
            compression: self.compression,
        };
        let content = Content::Single { versions: vec![version], nodes: Vec::new() };
        self.publish(&Manifest { config, content })
    }

    /// Writes the manifest under another name, then renames it.
    fn publish(&self, manifest: &Manifest) -> Result<()> {
        let path = self.shared.dir.join("manifest.ocdbt");
        let unfinished = self.shared.dir.join(".manifest.ocdbt.unfinished");
        let failed = io_error(&unfinished);
        let bytes = manifest.encode(self.compression).map_err(&failed)?;
        let mut file = File::create_new(&unfinished).map_err(&failed)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(&failed)?;
        fs::rename(&unfinished, &path).map_err(io_error(&path))?;
        sync_dir(&self.shared.dir)
    }
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> Result<()> {
    // Elsewhere a directory cannot be opened as a file.
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(dir))?;
    }
    Ok(())
}

impl DataFile {
    /// Stores a small value (inline where short enough).
    ///
    /// # Errors
    /// [`Error::KeyLength`], or the disk's own.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if value.len() as u64 <= u64::from(self.shared.options.max_inline_value_bytes) {
            let key = checked(key)?;
            self.entries.push(LeafEntry { key, value: Stored::Inline(value.to_vec()) });
            return Ok(());
        }
        let mut writer = self.value(key)?;
        let written = writer.write_all(value);
        match written {
            Ok(()) => writer.finish().map(drop),
            Err(source) => Err(io_error(&self.path)(source)),
        }
    }

    /// Streams a large value; always stored in the data file.
    ///
    /// # Errors
    /// [`Error::KeyLength`].
    pub fn value(&mut self, key: &[u8]) -> Result<ValueWriter<'_>> {
        let key = checked(key)?;
        let start = self.length;
        Ok(ValueWriter { file: self, key, start })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<Location> {
        self.file.write_all(bytes).map_err(io_error(&self.path))?;
        let (offset, length) = (self.length, bytes.len() as u64);
        self.length = self.length.saturating_add(length);
        Ok(Location { file: self.name.clone(), offset, length })
    }

    /// Flushes the file to the disk, or removes it where it holds nothing.
    fn sync(mut self) -> Result<()> {
        let failed = io_error(&self.path);
        self.file.flush().map_err(&failed)?;
        if self.length == 0 {
            return fs::remove_file(&self.path).map_err(&failed);
        }
        self.file.get_ref().sync_all().map_err(&failed)
    }
}

fn checked(key: &[u8]) -> Result<Vec<u8>> {
    if key.len() > MAX_KEY_BYTES {
        return Err(Error::KeyLength { key: escape(key), length: key.len() });
    }
    Ok(key.to_vec())
}
