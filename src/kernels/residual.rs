//! What joins a layer's result to its stream: the sum.
//!
//! In bf16 it is wanted twice, rounded for the stream and unrounded for the norm that reads it next: XLA drops the
//! rounding for a reader that computes in f32.
//!
//! Invariant: one rounding, or none; several threads do it.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::cpu::vectorised;
use super::norm::constant;
use super::number::Real;
use super::ops::{Native, fits};

/// Elements that one task takes.
const CHUNK: usize = 1 << 15;

/// x + y of one shape and dtype, rounded to `out`: f32 or their own. Gradients of both.
pub fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>, out: DType) -> Tensor<D> {
    let alike = x.dims() == y.dims() && x.dtype() == y.dtype();
    if !alike || ![&x, &y].into_iter().all(|x| fits(x) && !x.is_tracked()) {
        return if out == x.dtype() { x + y } else { x.cast(out) + y.cast(out) };
    }
    let narrow = out == DType::BF16;
    constant(x, |x| <Dispatch as Native>::sum(x.into_dispatch(), y.inner().into_dispatch(), narrow))
}

vectorised! {
    fn sum_chunk<T: Real, O: Real>(x: &[T], y: &[T], out: &mut [O]) {
        for ((to, x), y) in out.iter_mut().zip(x).zip(y) {
            *to = O::narrow(x.wide() + y.wide());
        }
    }
}

pub(crate) fn sum_slices<T: Real, O: Real>(x: &[T], y: &[T], out: &mut [O]) {
    let inputs = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (x, y))| sum_chunk(x, y, out));
}
