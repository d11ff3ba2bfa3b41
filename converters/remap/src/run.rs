//! A plan, run: chunks are decoded as streams, slab by slab, and every element is written once.
//!
//! Invariants: memory is bounded by [`Settings::slab_bytes`] a thread, whatever the chunks are; no chunk is read
//! twice; a chunk's stream is read to its end, so that what its codec checks last is checked.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use orbax::{ArrayInfo, Chunk, Order, Source};

use crate::block::{Block, regions};
use crate::cast::cast;
use crate::error::{Error, Result};
use crate::gather::gather;
use crate::lora::Deltas;
use crate::plan::{At, Move, Plan};

/// A run in the output this long is worth writing by itself; then slabs stay in the second-level cache.
const LONG_RUN_BYTES: u64 = 256 << 10;
/// Slab of such an array.
const SMALL_SLAB_BYTES: u64 = 4 << 20;
/// Slabs of all threads together.
const SLABS_BYTES: u64 = 512 << 20;
/// A slab above this gains nothing: the largest layer of the pi0 family, in f32.
const LARGEST_SLAB_BYTES: u64 = 128 << 20;

/// Where outputs go. Called from several threads, each byte once.
pub trait Sink: Sync {
    /// Writes `bytes` of output `output` at byte `offset`.
    ///
    /// # Errors
    /// What the medium says.
    fn write(&self, output: usize, offset: u64, bytes: &[u8]) -> Result<()>;
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Threads that decode, move and write.
    pub threads: usize,
    /// Bytes of a slab, for each thread.
    pub slab_bytes: u64,
}

impl Settings {
    /// For so many threads, within half a GiB.
    pub fn threads(threads: usize) -> Self {
        let threads = threads.max(1);
        Settings { threads, slab_bytes: (SLABS_BYTES / threads as u64).min(LARGEST_SLAB_BYTES) }
    }
}

/// What a run counted.
#[derive(Debug)]
pub struct Tally {
    /// For each output: elements whose value a cast changed.
    pub changed: Vec<AtomicU64>,
    /// Elements of merged weights whose f64 sum its output's type had to round.
    pub rounded: AtomicU64,
}

/// A plan with what it needs to run.
pub struct Mover<'a> {
    plan: &'a Plan,
    source: &'a dyn Source,
    /// Index into `source.arrays()` of each tensor of the plan.
    arrays: &'a [usize],
    deltas: Option<&'a Deltas>,
    settings: Settings,
    moves: Vec<Vec<&'a Move>>,
    /// Elements whose value changed, by output.
    pub tally: Tally,
    /// Decoded bytes so far.
    pub done: AtomicU64,
    stop: &'a AtomicBool,
}

/// A chunk of a source tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Tensor of the plan.
    pub source: usize,
    /// Chunk of its array.
    pub chunk: u64,
    /// Decoded bytes.
    pub bytes: u64,
}

/// Buffers that a thread keeps.
#[derive(Default)]
struct Scratch {
    slab: Vec<u8>,
    merged: Vec<u8>,
    run: Vec<u8>,
    cast: Vec<u8>,
}

impl<'a> Mover<'a> {
    /// Prepares a run. `arrays[i]` is where tensor `i` of the plan stands in `source`; `stop` ends the run early.
    pub fn new(
        plan: &'a Plan,
        source: &'a dyn Source,
        arrays: &'a [usize],
        deltas: Option<&'a Deltas>,
        settings: Settings,
        stop: &'a AtomicBool,
    ) -> Self {
        let mut moves: Vec<Vec<&Move>> = vec![vec![]; arrays.len()];
        for m in &plan.moves {
            moves[m.source].push(m);
        }
        let changed = plan.outputs.iter().map(|_| AtomicU64::new(0)).collect();
        Mover {
            plan,
            source,
            arrays,
            deltas,
            settings,
            moves,
            tally: Tally { changed, rounded: AtomicU64::new(0) },
            done: AtomicU64::new(0),
            stop,
        }
    }

