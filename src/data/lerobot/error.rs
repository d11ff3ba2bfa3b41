//! What can be wrong with a dataset, each by its name.
//!
//! Invariant: the message starts with the file or the key that is wrong, then what was expected and found, then a hint.

use std::path::{Path, PathBuf};

use crate::data::video::VideoError;

/// Why a dataset cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The folder is no LeRobot dataset.
    #[error("{}: no LeRobot dataset: {what}", dir.display())]
    NotADataset {
        /// The folder.
        dir: PathBuf,
        /// What is missing, and what to do.
        what: String,
    },
    /// A version that this reader does not know.
    #[error("{}: LeRobot {found}; expected v2.0, v2.1 or v3.0; {hint}", file.display())]
    Version {
        /// Where the version stands.
        file: PathBuf,
        /// The version.
        found: String,
        /// What to do.
        hint: String,
    },
    /// A file that the dataset speaks of is not there.
    #[error("{}: it is missing; {what}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// Who needs it.
        what: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of `meta/` is not as LeRobot writes it.
    #[error("{}: {what}", file.display())]
    Meta {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A table cannot be decoded.
    #[error("{}: no sound parquet: {what}", file.display())]
    Parquet {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A table has more or fewer rows than the episodes of `meta/` that lie in it.
    #[error("{}: expected {expected} rows, as meta/ says, found {found}", file.display())]
    Rows {
        /// The file.
        file: PathBuf,
        /// By the lengths of its episodes.
        expected: u64,
        /// In the table.
        found: u64,
    },
    /// A column is not what it should be.
    #[error("{}: column {column}: {what}", file.display())]
    Column {
        /// The file.
        file: PathBuf,
        /// The column.
        column: String,
        /// What is wrong with it.
        what: String,
    },
    /// The dataset has no such feature, or it is of another kind.
    #[error("{key}: {what}")]
    Feature {
        /// The key that was asked for.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// No such episode or frame.
    #[error("{what} {asked}: the dataset has {there}")]
    Range {
        /// `episode` or `frame`.
        what: &'static str,
        /// What was asked for.
        asked: u64,
        /// What there is.
        there: String,
    },
    /// A difference in time that falls between two frames.
    #[error("{key}: a delta of {delta} s is no whole number of frames at {fps} fps; the nearest is {nearest} s")]
    Delta {
        /// The key.
        key: String,
        /// The delta, in seconds.
        delta: f64,
        /// Frames per second.
        fps: f64,
        /// The nearest delta that is a whole number of frames.
        nearest: f64,
    },
    /// A picture cannot be decoded.
    #[error("{}: {key}, row {row}: {what}", file.display())]
    Image {
        /// The table that it lies in.
        file: PathBuf,
        /// The camera.
        key: String,
        /// The row in the table.
        row: u64,
        /// What is wrong with it.
        what: String,
    },
    /// A video cannot be decoded as the dataset says.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// A film of prepared frames is not as it was written, or was made of something else.
    #[error("{}: prepared frames: {what}", file.display())]
    Film {
        /// The film.
        file: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
}

impl DataError {
    pub(crate) fn meta(file: &Path, what: impl Into<String>) -> Self {
        DataError::Meta { file: file.to_owned(), what: what.into() }
    }

    pub(crate) fn parquet(file: &Path, what: impl Into<String>) -> Self {
        DataError::Parquet { file: file.to_owned(), what: what.into() }
    }

    pub(crate) fn column(file: &Path, column: &str, what: impl Into<String>) -> Self {
        DataError::Column { file: file.to_owned(), column: column.to_owned(), what: what.into() }
    }

    pub(crate) fn io(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing { file, what: "the dataset needs it".to_owned() },
            _ => DataError::Io { file, source },
        }
    }
}
