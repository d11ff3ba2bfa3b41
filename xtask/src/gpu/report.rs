//! What a run found, as JSON for machines and Markdown for people.
//!
//! Invariant: the report is whole after every stage, so that a run which is cut off leaves what it had found.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::machine::Machine;
use super::toolkit::Toolkit;

/// What became of a stage, or of one thing in it.
#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Nothing to do, or something before it failed: `says` has the reason.
    Skipped,
    Passed,
    Failed,
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Passed => "passed",
            Self::Failed => "FAILED",
        }
    }
}

/// One thing that a stage looked at: a golden set, a checkpoint, a library.
#[derive(Debug, Serialize)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) verdict: Verdict,
    /// One sentence.
    pub(super) says: String,
    /// What the program printed as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<Value>,
    /// Times of chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chunks: Option<Chunks>,
}

impl Item {
    pub(super) fn new(name: impl Into<String>, verdict: Verdict, says: impl Into<String>) -> Self {
        Self { name: name.into(), verdict, says: says.into(), output: None, chunks: None }
    }

    pub(super) fn failed(name: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(name, Verdict::Failed, says)
    }
}

/// How long a chunk of actions took, device-synchronised and warm, in milliseconds.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct Chunks {
    pub(super) count: usize,
    pub(super) min_ms: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Chunks {
    /// Of single times; `None` of none. A percentile is a time that was measured: the smallest that is not below that
    /// share of all times.
    pub(super) fn of(times_ms: &[f64]) -> Option<Self> {
        let mut sorted = times_ms.to_vec();
        sorted.sort_by(f64::total_cmp);
        let percentile = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self { count: sorted.len(), min_ms: *sorted.first()?, p50_ms: percentile(50)?, p99_ms: percentile(99)? })
    }
}

/// What became of a stage.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) stage: &'static str,
    pub(super) verdict: Verdict,
    pub(super) wall_s: f64,
    pub(super) items: Vec<Item>,
}

impl Outcome {
    /// Failed if one item failed, else passed if one passed.
    pub(super) fn new(stage: &'static str, wall_s: f64, items: Vec<Item>) -> Self {
        let verdict = items.iter().map(|item| item.verdict).max().unwrap_or(Verdict::Skipped);
        Self { stage, verdict, wall_s, items }
    }
}

/// All that a run found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) device: String,
    pub(super) machine: Machine,
    pub(super) toolkit: Option<Toolkit>,
    pub(super) stages: Vec<Outcome>,
}

impl Report {
    /// Whether no stage failed and at least one passed.
    pub(super) fn passed(&self) -> bool {
        self.stages.iter().map(|outcome| outcome.verdict).max() == Some(Verdict::Passed)
    }

    /// Writes `report.json` and `report.md`.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("the report is no JSON")? + "\n";
        for (name, text) in [("report.json", &json), ("report.md", &self.markdown())] {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!("# pi0-burn on {}\n\n| | |\n| --- | --- |\n", self.device);
        for (name, value) in self.facts() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {name} | {} |", cell(&value));
        }
        text += "\n| stage | verdict | s | what | |\n| --- | --- | ---: | --- | --- |\n";
        for outcome in &self.stages {
            let (name, word, wall) = (outcome.stage, outcome.verdict.word(), outcome.wall_s);
            let _ = writeln!(text, "| **{name}** | **{word}** | {wall:.1} | | |");
            for item in &outcome.items {
                let (name, word, says) = (cell(&item.name), item.verdict.word(), cell(&item.says));
                let _ = writeln!(text, "| | {word} | | {name} | {says} |");
            }
        }
        let timed = || self.stages.iter().flat_map(|outcome| &outcome.items);
        let timed = || timed().filter_map(|item| Some((&item.name, item.chunks.as_ref()?)));
        if timed().next().is_some() {
            text += "\n| chunk of | p50 ms | p99 ms | least ms | chunks |\n| --- | ---: | ---: | ---: | ---: |\n";
        }
        for (name, Chunks { count, min_ms, p50_ms, p99_ms }) in timed() {
            let _ = writeln!(text, "| {} | {p50_ms:.2} | {p99_ms:.2} | {min_ms:.2} | {count} |", cell(name));
        }
        text
    }

    /// The machine, a fact a line; absent facts are left out.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let machine = &self.machine;
        let gpus = machine.gpus.iter().map(|gpu| {
            let memory = gpu.memory_mib.map_or(String::new(), |mib| format!(", {mib} MiB"));
            let capability = gpu.compute_capability.as_ref().map_or(String::new(), |at| format!(", sm {at}"));
            ("GPU", format!("{}{memory}{capability}, driver {}", gpu.name, gpu.driver))
        });
        let others = [
            ("CUDA of the driver", machine.driver_cuda.clone()),
            ("NVRTC", self.toolkit.as_ref().and_then(|toolkit| toolkit.nvrtc.clone())),
            ("processor", machine.processor.as_ref().map(|name| format!("{name}, {} cores", machine.cores))),
            ("memory", machine.memory_bytes.map(|bytes| format!("{} GiB", bytes >> 30))),
            ("system", machine.system.clone()),
            ("kernel", machine.kernel.clone()),
            ("compiler", machine.rustc.clone()),
            ("commit", machine.commit.clone()),
        ];
        gpus.chain(others.into_iter().filter_map(|(name, value)| Some((name, value?)))).collect()
    }
}

