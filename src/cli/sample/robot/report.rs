//! What `pi0 sample --config` tells, as text and as JSON.

use std::fmt;

use serde::Serialize;

use super::super::Args;
use super::super::chunk::RobotActions;
use super::super::report::Source;
use super::super::runs::Run;
use super::super::scenes::Scenes;
use super::Network;
use crate::cli::episode::metrics::Metrics;
use crate::cli::episode::number;
use crate::cli::policy::{Policy, Told};

/// The whole account.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) source: Source,
    model: &'static str,
    /// `f32`, `train-bf16` or `serve-bf16`.
    precision: &'static str,
    device: String,
    policy: Told,
    observations: usize,
    load_ms: f64,
    /// One after another.
    pub(super) inferred: Vec<Inferred>,
    /// Predicted against recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metrics: Option<Metrics>,
    /// Files that were written.
    pub(super) written: Vec<String>,
}

/// One observation's actions.
#[derive(Debug, Serialize)]
pub(super) struct Inferred {
    pub(super) name: String,
    /// Counted from the episode's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) frame: Option<usize>,
    /// What the robot was told.
    pub(super) prompt: String,
    pub(super) prompt_tokens: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notices: Vec<String>,
    /// The policy's steps, there and back.
    pub(super) transforms_ms: f64,
    pub(super) runs: Vec<Run>,
    /// pi0-FAST's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tokens: Option<Vec<i32>>,
    /// `[H][D]`, in the robot's units.
    pub(super) actions: Vec<Vec<f64>>,
    #[serde(skip)]
    pub(super) images: Vec<(String, [usize; 2], Vec<u8>)>,
}

impl Inferred {
    /// The model's time: the last run, which is warm where there were several.
    pub(super) fn infer_ms(&self) -> f64 {
        self.runs.last().map_or(0.0, |run| run.total_ms)
    }
}

impl Report {
    pub(super) fn new(args: &Args, network: &Network, policy: &Policy, scenes: &Scenes, load_ms: f64) -> Self {
        Report {
            source: Source::default(),
            model: network.settings.family(),
            precision: args.dtype.name(),
            device: args.device.clone(),
            policy: policy.told.clone(),
            observations: scenes.len(),
            load_ms,
            inferred: vec![],
            metrics: None,
            written: vec![],
        }
    }

    pub(super) fn notices(&mut self, more: &[String]) {
        self.policy.notices.extend_from_slice(more);
    }

    /// Is every action a number?
    pub(super) fn finite(&self) -> bool {
        self.inferred.iter().flat_map(|i| i.actions.iter().flatten()).all(|x| x.is_finite())
    }

    /// All actions as one array.
    pub(super) fn actions(&self) -> RobotActions {
        let horizon = self.inferred.first().map_or(0, |i| i.actions.len());
        let dim = self.inferred.first().and_then(|i| i.actions.first()).map_or(0, Vec::len);
        let values = self.inferred.iter().flat_map(|i| i.actions.iter().flatten().copied()).collect();
        RobotActions { shape: [self.inferred.len(), horizon, dim], values }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = &self.policy;
        writeln!(f, "read     {}", self.source)?;
        writeln!(f, "model    {} · precision {} · {}", self.model, self.precision, self.device)?;
        writeln!(f, "policy   {} · {} from {}", told.config, told.normalized_by, told.norm_stats)?;
        writeln!(f, "         tokenizer {}", told.tokenizer)?;
        if let Some(folder) = &told.fast_tokenizer {
            writeln!(f, "         FAST codec {folder}")?;
        }
        if let Some(first) = self.inferred.first() {
            let more =
                if self.inferred.len() > 1 { format!(" and {} more", self.inferred.len() - 1) } else { String::new() };
            writeln!(f, "sees     {}{more}", first.name)?;
            writeln!(f, "told     {:?} · {} tokens", first.prompt, first.prompt_tokens)?;
            let (h, d) = (first.actions.len(), first.actions.first().map_or(0, Vec::len));
            writeln!(f, "actions  {h} steps of {d} values, in the robot's units")?;
            if self.metrics.is_none() {
                for (step, action) in first.actions.iter().enumerate().take(3) {
                    let row: Vec<String> = action.iter().map(|x| format!("{x:+.3}")).collect();
                    writeln!(f, "    {step:>4} {}", row.join(" "))?;
                }
            }
            let times: Vec<f64> = self.inferred.iter().map(Inferred::infer_ms).collect();
            let (low, high) = (times.iter().copied().reduce(f64::min), times.iter().copied().reduce(f64::max));
            writeln!(
                f,
                "time     ms, device-synchronised · load {:.0} · steps {:.1} · model {} to {}",
                self.load_ms,
                first.transforms_ms,
                number(low.unwrap_or(0.0)),
                number(high.unwrap_or(0.0))
            )?;
        }
        if let Some(metrics) = &self.metrics {
            writeln!(f, "\n{}", metrics.table().trim_end())?;
        }
        let own = self.inferred.iter().flat_map(|i| i.notices.iter().map(move |n| format!("{}: {n}", i.name)));
        for notice in told.notices.iter().cloned().chain(own) {
            writeln!(f, "note: {notice}")?;
        }
        for path in &self.written {
            writeln!(f, "written  {path}")?;
        }
        if !self.finite() {
            writeln!(f, "NOT FINITE: some actions are no numbers")?;
        }
        Ok(())
    }
}
