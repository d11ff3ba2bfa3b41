//! openpi's running statistics, reproduced: sums batch by batch in the data's own dtype (f32: JAX has no other), and
//! percentiles from 5000 bins whose counts move to new bins whenever an extreme moves.
//!
//! Source: openpi 15a9616, shared/normalize.py (`RunningStats`), on numpy 1.26. What numpy does is part of the result:
//! columns of a batch are summed one row after another (a single column in pairs); edges are f64; a value
//! belongs to the bin whose left edge it is not below, the last bin has its right edge too.
//! Invariant: equal to openpi's, bit for bit, for the same batches in the same order. It depends on both, it loses
//! what falls out of the bins as they move, and its percentiles are left edges of bins: use [`super::exact`] for the truth.

use std::ops::{Add, Div, Mul, Sub};

use rayon::prelude::*;

use super::exact::Population;
use super::{Motion, NotFinite, Summaries, Summary};

/// Bins of a percentile.
const BINS: usize = 5000;
/// How far the first edges lie outside of the first batch.
const RIM: f64 = 1e-10;

/// Summaries as openpi computes them in batches of so many frames; the last batch is left out if it is not full.
///
/// # Errors
/// A value that is no number.
///
/// # Panics
/// If there is no full batch: whoever calls asks before.
pub fn running(motion: &Motion, batch: usize) -> Result<Summaries, NotFinite> {
    motion.finite()?;
    let population = Population::new(motion);
    let updates = motion.counted() / batch;
    let full = updates * batch;
    let state: Vec<Vec<f32>> = (0..motion.state.len()).into_par_iter().map(|i| population.state(i).all(full)).collect();
    let of_state = vectors(&state, &vec![batch; updates]);
    drop(state);
    let horizon = motion.horizon;
    let actions: Vec<Vec<f32>> =
        (0..motion.actions.len()).into_par_iter().map(|i| population.actions(i).all(full)).collect();
    Ok(Summaries { state: of_state, actions: vectors(&actions, &vec![batch * horizon; updates]) })
}

/// f32 or f64.
pub trait Real:
    Copy + PartialOrd + Send + Sync + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Rounded to it.
    fn of(value: f64) -> Self;
    /// As f64, exactly.
    fn wide(self) -> f64;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn wide(self) -> f64 {
        self
    }
}

/// Statistics of vectors given by element, so many of them (at least one) in each update.
///
/// # Panics
/// If an element has fewer values than the updates take, or an update takes none.
pub fn vectors<R: Real>(elements: &[Vec<R>], rows: &[usize]) -> Vec<Summary> {
    let alone = elements.len() == 1;
    // All elements get new bins whenever one of them reaches further than before.
    let reaches: Vec<Vec<bool>> = elements.par_iter().map(|values| reaches(values, rows)).collect();
    let moved: Vec<bool> = (0..rows.len()).map(|i| reaches.iter().any(|element| element[i])).collect();
    elements
        .par_iter()
        .map(|values| {
            let mut stats = Running::new(alone);
            for (batch, moved) in batches(values, rows).zip(&moved) {
                stats.update(batch, *moved);
            }
            stats.summary()
        })
        .collect()
}

fn batches<'a, R>(values: &'a [R], rows: &'a [usize]) -> impl Iterator<Item = &'a [R]> {
    let mut rest = values;
    rows.iter().map(move |rows| {
        let (batch, others) = rest.split_at(*rows);
        rest = others;
        batch
    })
}

fn lesser<R: PartialOrd>(a: R, b: R) -> R {
    if b < a { b } else { a }
}

fn greater<R: PartialOrd>(a: R, b: R) -> R {
    if b > a { b } else { a }
}

fn extremes<R: Real>(batch: &[R]) -> (R, R) {
    batch.iter().fold((batch[0], batch[0]), |(low, high), x| (lesser(low, *x), greater(high, *x)))
}

/// For each update: does it reach further than all before it?
fn reaches<R: Real>(values: &[R], rows: &[usize]) -> Vec<bool> {
    let mut seen: Option<(R, R)> = None;
    let further = |batch| {
        let (least, most) = extremes(batch);
        let (low, high) = seen.unwrap_or((least, most));
        seen = Some((lesser(low, least), greater(high, most)));
        least < low || most > high
    };
    batches(values, rows).map(further).collect()
}

/// One element's running statistics.
struct Running<R> {
    /// Is it the only element of its vector? numpy sums a single column in pairs.
    alone: bool,
    count: u64,
    mean: R,
    squares: R,
    min: R,
    max: R,
    edges: Edges,
    bins: Vec<f64>,
}

/// The edges of the bins, and what finds a value's bin quickly.
struct Edges {
    all: Vec<f64>,
    per_unit: f64,
}

