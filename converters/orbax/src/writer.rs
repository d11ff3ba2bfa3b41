//! The way back: one item folder that Orbax restores, written by many threads, the same bytes every time.
//!
//! Source: what Orbax 0.6 to 0.12 restore (<https://github.com/google/orbax>): zarr v2 with zstd, every chunk stored, OCDBT.
//! Invariant: the bytes written are a function of the arguments. Chunk number `g` (over all arrays in the order given) goes into data file
//! `g % data_files`, behind chunk `g - data_files`: a chunk that is finished before its turn waits in a spool. The folder appears under its
//! name only when all of it is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::array::{dotted, join, position};
use crate::checkpoint::TEMPORARY;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::plan::{self, Planned};
use crate::spool::Spool;
use crate::tree::Key;

/// As Orbax sets it.
const MAX_INLINE_VALUE_BYTES: u32 = 1024;
/// Data files, at most: each stays open to the end.
const MAX_DATA_FILES: usize = 256;

/// An array to be written.
#[derive(Debug, Clone)]
pub struct NewArray {
    /// Path in the tree.
    pub path: Vec<Key>,
    /// Elements along each axis; none of them 0.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: Dtype,
    /// Chunk shape; `None`: the whole array, halved as Orbax does until a chunk is at most 2 GiB.
    pub chunk_shape: Option<Vec<u64>>,
}

/// A node without content, which a restore into a structure wants to find all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEmpty {
    /// Path in the tree.
    pub path: Vec<Key>,
    /// What is empty.
    pub kind: Empty,
}

/// Kinds of nodes without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Empty {
    /// Python's `None`; also a NamedTuple without leaves, as optax has them.
    None,
    /// A dict without members.
    Dict,
}

impl Empty {
    /// As `_METADATA` spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Empty::None => "None",
            Empty::Dict => "Dict",
        }
    }
}

/// What a writer cannot know by itself.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Nanoseconds since the epoch, for commit times.
    pub time_ns: u64,
    /// zstd level of the chunks (Orbax: 1).
    pub level: i32,
    /// Data files written side by side (1 to 256; others are moved there). The bytes written depend on it, not on the threads that write.
    pub data_files: usize,
}

/// Writes one item folder that Orbax restores: zarr v2, zstd, OCDBT; published by rename.
///
/// Dropped without [`finish`](Self::finish), it leaves nothing behind. What a killed process leaves (`NAME.orbax-checkpoint-tmp-*`) blocks nobody.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
    options: WriteOptions,
    arrays: Vec<Planned>,
    /// Number of the first chunk of each array.
    first: Vec<u64>,
    chunks: u64,
    metadata: String,
    lanes: Vec<Mutex<Lane>>,
    database: ocdbt::Writer,
    temporary: Temporary,
}

/// A data file and the chunks on their way into it. Chunks of a lane are numbered from 0: their turns.
#[derive(Debug)]
struct Lane {
    file: ocdbt::DataFile,
    next: u64,
    waiting: BTreeMap<u64, (String, SpoolCell)>,
    open: BTreeSet<u64>,
}

/// A spool without anything to print.
struct SpoolCell(Spool);
impl std::fmt::Debug for SpoolCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spool")
    }
}

/// The folder being filled; removed on drop unless it was published.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    published: bool,
}

