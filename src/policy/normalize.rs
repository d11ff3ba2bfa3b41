//! State, actions and whatever else has statistics ⇄ the scale that the model was trained in.
//!
//! Source: openpi 15a9616, transforms.py (Normalize, Unnormalize). With x of width w, along its last axis:
//!
//! ```text
//! z-score    apply (x - mean) / (std + 1e-6)               undo x · (std + 1e-6) + mean
//! quantile   apply (x - q01) / (q99 - q01 + 1e-6) · 2 - 1  undo (x + 1) / 2 · (q99 - q01 + 1e-6) + q01
//! ```
//!
//! The two ways treat widths differently, and so do we. `apply` takes the first w of wider statistics and refuses narrower
//! ones. `undo` refuses wider ones; of narrower ones the z-score goes on with mean 0 and deviation 1 (which multiplies by
//! 1 + 1e-6), the quantiles leave the rest of x alone. `apply` passes over a key that the record lacks; `undo` refuses it.
//! Statistics are f64, so the result is, whatever x was. numpy would also stretch statistics or an x of width 1; that is
//! refused here: it hides a mistake.

use std::collections::BTreeMap;

use super::array::{Array, Values};
use super::norm_stats::{NormStats, Stats};
use super::record::{Fault, Record};
use super::step::Step;

/// Keeps a dimension that never moves from being divided by nothing.
const EPSILON: f64 = 1e-6;

/// The step.
#[derive(Debug, Clone)]
pub struct Normalize {
    stats: BTreeMap<String, Stats>,
    use_quantiles: bool,
}

impl Normalize {
    /// By these statistics.
    ///
    /// # Errors
    /// `use_quantiles`, and a key without `q01` or `q99`.
    pub fn new(stats: &NormStats, use_quantiles: bool) -> Result<Self, Fault> {
        let lacking = |stats: &Stats| stats.q01.is_none() || stats.q99.is_none();
        if let Some((key, _)) = stats.keys.iter().find(|(_, stats)| use_quantiles && lacking(stats)) {
            let what = "the statistics have no q01 and q99, and the model wants quantiles; compute them again";
            return Err(Fault::Wrong { key: key.clone(), what: what.to_owned() });
        }
        Ok(Self { stats: stats.keys.clone(), use_quantiles })
    }

    /// What a step of 1 in a normalised value is before normalising, by dimension; `None` for a key without statistics.
    pub fn unit(&self, key: &str) -> Option<Vec<f64>> {
        let columns = self.columns(key, self.stats.get(key)?).ok()?;
        // Quantiles are 2 apart.
        let apart = if self.use_quantiles { 2.0 } else { 1.0 };
        Some(columns.map(|(_, spread)| (spread + EPSILON) / apart).collect())
    }

    fn map(&self, key: &str, array: &Array, stats: &Stats, undo: bool) -> Result<Array, Fault> {
        let misfit = |expected: String| Fault::Shape {
            key: key.to_owned(),
            expected,
            found: array.to_string(),
            hint_text: format!("the statistics of {key} have {} values: are they of another robot?", stats.width()),
        };
        let Some(width) = array.width().filter(|width| *width > 0) else {
            return Err(misfit("a vector".to_owned()));
        };
        let known = stats.width();
        if undo && known > width {
            return Err(misfit(format!("at least {known} values")));
        }
        if !undo && known < width {
            return Err(misfit(format!("at most {known} values")));
        }
        let maps: Vec<(f64, f64)> = self.columns(key, stats)?.take(width).collect();
        let mut values = array.values.to_f64();
        // (x + 1) / 2 meets no f64 in numpy, so of an f32 it is an f32.
        let single = matches!(array.values, Values::F32(_));
        let half = |x: f64| if single { f64::from((x as f32 + 1.0) / 2.0) } else { (x + 1.0) / 2.0 };
        for row in values.chunks_exact_mut(width) {
            for (x, (low, spread)) in row.iter_mut().zip(&maps) {
                *x = match (self.use_quantiles, undo) {
                    (false, false) => (*x - low) / (spread + EPSILON),
                    (false, true) => *x * (spread + EPSILON) + low,
                    (true, false) => (*x - low) / (spread + EPSILON) * 2.0 - 1.0,
                    (true, true) => half(*x) * (spread + EPSILON) + low,
                };
            }
            if !self.use_quantiles {
                row.iter_mut().skip(known).for_each(|x| *x = *x * (1.0 + EPSILON) + 0.0);
            }
        }
        Ok(Array::new(array.shape.clone(), Values::F64(values)))
    }

    /// (mean, std) or (q01, q99 - q01) of each dimension.
    fn columns<'a>(&self, key: &str, stats: &'a Stats) -> Result<Box<dyn Iterator<Item = (f64, f64)> + 'a>, Fault> {
        if !self.use_quantiles {
            return Ok(Box::new(stats.mean.iter().copied().zip(stats.std.iter().copied())));
        }
        match (&stats.q01, &stats.q99) {
            (Some(q01), Some(q99)) => Ok(Box::new(q01.iter().zip(q99).map(|(low, high)| (*low, high - low)))),
            _ => Err(Fault::Wrong { key: key.to_owned(), what: "the statistics have no q01 and q99".to_owned() }),
        }
    }
}

impl Step for Normalize {
    fn name(&self) -> &'static str {
        "normalize"
    }

    fn describe(&self) -> String {
        let how = if self.use_quantiles {
            "1st to 99th percentile to [-1, 1]"
        } else {
            "minus mean, divided by standard deviation"
        };
        let keys: Vec<String> = self.stats.iter().map(|(key, stats)| format!("{key} ({})", stats.width())).collect();
        format!("{how}: {}", keys.join(", "))
    }

    fn reads(&self) -> Vec<String> {
        self.stats.keys().cloned().collect()
    }

    fn writes(&self) -> Vec<String> {
        self.reads()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        for (key, stats) in self.stats.iter().filter(|(key, _)| record.has(key)).collect::<Vec<_>>() {
            let mapped = self.map(key, record.array(key)?, stats, false)?;
            record.put_array(key, mapped);
        }
        Ok(())
    }

    fn undo(&self, record: &mut Record) -> Result<(), Fault> {
        for (key, stats) in &self.stats {
            let mapped = self.map(key, record.array(key)?, stats, true)?;
            record.put_array(key, mapped);
        }
        Ok(())
    }
}
