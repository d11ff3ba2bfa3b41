//! How far predicted actions are from recorded ones, and how far a robot would be that stood still.
//!
//! Invariants: each step of each chunk that was recorded counts once, also where chunks overlap; values that are not
//! finite are counted apart and left out. Standing still means: the last action before the chunk's frame is held (the
//! first frame's own where there is none before it), which a robot can do without any model.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::{Compared, number, percent, usable};

/// The whole account.
#[derive(Debug, Clone, Serialize)]
pub struct Metrics {
    /// Frames that were recorded.
    pub frames: usize,
    /// Chunks that were predicted.
    pub chunks: usize,
    /// Steps of a chunk.
    pub horizon: usize,
    /// Steps that were compared, of all chunks.
    pub compared: usize,
    /// Steps beyond the episode's end: not compared.
    pub padded: usize,
    /// Pairs of values of which one is not finite: not compared.
    pub not_finite: usize,
    /// Median time of a prediction.
    pub infer_ms_p50: f64,
    /// Over all joints. Its errors mix their units; its shares of the ranges do not.
    pub all: Scores,
    /// Each joint, in the order of the actions.
    pub joints: Vec<Joint>,
    /// Each horizon step, over all joints.
    pub steps: Vec<Step>,
}

/// One joint.
#[derive(Debug, Clone, Serialize)]
pub struct Joint {
    /// Its name.
    pub name: String,
    /// Least and largest recorded action; none if no action is finite.
    pub recorded: Option<[f64; 2]>,
    /// Its errors.
    #[serde(flatten)]
    pub scores: Scores,
}

/// One horizon step.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Which, from 0.
    pub step: usize,
    /// How long after the chunk's frame.
    pub seconds: f64,
    /// Its errors.
    #[serde(flatten)]
    pub scores: Scores,
}

/// The policy's errors, and those of standing still.
#[derive(Debug, Clone, Serialize)]
pub struct Scores {
    /// The policy's; none if nothing could be compared.
    pub policy: Option<Score>,
    /// Of holding the last action before the chunk.
    pub hold: Option<Score>,
}

/// Errors in the robot's units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// Pairs of values.
    pub values: usize,
    /// Mean absolute error.
    pub mae: f64,
    /// Root of the mean square error.
    pub rmse: f64,
    /// Largest absolute error.
    pub max: f64,
    /// `mae`, each joint's as a share of its recorded range; none where no joint moves.
    pub mae_of_range: Option<f64>,
    /// `rmse`, likewise.
    pub rmse_of_range: Option<f64>,
}

impl Scores {
    /// The policy's mean error as a part of that of standing still: below 1 it is better. By shares of the ranges, so
    /// that units do not mix.
    pub fn against_holding(&self) -> Option<f64> {
        let (policy, hold) = (self.policy?.mae_of_range?, self.hold?.mae_of_range?);
        (hold > 0.0).then(|| policy / hold)
    }
}

/// Sums on the way to a score.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    values: usize,
    absolute: f64,
    square: f64,
    max: f64,
    /// Of those values whose joint moves.
    shared: usize,
    share: f64,
    share_square: f64,
}

impl Sum {
    fn add(&mut self, error: f64, range: f64) {
        let error = error.abs();
        self.values += 1;
        self.absolute += error;
        self.square += error * error;
        self.max = self.max.max(error);
        if range > 0.0 {
            self.shared += 1;
            self.share += error / range;
            self.share_square += (error / range).powi(2);
        }
    }

    fn score(&self) -> Option<Score> {
        let n = self.values as f64;
        let shared = |sum: f64| (self.shared > 0).then(|| sum / self.shared as f64);
        (self.values > 0).then(|| Score {
            values: self.values,
            mae: self.absolute / n,
            rmse: (self.square / n).sqrt(),
            max: self.max,
            mae_of_range: shared(self.share),
            rmse_of_range: shared(self.share_square).map(f64::sqrt),
        })
    }
}

/// The policy's and the standing robot's.
#[derive(Debug, Clone, Copy, Default)]
struct Sums([Sum; 2]);

impl Sums {
    fn add(&mut self, [policy, hold]: [f64; 2], range: f64) {
        self.0[0].add(policy, range);
        self.0[1].add(hold, range);
    }

    fn scores(&self) -> Scores {
        Scores { policy: self.0[0].score(), hold: self.0[1].score() }
    }
}

