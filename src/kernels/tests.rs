//! Every kernel against the composition of Burn's own operations and against f64, on odd sizes, on views that are not
//! contiguous, and with its gradient.

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use half::bf16;

use super::cpu::{Level, has};
use super::*;

/// Numbers in −`scale`..`scale` that look random and never change.
fn noise(count: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) ^ 0x9e37_79b9;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / 8_388_608.0 - 1.0) * scale
        })
        .collect()
}

fn random<const D: usize>(shape: [usize; D], seed: u32, scale: f32, dtype: DType) -> Tensor<D> {
    let data = TensorData::new(noise(shape.iter().product(), seed, scale), shape);
    Tensor::<D>::from_data(data, (&Device::flex(), DType::F32)).cast(dtype)
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.clone().inner().cast(DType::F32).into_data().try_to_vec().expect("f32")
}

/// The largest distance, in units of the largest magnitude of `truth`.
fn distance(found: &[f32], truth: &[f32]) -> f32 {
    assert_eq!(found.len(), truth.len());
    let most = truth.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
    found.iter().zip(truth).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs() / most))
}

#[track_caller]
fn close<const D: usize>(found: &Tensor<D>, truth: &Tensor<D>, tolerance: f32) {
    assert_eq!(found.dims(), truth.dims());
    assert_eq!(found.dtype(), truth.dtype());
    let far = distance(&values(found), &values(truth));
    assert!(far <= tolerance, "{far:e} > {tolerance:e}");
}

/// Every element within one step of the truth's bf16 neighbours: half a step of rounding, and the error of f32 before.
#[track_caller]
fn rounds_to(found: &[f32], truth: &[f64], slack: f64) {
    for (a, b) in found.iter().zip(truth) {
        let step = f64::from(bf16::from_f64(*b).to_f32().abs()) / 256.0 + slack;
        assert!((f64::from(*a) - b).abs() <= step, "{a:e} is not {b:e} rounded");
    }
}

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| has(*level))
}

#[test]
fn a_packed_weight_unpacks_to_itself() {
    for [k, n] in [[32, 32], [1, 1], [96, 16], [48, 8], [1152, 100], [33, 4304]] {
        let w = random([k, n], 1, 1.0, DType::BF16);
        let packed = pack(w.clone());
        assert_eq!(packed.dims(), packed_shape([k, n]));
        assert_eq!(values(&unpack(packed.clone(), k, n)), values(&w));
        let graph = pack(w.clone().autodiff().require_grad());
        assert_eq!(values(&graph), values(&packed), "the composition packs alike");
    }
}

#[test]
fn all_paths_of_this_machine_multiply_within_the_bounds_of_f32_sums() {
    for (m, k, n) in [
        (1, 2048, 96),
        (1, 48, 8),
        (7, 1152, 16),
        (9, 33, 31),
        (51, 96, 2560),
        (51, 4304, 48),
        (70, 1152, 130),
        (300, 1100, 70),
        (816, 96, 100),
        (5, 40, 4304),
    ] {
        let (x, w) = (noise(m * k, 2, 1.0), noise(k * n, 3, 1.0));
        let w: Vec<bf16> = w.into_iter().map(bf16::from_f32).collect();
        let packed = super::packed::pack_weight(&w, k, n);
        let rounded: Vec<f64> = x.iter().map(|x| bf16::from_f32(*x).to_f64()).collect();
        let mut truth = vec![0f64; m * n];
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    truth[i * n + j] += rounded[i * k + l] * w[l * n + j].to_f64();
                }
            }
        }
        // k products below 1 summed in f32: an error of √k halves of an ulp of √k, a few times over.
        let slack = 6e-8 * k as f64;
        for level in levels() {
            let mut wide = vec![f32::NAN; m * n];
            super::packed::linear(level, &x, &packed, [m, k, n], &mut wide);
            for (a, b) in wide.iter().zip(&truth) {
                assert!((f64::from(*a) - b).abs() <= slack, "{level:?} [{m},{k}]x[{k},{n}]: {a} is not {b}");
            }
            let mut narrow = vec![bf16::NAN; m * n];
            let x: Vec<bf16> = x.iter().copied().map(bf16::from_f32).collect();
            super::packed::linear(level, &x, &packed, [m, k, n], &mut narrow);
            let narrow: Vec<f32> = narrow.into_iter().map(bf16::to_f32).collect();
            rounds_to(&narrow, &truth, slack);
        }
    }
}

