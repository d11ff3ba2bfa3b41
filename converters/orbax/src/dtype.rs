//! Element types: numpy's, and the small floats and integers of `ml_dtypes`, with every spelling a format has for them.
//!
//! Sources: the zarr v2 and v3 drivers of TensorStore (<https://github.com/google/tensorstore> at bc4fbc11f), which write the types numpy
//! does not know under their bare name; the safetensors format.
//! Invariant: one row per type in [`TABLE`]; every spelling is read from it in both directions.

use std::fmt;

/// Element types that Orbax stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
#[rustfmt::skip]
pub enum Dtype {
    Bool, I8, U8, I16, U16, I32, U32, I64, U64, F16, Bf16, F32, F64, C64, C128,
    F8E4M3Fn, F8E4M3Fnuz, F8E4M3B11Fnuz, F8E5M2, F8E5M2Fnuz, F8E3M4, F8E4M3, F8E8M0Fnu, I4, U4, I2, U2,
}

/// What is known of one type.
struct Row {
    dtype: Dtype,
    size: usize,
    name: &'static str,
    zarr2: &'static str,
    safetensors: Option<&'static str>,
}

const fn row(
    dtype: Dtype,
    size: usize,
    name: &'static str,
    zarr2: &'static str,
    safetensors: Option<&'static str>,
) -> Row {
    Row { dtype, size, name, zarr2, safetensors }
}

/// dtype, bytes, numpy's and zarr v3's name, zarr v2's string, safetensors' name.
#[rustfmt::skip]
const TABLE: [Row; 27] = [
    row(Dtype::Bool,          1,  "bool",                "|b1",                 Some("BOOL")),
    row(Dtype::I8,            1,  "int8",                "|i1",                 Some("I8")),
    row(Dtype::U8,            1,  "uint8",               "|u1",                 Some("U8")),
    row(Dtype::I16,           2,  "int16",               "<i2",                 Some("I16")),
    row(Dtype::U16,           2,  "uint16",              "<u2",                 Some("U16")),
    row(Dtype::I32,           4,  "int32",               "<i4",                 Some("I32")),
    row(Dtype::U32,           4,  "uint32",              "<u4",                 Some("U32")),
    row(Dtype::I64,           8,  "int64",               "<i8",                 Some("I64")),
    row(Dtype::U64,           8,  "uint64",              "<u8",                 Some("U64")),
    row(Dtype::F16,           2,  "float16",             "<f2",                 Some("F16")),
    row(Dtype::Bf16,          2,  "bfloat16",            "bfloat16",            Some("BF16")),
    row(Dtype::F32,           4,  "float32",             "<f4",                 Some("F32")),
    row(Dtype::F64,           8,  "float64",             "<f8",                 Some("F64")),
    row(Dtype::C64,           8,  "complex64",           "<c8",                 Some("C64")),
    row(Dtype::C128,          16, "complex128",          "<c16",                None),
    row(Dtype::F8E4M3Fn,      1,  "float8_e4m3fn",       "float8_e4m3fn",       Some("F8_E4M3")),
    row(Dtype::F8E4M3Fnuz,    1,  "float8_e4m3fnuz",     "float8_e4m3fnuz",     Some("F8_E4M3FNUZ")),
    row(Dtype::F8E4M3B11Fnuz, 1,  "float8_e4m3b11fnuz",  "float8_e4m3b11fnuz",  None),
    row(Dtype::F8E5M2,        1,  "float8_e5m2",         "float8_e5m2",         Some("F8_E5M2")),
    row(Dtype::F8E5M2Fnuz,    1,  "float8_e5m2fnuz",     "float8_e5m2fnuz",     Some("F8_E5M2FNUZ")),
    row(Dtype::F8E3M4,        1,  "float8_e3m4",         "float8_e3m4",         None),
    row(Dtype::F8E4M3,        1,  "float8_e4m3",         "float8_e4m3",         None),
    row(Dtype::F8E8M0Fnu,     1,  "float8_e8m0fnu",      "float8_e8m0fnu",      Some("F8_E8M0")),
    row(Dtype::I4,            1,  "int4",                "int4",                None),
    row(Dtype::U4,            1,  "uint4",               "uint4",               None),
    row(Dtype::I2,            1,  "int2",                "int2",                None),
    row(Dtype::U2,            1,  "uint2",               "uint2",               None),
];

