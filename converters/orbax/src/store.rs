//! Where the keys of an array live: an OCDBT database, or files below a folder.
//!
//! Orbax (<https://github.com/google/orbax>) stores `NAME/.zarray`, `NAME/0.0`, ... either way; a reader of arrays must not care which.
//! Invariant: nothing outside the checkpoint folder is ever opened. A plain key is refused unless every component is an ordinary name, no
//! component is a symlink, and the file is a regular one; the same rules hold for the metadata documents ([`read_document`]).

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Folders nested deeper than this are not searched for arrays.
const MAX_DEPTH: usize = 64;
/// Folder entries looked at, at most, when searching for arrays.
const MAX_LISTED: usize = 1 << 20;

/// Keys and values; readable from many threads at once.
pub(crate) trait Store: Send + Sync {
    /// Length of the value; `None` where the key is absent.
    fn value_len(&self, key: &str) -> Result<Option<u64>>;
    /// Streams `length` bytes of the value from `offset`; the range lies inside the value.
    fn reader(&self, key: &str, offset: u64, length: u64) -> Result<Box<dyn Read + Send + '_>>;
    /// Names of all arrays (folders holding `.zarray` or `zarr.json`), and what could not be looked at.
    fn array_names(&self) -> Result<(BTreeSet<String>, Vec<String>)>;

    /// A small value whole; an error where it is longer than `cap`.
    fn read(&self, key: &str, cap: u64) -> Result<Option<Vec<u8>>> {
        let Some(length) = self.value_len(key)? else {
            return Ok(None);
        };
        if length > cap {
            return Err(Error::TooLarge { name: key.to_owned(), found: length, limit: cap });
        }
        let mut bytes = Vec::new();
        let mut reader = self.reader(key, 0, length)?;
        reader.read_to_end(&mut bytes).map_err(|e| Error::io(key, e))?;
        Ok(Some(bytes))
    }
}

/// `NAME/.zarray` -> `NAME`; the nameless array's documents are `.zarray` and `zarr.json` themselves.
fn array_of_document(key: &str) -> Option<&str> {
    let (name, document) = key.rsplit_once('/').unwrap_or(("", key));
    matches!(document, ".zarray" | "zarr.json").then_some(name)
}

/// An OCDBT database as a store.
pub(crate) struct OcdbtStore {
    dir: PathBuf,
    database: ocdbt::Database,
}

impl OcdbtStore {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let database = ocdbt::Database::open(dir).map_err(|e| Error::database(dir, e))?;
        Ok(OcdbtStore { dir: dir.to_path_buf(), database })
    }

    pub(crate) fn database(&self) -> &ocdbt::Database {
        &self.database
    }

    fn value(&self, key: &str) -> Option<&ocdbt::Value> {
        self.database.get(key.as_bytes())
    }
}

impl Store for OcdbtStore {
    fn value_len(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.value(key).map(ocdbt::Value::len))
    }

    fn reader(&self, key: &str, offset: u64, length: u64) -> Result<Box<dyn Read + Send + '_>> {
        let Some(value) = self.value(key) else {
            return Err(Error::io(self.dir.join(key), ErrorKind::NotFound.into()));
        };
        self.database.reader(value, offset, length).map_err(|e| Error::database(&self.dir, e))
    }

    fn array_names(&self) -> Result<(BTreeSet<String>, Vec<String>)> {
        let mut names = BTreeSet::new();
        let mut warnings = Vec::new();
        for entry in self.database.entries() {
            match std::str::from_utf8(&entry.key) {
                Ok(key) => names.extend(array_of_document(key).map(str::to_owned)),
                Err(_) => warnings.push(format!(
                    "{}: a key that is not UTF-8 was left out: {}",
                    self.dir.display(),
                    entry.key.escape_ascii()
                )),
            }
        }
        Ok((names, warnings))
    }
}

/// Files below a folder as a store.
pub(crate) struct PlainStore {
    root: PathBuf,
}

impl PlainStore {
    pub(crate) fn open(root: &Path) -> Self {
        PlainStore { root: root.to_path_buf() }
    }

    fn open_file(&self, key: &str) -> Result<Option<(File, u64)>> {
        open_below(&self.root, key)
    }
}

