//! Everything that can be wrong with a checkpoint, named for what is wrong with the thing.
//!
//! Invariant: a message gives the name first (leaf, array, chunk or file), then what was expected and found, then a hint where there is one.

use std::io;
use std::path::{Path, PathBuf};

/// What is wrong and with which leaf or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The OCDBT database around the arrays is damaged.
    #[error("{}: {source}", dir.display())]
    Database {
        /// Folder of the database.
        dir: PathBuf,
        /// What is wrong in it.
        source: ocdbt::Error,
    },
    /// A path inside the checkpoint is not a plain file below it.
    #[error("{}: {problem}", path.display())]
    UnsafePath {
        /// The path as the checkpoint spells it.
        path: PathBuf,
        /// Why it is refused.
        problem: String,
    },
    /// A JSON document is not what it should be.
    #[error("{file}: {problem}")]
    Document {
        /// File, or key in the database.
        file: String,
        /// Expected and found.
        problem: String,
    },
    /// A file, document or value is larger than this crate is willing to hold.
    #[error("{name}: {found} bytes, at most {limit} are accepted")]
    TooLarge {
        /// What is too large.
        name: String,
        /// Its size.
        found: u64,
        /// The cap.
        limit: u64,
    },
    /// A legal feature that Orbax never writes and this crate does not read.
    #[error("{name}: {what} is not supported")]
    Unsupported {
        /// The array or file.
        name: String,
        /// The feature.
        what: String,
    },
    /// The folder holds no checkpoint.
    #[error("{}: {problem}", dir.display())]
    NotACheckpoint {
        /// The folder.
        dir: PathBuf,
        /// What was found in it, and a hint.
        problem: String,
    },
    /// A save that was never finished.
    #[error("{}: an unfinished save: {problem}", dir.display())]
    Unfinished {
        /// The folder.
        dir: PathBuf,
        /// How it is seen.
        problem: String,
    },
    /// A leaf of the tree is wrong.
    #[error("leaf {name:?}: {problem}")]
    Leaf {
        /// The leaf's path, joined by "/".
        name: String,
        /// Expected and found.
        problem: String,
    },
    /// A leaf says that it is an array, and there is none.
    #[error("leaf {name:?}: no array {array:?} is stored (neither {array}/.zarray nor {array}/zarr.json)")]
    NoArray {
        /// The leaf's path, joined by "/".
        name: String,
        /// The array's name in the store.
        array: String,
    },
    /// A chunk is damaged.
    #[error("array {array:?}, chunk {chunk}: {problem}")]
    Chunk {
        /// The array.
        array: String,
        /// Its grid position, joined by ".".
        chunk: String,
        /// Expected and found.
        problem: String,
    },
    /// A chunk that must be stored is not.
    #[error(
        "array {array:?}, chunk {chunk}: missing, although this checkpoint stores every chunk (store_array_data_equal_to_fill_value); the copy is incomplete"
    )]
    MissingChunk {
        /// The array.
        array: String,
        /// Its grid position, joined by ".".
        chunk: String,
    },
    /// An array or chunk number that does not exist.
    #[error("{name}: no such {what} {found}, there are {count}")]
    OutOfRange {
        /// The source or array.
        name: String,
        /// "array" or "chunk".
        what: &'static str,
        /// The number asked for.
        found: u64,
        /// How many there are.
        count: u64,
    },
    /// An `.npz` or one of its members is not what it should be.
    #[error("{}: {problem}", path.display())]
    Npz {
        /// The container.
        path: PathBuf,
        /// Member, expected and found.
        problem: String,
    },
    /// Something that cannot be written.
    #[error("array {array:?}: {problem}")]
    Write {
        /// The array.
        array: String,
        /// Expected and found.
        problem: String,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    pub(crate) fn database(dir: impl AsRef<Path>, source: ocdbt::Error) -> Self {
        Error::Database { dir: dir.as_ref().to_path_buf(), source }
    }

    pub(crate) fn document(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Document { file: file.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(name: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Unsupported { name: name.into(), what: what.into() }
    }

    pub(crate) fn leaf(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Leaf { name: name.into(), problem: problem.into() }
    }

    pub(crate) fn write(array: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Write { array: array.into(), problem: problem.into() }
    }
}
