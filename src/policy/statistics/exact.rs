//! Mean, deviation and percentiles of the whole population, with no histogram in between.
//!
//! A percentile is what `numpy.quantile` gives: between the two values whose ranks enclose `q·(n - 1)`, in proportion.
//! To find them without sorting N·H values, a sample is sorted first; it tells, with a wide margin, between which two
//! values they must lie. One sweep then counts what is below and keeps what is between: some thousandths. Where the
//! margin was not wide enough, counting shows it, and the sweep is done again with a wider one.
//!
//! Invariant: the percentiles do not depend on the sample, and nothing depends on the number of threads.

use std::borrow::Cow;

use rayon::prelude::*;

use super::random::mixed;
use super::sweep::{Bracket, Sweep};
use super::{Column, Motion, NotFinite, Summaries, Summary};

/// Of so many values all are kept: a sample would save nothing.
const SMALL: u64 = 1 << 18;
/// Values of a sample: with the margin, a bracket holds half a percent of all values.
const SAMPLE: u64 = 1 << 16;
/// Half the width of a bracket, in standard deviations of a rank in the sample.
const MARGIN: f64 = 6.0;
/// How much wider the next one is.
const WIDER: f64 = 4.0;
/// Values that one thread sweeps at a time.
const BLOCK: usize = 1 << 17;
/// Values after which a stretch is held against the brackets again.
const STRETCH: usize = 64;
const QUANTILES: [f64; 2] = [0.01, 0.99];

/// Summaries of states and action chunks.
///
/// # Errors
/// A value that is no number.
///
/// # Panics
/// If there are no frames, or a horizon of 0: whoever calls asks before.
pub fn exact(motion: &Motion) -> Result<Summaries, NotFinite> {
    motion.finite()?;
    let population = Population::new(motion);
    let elements = motion.state.len() + motion.actions.len();
    let mut all: Vec<Summary> = (0..elements)
        .into_par_iter()
        .map(|i| match i.checked_sub(motion.state.len()) {
            None => summary(&population.state(i)),
            Some(i) => summary(&population.actions(i)),
        })
        .collect();
    let actions = all.split_off(motion.state.len());
    Ok(Summaries { state: all, actions })
}

/// A frame at which a chunk begins, and the last frame of its episode.
#[derive(Clone, Copy)]
struct Start {
    frame: usize,
    last: usize,
}

/// Which frames count, and how often.
pub(super) struct Population<'a> {
    motion: &'a Motion,
    starts: Vec<Start>,
    /// In how many places of how many chunks a frame's action stands.
    counts: Vec<u32>,
}

/// The values of one element, so described that they can be swept again and again.
pub(super) struct Values<'a> {
    kind: Kind<'a>,
    starts: &'a [Start],
    horizon: usize,
}

enum Kind<'a> {
    /// The value of each frame that counts, once.
    Each(Cow<'a, [f32]>),
    /// Every frame's value, so often as it stands in chunks.
    Counted(Cow<'a, [f32]>, &'a [u32]),
    /// `actions[t + h] - state[t]`, in f32.
    Narrow { actions: &'a [f32], state: &'a [f32] },
    /// The same in f64, then rounded.
    Wide { actions: Vec<f64>, state: Vec<f64> },
}

fn rounded(column: &Column) -> Cow<'_, [f32]> {
    match column {
        Column::F32(x) => Cow::Borrowed(x),
        Column::F64(x) => Cow::Owned(x.iter().map(|x| *x as f32).collect()),
    }
}

impl<'a> Population<'a> {
    pub(super) fn new(motion: &'a Motion) -> Self {
        let all = motion.episodes.iter().flat_map(|e| e.clone().map(|frame| Start { frame, last: e.end - 1 }));
        let mut starts: Vec<Start> = all.collect();
        if let Some(picked) = &motion.picked {
            starts = picked.iter().map(|frame| starts[*frame]).collect();
        }
        let counts = counts(&starts, motion.frames(), motion.horizon);
        Population { motion, starts, counts }
    }

    pub(super) fn state(&self, element: usize) -> Values<'_> {
        let mut values = rounded(&self.motion.state[element]);
        if self.motion.picked.is_some() {
            values = self.starts.iter().map(|start| values[start.frame]).collect();
        }
        Values { kind: Kind::Each(values), starts: &self.starts, horizon: 1 }
    }

    pub(super) fn actions(&self, element: usize) -> Values<'_> {
        let actions = &self.motion.actions[element];
        let kind = match self.motion.relative(element) {
            false => Kind::Counted(rounded(actions), &self.counts),
            true => match (actions, &self.motion.state[element]) {
                (Column::F32(actions), Column::F32(state)) => Kind::Narrow { actions, state },
                (actions, state) => Kind::Wide { actions: actions.wide(), state: state.wide() },
            },
        };
        Values { kind, starts: &self.starts, horizon: self.motion.horizon }
    }
}

fn counts(starts: &[Start], frames: usize, horizon: usize) -> Vec<u32> {
    // Each chunk adds one to a stretch of frames; what changes at the ends of stretches is summed up afterwards.
    let mut change = vec![0_i64; frames + 1];
    let mut counts = vec![0_u32; frames];
    for Start { frame, last } in starts {
        let end = (frame + horizon).min(last + 1);
        change[*frame] += 1;
        change[end] -= 1;
        counts[*last] += (frame + horizon - end) as u32;
    }
    let mut here = 0;
    for (count, change) in counts.iter_mut().zip(change) {
        here += change;
        *count += here as u32;
    }
    counts
}

