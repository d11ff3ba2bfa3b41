//! Fill values: the JSON of `fill_value` as the little-endian bytes of one element.
//!
//! Source: the zarr v2 and v3 specifications. `null` and an absent member are zero, as in TensorStore.
//! Invariant: the result is exactly `dtype.size()` bytes.

use half::{bf16, f16};
use serde_json::Value;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::zarr::short;

/// The bytes of one element; `name` is the document's key.
pub(crate) fn fill_bytes(name: &str, dtype: Dtype, value: Option<&Value>) -> Result<Vec<u8>> {
    let Some(value) = value else {
        return Ok(vec![0; dtype.size()]);
    };
    element(dtype, value).ok_or_else(|| Error::document(name, format!("fill_value {} is not a {dtype}", short(value))))
}

fn element(dtype: Dtype, value: &Value) -> Option<Vec<u8>> {
    use Dtype::*;
    if let Some(digits) = value.as_str().and_then(|text| text.strip_prefix("0x")) {
        return from_hex(dtype, digits);
    }
    match dtype {
        Bool => match value {
            Value::Bool(yes) => Some(vec![u8::from(*yes)]),
            _ => match integer(value)? {
                bit @ 0..=1 => Some(vec![u8::from(bit == 1)]),
                _ => None,
            },
        },
        I8 => i8::try_from(integer(value)?).ok().map(|n| n.to_le_bytes().to_vec()),
        U8 => u8::try_from(integer(value)?).ok().map(|n| n.to_le_bytes().to_vec()),
        I16 => i16::try_from(integer(value)?).ok().map(|n| n.to_le_bytes().to_vec()),
        U16 => u16::try_from(integer(value)?).ok().map(|n| n.to_le_bytes().to_vec()),
        I32 => i32::try_from(integer(value)?).ok().map(|n| n.to_le_bytes().to_vec()),
        U32 => u32::try_from(integer(value)?).ok().map(|n| n.to_le_bytes().to_vec()),
        I64 => i64::try_from(integer(value)?).ok().map(|n| n.to_le_bytes().to_vec()),
        U64 => u64::try_from(integer(value)?).ok().map(|n| n.to_le_bytes().to_vec()),
        // Sub-byte integers stand sign-extended in a byte of their own.
        I4 => small(value, -8, 7),
        I2 => small(value, -2, 1),
        U4 => small(value, 0, 15),
        U2 => small(value, 0, 3),
        F16 => Some(f16::from_f64(real(value)?).to_le_bytes().to_vec()),
        Bf16 => Some(bf16::from_f64(real(value)?).to_le_bytes().to_vec()),
        F32 => Some(to_f32(real(value)?).to_le_bytes().to_vec()),
        F64 => Some(real(value)?.to_le_bytes().to_vec()),
        C64 => complex(value).map(|(re, im)| [to_f32(re).to_le_bytes(), to_f32(im).to_le_bytes()].concat()),
        C128 => complex(value).map(|(re, im)| [re.to_le_bytes(), im.to_le_bytes()].concat()),
        // Zero is zero bits in every one of these but e8m0, which has none; other values come as hex.
        F8E4M3Fn | F8E4M3Fnuz | F8E4M3B11Fnuz | F8E5M2 | F8E5M2Fnuz | F8E3M4 | F8E4M3 | F8E8M0Fnu => {
            (real(value)?.to_bits() == 0).then(|| vec![0])
        }
    }
}

/// A whole number, also where it is written as `0.0`.
fn integer(value: &Value) -> Option<i128> {
    if let Some(n) = value.as_i64() {
        return Some(i128::from(n));
    }
    if let Some(n) = value.as_u64() {
        return Some(i128::from(n));
    }
    let n = value.as_f64()?;
    // Whole and below 2^53: the conversion is exact.
    #[allow(clippy::cast_possible_truncation)]
    (n.fract() == 0.0 && n.abs() < 9_007_199_254_740_992.0).then_some(n as i128)
}

