//! A region of a block, in the order of the output: the one place where bytes change places.
//!
//! A region's longest run that is contiguous in the output is filled in a small buffer and handed on; where the
//! source's neighbours are not the output's, tiles of 32 x 32 are turned in the first-level cache.

use crate::block::{Region, Span};

/// Bytes of a run that are handed on at once.
const RUN_BYTES: usize = 4 << 20;
/// Edge of a tile, in elements.
const TILE: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Dim {
    len: u64,
    source: u64,
    output: u64,
}

/// Calls `emit(first output element, bytes)` for runs of the output that together are the region.
pub(crate) fn gather<E>(
    bytes: &[u8],
    size: usize,
    region: &Region,
    run: &mut Vec<u8>,
    mut emit: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    if region.spans.iter().any(|s| s.len == 0) {
        return Ok(());
    }
    let dims = dims(&region.spans);
    // The suffix of `dims` (slowest first) that is contiguous in the output.
    let mut split = dims.len();
    let mut contiguous = 1;
    while split > 0 && dims[split - 1].output == contiguous {
        contiguous *= dims[split - 1].len;
        split -= 1;
    }
    let (outer, inner) = dims.split_at(split);
    // A long run goes in parts along its slowest axis.
    let (head, tail) = match inner.split_first() {
        Some((head, tail)) => (*head, tail),
        None => (Dim { len: 1, source: 0, output: 1 }, inner),
    };
    let tail_len: u64 = tail.iter().map(|d| d.len).product();
    let rows = (RUN_BYTES as u64 / (tail_len * size as u64).max(1)).clamp(1, head.len);
    let mut at = vec![0u64; outer.len()];
    loop {
        let source = region.source + outer.iter().zip(&at).map(|(d, i)| d.source * i).sum::<u64>();
        let output = region.output + outer.iter().zip(&at).map(|(d, i)| d.output * i).sum::<u64>();
        let mut row = 0;
        while row < head.len {
            let n = rows.min(head.len - row);
            let mut part = vec![Dim { len: n, ..head }];
            part.extend_from_slice(tail);
            let first = source + row * head.source;
            let flat = part.iter().rev().try_fold(1, |step, d| (d.source == step || d.len == 1).then(|| step * d.len));
            if flat.is_some() {
                let (from, len) = (first as usize * size, (n * tail_len) as usize * size);
                emit(output + row * head.output, &bytes[from..from + len])?;
            } else {
                run.resize((n * tail_len) as usize * size, 0);
                match size {
                    1 => fill::<1>(bytes, first, &part, run),
                    2 => fill::<2>(bytes, first, &part, run),
                    4 => fill::<4>(bytes, first, &part, run),
                    8 => fill::<8>(bytes, first, &part, run),
                    _ => fill::<16>(bytes, first, &part, run),
                }
                emit(output + row * head.output, run)?;
            }
            row += n;
        }
        // The next place along the outer axes, last fastest.
        let Some(axis) = (0..outer.len()).rev().find(|a| at[*a] + 1 < outer[*a].len) else { return Ok(()) };
        at[axis] += 1;
        at[axis + 1..].fill(0);
    }
}

/// The spans as axes of the output, slowest first, neighbours that are one axis in both joined.
fn dims(spans: &[Span]) -> Vec<Dim> {
    let mut dims: Vec<Dim> =
        spans.iter().filter(|s| s.len > 1).map(|s| Dim { len: s.len, source: s.source, output: s.output }).collect();
    dims.sort_by_key(|d| std::cmp::Reverse(d.output));
    let mut joined: Vec<Dim> = vec![];
    for d in dims {
        match joined.last_mut() {
            Some(last) if last.source == d.source * d.len && last.output == d.output * d.len => {
                *last = Dim { len: last.len * d.len, ..d };
            }
            _ => joined.push(d),
        }
    }
    joined
}

/// Fills `run`, dense over `dims`, from `bytes` at element `first`.
fn fill<const N: usize>(bytes: &[u8], first: u64, dims: &[Dim], run: &mut [u8]) {
    let (source, _) = bytes.as_chunks::<N>();
    let (out, _) = run.as_chunks_mut::<N>();
    // The axis whose neighbours lie side by side in the source; with the output's last axis it makes the tiles.
    let side = dims.iter().position(|d| d.source == 1).unwrap_or(dims.len() - 1);
    walk(source, first as usize, dims, side, out);
}

