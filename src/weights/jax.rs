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
use orbax::{CheckpointWriter, Key, NewArray, WriteOptions};
use remap::{Mover, Plan, Sink};
use sha2::{Digest, Sha256};

/// Arrays up to this size are gathered in memory.
const IN_MEMORY_BYTES: u64 = 64 << 20;
/// Bytes that are compressed at once.
const PIECE_BYTES: u64 = 4 << 20;

/// How the tree is wrapped and stamped.
#[derive(Debug, Clone)]
pub(super) struct Wrap {
    /// End every path in `value`, as NNX does.
    pub(super) value: bool,
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

/// Writes every output of `plan` into the item folder `dir`; gives hashes where they were asked for. The mover must
/// have been made for one thread: the outputs are what runs side by side here.
pub(super) fn write(
    mover: &Mover<'_>,
    plan: &Plan,
    dir: &Path,
    wrap: &Wrap,
    threads: usize,
) -> Result<Vec<Option<String>>> {
    let path = |name: &str| {
        let steps = ["params"].into_iter().chain(name.split('/')).chain(wrap.value.then_some("value"));
        steps.map(|s| Key::Name(s.to_owned())).collect()
    };
    let arrays = plan.outputs.iter().map(|o| NewArray {
        path: path(&o.tensor.name),
        shape: o.tensor.shape.clone(),
        dtype: o.tensor.dtype,
        chunk_shape: None,
    });
    let options = WriteOptions { time_ns: wrap.time_ns, level: 1, data_files: threads };
    let writer = CheckpointWriter::create(dir, arrays.collect(), options)?;
    let folder = dir.parent().unwrap_or(Path::new("."));
    let mut order: Vec<usize> = (0..plan.outputs.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(plan.outputs[*i].tensor.bytes()), *i));
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let hashes = Mutex::new(vec![None; plan.outputs.len()]);
    let one = |output: usize| -> Result<()> {
        let tensor = &plan.outputs[output].tensor;
        let one = One { output, medium: Medium::new(folder, tensor.bytes())? };
        mover.run(&mover.units(|o| o == output), &one)?;
        if wrap.hashes {
            let hash = hash(&one.medium, tensor.bytes())?;
            hashes.lock().map_err(|_| anyhow!("a thread panicked"))?[output] = Some(hash);
        }
        let chunk = writer.chunk_shape(output).to_vec();
        let chunks: u64 = tensor.shape.iter().zip(&chunk).map(|(n, c)| n.div_ceil((*c).max(1))).product();
        for number in 0..chunks {
            let mut to = writer.chunk(output, number)?;
            copy_chunk(&one.medium, &tensor.shape, &chunk, number, tensor.dtype.size() as u64, &mut to)
                .with_context(|| format!("{}: chunk {number}", tensor.name))?;
            to.finish()?;
        }
        Ok(())
    };
    let work = || {
        while let Some(output) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = one(*output) {
                next.store(order.len(), Ordering::Relaxed);
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
