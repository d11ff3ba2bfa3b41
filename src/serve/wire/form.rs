//! The forms of msgpack, in one table for both ways.
//!
//! Source: the MessagePack specification. Invariant: what is written takes the shortest form, as Python's packer does.

/// What begins a value of one kind: the number that it carries (a length, or the number itself) stands in the marker, or
/// big-endian behind it.
pub(super) struct Family {
    /// The marker of 0, and the largest number that stands in a marker.
    short: Option<(u8, u8)>,
    /// Markers, each with the bytes of the number behind it; shortest first.
    long: &'static [(u8, usize)],
}

pub(super) const NIL: u8 = 0xc0;
pub(super) const FALSE: u8 = 0xc2;
pub(super) const TRUE: u8 = 0xc3;
pub(super) const F32: u8 = 0xca;
pub(super) const F64: u8 = 0xcb;
/// Whole numbers from 0.
pub(super) const WHOLE: Family =
    Family { short: Some((0x00, 0x7f)), long: &[(0xcc, 1), (0xcd, 2), (0xce, 4), (0xcf, 8)] };
/// Whole numbers below 0, and what other packers write in these forms. The least ones stand in a marker by themselves.
pub(super) const SIGNED: [(u8, usize); 4] = [(0xd0, 1), (0xd1, 2), (0xd2, 4), (0xd3, 8)];
/// The first of the markers that are -32 to -1.
pub(super) const NEGATIVE: u8 = 0xe0;
pub(super) const TEXT: Family = Family { short: Some((0xa0, 31)), long: &[(0xd9, 1), (0xda, 2), (0xdb, 4)] };
pub(super) const BYTES: Family = Family { short: None, long: &[(0xc4, 1), (0xc5, 2), (0xc6, 4)] };
pub(super) const LIST: Family = Family { short: Some((0x90, 15)), long: &[(0xdc, 2), (0xdd, 4)] };
pub(super) const MAP: Family = Family { short: Some((0x80, 15)), long: &[(0xde, 2), (0xdf, 4)] };

/// Where the number stands.
pub(super) enum Place {
    /// It is this one.
    Here(u64),
    /// In so many bytes behind the marker.
    Behind(usize),
}

impl Family {
    /// What a marker says, if it is of this family.
    pub(super) fn of(&self, marker: u8) -> Option<Place> {
        if let Some((zero, max)) = self.short
            && let Some(number) = marker.checked_sub(zero).filter(|number| *number <= max)
        {
            return Some(Place::Here(u64::from(number)));
        }
        self.long.iter().find(|(known, _)| *known == marker).map(|(_, width)| Place::Behind(*width))
    }

    /// Appends the shortest form of a number. `None` if there is none.
    pub(super) fn put(&self, number: u64, out: &mut Vec<u8>) -> Option<()> {
        if let Some((zero, max)) = self.short
            && let Some(small) = u8::try_from(number).ok().filter(|small| small <= &max)
        {
            out.push(zero.checked_add(small)?);
            return Some(());
        }
        let bytes = number.to_be_bytes();
        let needed = bytes.len().checked_sub(bytes.iter().take_while(|byte| **byte == 0).count())?;
        let (marker, width) = self.long.iter().find(|(_, width)| *width >= needed)?;
        out.push(*marker);
        out.extend_from_slice(bytes.get(bytes.len().checked_sub(*width)?..)?);
        Some(())
    }
}

/// Appends the shortest form of a whole number.
pub(super) fn put_whole(number: i64, out: &mut Vec<u8>) {
    if let Ok(whole) = u64::try_from(number) {
        let _ = WHOLE.put(whole, out);
        return;
    }
    let bytes = number.to_be_bytes();
    match number {
        // Two's complement: the lowest byte of -32 is 0xe0.
        -32.. => out.extend(bytes.last()),
        _ => {
            let width = match number {
                -0x80.. => 1,
                -0x8000.. => 2,
                -0x8000_0000.. => 4,
                _ => 8,
            };
            out.extend(SIGNED.iter().find(|(_, known)| *known == width).map(|(marker, _)| *marker));
            out.extend_from_slice(bytes.get(bytes.len().saturating_sub(width)..).unwrap_or_default());
        }
    }
}
