//! safetensors files as a source: one file, or the shards that an index names.
//!
//! Invariant: every tensor's bytes lie inside its file, no two overlap, and together they are the whole file, as the
//! format demands; all of it is checked before an array is offered.
//! Source: <https://github.com/huggingface/safetensors> (format section of the README).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use orbax::{ArrayInfo, Chunk, Dtype, Order, Source};
use serde::Deserialize;

use crate::error::{Error, Result};

/// The reference implementation's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One file or several, as a set of arrays.
#[derive(Debug)]
pub struct Safetensors {
    files: Vec<PathBuf>,
    handles: Vec<File>,
    arrays: Vec<ArrayInfo>,
    places: Vec<Place>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
    len: u64,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

impl Safetensors {
    /// Opens a `.safetensors` file, a `.safetensors.index.json`, or a folder that holds one of them.
    ///
    /// # Errors
    /// What is wrong with the file, by its path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = find(path.as_ref())?;
        let mut this =
            Safetensors { files: vec![], handles: vec![], arrays: vec![], places: vec![], metadata: BTreeMap::new() };
        if path.extension().is_some_and(|e| e == "json") {
            let text = std::fs::read(&path).map_err(|error| file_error(&path, "reading the index", error))?;
            let index: IndexFile =
                serde_json::from_slice(&text).map_err(|error| wrong(&path, format!("not an index: {error}")))?;
            let mut shards: Vec<&String> = index.weight_map.values().collect();
            shards.sort();
            shards.dedup();
            for shard in shards {
                if shard.contains(['/', '\\']) || shard.starts_with('.') {
                    return Err(wrong(&path, format!("the shard name {shard:?} leaves the folder")));
                }
                this.add(&path.with_file_name(shard))?;
            }
            for (name, shard) in &index.weight_map {
                let there = this.arrays.iter().zip(&this.places).find(|(a, _)| a.name == *name);
                if there.is_none_or(|(_, place)| this.files[place.file] != path.with_file_name(shard)) {
                    return Err(wrong(&path, format!("{name} is not in {shard}, where the index has it")));
                }
            }
        } else {
            this.add(&path)?;
        }
        Ok(this)
    }

    /// The `__metadata__` of the file; of shards, the first that has one.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let reading = |error| file_error(path, "reading the header", error);
        let mut file = File::open(path).map_err(|error| file_error(path, "opening", error))?;
        let size = file.metadata().map_err(reading)?.len();
        let mut len = [0; 8];
        file.read_exact(&mut len).map_err(reading)?;
        let len = u64::from_le_bytes(len);
        let room = size.saturating_sub(8);
        if len > room.min(MAX_HEADER_BYTES) {
            return Err(wrong(path, format!("its header would have {len} bytes, the file has {size}")));
        }
        let mut text = vec![0; len as usize];
        file.read_exact(&mut text).map_err(reading)?;
        let header: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&text).map_err(|error| wrong(path, format!("its header is not JSON: {error}")))?;
        let (start, data) = (8 + len, room - len);
        let number = self.files.len();
        let mut spans = vec![];
        for (name, value) in header {
            if name == "__metadata__" {
                let found: BTreeMap<String, String> = serde_json::from_value(value)
                    .map_err(|error| wrong(path, format!("its __metadata__ is not a map of strings: {error}")))?;
                if self.metadata.is_empty() {
                    self.metadata = found;
                }
                continue;
            }
            let entry: Entry = serde_json::from_value(value)
                .map_err(|error| wrong(path, format!("{name}: its entry is malformed: {error}")))?;
            let dtype = Dtype::from_safetensors(&entry.dtype)
                .ok_or_else(|| wrong(path, format!("{name}: its type {:?} is not supported", entry.dtype)))?;
            let [begin, end] = entry.data_offsets;
            let expected = entry.shape.iter().try_fold(dtype.size() as u64, |n, d| n.checked_mul(*d));
            if begin > end || end > data || expected != Some(end - begin) {
                return Err(wrong(
                    path,
                    format!(
                        "{name}: {} of shape {:?} does not fit bytes {begin}..{end} of {data}",
                        entry.dtype, entry.shape
                    ),
                ));
            }
            if self.arrays.iter().any(|a| a.name == name) {
                return Err(wrong(path, format!("{name} is in another shard as well")));
            }
            spans.push((begin, end, name.clone()));
            let chunk_shape = entry.shape.iter().map(|n| (*n).max(1)).collect();
            self.arrays.push(ArrayInfo { name, chunk_shape, shape: entry.shape, dtype, order: Order::C });
            self.places.push(Place { file: number, offset: start + begin, len: end - begin });
        }
        spans.sort();
        let mut at = 0;
        for (begin, end, name) in spans {
            if begin != at {
                return Err(wrong(path, format!("{name} begins at byte {begin}, its neighbour ends at {at}")));
            }
            at = end;
        }
        if at != data {
            return Err(wrong(path, format!("its tensors end at byte {at} of {data}")));
        }
        self.files.push(path.to_owned());
        self.handles.push(file);
        Ok(())
    }
}

impl Source for Safetensors {
    fn arrays(&self) -> &[ArrayInfo] {
        &self.arrays
    }

    fn chunk(&self, array: usize, _chunk: u64) -> orbax::Result<Chunk<'_>> {
        let place = self.places[array];
        let file = &self.handles[place.file];
        Ok(Chunk::Stream(Box::new(Part { file, at: place.offset, end: place.offset + place.len })))
    }

    fn stored_len(&self, array: usize, _chunk: u64) -> orbax::Result<u64> {
        Ok(self.places[array].len)
    }
}

/// A range of a file that several threads read at once.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = (self.end - self.at).min(buffer.len() as u64) as usize;
        let n = self.file.read_at(&mut buffer[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Names under which a model file or its index is found in a folder, in order.
const NAMES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "params.safetensors",
    "adapter_model.safetensors",
];

fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    NAMES
        .iter()
        .map(|name| path.join(name))
        .find(|p| p.is_file())
        .ok_or_else(|| wrong(path, format!("no safetensors file in this folder; looked for {}", NAMES.join(", "))))
}

/// Does a folder hold a model in safetensors?
pub fn is_safetensors(path: &Path) -> bool {
    let named =
        |p: &Path| p.to_string_lossy().ends_with(".safetensors") || p.to_string_lossy().ends_with(".index.json");
    if path.is_dir() { find(path).is_ok() } else { named(path) }
}

fn wrong(path: &Path, what: String) -> Error {
    Error::Safetensors { path: path.to_owned(), what }
}

fn file_error(path: &Path, action: &'static str, error: std::io::Error) -> Error {
    Error::File { path: path.to_owned(), action, error }
}