impl Temporary {
    /// A new sibling of `dir`, whatever others left there.
    fn create(dir: &Path, name: &str) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = dir.with_file_name(format!("{name}{TEMPORARY}-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    return Ok(Temporary { path, published: false });
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(path, e)),
            }
        }
    }

    fn spool(&self) -> PathBuf {
        self.path.join(".spool")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here is the one to report.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl CheckpointWriter {
    /// Starts in a temporary sibling of `dir`; `arrays` is the whole tree.
    ///
    /// # Errors
    /// `dir` exists; a tree that is none (double paths, holes in a sequence); an array that Orbax cannot hold (no elements, too large,
    /// two of one stored name); the disk's own.
    pub fn create(dir: impl AsRef<Path>, arrays: Vec<NewArray>, options: WriteOptions) -> Result<Self> {
        Self::create_tree(dir, arrays, &[], options)
    }

    /// [`create`](Self::create) for a tree that has nodes without content as well.
    ///
    /// # Errors
    /// As there; a node without content that has some.
    pub fn create_tree(
        dir: impl AsRef<Path>,
        arrays: Vec<NewArray>,
        empty: &[NewEmpty],
        options: WriteOptions,
    ) -> Result<Self> {
        let dir = dir.as_ref();
        let Some(name) = dir.file_name().and_then(|name| name.to_str()).filter(|name| !name.contains(TEMPORARY)) else {
            let problem = format!("not a name for a checkpoint folder (UTF-8, without {TEMPORARY})");
            return Err(Error::UnsafePath { path: dir.to_path_buf(), problem });
        };
        refuse_existing(dir)?;
        let planned = plan::plan(&arrays, empty, options.level)?;
        let metadata = plan::metadata_text(&arrays, empty);
        let (mut first, mut chunks) = (Vec::new(), 0u64);
        for array in &planned {
            first.push(chunks);
            chunks = chunks.saturating_add(array.chunks);
        }
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        }
        let temporary = Temporary::create(dir, name)?;
        let wrong = |e| Error::database(&temporary.path, e);
        let database = ocdbt::Writer::create(
            &temporary.path,
            ocdbt::Options {
                uuid: plan::identity(&metadata, &planned, options.time_ns, 0).to_be_bytes(),
                commit_time_ns: options.time_ns,
                max_inline_value_bytes: MAX_INLINE_VALUE_BYTES,
            },
        )
        .map_err(wrong)?;
        let spool = temporary.spool();
        fs::create_dir(&spool).map_err(|e| Error::io(&spool, e))?;
        let wanted = u64::try_from(options.data_files.clamp(1, MAX_DATA_FILES)).unwrap_or(1);
        let lanes = (0..wanted.min(chunks))
            .map(|lane| {
                let id = plan::identity(&metadata, &planned, options.time_ns, lane.saturating_add(1));
                let file = database.data_file(&format!("{id:032x}")).map_err(wrong)?;
                Ok(Mutex::new(Lane { file, next: 0, waiting: BTreeMap::new(), open: BTreeSet::new() }))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(CheckpointWriter {
            dir: dir.to_path_buf(),
            options,
            arrays: planned,
            first,
            chunks,
            metadata,
            lanes,
            database,
            temporary,
        })
    }

    /// Chunk shape of array `array`; empty for an array that does not exist.
    pub fn chunk_shape(&self, array: usize) -> &[u64] {
        self.arrays.get(array).map(|array| array.chunk_shape.as_slice()).unwrap_or_default()
    }

    /// Opens chunk `chunk` of array `array`. Takes bytes in C order of the chunk, little endian; callable from several threads.
    ///
    /// An edge chunk is written whole, its outside filled with whatever (zeros compress best).
    ///
    /// # Errors
    /// No such array or chunk; a chunk that is written already or open elsewhere.
    pub fn chunk(&self, array: usize, chunk: u64) -> Result<ChunkWriter<'_>> {
        let out_of_range =
            |name: &str, what, found, count| Error::OutOfRange { name: name.to_owned(), what, found, count };
        let (Some(planned), Some(first)) = (self.arrays.get(array), self.first.get(array)) else {
            let to_u64 = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            return Err(out_of_range("checkpoint", "array", to_u64(array), to_u64(self.arrays.len())));
        };
        if chunk >= planned.chunks {
            return Err(out_of_range(&planned.stored_name, "chunk", chunk, planned.chunks));
        }
        let number = first.saturating_add(chunk);
        let (lane, turn) = self.lane_of(number);
        let at = dotted(&position(chunk, &planned.grid));
        let bad = |problem: String| Error::Chunk { array: planned.stored_name.clone(), chunk: at.clone(), problem };
        let Some(lane) = self.lanes.get(lane) else {
            return Err(bad("belongs to no data file".to_owned()));
        };
        {
            let mut state = lane.lock().unwrap_or_else(PoisonError::into_inner);
            if turn < state.next || state.waiting.contains_key(&turn) || !state.open.insert(turn) {
                return Err(bad("is written already, or being written".to_owned()));
            }
        }
        let spool = Spool::new(self.temporary.spool().join(number.to_string()));
        // From here on the claim is given back when the writer is dropped.
        let mut writer = ChunkWriter { lane, turn, planned, at: at.clone(), left: planned.chunk_bytes, encoder: None };
        let encoder = zstd::stream::write::Encoder::new(spool, self.options.level).map_err(|e| bad(e.to_string()))?;
        writer.encoder = Some(encoder);
        Ok(writer)
    }

    fn lane_of(&self, number: u64) -> (usize, u64) {
        let lanes = u64::try_from(self.lanes.len()).unwrap_or(u64::MAX);
        let lane = number.checked_rem(lanes).unwrap_or(0);
        (usize::try_from(lane).unwrap_or(usize::MAX), number.checked_div(lanes).unwrap_or(0))
    }

    /// Every chunk written? Then metadata, sync, rename to the final name.
    ///
    /// # Errors
    /// The first chunk that is missing; `dir` exists by now; the disk's own. Nothing is left behind.
    pub fn finish(self) -> Result<()> {
        let CheckpointWriter { dir, options, arrays, first, chunks, metadata, lanes, database, mut temporary } = self;
        let count = u64::try_from(lanes.len()).unwrap_or(u64::MAX);
        let mut files = Vec::new();
        for (lane, state) in (0u64..).zip(lanes) {
            let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
            let missing = state.next.saturating_mul(count).saturating_add(lane);
            if missing < chunks {
                return Err(missing_chunk(missing, &arrays, &first));
            }
            files.push(state.file);
        }
        let wrong = |e| Error::database(&dir, e);
        for array in &arrays {
            let key = join(&array.stored_name, ".zarray");
            let Some(file) = files.first_mut() else { break };
            file.put(key.as_bytes(), array.document.as_bytes()).map_err(wrong)?;
        }
        let spool = temporary.spool();
        fs::remove_dir(&spool).map_err(|e| Error::io(&spool, e))?;
        database.finish(files).map_err(wrong)?;
        write_synced(&temporary.path.join("_METADATA"), &metadata)?;
        write_synced(&temporary.path.join("_CHECKPOINT_METADATA"), &plan::checkpoint_metadata_text(options.time_ns))?;
        sync_folder(&temporary.path)?;
        refuse_existing(&dir)?;
        fs::rename(&temporary.path, &dir).map_err(|e| Error::io(&dir, e))?;
        temporary.published = true;
        match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
            _ => sync_folder(Path::new(".")),
        }
    }
}

