//! `cargo xtask synth`: a checkpoint of a published model's size whose weights need no download.
//!
//! Writes `<out>/params` as openpi's checkpoints are: one array per leaf under the root key `params`. Values come from
//! [`procedural`](crate::procedural), a buffer at a time, so memory stays at a few MiB per thread whatever the model.
//! With `--check` nothing is written: everything is regenerated and its sums are compared with `golden/procedural/`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use orbax::{CheckpointWriter, Dtype, Key, NewArray, WriteOptions};

use crate::parallel::side_by_side;
use crate::procedural::recording::{self, MODELS, Recorded};
use crate::procedural::{BUFFER_BYTES, Leaf, tree};

/// Values of a leaf that `--check` gives to a thread at a time.
const SPAN: u64 = 1 << 24;
/// As Orbax compresses.
const ZSTD_LEVEL: i32 = 1;
/// Enough that a chunk seldom waits for the one before it in its file. The checkpoint's bytes depend on this number, so
/// it does not follow the threads.
const DATA_FILES: usize = 16;

/// What to write, or to check.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model to describe the tree
    #[arg(long, value_parser = MODELS)]
    model: String,
    /// Element type of every leaf
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Element,
    /// The small recorded size instead of the published one
    #[arg(long)]
    tiny: bool,
    /// Folder to write `params` into
    #[arg(long, required_unless_present = "check", conflicts_with = "check")]
    out: Option<PathBuf>,
    /// Commit time in nanoseconds since the Unix epoch [default: now]
    #[arg(long)]
    time_ns: Option<u64>,
    /// Chunks written side by side [default: one per core]
    #[arg(long)]
    threads: Option<usize>,
    /// End every leaf's path with `value`, as openpi's own training saves it
    #[arg(long)]
    value_suffix: bool,
    /// Write nothing: regenerate every value and compare the recorded sums
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Element {
    F32,
    Bf16,
}

impl Element {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }
}

/// Writes `<out>/params` of a model by its name in `configs/model`, as the golden sets refer to it; gives its bytes.
///
/// # Errors
/// An unknown model; what the file system says.
pub(crate) fn make(root: &Path, model: &str, dtype: Dtype, out: &Path) -> Result<u64> {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let options = WriteOptions { time_ns: 1, level: ZSTD_LEVEL, data_files: DATA_FILES };
    write(&tree::leaves(root, model)?, out, dtype, false, options, threads)
}

/// Writes or checks; false if a check found a difference.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    let model = format!("{}{}", if arguments.tiny { "tiny_" } else { "" }, arguments.model);
    let leaves = tree::leaves(root, &model)?;
    let threads =
        arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into)).max(1);
    let begin = Instant::now();
    if let Some(out) = &arguments.out {
        let time_ns = match arguments.time_ns {
            Some(time) => time,
            None => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?,
        };
        let options = WriteOptions { time_ns, level: ZSTD_LEVEL, data_files: DATA_FILES };
        let bytes = write(&leaves, out, arguments.dtype.dtype(), arguments.value_suffix, options, threads)?;
        let seconds = begin.elapsed().as_secs_f64();
        println!(
            "{}: {} leaves, {bytes} bytes in {seconds:.1} s ({:.0} MB/s)",
            out.join("params").display(),
            leaves.len(),
            bytes as f64 / 1e6 / seconds
        );
        return Ok(true);
    }
    let recorded = recording::read(root, &model)?;
    let wrong = check(&leaves, &recorded, arguments.dtype.dtype(), threads)?;
    for name in &wrong {
        println!("{name}: the sum of its bit patterns is not the recorded one");
    }
    let values: u64 = leaves.iter().map(Leaf::len).sum();
    println!(
        "{model}: {values} values, {} of {} leaves differ, {:.1} s",
        wrong.len(),
        leaves.len(),
        begin.elapsed().as_secs_f64()
    );
    Ok(wrong.is_empty())
}

