//! A database or one array, looked into as they are: no tree, no names that have to be known.
//!
//! Source of the formats: the rooms `ocdbt` and `orbax`. Invariants: foreign bytes end in a report or an error; an
//! array is decoded in full and in bounded memory, whatever its chunks are (one that does not lie in C order goes
//! through a scratch file); nothing above [`MAX_BYTES`] is decoded, so a forged shape keeps no one busy.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use orbax::{ArrayInfo, Chunk, Dtype, Order, Source};
use remap::{Mover, Plan, Settings, Tensor};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::number::{Number, floats, text};
use super::scratch::Scratch;

/// Largest array that is decoded: ten times the largest of the pi0 family.
pub const MAX_BYTES: u64 = 64 << 30;
/// Values that a report shows.
const FIRST: usize = 8;
/// Bytes that are looked at together; a multiple of every element's size.
const PIECE_BYTES: usize = 1 << 20;

/// How to look.
#[derive(Debug, Clone)]
pub struct RawOptions {
    /// Threads that decode.
    pub threads: usize,
    /// Up to so many bytes at once are kept in memory; beyond, a scratch file is used.
    pub memory_bytes: u64,
    /// Where scratch files are made (and at once unlinked).
    pub scratch: PathBuf,
}

impl RawOptions {
    /// For so many threads: 64 MiB in memory, scratch files in this folder.
    pub fn new(threads: usize, scratch: impl Into<PathBuf>) -> Self {
        RawOptions { threads: threads.max(1), memory_bytes: 64 << 20, scratch: scratch.into() }
    }
}

/// What was found under a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Raw {
    /// An OCDBT database.
    Database(Database),
    /// An array, decoded.
    Array(Array),
}

/// An OCDBT database.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Database {
    /// Its folder.
    pub path: PathBuf,
    /// Its settings.
    pub config: Config,
    /// Every version that it still holds, oldest first.
    pub versions: Vec<Version>,
    /// Keys of the newest version, sorted.
    pub keys: Vec<Key>,
    /// Names of the zarr arrays among them.
    pub arrays: Vec<String>,
}

/// Settings of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Identity, in hex.
    pub uuid: String,
    /// Values up to this many bytes are stored in the tree.
    pub max_inline_value_bytes: u32,
    /// Largest node that a writer makes; 0 is no limit.
    pub max_decoded_node_bytes: u32,
    /// Versions of one list, as a power of two.
    pub version_tree_arity_log2: u8,
    /// How nodes are compressed: `none`, `zstd 0`.
    pub compression: String,
}

/// A committed state of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version {
    /// Its number.
    pub generation: u64,
    /// Nanoseconds since the Unix epoch.
    pub commit_time_ns: u64,
    /// Keys, as its writer counted them.
    pub keys: u64,
    /// Bytes of values outside the tree, as its writer counted them.
    pub indirect_value_bytes: u64,
}

/// A key of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Key {
    /// The key; bytes that are no printable text are escaped (`\xff`).
    pub key: String,
    /// Bytes of its value.
    pub bytes: u64,
    /// Where the value is; `None` where it stands in the tree itself.
    pub place: Option<Place>,
}

/// A place in a data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Path below the database's folder.
    pub file: String,
    /// First byte.
    pub offset: u64,
}

/// An array, decoded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Array {
    /// Its name: the folder's, or the one in the database.
    pub name: String,
    /// Elements along each axis.
    pub shape: Vec<u64>,
    /// numpy's name of the element type.
    pub dtype: &'static str,
    /// Elements of a chunk along each axis.
    pub chunk_shape: Vec<u64>,
    /// `C` or `F`: the order inside a chunk.
    pub order: &'static str,
    /// Chunks that it has by its shape.
    pub chunks: u64,
    /// Of them, those that are not stored: all elements are the fill value.
    pub absent: u64,
    /// Bytes of the chunks as stored.
    pub stored_bytes: u64,
    /// Bytes, decoded.
    pub bytes: u64,
    /// SHA-256 of the decoded bytes in C order, little endian.
    pub sha256: String,
    /// Of its values; `None` for complex numbers.
    pub statistics: Option<Statistics>,
    /// Its first values, as its type prints them.
    pub first: Vec<String>,
}

