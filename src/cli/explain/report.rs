//! What `explain` says: the preset, where its statistics are, and each step with what it changed.

use std::fmt;

use serde::Serialize;

use super::super::statistics::Found;
use super::{Frame, Tokens};
use crate::config::train::Train;
use crate::policy::chain::Statistics;
use crate::policy::record::{Record, Value};
use crate::policy::step::Step;

/// A preset in a line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preset {
    /// openpi's name, or the file's.
    pub name: String,
    /// `pi0`, `pi05` or `pi0_fast`.
    pub model: &'static str,
    /// The robot; none where data are made up.
    pub robot: Option<String>,
    /// Which of its layouts.
    pub layout: Option<String>,
    /// Width of state and action vectors.
    pub action_dim: u64,
    /// Steps of a chunk.
    pub action_horizon: u64,
    /// Tokens of a prompt.
    pub max_token_len: u64,
}

impl Preset {
    pub(super) fn of(train: &Train) -> Self {
        Preset {
            name: train.name.clone(),
            model: train.model.model.name(),
            robot: train.data.as_ref().map(|data| data.robot.name.clone()),
            layout: train.data.as_ref().map(|data| data.layout.clone()),
            action_dim: train.model.action_dim,
            action_horizon: train.model.action_horizon,
            max_token_len: train.model.max_token_len,
        }
    }
}

/// Where the statistics are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Whose.
    pub asset_id: Option<String>,
    /// The file.
    pub from: Option<String>,
    /// Where there were none.
    pub looked_in: Vec<String>,
    /// Left out on request.
    pub skipped: bool,
}

impl Stats {
    pub(super) fn of(found: &Found, skipped: bool) -> Self {
        let (asset_id, looked_in) = match &found.statistics {
            Statistics::Given(stats) => (Some(stats.asset_id.clone()), vec![]),
            Statistics::Missing { asset_id, looked } => (Some(asset_id.clone()), looked.clone()),
            Statistics::Skipped => (None, vec![]),
        };
        let from = found.from.as_ref().map(|path| path.display().to_string());
        Stats { asset_id: asset_id.filter(|id| !id.is_empty()), from, looked_in, skipped }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asset_id = self.asset_id.as_deref().unwrap_or("none");
        match (&self.from, self.skipped) {
            (_, true) => write!(out, "norm stats: {asset_id}, skipped as asked"),
            (Some(from), false) => write!(out, "norm stats: {asset_id}, from {from}"),
            (None, false) if self.looked_in.is_empty() => write!(out, "norm stats: {asset_id}"),
            (None, false) => write!(
                out,
                "norm stats: {asset_id}, not found in {}; the normalize step is left out",
                self.looked_in.join(", ")
            ),
        }
    }
}

/// What stands under a key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// numpy's dtype, or `str`.
    pub dtype: &'static str,
    /// Of an array.
    pub shape: Vec<usize>,
    /// The smallest number.
    pub min: Option<f64>,
    /// The largest number.
    pub max: Option<f64>,
    /// Numbers that are none, or not finite.
    #[serde(skip_serializing_if = "is_zero")]
    pub not_finite: usize,
    /// Of a text.
    pub text: Option<String>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Entry {
    fn of(key: &str, value: &Value) -> Self {
        let key = key.to_owned();
        match value {
            Value::Text(text) => {
                let text = Some(text.clone());
                Entry { key, dtype: "str", shape: vec![], min: None, max: None, not_finite: 0, text }
            }
            Value::Array(array) => {
                let values = array.values.to_f64();
                let finite = || values.iter().copied().filter(|x| x.is_finite());
                Entry {
                    key,
                    dtype: array.values.dtype(),
                    shape: array.shape.clone(),
                    min: finite().reduce(f64::min),
                    max: finite().reduce(f64::max),
                    not_finite: values.len() - finite().count(),
                    text: None,
                }
            }
        }
    }

    /// All of a record.
    pub(super) fn all(record: &Record) -> Vec<Self> {
        record.values.iter().map(|(key, value)| Entry::of(key, value)).collect()
    }

    fn line(&self, width: usize) -> String {
        let key = &self.key;
        if let Some(text) = &self.text {
            return format!("      {key:width$}  {text:?}\n");
        }
        let axes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let kind = format!("{}[{}]", self.dtype, axes.join(", "));
        let range = match (self.min, self.max) {
            (Some(min), Some(max)) if self.dtype == "bool" && min == max => format!("{}", min == 1.0),
            (Some(min), Some(max)) if min == max => number(min),
            (Some(min), Some(max)) => format!("{} … {}", number(min), number(max)),
            _ => "no finite number".to_owned(),
        };
        let odd = if self.not_finite > 0 { format!(", {} not finite", self.not_finite) } else { String::new() };
        format!("      {key:width$}  {kind:22}  {range}{odd}\n")
    }
}

