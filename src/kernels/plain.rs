//! The same operations as compositions of Burn's own: what runs on a device without kernels of ours, what gradients flow
//! through, and what the kernels are tested against.
//!
//! Invariant: the interior is f32, as in the kernels, and each result is rounded where theirs is.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Tensor};

use super::norm::EPSILON;

/// What a masked logit is set to: finite, so that a row without any key is the mean over all.
pub(crate) const MASKED: f32 = -2.381_976_3e38;

fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) }
}

fn narrow<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// In bf16 each step is rounded, and so are the constants: see [`gelu`](super::gelu).
pub(crate) fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let (cubic, root) =
        if x.dtype() == DType::BF16 { (0.044_677_734_4, 0.796_875) } else { (0.044_715, 0.797_884_560_802_865_4) };
    let cube = x.clone() * x.clone() * x.clone();
    let tanh = ((x.clone() + cube * cubic) * root).tanh();
    x * ((tanh + 1.0) * 0.5)
}

/// x / rms(x), in f32.
fn by_rms<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let x = wide(x);
    let mean = (x.clone() * x.clone()).mean_dim(D - 1);
    x / (mean + EPSILON).sqrt()
}

pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, scale: Tensor<1>, out: DType) -> Tensor<D> {
    narrow(by_rms(x) * (wide(scale) + 1.0).unsqueeze::<D>(), out)
}

pub(crate) fn rms_norm_modulated(x: Tensor<3>, scale: Tensor<3>, shift: Tensor<3>, out: DType) -> Tensor<3> {
    narrow(by_rms(x) * (wide(scale) + 1.0) + wide(shift), out)
}

pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, beta: Tensor<1>, out: DType) -> Tensor<D> {
    let x = wide(x);
    let mean = x.clone().mean_dim(D - 1);
    let square = (x.clone() * x.clone()).mean_dim(D - 1);
    let spread = (square - mean.clone() * mean.clone()).clamp_min(0.0);
    let factor = (spread + EPSILON).sqrt().recip() * wide(gamma).unsqueeze::<D>();
    narrow((x - mean) * factor + wide(beta).unsqueeze::<D>(), out)
}

pub(crate) fn rope(x: Tensor<4>, sin: Tensor<3>, cos: Tensor<3>, out: DType) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let x = wide(x);
    let (sin, cos): (Tensor<4>, Tensor<4>) = (wide(sin).unsqueeze_dim(2), wide(cos).unsqueeze_dim(2));
    let (x1, x2) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let first = x1.clone() * cos.clone() - x2.clone() * sin.clone();
    narrow(Tensor::cat(vec![first, x2 * cos + x1 * sin], 3), out)
}

/// Attention as in [`attention`](super::attention()); `in_dtype`: the logits are rounded to the dtype of k.
pub(crate) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Option<Tensor<3, Bool>>,
    in_dtype: bool,
) -> Tensor<4> {
    let [b, t, n, h] = q.dims();
    let [_, s, heads, _] = k.dims();
    let (group, dtype) = (n / heads, k.dtype());
    // "btkgh -> bk(tg)h": the queries of one key head are the rows of one product.
    let q = wide(q).reshape([b, t, heads, group, h]).permute([0, 2, 1, 3, 4]).reshape([b, heads, t * group, h]);
    let k = wide(k).permute([0, 2, 3, 1]);
    let v = v.permute([0, 2, 1, 3]);
    let logits = q.matmul(k);
    let logits = if in_dtype { wide(narrow(logits, dtype)) } else { logits };
    let logits = match mask {
        None => logits,
        Some(mask) => {
            let hidden = mask.bool_not().reshape([b, 1, t, 1, s]).expand([b, heads, t, group, s]);
            logits.reshape([b, heads, t, group, s]).mask_fill(hidden, MASKED).reshape([b, heads, t * group, s])
        }
    };
    let weights = if in_dtype { softmax_step_by_step(logits, dtype) } else { narrow(softmax(logits, 3), v.dtype()) };
    weights.matmul(v).reshape([b, heads, t, group, h]).permute([0, 2, 1, 3, 4]).reshape([b, t, n, h])
}

/// Softmax as XLA has it in bf16: the difference to the largest, the exponential and the sum are rounded, but the sum is
/// taken over exponentials that are not. In f32 it is the usual one.
fn softmax_step_by_step(logits: Tensor<4>, dtype: DType) -> Tensor<4> {
    let most = logits.clone().max_dim(3);
    let e = wide(narrow(logits - most, dtype)).exp();
    let sum = wide(narrow(e.clone().sum_dim(3), dtype));
    narrow(wide(narrow(e, dtype)) / sum, dtype)
}
