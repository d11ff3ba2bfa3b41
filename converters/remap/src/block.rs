//! Part of a source array in memory, and the places of it that a move takes.
//!
//! Invariant: the regions of a block under a move cover each element that both have exactly once.

use crate::map::Letter;
use crate::plan::{At, Axis, Move};

/// A box of a source array.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    pub(crate) bytes: &'a [u8],
    /// First index along each axis.
    pub(crate) lo: Vec<u64>,
    /// Indices along each axis.
    pub(crate) len: Vec<u64>,
    /// Elements between neighbours in `bytes` along each axis.
    pub(crate) stride: Vec<u64>,
}

/// One letter of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) letter: Letter,
    /// First index, and how many.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// Elements between neighbours in the block.
    pub(crate) source: u64,
    /// Elements between neighbours in the output; 0 where the letter stands in its name.
    pub(crate) output: u64,
}

/// A rectangle in letters that lies in a block and in a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    /// Element of the block where it starts.
    pub(crate) source: u64,
    /// Element of the output where it starts.
    pub(crate) output: u64,
    pub(crate) spans: Vec<Span>,
}

/// The regions of `block` that `m` moves.
pub(crate) fn regions(block: &Block<'_>, m: &Move) -> Vec<Region> {
    let mut all = vec![Region { source: 0, output: m.offset, spans: vec![] }];
    for (axis, letters) in m.axes.iter().enumerate() {
        let (lo, len, stride) = (block.lo[axis], block.len[axis], block.stride[axis]);
        let pieces = pieces(lo, len, letters);
        all = all
            .iter()
            .flat_map(|region| pieces.iter().filter_map(|piece| along(region, piece, letters, lo, stride)))
            .collect();
    }
    all
}

/// `region` narrowed to a piece of one more axis; `None` where the move takes nothing of it.
fn along(region: &Region, piece: &[(u64, u64)], letters: &[Axis], lo: u64, stride: u64) -> Option<Region> {
    let mut region = region.clone();
    let mut inner: u64 = letters.iter().map(|a| a.len).product();
    let mut first = 0;
    for ((start, len), axis) in piece.iter().zip(letters) {
        inner /= axis.len.max(1);
        let (mut start, mut len, mut output) = (*start, *len, 0);
        match axis.at {
            At::All(step) => output = step,
            At::One(k) if (start..start + len).contains(&k) => (start, len) = (k, 1),
            At::One(_) => return None,
        }
        first += start * inner;
        region.output += start * output;
        region.spans.push(Span { letter: axis.letter, start, len, source: inner * stride, output });
    }
    // A unit axis has no letters and starts where the block does.
    region.source += if letters.is_empty() { 0 } else { (first - lo) * stride };
    Some(region)
}

/// `[lo, lo + len)` of a merged axis as rectangles in its letters: a ragged head, whole rows, a ragged tail.
fn pieces(lo: u64, len: u64, letters: &[Axis]) -> Vec<Vec<(u64, u64)>> {
    let Some((_, rest)) = letters.split_first() else { return vec![vec![]] };
    if rest.is_empty() {
        return vec![vec![(lo, len)]];
    }
    let inner: u64 = rest.iter().map(|a| a.len).product();
    let mut all = vec![];
    let (mut at, end) = (lo, lo + len);
    while at < end {
        let (row, within) = (at / inner, at % inner);
        let rows = (end - at) / inner;
        if within == 0 && rows > 0 {
            for mut tail in pieces(0, inner, rest) {
                tail.insert(0, (row, rows));
                all.push(tail);
            }
            at += rows * inner;
        } else {
            let n = (inner - within).min(end - at);
            for mut tail in pieces(within, n, rest) {
                tail.insert(0, (row, 1));
                all.push(tail);
            }
            at += n;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn axis(letter: char, len: u64) -> Axis {
        Axis { letter, len, at: At::All(0) }
    }

    proptest! {
        #[test]
        fn pieces_cover_a_merged_axis_once_and_in_order(
            sizes in prop::collection::vec(1u64..5, 1..4), a in 0u64..64, b in 0u64..64
        ) {
            let letters: Vec<Axis> = sizes.iter().map(|n| axis('N', *n)).collect();
            let total: u64 = sizes.iter().product();
            let (lo, hi) = (a.min(b).min(total), a.max(b).min(total));
            let mut seen = vec![];
            for piece in pieces(lo, hi - lo, &letters) {
                let mut flats = vec![0u64];
                for ((start, len), n) in piece.iter().zip(&sizes) {
                    prop_assert!(start + len <= *n);
                    flats = flats.iter().flat_map(|f| (*start..start + len).map(move |i| f * n + i)).collect();
                }
                seen.extend(flats);
            }
            prop_assert_eq!(seen, (lo..hi).collect::<Vec<_>>());
        }
    }
}
