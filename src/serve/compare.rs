//! A recorded answer held against a new one: joint by joint, horizon step by horizon step.
//!
//! Invariants: two values are within the tolerance only where both are numbers and no farther apart than it, or where
//! both are the same infinity or no number; a shape, a dtype or a key that differs is never within. Where the noise of the
//! recording is not known its actions are one draw of many: then no value is held against another, and what is compared
//! are shapes, ranges and spreads. Times (`policy_timing`, `server_timing`) are not compared.

use std::fmt;

use serde::Serialize;

use super::EXTENSIONS;
use crate::policy::array::{Array, Values};
use crate::policy::record::{Record, Value};

/// What is compared joint by joint.
const ACTIONS: &str = "actions";
/// What no two answers have alike.
const TIMES: [&str; 2] = ["policy_timing", "server_timing"];

/// What one comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every value has the same bits.
    Equal,
    /// No value is farther away than the tolerance.
    Within,
    /// The noise is not known; what can be compared is alike.
    Unknown,
    /// A value is farther away.
    Outside,
    /// A key, a shape or a dtype differs, or what was a number is none.
    Unlike,
}

impl Verdict {
    /// Is the answer no?
    pub fn departs(self) -> bool {
        matches!(self, Verdict::Outside | Verdict::Unlike)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Equal => "equal",
            Verdict::Within => "within",
            Verdict::Unknown => "noise unknown",
            Verdict::Outside => "outside",
            Verdict::Unlike => "unlike",
        }
    }
}

/// One answer held against another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Held {
    /// What it says.
    pub verdict: Verdict,
    /// Errors of the actions; none where they cannot be paired.
    pub actions: Option<Errors>,
    /// The first action that is outside, by horizon step, then by joint.
    pub first: Option<Departure>,
    /// What else differs, a sentence each, with its key.
    pub differences: Vec<String>,
}

/// Differences of paired values, in the robot's units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Errors {
    /// Pairs that were compared.
    pub values: u64,
    /// The largest.
    pub max_abs: f64,
    /// Their mean.
    pub mean_abs: f64,
    /// Pairs of which only one is a finite number; in none of the others.
    pub not_finite: u64,
}

impl Errors {
    fn add(&mut self, difference: Option<f64>) {
        match difference {
            None => self.not_finite += 1,
            Some(difference) => {
                self.values += 1;
                self.max_abs = self.max_abs.max(difference);
                self.mean_abs += (difference - self.mean_abs) / self.values as f64;
            }
        }
    }
}

/// Where an action departs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Departure {
    /// The horizon step, from 0.
    pub step: usize,
    /// The joint, from 0.
    pub joint: usize,
    /// As it was recorded; none where it is no finite number.
    pub recorded: Option<f64>,
    /// As it is now.
    pub replayed: Option<f64>,
}

impl fmt::Display for Departure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |value: Option<f64>| value.map_or_else(|| "not finite".to_owned(), |value| value.to_string());
        let (recorded, replayed) = (of(self.recorded), of(self.replayed));
        write!(out, "joint {} at horizon step {}: recorded {recorded}, replayed {replayed}", self.joint, self.step)
    }
}

/// The least, the largest, the mean and the deviation of a joint's actions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Finite values.
    pub values: u64,
    /// The least of them.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
    /// On the way to it: the sum of squares around the mean.
    #[serde(skip)]
    squares: f64,
}

impl Spread {
    fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        (self.min, self.max) =
            if self.values == 0 { (value, value) } else { (self.min.min(value), self.max.max(value)) };
        self.values += 1;
        // Welford's: a mean far from 0 costs no digits.
        let before = value - self.mean;
        self.mean += before / self.values as f64;
        self.squares += before * (value - self.mean);
        self.std = (self.squares / self.values as f64).sqrt();
    }

    /// From the least to the largest.
    pub fn range(&self) -> f64 {
        self.max - self.min
    }
}

/// One joint, over all that was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Joint {
    /// Of answers whose noise is known.
    pub errors: Errors,
    /// Its recorded actions.
    pub recorded: Spread,
    /// Its replayed actions.
    pub replayed: Spread,
}

impl Joint {
    /// A difference as a share of the range of its recorded actions; none where it never moves.
    pub fn of_range(&self, difference: f64) -> Option<f64> {
        let range = self.recorded.range();
        (range > 0.0 && range.is_finite()).then(|| difference / range)
    }

    /// How far the means are apart, in deviations of the recorded actions; none where it never moves.
    pub fn shift(&self) -> Option<f64> {
        (self.recorded.std > 0.0).then(|| (self.replayed.mean - self.recorded.mean).abs() / self.recorded.std)
    }
}

/// All answers of a replay.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// How far apart two values may be, in the robot's units.
    pub tolerance: f64,
    /// Answers that were compared.
    pub answers: usize,
    /// Of them, [`Verdict::Equal`].
    pub equal: usize,
    /// [`Verdict::Within`].
    pub within: usize,
    /// [`Verdict::Unknown`].
    pub unknown: usize,
    /// [`Verdict::Outside`].
    pub outside: usize,
    /// [`Verdict::Unlike`].
    pub unlike: usize,
    /// By joint.
    pub joints: Vec<Joint>,
    /// By horizon step, over all joints; of answers whose noise is known.
    pub steps: Vec<Errors>,
}

impl Comparison {
    /// Of nothing yet.
    pub fn new(tolerance: f64) -> Self {
        Comparison { tolerance, ..Comparison::default() }
    }

    /// Does any answer depart?
    pub fn departs(&self) -> bool {
        self.outside + self.unlike > 0
    }

