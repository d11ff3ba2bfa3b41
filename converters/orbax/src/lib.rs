//! A checkpoint folder as a tree of lazy arrays.
//!
//! Reading order: [`Checkpoint`] (an item folder: leaves, and a [`Source`] of arrays) · [`locate()`] (which folder the user meant) ·
//! [`Chunk`] (streams; nothing is held whole) · [`Npz`], [`Npy`] and [`raw`] (other sources) · [`CheckpointWriter`] (the way back).
//!
//! Source: Orbax <https://github.com/google/orbax> (0.4 to 0.12) and TensorStore <https://github.com/google/tensorstore> (bc4fbc11f).
//! Invariant: foreign bytes never panic, never make us allocate more than they are, and never lead outside the checkpoint folder.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod array;
mod checkpoint;
mod chunk;
mod dtype;
mod error;
mod fill;
mod locate;
mod metadata;
mod npy;
mod npz;
mod plan;
pub mod raw;
mod read;
mod spool;
mod store;
mod tree;
mod writer;
mod zarr;

use std::io::Read;

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use locate::{Location, locate};
pub use npy::{Npy, npy_bytes};
pub use npz::Npz;
pub use read::{MAX_READ_BYTES, read_array};
pub use tree::{Key, Leaf, Value, path_name};
pub use writer::{CheckpointWriter, ChunkWriter, Empty, NewArray, NewEmpty, WriteOptions};

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

/// The examples of README.md, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