/// Text that stays in its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::machine::Gpu;
    use super::*;

    fn report() -> Report {
        let gpu = Gpu { name: "GPU".into(), driver: "580".into(), memory_mib: Some(9), compute_capability: None };
        let machine = Machine {
            processor: None,
            cores: 2,
            memory_bytes: Some(3 << 30),
            system: None,
            kernel: None,
            rustc: None,
            commit: Some("abc+".into()),
            gpus: vec![gpu],
            driver_cuda: Some("13.0".into()),
        };
        let mut sampled = Item::new("pi0", Verdict::Passed, "3 chunks");
        sampled.chunks = Chunks::of(&[3.0, 1.0, 2.0]);
        let refused = Item::failed("pi05", "exit 2:\n a | b");
        let stages = vec![Outcome::new("sample", 1.25, vec![sampled, refused]), Outcome::new("verify", 0.0, vec![])];
        Report { device: "cuda:0".into(), machine, toolkit: None, stages }
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let chunks = Chunks::of(&times).unwrap();
        assert_eq!(chunks, Chunks { count: 200, min_ms: 1.0, p50_ms: 100.0, p99_ms: 198.0 });
        let one = Chunks::of(&[7.0]).unwrap();
        assert_eq!((one.p50_ms, one.p99_ms), (7.0, 7.0));
        assert_eq!(Chunks::of(&[]), None);
    }

    #[test]
    fn one_failure_fails_its_stage_and_the_run() {
        let report = report();
        assert_eq!(report.stages[0].verdict, Verdict::Failed);
        assert!(!report.passed());
        let skipped = Outcome::new("parity", 0.0, vec![Item::new("a", Verdict::Skipped, "no GPU")]);
        assert_eq!(skipped.verdict, Verdict::Skipped);
        // A run in which nothing was tried has not passed.
        assert!(!Report { stages: vec![skipped], ..report }.passed());
    }

    #[test]
    fn the_page_names_machine_verdicts_and_times_and_keeps_its_tables_whole() {
        let folder = tempfile::tempdir().unwrap();
        report().write(folder.path()).unwrap();
        let page = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
        for line in [
            "| GPU | GPU, 9 MiB, driver 580 |",
            "| memory | 3 GiB |",
            "| **sample** | **FAILED** | 1.2 | | |",
            "| | FAILED | | pi05 | exit 2: a \\| b |",
            "| pi0 | 2.00 | 3.00 | 1.00 | 3 |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
        assert!(!page.contains("processor"), "{page}");
        let json: Value = serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
        assert_eq!(json["stages"][0]["items"][0]["chunks"]["p99_ms"], 3.0);
        assert_eq!(json["stages"][0]["verdict"], "failed");
    }
}