/// What an array's values are like.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Statistics {
    /// Smallest finite value.
    pub min: Option<f64>,
    /// Largest finite value.
    pub max: Option<f64>,
    /// Mean of the finite values.
    pub mean: Option<f64>,
    /// Standard deviation of the finite values (of the whole, not of a sample).
    pub std: Option<f64>,
    /// Values that are not numbers.
    pub nan: u64,
    /// Infinities of either sign.
    pub inf: u64,
}

/// Looks at what is under `path`: an OCDBT database (or its array `array`), or the folder of a zarr array.
///
/// # Errors
/// Nothing of the kind under the path; everything that is wrong with it.
pub fn look(path: &Path, array: Option<&str>, options: &RawOptions) -> Result<Raw> {
    let holds = |name: &str| path.join(name).is_file();
    if holds("manifest.ocdbt") {
        return match array {
            None => database(path).map(Raw::Database),
            Some(name) => {
                let database = orbax::raw::Database::open(path)?;
                let names = database.array_names()?;
                if !names.iter().any(|n| n == name) {
                    let some: Vec<&str> = names.iter().take(8).map(String::as_str).collect();
                    bail!(
                        "{}: no array {name:?} among its {}; it begins with {}",
                        path.display(),
                        names.len(),
                        if some.is_empty() { "nothing".to_owned() } else { some.join(", ") }
                    );
                }
                decode(&database.array(name)?, options).map(Raw::Array)
            }
        };
    }
    let folder = array.map_or_else(|| path.to_owned(), |name| path.join(name));
    if folder.join(".zarray").is_file() || folder.join("zarr.json").is_file() {
        return decode(&orbax::raw::Array::open(&folder)?, options).map(Raw::Array);
    }
    bail!("{}: neither a database (manifest.ocdbt) nor a zarr array (.zarray, zarr.json)", folder.display())
}

/// Lists a database.
fn database(path: &Path) -> Result<Database> {
    let database = ocdbt::Database::open(path)?;
    let config = database.config();
    let key = |entry: &ocdbt::Entry| Key {
        key: printable(&entry.key),
        bytes: entry.value.len(),
        place: match &entry.value {
            ocdbt::Value::Inline(_) => None,
            ocdbt::Value::Indirect { file, offset, .. } => Some(Place { file: file.to_string(), offset: *offset }),
        },
    };
    let version = |v: &ocdbt::Version| Version {
        generation: v.generation,
        commit_time_ns: v.commit_time_ns,
        keys: v.statistics.keys,
        indirect_value_bytes: v.statistics.indirect_value_bytes,
    };
    Ok(Database {
        path: path.to_owned(),
        config: Config {
            uuid: hex(&config.uuid),
            max_inline_value_bytes: config.max_inline_value_bytes,
            max_decoded_node_bytes: config.max_decoded_node_bytes,
            version_tree_arity_log2: config.version_tree_arity_log2,
            compression: match config.compression {
                ocdbt::Compression::None => "none".into(),
                ocdbt::Compression::Zstd { level } => format!("zstd {level}"),
            },
        },
        versions: database.versions()?.iter().map(version).collect(),
        keys: database.entries().iter().map(key).collect(),
        arrays: orbax::raw::Database::open(path)?.array_names()?,
    })
}