impl Dtype {
    /// Every type, in the order of the enum.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.dtype)
    }

    fn row(self) -> &'static Row {
        // The table stands in the enum's order (a test holds it), so the search ends; the first row is never the answer for another type.
        TABLE.iter().find(|row| row.dtype == self).unwrap_or(&TABLE[0])
    }

    /// Bytes an element takes in a chunk and in memory (1 for the sub-byte types: they are not packed).
    pub fn size(self) -> usize {
        self.row().size
    }

    /// numpy's name: `float32`, `bfloat16`, `bool`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// From numpy's name.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.dtype)
    }

    /// The `dtype` of a `.zarray` document, little endian: `<f4`, `|u1`, `bfloat16`.
    pub fn zarr2(self) -> &'static str {
        self.row().zarr2
    }

    /// From the `dtype` of a `.zarray` document; `true` where the bytes are big endian (`>f4`).
    pub fn from_zarr2(text: &str) -> Option<(Self, bool)> {
        if let Some(row) = TABLE.iter().find(|row| row.zarr2 == text) {
            return Some((row.dtype, false));
        }
        // numpy's code: a byte order, then kind and size. The order of a one-byte type means nothing.
        let (order, code) = text.split_at_checked(1)?;
        let row = TABLE.iter().find(|row| row.zarr2.starts_with(['<', '|']) && row.zarr2.get(1..) == Some(code))?;
        match order {
            ">" => Some((row.dtype, row.size > 1)),
            "<" => Some((row.dtype, false)),
            "|" if row.size == 1 => Some((row.dtype, false)),
            _ => None,
        }
    }

    /// The `data_type` of a `zarr.json` document: numpy's name.
    pub fn zarr3(self) -> &'static str {
        self.row().name
    }

    /// From the `data_type` of a `zarr.json` document.
    pub fn from_zarr3(name: &str) -> Option<Self> {
        Self::from_name(name)
    }

    /// The safetensors name (`F32`, `BF16`); `None` where that format has no such type.
    pub fn safetensors(self) -> Option<&'static str> {
        self.row().safetensors
    }

    /// From the safetensors name.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.safetensors == Some(name)).map(|row| row.dtype)
    }

    /// A real floating point type, of whatever width (complex is not one).
    pub fn is_float(self) -> bool {
        use Dtype::*;
        match self {
            F16 | Bf16 | F32 | F64 | F8E4M3Fn | F8E4M3Fnuz | F8E4M3B11Fnuz | F8E5M2 | F8E5M2Fnuz | F8E3M4 | F8E4M3
            | F8E8M0Fnu => true,
            Bool | I8 | U8 | I16 | U16 | I32 | U32 | I64 | U64 | C64 | C128 | I4 | U4 | I2 | U2 => false,
        }
    }

    /// Bytes of the unit a byte order applies to: an element, or one part of a complex number.
    pub(crate) fn swap_unit(self) -> usize {
        match self {
            Dtype::C64 => 4,
            Dtype::C128 => 8,
            other => other.size(),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_stands_at_its_types_place() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.dtype as usize, i);
            assert_eq!(row.dtype.row().name, row.name);
        }
    }

    #[test]
    fn every_spelling_comes_home() {
        for dtype in Dtype::all() {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            assert_eq!(Dtype::from_zarr2(dtype.zarr2()), Some((dtype, false)));
            assert_eq!(Dtype::from_zarr3(dtype.zarr3()), Some(dtype));
            if let Some(name) = dtype.safetensors() {
                assert_eq!(Dtype::from_safetensors(name), Some(dtype));
            }
            assert_eq!(dtype.to_string(), dtype.name());
        }
    }

    #[test]
    fn a_big_endian_string_says_so_and_a_one_byte_one_does_not() {
        assert_eq!(Dtype::from_zarr2(">f4"), Some((Dtype::F32, true)));
        assert_eq!(Dtype::from_zarr2(">c16"), Some((Dtype::C128, true)));
        assert_eq!(Dtype::from_zarr2(">u1"), Some((Dtype::U8, false)));
        assert_eq!(Dtype::from_zarr2("<i1"), Some((Dtype::I8, false)));
    }

    #[test]
    fn strange_strings_are_no_type() {
        for text in ["", "f4", "|f4", "<f3", "=f4", ">bfloat16", "<V2", "é4", "<c32", "O", "[('a', '<f4')]"] {
            assert_eq!(Dtype::from_zarr2(text), None, "{text:?}");
        }
        assert_eq!(Dtype::from_name("float4"), None);
        assert_eq!(Dtype::from_safetensors("F4"), None);
    }

    #[test]
    fn floats_are_floats() {
        assert!(Dtype::Bf16.is_float() && Dtype::F8E4M3.is_float());
        assert!(!Dtype::C64.is_float() && !Dtype::I4.is_float() && !Dtype::Bool.is_float());
    }
}
