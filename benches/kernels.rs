//! The kernels beside the compositions of Burn's own operations that they stand for, at the shapes of pi0: 816 tokens of a
//! prefix, 51 of a suffix, one decoded token; widths of Gemma 2B, Gemma 300M and SigLIP.
//!
//! `cargo bench --bench kernels`, on an idle machine.

use burn::tensor::activation::{gelu_approximate, softmax};
use burn::tensor::{Bool, DType, Device, Distribution, Tensor};
use divan::{Bencher, black_box};
use pi0_burn::kernels;

fn main() {
    divan::main();
}

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn random<const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<D> {
    Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), (&Device::flex(), DType::F32)).cast(dtype)
}

mod linear {
    use super::*;

    const SHAPES: [[usize; 3]; 9] = [
        [816, 2048, 16384],
        [816, 16384, 2048],
        [816, 2048, 2560],
        [768, 1152, 4304],
        [768, 1152, 1152],
        [51, 1024, 4096],
        [51, 4096, 1024],
        [51, 1024, 2048],
        [1, 2048, 16384],
    ];

    #[divan::bench(args = SHAPES, sample_count = 9, sample_size = 1)]
    fn packed_bf16(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let (x, w) = (random([m, k], DType::BF16), kernels::pack(random([k, n], DType::BF16)));
        bencher.bench_local(|| black_box(kernels::linear_packed(x.clone(), w.clone(), k, n, DType::BF16)));
    }

    #[divan::bench(args = SHAPES, sample_count = 5, sample_size = 1)]
    fn burn_f32(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let (x, w) = (random([m, k], DType::F32), random([k, n], DType::F32));
        bencher.bench_local(|| black_box(x.clone().matmul(w.clone())));
    }

    #[divan::bench(args = SHAPES, sample_count = 5, sample_size = 1)]
    fn burn_bf16(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let (x, w) = (random([m, k], DType::BF16), random([k, n], DType::BF16));
        bencher.bench_local(|| black_box(x.clone().matmul(w.clone())));
    }
}

mod elementwise {
    use super::*;

    #[divan::bench(args = DTYPES, sample_count = 9, sample_size = 1)]
    fn geglu_816x16384(bencher: Bencher, dtype: DType) {
        let (gate, up) = (random([816, 16384], dtype), random([816, 16384], dtype));
        bencher.bench_local(|| black_box(kernels::geglu(gate.clone(), up.clone())));
    }

    #[divan::bench(args = DTYPES, sample_count = 3, sample_size = 1)]
    fn geglu_816x16384_burn(bencher: Bencher, dtype: DType) {
        let (gate, up) = (random([816, 16384], dtype), random([816, 16384], dtype));
        bencher.bench_local(|| black_box(gelu_approximate(gate.clone()) * up.clone()));
    }

    #[divan::bench(args = DTYPES, sample_count = 9, sample_size = 1)]
    fn gelu_816x16384(bencher: Bencher, dtype: DType) {
        let x = random([816, 16384], dtype);
        bencher.bench_local(|| black_box(kernels::gelu_tanh(x.clone())));
    }

    #[divan::bench(args = DTYPES, sample_count = 3, sample_size = 1)]
    fn gelu_816x16384_burn(bencher: Bencher, dtype: DType) {
        let x = random([816, 16384], dtype);
        bencher.bench_local(|| black_box(gelu_approximate(x.clone())));
    }

    #[divan::bench(args = DTYPES, sample_count = 20)]
    fn rms_norm_816x2048(bencher: Bencher, dtype: DType) {
        let (x, scale) = (random([1, 816, 2048], dtype), random([2048], dtype));
        bencher.bench_local(|| black_box(kernels::rms_norm(x.clone(), scale.clone())));
    }

    #[divan::bench(args = DTYPES, sample_count = 20)]
    fn rms_norm_816x2048_burn(bencher: Bencher, dtype: DType) {
        let (x, scale) = (random([1, 816, 2048], dtype), random([1, 1, 2048], dtype));
        bencher.bench_local(|| {
            let wide = x.clone().cast(DType::F32);
            let mean = (wide.clone() * wide.clone()).mean_dim(2);
            let scale = (scale.clone() + 1.0).cast(DType::F32);
            black_box((wide / (mean + 1e-6).sqrt() * scale).cast(dtype))
        });
    }

