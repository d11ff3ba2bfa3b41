//! GELU in its tanh form, and Gemma's gated form, `gelu(gate) × up`.
//!
//! `gelu(x) = x/2 · (1 + tanh u)`, `u = √(2/π) · (x + 0.044715 x³)`, and `(1 + tanh u)/2 = 1/(1 + e^(−2u))`, which does
//! not cancel where x is negative.
//!
//! In bf16, XLA computes it operation by operation and rounds after each (openpi's recordings are reproduced bit for bit
//! so, and not otherwise); there are only 65536 arguments, so that all results are a table.
//!
//! Invariant: f32 is exact to 3e-7; bf16 is what XLA's chain of operations gives.

use std::sync::OnceLock;

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use half::bf16;
use rayon::prelude::*;

use super::cpu::vectorised;
use super::number::{Real, exp};
use super::ops::{Differentiable, fits};
use super::plain;

/// Elements that one task takes.
const CHUNK: usize = 1 << 14;
/// 2 √(2/π), and what f32 leaves of it.
const LINEAR: f32 = 1.595_769_2;
const LINEAR_REST: f32 = -4.534_068e-8;
/// 0.044715 of that, and what f32 leaves of it.
const CUBIC: f32 = 0.071_354_814;
const CUBIC_REST: f32 = 2.398_832_3e-9;

/// The tanh form of GELU; of f32 or bf16, with a gradient.
pub fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !fits(&x) {
        return plain::gelu_tanh(x);
    }
    Tensor::from_dispatch(<Dispatch as Differentiable>::gelu_tanh(x.into_dispatch()))
}

/// `gelu_tanh(gate) × up`: the gelu is rounded to the dtype before the product; both have a gradient.
///
/// # Panics
/// Where gate and up differ in shape or dtype.
pub fn geglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "geglu: gate and up differ in shape");
    assert_eq!(gate.dtype(), up.dtype(), "geglu: gate and up differ in dtype");
    if !fits(&gate) || !fits(&up) {
        return plain::gelu_tanh(gate) * up;
    }
    Tensor::from_dispatch(<Dispatch as Differentiable>::geglu(gate.into_dispatch(), up.into_dispatch()))
}

/// 1/(1 + e^(−2u)).
///
/// 2u is carried as a sum of two numbers: rounded to one, the exponential would multiply its error by |2u|.
#[inline(always)]
fn gate(x: f32) -> f32 {
    // Beyond, the gate is 0 or 1. Written so that NaN goes through.
    let x = if x < -12.0 { -12.0 } else { x };
    let x = if x > 12.0 { 12.0 } else { x };
    let square = x * x;
    let factor = CUBIC.mul_add(square, LINEAR);
    let square_rest = x.mul_add(x, -square);
    let constants_rest = CUBIC_REST.mul_add(square, LINEAR_REST);
    let factor_rest = CUBIC.mul_add(square, LINEAR - factor) + CUBIC.mul_add(square_rest, constants_rest);
    let twice = x * factor;
    let rest = x.mul_add(factor, -twice) + x * factor_rest;
    let e = exp(-twice);
    1.0 / (1.0 + e * (1.0 - rest))
}

#[inline(always)]
fn value(x: f32) -> f32 {
    x * gate(x)
}

/// Every bf16 number's GELU, by bits.
fn table() -> &'static [u16] {
    static TABLE: OnceLock<Vec<u16>> = OnceLock::new();
    TABLE.get_or_init(|| (0..=u16::MAX).map(|bits| step_by_step(bf16::from_bits(bits)).to_bits()).collect())
}

/// The chain of operations in bf16, rounded after each. The constants are √(2/π) and 0.044715, rounded as well.
pub(crate) fn step_by_step(x: bf16) -> bf16 {
    let r = |x: f32| bf16::narrow(x).wide();
    let x = x.wide();
    let cube = r(r(x * x) * x);
    let tanh = r(f64::from(r(r(x + r(0.044_677_734 * cube)) * 0.796_875)).tanh() as f32);
    bf16::narrow(x * r((1.0 + tanh) * 0.5))
}

/// gelu′ = s + x s (1 − s) (2u)′ with s the gate.
#[inline(always)]
fn slope(x: f32) -> f32 {
    let s = gate(x);
    let du = (3.0 * CUBIC * x).mul_add(x, LINEAR);
    // Far out s (1 − s) is 0 and x du may be infinite: their product is 0 there.
    let bend = s * (1.0 - s);
    if bend == 0.0 { s } else { (x * du).mul_add(bend, s) }
}

vectorised! {
    fn gelu_chunk<T: Real>(x: &[T], table: &[u16], out: &mut [T]) {
        for (to, x) in out.iter_mut().zip(x) {
            *to = x.map_or_look_up(value, table);
        }
    }
}
vectorised! {
    fn slope_chunk<T: Real>(x: &[T], grad: &[T], out: &mut [T]) {
        for ((to, x), grad) in out.iter_mut().zip(x).zip(grad) {
            *to = T::narrow(slope(x.wide()) * grad.wide());
        }
    }
}
vectorised! {
    fn geglu_chunk<T: Real>(x: &[T], up: &[T], table: &[u16], out: &mut [T]) {
        for ((to, x), up) in out.iter_mut().zip(x).zip(up) {
            *to = T::narrow(x.map_or_look_up(value, table).wide() * up.wide());
        }
    }
}

pub(crate) fn gelu_slices<T: Real>(x: &[T], out: &mut [T]) {
    let table = table();
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| gelu_chunk(x, table, out));
}

pub(crate) fn gelu_backward_slices<T: Real>(x: &[T], grad: &[T], out: &mut [T]) {
    let inputs = x.par_chunks(CHUNK).zip(grad.par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (x, grad))| slope_chunk(x, grad, out));
}

pub(crate) fn geglu_slices<T: Real>(gate: &[T], up: &[T], out: &mut [T]) {
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    let table = table();
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (gate, up))| geglu_chunk(gate, up, table, out));
}
