//! Norms over the last axis: Gemma's RMS norm, its form modulated by a condition, and SigLIP's layer norm.
//!
//! - `rms_norm`: `x / √(mean(x²) + ε) · (1 + scale)`
//! - `rms_norm_modulated`: `x / √(mean(x²) + ε) · (1 + scale) + shift`
//! - `layer_norm`: `(x − E[x]) / √(max(E[x²] − E[x]², 0) + ε) · gamma + beta`
//!
//! ε is 1e-6 everywhere. `1 + scale` is not rounded, even where the scale is bf16: XLA's compiled programs do not.
//!
//! Invariant: statistics and interior are f32; each result is rounded once, to the dtype that is asked for.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::cpu::vectorised;
use super::number::Real;
use super::ops::{Native, fits};
use super::plain;

/// ε of all three.
pub(crate) const EPSILON: f32 = 1e-6;
/// Elements that one task takes, about.
const CHUNK: usize = 1 << 14;
/// Partial sums side by side.
const LANES: usize = 16;

/// Gemma's RMS norm over the last axis, rounded to `out`; `scale [w]`. Gradients of both.
pub fn rms_norm<const D: usize>(x: Tensor<D>, scale: Tensor<1>, out: DType) -> Tensor<D> {
    assert_eq!(x.dims()[D - 1], scale.dims()[0], "rms_norm: x is {:?}, scale {:?}", x.dims(), scale.dims());
    if !fits(&x) || !fits(&scale) || x.is_tracked() || scale.is_tracked() {
        return plain::rms_norm(x, scale, out);
    }
    constant(x, |x| {
        <Dispatch as Native>::rms_norm(x.into_dispatch(), scale.inner().into_dispatch(), out == DType::BF16)
    })
}

/// The RMS norm scaled and shifted by a condition, rounded to `out`. Gradients of all three.
///
/// # Shapes
/// x `[b, t, w]`; scale and shift `[b, 1, w]` or `[1, 1, w]`.
pub fn rms_norm_modulated(x: Tensor<3>, scale: Tensor<3>, shift: Tensor<3>, out: DType) -> Tensor<3> {
    for other in [&scale, &shift] {
        check_row("rms_norm_modulated", x.dims(), other.dims());
    }
    assert_eq!(scale.dims(), shift.dims(), "rms_norm_modulated: scale and shift differ in shape");
    if ![&x, &scale, &shift].into_iter().all(|x| fits(x) && !x.is_tracked()) {
        return plain::rms_norm_modulated(x, scale, shift, out);
    }
    let (scale, shift) = (scale.inner().into_dispatch(), shift.inner().into_dispatch());
    constant(x, |x| <Dispatch as Native>::rms_norm_modulated(x.into_dispatch(), scale, shift, out == DType::BF16))
}

/// Layer norm over the last axis, rounded to `out`; gamma and beta `[w]`. Gradients of all three.
pub fn layer_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, beta: Tensor<1>, out: DType) -> Tensor<D> {
    for other in [&gamma, &beta] {
        assert_eq!(x.dims()[D - 1], other.dims()[0], "layer_norm: x is {:?}, its weights {:?}", x.dims(), other.dims());
    }
    let constants = [&gamma, &beta].into_iter().all(|x| fits(x) && !x.is_tracked());
    if !fits(&x) || x.is_tracked() || !constants {
        return plain::layer_norm(x, gamma, beta, out);
    }
    let (gamma, beta) = (gamma.inner().into_dispatch(), beta.inner().into_dispatch());
    constant(x, |x| <Dispatch as Native>::layer_norm(x.into_dispatch(), gamma, beta, out == DType::BF16))
}

/// Runs an operation that has no gradient on a tensor that needs none, and leaves the result on the tensor's device.
pub(crate) fn constant<const D: usize>(
    x: Tensor<D>,
    run: impl FnOnce(Tensor<D>) -> burn::backend::DispatchTensor,
) -> Tensor<D> {
    let graph = x.device().is_autodiff();
    let y = Tensor::from_dispatch(run(x.inner()));
    if graph { y.autodiff() } else { y }
}

/// That `row [b or 1, 1, w]` fits `x [b, t, w]`.
pub(crate) fn check_row(name: &str, x: [usize; 3], row: [usize; 3]) {
    let fits = (row[0] == x[0] || row[0] == 1) && row[1] == 1 && row[2] == x[2];
    assert!(fits, "{name}: {row:?} beside x {x:?}, not [{} or 1, 1, {}]", x[0], x[2]);
}

/// Σ f(x), in 16 partial sums that are added pairwise.
#[inline(always)]
fn sum<T: Real>(x: &[T], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = x.chunks_exact(LANES);
    let rest = whole.remainder();
    for x in whole {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += f(x.wide());
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(x.wide());
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

vectorised! {
    fn rms_row<T: Real, O: Real>(x: &[T], scale: &[f32], out: &mut [O]) {
        let factor = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + EPSILON).sqrt();
        for ((to, x), scale) in out.iter_mut().zip(x).zip(scale) {
            *to = O::narrow(x.wide() * factor * scale);
        }
    }
}
vectorised! {
    fn rms_shifted_row<T: Real, O: Real>(x: &[T], scale: &[f32], shift: &[f32], out: &mut [O]) {
        let factor = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + EPSILON).sqrt();
        for (((to, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
            *to = O::narrow(x.wide() * factor * scale + shift);
        }
    }
}
vectorised! {
    fn layer_row<T: Real, O: Real>(x: &[T], gamma: &[f32], beta: &[f32], out: &mut [O]) {
        let count = x.len() as f32;
        let mean = sum(x, |x| x) / count;
        let spread = sum(x, |x| x * x) / count - mean * mean;
        // Written so that NaN goes through.
        let spread = if spread < 0.0 { 0.0 } else { spread };
        let factor = 1.0 / (spread + EPSILON).sqrt();
        for (((to, x), gamma), beta) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
            *to = O::narrow((x.wide() - mean) * (factor * gamma) + beta);
        }
    }
}

/// Calls `run(row number, row of x, row of out)` for rows of `width` elements, on all threads.
pub(crate) fn each_row<T: Real, O: Real>(
    x: &[T],
    width: usize,
    out: &mut [O],
    run: impl Fn(usize, &[T], &mut [O]) + Send + Sync,
) {
    if x.is_empty() {
        return;
    }
    let rows = CHUNK.div_ceil(width);
    out.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).enumerate().for_each(|(task, (out, x))| {
        for (i, (out, x)) in out.chunks_mut(width).zip(x.chunks(width)).enumerate() {
            run(task * rows + i, x, out);
        }
    });
}

pub(crate) fn rms<T: Real, O: Real>(x: &[T], scale: &[f32], out: &mut [O]) {
    each_row(x, scale.len(), out, |_, x, out| rms_row(x, scale, out));
}

/// Rows of `[batch, rows, w]` with scale and shift `[batch or 1, w]`.
pub(crate) fn rms_modulated<T: Real, O: Real>(
    x: &[T],
    scale: &[f32],
    shift: &[f32],
    [batch, rows]: [usize; 2],
    out: &mut [O],
) {
    let width = x.len() / (batch * rows).max(1);
    each_row(x, width.max(1), out, |row, x, out| {
        let own = if scale.len() > width { row / rows * width } else { 0 };
        rms_shifted_row(x, &scale[own..][..width], &shift[own..][..width], out);
    });
}

pub(crate) fn layer<T: Real, O: Real>(x: &[T], gamma: &[f32], beta: &[f32], out: &mut [O]) {
    each_row(x, gamma.len(), out, |_, x, out| layer_row(x, gamma, beta, out));
}
