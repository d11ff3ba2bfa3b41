//! What can be wrong with a database: where it stands (file and byte) and what is wrong there.
//!
//! Invariant: every error met while reading names the file; every malformed byte is named by its offset.

use std::fmt;
use std::io;
use std::sync::Arc;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where in a database something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Path of the file.
    pub file: Arc<str>,
    /// Byte of the file. For a compressed piece the byte at which the piece starts.
    pub byte: u64,
    /// For a compressed piece, the byte of its decompressed body.
    pub decompressed: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: byte {}", self.file, self.byte)?;
        match self.decompressed {
            Some(inside) => write!(f, ", byte {inside} of the decompressed body"),
            None => Ok(()),
        }
    }
}

/// What is wrong, in which file, at which byte.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that are not a valid database.
    #[error("{place}: {problem}")]
    Corrupt {
        /// Where.
        place: Place,
        /// What.
        problem: Problem,
    },
    /// A file that must exist does not.
    #[error("{file}: no such file{hint}")]
    Missing {
        /// Path of the file.
        file: Arc<str>,
        /// Why it matters, or what to try.
        hint: &'static str,
    },
    /// A file that must be a regular file is something else. Symbolic links are never followed below the root.
    #[error("{file}: expected a regular file, found {found}")]
    NotAFile {
        /// Path of the file.
        file: Arc<str>,
        /// What stands there.
        found: &'static str,
    },
    /// A byte range that its file does not hold.
    #[error("{file}: byte {offset}: expected {length} bytes, but the file has {size} in all (truncated?)")]
    Outside {
        /// Path of the file.
        file: Arc<str>,
        /// First byte of the range.
        offset: u64,
        /// Bytes in the range.
        length: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// A path that would leave the database directory, or that is no path at all.
    #[error("{0}")]
    UnsafePath(Problem),
    /// A part of a value that the value does not have.
    #[error("value of {value_length} bytes: range of {length} bytes from byte {offset} is not inside it")]
    Range {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Bytes the value has.
        value_length: u64,
    },
    /// A generation that the database does not hold (any more).
    #[error("{file}: generation {wanted} is not in the database, whose newest is {newest}; `versions` lists them")]
    Generation {
        /// Path of the manifest.
        file: Arc<str>,
        /// Generation asked for.
        wanted: u64,
        /// Newest generation.
        newest: u64,
    },
    /// The operating system refused.
    #[error("{file}: {source}")]
    Io {
        /// Path of the file.
        file: Arc<str>,
        /// Its reason.
        source: io::Error,
    },
    /// Writing: the directory already holds something.
    #[error("{dir}: expected an absent or empty directory for a new database, found {found:?} in it")]
    NotEmpty {
        /// The directory.
        dir: Arc<str>,
        /// A name found in it.
        found: String,
    },
    /// Writing: a data file's name is not 32 lower-case hexadecimal digits.
    #[error("data file name {name:?}: expected 32 lower-case hexadecimal digits")]
    DataFileName {
        /// The name.
        name: String,
    },
    /// Writing: the data files handed to `finish` are not exactly those that were made.
    #[error(
        "finish: expected the {made} data files this writer made, found {given}; each holds values that would be lost"
    )]
    DataFiles {
        /// Data files made.
        made: usize,
        /// Data files of this writer handed over.
        given: usize,
    },
    /// Writing: a key is too long.
    #[error("key {key}…: {length} bytes, the format allows 65535")]
    KeyLength {
        /// The key's beginning, escaped.
        key: String,
        /// Its bytes.
        length: usize,
    },
    /// Writing: a key was given twice.
    #[error("key {key}: written twice")]
    DuplicateKey {
        /// The key, escaped.
        key: String,
    },
    /// Writing: a setting outside what the format allows.
    #[error("{what}: expected {expected}, found {found}")]
    Setting {
        /// Name of the setting.
        what: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What was given.
        found: u64,
    },
}

/// What is wrong with bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The bytes end inside a field.
    #[error("{what}: expected {needed} more bytes, found {left}")]
    Truncated {
        /// The field.
        what: &'static str,
        /// Bytes it takes at least.
        needed: u64,
        /// Bytes left.
        left: u64,
    },
    /// Bytes are left after the last field.
    #[error("{left} bytes left over after the last field")]
    Trailing {
        /// How many.
        left: u64,
    },
    /// Bytes are left after the zstd frame.
    #[error("{left} bytes left over after the zstd frame, expected exactly one frame")]
    TrailingFrame {
        /// How many.
        left: u64,
    },
    /// A variable-length integer that is too long or too large for its field.
    #[error("{what}: varint does not fit {bits} bits")]
    Varint {
        /// The field.
        what: &'static str,
        /// Bits of the field.
        bits: u32,
    },
    /// Not the piece that was expected.
    #[error("magic number: expected {expected:#010x} ({what}), found {found:#010x}")]
    Magic {
        /// The piece expected.
        what: &'static str,
        /// Its magic number.
        expected: u32,
        /// The number found.
        found: u32,
    },
    /// The length in the header is not the length of the bytes.
    #[error("length in the header: expected {expected}, found {found}")]
    Length {
        /// Bytes there are.
        expected: u64,
        /// Bytes the header states.
        found: u64,
    },
    /// The checksum does not match.
    #[error(
        "CRC-32C: expected {stored:#010x} (as stored), found {computed:#010x} (as computed); the bytes are damaged"
    )]
    Checksum {
        /// The checksum stored.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The zstd frame does not decode.
    #[error("zstd: {0}")]
    Zstd(String),
    /// A number outside what the format allows.
    #[error("{what}: expected {expected}, found {found}")]
    Value {
        /// The field.
        what: &'static str,
        /// What is allowed.
        expected: String,
        /// What stands there.
        found: u64,
    },
    /// A prefix shared with the previous entry that is longer than that entry.
    #[error("{what}: shares {prefix} bytes with the previous one, which has {previous}")]
    Prefix {
        /// Path or key.
        what: &'static str,
        /// Bytes said to be shared.
        prefix: u64,
        /// Bytes of the previous one.
        previous: u64,
    },
    /// A shared path prefix that reaches over the end of a base path.
    #[error("data file {index}: shares {prefix} bytes with the previous path across two different base paths")]
    BasePath {
        /// Index in the table.
        index: usize,
        /// Bytes said to be shared.
        prefix: u64,
    },
    /// Keys, generations or heights out of order.
    #[error("{what} number {index}: out of order: {detail}")]
    Order {
        /// Keys, generations, ...
        what: &'static str,
        /// Index in the piece.
        index: usize,
        /// Both, escaped.
        detail: String,
    },
    /// Offset + length of a reference does not fit.
    #[error("{what}: offset {offset} + length {length} is not below 2^63")]
    Overflow {
        /// The reference.
        what: &'static str,
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// A path that would leave the database directory, or that is no path at all.
    #[error("data file path \"{path}\": {reason}")]
    UnsafePath {
        /// The path, escaped.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Tree nodes are reached more than once: not a tree.
    #[error("B+tree nodes of {length} bytes visited in a file of {size} bytes: nodes are shared, so this is no tree")]
    Shared {
        /// Bytes of nodes visited in this file.
        length: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// More than this reader is willing to hold.
    #[error("{what}: more than the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A numbered manifest that does not fit the one it belongs to.
    #[error("numbered manifest: {0} differs from manifest.ocdbt or from the file's name")]
    Numbered(&'static str),
}

/// Bytes as readable text, cut at 80 bytes.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text: String = bytes.iter().take(80).flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect();
    if bytes.len() > 80 {
        text.push('…');
    }
    text
}