impl Edges {
    /// `numpy.linspace`.
    fn between(low: f64, high: f64) -> Self {
        let step = (high - low) / BINS as f64;
        let mut all: Vec<f64> = if step == 0.0 {
            (0..=BINS).map(|i| i as f64 / BINS as f64 * (high - low) + low).collect()
        } else {
            (0..=BINS).map(|i| i as f64 * step + low).collect()
        };
        all[BINS] = high;
        Edges { all, per_unit: if step > 0.0 { 1.0 / step } else { 0.0 } }
    }

    /// The bin that a value falls into; `None` if it lies outside.
    fn bin(&self, value: f64) -> Option<usize> {
        let edges = &self.all;
        if value < edges[0] || value > edges[BINS] {
            return None;
        }
        if value == edges[BINS] {
            // numpy looks for the first edge that is not below, and takes this one from the right.
            return Some(BINS - 1);
        }
        // The guess is off by one at most where steps are even; rounding at tiny steps may need more.
        let mut bin = (((value - edges[0]) * self.per_unit) as usize).min(BINS - 1);
        while edges[bin] > value {
            bin -= 1;
        }
        while edges[bin + 1] <= value {
            bin += 1;
        }
        Some(bin)
    }
}

impl<R: Real> Running<R> {
    fn new(alone: bool) -> Self {
        let edges = Edges { all: vec![0.0; BINS + 1], per_unit: 0.0 };
        let zero = R::of(0.0);
        Running { alone, count: 0, mean: zero, squares: zero, min: zero, max: zero, edges, bins: vec![0.0; BINS] }
    }

    fn update(&mut self, batch: &[R], moved: bool) {
        let (low, high) = extremes(batch);
        let squares: Vec<R> = batch.iter().map(|x| *x * *x).collect();
        let rows = R::of(batch.len() as f64);
        let [mean, mean_of_squares] = [batch, &squares].map(|values| self.sum(values) / rows);
        if self.count == 0 {
            (self.mean, self.squares, self.min, self.max) = (mean, mean_of_squares, low, high);
            self.edges = Edges::between(low.wide() - RIM, high.wide() + RIM);
        } else {
            (self.min, self.max) = (lesser(self.min, low), greater(self.max, high));
            if moved {
                self.move_bins();
            }
        }
        self.count += batch.len() as u64;
        let share = R::of(batch.len() as f64 / self.count as f64);
        self.mean = self.mean + (mean - self.mean) * share;
        self.squares = self.squares + (mean_of_squares - self.squares) * share;
        for value in batch {
            if let Some(bin) = self.edges.bin(value.wide()) {
                self.bins[bin] += 1.0;
            }
        }
    }

    /// What was counted at an old bin's left edge is counted in the new bin that this edge falls into.
    fn move_bins(&mut self) {
        let edges = Edges::between(self.min.wide(), self.max.wide());
        let mut bins = vec![0.0; BINS];
        for (edge, count) in self.edges.all.iter().zip(&self.bins) {
            if let Some(bin) = edges.bin(*edge) {
                bins[bin] += count;
            }
        }
        (self.edges, self.bins) = (edges, bins);
    }

    fn sum(&self, values: &[R]) -> R {
        if self.alone { pairwise(values) } else { values[1..].iter().fold(values[0], |sum, x| sum + *x) }
    }

    fn summary(&self) -> Summary {
        let variance = self.squares - self.mean * self.mean;
        let percentile = |q: f64| {
            let wanted = q * self.count as f64;
            let mut seen = 0.0;
            let reached = |count: &f64| {
                seen += count;
                seen >= wanted
            };
            self.edges.all[self.bins.iter().position(reached).unwrap_or(BINS)]
        };
        Summary {
            count: self.count,
            mean: self.mean.wide(),
            // The root of an f32, rounded to f32, is the same from f64.
            std: R::of(greater(R::of(0.0), variance).wide().sqrt()).wide(),
            q01: percentile(0.01),
            q99: percentile(0.99),
            min: self.min.wide(),
            max: self.max.wide(),
        }
    }
}

/// numpy's pairwise sum.
fn pairwise<R: Real>(values: &[R]) -> R {
    const BLOCK: usize = 128;
    let n = values.len();
    if n < 8 {
        return values[1..].iter().fold(values[0], |sum, x| sum + *x);
    }
    if n <= BLOCK {
        let (eights, rest) = values.as_chunks::<8>();
        let mut sums = eights[0];
        for eight in &eights[1..] {
            for (sum, x) in sums.iter_mut().zip(eight) {
                *sum = *sum + *x;
            }
        }
        let [a, b, c, d, e, f, g, h] = sums;
        return rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |sum, x| sum + *x);
    }
    let half = n / 2 - (n / 2) % 8;
    pairwise(&values[..half]) + pairwise(&values[half..])
}

#[cfg(test)]
#[path = "running_tests.rs"]
mod tests;
