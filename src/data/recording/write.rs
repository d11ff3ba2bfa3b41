//! A recording as a file: the inverse of [`parse`](super::parse).
//!
//! Source: what `np.save` of numpy 1.26 makes of openpi's flat dictionary: format 1.0, pickle protocol 3, and the module
//! `numpy.core.multiarray`, which numpy 1 and numpy 2 both import without a warning (`numpy._core` is unknown to the
//! older ones). Without pickle's memo: a name stands as often as it is used. Invariants: what is written is read again as
//! the same recording, bit for bit; under `step_N.npy` there is a whole file or none, and one that is there stays.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::values::MAX_DEPTH;
use super::{MAGIC, MAX_BYTES, Recording, RecordingError, RecordingFault as Fault, shown};
use crate::data::numpy;
use crate::policy::array::{Array, Values};
use crate::policy::record::{Record, Value};

/// numpy's header ends on a multiple of this.
const ALIGNMENT: usize = 64;
const HEADER: &str = "{'descr': '|O', 'fortran_order': False, 'shape': (), }";
/// So that the opcodes of all keys stay below the reader's limit: none takes 80.
const MAX_KEYS: usize = super::pickle::MAX_OPCODES / 80;

/// The bytes of one recording, as [`parse`](super::parse) and `np.load(path, allow_pickle=True).item()` read them.
///
/// float64, int64 and bool without an axis become Python's `float`, `int` and `bool`, any other array numpy's.
///
/// # Errors
/// There is no input, or more than the reader takes: bytes, keys, axes.
pub fn bytes(recording: &Recording) -> Result<Vec<u8>, Fault> {
    let records = [("inputs/", &recording.inputs), ("outputs/", &recording.outputs)];
    let all = || records.iter().flat_map(|(prefix, record)| record.values.iter().map(move |(k, v)| (*prefix, k, v)));
    if recording.inputs.values.is_empty() {
        return Err(Fault::NoInputs);
    }
    if all().count() > MAX_KEYS {
        return Err(Fault::Bounds { what: "keys", max: MAX_KEYS as u64 });
    }
    let held: u64 = all().map(|(_, key, value)| (key.len() + weight(value)) as u64).sum();
    if held > MAX_BYTES {
        return Err(Fault::Large { bytes: held });
    }
    let mut out = Pickle::begin();
    for (prefix, key, value) in all() {
        out.text(&format!("{prefix}{key}"));
        match value {
            Value::Text(text) => out.text(text),
            Value::Array(array) => out.array(array, prefix, key)?,
        }
    }
    let bytes = out.end();
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Fault::Large { bytes: bytes.len() as u64 });
    }
    Ok(bytes)
}

/// Bytes that a value takes.
fn weight(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Array(array) => array.values.bytes(),
    }
}

/// Bytes that a record takes, about.
pub fn record_bytes(record: &Record) -> usize {
    record.values.iter().map(|(key, value)| key.len() + weight(value)).sum()
}

/// Writes one recording: whole and on the disk, or not at all.
///
/// # Errors
/// [`RecordingFault::Exists`](Fault::Exists) where something has this name already, which stays as it is; what
/// [`bytes`] refuses; a disk that does.
pub fn write(path: &Path, recording: &Recording) -> Result<(), RecordingError> {
    let whole = || -> Result<(), Fault> {
        let bytes = bytes(recording)?;
        let beside = beside(path);
        let placed = fill(&beside, &bytes).and_then(|()| place(&beside, path));
        // Placed, it may have two names; else it is not wanted.
        let _ = std::fs::remove_file(&beside);
        placed.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Fault::Exists,
            _ => Fault::Write(error),
        })
    };
    whole().map_err(|fault| RecordingError { path: path.to_owned(), fault })
}

/// Can recordings be written into this folder? Makes it where it is missing, and leaves nothing in it.
///
/// # Errors
/// They cannot.
pub fn may_write(folder: &Path) -> Result<(), RecordingError> {
    let probe = beside(&folder.join("step_.npy"));
    let tried =
        std::fs::create_dir_all(folder).and_then(|()| fill(&probe, b"?")).and_then(|()| std::fs::remove_file(&probe));
    tried.map_err(|error| RecordingError { path: folder.to_owned(), fault: Fault::Write(error) })
}

/// A name that neither the reader nor `glob("step_*.npy")` takes for a recording.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.part", std::process::id()))
}

