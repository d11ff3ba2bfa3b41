//! Matrix products over packed operands: how activations and weights lie in memory, and the loops around the engines.
//!
//! Letters: m rows of activations, k inner, n columns of weights. k is padded with zeros to 32, n to 32.
//!
//! - Weights: panels of 16 columns, one after the other; a panel is ⌈k/32⌉ tiles of 32 × 16. A tile of bf16 holds
//!   `[16 pairs of k][16 columns][2]`, which is what AMX and `vdpbf16ps` read; a tile of f32 holds `[32][16]`.
//! - Activations: panels of 16 rows; a panel is ⌈k/32⌉ tiles `[16 rows][32]`, rows padded with zeros to 32.
//!
//! Invariant: a sum runs over k in one order that does not depend on m, n or the number of threads, in f32, and is rounded
//! once, at the end. What the padding multiplies is thrown away or zero on both sides, so an infinity in a row or column
//! stays in it.
#![allow(unsafe_code)]

use std::cell::RefCell;

use rayon::prelude::*;

use super::cpu::vectorised;
use super::number::{Real, bf16_bits};

/// Columns of a panel of weights, rows of a panel of activations.
pub(crate) const PANEL: usize = 16;
/// Inner length of a tile.
pub(crate) const DEEP: usize = 32;
/// Elements of a tile.
pub(crate) const TILE: usize = PANEL * DEEP;
/// Columns that an engine computes at once: two panels.
pub(crate) const WIDE: usize = 2 * PANEL;
/// Tiles of k between two visits of the sums: a pair of bf16 panels of that depth is 64 KiB.
const DEPTH_BLOCK: usize = 32;
/// Rows of one task: with 32 tiles of k, 512 KiB of bf16.
const ROW_BLOCK: usize = 256;
/// Most column pairs of one task.
const STRIP: usize = 8;

/// `x` rounded up to a multiple of `to`.
pub(crate) const fn padded(x: usize, to: usize) -> usize {
    x.div_ceil(to) * to
}

/// An element of packed activations.
pub(crate) trait Lane: Copy + Default + Send + Sync + 'static {
    /// From f32, rounded to bf16 where the lane is bf16 or `round` asks for it.
    fn put(x: f32, round: bool) -> Self;
}

impl Lane for u16 {
    #[inline(always)]
    fn put(x: f32, _: bool) -> u16 {
        bf16_bits(x)
    }
}

impl Lane for f32 {
    #[inline(always)]
    fn put(x: f32, round: bool) -> f32 {
        if round { f32::from_bits(u32::from(bf16_bits(x)) << 16) } else { x }
    }
}

/// The innermost loop of one instruction set.
pub(crate) trait Engine {
    type A: Lane;
    type B: Copy + Send + Sync + 'static;

    /// Prepares this thread.
    ///
    /// # Safety
    /// The CPU has what this engine is made for.
    unsafe fn start() -> Self;

    /// `c[rows][32] (+)= a[rows][32 × tiles] · b[32 × tiles][32]`; `c` has `stride` elements a row.
    ///
    /// # Safety
    /// `a` points into packed activations, `panel` elements a panel of 16 rows, and `b` into two panels of weights, each
    /// readable for `tiles` tiles; rows and `c` reach up to the next multiple of 32 of `rows`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn rows(
        &self,
        a: *const Self::A,
        panel: usize,
        b: [*const Self::B; 2],
        tiles: usize,
        c: *mut f32,
        stride: usize,
        rows: usize,
        accumulate: bool,
    );
}

vectorised! {
    /// Packs one row as row `r` of a panel.
    pub(crate) fn pack_row<T: Real, A: Lane>(row: &[T], r: usize, round: bool, panel: &mut [A]) {
        for (tile, row) in panel.chunks_exact_mut(TILE).zip(row.chunks(DEEP)) {
            for (to, from) in tile[r * DEEP..][..DEEP].iter_mut().zip(row) {
                *to = A::put(from.wide(), round);
            }
        }
    }
}

/// Packs the rows `x[m][k]`, rounded to bf16, on all threads.
pub(crate) fn pack_rows<T: Real, A: Lane>(x: &[T], m: usize, k: usize) -> Vec<A> {
    let size = padded(k, DEEP) * PANEL;
    let mut packed = vec![A::default(); padded(m, WIDE) / PANEL * size];
    let one = |(panel, x): (&mut [A], &[T])| {
        for (r, row) in x.chunks(k).enumerate() {
            pack_row(row, r, true, panel);
        }
    };
    if m <= PANEL {
        one((&mut packed[..size], &x[..m * k]));
    } else {
        packed.par_chunks_mut(size).zip(x.par_chunks(PANEL * k)).for_each(one);
    }
    packed
}

