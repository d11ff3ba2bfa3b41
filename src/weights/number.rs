//! What an element's bytes say, exactly, whatever its type.
//!
//! Invariant: no value is rounded on the way: every float type here fits in f64, every integer in i128.
//! Source of the 8-bit floats: the format table of ml_dtypes, <https://github.com/jax-ml/ml_dtypes>.

use half::{bf16, f16};
use orbax::Dtype;

/// One element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    /// Integers and booleans.
    Int(i128),
    /// Real floating-point types.
    Float(f64),
    /// Real and imaginary part.
    Complex(f64, f64),
}

impl Number {
    /// Reads one element; `bytes` are its own, little endian.
    pub(crate) fn read(dtype: Dtype, bytes: &[u8]) -> Self {
        use Dtype::*;
        match dtype {
            Bool | U8 => Number::Int(array::<1>(bytes)[0].into()),
            I8 => Number::Int(i8::from_le_bytes(array(bytes)).into()),
            I16 => Number::Int(i16::from_le_bytes(array(bytes)).into()),
            U16 => Number::Int(u16::from_le_bytes(array(bytes)).into()),
            I32 => Number::Int(i32::from_le_bytes(array(bytes)).into()),
            U32 => Number::Int(u32::from_le_bytes(array(bytes)).into()),
            I64 => Number::Int(i64::from_le_bytes(array(bytes)).into()),
            U64 => Number::Int(u64::from_le_bytes(array(bytes)).into()),
            // Small integers lie unpacked in the low bits of a byte.
            I4 => Number::Int(((array::<1>(bytes)[0] << 4) as i8 >> 4).into()),
            U4 => Number::Int((array::<1>(bytes)[0] & 15).into()),
            I2 => Number::Int(((array::<1>(bytes)[0] << 6) as i8 >> 6).into()),
            U2 => Number::Int((array::<1>(bytes)[0] & 3).into()),
            C64 => {
                let (re, im) = bytes.split_at(bytes.len().min(4));
                Number::Complex(f32::from_le_bytes(array(re)).into(), f32::from_le_bytes(array(im)).into())
            }
            C128 => {
                let (re, im) = bytes.split_at(bytes.len().min(8));
                Number::Complex(f64::from_le_bytes(array(re)), f64::from_le_bytes(array(im)))
            }
            F16 => Number::Float(f16::from_le_bytes(array(bytes)).to_f64()),
            Bf16 => Number::Float(bf16::from_le_bytes(array(bytes)).to_f64()),
            F32 => Number::Float(f32::from_le_bytes(array(bytes)).into()),
            F64 => Number::Float(f64::from_le_bytes(array(bytes))),
            F8E4M3Fn | F8E4M3Fnuz | F8E4M3B11Fnuz | F8E5M2 | F8E5M2Fnuz | F8E3M4 | F8E4M3 | F8E8M0Fnu => {
                Number::Float(eighth(dtype, array::<1>(bytes)[0]))
            }
        }
    }
}

/// Reads all elements of a real floating-point type; `false` (and nothing read) for the others.
pub(crate) fn floats(dtype: Dtype, bytes: &[u8], out: &mut Vec<f64>) -> bool {
    out.clear();
    match dtype {
        Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)))),
        Dtype::F64 => out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b))),
        Dtype::Bf16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64())),
        Dtype::F16 => out.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64())),
        _ if dtype.is_float() => out.extend(bytes.iter().map(|b| eighth(dtype, *b))),
        _ => return false,
    }
    true
}

/// An element as its own type prints it: the shortest decimal that reads back.
pub(crate) fn text(dtype: Dtype, bytes: &[u8]) -> String {
    match Number::read(dtype, bytes) {
        Number::Int(i) if dtype == Dtype::Bool => (i != 0).to_string(),
        Number::Int(i) => i.to_string(),
        Number::Float(x) if dtype == Dtype::F64 => format!("{x:?}"),
        Number::Float(x) => format!("{:?}", x as f32),
        Number::Complex(re, im) if dtype == Dtype::C64 => format!("{:?}{:+?}j", re as f32, im as f32),
        Number::Complex(re, im) => format!("{re:?}{im:+?}j"),
    }
}

/// The first bytes; a shorter slice is filled up with zeros.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut all = [0; N];
    all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    all
}

/// Which bit patterns of an 8-bit float are no numbers.
#[derive(Clone, Copy, PartialEq)]
enum Special {
    /// The largest exponent, as IEEE has it.
    Ieee,
    /// All ones; no infinity.
    Ones,
    /// Minus zero; no infinity.
    MinusZero,
}

