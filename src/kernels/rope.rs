//! Rotary position embedding as Gemma has it: the two halves of a head are the two axes that are rotated,
//! `[x1 cos − x2 sin | x2 cos + x1 sin]`.
//!
//! Invariant: computed in f32, rounded once.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::cpu::vectorised;
use super::norm::constant;
use super::number::Real;
use super::ops::{Native, fits};
use super::plain;

/// Elements that one task takes, about.
const CHUNK: usize = 1 << 14;

/// Rotates the halves of every head of `x [b, t, n, h]` by angles whose sines and cosines are `[b, t, h/2]` in f32, and
/// gives the result in `out`. A gradient of x.
///
/// # Panics
/// Where the shapes do not go together, or h is odd.
pub fn rope(x: Tensor<4>, sin: Tensor<3>, cos: Tensor<3>, out: DType) -> Tensor<4> {
    let [b, t, _, h] = x.dims();
    assert_eq!(h % 2, 0, "rope: a head of odd size {h}");
    assert_eq!(sin.dims(), [b, t, h / 2], "rope: sin beside x {:?}", x.dims());
    assert_eq!(cos.dims(), [b, t, h / 2], "rope: cos beside x {:?}", x.dims());
    let simple = matches!(out, DType::F32 | DType::BF16) && sin.dtype() == DType::F32 && cos.dtype() == DType::F32;
    let constants = !x.is_tracked() && !sin.is_tracked() && !cos.is_tracked();
    if !simple || !constants || !fits(&x) || !fits(&sin) || !fits(&cos) {
        return plain::rope(x, sin, cos, out);
    }
    let (sin, cos) = (sin.inner().into_dispatch(), cos.inner().into_dispatch());
    constant(x, |x| <Dispatch as Native>::rope(x.into_dispatch(), sin, cos, out == DType::BF16))
}

vectorised! {
    fn rotate_head<T: Real, O: Real>(x: &[T], sin: &[f32], cos: &[f32], out: &mut [O]) {
        let half = sin.len();
        let (x1, x2) = x.split_at(half);
        let (y1, y2) = out.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (x1[i].wide(), x2[i].wide());
            y1[i] = O::narrow(a * cos[i] - b * sin[i]);
            y2[i] = O::narrow(b * cos[i] + a * sin[i]);
        }
    }
}

/// x `[positions, heads, 2 half]`, sin and cos `[positions, half]`.
pub(crate) fn rotate<T: Real, O: Real>(x: &[T], sin: &[f32], cos: &[f32], [heads, half]: [usize; 2], out: &mut [O]) {
    if x.is_empty() {
        return;
    }
    let position = heads * 2 * half;
    let many = CHUNK.div_ceil(position);
    let angles = sin.par_chunks(many * half).zip(cos.par_chunks(many * half));
    out.par_chunks_mut(many * position).zip(x.par_chunks(many * position)).zip(angles).for_each(
        |((out, x), (sin, cos))| {
            for (i, (out, x)) in out.chunks_mut(2 * half).zip(x.chunks(2 * half)).enumerate() {
                let at = i / heads * half;
                rotate_head(x, &sin[at..][..half], &cos[at..][..half], out);
            }
        },
    );
}
