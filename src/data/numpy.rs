//! numpy's dtypes: their names, and the bytes of their elements as [`Values`] and back.
//!
//! Source: numpy's array interface (`dtype.str`: byte order, kind, bytes of an element). Read here by pickles and by the
//! wire protocol, written by both. Invariant: a dtype that [`Values`] lacks is widened to one that holds each of its values
//! exactly, at most to four times its bytes; what no dtype holds is refused.

#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::borrow::Cow;

use half::f16;

use crate::policy::array::Values;

/// A dtype: its character, bytes of an element, and the order of these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtype {
    /// `b`, `i`, `u`, `f`; `U` for texts, `O` for Python's objects.
    pub kind: char,
    /// Bytes of an element.
    pub size: usize,
    /// Is the first of them the highest?
    pub big_endian: bool,
}

/// Why bytes are no [`Values`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Texts, objects.
    #[error("an array of a dtype that is no number")]
    NoNumber,
    /// Whole numbers above `i64::MAX`.
    #[error("a uint64 of more than 63 bits")]
    Bits,
}

impl Dtype {
    /// Without byte order, as pickles name them: `f8`, `U12`, `O8`. Little-endian.
    pub fn plain(name: &str) -> Option<Self> {
        let mut rest = name.chars();
        let kind = rest.next()?;
        // `parse` takes a sign.
        let digits = Some(rest.as_str()).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        let number: usize = digits.parse().ok()?;
        let size = match (kind, number) {
            ('b', 1) | ('i' | 'u', 1 | 2 | 4 | 8) | ('f', 2 | 4 | 8) | ('O', 8 | 4) => number,
            // UTF-32.
            ('U', characters) => characters.checked_mul(4)?,
            _ => return None,
        };
        Some(Dtype { kind, size, big_endian: false })
    }

    /// With byte order, as `dtype.str` names them: `<f4`, `>i2`, `|u1`.
    pub fn ordered(name: &str) -> Option<Self> {
        let plain = name.strip_prefix(['<', '|', '>'])?;
        Some(Dtype { big_endian: name.starts_with('>'), ..Self::plain(plain)? })
    }

    /// How many bytes [`Values`] take for an element.
    pub fn held_bytes(self) -> usize {
        match (self.kind, self.size) {
            ('i', 1 | 2) | ('u', 2) | ('f', 2) => 4,
            ('u', 4) => 8,
            (_, size) => size,
        }
    }

    /// Elements, one after the other. Bytes beyond the last whole element are passed over.
    ///
    /// # Errors
    /// A dtype of no numbers, or a number that none holds.
    pub fn values(self, data: Cow<'_, [u8]>) -> Result<Values, Misfit> {
        macro_rules! of {
            ($type:ty) => {
                self.each(&data, <$type>::from_le_bytes, <$type>::from_be_bytes)
            };
        }
        Ok(match (self.kind, self.size) {
            ('u', 1) => Values::U8(data.into_owned()),
            ('b', 1) => Values::Bool(data.iter().map(|x| *x != 0).collect()),
            ('i', 1) => Values::I32(of!(i8).map(i32::from).collect()),
            ('i', 2) => Values::I32(of!(i16).map(i32::from).collect()),
            ('u', 2) => Values::I32(of!(u16).map(i32::from).collect()),
            ('i', 4) => Values::I32(of!(i32).collect()),
            ('i', 8) => Values::I64(of!(i64).collect()),
            ('u', 4) => Values::I64(of!(u32).map(i64::from).collect()),
            ('u', 8) => {
                let values: Result<_, _> = of!(u64).map(i64::try_from).collect();
                Values::I64(values.map_err(|_| Misfit::Bits)?)
            }
            ('f', 2) => Values::F32(of!(f16).map(f32::from).collect()),
            ('f', 4) => Values::F32(of!(f32).collect()),
            ('f', 8) => Values::F64(of!(f64).collect()),
            _ => return Err(Misfit::NoNumber),
        })
    }

    /// One element of `U`; `None` for characters that Unicode lacks.
    pub fn text(self, data: &[u8]) -> Option<String> {
        let characters: Vec<u32> = self.each(data, u32::from_le_bytes, u32::from_be_bytes).collect();
        // numpy fills up with zeros.
        let end = characters.iter().rposition(|c| *c != 0).map_or(0, |last| last.saturating_add(1));
        characters.iter().take(end).map(|c| char::from_u32(*c)).collect()
    }

