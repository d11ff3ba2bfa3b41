//! Grouped-query attention: the queries that share a key head are the rows of one product.
//!
//! `softmax(where(mask, q kᵀ, −2.4e38)) v`: products are summed in f32, logits and softmax are f32, the probabilities are
//! rounded to the dtype of v. The finite fill makes a row without any key the mean over all keys, as in the reference.
//!
//! Letters: B batch, T queries, S keys, N heads, K key heads, H size of a head, G = N / K.
//!
//! Invariant: on the CPU no more than [`ROWS`] rows of logits exist at a time in one thread.
#![allow(unsafe_code)]

use burn::backend::Dispatch;
use burn::tensor::{Bool, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::cpu::{Level, vectorised};
use super::engine::{self, Plain, Weight};
use super::gemm::{self, DEEP, Engine, PANEL, TILE, WIDE, pack_row, padded};
use super::norm::constant;
use super::number::{Real, exp};
use super::ops::{Native, fits};
use super::plain::{self, MASKED};

/// Rows of logits of one task.
const ROWS: usize = 64;
const LANES: usize = 16;

/// Attention of queries that are already scaled. Gradients of q, k and v.
///
/// # Shapes
/// q `[b, t, n, h]`, f32 or the dtype of k; k and v `[b, s, k, h]` of one dtype, n a multiple of k; mask `[b, t, s]`, true:
/// attend. The result is `[b, t, n, h]` in the dtype of v.
///
/// # Panics
/// Where the shapes do not go together.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<Tensor<3, Bool>>) -> Tensor<4> {
    attend(q, k, v, mask, false)
}

/// Attention as SigLIP has it: every head has its own keys, nothing is masked, and logits and softmax are in the dtype, as
/// XLA computes them.
///
/// # Shapes
/// q, k, v `[b, t, n, h]` of one dtype.
pub fn attention_in_dtype(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    attend(q, k, v, None, true)
}

fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<Tensor<3, Bool>>, in_dtype: bool) -> Tensor<4> {
    let ([b, t, n, h], [_, s, heads, _]) = (q.dims(), k.dims());
    assert!(heads > 0 && n % heads == 0, "attention: {n} heads do not share {heads} key heads evenly");
    assert_eq!(k.dims(), [b, s, heads, h], "attention: k beside q {:?}", q.dims());
    assert_eq!(v.dims(), k.dims(), "attention: v beside k");
    assert_eq!(v.dtype(), k.dtype(), "attention: v and k differ in dtype");
    if let Some(mask) = &mask {
        assert_eq!(mask.dims(), [b, t, s], "attention: the mask beside q {:?} and k {:?}", q.dims(), k.dims());
    }
    if s == 0 || ![&q, &k, &v].into_iter().all(|x| fits(x) && !x.is_tracked()) {
        return plain::attention(q, k, v, mask, in_dtype);
    }
    // An empty mask stands for none.
    let mask = mask.unwrap_or_else(|| Tensor::<3, Bool>::empty([0, 0, 0], &k.device()));
    let (k, v, mask) = (k.inner().into_dispatch(), v.inner().into_dispatch(), mask.inner().into_dispatch());
    constant(q, |q| <Dispatch as Native>::attention(q.into_dispatch(), k, v, mask, in_dtype))
}

/// The letters of one call.
#[derive(Clone, Copy)]
pub(crate) struct Dims {
    b: usize,
    t: usize,
    s: usize,
    n: usize,
    k: usize,
    h: usize,
}

impl Dims {
    pub(crate) fn of([b, t, n, h]: [usize; 4], [_, s, k, _]: [usize; 4]) -> Dims {
        Dims { b, t, s, n, k, h }
    }
}

/// One call on the CPU.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) level: Level,
    pub(crate) dims: Dims,
    /// `[b, t, s]`, 0 = hidden; empty: none is.
    pub(crate) mask: &'a [u8],
    /// Whether the logits are rounded to the dtype of k.
    pub(crate) narrow: bool,
}