    /// Holds one answer against another; `noise_is_known` where both began from the same.
    pub fn hold(&mut self, recorded: &Record, replayed: &Record, noise_is_known: bool) -> Held {
        let mut held = Held { verdict: Verdict::Equal, actions: None, first: None, differences: vec![] };
        for (key, old) in recorded.values.iter().filter(|(key, _)| compared(key)) {
            let Some(new) = replayed.get(key) else {
                held.differ(Verdict::Unlike, format!("{key}: recorded is {}, replayed is none", kind(old)));
                continue;
            };
            match (old, new) {
                (Value::Array(old), Value::Array(new)) => self.arrays(&mut held, key, [old, new], noise_is_known),
                (Value::Text(a), Value::Text(b)) if a == b => {}
                (Value::Text(_), Value::Text(_)) if !noise_is_known => {}
                _ => {
                    let verdict = if matches!((old, new), (Value::Text(_), Value::Text(_))) {
                        Verdict::Outside
                    } else {
                        Verdict::Unlike
                    };
                    held.differ(verdict, format!("{key}: recorded is {}, replayed is {}", kind(old), kind(new)));
                }
            }
        }
        if !recorded.has(ACTIONS) {
            held.differ(Verdict::Unlike, format!("{ACTIONS}: none were recorded"));
        }
        if !noise_is_known && !held.verdict.departs() {
            held.verdict = Verdict::Unknown;
        }
        self.answers += 1;
        *match held.verdict {
            Verdict::Equal => &mut self.equal,
            Verdict::Within => &mut self.within,
            Verdict::Unknown => &mut self.unknown,
            Verdict::Outside => &mut self.outside,
            Verdict::Unlike => &mut self.unlike,
        } += 1;
        held
    }

    fn arrays(&mut self, held: &mut Held, key: &str, [old, new]: [&Array; 2], noise_is_known: bool) {
        if old.shape != new.shape || old.values.dtype() != new.values.dtype() {
            held.differ(Verdict::Unlike, format!("{key}: recorded is {old}, replayed is {new}"));
        }
        if old.shape != new.shape {
            return;
        }
        let values = [old.values.to_f64(), new.values.to_f64()];
        let lost = values[0].iter().zip(&values[1]).filter(|(old, new)| old.is_finite() && !new.is_finite()).count();
        if lost > 0 {
            held.differ(Verdict::Unlike, format!("{key}: {lost} values that were finite are not any more"));
        }
        let is_actions = key == ACTIONS;
        if is_actions {
            self.spread(old, &values);
        }
        if !noise_is_known || same_bits(&old.values, &new.values) && !is_actions {
            return;
        }
        if !same_bits(&old.values, &new.values) {
            held.worse(Verdict::Within);
        }
        let width = old.width().unwrap_or(1).max(1);
        let (mut errors, mut first) = (Errors::default(), None);
        for (i, (old, new)) in values[0].iter().zip(&values[1]).enumerate() {
            let (step, joint) = (i / width, i % width);
            let apart = apart(*old, *new);
            errors.add(apart);
            if is_actions {
                self.joints[joint].errors.add(apart);
                self.steps[step].add(apart);
            }
            if first.is_none() && apart.is_none_or(|apart| apart > self.tolerance) {
                let finite = |x: f64| x.is_finite().then_some(x);
                first = Some(Departure { step, joint, recorded: finite(*old), replayed: finite(*new) });
            }
        }
        if first.is_some() {
            held.worse(Verdict::Outside);
        }
        if is_actions {
            (held.actions, held.first) = (Some(errors), first);
        } else if first.is_some() {
            held.differences.push(format!("{key}: up to {} apart", errors.max_abs));
        }
    }

    fn spread(&mut self, actions: &Array, [old, new]: &[Vec<f64>; 2]) {
        let width = actions.width().unwrap_or(1).max(1);
        let steps = old.len() / width;
        // No more than there are values: an axis may be long where another is empty.
        if old.is_empty() {
            return;
        }
        self.joints.resize_with(self.joints.len().max(width), Joint::default);
        self.steps.resize_with(self.steps.len().max(steps), Errors::default);
        for (i, (old, new)) in old.iter().zip(new).enumerate() {
            let joint = &mut self.joints[i % width];
            joint.recorded.add(*old);
            joint.replayed.add(*new);
        }
    }
}

impl Held {
    fn differ(&mut self, verdict: Verdict, sentence: String) {
        self.worse(verdict);
        self.differences.push(sentence);
    }

    fn worse(&mut self, verdict: Verdict) {
        let rank = |verdict| match verdict {
            Verdict::Equal => 0,
            Verdict::Within => 1,
            Verdict::Unknown => 2,
            Verdict::Outside => 3,
            Verdict::Unlike => 4,
        };
        if rank(verdict) > rank(self.verdict) {
            self.verdict = verdict;
        }
    }
}

fn compared(key: &str) -> bool {
    let first = key.split('/').next().unwrap_or_default();
    !TIMES.contains(&first) && first != EXTENSIONS
}

fn kind(value: &Value) -> String {
    match value {
        Value::Array(array) => array.to_string(),
        Value::Text(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
    }
}

/// How far apart; none where they are not two finite numbers or the same otherwise.
fn apart(old: f64, new: f64) -> Option<f64> {
    let apart = (old - new).abs();
    if apart.is_finite() {
        Some(apart)
    } else if old == new || old.is_nan() && new.is_nan() {
        Some(0.0)
    } else {
        None
    }
}

fn same_bits(a: &Values, b: &Values) -> bool {
    match (a, b) {
        (Values::F32(a), Values::F32(b)) => a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())),
        (Values::F64(a), Values::F64(b)) => a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())),
        (a, b) => a == b,
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