fn fill(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    // Before it has its name: after a loss of power there is no empty recording.
    File::sync_all(&file)
}

/// Gives the file its name, unless something else has it.
fn place(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            // A file system without links: then only what is seen now is kept from being replaced.
            if std::fs::symlink_metadata(to).is_ok() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            std::fs::rename(from, to)
        }
        other => other,
    }
}

/// A pickle that grows: a dictionary in an object array without an axis.
struct Pickle(Vec<u8>);

impl Pickle {
    fn begin() -> Self {
        let mut out = MAGIC.to_vec();
        let before = MAGIC.len() + 4;
        let length = (before + HEADER.len() + 1).next_multiple_of(ALIGNMENT) - before;
        out.extend([1, 0]);
        out.extend((length as u16).to_le_bytes());
        out.extend(HEADER.bytes());
        out.resize(before + length - 1, b' ');
        out.push(b'\n');
        // PROTO 3
        out.extend([0x80, 3]);
        let mut pickle = Pickle(out);
        pickle.blank();
        pickle.put(b"(K\x01)");
        pickle.dtype("O8", "|", 63);
        // Not in Fortran's order; a list of one dictionary.
        pickle.put(b"\x89]}(");
        pickle
    }

    fn end(mut self) -> Vec<u8> {
        self.put(b"uatb.");
        self.0
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.put(b"X");
        self.counted(text.as_bytes());
    }

    /// Four bytes of length: [`bytes`] has refused what needs more.
    fn counted(&mut self, bytes: &[u8]) {
        self.put(&(bytes.len() as u32).to_le_bytes());
        self.put(bytes);
    }

    fn int(&mut self, value: i64) {
        match (u8::try_from(value), i32::try_from(value)) {
            (Ok(byte), _) => self.put(&[b'K', byte]),
            (_, Ok(value)) => {
                self.put(b"J");
                self.put(&value.to_le_bytes());
            }
            _ => {
                self.put(&[0x8a, 8]);
                self.put(&value.to_le_bytes());
            }
        }
    }

    /// An array before its state.
    fn blank(&mut self) {
        self.put(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R");
    }

    fn dtype(&mut self, name: &str, order: &str, flags: u8) {
        self.put(b"cnumpy\ndtype\n");
        self.text(name);
        self.put(b"\x89\x88\x87R(K\x03");
        self.text(order);
        self.put(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK");
        self.put(&[flags, b't', b'b']);
    }

    fn array(&mut self, array: &Array, prefix: &str, key: &str) -> Result<(), Fault> {
        match (&array.values, array.shape.as_slice()) {
            (Values::Bool(x), []) if x.len() == 1 => {
                self.put(if x[0] { b"\x88" } else { b"\x89" });
                return Ok(());
            }
            (Values::I64(x), []) if x.len() == 1 => {
                self.int(x[0]);
                return Ok(());
            }
            (Values::F64(x), []) if x.len() == 1 => {
                self.put(b"G");
                self.put(&x[0].to_be_bytes());
                return Ok(());
            }
            _ => {}
        }
        let unfit = |what: &str| Fault::Unfit { key: shown(&format!("{prefix}{key}")), what: what.to_owned() };
        if array.shape.len() > MAX_DEPTH {
            return Err(unfit("an array of too many axes"));
        }
        // As the reader: also where an axis is empty.
        let product = array.shape.iter().try_fold(1_usize, |n, axis| n.checked_mul((*axis).max(1)));
        let axes: Result<Vec<i64>, _> = array.shape.iter().map(|axis| i64::try_from(*axis)).collect();
        let (Some(_), Ok(axes)) = (product, axes) else { return Err(unfit("a shape beyond any memory")) };
        if array.shape.iter().product::<usize>() != array.values.len() {
            return Err(unfit(&format!("{} values for the shape {:?}", array.values.len(), array.shape)));
        }
        self.blank();
        self.put(b"(K\x01(");
        for axis in axes {
            self.int(axis);
        }
        self.put(b"t");
        // `<f4`: the order of bytes, then the name.
        let (order, name) = numpy::name(&array.values).split_at(1);
        self.dtype(name, order, 0);
        self.put(b"\x89B");
        self.put(&(array.values.bytes() as u32).to_le_bytes());
        numpy::put(&array.values, &mut self.0);
        self.put(b"tb");
        Ok(())
    }
}
