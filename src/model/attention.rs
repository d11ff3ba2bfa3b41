//! Attention of grouped heads: N query heads share K key heads.
//!
//! Logits are accumulated and kept in f32. What may not be seen gets a finite logit, so that a query that sees nothing
//! averages all values, as in JAX: neither 0 nor NaN. Source: openpi 15a9616, models/gemma.py, `Attention`.

use burn::tensor::{Bool, DType, Tensor, activation};

/// The logit of what may not be seen.
const UNSEEN: f32 = -2.381_976_3e38;

/// `q [B, T, N, H]` (scaled), `k, v [B, S, K, H]`, `mask [B, T, S]` (true: may be seen) to `[B, T, N, H]` in the dtype
/// of `v`.
pub fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<&Tensor<3, Bool>>) -> Tensor<4> {
    let ([b, t, n, h], [_, s, kv, _]) = (q.dims(), k.dims());
    let (group, dtype) = (n / kv, v.dtype());
    // The query heads of a group become rows: one product for each key head.
    let q = q.reshape([b, t, kv, group, h]).permute([0, 2, 1, 3, 4]).reshape([b, kv, t * group, h]);
    let k = k.permute([0, 2, 3, 1]);
    let logits = q.cast(DType::F32).matmul(k.cast(DType::F32));
    let logits = match mask {
        Some(mask) => {
            let unseen = mask.clone().bool_not().reshape([b, 1, t, 1, s]).expand([b, kv, t, group, s]);
            logits.mask_fill(unseen.reshape([b, kv, t * group, s]), UNSEEN)
        }
        None => logits,
    };
    let weights = activation::softmax(logits, 3).cast(dtype);
    let out = weights.matmul(v.permute([0, 2, 1, 3]));
    out.reshape([b, kv, t, group, h]).permute([0, 2, 1, 3, 4]).reshape([b, t, n, h])
}

/// The same for SigLIP, where N = K, all is seen, and logits and weights are in the compute dtype.
pub fn attend_all(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let dtype = v.dtype();
    let q = q.permute([0, 2, 1, 3]);
    let logits = q.matmul(k.permute([0, 2, 3, 1]));
    // The exponential and the sum stay in f32: XLA keeps the excess precision inside a fusion.
    let weights = activation::softmax(logits.cast(DType::F32), 3).cast(dtype);
    weights.matmul(v.permute([0, 2, 1, 3])).permute([0, 2, 1, 3])
}
