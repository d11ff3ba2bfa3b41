//! Products with a table that is stored row by row, one row for each result: logits from the table of word vectors.
//!
//! A token's logits read the whole table once (a gigabyte in bf16), and that is all the time they should take: each row is
//! one scalar product, widened as it is read, instead of a table that is turned and widened first.
//!
//! Invariant: sums in f32, one rounding.

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::cpu::vectorised;
use super::norm::constant;
use super::number::Real;
use super::ops::{Native, fits};

/// Rows of x above which a product of matrices is faster.
const FEW: usize = 16;
/// Rows of the table that one task takes.
const CHUNK: usize = 512;
/// Partial sums side by side.
const LANES: usize = 16;

/// `x [m, k]` times the transpose of `table [v, k]`, of one dtype, in that dtype. Gradients of both.
pub fn times_rows(x: Tensor<2>, table: Tensor<2>) -> Tensor<2> {
    assert_eq!(x.dims()[1], table.dims()[1], "times_rows: x is {:?}, the table {:?}", x.dims(), table.dims());
    let constants = [&x, &table].into_iter().all(|x| fits(x) && !x.is_tracked());
    if !constants || x.dtype() != table.dtype() || x.dims()[0] > FEW {
        return x.matmul(table.transpose());
    }
    constant(x, |x| <Dispatch as Native>::times_rows(x.into_dispatch(), table.inner().into_dispatch()))
}

vectorised! {
    /// The scalar products of one row of the table with each row of `x`.
    fn products<T: Real>(row: &[T], x: &[T], out: &mut [f32]) {
        for (to, x) in out.iter_mut().zip(x.chunks_exact(row.len())) {
            let mut sums = [0f32; LANES];
            let (whole, rest) = row.split_at(row.len() / LANES * LANES);
            for (a, b) in whole.chunks_exact(LANES).zip(x.chunks_exact(LANES)) {
                for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                    *sum = a.wide().mul_add(b.wide(), *sum);
                }
            }
            let tail: f32 = rest.iter().zip(&x[whole.len()..]).map(|(a, b)| a.wide() * b.wide()).sum();
            *to = sums.into_iter().sum::<f32>() + tail;
        }
    }
}

/// `x [m, k]`, `table [v, k]`, `out [m, v]`.
pub(crate) fn times_rows_slices<T: Real>(x: &[T], table: &[T], k: usize, out: &mut [T]) {
    let (m, v) = (x.len() / k.max(1), table.len() / k.max(1));
    if m == 0 || v == 0 {
        return;
    }
    let blocks: Vec<Vec<f32>> = table
        .par_chunks(CHUNK * k)
        .map(|rows| {
            let mut block = vec![0f32; rows.len() / k * m];
            for (row, out) in rows.chunks_exact(k).zip(block.chunks_exact_mut(m)) {
                products(row, x, out);
            }
            block
        })
        .collect();
    for (column, products) in blocks.iter().flat_map(|block| block.chunks_exact(m)).enumerate() {
        for (row, product) in products.iter().enumerate() {
            out[row * v + column] = T::narrow(*product);
        }
    }
}