#[test]
fn a_packed_linear_equals_burns_product_and_has_its_gradient() {
    let device = Device::flex().autodiff();
    for (dtype, out) in [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::F32, DType::BF16)] {
        let w = random([96, 40], 1, 1.0, DType::BF16);
        let x = random([2, 17, 96], 2, 1.0, DType::F32).cast(dtype);
        let x = Tensor::<3>::from_data(x.into_data(), (&device, dtype)).require_grad();
        let y = linear_packed(x.clone(), pack(w.clone()), 96, 40, out);
        let flat: Tensor<2> = x.clone().reshape([34, 96]);
        let wide = flat.cast(DType::BF16).cast(DType::F32).matmul(w.clone().cast(DType::F32).autodiff());
        let truth: Tensor<3> = wide.cast(out).reshape([2, 17, 40]);
        close(&y, &truth, if out == DType::F32 { 1e-6 } else { 4e-3 });
        let weights = random([2, 17, 40], 3, 1.0, out).autodiff();
        let found = x.grad(&(y * weights.clone()).sum().backward()).expect("a gradient");
        let truth = x.grad(&(truth * weights).sum().backward()).expect("a gradient");
        assert_eq!(found.dtype(), dtype);
        close(&found, &truth, 5e-3);
    }
}

#[test]
fn a_view_is_multiplied_as_its_copy_would_be() {
    let w = pack(random([70, 33], 1, 1.0, DType::BF16));
    let x = random([90, 20], 2, 1.0, DType::F32);
    let view = x.clone().transpose().narrow(1, 7, 70);
    let copy = Tensor::<2>::from_data(view.clone().into_data(), (&Device::flex(), DType::F32));
    let of = |x| values(&linear_packed(x, w.clone(), 70, 33, DType::F32));
    assert_eq!(of(view), of(copy));
    let whole = random([33, 70], 4, 1.0, DType::BF16);
    assert_eq!(values(&unpack(pack(whole.clone().transpose()), 70, 33)), values(&whole.transpose()));
}

#[test]
fn an_infinity_stays_in_its_row_and_column() {
    let (m, k, n) = (20, 40, 40);
    let mut x = noise(m * k, 1, 1.0);
    x[3 * k + 39] = f32::INFINITY;
    x[5 * k] = f32::NAN;
    let w: Vec<bf16> = noise(k * n, 2, 1.0).into_iter().map(bf16::from_f32).collect();
    let packed = super::packed::pack_weight(&w, k, n);
    for level in levels() {
        let mut y = vec![0f32; m * n];
        super::packed::linear(level, &x, &packed, [m, k, n], &mut y);
        for (i, row) in y.chunks(n).enumerate() {
            assert_eq!(row.iter().all(|y| y.is_finite()), i != 3 && i != 5, "{level:?} row {i}");
        }
        assert!(y[3 * n..4 * n].iter().all(|y| y.is_infinite()) && y[5 * n..6 * n].iter().all(|y| y.is_nan()));
    }
}

fn gelu_truth(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    x / (1.0 + (-2.0 * u).exp())
}

#[test]
fn gelu_is_exact_to_three_tenths_of_a_millionth() {
    let x: Vec<f32> = (0..200_001).map(|i| (i as f32 - 100_000.0) / 20_000.0).collect();
    let y = values(&gelu_tanh(Tensor::<1>::from_data(
        TensorData::new(x.clone(), [x.len()]),
        (&Device::flex(), DType::F32),
    )));
    for (x, y) in x.iter().zip(&y) {
        let truth = gelu_truth(f64::from(*x));
        assert!((f64::from(*y) - truth).abs() <= 3e-7 * truth.abs(), "gelu({x}) = {y:e}, {truth:e}");
    }
    let narrow = random([999], 1, 8.0, DType::BF16);
    let near: Vec<f64> = values(&narrow).into_iter().map(|x| gelu_truth(f64::from(x))).collect();
    for (y, truth) in values(&gelu_tanh(narrow)).iter().zip(near) {
        assert!((f64::from(*y) - truth).abs() <= 0.04, "{y:e}, {truth:e}");
    }
}

#[test]
fn gelu_in_bf16_is_the_chain_of_operations_for_every_number() {
    let all: Vec<bf16> =
        (0..=u16::MAX).map(bf16::from_bits).filter(|x| x.is_finite() && x.to_f32().abs() < 1e9).collect();
    let x = Tensor::<1>::from_data(TensorData::new(all.clone(), [all.len()]), (&Device::flex(), DType::BF16));
    let composed = values(&plain::gelu_tanh(x.clone()));
    for ((x, y), composed) in all.iter().zip(values(&gelu_tanh(x))).zip(composed) {
        assert_eq!(y.to_bits(), super::gelu::step_by_step(*x).to_f32().to_bits(), "{x}");
        assert!((y - composed).abs() <= y.abs() * 8e-3 + 1e-38, "{x}: {y}, by Burn's operations {composed}");
    }
}

