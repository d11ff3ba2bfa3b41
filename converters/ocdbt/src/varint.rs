//! Unsigned LEB128 integers: 7 bits a byte, low group first, bit 7 set on all but the last byte.
//!
//! Invariant: forms padded with zero groups are accepted when read; the shortest form is written.

/// Why bytes are no varint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The bytes end inside it.
    Truncated,
    /// It has too many bytes or too large a value.
    TooLarge,
}

/// Reads an integer of at most `bits` (64 or 32) bits: its value, and the bytes after it.
pub(crate) fn decode(bytes: &[u8], bits: u32) -> Result<(u64, &[u8]), Unreadable> {
    let mut rest = bytes;
    let mut value = 0u64;
    for shift in (0..bits).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(Unreadable::Truncated)?;
        rest = after;
        let group = u64::from(byte & 0x7f);
        let room = bits.saturating_sub(shift);
        if room < 7 && group >> room != 0 {
            return Err(Unreadable::TooLarge);
        }
        value |= group << shift;
        if byte < 0x80 {
            return Ok((value, rest));
        }
    }
    Err(Unreadable::TooLarge)
}

/// Appends `value` in its shortest form.
pub(crate) fn encode(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a column.
pub(crate) fn encode_all(values: impl IntoIterator<Item = u64>, out: &mut Vec<u8>) {
    for value in values {
        encode(value, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_integer_comes_home(value: u64, after: Vec<u8>) {
            let mut bytes = Vec::new();
            encode(value, &mut bytes);
            bytes.extend_from_slice(&after);
            prop_assert_eq!(decode(&bytes, 64), Ok((value, after.as_slice())));
            if value > u64::from(u32::MAX) {
                prop_assert_eq!(decode(&bytes, 32), Err(Unreadable::TooLarge));
            } else {
                prop_assert_eq!(decode(&bytes, 32), Ok((value, after.as_slice())));
            }
        }

        #[test]
        fn zero_padded_integers_are_accepted_up_to_the_longest_form(value: u32) {
            let mut bytes = Vec::new();
            encode(u64::from(value), &mut bytes);
            while bytes.len() < 5 {
                *bytes.last_mut().unwrap() |= 0x80;
                bytes.push(0);
                prop_assert_eq!(decode(&bytes, 32), Ok((u64::from(value), &[][..])));
            }
        }
    }

    #[test]
    fn the_last_byte_of_the_longest_form_is_limited() {
        let mut ten = [0xff; 10];
        ten[9] = 1;
        assert_eq!(decode(&ten, 64), Ok((u64::MAX, &[][..])));
        ten[9] = 2;
        assert_eq!(decode(&ten, 64), Err(Unreadable::TooLarge));
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 0x10], 32), Err(Unreadable::TooLarge));
        assert_eq!(decode(&[0x80, 0x80, 0x80, 0x80, 0x80, 0], 32), Err(Unreadable::TooLarge));
        assert_eq!(decode(&[0x80, 0x80], 64), Err(Unreadable::Truncated));
    }
}