impl Call<'_> {
    /// Keys and values in f32.
    pub(crate) fn wide<Q: Real>(&self, q: &[Q], k: &[f32], v: &[f32], out: &mut [f32]) {
        // SAFETY: whoever names a level has seen it on this machine.
        unsafe {
            match self.level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Bf16 | Level::Amx => {
                    self.run::<engine::Avx512<f32>, engine::Avx512<f32>, _, _, _>(q, k, v, |x| x, out);
                }
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => self.run::<engine::Avx2<f32>, engine::Avx2<f32>, _, _, _>(q, k, v, |x| x, out),
                _ => self.run::<Plain<f32>, Plain<f32>, _, _, _>(q, k, v, |x| x, out),
            }
        }
    }

    /// Keys and values in bf16; queries of f32 are not rounded.
    pub(crate) fn narrow<Q: Real>(&self, q: &[Q], k: &[bf16], v: &[bf16], out: &mut [bf16]) {
        let exact = size_of::<Q>() > size_of::<bf16>();
        let bits = bf16::to_bits;
        // SAFETY: whoever names a level has seen it on this machine.
        unsafe {
            match self.level {
                #[cfg(target_arch = "x86_64")]
                Level::Amx if exact => {
                    self.run::<engine::Avx512<u16>, engine::AmxBf16, _, _, _>(q, k, v, bits, out);
                }
                #[cfg(target_arch = "x86_64")]
                Level::Amx => self.run::<engine::AmxBf16, engine::AmxBf16, _, _, _>(q, k, v, bits, out),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Bf16 if exact => {
                    self.run::<engine::Avx512<u16>, engine::Avx512Bf16, _, _, _>(q, k, v, bits, out);
                }
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Bf16 => {
                    self.run::<engine::Avx512Bf16, engine::Avx512Bf16, _, _, _>(q, k, v, bits, out);
                }
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => {
                    self.run::<engine::Avx512<u16>, engine::Avx512<u16>, _, _, _>(q, k, v, bits, out);
                }
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => self.run::<engine::Avx2<u16>, engine::Avx2<u16>, _, _, _>(q, k, v, bits, out),
                _ => self.run::<Plain<u16>, Plain<u16>, _, _, _>(q, k, v, bits, out),
            }
        }
    }

    /// Packs keys and values once, then takes blocks of rows: logits by `E1`, softmax, values by `E2`.
    ///
    /// # Safety
    /// The CPU has what the engines are made for.
    unsafe fn run<E1, E2, Q, T, W>(&self, q: &[Q], k: &[T], v: &[T], bits: impl Fn(T) -> W + Sync, out: &mut [T])
    where
        E1: Engine<B = W>,
        E2: Engine<B = W>,
        Q: Real,
        T: Real,
        W: Weight + Default,
    {
        let Dims { b, t, s, n, k: heads, h } = self.dims;
        let group = n / heads;
        let (key_size, value_size) = (padded(h, DEEP) * padded(s, WIDE), padded(s, DEEP) * padded(h, WIDE));
        let pack = |source: &[T], size: usize, [inner, columns]: [usize; 2], [by, across]: [usize; 2]| {
            let mut packed = vec![W::default(); b * heads * size];
            let panel_size = padded(inner, DEEP) * PANEL;
            packed.par_chunks_mut(panel_size).enumerate().for_each(|(i, panel)| {
                let (head, first) = (i / (size / panel_size), i % (size / panel_size) * PANEL);
                let source = &source[head / heads * s * heads * h + head % heads * h..];
                let columns = PANEL.min(columns.saturating_sub(first));
                for (tile, from) in panel.chunks_exact_mut(TILE).zip((0..).step_by(DEEP)) {
                    for k in from..inner.min(from + DEEP) {
                        for c in 0..columns {
                            tile[W::slot(k - from, c)] = bits(source[k * by + (first + c) * across]);
                        }
                    }
                }
            });
            packed
        };
        let keys = pack(k, key_size, [h, s], [1, heads * h]);
        let values = pack(v, value_size, [s, h], [heads * h, 1]);

        let rows = t * group;
        let blocks = rows.div_ceil(ROWS);
        let shared = Shared(out.as_mut_ptr());
        (0..b * heads * blocks).into_par_iter().for_each(|task| {
            let shared = &shared;
            let (head, first) = (task / blocks, task % blocks * ROWS);
            let (batch, head_of_keys) = (head / heads, head % heads);
            let count = ROWS.min(rows - first);
            // Row i of the block is query (first + i) / G of head (first + i) % G of this key head.
            let place = |i: usize| {
                let row = first + i;
                ((batch * t + row / group) * n + head_of_keys * group + row % group) * h
            };
            let (inner, wide, deep) = (padded(h, DEEP), padded(s, WIDE), padded(h, WIDE));
            let block = padded(count, WIDE);
            let mut a = vec![E1::A::default(); block * inner];
            for i in 0..count {
                pack_row(&q[place(i)..][..h], i % PANEL, false, &mut a[i / PANEL * PANEL * inner..]);
            }
            gemm::scratch(block * (wide + deep), |sums| {
                let (logits, sums) = sums.split_at_mut(block * wide);
                {
                    // SAFETY: the caller vouches for the CPU.
                    let engine = unsafe { E1::start() };
                    gemm::product(&engine, &a, &keys[head * key_size..], inner / DEEP, count, wide / WIDE, logits);
                }
                let inner = padded(s, DEEP);
                let mut a = vec![E2::A::default(); block * inner];
                for (i, row) in logits.chunks_mut(wide).take(count).enumerate() {
                    let row = &mut row[..s];
                    if self.narrow {
                        soften_step_by_step::<T>(row);
                        pack_row(row, i % PANEL, size_of::<T>() == 2, &mut a[i / PANEL * PANEL * inner..]);
                        continue;
                    }
                    if !self.mask.is_empty() {
                        hide(&self.mask[(batch * t + (first + i) / group) * s..][..s], row);
                    }
                    soften(row);
                    pack_row(row, i % PANEL, size_of::<T>() == 2, &mut a[i / PANEL * PANEL * inner..]);
                }
                {
                    // SAFETY: the caller vouches for the CPU.
                    let engine = unsafe { E2::start() };
                    gemm::product(&engine, &a, &values[head * value_size..], inner / DEEP, count, deep / WIDE, sums);
                }
                for (i, row) in sums.chunks(deep).take(count).enumerate() {
                    // SAFETY: the row lies within `out`, which has the shape of q, and is this task's alone.
                    let out = unsafe { std::slice::from_raw_parts_mut(shared.0.add(place(i)), h) };
                    gemm::round_row(&row[..h], out);
                }
            });
        });
    }
}