    /// The chunks that feed the outputs for which `wanted` holds, largest first.
    pub fn units(&self, wanted: impl Fn(usize) -> bool) -> Vec<Unit> {
        let mut units = vec![];
        for (source, moves) in self.moves.iter().enumerate() {
            if !moves.iter().any(|m| wanted(m.output)) {
                continue;
            }
            let info = self.info(source);
            let chunks: u64 = grid(info).iter().product();
            let bytes = info.chunk_shape.iter().product::<u64>() * info.dtype.size() as u64;
            units.extend((0..chunks).map(|chunk| Unit { source, chunk, bytes }));
        }
        units.sort_by_key(|u| (std::cmp::Reverse(u.bytes), u.source, u.chunk));
        units
    }

    /// Runs `units` over all threads. The first error ends the others.
    pub fn run(&self, units: &[Unit], sink: &dyn Sink) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            let mut scratch = Scratch::default();
            while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.unit(*unit, sink, &mut scratch) {
                    next.store(units.len(), Ordering::Relaxed);
                    let mut slot = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    slot.get_or_insert(error);
                    return;
                }
            }
        };
        match self.settings.threads.min(units.len()) {
            0 => {}
            1 => work(),
            threads => std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(work);
                }
            }),
        }
        failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn info(&self, source: usize) -> &ArrayInfo {
        &self.source.arrays()[self.arrays[source]]
    }

    /// Decodes one chunk, slab by slab, and moves what the plan takes of it.
    fn unit(&self, unit: Unit, sink: &dyn Sink, scratch: &mut Scratch) -> Result<()> {
        let info = self.info(unit.source);
        let read_error = |error| Error::Read { name: info.name.clone(), error };
        let size = info.dtype.size() as u64;
        let rank = info.shape.len();
        let moves = &self.moves[unit.source];
        // Axes in the order in which they are stored, slowest first.
        let stored: Vec<usize> = match info.order {
            Order::C => (0..rank).collect(),
            Order::F => (0..rank).rev().collect(),
        };
        let (origin, valid) = place(info, unit.chunk);
        let chunk: Vec<u64> = stored.iter().map(|a| info.chunk_shape[*a]).collect();
        let slab_bytes = if moves.iter().all(|m| run_len(m) * size >= LONG_RUN_BYTES) {
            SMALL_SLAB_BYTES
        } else {
            self.settings.slab_bytes
        };
        // A slab is some rows along one stored axis, one index of those before it, all of those after it.
        let mut axis = 0;
        let mut row: u64 = chunk.iter().skip(1).product::<u64>() * size;
        while axis + 1 < rank && row > slab_bytes {
            axis += 1;
            row /= chunk[axis];
        }
        let (outer, height) = match rank {
            0 => (1, 1),
            _ => (chunk[..axis].iter().product::<u64>(), chunk[axis]),
        };
        let rows = (slab_bytes / row.max(1)).clamp(1, height);
        let mut stream = self.source.chunk(self.arrays[unit.source], unit.chunk)?;
        let stride = stored_strides(&stored, &chunk);
        for o in 0..outer {
            let mut first = 0;
            while first < height {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::Stopped);
                }
                let n = rows.min(height - first);
                let bytes = (n * row) as usize;
                scratch.slab.resize(bytes, 0);
                match &mut stream {
                    Chunk::Stream(stream) => stream.read_exact(&mut scratch.slab).map_err(read_error)?,
                    Chunk::Fill(element) => {
                        scratch.slab.chunks_exact_mut(element.len().max(1)).for_each(|e| e.copy_from_slice(element));
                    }
                }
                self.done.fetch_add(bytes as u64, Ordering::Relaxed);
                let (mut lo, mut len) = (origin.clone(), valid.clone());
                let mut rest = o;
                let mut inside = true;
                for k in (0..axis.min(rank)).rev() {
                    let (index, a) = (rest % chunk[k], stored[k]);
                    rest /= chunk[k];
                    inside &= index < valid[a];
                    (lo[a], len[a]) = (origin[a] + index, 1);
                }
                if rank > 0 {
                    let a = stored[axis];
                    inside &= first < valid[a];
                    (lo[a], len[a]) = (origin[a] + first, n.min(valid[a].saturating_sub(first)));
                }
                if inside {
                    let block = Block { bytes: &scratch.slab, lo, len, stride: stride.clone() };
                    let parts = (&mut scratch.merged, &mut scratch.run, &mut scratch.cast);
                    self.slab(unit.source, info, &block, moves, sink, parts)?;
                }
                first += n;
            }
        }
        if let Chunk::Stream(stream) = &mut stream {
            let mut more = [0];
            if stream.read(&mut more).map_err(read_error)? != 0 {
                let error = std::io::Error::other("more bytes than the chunk's shape says");
                return Err(read_error(error));
            }
        }
        Ok(())
    }

    fn slab(
        &self,
        source: usize,
        info: &ArrayInfo,
        block: &Block<'_>,
        moves: &[&Move],
        sink: &dyn Sink,
        (merged, run, casted): (&mut Vec<u8>, &mut Vec<u8>, &mut Vec<u8>),
    ) -> Result<()> {
        let (mut dtype, mut bytes) = (info.dtype, block.bytes);
        if let (Some(delta), Some(m)) = (self.deltas.and_then(|d| d.of(source)), moves.first()) {
            // The sum is rounded once, to the output's own type.
            dtype = self.plan.outputs[m.output].tensor.dtype;
            let rounded = delta.add(block, info.dtype, dtype, merged)?;
            self.tally.rounded.fetch_add(rounded, Ordering::Relaxed);
            bytes = merged;
        }
        for m in moves {
            let output = &self.plan.outputs[m.output].tensor;
            let out_size = output.dtype.size() as u64;
            for region in regions(block, m) {
                gather(bytes, dtype.size(), &region, run, |at, bytes| {
                    if dtype == output.dtype {
                        return sink.write(m.output, at * out_size, bytes);
                    }
                    let changed = cast(dtype, output.dtype, bytes, casted).ok_or_else(|| Error::Read {
                        name: info.name.clone(),
                        error: std::io::Error::other(format!("{} cannot become {}", dtype.name(), output.dtype.name())),
                    })?;
                    self.tally.changed[m.output].fetch_add(changed, Ordering::Relaxed);
                    sink.write(m.output, at * out_size, casted)
                })?;
            }
        }
        Ok(())
    }
}

