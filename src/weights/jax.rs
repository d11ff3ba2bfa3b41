//! Tensors into an Orbax folder: each array is put together whole, then cut into chunks and compressed.
//!
//! A compressed chunk cannot be written out of order, and a stacked array has many sources; so each array is gathered
//! in memory where it is small and in an unnamed file where it is not. Memory stays bounded, nothing is left behind.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow};
use orbax::{CheckpointWriter, Dtype, Key, NewArray, NewEmpty, WriteOptions};
use remap::{Mover, Plan, Sink};
use sha2::{Digest, Sha256};

/// Arrays up to this size are gathered in memory.
const IN_MEMORY_BYTES: u64 = 64 << 20;
/// Bytes that are compressed at once.
const PIECE_BYTES: u64 = 4 << 20;

/// Data files of a checkpoint. A constant: the bytes that are written depend on it, and not on the threads.
const DATA_FILES: usize = 8;

/// A part of an item's tree: the outputs of a plan, each under its own name below `prefix`.
pub(super) struct Branch<'a> {
    /// Moves the outputs. Made for one thread: outputs are what runs side by side here.
    pub(super) mover: &'a Mover<'a>,
    /// What it moves.
    pub(super) plan: &'a Plan,
    /// Where the branch grows: `params`, `opt_state/1/0/mu`.
    pub(super) prefix: Vec<Key>,
    /// End every path in `value`, as NNX does.
    pub(super) value: bool,
}

/// An item: its branches, and what is no tensor of a model.
pub(super) struct Item<'a> {
    pub(super) branches: Vec<Branch<'a>>,
    /// Arrays without axes: counters.
    pub(super) scalars: Vec<(Vec<Key>, i32)>,
    /// Nodes that hold nothing.
    pub(super) empty: Vec<NewEmpty>,
}

/// How it is stamped.
#[derive(Debug, Clone)]
pub(super) struct Stamp {
    /// Commit time.
    pub(super) time_ns: u64,
    /// Hash every array?
    pub(super) hashes: bool,
}

enum Medium {
    Memory(Mutex<Vec<u8>>),
    File(File),
}

struct One {
    output: usize,
    medium: Medium,
}

impl Sink for One {
    fn write(&self, output: usize, offset: u64, bytes: &[u8]) -> remap::Result<()> {
        debug_assert_eq!(output, self.output);
        self.medium.write_at(bytes, offset).map_err(|error| remap::Error::Read { name: "scratch".into(), error })
    }
}

