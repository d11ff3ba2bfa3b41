//! The discrete cosine transform of each action dimension over time.
//!
//! Formula: type II, orthonormal: `X[k] = f(k) * sum_t x[t] * cos(pi * (2t + 1) * k / (2H))`, with `f(0) = sqrt(1/H)` and
//! `f(k) = sqrt(2/H)`; type III undoes it. Letters: H time, D action dimension; chunks are `[H, D]` in C order.
//! Chunks are short: the plain sum over a table of cosines costs less than what comes after it.

/// The cosines of one H, so that chunks of one length share them.
#[derive(Debug, Clone)]
pub(super) struct Dct {
    horizon: usize,
    /// `f(k) * cos(pi * (2t + 1) * k / (2H))` at `[k, t]`.
    table: Vec<f64>,
}

impl Dct {
    /// For chunks of `horizon` steps.
    pub(super) fn new(horizon: usize) -> Self {
        let h = horizon as f64;
        let cosine = |k: usize, t: usize| {
            // The angle repeats every 4H steps of pi / (2H): taken there, it has no rounding of its own.
            let turn = ((2 * t + 1) * k) % (4 * horizon);
            let factor = if k == 0 { (1.0 / h).sqrt() } else { (2.0 / h).sqrt() };
            factor * (std::f64::consts::PI * turn as f64 / (2.0 * h)).cos()
        };
        let table = (0..horizon).flat_map(|k| (0..horizon).map(move |t| cosine(k, t))).collect();
        Self { horizon, table }
    }

    /// `[H, D]` over time → `[H, D]` over frequency.
    pub(super) fn forward(&self, x: &[f64], dim: usize) -> Vec<f64> {
        self.sums(x, dim, |k, t| self.table[k * self.horizon + t])
    }

    /// `[H, D]` over frequency → `[H, D]` over time.
    pub(super) fn inverse(&self, x: &[f64], dim: usize) -> Vec<f64> {
        self.sums(x, dim, |t, k| self.table[k * self.horizon + t])
    }

    fn sums(&self, x: &[f64], dim: usize, weight: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        let mut out = vec![0.0; self.horizon * dim];
        if dim == 0 {
            return out;
        }
        for (i, row) in out.chunks_exact_mut(dim).enumerate() {
            for (j, from) in x.chunks_exact(dim).enumerate().take(self.horizon) {
                let w = weight(i, j);
                for (to, value) in row.iter_mut().zip(from) {
                    *to += w * value;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_transformed_comes_home() {
        for (horizon, dim) in [(1, 1), (2, 3), (10, 7), (50, 14)] {
            let x: Vec<f64> = (0..horizon * dim).map(|i| ((i * 37 % 101) as f64 / 50.0 - 1.0).sin()).collect();
            let dct = Dct::new(horizon);
            let home = dct.inverse(&dct.forward(&x, dim), dim);
            let off = x.iter().zip(&home).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-14, "{horizon} x {dim}: {off}");
        }
    }

    #[test]
    fn a_chunk_that_stands_still_has_only_its_mean() {
        let x = Dct::new(16).forward(&[0.5; 16], 1);
        assert!((x[0] - 2.0).abs() < 1e-15);
        assert!(x[1..].iter().all(|v| v.abs() < 1e-15));
    }
}
