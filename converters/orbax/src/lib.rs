//! A checkpoint folder as a tree of lazy arrays.
//!
//! Reading order: [`Checkpoint`] (an item folder: leaves, and a [`Source`] of arrays) · [`locate()`] (which folder the user meant) ·
//! [`Chunk`] (streams; nothing is held whole) · [`Npz`] and [`raw`] (other sources) · [`CheckpointWriter`] (the way back).
//!
//! Source: Orbax <https://github.com/google/orbax> (0.4 to 0.12) and TensorStore <https://github.com/google/tensorstore> (bc4fbc11f).
//! Invariant: foreign bytes never panic, never make us allocate more than they are, and never lead outside the checkpoint folder.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod array;
mod checkpoint;
mod chunk;
mod dtype;
mod error;
mod fill;
mod metadata;
mod read;
mod store;
mod tree;
mod zarr;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use read::{MAX_READ_BYTES, read_array};
pub use tree::{Key, Leaf, Value, path_name};

/// In which order a chunk's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Last axis fastest.
    C,
    /// First axis fastest.
    F,
}

/// What is known of an array before any of its data is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayInfo {
    /// Name: for a checkpoint leaf its key path joined by "/".
    pub name: String,
    /// Elements along each axis.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: Dtype,
    /// Order inside a chunk.
    pub order: Order,
    /// Shape of a stored chunk (the inner one where sharded); edge chunks are stored whole.
    pub chunk_shape: Vec<u64>,
}

/// A set of arrays that can be read chunk by chunk, from several threads at once.
pub trait Source: Send + Sync {
    /// Every array.
    fn arrays(&self) -> &[ArrayInfo];
    /// Opens chunk `chunk` (C order over the grid `ceil(shape / chunk_shape)`) of array `array`.
    fn chunk(&self, array: usize, chunk: u64) -> Result<Chunk<'_>>;
    /// Bytes of the chunk as stored (compressed); 0 where it is absent. For progress and reports.
    fn stored_len(&self, array: usize, chunk: u64) -> Result<u64>;
}

/// The content of one chunk.
pub enum Chunk<'a> {
    /// Exactly `product(chunk_shape) * dtype.size()` little-endian bytes, then end of file.
    /// Reading on to the end is what checks the frame's end: a consumer must see `Ok(0)`.
    Stream(Box<dyn Read + Send + 'a>),
    /// Absent: every element is these bytes.
    Fill(Vec<u8>),
}

/// An `.npz` of big_vision or numpy as a source.
pub struct Npz;
impl Npz {
    /// Opens the container and every member's header.
    pub fn open(_path: impl AsRef<Path>) -> Result<Self> {
        Err(Error::unsupported("x", "skeleton"))
    }
}

/// Where a checkpoint was found from what the user typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The item folder, to be given to [`Checkpoint::open`].
    pub dir: PathBuf,
    /// Item name (`params`), if the folder is an item of a step.
    pub item: Option<String>,
    /// Step number, if it is in a step folder.
    pub step: Option<u64>,
    /// The step's `assets` folder, where it exists.
    pub assets: Option<PathBuf>,
    /// One sentence: what was taken and why ("latest of 3 steps: 19999").
    pub taken: String,
}
/// Accepts `params`, `ckpt`, `ckpt/<step>`, an experiment folder; says what was taken.
pub fn locate(_path: impl AsRef<Path>, _item: Option<&str>) -> Result<Location> {
    Err(Error::unsupported("x", "skeleton"))
}

/// An array to be written.
#[derive(Debug, Clone)]
pub struct NewArray {
    /// Path in the tree.
    pub path: Vec<Key>,
    /// Elements along each axis.
    pub shape: Vec<u64>,
    /// Element type.
    pub dtype: Dtype,
    /// Chunk shape; `None`: the whole array, halved as Orbax does until a chunk is at most 2 GiB.
    pub chunk_shape: Option<Vec<u64>>,
}
/// What a writer cannot know by itself.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Nanoseconds since the epoch, for commit times.
    pub time_ns: u64,
    /// zstd level of the chunks (Orbax: 1).
    pub level: i32,
    /// Data files written side by side.
    pub data_files: usize,
}
/// Writes one item folder that Orbax restores: zarr v2, zstd, OCDBT; published by rename.
pub struct CheckpointWriter;
impl CheckpointWriter {
    /// Starts in a temporary sibling of `dir`; `arrays` is the whole tree.
    pub fn create(
        _dir: impl AsRef<Path>,
        _arrays: Vec<NewArray>,
        _options: WriteOptions,
    ) -> Result<Self> {
        Err(Error::unsupported("x", "skeleton"))
    }
    /// Chunk shape of array `array`.
    pub fn chunk_shape(&self, _array: usize) -> &[u64] {
        &[]
    }
    /// Opens chunk `chunk` of array `array`. Takes bytes in C order of the chunk, little endian; callable from several threads.
    pub fn chunk(&self, _array: usize, _chunk: u64) -> Result<ChunkWriter<'_>> {
        Err(Error::unsupported("x", "skeleton"))
    }
    /// Every chunk written? Then metadata, sync, rename to the final name.
    pub fn finish(self) -> Result<()> {
        Err(Error::unsupported("x", "skeleton"))
    }
}
/// One chunk being compressed into a data file.
pub struct ChunkWriter<'a>(std::marker::PhantomData<&'a ()>);
impl Write for ChunkWriter<'_> {
    fn write(&mut self, _buf: &[u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("skeleton"))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
impl ChunkWriter<'_> {
    /// Ends the chunk; an error if it is too short or too long.
    pub fn finish(self) -> Result<()> {
        Err(Error::unsupported("x", "skeleton"))
    }
}
