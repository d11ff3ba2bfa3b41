//! The operations on Burn's CPU backend: its tensors as slices, and back.
//!
//! Invariant: a kernel sees dense rows of f32 or bf16 in the order of the shape; views that are not are copied first.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape, TensorData};
use half::bf16;

use super::cpu::level;
use super::number::Real;
use super::ops::{Differentiable, Native};
use super::{attention, gelu, norm, packed, residual, rope, rows};

type Float = FloatTensor<Flex>;

/// The same tensor with its elements in one run of memory.
fn dense(x: Float) -> Float {
    if x.layout().contiguous_offsets().is_some() { x } else { x.to_contiguous() }
}

/// The dense elements of `$x`, of either type, as the slice `$slice` of `$T` in `$body`.
macro_rules! with_elements {
    ($x:expr, |$slice:ident: &[$T:ident]| $body:expr) => {
        match $x.dtype() {
            DType::F32 => {
                #[allow(dead_code)] // Not every body names its type.
                type $T = f32;
                let $slice: &[f32] = $x.as_slice().expect("dense f32");
                $body
            }
            DType::BF16 => {
                #[allow(dead_code)] // Not every body names its type.
                type $T = bf16;
                let $slice: &[bf16] = $x.as_slice().expect("dense bf16");
                $body
            }
            other => panic!("the kernels take f32 and bf16, not {other:?}"),
        }
    };
}

/// A tensor of that shape, filled by `fill`.
fn filled<T: Real>(shape: Shape, fill: impl FnOnce(&mut [T])) -> Float {
    let mut data = T::zeros(shape.num_elements());
    fill(&mut data);
    Flex::float_from_data(TensorData::new(data, shape), &Default::default())
}

/// The dense elements, widened.
fn wide(x: Float) -> Float {
    dense(if x.dtype() == DType::F32 { x } else { Flex::float_cast(x, FloatDType::F32) })
}

/// The other operand in the dtype of the first.
fn alike(x: Float, dtype: DType) -> Float {
    dense(if x.dtype() == dtype { x } else { Flex::float_cast(x, dtype.into()) })
}

fn f32s(x: &Float) -> &[f32] {
    x.as_slice().expect("dense f32")
}

/// 1 + scale, in f32.
fn one_plus(scale: Float) -> Vec<f32> {
    f32s(&wide(scale)).iter().map(|s| 1.0 + s).collect()
}

/// A tensor of that shape in bf16 or f32, filled by `$fill`.
macro_rules! filled_as {
    ($narrow:expr, $shape:expr, |$out:ident| $fill:expr) => {
        if $narrow { filled::<bf16>($shape, |$out| $fill) } else { filled::<f32>($shape, |$out| $fill) }
    };
}

impl Native for Flex {
    fn pack(weight: Float) -> Float {
        let [k, n] = weight.shape().dims();
        let weight = alike(weight, DType::BF16);
        let data = packed::pack_weight(weight.as_slice().expect("dense bf16"), k, n);
        Flex::float_from_data(TensorData::new(data, packed::packed_shape([k, n])), &Default::default())
    }

    fn rms_norm(x: Float, scale: Float, narrow: bool) -> Float {
        let (x, scale) = (dense(x), one_plus(scale));
        with_elements!(x, |s: &[T]| filled_as!(narrow, x.shape(), |out| norm::rms(s, &scale, out)))
    }

    fn rms_norm_modulated(x: Float, scale: Float, shift: Float, narrow: bool) -> Float {
        let [batch, rows, _] = x.shape().dims();
        let (x, shift) = (dense(x), wide(shift));
        let scale = one_plus(scale);
        with_elements!(x, |s: &[T]| filled_as!(narrow, x.shape(), |out| {
            norm::rms_modulated(s, &scale, f32s(&shift), [batch, rows], out);
        }))
    }

    fn layer_norm(x: Float, gamma: Float, beta: Float, narrow: bool) -> Float {
        let (x, gamma, beta) = (dense(x), wide(gamma), wide(beta));
        with_elements!(x, |s: &[T]| filled_as!(narrow, x.shape(), |out| {
            norm::layer(s, f32s(&gamma), f32s(&beta), out);
        }))
    }

    fn attention(q: Float, k: Float, v: Float, mask: BoolTensor<Self>, narrow: bool) -> Float {
        let dims = attention::Dims::of(q.shape().dims(), k.shape().dims());
        let mask = mask.to_contiguous();
        let mask = &mask.bytes()[mask.layout().start_offset()..][..mask.layout().num_elements()];
        let (q, k) = (dense(q), dense(k));
        let v = alike(v, k.dtype());
        let call = attention::Call { level: level(), dims, mask, narrow };
        with_elements!(q, |q_: &[Q]| match (k.as_slice::<f32>(), k.as_slice::<bf16>()) {
            (Some(k), _) => filled(q.shape(), |out| call.wide(q_, k, f32s(&v), out)),
            (_, Some(k)) => filled(q.shape(), |out| call.narrow(q_, k, v.as_slice().expect("dense bf16"), out)),
            _ => panic!("attention takes f32 and bf16, not {:?}", k.dtype()),
        })
    }

    fn times_rows(x: Float, table: Float) -> Float {
        let ([m, k], [v, _]) = (x.shape().dims(), table.shape().dims());
        let (x, table) = (dense(x), dense(table));
        with_elements!(x, |s: &[T]| filled::<T>([m, v].into(), |out| {
            rows::times_rows_slices(s, table.as_slice::<T>().expect("dense"), k, out);
        }))
    }

    fn sum(x: Float, y: Float, narrow: bool) -> Float {
        let x = dense(x);
        let y = alike(y, x.dtype());
        with_elements!(x, |a: &[T]| filled_as!(narrow, x.shape(), |out| {
            residual::sum_slices(a, y.as_slice::<T>().expect("dense"), out);
        }))
    }

    fn rope(x: Float, sin: Float, cos: Float, narrow: bool) -> Float {
        let [_, _, n, h] = x.shape().dims();
        let heads = [n, h / 2];
        let (x, sin, cos) = (dense(x), wide(sin), wide(cos));
        with_elements!(x, |s: &[T]| filled_as!(narrow, x.shape(), |out| {
            rope::rotate(s, f32s(&sin), f32s(&cos), heads, out);
        }))
    }
}

impl Differentiable for Flex {
    fn gelu_tanh(x: Float) -> Float {
        let x = dense(x);
        with_elements!(x, |s: &[T]| filled::<T>(x.shape(), |out| gelu::gelu_slices(s, out)))
    }

    fn gelu_tanh_backward(x: Float, grad: Float) -> Float {
        let x = dense(x);
        let grad = alike(grad, x.dtype());
        with_elements!(x, |s: &[T]| filled::<T>(x.shape(), |out| {
            gelu::gelu_backward_slices(s, grad.as_slice().expect("dense"), out);
        }))
    }

    fn geglu(gate: Float, up: Float) -> Float {
        let gate = dense(gate);
        let up = alike(up, gate.dtype());
        with_elements!(gate, |s: &[T]| filled::<T>(gate.shape(), |out| {
            gelu::geglu_slices(s, up.as_slice().expect("dense"), out);
        }))
    }

    fn linear_packed(x: Float, packed: Float, n: usize, narrow: bool) -> Float {
        let [m, k] = x.shape().dims();
        let (x, packed) = (dense(x), dense(packed));
        let weight: &[bf16] = packed.as_slice().expect("packed weights are bf16");
        with_elements!(x, |s: &[T]| filled_as!(narrow, [m, n].into(), |out| {
            packed::linear(level(), s, weight, [m, k, n], out);
        }))
    }
}
