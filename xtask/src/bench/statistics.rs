//! `cargo xtask bench norm-stats`: statistics of made-up datasets, in frames a second, beside plain reads of their files.
//!
//! Each dataset is made once and read once before: tables and floor come from the page cache. The floor reads the bytes of
//! the same files, one after the other, and does nothing with them: no format, no statistics, one thread.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::process::{self, Usage};
use super::{SCRATCH, build_folder, mib, read_once, release, remove};
use crate::dataset::{self, Layout};

/// The preset whose robot has the keys and the width of the datasets that are made up.
const PRESET: &str = "pi0_aloha_pen_uncap";
/// As in ALOHA's.
const FPS: usize = 50;
const PER_EPISODE: usize = 500;
const METHODS: [&str; 2] = ["exact", "openpi"];
const LAYOUTS: [(&str, Layout); 2] = [("v2.1", Layout::V21), ("v3.0", Layout::V30)];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Frames of each dataset
    #[arg(long, default_value_t = 1_000_000, value_parser = frames)]
    frames: usize,
    /// Runs of each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Folder for datasets and outputs [default: in the build folder]
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Program to measure in place of the released `pi0`
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

/// openpi's method leaves out what does not fill a batch.
fn frames(text: &str) -> Result<usize> {
    let frames: usize = text.parse()?;
    ensure!(frames >= 64, "two of openpi's batches are the least, 64 frames");
    Ok(frames)
}

/// One line of the table: medians.
#[derive(Debug, Serialize)]
struct Line {
    layout: &'static str,
    what: &'static str,
    /// None where nothing but the clock is read.
    usage: Option<Usage>,
    wall_s: f64,
    frames_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    frames: usize,
    runs: u32,
    /// Of each dataset.
    bytes: Vec<u64>,
    lines: Vec<Line>,
}

/// Measures; there is no bar to miss.
pub(super) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    let build = build_folder()?;
    let scratch = arguments.scratch.clone().unwrap_or_else(|| build.join(SCRATCH));
    std::fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => release(root, &build)?,
    };
    let frames = arguments.frames;
    let (mut bytes, mut lines) = (vec![], vec![]);
    for (layout, kind) in LAYOUTS {
        let dataset = made(&scratch, layout, kind, frames)?;
        bytes.push(read_once(&dataset)?);
        let line =
            |what, wall_s: f64, usage| Line { layout, what, usage, wall_s, frames_per_s: frames as f64 / wall_s };
        let mut walls = vec![];
        for _ in 0..arguments.runs {
            let begin = Instant::now();
            read_once(&dataset)?;
            walls.push(Usage { wall_s: begin.elapsed().as_secs_f64(), cpu_s: 0.0, peak_bytes: 0 });
        }
        lines.push(line("plain reads", Usage::median(&walls).wall_s, None));
        for method in METHODS {
            let usage = statistics(&program, &dataset, method, &scratch, arguments.runs)?;
            eprintln!("{layout} {method}: {usage}");
            lines.push(line(method, usage.wall_s, Some(usage)));
        }
    }
    let report = Report { frames, runs: arguments.runs, bytes, lines };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table(&report));
    }
    Ok(true)
}

/// The dataset, made on first use. Half of one bears another name.
fn made(scratch: &Path, layout: &str, kind: Layout, frames: usize) -> Result<PathBuf> {
    let folder = scratch.join(format!("lerobot-{layout}-{frames}"));
    if !folder.exists() {
        eprintln!("making {}", folder.display());
        let partial = scratch.join(format!("lerobot-partial-{}", std::process::id()));
        remove(&partial)?;
        dataset::make(&partial, kind, frames, PER_EPISODE, FPS)?;
        std::fs::rename(&partial, &folder).with_context(|| folder.display().to_string())?;
    }
    Ok(folder)
}

/// Runs the verb; the median.
fn statistics(program: &Path, dataset: &Path, method: &str, scratch: &Path, runs: u32) -> Result<Usage> {
    let assets = scratch.join(format!("assets-{}", std::process::id()));
    let measured = (0..runs).map(|_| {
        let mut command = Command::new(program);
        command.args(["norm-stats", "--config", PRESET, "--method", method, "--overwrite", "--dataset"]).arg(dataset);
        command.arg("--assets-dir").arg(&assets).stdout(Stdio::null());
        process::measure(&mut command)
    });
    let measured: Result<Vec<Usage>> = measured.collect();
    remove(&assets)?;
    Ok(Usage::median(&measured?))
}

fn table(report: &Report) -> String {
    let bytes: Vec<String> = report.bytes.iter().map(|bytes| format!("{:.0}", mib(*bytes))).collect();
    let mut text = format!(
        "{} frames of {} values, {} MiB as v2.1 and v3.0; medians of {}, warm\n\n{:<7}{:<13}{:>9}{:>9}{:>11}{:>15}\n",
        report.frames,
        2 * dataset::WIDTH,
        bytes.join(" and "),
        report.runs,
        "",
        "",
        "wall s",
        "CPU s",
        "peak MiB",
        "frames/s"
    );
    for Line { layout, what, usage, wall_s, frames_per_s } in &report.lines {
        let [cpu, peak] = match usage {
            Some(usage) => [format!("{:.2}", usage.cpu_s), format!("{:.0}", mib(usage.peak_bytes))],
            None => ["-".to_owned(), "-".to_owned()],
        };
        text += &format!("{layout:<7}{what:<13}{wall_s:>9.3}{cpu:>9}{peak:>11}{frames_per_s:>15.0}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_has_no_figures_but_the_clocks_and_a_dataset_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let first = made(folder.path(), "v2.1", Layout::V21, 64).unwrap();
        let written = std::fs::metadata(first.join("meta/info.json")).unwrap().modified().unwrap();
        assert_eq!(made(folder.path(), "v2.1", Layout::V21, 64).unwrap(), first);
        assert_eq!(std::fs::metadata(first.join("meta/info.json")).unwrap().modified().unwrap(), written);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-made is left");
        let usage = Usage { wall_s: 0.5, cpu_s: 0.75, peak_bytes: 3 << 20 };
        let line = |what, usage| Line { layout: "v2.1", what, usage, wall_s: 0.5, frames_per_s: 128.0 };
        let lines = vec![line("plain reads", None), line("exact", Some(usage))];
        let text = table(&Report { frames: 64, runs: 1, bytes: vec![1 << 20, 2 << 20], lines });
        assert!(text.contains("64 frames of 28 values, 1 and 2 MiB"), "{text}");
        assert!(text.contains("v2.1   plain reads      0.500        -          -            128\n"), "{text}");
        assert!(text.contains("v2.1   exact            0.500     0.75          3            128\n"), "{text}");
        assert!(frames("63").is_err());
    }
}
