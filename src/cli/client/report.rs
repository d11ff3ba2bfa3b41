//! What is said: how many requests, what failed, and the table of times.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Serialize, Serializer};

use super::load::Outcome;
use super::scene::Scene;
use super::timing::Statistics;
use crate::serve::client::Address;
use crate::serve::tree::Tree;

/// Items of a list that are shown of metadata.
const SHOWN: usize = 64;

/// What became of the requests.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    server: String,
    metadata: serde_json::Value,
    observation: String,
    clients: u16,
    requests: usize,
    /// Requests without actions, those of the warm-up among them.
    pub(super) failed: u64,
    failures: BTreeMap<String, u64>,
    seconds: f64,
    requests_per_second: f64,
    actions: Option<String>,
    #[serde(serialize_with = "in_order")]
    timings: Vec<(&'static str, Statistics)>,
}

fn in_order<S: Serializer>(timings: &[(&'static str, Statistics)], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(timings.iter().map(|(name, statistics)| (name, statistics)))
}

impl Report {
    pub(super) fn of(address: &Address, metadata: &Tree, scene: &Scene, clients: u16, outcome: &Outcome) -> Self {
        let requests = outcome.timings.len();
        Report {
            server: address.to_string(),
            metadata: json(metadata),
            observation: scene.told(),
            clients,
            requests,
            failed: outcome.failures.count,
            failures: outcome.failures.words.clone(),
            seconds: outcome.seconds,
            requests_per_second: if outcome.seconds > 0.0 { requests as f64 / outcome.seconds } else { 0.0 },
            actions: outcome.actions.clone(),
            timings: outcome.timings.statistics(),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut t = String::new();
        let _ = writeln!(t, "server       {}", self.server);
        if self.metadata.as_object().is_none_or(|members| !members.is_empty()) {
            let _ = writeln!(t, "metadata     {}", self.metadata);
        }
        let _ = writeln!(t, "observation  {}", self.observation);
        if let Some(actions) = &self.actions {
            let _ = writeln!(t, "actions      {actions}");
        }
        let connections = if self.clients == 1 { String::new() } else { format!(" by {} clients", self.clients) };
        let _ = writeln!(
            t,
            "requests     {}{connections} in {:.1} s, {:.1} per second; {} failed",
            self.requests, self.seconds, self.requests_per_second, self.failed
        );
        for (words, times) in &self.failures {
            let _ = writeln!(t, "  {times} x {words}");
        }
        if self.timings.is_empty() {
            return t;
        }
        let _ = write!(t, "\n{:<22}", "");
        for name in ["mean", "std", "p25", "p50", "p75", "p90", "p95", "p99"] {
            let _ = write!(t, "{name:>9}");
        }
        for (name, s) in &self.timings {
            let _ = write!(t, "\n{name:<22}");
            for value in [s.mean, s.std, s.p25, s.p50, s.p75, s.p90, s.p95, s.p99] {
                let _ = write!(t, "{value:>9.2}");
            }
        }
        t.push('\n');
        t
    }
}

/// Metadata as JSON; arrays by their kind.
fn json(tree: &Tree) -> serde_json::Value {
    match tree {
        Tree::Nil => serde_json::Value::Null,
        Tree::Bool(value) => (*value).into(),
        Tree::Int(value) => (*value).into(),
        Tree::Float(value) => (*value).into(),
        Tree::Text(text) => text.as_str().into(),
        Tree::List(items) if items.len() <= SHOWN => items.iter().map(json).collect(),
        Tree::Map(members) => members.iter().map(|(key, value)| (key.clone(), json(value))).collect(),
        other => other.kind().into(),
    }
}
