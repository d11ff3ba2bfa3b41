//! msgpack-numpy, both ways: a message's bytes ⇄ a [`Tree`].
//!
//! Source: openpi 15a9616, packages/openpi-client, msgpack_numpy.py, and the MessagePack specification. An array is a map of
//! four members whose keys are bytes, in this order: `__ndarray__` true, `data` its elements in C order, `dtype` as numpy
//! spells it, `shape`. A numpy scalar is one of three: `__npgeneric__` true, `data` Python's value, `dtype`.
//!
//! Invariants: what is written has the very bytes that Python's packer writes of the same objects, so that a message that
//! was read and is written again does not change, but for what [`Tree`] does not tell apart: numpy scalars come back as
//! arrays without axes, texts in arrays as texts, narrow dtypes widened, floats of 4 bytes as floats of 8. What is read is
//! never believed: a claimed length allocates nothing, and every refusal names the key where it stands.
//!
//! - `form`: the forms of msgpack, one table for both ways
//! - `read`, `write`: the two ways

#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod form;
mod read;
#[cfg(test)]
mod tests;
mod write;

use super::tree::Tree;

/// What marks an array.
const ARRAY: &str = "__ndarray__";
/// What marks a numpy scalar.
const SCALAR: &str = "__npgeneric__";
/// Elements of an array in C order, or Python's value of a scalar.
const DATA: &str = "data";
/// As `dtype.str` spells it.
const DTYPE: &str = "dtype";
/// Lengths of the axes.
const SHAPE: &str = "shape";

/// Characters of a foreign text that an error repeats.
const SHOWN: usize = 120;

/// What a message may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the message. Arrays of narrow dtypes take up to four times theirs once read.
    pub message_bytes: usize,
    /// Arrays and numpy scalars.
    pub arrays: usize,
    /// Values of any kind, those in lists and dictionaries each counted.
    pub values: usize,
    /// Axes of an array.
    pub axes: usize,
    /// Dictionaries and lists in each other.
    pub depth: usize,
    /// Bytes of a key.
    pub key_bytes: usize,
}

impl Default for Limits {
    /// Ten pictures of a full HD camera; an action chunk as lists of numbers.
    fn default() -> Self {
        Limits { message_bytes: 64 << 20, arrays: 256, values: 1 << 16, axes: 8, depth: 16, key_bytes: 256 }
    }
}

/// Bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault}", if key.is_empty() { "the message" } else { key })]
pub struct WireError {
    /// Where: the keys that lead there, joined by `/`; an item of a list as `[3]`. Empty for the message itself.
    pub key: String,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is wrong with bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More of something than [`Limits`] allow.
    #[error("found {found} {what}, expected at most {max}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many there are, or are claimed.
        found: u64,
        /// How many there may be.
        max: u64,
    },
    /// The end, where bytes should be.
    #[error("expected {wanted} more bytes, found {found}; was the message cut?")]
    Cut {
        /// How many it wants.
        wanted: u64,
        /// How many there are.
        found: u64,
    },
    /// Bytes behind the message.
    #[error("{bytes} bytes follow its end; a frame is one message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A form of msgpack that Python's packer does not write.
    #[error(
        "the byte {marker:#04x} begins no value that openpi's client packs; is it packed with openpi_client.msgpack_numpy?"
    )]
    Form {
        /// It.
        marker: u8,
    },
    /// A text that is not UTF-8.
    #[error("a text that is not UTF-8")]
    Utf8,
    /// A whole number above `i64::MAX`.
    #[error("the number {value} has more than 63 bits")]
    Bits {
        /// It.
        value: u64,
    },
    /// A key that is no text.
    #[error("expected a text as a key, found {found}")]
    Key {
        /// What is there.
        found: String,
    },
    /// A key that stands there twice.
    #[error("the key stands there twice")]
    Twice,
    /// An array or a scalar without one of its members.
    #[error("an array without its `{member}`")]
    Member {
        /// Which.
        member: &'static str,
    },
    /// A member of an array that is something else.
    #[error("expected {expected} as an array's `{member}`, found {found}")]
    Kind {
        /// Which.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A dtype that is not taken.
    #[error("dtype {dtype:?}: expected booleans, whole numbers, floats of 2 to 8 bytes, or one text")]
    Dtype {
        /// As numpy spells it.
        dtype: String,
    },
    /// Elements that are not as many as the shape says.
    #[error("shape {shape:?} of {dtype} wants {wanted} bytes of data, found {found}")]
    Size {
        /// It.
        shape: Vec<u64>,
        /// The dtype.
        dtype: String,
        /// Bytes that the shape asks for, axes without length taken as one where the product is beyond all bounds.
        wanted: u128,
        /// Bytes that are there.
        found: usize,
    },
    /// An array that cannot be taken as numbers or as a text.
    #[error("found {what}")]
    Array {
        /// Why not.
        what: String,
    },
    /// The other package's arrays.
    #[error(
        "an array as the package msgpack-numpy packs it, with `nd` and `type`; \
         openpi packs arrays with openpi_client.msgpack_numpy"
    )]
    Foreign,
}

/// Reads a message.
///
/// Keys may be texts or bytes, in any order. A numpy scalar becomes an array without axes, a text in an array without axes a
/// text; int8, int16 and uint16 become int32, uint32 and uint64 int64, float16 float32, all without loss and from either
/// byte order. Values that are no numbers (NaN) are read as they are.
///
/// # Errors
/// The bytes are no message, or more than `limits`: the key, and what is wrong there.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Tree, WireError> {
    read::message(bytes, limits)
}

/// Writes a message: the bytes of Python's packer.
///
/// An array without axes is written as numpy's array without axes (`shape` empty), never as a numpy scalar.
///
/// # Panics
/// If a text, an array, a list or a dictionary has 2³² bytes or members: msgpack has no form for it, and no message that
/// [`decode`] gave has one.
pub fn encode(tree: &Tree) -> Vec<u8> {
    write::message(tree)
}

/// The beginning of a foreign text, for an error, on one line.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == SHOWN {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}