impl Store for PlainStore {
    fn value_len(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.open_file(key)?.map(|(_, length)| length))
    }

    fn reader(&self, key: &str, offset: u64, length: u64) -> Result<Box<dyn Read + Send + '_>> {
        let path = self.root.join(key);
        let Some((mut file, size)) = self.open_file(key)? else {
            return Err(Error::io(path, ErrorKind::NotFound.into()));
        };
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::io(path, ErrorKind::UnexpectedEof.into()));
        }
        if offset > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(|e| Error::io(&path, e))?;
        }
        Ok(Box::new(file.take(length)))
    }

    fn array_names(&self) -> Result<(BTreeSet<String>, Vec<String>)> {
        let mut names = BTreeSet::new();
        let mut warnings = Vec::new();
        let mut seen = 0usize;
        let mut folders = vec![(self.root.clone(), String::new(), 0usize)];
        while let Some((folder, name, depth)) = folders.pop() {
            let mut below = Vec::new();
            for entry in fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
                let entry = entry.map_err(|e| Error::io(&folder, e))?;
                seen = seen.saturating_add(1);
                if seen > MAX_LISTED {
                    warnings.push(format!(
                        "{}: more than {MAX_LISTED} files; the rest was not searched for arrays without a leaf",
                        self.root.display()
                    ));
                    return Ok((names, warnings));
                }
                let kind = entry.file_type().map_err(|e| Error::io(entry.path(), e))?;
                let Some(file_name) = entry.file_name().to_str().map(str::to_owned) else {
                    warnings.push(format!("{}: a name that is not UTF-8 was left out", entry.path().display()));
                    continue;
                };
                if kind.is_dir() {
                    below.push(file_name);
                } else if kind.is_file() && matches!(file_name.as_str(), ".zarray" | "zarr.json") {
                    names.insert(name.clone());
                }
            }
            // The chunks of a zarr v3 array lie under `c`, possibly very many; no array does.
            let is_v3 = names.contains(&name) && folder.join("zarr.json").is_file();
            for child in below {
                if (is_v3 && child == "c") || depth >= MAX_DEPTH {
                    continue;
                }
                let child_name = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
                folders.push((folder.join(&child), child_name, depth.saturating_add(1)));
            }
        }
        Ok((names, warnings))
    }
}

/// Opens a regular file below `root`; `None` where it does not exist.
///
/// `O_NOFOLLOW` guards the last component and a look at each folder the ones before it; `O_NONBLOCK` keeps a FIFO from hanging us.
pub(crate) fn open_below(root: &Path, key: &str) -> Result<Option<(File, u64)>> {
    let path = root.join(key);
    let refuse = |problem: &str| Error::UnsafePath { path: PathBuf::from(key), problem: problem.to_owned() };
    let unsafe_part = |part: &str| matches!(part, "" | "." | "..") || part.contains(['\0', '\\']);
    if key.split('/').any(unsafe_part) {
        return Err(refuse("not a path below the checkpoint (an empty, '.' or '..' component, NUL or backslash)"));
    }
    let mut folder = root.to_path_buf();
    let mut components = key.split('/').peekable();
    while let Some(component) = components.next() {
        folder.push(component);
        if components.peek().is_some() {
            match fs::symlink_metadata(&folder) {
                Ok(found) if found.is_symlink() => {
                    return Err(refuse("a symlink on the way; links are not followed"));
                }
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Ok(None),
                Err(e) if is_absent(&e) => return Ok(None),
                Err(e) => return Err(Error::io(&folder, e)),
            }
        }
    }
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path) {
        Ok(file) => file,
        Err(e) if is_absent(&e) => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
            return Err(refuse("a symlink; links are not followed"));
        }
        Err(e) => return Err(Error::io(&path, e)),
    };
    let found = file.metadata().map_err(|e| Error::io(&path, e))?;
    if !found.is_file() {
        return Err(refuse("not a regular file"));
    }
    Ok(Some((file, found.len())))
}

fn is_absent(error: &std::io::Error) -> bool {
    // A name longer than the file system allows cannot exist either.
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
}

/// A metadata document of the item folder, at most `cap` bytes; `None` where it does not exist.
pub(crate) fn read_document(root: &Path, name: &str, cap: u64) -> Result<Option<Vec<u8>>> {
    PlainStore::open(root).read(name, cap)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