/// Text as it is where it is printable; everything else escaped.
fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Decodes the first array of a source.
///
/// # Errors
/// An array above [`MAX_BYTES`]; a broken chunk; no room for the scratch.
pub fn decode(source: &dyn Source, options: &RawOptions) -> Result<Array> {
    let info = source.arrays().first().context("a source without an array")?;
    let size = info.dtype.size() as u64;
    let checked = |sides: &[u64]| sides.iter().try_fold(size, |all, n| all.checked_mul(*n)).filter(|n| *n <= MAX_BYTES);
    let too_large = |what: &str, sides: &[u64]| {
        format!(
            "{}: {what} {sides:?} of {}: more than {MAX_BYTES} bytes, which is the most that is decoded",
            info.name, info.dtype
        )
    };
    let bytes = checked(&info.shape).with_context(|| too_large("shape", &info.shape))?;
    let chunk_bytes = checked(&info.chunk_shape).with_context(|| too_large("chunks", &info.chunk_shape))?;
    let chunks = grid(info).iter().try_fold(1u64, |all, n| all.checked_mul(*n)).unwrap_or(u64::MAX);
    // Edge chunks are stored whole, and more than the array may be in them.
    if chunks.checked_mul(chunk_bytes).is_none_or(|n| n > MAX_BYTES) {
        bail!(
            "{}: {chunks} chunks of {chunk_bytes} bytes: more than {MAX_BYTES}, which is the most that is decoded",
            info.name
        );
    }
    let (mut stored_bytes, mut absent) = (0u64, 0);
    for chunk in 0..chunks {
        let stored = source.stored_len(0, chunk)?;
        stored_bytes = stored_bytes.saturating_add(stored);
        absent += u64::from(stored == 0);
    }
    let mut seen = Seen::new(info.dtype);
    if in_order(info) {
        read_in_order(source, info, &mut seen)?;
    } else {
        read_through_scratch(source, info, bytes, options, &mut seen)?;
    }
    Ok(Array {
        name: info.name.clone(),
        shape: info.shape.clone(),
        dtype: info.dtype.name(),
        chunk_shape: info.chunk_shape.clone(),
        order: if info.order == Order::C { "C" } else { "F" },
        chunks,
        absent,
        stored_bytes,
        bytes,
        sha256: hex(&seen.hash.finalize()),
        statistics: seen.moments.statistics(info.dtype),
        first: seen.first,
    })
}

fn grid(info: &ArrayInfo) -> Vec<u64> {
    info.shape.iter().zip(&info.chunk_shape).map(|(n, c)| n.div_ceil((*c).max(1))).collect()
}

/// Do its chunks, one after another, hold its bytes in C order? They do where only the first axis is cut.
fn in_order(info: &ArrayInfo) -> bool {
    let whole = info.shape.iter().zip(&info.chunk_shape).skip(1).all(|(n, c)| n == c);
    whole && (info.order == Order::C || info.shape.len() < 2)
}

fn read_in_order(source: &dyn Source, info: &ArrayInfo, seen: &mut Seen) -> Result<()> {
    let row = info.shape.iter().skip(1).product::<u64>() * info.dtype.size() as u64;
    let (rows, of_chunk) = match (info.shape.first(), info.chunk_shape.first()) {
        (Some(rows), Some(of_chunk)) => (*rows, *of_chunk),
        _ => (1, 1),
    };
    let chunks = if rows == 0 || row == 0 { 0 } else { rows.div_ceil(of_chunk.max(1)) };
    let mut buffer = vec![0; PIECE_BYTES];
    for number in 0..chunks {
        let mut chunk = source.chunk(0, number)?;
        let valid = of_chunk.min(rows - number * of_chunk) * row;
        let mut at = 0;
        // What lies behind the array's edge is read as well: the codec checks its frame at the end.
        while at < of_chunk * row {
            let n = (of_chunk * row - at).min(PIECE_BYTES as u64) as usize;
            let bytes = &mut buffer[..n];
            match &mut chunk {
                Chunk::Stream(stream) => stream.read_exact(bytes).with_context(|| info.name.clone())?,
                Chunk::Fill(_) if at >= valid => break,
                Chunk::Fill(element) => {
                    bytes.chunks_exact_mut(element.len().max(1)).for_each(|e| e.copy_from_slice(element));
                }
            }
            seen.look(&bytes[..valid.saturating_sub(at).min(n as u64) as usize]);
            at += n as u64;
        }
        if let Chunk::Stream(stream) = &mut chunk
            && stream.read(&mut [0]).with_context(|| info.name.clone())? != 0
        {
            bail!("{}: chunk {number} has more bytes than its shape says", info.name);
        }
    }
    Ok(())
}

