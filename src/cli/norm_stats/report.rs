//! What `pi0 norm-stats` says.

use std::fmt;

use serde::Serialize;

use super::{Args, Method};
use crate::cli::output::grouped;
use crate::config::train::Train;
use crate::policy::norm_stats::NormStats;
use crate::policy::statistics::check::{Checked, nearly_constant};
use crate::policy::statistics::{Motion, Summaries, Summary};

/// Statistics that were there, and where.
pub(super) struct Held {
    pub(super) stats: NormStats,
    pub(super) from: String,
}

/// All that is said.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    config: String,
    datasets: Vec<String>,
    asset_id: String,
    method: Option<Method>,
    episodes: usize,
    frames: usize,
    counted_frames: usize,
    action_horizon: usize,
    normalized_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<Vec<Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actions: Option<Vec<Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_against: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Vec<Checked>>,
    warnings: Vec<String>,
    pub(super) written: Option<String>,
    read_s: f64,
    pub(super) seconds: f64,
}

/// One element's figures.
#[derive(Debug, Serialize)]
struct Row {
    mean: f64,
    std: f64,
    q01: f64,
    q99: f64,
    min: f64,
    max: f64,
}

impl Row {
    fn of(s: &Summary) -> Self {
        Row { mean: s.mean, std: s.std, q01: s.q01, q99: s.q99, min: s.min, max: s.max }
    }
}

impl Report {
    pub(super) fn new(args: &Args, preset: &Train, asset_id: &str, motion: &Motion, read_s: f64) -> Self {
        Report {
            config: preset.name.clone(),
            datasets: args.dataset.iter().map(|path| path.display().to_string()).collect(),
            asset_id: asset_id.to_owned(),
            method: (!args.check).then_some(args.method),
            episodes: motion.episodes.len(),
            frames: motion.frames(),
            counted_frames: motion.counted(),
            action_horizon: motion.horizon,
            normalized_by: if preset.model.model.quantiles() { "q01 and q99" } else { "mean and std" },
            state: None,
            actions: None,
            held_against: None,
            check: None,
            warnings: vec![],
            written: None,
            read_s,
            seconds: 0.0,
        }
    }

    pub(super) fn computed(&mut self, summaries: &Summaries, quantiles: bool) {
        for (key, all) in [("state", &summaries.state), ("actions", &summaries.actions)] {
            let constant = |(i, s)| Some(format!("{key}[{i}]: {}", nearly_constant(s, quantiles)?));
            self.warnings.extend(all.iter().enumerate().filter_map(constant));
        }
        self.state = Some(summaries.state.iter().map(Row::of).collect());
        self.actions = Some(summaries.actions.iter().map(Row::of).collect());
    }

    pub(super) fn checked(&mut self, from: String, checked: Vec<Checked>) {
        self.held_against = Some(from);
        self.check = Some(checked);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} for {}", self.config, self.datasets.join(", "))?;
        let of = match self.counted_frames == self.frames {
            true => String::new(),
            false => format!(" of {}", grouped(self.frames as u64)),
        };
        writeln!(
            out,
            "  {} frames{of} in {} episodes, chunks of {} actions; normalised by {}",
            grouped(self.counted_frames as u64),
            grouped(self.episodes as u64),
            self.action_horizon,
            self.normalized_by
        )?;
        for (key, rows) in [("state", &self.state), ("actions", &self.actions)] {
            let Some(rows) = rows else { continue };
            writeln!(out, "\n{key:<8}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}", "mean", "std", "q01", "q99", "min", "max")?;
            for (i, r) in rows.iter().enumerate() {
                write!(out, "{i:>6}  ")?;
                for value in [r.mean, r.std, r.q01, r.q99, r.min, r.max] {
                    write!(out, "{value:>11.4}")?;
                }
                writeln!(out)?;
            }
        }
        if let Some(from) = &self.held_against {
            writeln!(out, "\nheld against {from}")?;
        }
        for checked in self.check.iter().flatten() {
            write!(out, "\n{:<8}{:>22}{:>22}{:>9}{:>9}", checked.key, "data", "normalised", "shift", "stretch")?;
            writeln!(out, "{:>9}{:>9}", "< q01", "> q99")?;
            for e in &checked.elements {
                let span = |[a, b]: [f64; 2]| format!("{a:.3} .. {b:.3}");
                let share = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{:.1} %", x * 100.0));
                write!(out, "{:>6}  {:>22}{:>22}", e.element, span(e.range), span(e.normalized))?;
                write!(out, "{:>9.2}{:>9.2}", e.shift, e.stretch)?;
                writeln!(out, "{:>9}{:>9}", share(e.below_q01), share(e.above_q99))?;
            }
            for finding in &checked.findings {
                writeln!(out, "  {}: {finding}", checked.key)?;
            }
            for e in &checked.elements {
                for finding in &e.findings {
                    writeln!(out, "  {}[{}]: {finding}", checked.key, e.element)?;
                }
            }
        }
        if let Some(all) = &self.check {
            let fine = all.iter().all(Checked::fine);
            writeln!(out, "\n{}", if fine { "they fit: nothing was found" } else { "they do NOT fit: see above" })?;
        }
        for warning in &self.warnings {
            writeln!(out, "\nwarning: {warning}")?;
        }
        if let Some(path) = &self.written {
            writeln!(out, "\nwritten: {path}")?;
        }
        let rate = self.counted_frames as f64 / self.seconds.max(1e-9);
        writeln!(out, "{:.2} s, of which reading {:.2} s; {} frames/s", self.seconds, self.read_s, grouped(rate as u64))
    }
}