fn missing_chunk(number: u64, arrays: &[Planned], first: &[u64]) -> Error {
    let array = first.partition_point(|&from| from <= number).saturating_sub(1);
    match (arrays.get(array), first.get(array)) {
        (Some(array), Some(from)) => Error::Chunk {
            array: array.stored_name.clone(),
            chunk: dotted(&position(number.saturating_sub(*from), &array.grid)),
            problem: "was never written".to_owned(),
        },
        _ => Error::write("", format!("chunk {number} was never written")),
    }
}

fn refuse_existing(dir: &Path) -> Result<()> {
    match fs::symlink_metadata(dir) {
        Ok(_) => Err(Error::io(dir, io::Error::new(ErrorKind::AlreadyExists, "exists already; not overwritten"))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(dir, e)),
    }
}

fn write_synced(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, e))
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| Error::io(path, e))
}

/// One chunk being compressed. Dropped without [`finish`](Self::finish), the chunk is unwritten and can be opened again.
pub struct ChunkWriter<'a> {
    lane: &'a Mutex<Lane>,
    turn: u64,
    planned: &'a Planned,
    at: String,
    left: u64,
    /// Taken when the chunk ends.
    encoder: Option<zstd::stream::write::Encoder<'static, Spool>>,
}

impl std::fmt::Debug for ChunkWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.planned.stored_name;
        f.debug_struct("ChunkWriter").field("array", name).field("chunk", &self.at).field("left", &self.left).finish()
    }
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(encoder) = &mut self.encoder else {
            return Err(io::Error::other("the chunk has ended"));
        };
        if u64::try_from(buf.len()).unwrap_or(u64::MAX) > self.left {
            let (array, chunk, all) = (&self.planned.stored_name, &self.at, self.planned.chunk_bytes);
            let problem = format!("array {array:?}, chunk {chunk}: too long: it takes {all} bytes, more were written");
            return Err(io::Error::new(ErrorKind::InvalidInput, problem));
        }
        let n = encoder.write(buf)?;
        self.left = self.left.saturating_sub(u64::try_from(n).unwrap_or(u64::MAX));
        Ok(n)
    }

    /// Does nothing: a flush inside a frame would change its bytes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ChunkWriter<'_> {
    /// Ends the chunk; an error if it is too short or too long.
    ///
    /// # Errors
    /// Too few bytes were written, or the disk's own.
    pub fn finish(mut self) -> Result<()> {
        let (array, at) = (self.planned.stored_name.clone(), self.at.clone());
        let bad = |problem: String| Error::Chunk { array: array.clone(), chunk: at.clone(), problem };
        let expected = self.planned.chunk_bytes;
        if self.left > 0 {
            let found = expected.saturating_sub(self.left);
            return Err(bad(format!("too short: it takes {expected} bytes, {found} were written")));
        }
        let Some(encoder) = self.encoder.take() else {
            return Err(bad("has ended already".to_owned()));
        };
        let mut spool = encoder.finish().map_err(|e| bad(e.to_string()))?;
        // A position as messages spell it is a zarr v2 chunk key.
        let key = join(&array, &at);
        let mut state = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = &mut *state;
        if self.turn != lane.next {
            spool.wait().map_err(|e| bad(e.to_string()))?;
            lane.waiting.insert(self.turn, (key, SpoolCell(spool)));
            return Ok(());
        }
        let mut next = Some((key, SpoolCell(spool)));
        while let Some((key, SpoolCell(mut spool))) = next {
            append(&mut lane.file, &key, &mut spool).map_err(|e| bad(format!("{key}: {e}")))?;
            lane.next = lane.next.saturating_add(1);
            next = lane.waiting.remove(&lane.next);
        }
        Ok(())
    }
}

/// Very short values stand in the tree itself, as Orbax has it.
fn append(file: &mut ocdbt::DataFile, key: &str, spool: &mut Spool) -> io::Result<()> {
    if let Some(bytes) = spool.small() {
        return file.put(key.as_bytes(), bytes).map_err(io::Error::other);
    }
    let mut value = file.value(key.as_bytes()).map_err(io::Error::other)?;
    spool.copy_to(&mut value)?;
    value.finish().map_err(io::Error::other)?;
    Ok(())
}

impl Drop for ChunkWriter<'_> {
    fn drop(&mut self) {
        let mut state = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        state.open.remove(&self.turn);
    }
}
