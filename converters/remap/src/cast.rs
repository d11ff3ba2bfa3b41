//! From one floating-point type to another: round to nearest even, once, and count what changed.

use half::{bf16, f16};
use orbax::Dtype;

/// Appends `from`'s elements as `to` and gives how many changed their value. Equal types are copied.
///
/// # Errors
/// `None` where there is no such conversion; [`castable`] tells beforehand.
pub(crate) fn cast(from: Dtype, to: Dtype, bytes: &[u8], out: &mut Vec<u8>) -> Option<u64> {
    use Dtype::{Bf16, F16, F32, F64};
    out.clear();
    Some(match (from, to) {
        _ if from == to => {
            out.extend_from_slice(bytes);
            0
        }
        (F32, Bf16) => each(bytes, out, |b| f32_to_bf16(f32::from_le_bytes(b))),
        (F32, F16) => each(bytes, out, |b| {
            let x = f32::from_le_bytes(b);
            let y = f16::from_f32(x);
            (y.to_le_bytes(), differs(f64::from(x), f64::from(y)))
        }),
        (F64, F32) => each(bytes, out, |b| {
            let x = f64::from_le_bytes(b);
            ((x as f32).to_le_bytes(), differs(x, f64::from(x as f32)))
        }),
        (F64, Bf16) => each(bytes, out, |b| {
            let x = f64::from_le_bytes(b);
            let y = bf16::from_f32(round_to_odd(x));
            (y.to_le_bytes(), differs(x, f64::from(y)))
        }),
        (F64, F16) => each(bytes, out, |b| {
            let x = f64::from_le_bytes(b);
            let y = f16::from_f32(round_to_odd(x));
            (y.to_le_bytes(), differs(x, f64::from(y)))
        }),
        (Bf16, F16) => each(bytes, out, |b| {
            let x = bf16::from_le_bytes(b);
            let y = f16::from_f32(x.to_f32());
            (y.to_le_bytes(), differs(f64::from(x), f64::from(y)))
        }),
        (F16, Bf16) => each(bytes, out, |b| f32_to_bf16(f16::from_le_bytes(b).to_f32())),
        (Bf16, F32) => each(bytes, out, |b| (bf16::from_le_bytes(b).to_f32().to_le_bytes(), false)),
        (F16, F32) => each(bytes, out, |b| (f16::from_le_bytes(b).to_f32().to_le_bytes(), false)),
        (F32, F64) => each(bytes, out, |b| (f64::from(f32::from_le_bytes(b)).to_le_bytes(), false)),
        (Bf16, F64) => each(bytes, out, |b| (bf16::from_le_bytes(b).to_f64().to_le_bytes(), false)),
        (F16, F64) => each(bytes, out, |b| (f16::from_le_bytes(b).to_f64().to_le_bytes(), false)),
        _ => return None,
    })
}

/// Is there a conversion?
pub fn castable(from: Dtype, to: Dtype) -> bool {
    let float = |d| matches!(d, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64);
    from == to || (float(from) && float(to))
}

fn each<const N: usize, const M: usize>(
    bytes: &[u8],
    out: &mut Vec<u8>,
    f: impl Fn([u8; N]) -> ([u8; M], bool),
) -> u64 {
    let (elements, _) = bytes.as_chunks::<N>();
    out.resize(elements.len() * M, 0);
    let (outs, _) = out.as_chunks_mut::<M>();
    let mut changed = 0;
    for (o, e) in outs.iter_mut().zip(elements) {
        let (value, differs) = f(*e);
        *o = value;
        changed += u64::from(differs);
    }
    changed
}

fn differs(a: f64, b: f64) -> bool {
    // A NaN that stays a NaN has not changed its value.
    a != b && !(a.is_nan() && b.is_nan())
}

/// f64 to f32 so that a further rounding to a narrower type is the only one: truncated, and odd where inexact.
/// (`half`'s own `from_f64` drops the lower 32 bits and with them what breaks a tie.)
fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || x.is_nan() {
        return near;
    }
    let toward_zero = if f64::from(near).abs() > x.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(toward_zero | 1)
}

/// Without branches, so that the loop over it vectorises.
fn f32_to_bf16(x: f32) -> ([u8; 2], bool) {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    let nan = ((bits >> 16) | 0x40) as u16;
    let value = if x.is_nan() { nan } else { rounded };
    (value.to_le_bytes(), bits & 0xffff != 0 && !x.is_nan())
}

/// Reads elements of a floating-point type as f64; `None` for other types.
pub(crate) fn to_f64(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    let mut out = vec![];
    cast(dtype, Dtype::F64, bytes, &mut out)?;
    Some(out.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_comes_home_through_f32_and_f64() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for wide in [Dtype::F32, Dtype::F64] {
            let (mut there, mut back) = (vec![], vec![]);
            assert_eq!(cast(Dtype::Bf16, wide, &all, &mut there), Some(0));
            assert_eq!(cast(wide, Dtype::Bf16, &there, &mut back), Some(0), "{wide:?}");
            let nan = |b: &[u8; 2]| bf16::from_le_bytes(*b).is_nan();
            for (a, b) in all.as_chunks::<2>().0.iter().zip(back.as_chunks::<2>().0) {
                assert!(a == b || (nan(a) && nan(b)), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn f32_to_bf16_rounds_like_the_half_crate() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let (bytes, changed) = f32_to_bf16(x);
            let y = bf16::from_f32(x);
            assert_eq!(bf16::from_le_bytes(bytes).is_nan(), y.is_nan());
            if !x.is_nan() {
                assert_eq!(bytes, y.to_le_bytes(), "{x:e}");
                assert_eq!(changed, y.to_f32() != x, "{x:e}");
            }
        }
    }

    #[test]
    fn a_tie_goes_to_even_and_only_once() {
        // Just above a tie in f64: through f32 it would become the tie and go down.
        let x = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let mut out = vec![];
        assert_eq!(cast(Dtype::F64, Dtype::Bf16, &x.to_le_bytes(), &mut out), Some(1));
        assert_eq!(bf16::from_le_bytes([out[0], out[1]]).to_f64(), 1.0 + 2f64.powi(-7));
    }
}
