//! What joins a block's result to its stream: the sum, and Gemma's gated sum `x + round(y × gate)`.
//!
//! Invariant: as many roundings as Burn's own operations make; several threads do it.

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::cpu::vectorised;
use super::norm::{check_row, constant, each_row};
use super::number::Real;
use super::ops::{Native, fits};

/// Elements that one task takes.
const CHUNK: usize = 1 << 15;

/// x + y of one shape and dtype. Gradients of both.
pub fn add<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<D> {
    if x.dims() != y.dims() || x.dtype() != y.dtype() || ![&x, &y].into_iter().all(|x| fits(x) && !x.is_tracked()) {
        return x + y;
    }
    constant(x, |x| <Dispatch as Native>::sum(x.into_dispatch(), y.inner().into_dispatch()))
}

/// `x + round(y × gate)`. Gradients of all three.
///
/// # Shapes
/// x, y `[b, t, w]`, gate `[b, 1, w]` or `[1, 1, w]`, all of one dtype.
pub fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Tensor<3>) -> Tensor<3> {
    assert_eq!(x.dims(), y.dims(), "add_gated: x and y differ in shape");
    check_row("add_gated", x.dims(), gate.dims());
    let alike = x.dtype() == y.dtype() && x.dtype() == gate.dtype();
    if !alike || ![&x, &y, &gate].into_iter().all(|x| fits(x) && !x.is_tracked()) {
        return x + y * gate;
    }
    let (y, gate) = (y.inner().into_dispatch(), gate.inner().into_dispatch());
    constant(x, |x| <Dispatch as Native>::add_gated(x.into_dispatch(), y, gate))
}

vectorised! {
    fn sum_chunk<T: Real>(x: &[T], y: &[T], out: &mut [T]) {
        for ((to, x), y) in out.iter_mut().zip(x).zip(y) {
            *to = T::narrow(x.wide() + y.wide());
        }
    }
}
vectorised! {
    fn gated_row<T: Real>(x: &[T], y: &[T], gate: &[f32], out: &mut [T]) {
        for (((to, x), y), gate) in out.iter_mut().zip(x).zip(y).zip(gate) {
            *to = T::narrow(x.wide() + T::narrow(y.wide() * gate).wide());
        }
    }
}

pub(crate) fn sum_slices<T: Real>(x: &[T], y: &[T], out: &mut [T]) {
    let inputs = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (x, y))| sum_chunk(x, y, out));
}

/// Rows of `[batch, rows, w]` with a gate `[batch or 1, w]`.
pub(crate) fn gated_slices<T: Real>(x: &[T], y: &[T], gate: &[f32], [batch, rows]: [usize; 2], out: &mut [T]) {
    let width = (x.len() / (batch * rows).max(1)).max(1);
    each_row(x, width, out, |row, x, out| {
        let own = if gate.len() > width { row / rows * width } else { 0 };
        gated_row(x, &y[row * width..][..width], &gate[own..][..width], out);
    });
}