impl Medium {
    fn new(folder: &Path, bytes: u64) -> Result<Self> {
        if bytes <= IN_MEMORY_BYTES {
            return Ok(Medium::Memory(Mutex::new(vec![0; usize::try_from(bytes)?])));
        }
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let path = folder.join(format!(".scratch-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("creating {}", path.display()))?;
        // Without a name it goes when the process does.
        std::fs::remove_file(&path).with_context(|| format!("unlinking {}", path.display()))?;
        file.set_len(bytes)?;
        Ok(Medium::File(file))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        match self {
            Medium::File(file) => file.write_all_at(bytes, offset),
            Medium::Memory(memory) => {
                let mut memory = memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let at = offset as usize;
                memory[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Medium::File(file) => file.read_exact_at(buffer, offset),
            Medium::Memory(memory) => {
                let memory = memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let at = offset as usize;
                buffer.copy_from_slice(&memory[at..at + buffer.len()]);
                Ok(())
            }
        }
    }
}

impl Branch<'_> {
    fn arrays(&self) -> impl Iterator<Item = NewArray> {
        self.plan.outputs.iter().map(|o| {
            let steps = o.tensor.name.split('/').chain(self.value.then_some("value")).map(name);
            NewArray {
                path: self.prefix.iter().cloned().chain(steps).collect(),
                shape: o.tensor.shape.clone(),
                dtype: o.tensor.dtype,
                chunk_shape: None,
            }
        })
    }
}

/// A step of a path that is a name.
pub(super) fn name(name: &str) -> Key {
    Key::Name(name.to_owned())
}

/// Writes `item` into the folder `dir`; gives the hashes of the branches' outputs where they were asked for.
pub(super) fn write(item: &Item<'_>, dir: &Path, stamp: &Stamp, threads: usize) -> Result<Vec<Option<String>>> {
    let mut arrays: Vec<NewArray> = item.branches.iter().flat_map(Branch::arrays).collect();
    let scalar = |(path, _): &(Vec<Key>, i32)| NewArray {
        path: path.clone(),
        shape: vec![],
        dtype: Dtype::I32,
        chunk_shape: None,
    };
    arrays.extend(item.scalars.iter().map(scalar));
    // Which branch, and which of its outputs.
    let places: Vec<(usize, usize)> = item
        .branches
        .iter()
        .enumerate()
        .flat_map(|(b, branch)| (0..branch.plan.outputs.len()).map(move |output| (b, output)))
        .collect();
    let options = WriteOptions { time_ns: stamp.time_ns, level: 1, data_files: DATA_FILES };
    let writer = CheckpointWriter::create_tree(dir, arrays, &item.empty, options)?;
    let folder = dir.parent().unwrap_or(Path::new("."));
    // In the order of the tree: what is finished before its turn in a data file has to wait in a spool.
    let outputs = places.len();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let hashes = Mutex::new(vec![None; outputs]);
    let one = |array: usize| -> Result<()> {
        let (branch, output) = places[array];
        let Branch { mover, plan, .. } = &item.branches[branch];
        let tensor = &plan.outputs[output].tensor;
        let one = One { output, medium: Medium::new(folder, tensor.bytes())? };
        mover.run(&mover.units(|o| o == output), &one)?;
        if stamp.hashes {
            let hash = hash(&one.medium, tensor.bytes())?;
            hashes.lock().map_err(|_| anyhow!("a thread panicked"))?[array] = Some(hash);
        }
        let chunk = writer.chunk_shape(array).to_vec();
        let chunks: u64 = tensor.shape.iter().zip(&chunk).map(|(n, c)| n.div_ceil((*c).max(1))).product();
        for number in 0..chunks {
            let mut to = writer.chunk(array, number)?;
            copy_chunk(&one.medium, &tensor.shape, &chunk, number, tensor.dtype.size() as u64, &mut to)
                .with_context(|| format!("{}: chunk {number}", tensor.name))?;
            to.finish()?;
        }
        Ok(())
    };
    let work = || {
        loop {
            let output = next.fetch_add(1, Ordering::Relaxed);
            if output >= outputs {
                return;
            }
            if let Err(error) = one(output) {
                next.store(outputs, Ordering::Relaxed);
                failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    for (i, (_, number)) in item.scalars.iter().enumerate() {
        let mut to = writer.chunk(outputs + i, 0)?;
        to.write_all(&number.to_le_bytes())?;
        to.finish()?;
    }
    writer.finish()?;
    hashes.into_inner().map_err(|_| anyhow!("a thread panicked"))
}

fn hash(medium: &Medium, bytes: u64) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; usize::try_from(PIECE_BYTES.min(bytes))?];
    let mut at = 0;
    while at < bytes {
        let n = usize::try_from(PIECE_BYTES.min(bytes - at))?;
        medium.read_at(&mut buffer[..n], at)?;
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
    Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Streams one chunk of a dense array, in C order. Orbax's chunks always divide the array.
fn copy_chunk(
    medium: &Medium,
    shape: &[u64],
    chunk: &[u64],
    number: u64,
    size: u64,
    to: &mut impl Write,
) -> Result<()> {
    let rank = shape.len();
    let mut origin = vec![0; rank];
    let mut rest = number;
    for axis in (0..rank).rev() {
        let grid = shape[axis] / chunk[axis];
        origin[axis] = rest % grid * chunk[axis];
        rest /= grid;
    }
    // From here on the chunk is as wide as the array: one run for each index of the axes before.
    let whole = (0..rank).rev().take_while(|a| chunk[*a] == shape[*a]).count();
    let split = (rank - whole).saturating_sub(1);
    let run: u64 = chunk[split.min(rank)..].iter().product::<u64>() * size;
    let mut buffer = vec![0; usize::try_from(run.clamp(1, PIECE_BYTES))?];
    for outer in 0..chunk[..split].iter().product::<u64>() {
        let mut at = origin.clone();
        let mut rest = outer;
        for axis in (0..split).rev() {
            at[axis] += rest % chunk[axis];
            rest /= chunk[axis];
        }
        let first = at.iter().zip(shape).fold(0, |flat, (i, n)| flat * n + i) * size;
        let mut done = 0;
        while done < run {
            let n = usize::try_from(PIECE_BYTES.min(run - done))?;
            medium.read_at(&mut buffer[..n], first + done)?;
            to.write_all(&buffer[..n])?;
            done += n as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_a_dense_array_are_its_boxes() {
        let shape = [4u64, 6, 5];
        let bytes: Vec<u8> = (0..120).collect();
        for chunk in [[4u64, 6, 5], [2, 6, 5], [2, 3, 5], [1, 2, 5], [4, 2, 1], [4, 6, 1]] {
            let medium = Medium::Memory(Mutex::new(bytes.clone()));
            let grid: Vec<u64> = shape.iter().zip(&chunk).map(|(n, c)| n / c).collect();
            for number in 0..grid.iter().product::<u64>() {
                let mut found = vec![];
                copy_chunk(&medium, &shape, &chunk, number, 1, &mut found).unwrap();
                let (k, j, i) = (number % grid[2], number / grid[2] % grid[1], number / grid[2] / grid[1]);
                let mut expected = vec![];
                for a in 0..chunk[0] {
                    for b in 0..chunk[1] {
                        for c in 0..chunk[2] {
                            let at = ((i * chunk[0] + a) * 6 + j * chunk[1] + b) * 5 + k * chunk[2] + c;
                            expected.push(bytes[at as usize]);
                        }
                    }
                }
                assert_eq!(found, expected, "{chunk:?} {number}");
            }
        }
    }
}