/// Writes the checkpoint; gives the bytes of all values.
fn write(
    leaves: &[Leaf],
    out: &Path,
    dtype: Dtype,
    value_suffix: bool,
    options: WriteOptions,
    threads: usize,
) -> Result<u64> {
    let arrays = leaves.iter().map(|leaf| new_array(leaf, dtype, value_suffix)).collect();
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let writer = CheckpointWriter::create(out.join("params"), arrays, options)?;
    // In the order of the tree: it is the order in which a data file takes its chunks.
    let mut jobs = Vec::new();
    for (array, leaf) in leaves.iter().enumerate() {
        let chunk_shape = writer.chunk_shape(array).to_vec();
        let runs = Runs::new(&leaf.shape, &chunk_shape).with_context(|| leaf.name.clone())?;
        for chunk in 0..runs.chunks() {
            jobs.push((array, chunk, runs.clone()));
        }
    }
    let bytes = leaves.iter().map(Leaf::len).sum::<u64>() * dtype.size() as u64;
    let bar = progress(bytes);
    side_by_side(threads, &jobs, |(array, chunk, runs)| {
        let mut sink = writer.chunk(*array, *chunk)?;
        let (mut values, mut buffer) = (Vec::new(), vec![0; BUFFER_BYTES]);
        for (first, len) in runs.of(*chunk) {
            let mut done = 0;
            while done < len {
                let count = (len - done).min((BUFFER_BYTES / dtype.size()) as u64);
                let part = &mut buffer[..count as usize * dtype.size()];
                leaves[*array].fill_bytes(dtype, first + done, &mut values, part);
                sink.write_all(part)?;
                bar.inc(part.len() as u64);
                done += count;
            }
        }
        Ok(sink.finish()?)
    })?;
    writer.finish()?;
    bar.finish_and_clear();
    Ok(bytes)
}

fn new_array(leaf: &Leaf, dtype: Dtype, value_suffix: bool) -> NewArray {
    let names = std::iter::once("params").chain(leaf.name.split('/')).chain(value_suffix.then_some("value"));
    NewArray {
        path: names.map(|name| Key::Name(name.to_owned())).collect(),
        shape: leaf.shape.clone(),
        dtype,
        chunk_shape: None,
    }
}