    #[divan::bench(args = DTYPES, sample_count = 20)]
    fn add_816x2048(bencher: Bencher, dtype: DType) {
        let (x, y) = (random([1, 816, 2048], dtype), random([1, 816, 2048], dtype));
        bencher.bench_local(|| black_box(kernels::add(x.clone(), y.clone())));
    }

    #[divan::bench(args = DTYPES, sample_count = 20)]
    fn add_816x2048_burn(bencher: Bencher, dtype: DType) {
        let (x, y) = (random([1, 816, 2048], dtype), random([1, 816, 2048], dtype));
        bencher.bench_local(|| black_box(x.clone() + y.clone()));
    }

    #[divan::bench(args = DTYPES, sample_count = 20)]
    fn rope_816x8x256(bencher: Bencher, dtype: DType) {
        let x = random([1, 816, 8, 256], dtype);
        let (sin, cos) = (random([1, 816, 128], DType::F32), random([1, 816, 128], DType::F32));
        bencher.bench_local(|| black_box(kernels::rope(x.clone(), sin.clone(), cos.clone(), dtype)));
    }

    #[divan::bench(args = DTYPES, sample_count = 20)]
    fn rope_816x8x256_burn(bencher: Bencher, dtype: DType) {
        let x = random([1, 816, 8, 256], dtype);
        let (sin, cos) = (random([1, 816, 1, 128], DType::F32), random([1, 816, 1, 128], DType::F32));
        bencher.bench_local(|| {
            let wide = x.clone().cast(DType::F32);
            let (a, b) = (wide.clone().narrow(3, 0, 128), wide.narrow(3, 128, 128));
            let first = a.clone() * cos.clone() - b.clone() * sin.clone();
            let second = b * cos.clone() + a * sin.clone();
            black_box(Tensor::cat(vec![first, second], 3).cast(dtype))
        });
    }
}

mod attention {
    use super::*;

    /// Batch, queries, keys, heads, heads of keys, head size: prefix, suffix beside its prefix, SigLIP.
    const SHAPES: [[usize; 6]; 3] = [[1, 816, 816, 8, 1, 256], [1, 51, 867, 8, 1, 256], [3, 256, 256, 16, 16, 72]];

    fn inputs([b, t, s, n, k, h]: [usize; 6], dtype: DType) -> (Tensor<4>, Tensor<4>, Tensor<4>, Tensor<3, Bool>) {
        let mask = random([b, t, s], DType::F32).greater_elem(-3.0);
        (random([b, t, n, h], dtype), random([b, s, k, h], dtype), random([b, s, k, h], dtype), mask)
    }

    #[divan::bench(args = SHAPES, consts = [true, false], sample_count = 15, sample_size = 1)]
    fn kernel<const NARROW: bool>(bencher: Bencher, shape: [usize; 6]) {
        let (q, k, v, mask) = inputs(shape, DTYPES[usize::from(NARROW)]);
        bencher.bench_local(|| black_box(kernels::attention(q.clone(), k.clone(), v.clone(), Some(mask.clone()))));
    }

    #[divan::bench(args = SHAPES, consts = [true, false], sample_count = 5, sample_size = 1)]
    fn burn<const NARROW: bool>(bencher: Bencher, shape: [usize; 6]) {
        let [b, t, s, n, heads, h] = shape;
        let (q, k, v, mask) = inputs(shape, DTYPES[usize::from(NARROW)]);
        let group = n / heads;
        bencher.bench_local(|| {
            let q = q.clone().cast(DType::F32).reshape([b, t, heads, group, h]);
            let q = q.permute([0, 2, 1, 3, 4]).reshape([b, heads, t * group, h]);
            let logits = q.matmul(k.clone().cast(DType::F32).permute([0, 2, 3, 1]));
            let hidden = mask.clone().bool_not().reshape([b, 1, t, 1, s]).expand([b, heads, t, group, s]);
            let logits = logits.reshape([b, heads, t, group, s]).mask_fill(hidden, -2.3819763e38);
            let weights = softmax(logits.reshape([b, heads, t * group, s]), 3).cast(v.dtype());
            black_box(weights.matmul(v.clone().permute([0, 2, 1, 3])))
        });
    }
}