fn small(value: &Value, low: i8, high: i8) -> Option<Vec<u8>> {
    let n = i8::try_from(integer(value)?).ok()?;
    (low..=high).contains(&n).then(|| n.to_le_bytes().to_vec())
}

fn real(value: &Value) -> Option<f64> {
    match value.as_str() {
        None => value.as_f64(),
        Some("NaN") => Some(f64::NAN),
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some(_) => None,
    }
}

#[allow(clippy::cast_possible_truncation)] // rounding to nearest is what is wanted
fn to_f32(n: f64) -> f32 {
    n as f32
}

fn complex(value: &Value) -> Option<(f64, f64)> {
    match value.as_array().map(Vec::as_slice) {
        Some([re, im]) => Some((real(re)?, real(im)?)),
        Some(_) => None,
        None => Some((real(value)?, 0.0)),
    }
}

/// zarr v3: the element's bits, most significant digit first.
fn from_hex(dtype: Dtype, digits: &str) -> Option<Vec<u8>> {
    if digits.len() != dtype.size().checked_mul(2)? || !dtype.is_float() {
        return None;
    }
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let bits = u64::from_str_radix(digits, 16).ok()?;
    bits.to_le_bytes().get(..dtype.size()).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(dtype: Dtype, value: Value) -> Option<Vec<u8>> {
        fill_bytes("a", dtype, Some(&value)).ok()
    }

    #[test]
    fn no_value_is_zeros_of_the_right_size() {
        for dtype in Dtype::all() {
            assert_eq!(fill_bytes("a", dtype, None).unwrap(), vec![0; dtype.size()]);
        }
    }

    #[test]
    fn numbers_become_their_little_endian_bytes() {
        assert_eq!(fill(Dtype::F32, json!(1.5)), Some(1.5f32.to_le_bytes().to_vec()));
        assert_eq!(fill(Dtype::Bf16, json!(1)), Some(vec![0x80, 0x3f]));
        assert_eq!(fill(Dtype::F16, json!(1)), Some(vec![0x00, 0x3c]));
        assert_eq!(fill(Dtype::I16, json!(-2)), Some(vec![0xfe, 0xff]));
        assert_eq!(fill(Dtype::U64, json!(u64::MAX)), Some(vec![0xff; 8]));
        assert_eq!(fill(Dtype::I64, json!(3.0)), Some(3i64.to_le_bytes().to_vec()));
        assert_eq!(fill(Dtype::Bool, json!(true)), Some(vec![1]));
        assert_eq!(fill(Dtype::I4, json!(-8)), Some(vec![0xf8]));
        assert_eq!(fill(Dtype::C64, json!([1.0, "NaN"])).unwrap().len(), 8);
        assert_eq!(fill(Dtype::F64, json!("-Infinity")), Some(f64::NEG_INFINITY.to_le_bytes().to_vec()));
        assert_eq!(fill(Dtype::F32, json!("0x7fc00000")), Some(f32::NAN.to_le_bytes().to_vec()));
        assert_eq!(fill(Dtype::F8E5M2, json!("0x7c")), Some(vec![0x7c]));
        assert_eq!(fill(Dtype::F8E5M2, json!(0.0)), Some(vec![0]));
    }

    #[test]
    fn a_value_that_is_not_of_the_type_is_refused() {
        for (dtype, value) in [
            (Dtype::U8, json!(256)),
            (Dtype::I4, json!(8)),
            (Dtype::I32, json!(0.5)),
            (Dtype::F32, json!("one")),
            (Dtype::F32, json!("0x7f")),
            (Dtype::F32, json!("0x+7fc0000")),
            (Dtype::F32, json!([1.0, 2.0])),
            (Dtype::Bool, json!(2)),
            (Dtype::C64, json!([1.0])),
            (Dtype::F8E4M3, json!(1.0)),
            (Dtype::I32, json!({})),
        ] {
            let error = fill_bytes("a/.zarray", dtype, Some(&value)).unwrap_err().to_string();
            assert!(error.starts_with("a/.zarray: fill_value"), "{error}");
        }
    }
}