/// An 8-bit float.
fn eighth(dtype: Dtype, bits: u8) -> f64 {
    let (mantissa_bits, bias, special) = match dtype {
        Dtype::F8E8M0Fnu if bits == 0xff => return f64::NAN,
        Dtype::F8E8M0Fnu => return 2f64.powi(i32::from(bits) - 127),
        Dtype::F8E4M3Fn => (3, 7, Special::Ones),
        Dtype::F8E4M3Fnuz => (3, 8, Special::MinusZero),
        Dtype::F8E4M3B11Fnuz => (3, 11, Special::MinusZero),
        Dtype::F8E5M2 => (2, 15, Special::Ieee),
        Dtype::F8E5M2Fnuz => (2, 16, Special::MinusZero),
        Dtype::F8E3M4 => (4, 3, Special::Ieee),
        _ => (3, 7, Special::Ieee),
    };
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let magnitude = bits & 0x7f;
    let (exponent, mantissa) = (magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1));
    match special {
        Special::Ieee if exponent == 0x7f >> mantissa_bits => {
            return if mantissa == 0 { sign * f64::INFINITY } else { f64::NAN };
        }
        Special::Ones if magnitude == 0x7f => return f64::NAN,
        Special::MinusZero if bits == 0x80 => return f64::NAN,
        _ => {}
    }
    let (exponent, lead) = if exponent == 0 { (1, 0) } else { (exponent, 1 << mantissa_bits) };
    sign * f64::from(lead + mantissa) * 2f64.powi(i32::from(exponent) - bias - mantissa_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extremes_of_every_8_bit_float_are_those_of_its_definition() {
        // Type, largest number, its bits, smallest number above zero (bits 1; for e8m0 bits 0).
        let table = [
            (Dtype::F8E4M3Fn, 448.0, 0x7e, 2f64.powi(-9)),
            (Dtype::F8E4M3Fnuz, 240.0, 0x7f, 2f64.powi(-10)),
            (Dtype::F8E4M3B11Fnuz, 30.0, 0x7f, 2f64.powi(-13)),
            (Dtype::F8E5M2, 57344.0, 0x7b, 2f64.powi(-16)),
            (Dtype::F8E5M2Fnuz, 57344.0, 0x7f, 2f64.powi(-17)),
            (Dtype::F8E3M4, 15.5, 0x6f, 2f64.powi(-6)),
            (Dtype::F8E4M3, 240.0, 0x77, 2f64.powi(-9)),
        ];
        for (dtype, largest, bits, smallest) in table {
            assert_eq!(eighth(dtype, bits), largest, "{dtype}");
            assert_eq!(eighth(dtype, bits | 0x80), -largest, "{dtype}");
            assert_eq!(eighth(dtype, 1), smallest, "{dtype}");
            let all: Vec<u8> = (0..=255).collect();
            let mut read = vec![];
            assert!(floats(dtype, &all, &mut read));
            assert!(read.iter().all(|x| !x.is_finite() || x.abs() <= largest), "{dtype}");
            assert!(read.iter().any(|x| x.is_nan()), "{dtype}");
        }
        assert_eq!(eighth(Dtype::F8E8M0Fnu, 127), 1.0);
        assert!(eighth(Dtype::F8E8M0Fnu, 255).is_nan());
    }

    #[test]
    fn small_integers_keep_their_sign_and_large_ones_all_their_bits() {
        assert_eq!(Number::read(Dtype::I4, &[0x0f]), Number::Int(-1));
        assert_eq!(Number::read(Dtype::I2, &[2]), Number::Int(-2));
        assert_eq!(Number::read(Dtype::U4, &[0xff]), Number::Int(15));
        assert_eq!(Number::read(Dtype::U64, &u64::MAX.to_le_bytes()), Number::Int(u64::MAX.into()));
        assert_eq!(Number::read(Dtype::I64, &i64::MIN.to_le_bytes()), Number::Int(i64::MIN.into()));
    }

    #[test]
    fn every_type_is_read_and_floats_are_read_alike_one_by_one_and_together() {
        let bytes: Vec<u8> = (0..16u8).map(|i| i.wrapping_mul(37)).collect();
        for dtype in Dtype::all() {
            let one = Number::read(dtype, &bytes[..dtype.size()]);
            let mut all = vec![];
            if floats(dtype, &bytes[..dtype.size()], &mut all) {
                assert_eq!(one, Number::Float(all[0]), "{dtype}");
            } else {
                assert!(!dtype.is_float(), "{dtype}");
            }
        }
        assert_eq!(text(Dtype::F32, &0.1f32.to_le_bytes()), "0.1");
        assert_eq!(text(Dtype::C64, &[0, 0, 128, 63, 0, 0, 0, 192]), "1.0-2.0j");
    }
}
