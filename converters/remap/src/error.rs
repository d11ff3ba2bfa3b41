//! What can be wrong with a set of names, and with moving their bytes.

use std::fmt;
use std::path::PathBuf;

/// A line of a map's text that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("map line {line}: {what}")]
pub struct MapError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong, with the line's text.
    pub what: String,
}

/// One thing wrong with a set of tensors. All are found before anything is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// No row of the map has this name.
    Unknown {
        /// As the source has it.
        name: String,
        /// The known name that is nearest to it.
        nearest: Option<String>,
    },
    /// The model needs this tensor and the source has not got it.
    Hole {
        /// As the source would have it.
        name: String,
        /// Why it is needed.
        needed: String,
    },
    /// Two tensors of the source are the same parameter.
    Twice {
        /// The one.
        name: String,
        /// The other.
        other: String,
    },
    /// A shape that does not fit.
    Shape {
        /// As the source has it.
        name: String,
        /// What the map or the other tensors say.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The target scheme has no name for this parameter.
    Nameless {
        /// As the source has it.
        name: String,
        /// The scheme that has none.
        scheme: String,
    },
    /// The number of heads is not in the shapes and not told.
    Heads {
        /// As the source has it.
        name: String,
        /// Which number is missing.
        missing: String,
    },
    /// A tensor of an element type that the conversion cannot hold.
    Dtype {
        /// As the source has it.
        name: String,
        /// What it is.
        found: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unknown { name, nearest: Some(nearest) } => {
                write!(f, "unknown: {name} is in no row of the map; the nearest known name is {nearest}")
            }
            Fault::Unknown { name, nearest: None } => write!(f, "unknown: {name} is in no row of the map"),
            Fault::Hole { name, needed } => write!(f, "hole: {name} is missing; {needed}"),
            Fault::Twice { name, other } => write!(f, "twice: {name} and {other} are the same parameter"),
            Fault::Shape { name, expected, found } => {
                write!(f, "shape: {name}: expected {expected}, found {found}")
            }
            Fault::Nameless { name, scheme } => write!(f, "nameless: {name} has no name in the scheme {scheme}"),
            Fault::Heads { name, missing } => write!(
                f,
                "heads: {name} merges its heads into one axis and nothing tells {missing}; give it with --heads"
            ),
            Fault::Dtype { name, found } => write!(f, "dtype: {name} is {found}, which this target cannot hold"),
        }
    }
}

/// Everything that is wrong with a plan, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Sorted; never empty.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 24;
        write!(
            f,
            "refused before writing: {} fault{}",
            self.faults.len(),
            if self.faults.len() == 1 { "" } else { "s" }
        )?;
        for fault in self.faults.iter().take(SHOWN) {
            write!(f, "\n  {fault}")?;
        }
        match self.faults.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more (--json lists all)"),
        }
    }
}

impl std::error::Error for Refused {}

/// What can go wrong while planning, moving or writing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan was refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The source's own format is broken.
    #[error(transparent)]
    Source(#[from] orbax::Error),
    /// An array could not be read.
    #[error("{name}: {error}")]
    Read {
        /// Array.
        name: String,
        /// Reason.
        error: std::io::Error,
    },
    /// A file could not be read or written.
    #[error("{}: {action}: {error}", path.display())]
    File {
        /// File.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Reason.
        error: std::io::Error,
    },
    /// A safetensors file that is not one.
    #[error("{}: {what}", path.display())]
    Safetensors {
        /// File.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Stopped because another thread failed or the caller asked.
    #[error("stopped")]
    Stopped,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
