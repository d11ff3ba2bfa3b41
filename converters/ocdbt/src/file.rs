//! The files of a database, opened with care: nothing outside its directory, nothing that is not a regular file.
//!
//! Invariant: below the database directory no symbolic link is followed, no pipe or device is waited for, and no range is read (or allocated)
//! before it is known to lie inside its file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ValueReader;
use crate::error::{Error, Problem, Result, escape};
use crate::limits::MAX_KEY_BYTES;

/// Bytes read from the disk at a time when a value is streamed.
const BUFFER_BYTES: usize = 128 << 10;

/// Judges a data file's path: relative, inside the directory, and the same on every system.
pub(crate) fn check(path: &[u8]) -> Result<&str, Problem> {
    let refuse = |reason| Problem::UnsafePath { path: escape(path), reason };
    let text = std::str::from_utf8(path).map_err(|_| refuse("expected UTF-8"))?;
    if text.is_empty() {
        return Err(refuse("expected a path, found nothing"));
    }
    if text.len() > MAX_KEY_BYTES {
        return Err(refuse("expected at most 65535 bytes"));
    }
    if text.contains(['\0', '\\']) {
        return Err(refuse("expected no NUL and no backslash"));
    }
    if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(refuse("expected a relative path without empty, \".\" or \"..\" components"));
    }
    Ok(text)
}

/// Where a database's files are.
#[derive(Debug)]
pub(crate) enum Store {
    /// A directory.
    Directory(PathBuf),
    /// Memory, for fuzzing.
    Memory(BTreeMap<String, Vec<u8>>),
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Blob<'a> {
    pub(crate) name: Arc<str>,
    pub(crate) size: u64,
    bytes: Bytes<'a>,
}

#[derive(Debug)]
enum Bytes<'a> {
    File(File),
    Memory(&'a [u8]),
}

/// A path as text, for errors.
pub(crate) fn display(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

/// An operating system error, with its path.
pub(crate) fn io_error(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { file: display(path), source }
}

impl Store {
    /// How errors name `path`.
    pub(crate) fn name(&self, path: &str) -> Arc<str> {
        match self {
            Store::Directory(root) => display(&root.join(path)),
            Store::Memory(_) => path.into(),
        }
    }

    /// Opens the file at a path relative to the directory.
    pub(crate) fn open(&self, path: &str) -> Result<Blob<'_>> {
        check(path.as_bytes()).map_err(Error::UnsafePath)?;
        let name = self.name(path);
        match self {
            Store::Directory(root) => open_regular(root, path, name),
            Store::Memory(files) => {
                let bytes = files.get(path).ok_or(Error::Missing { file: name.clone(), hint: "" })?;
                Ok(Blob { name, size: bytes.len() as u64, bytes: Bytes::Memory(bytes) })
            }
        }
    }

    /// The largest number among the numbered manifests.
    pub(crate) fn newest_numbered(&self) -> Result<Option<u64>> {
        match self {
            Store::Memory(files) => Ok(files.keys().filter_map(|name| number(name)).max()),
            Store::Directory(root) => {
                let mut newest = None;
                for entry in fs::read_dir(root).map_err(io_error(root))? {
                    let name = entry.map_err(io_error(root))?.file_name();
                    newest = newest.max(name.to_str().and_then(number));
                }
                Ok(newest)
            }
        }
    }
}

/// The number of `manifest.<16 lower-case hexadecimal digits>`. As in TensorStore the first digit is decimal, and 0 is none.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("manifest.")?;
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let well_formed =
        digits.len() == 16 && digits.bytes().all(lower_hex) && digits.starts_with(|c: char| c.is_ascii_digit());
    let number = u64::from_str_radix(digits, 16).ok().filter(|_| well_formed)?;
    (number > 0).then_some(number)
}

fn kind(metadata: &fs::Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        "a symbolic link (they are not followed below the database directory; replace it by the file itself, as `cp -L` does)"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a pipe, socket or device"
    }
}

fn open_regular<'a>(root: &Path, path: &str, name: Arc<str>) -> Result<Blob<'a>> {
    let mut full = root.to_path_buf();
    let mut components = path.split('/').peekable();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { file: name.clone(), hint: "" },
        _ => Error::Io { file: name.clone(), source },
    };
    while let Some(component) = components.next() {
        full.push(component);
        let metadata = fs::symlink_metadata(&full).map_err(failed)?;
        let last = components.peek().is_none();
        if metadata.is_symlink() || (last && !metadata.is_file()) {
            return Err(Error::NotAFile { file: display(&full), found: kind(&metadata) });
        }
    }
    // What was looked at may have been replaced since: the flags keep the open itself safe, the handle is asked again.
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC,
    );
    let file = options.open(&full).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { file: name, found: kind(&metadata) });
    }
    Ok(Blob { name, size: metadata.len(), bytes: Bytes::File(file) })
}

impl<'a> Blob<'a> {
    /// Refuses a range that the file does not hold.
    pub(crate) fn require(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::Outside { file: self.name.clone(), offset, length, size: self.size }),
        }
    }

    /// Reads a range.
    pub(crate) fn read(self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let name = self.name.clone();
        let mut reader = self.stream(offset, length)?;
        let length = usize::try_from(length)
            .map_err(|_| Error::Io { file: name.clone(), source: io::ErrorKind::OutOfMemory.into() })?;
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).map_err(|source| Error::Io { file: name, source })?;
        Ok(bytes)
    }

    /// Streams a range.
    pub(crate) fn stream(self, offset: u64, length: u64) -> Result<ValueReader<'a>> {
        self.require(offset, length)?;
        match self.bytes {
            Bytes::Memory(bytes) => {
                let range = usize::try_from(offset)
                    .ok()
                    .and_then(|offset| bytes.get(offset..))
                    .zip(usize::try_from(length).ok())
                    .and_then(|(rest, length)| rest.get(..length));
                Ok(Box::new(range.unwrap_or_default()))
            }
            Bytes::File(mut file) => {
                let name = self.name;
                file.seek(SeekFrom::Start(offset)).map_err(|source| Error::Io { file: name.clone(), source })?;
                let capacity = usize::try_from(length).map_or(BUFFER_BYTES, |length| length.min(BUFFER_BYTES));
                Ok(Box::new(Range { inner: BufReader::with_capacity(capacity, file), left: length, name }))
            }
        }
    }
}

/// A range of an open file. A file that was cut off meanwhile is an error, not an early end.
struct Range {
    inner: BufReader<File>,
    left: u64,
    name: Arc<str>,
}

impl Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let (buffer, _) = buffer.split_at_mut_checked(most).unwrap_or_default();
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = self.inner.read(buffer)?;
        if n == 0 {
            let text = format!("{}: ends {} bytes before the end of the value", self.name, self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }
}
