//! Linear layers over packed bf16 weights: the weights of a frozen layer are rearranged once, at load time, into the
//! panels that the CPU's matrix instructions read, and are never widened or moved again.
//!
//! A packed weight is a bf16 tensor `[kp, np]`, k and n padded with zeros to multiples of 32, whose *content* is permuted:
//! as a flat array it is `[np/16][kp/32][16 pairs of k][16 columns][2]` (see [`gemm`](super::gemm)). It holds exactly the
//! numbers of the weight, so it can be a module's parameter, be saved, be unpacked again.
//!
//! Invariant: `unpack(pack(w)) = w`, bit for bit, and [`linear_packed`] is the product with `w`, accumulated in f32 and
//! rounded once, on every device.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::cpu::{Level, level};
use super::engine::{self, Plain};
use super::gemm::{self, DEEP, Engine, PANEL, TILE, WIDE, padded};
use super::number::Real;
use super::ops::{Differentiable, Native, fits};

/// Rows below which tiles of 16 × 16 would be mostly padding and AVX512-BF16 is used in their place.
const FEW: usize = 9;

/// Whether packing pays on this machine: it has AVX2 at least. Without, the widening would be scalar.
pub fn packs() -> bool {
    level() >= Level::Avx2
}

/// The shape `[kp, np]` that a packed weight `[k, n]` has.
pub fn packed_shape([k, n]: [usize; 2]) -> [usize; 2] {
    [padded(k, DEEP), padded(n, WIDE)]
}

/// Rearranges a weight `[k, n]` into panels `[kp, np]`, bf16; other dtypes are rounded to bf16 first.
pub fn pack(weight: Tensor<2>) -> Tensor<2> {
    let [k, n] = weight.dims();
    let [kp, np] = packed_shape([k, n]);
    let weight = weight.cast(DType::BF16);
    if fits(&weight) && !weight.is_tracked() {
        return Tensor::from_dispatch(<Dispatch as Native>::pack(weight.inner().into_dispatch()));
    }
    let all = Tensor::<2>::zeros([kp, np], (&weight.device(), DType::BF16)).slice_assign([0..k, 0..n], weight);
    all.reshape([kp / DEEP, PANEL, 2, np / PANEL, PANEL]).permute([3, 0, 1, 4, 2]).reshape([kp, np])
}

/// The weight `[k, n]` that [`pack`] rearranged, on any device.
pub fn unpack(packed: Tensor<2>, k: usize, n: usize) -> Tensor<2> {
    let [kp, np] = packed_shape([k, n]);
    packed
        .reshape([np / PANEL, kp / DEEP, PANEL, PANEL, 2])
        .permute([1, 2, 4, 0, 3])
        .reshape([kp, np])
        .slice([0..k, 0..n])
}

/// `x · w`: x rounded to bf16, products summed in f32, the result rounded once to `out`. The weight is a constant; x has a
/// gradient, `grad · wᵀ` with the same roundings.
///
/// # Shapes
/// x `[.., k]` (f32 or bf16), packed as [`pack`] makes it of `[k, n]`; the result is `[.., n]`.
///
/// # Panics
/// Where x does not end in `k` or `packed` has another shape than [`packed_shape`]; `out` is f32 or bf16.
pub fn linear_packed<const D: usize>(x: Tensor<D>, packed: Tensor<2>, k: usize, n: usize, out: DType) -> Tensor<D> {
    let mut shape = x.dims();
    assert_eq!(shape[D - 1], k, "linear_packed: x is {shape:?}, its last axis should be k = {k}");
    assert_eq!(packed.dims(), packed_shape([k, n]), "linear_packed: the packed weight of [{k}, {n}] has another shape");
    assert!(matches!(out, DType::F32 | DType::BF16), "linear_packed: gives f32 or bf16, not {out:?}");
    let rows: usize = shape[..D - 1].iter().product();
    let x: Tensor<2> = x.reshape([rows, k]);
    shape[D - 1] = n;
    if fits(&x) && fits(&packed) {
        let (x, packed) = (x.into_dispatch(), packed.inner().into_dispatch());
        let y = <Dispatch as Differentiable>::linear_packed(x, packed, n, out == DType::BF16);
        return Tensor::<2>::from_dispatch(y).reshape(shape);
    }
    // Elsewhere: on a GPU the packed form is only ever a guest, so the product is taken as Burn takes it.
    let y = x.cast(DType::BF16).cast(DType::F32).matmul(unpack(packed, k, n).cast(DType::F32));
    y.cast(out).reshape(shape)
}

/// Packs `w[k][n]` into panels of bf16.
pub(crate) fn pack_weight(w: &[bf16], k: usize, n: usize) -> Vec<bf16> {
    let [kp, np] = packed_shape([k, n]);
    let mut packed = vec![bf16::ZERO; kp * np];
    packed.par_chunks_mut(kp * PANEL).enumerate().for_each(|(j, panel)| {
        let first = j * PANEL;
        let columns = PANEL.min(n.saturating_sub(first));
        for (i, row) in w.chunks_exact(n).enumerate() {
            let pair = &mut panel[i / 2 * 2 * PANEL..][..2 * PANEL];
            for (c, x) in row[first.min(n)..][..columns].iter().enumerate() {
                pair[2 * c + i % 2] = *x;
            }
        }
    });
    packed
}

/// `x[m][k]` times packed weights, with the instructions of `level`.
#[allow(unsafe_code)]
pub(crate) fn linear<T: Real, O: Real>(level: Level, x: &[T], packed: &[bf16], shape: [usize; 3], out: &mut [O]) {
    if shape.contains(&0) {
        return out.fill(O::narrow(0.0));
    }
    let packed = bits(packed);
    // SAFETY: whoever names a level has seen it on this machine.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Amx if shape[0] >= FEW => run::<engine::AmxBf16, T, O>(x, packed, shape, out),
            #[cfg(target_arch = "x86_64")]
            Level::Amx | Level::Avx512Bf16 => run::<engine::Avx512Bf16, T, O>(x, packed, shape, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => run::<engine::Avx512<u16>, T, O>(x, packed, shape, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => run::<engine::Avx2<u16>, T, O>(x, packed, shape, out),
            _ => run::<Plain<u16>, T, O>(x, packed, shape, out),
        }
    }
}

/// Packs the activations for that engine, and multiplies.
///
/// # Safety
/// The CPU has what the engine is made for.
#[allow(unsafe_code)]
unsafe fn run<E: Engine<B = u16>, T: Real, O: Real>(x: &[T], packed: &[u16], shape: [usize; 3], out: &mut [O]) {
    let a = gemm::pack_rows::<T, E::A>(x, shape[0], shape[1]);
    // SAFETY: by the caller's word.
    unsafe { gemm::multiply::<E, O>(&a, packed, shape, out) }
}

/// bf16 numbers as their bits.
pub(crate) fn bits(x: &[bf16]) -> &[u16] {
    use half::slice::HalfFloatSliceExt;
    x.reinterpret_cast()
}

const _: () = assert!(TILE == 512, "a tile is 1024 bytes of bf16, what an AMX register holds");
