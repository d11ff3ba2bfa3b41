//! Do statistics fit the data they are used on? What normalising with them makes of each element, and what that means.
//!
//! Invariant: a finding names the element, the figures and the consequence; no finding means that none of the known ways
//! to go wrong was seen, not that a policy will work.

use serde::Serialize;

use super::exact::{Population, Values};
use super::sweep::Bracket;
use super::{Motion, NotFinite};
use crate::policy::norm_stats::Stats;

/// openpi adds it to deviations and ranges before dividing.
const EPSILON: f64 = 1e-6;
/// A deviation or range below this share of the data's own magnitude blows rounding up to the size of signal.
const NEAR_CONSTANT: f64 = 1e-3;
/// Share of values outside of [q01, q99]; of fitting statistics it is 2 %.
const OUTSIDE: f64 = 0.10;
/// How far beyond q01 and q99 a value still counts as inside, as a share of their distance: percentiles of a histogram are
/// edges of bins, and a gripper that rests at its stop lies a bin beyond.
const RIM: f64 = 0.01;
/// A normalised value beyond this is nothing a model was trained on.
const FAR: f64 = 20.0;
/// How far means may lie apart, in the statistics' own deviations.
const SHIFTED: f64 = 1.0;
/// How far deviations may differ, as a factor.
const STRETCHED: f64 = 3.0;

/// What statistics make of one element of the data.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Element {
    /// Which.
    pub element: usize,
    /// Least and greatest value of the data.
    pub range: [f64; 2],
    /// Least and greatest value once normalised.
    pub normalized: [f64; 2],
    /// Mean of the data, in the statistics' deviations from their mean.
    pub shift: f64,
    /// Deviation of the data over the statistics'.
    pub stretch: f64,
    /// Share of the data clearly below q01.
    pub below_q01: Option<f64>,
    /// Share of the data clearly above q99.
    pub above_q99: Option<f64>,
    /// What is wrong, and what follows from it.
    pub findings: Vec<String>,
}

/// Everything about one vector.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    /// `state` or `actions`.
    pub key: &'static str,
    /// Elements of the data.
    pub width: usize,
    /// Elements of the statistics.
    pub stats_width: usize,
    /// By element; as many as both have.
    pub elements: Vec<Element>,
    /// What is wrong with the vector as a whole.
    pub findings: Vec<String>,
}

impl Checked {
    /// Nothing was found.
    pub fn fine(&self) -> bool {
        self.findings.is_empty() && self.elements.iter().all(|e| e.findings.is_empty())
    }
}

/// Holds the statistics of states and actions against data. `quantiles` says which of them normalise.
///
/// # Errors
/// A value of the data that is no number.
pub fn check(
    motion: &Motion,
    state: Option<&Stats>,
    actions: Option<&Stats>,
    quantiles: bool,
) -> Result<Vec<Checked>, NotFinite> {
    motion.finite()?;
    let population = Population::new(motion);
    let mut all = vec![];
    for (key, stats, width) in [("state", state, motion.state.len()), ("actions", actions, motion.actions.len())] {
        let Some(stats) = stats else {
            let lost = format!("there are no statistics of {key}: openpi would pass them on as they are, unnormalised");
            all.push(Checked { key, width, stats_width: 0, elements: vec![], findings: vec![lost] });
            continue;
        };
        let mut findings = vec![];
        if stats.width() < width {
            findings.push(format!(
                "the data has {width} values, the statistics {}: normalising fails. These are another robot's",
                stats.width()
            ));
        }
        if quantiles && (stats.q01.is_none() || stats.q99.is_none()) {
            findings.push("this model is normalised by q01 and q99, and the file has none: compute them anew".into());
        }
        let element = |element| {
            let values = match key {
                "state" => population.state(element),
                _ => population.actions(element),
            };
            one(&values, stats, element, quantiles)
        };
        let elements = (0..width.min(stats.width())).map(element).collect();
        all.push(Checked { key, width, stats_width: stats.width(), elements, findings });
    }
    Ok(all)
}

/// What follows from a deviation or a range of almost nothing; `None` where there is more.
pub fn nearly_constant(summary: &super::Summary, quantiles: bool) -> Option<String> {
    let (what, width) = match quantiles {
        true => ("q99 - q01", summary.q99 - summary.q01),
        false => ("std", summary.std),
    };
    constant(what, width, [summary.min, summary.max])
}

fn constant(what: &str, width: f64, range: [f64; 2]) -> Option<String> {
    let size = range[0].abs().max(range[1].abs()).max(EPSILON);
    (width <= NEAR_CONSTANT * size).then(|| {
        format!(
            "nearly constant: {what} is {width:.3e}, values reach {size:.3}. Normalising multiplies by {:.0}: the least \
             movement becomes a huge number. Leave the element out, or widen its statistics by hand",
            1.0 / (width + EPSILON)
        )
    })
}

fn one(values: &Values, stats: &Stats, element: usize, quantiles: bool) -> Element {
    let (mean, std) = (stats.mean[element], stats.std[element]);
    let percentiles = stats.q01.as_ref().zip(stats.q99.as_ref()).map(|(a, b)| [a[element], b[element]]);
    let bracket = percentiles.map_or(Bracket::ALL, |[low, high]| {
        let rim = RIM * (high - low);
        Bracket { low: (low - rim) as f32, high: (high + rim) as f32 }
    });
    let sweep = values.sweep([bracket, Bracket::ALL], false);
    let (own_mean, own_std) = sweep.moments();
    let range = [f64::from(sweep.min), f64::from(sweep.max)];
    let share = |n: u64| n as f64 / sweep.count as f64;
    let below_q01 = percentiles.map(|_| share(sweep.found[0].below()));
    let above_q99 = percentiles.map(|_| share(sweep.count - sweep.found[0].up_to_high()));
    let normalize = |x: f64| match percentiles {
        Some([low, high]) if quantiles => (x - low) / (high - low + EPSILON) * 2.0 - 1.0,
        _ => (x - mean) / (std + EPSILON),
    };
    let normalized = range.map(normalize);
    let shift = (own_mean - mean) / (std + EPSILON);
    let stretch = own_std / (std + EPSILON);

    let mut findings = vec![];
    let size = range[0].abs().max(range[1].abs()).max(EPSILON);
    let (what, width) = match percentiles {
        Some([low, high]) if quantiles => ("q99 - q01", high - low),
        _ => ("std", std),
    };
    let farthest = normalized[0].abs().max(normalized[1].abs());
    findings.extend(constant(what, width, range));
    if farthest > FAR {
        findings.push(format!("normalised values reach {farthest:.1}; training has hardly seen beyond 3"));
    }
    if shift.abs() > SHIFTED {
        findings.push(format!(
            "its mean lies {shift:.1} deviations from the statistics': another zero, unit or sign, or another robot"
        ));
    }
    if !(1.0 / STRETCHED..=STRETCHED).contains(&stretch) && own_std > NEAR_CONSTANT * size {
        findings.push(format!(
            "its deviation is {stretch:.2} times the statistics': another unit, deltas where they were absolute (or the \
             other way round), or a narrower task"
        ));
    }
    if let Some(outside) = below_q01.zip(above_q99).map(|(a, b)| a + b).filter(|outside| *outside > OUTSIDE) {
        findings.push(format!(
            "{:.0} % of its values lie outside of [q01, q99], where 2 % should: the statistics are of other movements",
            outside * 100.0
        ));
    }
    Element { element, range, normalized, shift, stretch, below_q01, above_q99, findings }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