fn walk<const N: usize>(source: &[[u8; N]], at: usize, dims: &[Dim], side: usize, out: &mut [[u8; N]]) {
    let Some((head, tail)) = dims.split_first() else { return };
    if tail.is_empty() {
        let step = head.source as usize;
        if step == 1 {
            out.copy_from_slice(&source[at..at + out.len()]);
        } else {
            for (o, e) in out.iter_mut().zip(source[at..].iter().step_by(step)) {
                *o = *e;
            }
        }
        return;
    }
    let rows = out.len() / head.len as usize;
    if side == 0 && tail.len() == 1 {
        return turn(source, at, tail[0].source as usize, rows, out);
    }
    if side == 0 {
        // Tiles over the first and the last axis; those between are walked outside.
        let between = &tail[..tail.len() - 1];
        let last = tail[tail.len() - 1];
        return turn_apart(source, at, head.len as usize, between, last, rows, out);
    }
    for (i, o) in out.chunks_exact_mut(rows.max(1)).enumerate() {
        walk(source, at + i * head.source as usize, tail, side - 1, o);
    }
}

/// `out[i][j] = source[at + i + j * step]`, by tiles.
fn turn<const N: usize>(source: &[[u8; N]], at: usize, step: usize, width: usize, out: &mut [[u8; N]]) {
    let height = out.len() / width.max(1);
    tiles(source, at, step, height, width, width, out);
}

/// The same where other axes stand between the two.
fn turn_apart<const N: usize>(
    source: &[[u8; N]],
    at: usize,
    height: usize,
    between: &[Dim],
    last: Dim,
    pitch: usize,
    out: &mut [[u8; N]],
) {
    let width = last.len as usize;
    let count: usize = between.iter().map(|d| d.len as usize).product();
    for k in 0..count {
        let (mut rest, mut from) = (k, at);
        for d in between.iter().rev() {
            from += (rest % d.len as usize) * d.source as usize;
            rest /= d.len as usize;
        }
        tiles(source, from, last.source as usize, height, width, pitch, &mut out[k * width..]);
    }
}

/// `out[i * pitch + j] = source[at + i + j * step]` for `i < height`, `j < width`.
fn tiles<const N: usize>(
    source: &[[u8; N]],
    at: usize,
    step: usize,
    height: usize,
    width: usize,
    pitch: usize,
    out: &mut [[u8; N]],
) {
    let mut tile = [[[0u8; N]; TILE]; TILE];
    for i in (0..height).step_by(TILE) {
        let h = TILE.min(height - i);
        for j in (0..width).step_by(TILE) {
            let w = TILE.min(width - j);
            // Whole lines in, whole lines out: strides that are powers of two would else fight for one cache set.
            for b in 0..w {
                let from = at + i + (j + b) * step;
                for (line, e) in tile.iter_mut().zip(&source[from..from + h]) {
                    line[b] = *e;
                }
            }
            for (a, line) in tile.iter().enumerate().take(h) {
                let to = (i + a) * pitch + j;
                out[to..to + w].copy_from_slice(&line[..w]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every order of axes, against the definition.
        #[test]
        fn a_gathered_region_is_the_definition(
            lens in prop::collection::vec(1u64..40, 1..5), order in Just([0usize, 1, 2, 3]).prop_shuffle(),
            size in prop::sample::select(vec![1usize, 2, 4, 8, 16])
        ) {
            let rank = lens.len();
            let order: Vec<usize> = order.into_iter().filter(|a| *a < rank).collect();
            let total: u64 = lens.iter().product();
            prop_assume!(total < 60_000);
            let mut source = vec![0u64; rank];
            let mut step = 1;
            for a in (0..rank).rev() { source[a] = step; step *= lens[a]; }
            let mut output = vec![0u64; rank];
            let mut step = 1;
            for a in order.iter().rev() { output[*a] = step; step *= lens[*a]; }
            let bytes: Vec<u8> = (0..total as usize * size).map(|i| (i % 251) as u8).collect();
            let spans = (0..rank)
                .map(|a| Span { letter: 'X', start: 0, len: lens[a], source: source[a], output: output[a] })
                .collect();
            let region = Region { source: 0, output: 0, spans };
            let mut found = vec![0u8; bytes.len()];
            gather(&bytes, size, &region, &mut vec![], |at, run| {
                found[at as usize * size..at as usize * size + run.len()].copy_from_slice(run);
                Ok::<(), ()>(())
            }).unwrap();
            for flat in 0..total {
                let (mut rest, mut to) = (flat, 0);
                for a in (0..rank).rev() { to += rest % lens[a] * output[a]; rest /= lens[a]; }
                let (f, t) = (flat as usize * size, to as usize * size);
                prop_assert_eq!(&found[t..t + size], &bytes[f..f + size]);
            }
        }
    }
}