/// Compares each step of each chunk with what was recorded for its frame.
///
/// # Errors
/// What [`Compared::check`] refuses.
pub fn measure(compared: &Compared) -> Result<Metrics> {
    compared.check()?;
    let (joints, horizon) = (compared.joints.len(), compared.horizon());
    let recorded = |j: usize| compared.recorded.iter().map(move |action| action[j]).filter(|x| usable(*x));
    let ends: Vec<Option<[f64; 2]>> =
        (0..joints).map(|j| Some([recorded(j).reduce(f64::min)?, recorded(j).reduce(f64::max)?])).collect();
    let range = |j: usize| ends[j].map_or(0.0, |[low, high]| high - low);
    let mut all = Sums::default();
    let mut by_joint = vec![Sums::default(); joints];
    let mut by_step = vec![Sums::default(); horizon];
    let (mut steps, mut not_finite) = (0, 0);
    for chunk in &compared.chunks {
        let (start, overlap) = compared.overlap(chunk);
        let held = &compared.recorded[start.saturating_sub(1)];
        steps += overlap;
        for (h, (predicted, recorded)) in chunk.actions.iter().zip(&compared.recorded[start..]).enumerate() {
            for j in 0..joints {
                if ![predicted[j], recorded[j], held[j]].into_iter().all(usable) {
                    not_finite += 1;
                    continue;
                }
                let errors = [predicted[j] - recorded[j], held[j] - recorded[j]];
                all.add(errors, range(j));
                by_joint[j].add(errors, range(j));
                by_step[h].add(errors, range(j));
            }
        }
    }
    let mut times: Vec<f64> = compared.chunks.iter().map(|chunk| chunk.infer_ms).collect();
    times.sort_by(f64::total_cmp);
    Ok(Metrics {
        frames: compared.recorded.len(),
        chunks: compared.chunks.len(),
        horizon,
        compared: steps,
        padded: compared.chunks.len() * horizon - steps,
        not_finite,
        infer_ms_p50: times[(times.len() - 1) / 2],
        all: all.scores(),
        joints: (0..joints)
            .map(|j| Joint { name: compared.joints[j].clone(), recorded: ends[j], scores: by_joint[j].scores() })
            .collect(),
        steps: (0..horizon)
            .map(|step| Step { step, seconds: compared.seconds(step), scores: by_step[step].scores() })
            .collect(),
    })
}

/// The heads of [`cells`].
pub(super) const HEADS: [&str; 8] = ["", "mae", "rmse", "max", "mae/range", "rmse/range", "holding", "vs holding"];

/// A row of the table: errors, their shares of the range, that of standing still, and the policy's part of it.
pub(super) fn cells(name: &str, scores: &Scores) -> [String; 8] {
    let of = |f: fn(&Score) -> f64| scores.policy.map_or_else(|| "–".to_owned(), |score| number(f(&score)));
    [
        name.to_owned(),
        of(|s| s.mae),
        of(|s| s.rmse),
        of(|s| s.max),
        percent(scores.policy.and_then(|s| s.mae_of_range)),
        percent(scores.policy.and_then(|s| s.rmse_of_range)),
        percent(scores.hold.and_then(|s| s.mae_of_range)),
        scores.against_holding().map_or_else(|| "–".to_owned(), |part| format!("×{part:.2}")),
    ]
}

impl Metrics {
    /// Joints by their share of error, the largest first; those that never move last.
    pub fn worst_first(&self) -> Vec<&Joint> {
        let mut joints: Vec<&Joint> = self.joints.iter().collect();
        let share = |joint: &Joint| joint.scores.policy.and_then(|score| score.mae_of_range).unwrap_or(-1.0);
        joints.sort_by(|a, b| share(b).total_cmp(&share(a)));
        joints
    }

    /// Is it better than standing still? In a sentence.
    pub fn verdict(&self) -> String {
        let share = |score: Option<Score>| percent(score.and_then(|score| score.mae_of_range));
        let (policy, hold) = (share(self.all.policy), share(self.all.hold));
        let Some(part) = self.all.against_holding() else {
            return "no joint moved while it was compared: nothing can be told about the policy".to_owned();
        };
        let word = match part {
            part if part < 0.95 => "better than",
            part if part <= 1.05 => "no better than",
            _ => "worse than",
        };
        format!(
            "mean error {policy} of a joint's range; standing still has {hold}: {word} standing still, ×{part:.2} its error"
        )
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut rows = vec![HEADS.map(str::to_owned)];
        rows.extend(self.joints.iter().map(|joint| cells(&joint.name, &joint.scores)));
        rows.push(cells("all", &self.all));
        let last = self.horizon - 1;
        let mut shown = vec![0, last / 4, last / 2, last * 3 / 4, last];
        shown.dedup();
        let steps = shown.iter().filter_map(|step| self.steps.get(*step));
        rows.extend(steps.map(|step| cells(&format!("step {} ({:.2} s)", step.step, step.seconds), &step.scores)));
        let wide = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 8] = std::array::from_fn(wide);
        let mut t = String::new();
        for (i, row) in rows.iter().enumerate() {
            // Between the heads, the joints, all of them, and the steps.
            if i == 1 || i == rows.len() - shown.len() || i == rows.len() - shown.len() - 1 {
                t.push_str(&"─".repeat(widths.iter().sum::<usize>() + 2 * 7));
                t.push('\n');
            }
            let _ = write!(t, "{:<1$}", row[0], widths[0]);
            for (cell, width) in row.iter().zip(widths).skip(1) {
                let _ = write!(t, "  {cell:>width$}");
            }
            t.truncate(t.trim_end().len());
            t.push('\n');
        }
        let Metrics { chunks, frames, compared, padded, not_finite, .. } = self;
        let _ =
            writeln!(t, "\n{chunks} chunks over {frames} frames: {compared} steps compared, {padded} beyond the end");
        if *not_finite > 0 {
            let _ = writeln!(t, "{not_finite} values are not finite and were left out");
        }
        let _ = writeln!(t, "{}", self.verdict());
        t
    }
}
