//! What openpi's `PolicyRecorder` writes, read and written: the inputs and outputs of one inference, in one `.npy`.
//!
//! Source: openpi 15a9616, policies/policy.py: the dictionary `{"inputs": …, "outputs": …}`, flattened with `/`, goes
//! through `np.save(path, np.asarray(…))` as an object array without an axis, and that is a pickle. Invariant: a pickle
//! is a program, and none is run here. What numpy writes for arrays, texts and numbers is read; anything else is an
//! error that says where it stands.
//!
//! - `pickle`: opcodes → a pile of nodes
//! - `values`: nodes → records
//! - `write`: records → a file

mod pickle;
#[cfg(test)]
mod tests;
mod values;
mod write;
#[cfg(test)]
mod write_tests;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::policy::record::Record;
pub use write::{bytes, may_write, record_bytes, write};

/// Bytes of a file at most: some ten pictures of a full HD camera.
pub const MAX_BYTES: u64 = 1 << 27;
/// Characters of a header, a key or a name that an error repeats.
const SHOWN: usize = 120;
const MAGIC: &[u8] = b"\x93NUMPY";

/// One inference, as it went in and as it came out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recording {
    /// The observation as the robot sent it, before any step: `state`, `images/cam_high`, `prompt`.
    pub inputs: Record,
    /// What the policy answered: `actions` (horizon, dim), `state`, `policy_timing/infer_ms`. Empty if none was recorded.
    pub outputs: Record,
}

/// A recording that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct RecordingError {
    /// The file or folder.
    pub path: PathBuf,
    /// Why not.
    pub fault: RecordingFault,
}

/// What is wrong with a recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingFault {
    /// The file system says no.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// The file system does not take it.
    #[error("cannot be written: {0}")]
    Write(std::io::Error),
    /// Another file has the name.
    #[error("there is a recording of this number already, and none is ever replaced")]
    Exists,
    /// A folder, a pipe.
    #[error("expected a file step_N.npy, found something else; a folder of them is given as a folder")]
    NoFile,
    /// Nothing in the folder is a recording.
    #[error("expected recordings step_N.npy in this folder, found none")]
    Empty,
    /// A file too large to be one observation.
    #[error("expected at most {MAX_BYTES} bytes, found {bytes}")]
    Large {
        /// Its size.
        bytes: u64,
    },
    /// A numpy file, but no pickled object; or none at all.
    #[error("expected numpy's header of one object ('|O', no axis), as PolicyRecorder writes, found {found}")]
    Header {
        /// What is there.
        found: String,
    },
    /// The end, where bytes should be.
    #[error("at byte {at}: expected {wanted} more bytes, found the end; was the recording interrupted?")]
    Cut {
        /// Where.
        at: usize,
        /// How many.
        wanted: u64,
    },
    /// An opcode with which numpy writes no dictionary of arrays.
    #[error("at byte {at}: opcode {code:#04x} is none that numpy writes for a dictionary of arrays; nothing was run")]
    Opcode {
        /// Where.
        at: usize,
        /// Its byte.
        code: u8,
    },
    /// A name that Python would import.
    #[error(
        "at byte {at}: it wants {name}, which is no part of an array; nothing was run. \
         Python would import it: do not load this file unless you trust where it is from"
    )]
    Global {
        /// Where.
        at: usize,
        /// Module and name.
        name: String,
    },
    /// A pickle that numpy cannot have written.
    #[error("at byte {at}: {what}: not a pickle that numpy writes")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A dtype that no record holds.
    #[error("dtype {name:?}: expected booleans, whole numbers, floats of 2 to 8 bytes, or texts")]
    Dtype {
        /// numpy's name of it.
        name: String,
    },
    /// More than the file's size lets us believe.
    #[error("expected at most {max} {what}; no recording needs more")]
    Bounds {
        /// Of what.
        what: &'static str,
        /// How many.
        max: u64,
    },
    /// A pickle of something else.
    #[error("expected a dictionary with the keys inputs/… and outputs/…, found another object")]
    NoDict,
    /// Outputs alone, or nothing.
    #[error("expected keys that begin with inputs/, found none")]
    NoInputs,
    /// A key that is neither an input nor an output.
    #[error("{key}: expected inputs/… or outputs/…")]
    Key {
        /// The key.
        key: String,
    },
    /// A value that no record holds.
    #[error("{key}: expected an array of numbers, a number or a text, found {what}")]
    Unfit {
        /// The key.
        key: String,
        /// What is there.
        what: String,
    },
}