/// `c[rows][32 × pairs] = a · b` on this thread, for whole panels: `a` begins at a panel, `b` at a pair of panels.
///
/// # Panics
/// Where a slice is too short for the shape.
pub(crate) fn product<E: Engine>(
    engine: &E,
    a: &[E::A],
    b: &[E::B],
    tiles: usize,
    rows: usize,
    pairs: usize,
    c: &mut [f32],
) {
    let size = tiles * TILE;
    let stride = pairs * WIDE;
    let padded_rows = padded(rows, WIDE);
    assert!(a.len() >= padded_rows / PANEL * size && b.len() >= 2 * pairs * size && c.len() >= padded_rows * stride);
    for from in (0..tiles).step_by(DEPTH_BLOCK) {
        let deep = DEPTH_BLOCK.min(tiles - from);
        for pair in 0..pairs {
            // SAFETY: panel `2 pair + 1` ends within `b`, the rows within `a` and `c`, as asserted above.
            unsafe {
                let b0 = b.as_ptr().add(2 * pair * size + from * TILE);
                let a = a.as_ptr().add(from * TILE);
                let c = c.as_mut_ptr().add(pair * WIDE);
                engine.rows(a, size, [b0, b0.add(size)], deep, c, stride, rows, from > 0);
            }
        }
    }
}

vectorised! {
    /// Rounds one row of sums.
    pub(crate) fn round_row<T: Real>(sums: &[f32], out: &mut [T]) {
        for (to, from) in out.iter_mut().zip(sums) {
            *to = T::narrow(*from);
        }
    }
}

thread_local! {
    /// The sums of the task in hand.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `with` over `len` scratch elements of this thread.
pub(crate) fn scratch<R>(len: usize, with: impl FnOnce(&mut [f32]) -> R) -> R {
    SUMS.with_borrow_mut(|sums| {
        if sums.len() < len {
            sums.resize(len, 0.0);
        }
        with(&mut sums[..len])
    })
}

/// Where the tasks write, each its own rows and columns.
struct Shared<T>(*mut T);
// SAFETY: the tasks of `multiply` write disjoint elements.
unsafe impl<T: Send> Sync for Shared<T> {}

/// `out[m][n] = a · b` on all threads, both operands packed, rounded once to `T`.
///
/// # Safety
/// The CPU has what the engine is made for.
///
/// # Panics
/// Where a slice is too short for the shape.
pub(crate) unsafe fn multiply<E: Engine, T: Real>(a: &[E::A], b: &[E::B], [m, k, n]: [usize; 3], out: &mut [T]) {
    let tiles = padded(k, DEEP) / DEEP;
    let size = tiles * TILE;
    let pairs = padded(n, WIDE) / WIDE;
    assert!(a.len() >= padded(m, WIDE) / PANEL * size && b.len() >= 2 * pairs * size && out.len() >= m * n);
    let row_blocks = m.div_ceil(ROW_BLOCK).max(1);
    let block = padded(m.div_ceil(row_blocks), WIDE);
    let strip = (pairs * row_blocks / (4 * rayon::current_num_threads())).clamp(1, STRIP);
    let strips = pairs.div_ceil(strip);
    let shared = Shared(out.as_mut_ptr());
    (0..strips * row_blocks).into_par_iter().for_each(|task| {
        let shared = &shared;
        let (row, pair) = (task % row_blocks * block, task / row_blocks * strip);
        if row >= m {
            return;
        }
        let (rows, pairs) = (block.min(m - row), strip.min(pairs - pair));
        scratch(padded(rows, WIDE) * pairs * WIDE, |sums| {
            {
                // SAFETY: the caller vouches for the CPU.
                let engine = unsafe { E::start() };
                product(&engine, &a[row / PANEL * size..], &b[2 * pair * size..], tiles, rows, pairs, sums);
            }
            let columns = (pairs * WIDE).min(n - pair * WIDE);
            for (i, sums) in sums.chunks(pairs * WIDE).take(rows).enumerate() {
                // SAFETY: row and columns are within `out`, and no other task has this row and these columns.
                let out = unsafe { std::slice::from_raw_parts_mut(shared.0.add((row + i) * n + pair * WIDE), columns) };
                round_row(sums, out);
            }
        });
    });
}