fn read_through_scratch(
    source: &dyn Source,
    info: &ArrayInfo,
    bytes: u64,
    options: &RawOptions,
    seen: &mut Seen,
) -> Result<()> {
    let tensor = Tensor { name: info.name.clone(), shape: info.shape.clone(), dtype: info.dtype };
    let plan = Plan::as_is(&[tensor], None)?;
    let scratch = Scratch::new(&[Some(bytes)], options.memory_bytes, &options.scratch)?;
    let stop = AtomicBool::new(false);
    let mover = Mover::new(&plan, source, &[0], None, Settings::threads(options.threads), &stop);
    mover
        .run(&mover.units(|_| true), &scratch)
        .with_context(|| format!("decoding needs {bytes} bytes of scratch in {}", options.scratch.display()))?;
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(PIECE_BYTES as u64) as usize;
        scratch.with(0, at, n, |piece| seen.look(piece))?;
        at += n as u64;
    }
    Ok(())
}

/// What was seen of the bytes so far.
struct Seen {
    dtype: Dtype,
    hash: Sha256,
    first: Vec<String>,
    moments: Moments,
    values: Vec<f64>,
}

impl Seen {
    fn new(dtype: Dtype) -> Self {
        Seen { dtype, hash: Sha256::new(), first: vec![], moments: Moments::default(), values: vec![] }
    }

    /// The next bytes: whole elements.
    fn look(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        let elements = || bytes.chunks_exact(self.dtype.size());
        self.first.extend(elements().take(FIRST - self.first.len().min(FIRST)).map(|e| text(self.dtype, e)));
        if !floats(self.dtype, bytes, &mut self.values) {
            self.values.extend(elements().filter_map(|e| match Number::read(self.dtype, e) {
                Number::Int(i) => Some(i as f64),
                Number::Float(x) => Some(x),
                Number::Complex(..) => None,
            }));
        }
        self.moments.add(&self.values);
    }
}

/// Count, mean and sum of squared distances from it, joined piece by piece so that nothing is lost to large sums
/// (Chan, Golub and LeVeque, 1983).
#[derive(Debug, Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
    min: f64,
    max: f64,
    nan: u64,
    inf: u64,
}

impl Default for Moments {
    fn default() -> Self {
        Moments { count: 0.0, mean: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY, nan: 0, inf: 0 }
    }
}

impl Moments {
    fn add(&mut self, values: &[f64]) {
        let (mut count, mut sum) = (0u64, 0.0);
        for x in values {
            if x.is_finite() {
                count += 1;
                sum += x;
                self.min = self.min.min(*x);
                self.max = self.max.max(*x);
            } else if x.is_nan() {
                self.nan += 1;
            } else {
                self.inf += 1;
            }
        }
        if count == 0 {
            return;
        }
        let n = count as f64;
        let mean = sum / n;
        let squares: f64 = values.iter().filter(|x| x.is_finite()).map(|x| (x - mean) * (x - mean)).sum();
        let (all, apart) = (self.count + n, mean - self.mean);
        self.squares += squares + apart * apart * self.count * n / all;
        self.mean += apart * n / all;
        self.count = all;
    }

    fn statistics(&self, dtype: Dtype) -> Option<Statistics> {
        if matches!(dtype, Dtype::C64 | Dtype::C128) {
            return None;
        }
        // A mean or a spread beyond f64 is told as none rather than as an infinity that no element has.
        let some = |x: f64| (self.count > 0.0 && x.is_finite()).then_some(x);
        Some(Statistics {
            min: some(self.min),
            max: some(self.max),
            mean: some(self.mean),
            std: some((self.squares / self.count).sqrt()),
            nan: self.nan,
            inf: self.inf,
        })
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