impl Values<'_> {
    fn count(&self) -> u64 {
        self.starts.len() as u64 * self.horizon as u64
    }

    /// Value `step` of the chunk that begins with the `start`th frame that counts.
    fn at(&self, start: usize, step: usize) -> f32 {
        let Start { frame, last } = self.starts[start];
        let end = (frame + step).min(last);
        match &self.kind {
            Kind::Each(values) => values[start],
            Kind::Counted(values, _) => values[end],
            Kind::Narrow { actions, state } => actions[end] - state[frame],
            Kind::Wide { actions, state } => (actions[end] - state[frame]) as f32,
        }
    }

    /// All values of the first `starts` frames that count, chunk after chunk.
    pub(super) fn all(&self, starts: usize) -> Vec<f32> {
        (0..starts).flat_map(|start| (0..self.horizon).map(move |step| self.at(start, step))).collect()
    }

    /// Some of the values, sorted.
    fn sample(&self) -> Vec<f32> {
        let (n, horizon) = (self.starts.len() as u64, self.horizon as u64);
        let pick = |i| self.at((mixed(2 * i) % n) as usize, (mixed(2 * i + 1) % horizon) as usize);
        let mut sample: Vec<f32> = (0..SAMPLE).map(pick).collect();
        sample.sort_unstable_by(f32::total_cmp);
        sample
    }

    /// All values, once. Parts are joined in order, so that sums do not depend on the threads.
    pub(super) fn sweep(&self, brackets: [Bracket; 2], keep: bool) -> Sweep {
        let empty = || Sweep::new(f64::from(self.at(0, 0)), brackets, keep);
        let chunks = (BLOCK / self.horizon).max(1);
        let parts: Vec<Sweep> = match &self.kind {
            Kind::Each(values) => values.par_chunks(BLOCK).map(|block| each(empty(), block)).collect(),
            Kind::Counted(values, counts) => {
                let blocks = values.par_chunks(BLOCK).zip(counts.par_chunks(BLOCK));
                blocks.map(|(values, counts)| counted(empty(), values, counts)).collect()
            }
            Kind::Narrow { actions, state } => {
                let part = |starts: &[Start]| relative(empty(), self.horizon, starts, actions, state, |a, s| a - s);
                self.starts.par_chunks(chunks).map(part).collect()
            }
            Kind::Wide { actions, state } => {
                let difference = |a: f64, s: f64| (a - s) as f32;
                let part = |starts: &[Start]| relative(empty(), self.horizon, starts, actions, state, difference);
                self.starts.par_chunks(chunks).map(part).collect()
            }
        };
        parts.into_iter().fold(empty(), Sweep::merge)
    }
}

fn each(mut sweep: Sweep, values: &[f32]) -> Sweep {
    values.chunks(STRETCH).for_each(|stretch| sweep.values(stretch));
    sweep
}

fn counted(mut sweep: Sweep, values: &[f32], counts: &[u32]) -> Sweep {
    for (value, count) in values.iter().zip(counts).filter(|(_, count)| **count > 0) {
        sweep.value(*value, u64::from(*count));
    }
    sweep
}

fn relative<T: Copy>(
    mut sweep: Sweep,
    horizon: usize,
    starts: &[Start],
    actions: &[T],
    state: &[T],
    difference: impl Fn(T, T) -> f32,
) -> Sweep {
    let mut chunk = vec![0.0; horizon];
    for Start { frame, last } in starts {
        let own = horizon.min(last + 1 - frame);
        let from = state[*frame];
        for (value, action) in chunk.iter_mut().zip(&actions[*frame..*frame + own]) {
            *value = difference(*action, from);
        }
        let end = chunk[own - 1];
        chunk[own..].fill(end);
        sweep.values(&chunk);
    }
    sweep
}

fn summary(values: &Values) -> Summary {
    let count = values.count();
    let places = QUANTILES.map(|q| q * (count - 1) as f64);
    let sample = if count > SMALL { values.sample() } else { vec![] };
    let mut margins = [MARGIN; 2];
    loop {
        let brackets = [0, 1].map(|i| bracket(&sample, QUANTILES[i], margins[i]));
        let mut sweep = values.sweep(brackets, true);
        let mut percentile = |i: usize| {
            let rank = places[i].floor() as u64;
            let [low, high] = sweep.found[i].ranks(brackets[i], [rank, (rank + 1).min(count - 1)])?.map(f64::from);
            Some(low + (high - low) * places[i].fract())
        };
        match [percentile(0), percentile(1)] {
            [Some(q01), Some(q99)] => {
                let (mean, std) = sweep.moments();
                return Summary { count, mean, std, q01, q99, min: sweep.min.into(), max: sweep.max.into() };
            }
            found => {
                for (margin, _) in margins.iter_mut().zip(found).filter(|(_, found)| found.is_none()) {
                    *margin *= WIDER;
                }
            }
        }
    }
}

/// Between which values of a sorted sample a percentile lies, as good as surely.
fn bracket(sample: &[f32], q: f64, margin: f64) -> Bracket {
    let n = sample.len() as f64;
    let width = margin * (n * q * (1.0 - q)).sqrt();
    let (low, high) = ((q * n - width).floor(), (q * n + width).ceil());
    Bracket {
        low: if low < 0.0 { f32::NEG_INFINITY } else { sample.get(low as usize).copied().unwrap_or(f32::NEG_INFINITY) },
        high: sample.get(high as usize).copied().unwrap_or(f32::INFINITY),
    }
}

#[cfg(test)]
#[path = "exact_tests.rs"]
mod tests;
