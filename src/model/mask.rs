//! Who attends to whom, and at which position. On the host: a few hundred thousand flags at most, and shapes follow
//! from them.
//!
//! `mask[q, k] = cumsum(ar)[k] <= cumsum(ar)[q] and valid[q] and valid[k]`, `position = cumsum(valid) - 1`.
//! Source: openpi 15a9616, models/pi0.py, `make_attn_mask`, `embed_prefix`, `sample_actions`.

use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::observation::Flags;

/// Flags `[B, T, S]`: may query t of row b attend to key s?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// B, T, S.
    pub dims: [usize; 3],
    /// Row by row.
    pub bits: Vec<bool>,
}

impl Mask {
    /// From `f(row, query, key)`.
    pub fn build(dims: [usize; 3], f: impl Fn(usize, usize, usize) -> bool) -> Self {
        let [b, t, s] = dims;
        let mut bits = Vec::with_capacity(b * t * s);
        for row in 0..b {
            for query in 0..t {
                bits.extend((0..s).map(|key| f(row, query, key)));
            }
        }
        Mask { dims, bits }
    }

    /// Blocks of tokens that attend to themselves and to what stands before them; `ar` begins a block.
    pub fn blocks(valid: &Flags, ar: &Flags) -> Self {
        let block = |row: usize| {
            let running = ar.row(row).iter().scan(0usize, |sum, bit| {
                *sum += usize::from(*bit);
                Some(*sum)
            });
            running.collect::<Vec<usize>>()
        };
        let blocks: Vec<Vec<usize>> = (0..valid.rows).map(block).collect();
        Mask::build([valid.rows, valid.cols, valid.cols], |b, q, k| {
            blocks[b][k] <= blocks[b][q] && valid.get(b, q) && valid.get(b, k)
        })
    }

    /// Queries that see a cached prefix and, by `own`, each other: `[B, T, P + T]`.
    pub fn after(prefix: &Flags, own: &Mask) -> Self {
        let [b, t, s] = own.dims;
        Mask::build([b, t, prefix.cols + s], |row, query, key| match key.checked_sub(prefix.cols) {
            None => prefix.get(row, key),
            Some(key) => own.bits[(row * t + query) * s + key],
        })
    }

    /// With keys that nobody may see after the others.
    pub fn with_unseen_keys(&self, more: usize) -> Self {
        let [b, t, s] = self.dims;
        Mask::build([b, t, s + more], |row, query, key| key < s && self.bits[(row * t + query) * s + key])
    }

    /// Only the first `t` queries and `t` keys.
    pub fn first(&self, t: usize) -> Self {
        let [b, queries, s] = self.dims;
        Mask::build([b, t, t], |row, query, key| self.bits[(row * queries + query) * s + key])
    }

    /// On a device; `None` if everyone sees everything, which is cheaper.
    pub fn upload(&self, device: &Device) -> Option<Tensor<3, Bool>> {
        if self.bits.iter().all(|b| *b) {
            return None;
        }
        Some(Tensor::from_data(self.data(), device))
    }

    /// As a tap shows it.
    pub fn data(&self) -> TensorData {
        TensorData::new(self.bits.clone(), self.dims)
    }
}

/// Positions `[B, T]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// B.
    pub rows: usize,
    /// T.
    pub cols: usize,
    /// Row by row. The first may be -1: a padding before all tokens.
    pub at: Vec<i32>,
}

impl Positions {
    /// Valid tokens counted; the others stay at the position of the token before them. Each row begins at `first[row]`.
    pub fn counted(valid: &Flags, first: impl Fn(usize) -> i32) -> Self {
        let mut at = Vec::with_capacity(valid.bits.len());
        for row in 0..valid.rows {
            let mut position = first(row) - 1;
            for bit in valid.row(row) {
                position += i32::from(*bit);
                at.push(position);
            }
        }
        Positions { rows: valid.rows, cols: valid.cols, at }
    }

    /// 0, 1, 2, ... in every row.
    pub fn counting(rows: usize, cols: usize) -> Self {
        Positions { rows, cols, at: (0..rows).flat_map(|_| 0..cols as i32).collect() }
    }

    /// As a tap shows it.
    pub fn data(&self) -> TensorData {
        TensorData::new(self.at.clone(), [self.rows, self.cols])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_see_themselves_and_what_stands_before() {
        let valid = Flags { rows: 1, cols: 4, bits: vec![true, true, false, true] };
        let ar = Flags { rows: 1, cols: 4, bits: vec![false, false, false, true] };
        let mask = Mask::blocks(&valid, &ar);
        let rows: Vec<String> =
            mask.bits.chunks(4).map(|r| r.iter().map(|b| if *b { '1' } else { '.' }).collect()).collect();
        assert_eq!(rows, ["11..", "11..", "....", "11.1"]);
    }

    #[test]
    fn padding_takes_no_position() {
        let valid = Flags { rows: 1, cols: 5, bits: vec![false, true, true, false, true] };
        assert_eq!(Positions::counted(&valid, |_| 0).at, [-1, 0, 1, 1, 2]);
        assert_eq!(Positions::counted(&valid, |_| 7).at, [6, 7, 8, 8, 9]);
    }
}
