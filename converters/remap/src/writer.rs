//! A safetensors file written at known offsets, by several threads, published by rename.
//!
//! Invariants: the bytes depend on the tensors and the metadata alone (both sorted, nothing of time or chance);
//! under the final name there is either nothing, the old file, or the whole new one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use orbax::Dtype;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error::{Error, Fault, Refused, Result};
use crate::plan::Tensor;
use crate::run::Sink;

/// The data of a large file starts on a huge page, so that long runs fill whole ones. The format asks for eight.
const LARGE_ALIGNMENT: usize = 2 << 20;
/// What is large.
const LARGE_BYTES: u64 = 256 << 20;

/// One file, or several with an index.
#[derive(Debug)]
pub struct Writer {
    /// Final path of the file, or of the index.
    path: PathBuf,
    shards: Vec<Shard>,
    /// Shard and offset of each tensor.
    places: Vec<(usize, u64)>,
    tensors: Vec<Tensor>,
    published: bool,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    /// Writers of one file wait for each other in the kernel, spinning; here they sleep, and another thread decodes.
    turn: Mutex<()>,
}

impl Writer {
    /// Lays out `tensors` and makes the temporary files, as large as they will be. Nothing appears under `path` yet.
    ///
    /// # Errors
    /// Types that safetensors has no name for; no room on the disk; what the file system says.
    pub fn create(
        path: impl AsRef<Path>,
        tensors: Vec<Tensor>,
        metadata: &BTreeMap<String, String>,
        max_shard_bytes: Option<u64>,
    ) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let faults: Vec<Fault> = tensors
            .iter()
            .filter(|t| t.dtype.safetensors().is_none())
            .map(|t| Fault::Dtype { name: t.name.clone(), found: t.dtype.name().to_owned() })
            .collect();
        if !faults.is_empty() {
            return Err(Refused { faults }.into());
        }
        // Largest elements first, so that every tensor is aligned to its own; then the longest, so that most begin where a
        // page does; then by name.
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by(|a, b| {
            let key = |i: usize| {
                (std::cmp::Reverse(tensors[i].dtype.size()), std::cmp::Reverse(tensors[i].bytes()), &tensors[i].name)
            };
            key(*a).cmp(&key(*b))
        });
        let mut groups: Vec<Vec<usize>> = vec![vec![]];
        let mut bytes = 0;
        for i in order {
            if max_shard_bytes.is_some_and(|max| bytes > 0 && bytes + tensors[i].bytes() > max) {
                groups.push(vec![]);
                bytes = 0;
            }
            bytes += tensors[i].bytes();
            if let Some(group) = groups.last_mut() {
                group.push(i);
            }
        }
        let mut this = Writer { path, shards: vec![], places: vec![(0, 0); tensors.len()], tensors, published: false };
        let count = groups.len();
        for (number, group) in groups.iter().enumerate() {
            let path = if count == 1 { this.path.clone() } else { shard_path(&this.path, number + 1, count) };
            this.add(path, number, group, metadata)?;
        }
        if count > 1 {
            this.write_index(&groups, count)?;
        }
        Ok(this)
    }

    fn add(
        &mut self,
        path: PathBuf,
        number: usize,
        group: &[usize],
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let members: Vec<&Tensor> = group.iter().map(|i| &self.tensors[*i]).collect();
        let header = header_of(&members, metadata);
        let start = header.len() as u64;
        let mut at = start;
        for i in group {
            self.places[*i] = (number, at);
            at += self.tensors[*i].bytes();
        }
        let temporary = temporary_of(&path);
        let error = |action| {
            let path = temporary.clone();
            move |error| Error::File { path, action, error }
        };
        // A killed run may have left one.
        let _ = std::fs::remove_file(&temporary);
        let file =
            File::options().read(true).write(true).create_new(true).open(&temporary).map_err(error("creating"))?;
        self.shards.push(Shard { path, temporary: temporary.clone(), file, turn: Mutex::new(()) });
        let Some(shard) = self.shards.last_mut() else { return Ok(()) };
        shard.file.write_all(&header).map_err(error("writing the header of"))?;
        shard.file.set_len(at).map_err(error("making room for"))?;
        Ok(())
    }

    fn write_index(&mut self, groups: &[Vec<usize>], count: usize) -> Result<()> {
        let mut weight_map = BTreeMap::new();
        for (number, group) in groups.iter().enumerate() {
            let shard = shard_path(&self.path, number + 1, count);
            let name = shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
            weight_map.extend(group.iter().map(|i| (self.tensors[*i].name.clone(), name.clone())));
        }
        let total: u64 = self.tensors.iter().map(Tensor::bytes).sum();
        let text = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let text = serde_json::to_vec_pretty(&text).unwrap_or_default();
        let path = index_path(&self.path);
        let temporary = temporary_of(&path);
        let failed = |error| Error::File { path: path.clone(), action: "writing", error };
        let mut file =
            File::options().write(true).create(true).truncate(true).read(true).open(&temporary).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        // Published after the shards that it names.
        self.shards.push(Shard { path, temporary, file, turn: Mutex::new(()) });
        Ok(())
    }

    /// SHA-256 of each tensor's bytes, read back from the file, in the order given to [`Writer::create`].
    ///
    /// # Errors
    /// What reading says.
    pub fn hashes(&self, threads: usize) -> Result<Vec<String>> {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let found = std::sync::Mutex::new(vec![String::new(); self.tensors.len()]);
        let failed = std::sync::Mutex::new(None);
        let work = || {
            let mut buffer = vec![0; 1 << 20];
            loop {
                let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(tensor) = self.tensors.get(i) else { return };
                match self.hash(i, tensor, &mut buffer) {
                    Ok(hash) => found.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[i] = hash,
                    Err(error) => {
                        *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(work);
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)),
        }
    }

    fn hash(&self, i: usize, tensor: &Tensor, buffer: &mut [u8]) -> Result<String> {
        let (shard, mut at) = self.places[i];
        let shard = &self.shards[shard];
        let mut left = tensor.bytes();
        let mut hasher = Sha256::new();
        while left > 0 {
            let n = left.min(buffer.len() as u64) as usize;
            shard.file.read_exact_at(&mut buffer[..n], at).map_err(|error| Error::File {
                path: shard.temporary.clone(),
                action: "reading back",
                error,
            })?;
            hasher.update(&buffer[..n]);
            at += n as u64;
            left -= n as u64;
        }
        Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Bytes that the files will have.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// Syncs everything and gives it its final name.
    ///
    /// # Errors
    /// What the file system says; then nothing has changed under the final name, or for shards, no new index is there.
    pub fn publish(mut self) -> Result<Vec<PathBuf>> {
        for shard in &self.shards {
            shard.file.sync_all().map_err(|error| file_error(&shard.temporary, "syncing", error))?;
        }
        let mut paths = vec![];
        for shard in &self.shards {
            std::fs::rename(&shard.temporary, &shard.path)
                .map_err(|error| file_error(&shard.path, "renaming the finished file to", error))?;
            paths.push(shard.path.clone());
        }
        self.published = true;
        sync_folder(&self.path)?;
        Ok(paths)
    }
}

impl Sink for Writer {
    fn write(&self, output: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (shard, start) = self.places[output];
        let shard = &self.shards[shard];
        let _turn = shard.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shard.file.write_all_at(bytes, start + offset).map_err(|error| file_error(&shard.temporary, "writing", error))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.published {
            for shard in &self.shards {
                let _ = std::fs::remove_file(&shard.temporary);
            }
        }
    }
}

/// Writes a small file whole: aside, synced, renamed.
///
/// # Errors
/// What the file system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_of(path);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        file_error(path, "writing", error)
    })?;
    sync_folder(path)
}

