//! What encoding costs: every chunk encoded and decoded again, and held against itself.

use super::{Codec, Error};
use crate::policy::array::Array;

/// What came back of a set of chunks, in the units of the chunks: normalised ones.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoundTrip {
    /// Chunks that were encoded.
    pub chunks: usize,
    /// Chunks with coefficients that the vocabulary cannot spell: they do not come back and are in no error below.
    pub lost: usize,
    /// Those coefficients, each once, in order.
    pub unseen: Vec<i64>,
    /// Chunks with coefficients below `min_token`.
    pub clamped: usize,
    /// Tokens of all chunks.
    pub tokens: usize,
    /// Tokens of the longest chunk.
    pub longest: usize,
    /// Largest error of each action dimension.
    pub max: Vec<f64>,
    /// Root of the mean squared error of each action dimension.
    pub rms: Vec<f64>,
}

/// Encodes and decodes every chunk `[H, D]`; `seen` is told how many were.
///
/// # Errors
/// A chunk that cannot be encoded: its number and why.
pub fn round_trip<'a>(
    codec: &Codec,
    chunks: impl IntoIterator<Item = &'a Array>,
    seen: impl Fn(usize),
) -> Result<RoundTrip, Error> {
    let mut sum = RoundTrip::default();
    let mut squares: Vec<f64> = vec![];
    let mut steps = 0usize;
    for (i, chunk) in chunks.into_iter().enumerate() {
        let encoded = codec.encode(chunk).map_err(|error| Error::Chunk(format!("chunk {i}: {error}")))?;
        sum.chunks += 1;
        sum.tokens += encoded.ids.len();
        sum.longest = sum.longest.max(encoded.ids.len());
        sum.clamped += usize::from(!encoded.clamped.is_empty());
        seen(i + 1);
        let &[horizon, dim] = &chunk.shape[..] else { continue };
        if !encoded.unseen.is_empty() {
            sum.lost += 1;
            sum.unseen.extend(encoded.unseen);
            continue;
        }
        let home = codec
            .decode(&encoded.ids, horizon, dim)
            .map_err(|error| Error::Chunk(format!("chunk {i} does not come back: {error}")))?;
        let widest = dim.max(squares.len());
        squares.resize(widest, 0.0);
        sum.max.resize(widest, 0.0);
        for (at, (before, after)) in chunk.values.to_f64().iter().zip(home).enumerate() {
            let off = (before - after).abs();
            squares[at % dim] += off * off;
            sum.max[at % dim] = sum.max[at % dim].max(off);
        }
        steps += horizon;
    }
    sum.unseen.sort_unstable();
    sum.unseen.dedup();
    sum.rms = squares.into_iter().map(|square| (square / steps.max(1) as f64).sqrt()).collect();
    Ok(sum)
}
