//! One sweep over all values of one element: sums, extremes, and for each bracket how many lie below, on and between its
//! ends. The loop that statistics wait for; written in lanes, so that the compiler makes vectors of it.
//!
//! Invariant: every value is seen once, as the f32 that openpi's loader would hand on.

/// Lanes of the sums.
const LANES: usize = 8;

/// Between which values a percentile is looked for; the ends may be infinite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bracket {
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Bracket {
    pub(super) const ALL: Self = Bracket { low: f32::NEG_INFINITY, high: f32::INFINITY };
}

/// What lies below, on and between the ends of a bracket.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    below: u64,
    on_low: u64,
    on_high: u64,
    between: u64,
    /// Values between the ends, each with how often it counts; only if they are wanted.
    kept: Vec<(f32, u64)>,
}

impl Found {
    pub(super) fn below(&self) -> u64 {
        self.below
    }

    /// Values not above the high end.
    pub(super) fn up_to_high(&self) -> u64 {
        self.below + self.on_low + self.between + self.on_high
    }

    /// The values of two ranks, counted from 0; `None` if the bracket does not hold them.
    pub(super) fn ranks(&mut self, bracket: Bracket, ranks: [u64; 2]) -> Option<[f32; 2]> {
        self.kept.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        Some([self.rank(bracket, ranks[0])?, self.rank(bracket, ranks[1])?])
    }

    fn rank(&self, bracket: Bracket, rank: u64) -> Option<f32> {
        let mut rank = rank.checked_sub(self.below)?;
        if rank < self.on_low {
            return Some(bracket.low);
        }
        rank -= self.on_low;
        for (value, count) in &self.kept {
            if rank < *count {
                return Some(*value);
            }
            rank -= count;
        }
        (rank < self.on_high).then_some(bracket.high)
    }

    fn merge(&mut self, other: Found) {
        self.below += other.below;
        self.on_low += other.on_low;
        self.on_high += other.on_high;
        self.between += other.between;
        self.kept.extend(other.kept);
    }

    fn look(&mut self, value: f32, count: u64, bracket: Bracket, keep: bool) {
        if value < bracket.low {
            self.below += count;
        } else if value == bracket.low {
            self.on_low += count;
        } else if value < bracket.high {
            self.between += count;
            if keep {
                self.kept.push((value, count));
            }
        } else if value == bracket.high {
            self.on_high += count;
        }
    }
}

/// What a sweep gathers.
#[derive(Debug, Clone)]
pub(super) struct Sweep {
    /// Subtracted before summing, so that a great mean does not drown a small deviation.
    pivot: f64,
    keep: bool,
    brackets: [Bracket; 2],
    pub(super) count: u64,
    sum: [f64; LANES],
    squares: [f64; LANES],
    pub(super) min: f32,
    pub(super) max: f32,
    pub(super) found: [Found; 2],
}

impl Sweep {
    pub(super) fn new(pivot: f64, brackets: [Bracket; 2], keep: bool) -> Self {
        Sweep {
            pivot,
            keep,
            brackets,
            count: 0,
            sum: [0.0; LANES],
            squares: [0.0; LANES],
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            found: Default::default(),
        }
    }

    /// Values that count once each. Neighbours should be alike: a stretch whose values all lie on one side of a bracket is
    /// counted as a whole.
    pub(super) fn values(&mut self, values: &[f32]) {
        let (blocks, rest) = values.as_chunks::<LANES>();
        let mut low = [f32::INFINITY; LANES];
        let mut high = [f32::NEG_INFINITY; LANES];
        for block in blocks {
            for lane in 0..LANES {
                let value = block[lane];
                let shifted = f64::from(value) - self.pivot;
                self.sum[lane] += shifted;
                self.squares[lane] += shifted * shifted;
                low[lane] = if value < low[lane] { value } else { low[lane] };
                high[lane] = if value > high[lane] { value } else { high[lane] };
            }
        }
        let whole = blocks.as_flattened();
        let low = low.into_iter().fold(f32::INFINITY, f32::min);
        let high = high.into_iter().fold(f32::NEG_INFINITY, f32::max);
        self.min = self.min.min(low);
        self.max = self.max.max(high);
        self.count += whole.len() as u64;
        for (found, bracket) in self.found.iter_mut().zip(self.brackets) {
            if high < bracket.low {
                found.below += whole.len() as u64;
            } else if low <= bracket.high {
                whole.iter().for_each(|value| found.look(*value, 1, bracket, self.keep));
            }
        }
        for value in rest {
            self.value(*value, 1);
        }
    }

    /// One value that counts so often.
    pub(super) fn value(&mut self, value: f32, count: u64) {
        let shifted = f64::from(value) - self.pivot;
        self.count += count;
        self.sum[0] += shifted * count as f64;
        self.squares[0] += shifted * shifted * count as f64;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        for (found, bracket) in self.found.iter_mut().zip(self.brackets) {
            found.look(value, count, bracket, self.keep);
        }
    }

    pub(super) fn merge(mut self, other: Sweep) -> Sweep {
        self.count += other.count;
        for lane in 0..LANES {
            self.sum[lane] += other.sum[lane];
            self.squares[lane] += other.squares[lane];
        }
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        let [a, b] = other.found;
        self.found[0].merge(a);
        self.found[1].merge(b);
        self
    }

    /// Mean and deviation.
    pub(super) fn moments(&self) -> (f64, f64) {
        let count = self.count as f64;
        let mean = self.sum.iter().sum::<f64>() / count;
        let variance = self.squares.iter().sum::<f64>() / count - mean * mean;
        (self.pivot + mean, variance.max(0.0).sqrt())
    }
}