/// Where the tasks write, each its own rows.
struct Shared<T>(*mut T);
// SAFETY: the tasks of `run` write disjoint rows.
unsafe impl<T: Send> Sync for Shared<T> {}

vectorised! {
    /// Softmax of a row of logits as XLA has it in `T`: logits, the difference to the largest, the exponential and the sum
    /// are rounded, but the sum is taken over exponentials that are not. The quotient is rounded by who packs it.
    fn soften_step_by_step<T: Real>(row: &mut [f32]) {
        let mut most = f32::NEG_INFINITY;
        for x in row.iter_mut() {
            *x = T::narrow(*x).wide();
            most = if *x > most { *x } else { most };
        }
        let mut total = [0f32; LANES];
        for x in row.chunks_mut(LANES) {
            for (total, x) in total.iter_mut().zip(x) {
                let e = exp(T::narrow(*x - most).wide());
                *total += e;
                *x = T::narrow(e).wide();
            }
        }
        let total = T::narrow(total.into_iter().sum()).wide();
        for x in row {
            *x /= total;
        }
    }
}
vectorised! {
    /// Sets the hidden logits of a row.
    fn hide<>(mask: &[u8], row: &mut [f32]) {
        for (x, seen) in row.iter_mut().zip(mask) {
            *x = if *seen == 0 { MASKED } else { *x };
        }
    }
}
vectorised! {
    /// Softmax of a row, in place.
    fn soften<>(row: &mut [f32]) {
        let mut most = [f32::NEG_INFINITY; LANES];
        for x in row.chunks(LANES) {
            for (most, x) in most.iter_mut().zip(x) {
                *most = if *x > *most { *x } else { *most };
            }
        }
        let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let mut total = [0f32; LANES];
        for x in row.chunks_mut(LANES) {
            for (total, x) in total.iter_mut().zip(x) {
                *x = exp(*x - most);
                *total += *x;
            }
        }
        let total: f32 = total.into_iter().sum();
        for x in row {
            *x /= total;
        }
    }
}