/// Reads one recording.
///
/// Keys lose their `inputs/` or `outputs/` and keep the rest: `observation/state`. Arrays keep shape and dtype; int8,
/// int16 and uint16 become int32, uint32 and uint64 become int64, float16 becomes float32, all without loss. Python's
/// numbers become arrays without an axis (int64, float64, bool), lists of them arrays, `bytes` uint8. `None` is left out.
///
/// # Errors
/// The file cannot be read, or holds anything but what `PolicyRecorder` writes.
pub fn read(path: &Path) -> Result<Recording, RecordingError> {
    whole(path).and_then(|bytes| parse(&bytes)).map_err(|fault| RecordingError { path: path.to_owned(), fault })
}

fn whole(path: &Path) -> Result<Vec<u8>, RecordingFault> {
    // Before it is opened: a pipe would let us wait.
    if !std::fs::metadata(path)?.is_file() {
        return Err(RecordingFault::NoFile);
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > MAX_BYTES {
        return Err(RecordingFault::Large { bytes: size });
    }
    let mut bytes = vec![];
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the bytes of one recording; see [`read`].
///
/// # Errors
/// They are anything but what `PolicyRecorder` writes.
pub fn parse(bytes: &[u8]) -> Result<Recording, RecordingFault> {
    let start = header(bytes)?;
    values::recording(&pickle::pile(bytes, start)?, bytes.len())
}

/// The recordings of a folder, by their number: step_2.npy before step_10.npy. Other files are passed over.
///
/// # Errors
/// The folder cannot be read, or there is no recording in it.
pub fn steps(folder: &Path) -> Result<Vec<(u64, PathBuf)>, RecordingError> {
    let list = || -> Result<Vec<(u64, PathBuf)>, RecordingFault> {
        let mut all = vec![];
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix("step_").and_then(|name| name.strip_suffix(".npy"));
            // `parse` takes a sign.
            let number = number.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
                all.push((number, path));
            }
        }
        all.sort();
        if all.is_empty() { Err(RecordingFault::Empty) } else { Ok(all) }
    };
    list().map_err(|fault| RecordingError { path: folder.to_owned(), fault })
}

/// numpy's header: magic, version, length, and a dictionary as text. Where it ends, the pickle begins.
fn header(bytes: &[u8]) -> Result<usize, RecordingFault> {
    let wrong = |found: &str| RecordingFault::Header { found: found.to_owned() };
    let cut = |at| RecordingFault::Cut { at, wanted: 1 };
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("no numpy file"))?;
    let (length, before) = match rest {
        [1, 0, a, b, ..] => (usize::from(u16::from_le_bytes([*a, *b])), 10_usize),
        [2 | 3, 0, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        [1..=3, 0, ..] | [] | [_] => return Err(cut(bytes.len())),
        [major, minor, ..] => return Err(wrong(&format!("the format version {major}.{minor}"))),
    };
    let end = before.checked_add(length).filter(|end| *end <= bytes.len()).ok_or_else(|| cut(bytes.len()))?;
    let text = bytes.get(before..end).unwrap_or_default();
    // Only three entries can be there, and none that we take holds a comma.
    let entries = || -> Option<Vec<String>> {
        let text = std::str::from_utf8(text).ok()?.trim().strip_prefix('{')?.strip_suffix('}')?;
        let mut entries: Vec<String> = text.split(',').map(|entry| entry.replace(' ', "")).collect();
        entries.retain(|entry| !entry.is_empty());
        entries.sort_unstable();
        Some(entries)
    };
    let entries = entries().unwrap_or_default();
    let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
    match entries.as_slice() {
        ["'descr':'|O'", "'fortran_order':False" | "'fortran_order':True", "'shape':()"] => Ok(end),
        _ => {
            let text = text.get(..text.len().min(4 * SHOWN)).unwrap_or_default();
            Err(wrong(&format!("{:?}", shown(String::from_utf8_lossy(text).trim()))))
        }
    }
}

/// The beginning of a foreign text, for an error.
fn shown(text: &str) -> String {
    let mut begin: String = text.chars().take(SHOWN).collect();
    if begin.len() < text.len() {
        begin.push('…');
    }
    begin
}