#[test]
fn gelu_of_what_is_no_number() {
    let x = vec![f32::NAN, f32::INFINITY, -1e30, -0.0];
    let y = values(&gelu_tanh(Tensor::<1>::from_data(TensorData::new(x, [4]), (&Device::flex(), DType::F32))));
    assert!(y[0].is_nan() && y[1] == f32::INFINITY && y[2] == 0.0 && y[3] == 0.0, "{y:?}");
}

#[test]
fn gelu_and_geglu_have_the_gradients_of_their_compositions() {
    // In bf16 the composition rounds every step of the derivative as well; ours rounds it once.
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 3e-2)] {
        let make = |seed| random([31, 97], seed, 3.0, dtype).autodiff().require_grad();
        let (x, up, weights) = (make(1), make(2), random([31, 97], 3, 1.0, dtype).autodiff());
        close(&gelu_tanh(x.clone()), &plain::gelu_tanh(x.clone()), tolerance);
        let found = (gelu_tanh(x.clone()) * weights.clone()).sum().backward();
        let truth = (plain::gelu_tanh(x.clone()) * weights.clone()).sum().backward();
        close(&x.grad(&found).expect("of x"), &x.grad(&truth).expect("of x"), tolerance);
        close(&geglu(x.clone(), up.clone()), &(plain::gelu_tanh(x.clone()) * up.clone()), tolerance);
        let found = (geglu(x.clone(), up.clone()) * weights.clone()).sum().backward();
        let truth = (plain::gelu_tanh(x.clone()) * up.clone() * weights).sum().backward();
        close(&x.grad(&found).expect("of gate"), &x.grad(&truth).expect("of gate"), tolerance);
        close(&up.grad(&found).expect("of up"), &up.grad(&truth).expect("of up"), tolerance);
    }
}

/// The tolerances of one rounding: f32, and one step of bf16 beside the largest number.
const DTYPES: [(DType, f32); 2] = [(DType::F32, 1e-6), (DType::BF16, 7.9e-3)];

#[test]
fn norms_equal_their_compositions() {
    for (dtype, tolerance) in DTYPES {
        for width in [1, 5, 16, 48, 1024, 1152] {
            let x = random([2, 7, width], 1, 4.0, dtype);
            let (scale, beta) = (random([width], 2, 1.0, dtype), random([width], 3, 1.0, dtype));
            close(
                &rms_norm(x.clone(), scale.clone(), dtype),
                &plain::rms_norm(x.clone(), scale.clone(), dtype),
                tolerance,
            );
            let found = layer_norm(x.clone() + 0.5, scale.clone(), beta.clone(), dtype);
            close(&found, &plain::layer_norm(x.clone() + 0.5, scale, beta, dtype), tolerance * 4.0);
            for batch in [1, 2] {
                let (scale, shift) =
                    (random([batch, 1, width], 4, 1.0, dtype), random([batch, 1, width], 5, 1.0, dtype));
                let found = rms_norm_modulated(x.clone(), scale.clone(), shift.clone(), dtype);
                close(&found, &plain::rms_norm_modulated(x.clone(), scale, shift, dtype), tolerance);
            }
        }
        let view = random([64, 3, 9], 6, 1.0, dtype).permute([2, 1, 0]).narrow(0, 2, 5);
        let scale = random([64], 7, 1.0, DType::F32);
        close(&rms_norm(view.clone(), scale.clone(), dtype), &plain::rms_norm(view, scale, dtype), tolerance);
    }
}

#[test]
fn a_tracked_norm_has_gradients_of_all_its_inputs() {
    let x = random([2, 3, 16], 1, 1.0, DType::F32).autodiff().require_grad();
    let scale = random([16], 2, 1.0, DType::F32).autodiff().require_grad();
    let grads = rms_norm(x.clone(), scale.clone(), DType::F32).powf_scalar(2.0).sum().backward();
    assert!(x.grad(&grads).is_some() && scale.grad(&grads).is_some());
    let grads = rms_norm(x.clone().inner(), scale.clone(), DType::F32).sum().backward();
    assert!(scale.grad(&grads).is_some());
}