/// The names of the leaves whose sums are not those recorded.
fn check(leaves: &[Leaf], recorded: &[Recorded], dtype: Dtype, threads: usize) -> Result<Vec<String>> {
    ensure!(
        leaves.iter().map(|leaf| &leaf.name).eq(recorded.iter().map(|leaf| &leaf.name)),
        "the recording has other leaves than the model"
    );
    let sums: Vec<AtomicU32> = leaves.iter().map(|_| AtomicU32::new(0)).collect();
    let spans: Vec<(usize, u64, u64)> = leaves
        .iter()
        .enumerate()
        .flat_map(|(index, leaf)| {
            let len = leaf.len();
            (0..len.div_ceil(SPAN)).map(move |span| (index, span * SPAN, SPAN.min(len - span * SPAN)))
        })
        .collect();
    let bar = progress(leaves.iter().map(Leaf::len).sum::<u64>() * dtype.size() as u64);
    side_by_side(threads, &spans, |(index, first, len)| {
        // `fetch_add` wraps, as the sum does.
        sums[*index].fetch_add(leaves[*index].sum(dtype, *first, *len), Ordering::Relaxed);
        bar.inc(len * dtype.size() as u64);
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(recorded
        .iter()
        .zip(sums)
        .filter(|(recorded, sum)| {
            let values = if dtype == Dtype::Bf16 { &recorded.bf16 } else { &recorded.f32 };
            values.sum != sum.load(Ordering::Relaxed)
        })
        .map(|(recorded, _)| recorded.name.clone())
        .collect())
}

fn progress(bytes: u64) -> ProgressBar {
    // Draws on standard error, and only where that is a terminal.
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Where a chunk's values lie in the array they are a block of, as runs of neighbours in C order.
#[derive(Debug, Clone)]
struct Runs {
    shape: Vec<u64>,
    chunk: Vec<u64>,
}

impl Runs {
    fn new(shape: &[u64], chunk: &[u64]) -> Result<Self> {
        let divides = shape.len() == chunk.len() && shape.iter().zip(chunk).all(|(n, c)| *c > 0 && n % c == 0);
        ensure!(divides, "chunks {chunk:?} do not divide shape {shape:?}");
        Ok(Self { shape: shape.to_vec(), chunk: chunk.to_vec() })
    }

    /// Number of chunks.
    fn chunks(&self) -> u64 {
        self.shape.iter().zip(&self.chunk).map(|(n, c)| n / c).product()
    }

    /// Values in a chunk.
    fn chunk_len(&self) -> u64 {
        self.chunk.iter().product()
    }

    /// (index in the array, number of values) of each run of chunk `chunk`, in the chunk's own C order.
    fn of(&self, chunk: u64) -> impl Iterator<Item = (u64, u64)> {
        let rank = self.shape.len();
        // Axes after `whole` are not cut: what lies behind one index of axis `whole` is contiguous.
        let whole = (0..rank).rev().find(|axis| self.chunk[*axis] != self.shape[*axis]).unwrap_or(0);
        let len: u64 = self.chunk.iter().skip(whole).product();
        let strides: Vec<u64> = (0..rank).map(|axis| self.shape[axis + 1..].iter().product()).collect();
        let mut rest = chunk;
        let mut origin = 0;
        for axis in (0..rank).rev() {
            let grid = self.shape[axis] / self.chunk[axis];
            origin += rest % grid * self.chunk[axis] * strides[axis];
            rest /= grid;
        }
        (0..self.chunk_len() / len.max(1)).map(move |run| {
            let (mut rest, mut index) = (run, origin);
            for axis in (0..whole).rev() {
                index += rest % self.chunk[axis] * strides[axis];
                rest /= self.chunk[axis];
            }
            (index, len)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunks_of_an_array_cover_it_once_and_in_their_own_order() {
        for (shape, chunk) in [
            (vec![4, 6, 8], vec![2, 6, 8]),
            (vec![4, 6, 8], vec![1, 3, 8]),
            (vec![4, 6, 8], vec![2, 3, 4]),
            (vec![4, 6, 8], vec![4, 6, 8]),
            (vec![5], vec![1]),
            (vec![], vec![]),
        ] {
            let runs = Runs::new(&shape, &chunk).unwrap();
            let mut seen = Vec::new();
            for index in 0..runs.chunks() {
                let values: Vec<u64> = runs.of(index).flat_map(|(first, len)| first..first + len).collect();
                assert_eq!(values.len() as u64, runs.chunk_len());
                assert!(values.is_sorted());
                seen.extend(values);
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..shape.iter().product::<u64>()), "{shape:?} {chunk:?}");
        }
        assert!(Runs::new(&[5], &[2]).is_err());
    }

    #[test]
    fn a_tiny_checkpoint_comes_back_from_disk_with_every_bit() {
        use orbax::Source;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (dtype, value_suffix) in [(Dtype::F32, false), (Dtype::Bf16, true)] {
            let folder = tempfile::tempdir().unwrap();
            let leaves = tree::leaves(root, "tiny_pi05").unwrap();
            let options = WriteOptions { time_ns: 1, level: ZSTD_LEVEL, data_files: DATA_FILES };
            write(&leaves, folder.path(), dtype, value_suffix, options, 2).unwrap();
            let checkpoint = orbax::Checkpoint::open(folder.path().join("params")).unwrap();
            assert_eq!(checkpoint.arrays().len(), leaves.len());
            for (index, array) in checkpoint.arrays().iter().enumerate() {
                let name = array.name.strip_prefix("params/").unwrap();
                let name = if value_suffix { name.strip_suffix("/value").unwrap() } else { name };
                let leaf = leaves.iter().find(|leaf| leaf.name == name).unwrap();
                assert_eq!((&array.shape, array.dtype), (&leaf.shape, dtype), "{name}");
                let mut expected = vec![0; leaf.len() as usize * dtype.size()];
                leaf.fill_bytes(dtype, 0, &mut Vec::new(), &mut expected);
                assert!(orbax::read_array(&checkpoint, index).unwrap() == expected, "{name}");
            }
        }
    }
}