/// Four digits are enough to see a range.
fn number(x: f64) -> String {
    if x == x.trunc() && x.abs() < 1e6 {
        format!("{x}")
    } else if x.abs() >= 1e-3 && x.abs() < 1e6 {
        format!("{x:.4}")
    } else {
        format!("{x:.3e}")
    }
}

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// Which, from 1.
    pub number: usize,
    /// Its name.
    pub name: &'static str,
    /// What it does, with its parameters.
    pub what: String,
    /// Keys that it looks at.
    pub reads: Vec<String>,
    /// Keys that it puts there.
    pub writes: Vec<String>,
    /// What is new or other after it; none where nothing was run.
    pub changed: Option<Vec<Entry>>,
    /// What is gone after it.
    pub removed: Vec<String>,
    /// What words became, where it is this step that makes tokens of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
}

impl Stage {
    pub(super) fn of(number: usize, step: &dyn Step) -> Self {
        Stage {
            number,
            name: step.name(),
            what: step.describe(),
            reads: step.reads(),
            writes: step.writes(),
            changed: None,
            removed: vec![],
            tokens: None,
        }
    }

    pub(super) fn saw(&mut self, before: &Record, after: &Record) {
        let other = after.values.iter().filter(|(key, value)| before.get(key) != Some(value));
        self.changed = Some(other.map(|(key, value)| Entry::of(key, value)).collect());
        self.removed = before.values.keys().filter(|key| !after.has(key)).cloned().collect();
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The preset.
    pub preset: Preset,
    /// Its statistics.
    pub norm_stats: Stats,
    /// Which frame of a dataset came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<Frame>,
    /// What came in.
    pub input: Option<Vec<Entry>>,
    /// First to last.
    pub steps: Vec<Stage>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Preset { name, model, robot, layout, action_dim, action_horizon, max_token_len } = &self.preset;
        let on = match (robot, layout) {
            (Some(robot), Some(layout)) => format!("on {robot}, layout {layout}"),
            _ => "on made-up data: no step".to_owned(),
        };
        writeln!(out, "{name}: {model} {on}")?;
        writeln!(out, "chunks of {action_horizon} x {action_dim}, {max_token_len} tokens")?;
        writeln!(out, "{}", self.norm_stats)?;
        let lines = |entries: &[Entry]| {
            let width = entries.iter().map(|entry| entry.key.len()).max().unwrap_or(0);
            entries.iter().map(|entry| entry.line(width)).collect::<String>()
        };
        if let Some(Frame { dataset, episode, frame, of }) = &self.frame {
            writeln!(out, "frame {frame} of {of} of episode {episode} of {dataset}, as training sees it")?;
        }
        if let Some(input) = &self.input {
            write!(out, "\n   what comes in\n{}", lines(input))?;
        }
        for stage in &self.steps {
            writeln!(out, "\n{:2} {}", stage.number, stage.name)?;
            writeln!(out, "   {}", stage.what)?;
            match &stage.changed {
                None => {
                    let keys = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
                    writeln!(out, "   reads {}; writes {}", keys(&stage.reads), keys(&stage.writes))?;
                }
                Some(changed) if changed.is_empty() && stage.removed.is_empty() => writeln!(out, "      no change")?,
                Some(changed) => {
                    write!(out, "{}", lines(changed))?;
                    if !stage.removed.is_empty() {
                        writeln!(out, "      gone: {}", stage.removed.join(", "))?;
                    }
                }
            }
            if let Some(Tokens { count, of, prompt, actions }) = &stage.tokens {
                let actions = actions.map(|n| format!(", {n} of them of the actions")).unwrap_or_default();
                writeln!(out, "      {count} tokens of {of}{actions}; the prompt is {prompt:?}")?;
            }
        }
        Ok(())
    }
}