/// A small set of tensors as the bytes of one safetensors file.
pub fn to_bytes(tensors: &[(Tensor, Vec<u8>)], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut order: Vec<&(Tensor, Vec<u8>)> = tensors.iter().collect();
    order.sort_by_key(|(t, _)| (std::cmp::Reverse(t.dtype.size()), std::cmp::Reverse(t.bytes()), &t.name));
    let mut bytes = header_of(&order.iter().map(|(t, _)| t).collect::<Vec<_>>(), metadata);
    for (_, data) in order {
        bytes.extend_from_slice(data);
    }
    bytes
}

/// Length and header for tensors that lie in this order. Written by hand of parts with a fixed order of members, so
/// that it does not depend on how a JSON library orders its maps.
fn header_of(tensors: &[&Tensor], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Entry<'a> {
        dtype: Option<&'a str>,
        shape: &'a [u64],
        data_offsets: [u64; 2],
    }
    let quoted = |s: &str| serde_json::Value::from(s).to_string();
    let mut parts = vec![];
    if !metadata.is_empty() {
        parts.push(format!("\"__metadata__\":{}", serde_json::to_string(metadata).unwrap_or_default()));
    }
    let mut at = 0;
    let mut entries = BTreeMap::new();
    for t in tensors {
        let entry = Entry { dtype: t.dtype.safetensors(), shape: &t.shape, data_offsets: [at, at + t.bytes()] };
        at += t.bytes();
        entries.insert(&t.name, serde_json::to_string(&entry).unwrap_or_default());
    }
    parts.extend(entries.iter().map(|(name, entry)| format!("{}:{entry}", quoted(name))));
    let mut text = format!("{{{}}}", parts.join(",")).into_bytes();
    let alignment = if at >= LARGE_BYTES { LARGE_ALIGNMENT } else { 8 };
    text.resize((text.len() + 8).next_multiple_of(alignment) - 8, b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

fn temporary_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!(".{name}.part"))
}

fn shard_path(path: &Path, number: usize, count: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.safetensors"))
}

/// Where the index of a file that is cut into shards stands.
pub fn index_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!("{name}.index.json"))
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|f| f.sync_all()).map_err(|error| file_error(folder, "syncing", error))
}

fn file_error(path: &Path, action: &'static str, error: std::io::Error) -> Error {
    Error::File { path: path.to_owned(), action, error }
}

/// Is the type one that a safetensors file can hold?
pub fn storable(dtype: Dtype) -> bool {
    dtype.safetensors().is_some()
}