#[test]
fn attention_equals_its_composition_on_every_path() {
    let cases =
        [([2, 7, 8, 16], [5, 1]), ([1, 51, 4, 40], [70, 2]), ([2, 70, 3, 72], [33, 3]), ([1, 1, 8, 256], [100, 1])];
    for ([b, t, n, h], [s, k]) in cases {
        for (dtype, tolerance) in DTYPES {
            for queries in [dtype, DType::F32] {
                let q = random([b, t, n, h], 1, 0.5, queries);
                let (key, value) = (random([b, s, k, h], 2, 1.0, dtype), random([b, s, k, h], 3, 1.0, dtype));
                let mask = random([b, t, s], 4, 1.0, DType::F32).greater_elem(-0.2);
                let empty = Tensor::<3, Bool>::empty([b, 1, s], &Device::flex());
                let none = empty.clone().not_equal(empty);
                let mask = mask.slice_assign([0..b, 0..1, 0..s], none);
                for mask in [Some(mask), None] {
                    let found = attention(q.clone(), key.clone(), value.clone(), mask.clone());
                    close(&found, &plain::attention(q.clone(), key.clone(), value.clone(), mask, false), tolerance);
                }
            }
            if n == k {
                let (q, key) = (random([b, t, n, h], 1, 0.5, dtype), random([b, s, k, h], 2, 1.0, dtype));
                let found = attention_in_dtype(q.clone(), key.clone(), key.clone());
                close(&found, &plain::attention(q, key.clone(), key, None, true), tolerance * 2.0);
            }
        }
    }
}

#[test]
fn a_query_without_keys_sees_the_mean_of_all() {
    let (q, k) = (random([1, 2, 2, 8], 1, 1.0, DType::F32), random([1, 5, 1, 8], 2, 1.0, DType::F32));
    let mask = Tensor::<3>::zeros([1, 2, 5], (&Device::flex(), DType::F32)).greater_elem(0.5);
    let found = values(&attention(q, k.clone(), k.clone(), Some(mask)));
    let mean = values(&k.mean_dim(1));
    for row in found.chunks(8) {
        assert!(distance(row, &mean) < 1e-6, "{row:?} {mean:?}");
    }
}

#[test]
fn a_tracked_attention_has_gradients() {
    let make = |shape, seed| random(shape, seed, 1.0, DType::F32).autodiff().require_grad();
    let (q, k, v) = (make([1, 3, 4, 8], 1), make([1, 5, 2, 8], 2), make([1, 5, 2, 8], 3));
    let grads = attention(q.clone(), k.clone(), v.clone(), None).powf_scalar(2.0).sum().backward();
    assert!(q.grad(&grads).is_some() && k.grad(&grads).is_some() && v.grad(&grads).is_some());
}

#[test]
fn residuals_equal_burns_own() {
    for (dtype, _) in DTYPES {
        let (x, y) = (random([2, 33, 50], 1, 1.0, dtype), random([2, 50, 33], 2, 1.0, dtype).swap_dims(1, 2));
        assert_eq!(values(&add(x.clone(), y.clone(), dtype)), values(&(x.clone() + y.clone())));
        let wide = values(&(x.clone().cast(DType::F32) + y.clone().cast(DType::F32)));
        assert_eq!(values(&add(x, y, DType::F32)), wide);
    }
}

#[test]
fn rope_equals_its_composition() {
    let angles = random([2, 5, 8], 2, 3.0, DType::F32);
    let (sin, cos) = (angles.clone().sin(), angles.cos());
    for (dtype, _) in DTYPES {
        let view = random([2, 3, 5, 16], 1, 1.0, dtype).swap_dims(1, 2);
        for (out, tolerance) in DTYPES {
            let found = rope(view.clone(), sin.clone(), cos.clone(), out);
            close(&found, &plain::rope(view.clone(), sin.clone(), cos.clone(), out), tolerance);
        }
    }
}

#[test]
fn logits_equal_the_product_with_the_turned_table() {
    for (dtype, tolerance) in DTYPES {
        for ([m, k], v) in [([1, 48], 1030), ([2, 2048], 515), ([16, 33], 7), ([17, 64], 40)] {
            let (x, table) = (random([m, k], 1, 1.0, dtype), random([v, k], 2, 1.0, dtype));
            let truth = x.clone().cast(DType::F32).matmul(table.clone().cast(DType::F32).transpose());
            let found = times_rows(x, table);
            assert_eq!(found.dtype(), dtype);
            close(&found.cast(DType::F32), &truth, tolerance);
        }
    }
}