    fn each<const N: usize, T>(
        self,
        data: &[u8],
        le: fn([u8; N]) -> T,
        be: fn([u8; N]) -> T,
    ) -> impl Iterator<Item = T> {
        let read = if self.big_endian { be } else { le };
        data.as_chunks().0.iter().map(move |bytes| read(*bytes))
    }
}

/// `dtype.str` of values: `<f4`.
pub fn name(values: &Values) -> &'static str {
    match values {
        Values::U8(_) => "|u1",
        Values::I32(_) => "<i4",
        Values::I64(_) => "<i8",
        Values::F32(_) => "<f4",
        Values::F64(_) => "<f8",
        Values::Bool(_) => "|b1",
    }
}

/// Appends the bytes of values, as [`name`] says them.
pub fn put(values: &Values, out: &mut Vec<u8>) {
    fn each<T: Copy, const N: usize>(values: &[T], out: &mut Vec<u8>, bytes: fn(T) -> [u8; N]) {
        values.iter().for_each(|x| out.extend_from_slice(&bytes(*x)));
    }
    out.reserve(values.bytes());
    match values {
        Values::U8(x) => out.extend_from_slice(x),
        Values::Bool(x) => out.extend(x.iter().map(|x| u8::from(*x))),
        Values::I32(x) => each(x, out, i32::to_le_bytes),
        Values::I64(x) => each(x, out, i64::to_le_bytes),
        Values::F32(x) => each(x, out, f32::to_le_bytes),
        Values::F64(x) => each(x, out, f64::to_le_bytes),
    }
}

/// One list after another, as `np.asarray` joins them: whole numbers among floats are floats. `None` for what it would not
/// join, and for bytes or texts among others.
pub fn joined(all: Values, item: Values) -> Option<Values> {
    fn with<T>(mut all: Vec<T>, item: Vec<T>) -> Vec<T> {
        all.extend(item);
        all
    }
    Some(match (all, item) {
        (Values::U8(a), Values::U8(b)) => Values::U8(with(a, b)),
        (Values::I32(a), Values::I32(b)) => Values::I32(with(a, b)),
        (Values::I64(a), Values::I64(b)) => Values::I64(with(a, b)),
        (Values::F32(a), Values::F32(b)) => Values::F32(with(a, b)),
        (Values::F64(a), Values::F64(b)) => Values::F64(with(a, b)),
        (Values::Bool(a), Values::Bool(b)) => Values::Bool(with(a, b)),
        (all @ Values::I64(_), Values::F64(b)) => Values::F64(with(all.to_f64(), b)),
        (Values::F64(a), item @ Values::I64(_)) => Values::F64(with(a, item.to_f64())),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_dtypes_come_back_from_their_bytes_and_their_name() {
        let all = [
            Values::U8(vec![0, 255]),
            Values::I32(vec![i32::MIN, 7]),
            Values::I64(vec![i64::MIN, 7]),
            Values::F32(vec![f32::MIN_POSITIVE, -0.5]),
            Values::F64(vec![f64::MAX, -0.5]),
            Values::Bool(vec![true, false]),
        ];
        for values in all {
            let mut bytes = vec![];
            put(&values, &mut bytes);
            assert_eq!(bytes.len(), values.bytes());
            let dtype = Dtype::ordered(name(&values)).expect("known");
            assert_eq!(dtype.held_bytes(), dtype.size);
            assert_eq!(dtype.values(Cow::Borrowed(&bytes)), Ok(values));
        }
    }

    #[test]
    fn names_that_numpy_lacks_or_that_hold_no_numbers_are_none() {
        for name in ["f4", "<f3", "<c8", "<M8[ns]", "|V8", "", "<", "<f", "<f+4", "<U99999999999999999999", "=f4"] {
            assert_eq!(Dtype::ordered(name), None, "{name}");
        }
        assert_eq!(Dtype::ordered(">f4"), Some(Dtype { kind: 'f', size: 4, big_endian: true }));
        let object = Dtype::ordered("|O8").expect("known");
        assert_eq!(object.values(Cow::Borrowed(&[0; 8])), Err(Misfit::NoNumber));
        let long = Dtype::ordered("<u8").expect("known");
        assert_eq!(long.values(Cow::Borrowed(&[255; 8])), Err(Misfit::Bits));
    }
}