/// Chunks along each axis.
pub(crate) fn grid(info: &ArrayInfo) -> Vec<u64> {
    info.shape.iter().zip(&info.chunk_shape).map(|(n, c)| n.div_ceil((*c).max(1))).collect()
}

/// First index and valid indices of a chunk, along each axis.
fn place(info: &ArrayInfo, chunk: u64) -> (Vec<u64>, Vec<u64>) {
    let grid = grid(info);
    let mut origin = vec![0; grid.len()];
    let mut rest = chunk;
    for axis in (0..grid.len()).rev() {
        origin[axis] = rest % grid[axis].max(1) * info.chunk_shape[axis];
        rest /= grid[axis].max(1);
    }
    let valid = (0..grid.len()).map(|a| info.chunk_shape[a].min(info.shape[a] - origin[a])).collect();
    (origin, valid)
}

/// Elements between neighbours along each axis of the array, in a chunk that is stored in this order.
fn stored_strides(stored: &[usize], chunk: &[u64]) -> Vec<u64> {
    let mut stride = vec![0; stored.len()];
    let mut step = 1;
    for (axis, len) in stored.iter().zip(chunk).rev() {
        stride[*axis] = step;
        step *= len;
    }
    stride
}

/// Elements at the end of the source's axes that lie side by side in the output as well.
fn run_len(m: &Move) -> u64 {
    let mut run = 1;
    for axis in m.axes.iter().rev().flat_map(|group| group.iter().rev()).filter(|a| a.len > 1) {
        if axis.at != At::All(run) {
            break;
        }
        run *= axis.len;
    }
    // A move that is one run is as good as a long one.
    if run == m.len() { u64::MAX >> 8 } else { run }
}
