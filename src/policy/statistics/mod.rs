//! What a dataset is normalised by: mean, deviation and percentiles of states and of action chunks.
//!
//! openpi's loader hands its statistics one chunk a frame, `actions[t], …, actions[t + H - 1]`, the last action of an
//! episode repeated where the chunk reaches beyond it, relative to `state[t]` where the robot's mask says so, each value
//! rounded to f32. That is the population here too: N frames make N states and N·H actions.
//!
//! - [`exact`]: its mean and deviation in f64, its percentiles by selection: no histogram, no order, no memory of N·H values.
//! - [`running`]: openpi's own running statistics, with their 5000 bins, reproduced.
//!
//! Source: openpi 15a9616, shared/normalize.py, scripts/compute_norm_stats.py, training/data_loader.py.
//! Invariant: no value is left out; one that is no number is an error that names its place.

pub mod check;
pub mod exact;
mod random;
pub mod running;
mod sweep;

use std::ops::Range;

use rayon::prelude::*;

use super::array::{Array, Values};
use super::norm_stats::Stats;

pub use random::shuffled;

/// One element of a vector over all frames.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// All of them are f32.
    F32(Vec<f32>),
    /// A robot's map has made them f64.
    F64(Vec<f64>),
}

impl Column {
    /// Frames.
    pub fn len(&self) -> usize {
        match self {
            Column::F32(x) => x.len(),
            Column::F64(x) => x.len(),
        }
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wide(&self) -> Vec<f64> {
        match self {
            Column::F32(x) => x.iter().map(|x| f64::from(*x)).collect(),
            Column::F64(x) => x.clone(),
        }
    }

    /// f32 where nothing is lost by it: half the memory, and the quick way.
    pub fn narrowed(self) -> Self {
        match self {
            Column::F64(x) if x.iter().all(|x| f64::from(*x as f32) == *x) => {
                Column::F32(x.iter().map(|x| *x as f32).collect())
            }
            other => other,
        }
    }
}

/// The columns of `[n, D]` arrays that stand one after another.
#[derive(Debug, Default)]
pub struct Columns {
    /// One for each element of the vector.
    pub columns: Vec<Column>,
}

impl Columns {
    /// A block of rows `[n, D]`, turned.
    ///
    /// # Errors
    /// In a sentence: they are no rows of floats.
    pub fn of(rows: &Array) -> Result<Self, String> {
        fn turned<T: Copy>(values: &[T], width: usize) -> Vec<Vec<T>> {
            (0..width).map(|d| values.iter().skip(d).step_by(width).copied().collect()).collect()
        }
        let width = rows.width().unwrap_or(0);
        let columns = match &rows.values {
            Values::F32(x) => turned(x, width).into_iter().map(Column::F32).collect(),
            Values::F64(x) => turned(x, width).into_iter().map(|x| Column::F64(x).narrowed()).collect(),
            _ => return Err(format!("expected floats, found {rows}")),
        };
        Ok(Columns { columns })
    }

    /// Blocks or datasets, one after another.
    ///
    /// # Errors
    /// In a sentence: they are not of one width.
    pub fn joined(blocks: &[Columns]) -> Result<Self, String> {
        let width = blocks.first().map_or(0, |block| block.columns.len());
        if let Some(odd) = blocks.iter().find(|block| block.columns.len() != width) {
            return Err(format!("rows of {} values, expected {width} as before", odd.columns.len()));
        }
        let frames = blocks.iter().map(|block| block.columns.first().map_or(0, Column::len)).sum();
        let column = |d: usize| {
            if blocks.iter().all(|block| matches!(block.columns[d], Column::F32(_))) {
                let mut all = Vec::with_capacity(frames);
                for block in blocks {
                    if let Column::F32(x) = &block.columns[d] {
                        all.extend_from_slice(x);
                    }
                }
                return Column::F32(all);
            }
            let mut all = Vec::with_capacity(frames);
            blocks.iter().for_each(|block| all.extend(block.columns[d].wide()));
            Column::F64(all)
        };
        Ok(Columns { columns: (0..width).into_par_iter().map(column).collect() })
    }
}

/// States and actions of all frames, after the robot's own steps and before deltas.
#[derive(Debug)]
pub struct Motion {
    /// State, by element.
    pub state: Vec<Column>,
    /// Action, by element.
    pub actions: Vec<Column>,
    /// Frames of each episode; together all frames, in order.
    pub episodes: Vec<Range<usize>>,
    /// Actions of a chunk.
    pub horizon: usize,
    /// Which elements of an action are relative to the state; elements behind its end are not.
    pub delta: Vec<bool>,
    /// Only these frames, in this order; left out, all of them.
    pub picked: Option<Vec<usize>>,
}

/// A value that is no number.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "{key}[{element}]: {value} at frame {frame} (episode {episode}); statistics of it would be none. `pi0 dataset` finds them all"
)]
pub struct NotFinite {
    /// `state` or `actions`.
    pub key: &'static str,
    /// Which element of the vector.
    pub element: usize,
    /// Which frame of the dataset.
    pub frame: usize,
    /// Its episode, counted from 0.
    pub episode: usize,
    /// What stands there.
    pub value: f64,
}

impl Motion {
    /// Frames.
    pub fn frames(&self) -> usize {
        self.episodes.iter().map(Range::len).sum()
    }

    /// Frames that count.
    pub fn counted(&self) -> usize {
        self.picked.as_ref().map_or_else(|| self.frames(), Vec::len)
    }

    /// Is this element of an action relative to the state?
    fn relative(&self, element: usize) -> bool {
        self.delta.get(element).copied().unwrap_or(false) && element < self.state.len()
    }

    /// Refuses what no statistics can be made of.
    ///
    /// # Errors
    /// The first value of an element that is no number.
    pub fn finite(&self) -> Result<(), NotFinite> {
        let all = [("state", &self.state), ("actions", &self.actions)];
        let columns: Vec<_> = all
            .iter()
            .flat_map(|(key, columns)| columns.iter().enumerate().map(move |(element, column)| (*key, element, column)))
            .collect();
        columns.into_par_iter().try_for_each(|(key, element, column)| {
            let odd = match column {
                Column::F32(x) => x.iter().position(|x| !x.is_finite()).map(|i| (i, f64::from(x[i]))),
                Column::F64(x) => x.iter().position(|x| !x.is_finite()).map(|i| (i, x[i])),
            };
            let Some((frame, value)) = odd else { return Ok(()) };
            let episode = self.episodes.iter().position(|e| e.contains(&frame)).unwrap_or(0);
            Err(NotFinite { key, element, frame, episode, value })
        })
    }
}

/// What is known of one element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// How many values.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Deviation: of all values, not of a sample.
    pub std: f64,
    /// 1st percentile.
    pub q01: f64,
    /// 99th percentile.
    pub q99: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
}

/// As the file has it.
pub fn stats(summaries: &[Summary]) -> Stats {
    let list = |f: fn(&Summary) -> f64| summaries.iter().map(f).collect::<Vec<f64>>();
    Stats { mean: list(|s| s.mean), std: list(|s| s.std), q01: Some(list(|s| s.q01)), q99: Some(list(|s| s.q99)) }
}

/// States' and actions' summaries.
#[derive(Debug, Clone, PartialEq)]
pub struct Summaries {
    /// By element of the state.
    pub state: Vec<Summary>,
    /// By element of the actions.
    pub actions: Vec<Summary>,
}
