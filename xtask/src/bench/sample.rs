//! `cargo xtask bench sample`: a chunk at the published size, beside openpi's JAX and PyTorch on the same CPU.
//!
//! Each program runs alone, one after the other, with as many threads, on the same kind of input: batch 1, three cameras,
//! 10 Euler steps. Weights are procedural (ours) or random of the same shapes and type (theirs): time does not depend on
//! them. The peers are `xtask/peers/*.py` in a Python that has them; without one only ours is measured, and it says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use orbax::Dtype;
use serde::Serialize;
use serde_json::Value;

use super::process::watch;
use super::{build_folder, mib, release};
use crate::synth;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Model, at its published size
    #[arg(long, default_value = "pi0", value_parser = ["pi0", "pi05", "pi0_fast"])]
    model: String,
    /// f32, or bf16 (openpi's serving)
    #[arg(long, default_value = "bf16", value_parser = ["f32", "bf16"])]
    dtype: String,
    /// Folder with `params` of that model [default: procedural weights, made in the build folder and left there]
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Python with the peers' packages; without it only ours is measured
    #[arg(long)]
    python: Option<PathBuf>,
    /// Peers to run
    #[arg(long, value_delimiter = ',', default_value = "jax,torch")]
    peers: Vec<String>,
    /// Timed runs of each, after one that is not counted
    #[arg(long, default_value_t = 2)]
    runs: u32,
    /// Threads of each
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

/// One program's figures, milliseconds.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    who: String,
    total_ms: f64,
    vision_ms: f64,
    prefix_ms: f64,
    steps_ms: f64,
    peak_bytes: u64,
}

/// Measures; true, because no bar is set: ratios are for people to read.
pub(super) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    let build = build_folder()?;
    let program = release(root, &build)?;
    let checkpoint = match &arguments.checkpoint {
        Some(checkpoint) => checkpoint.clone(),
        None => made(root, arguments, &build)?,
    };
    let mut all = vec![ours(&program, &checkpoint, arguments)?];
    match &arguments.python {
        None => eprintln!("no --python: the peers are not measured (xtask/peers/README.md says what they need)"),
        Some(python) => {
            for peer in &arguments.peers {
                all.push(theirs(root, python, peer, arguments)?);
            }
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print!("{}", table(&all, arguments));
    }
    Ok(true)
}

/// Procedural weights of the model, made once.
fn made(root: &Path, arguments: &Arguments, build: &Path) -> Result<PathBuf> {
    let dtype = if arguments.dtype == "f32" { Dtype::F32 } else { Dtype::Bf16 };
    let folder = build.join(super::SCRATCH).join(format!("{}_{}", arguments.model, arguments.dtype));
    let params = folder.join("params");
    if !params.is_dir() {
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        synth::make(root, &arguments.model, dtype, &folder)?;
    }
    Ok(params)
}

fn ours(program: &Path, checkpoint: &Path, arguments: &Arguments) -> Result<Figures> {
    let mode = if arguments.dtype == "f32" { "f32" } else { "serve-bf16" };
    let answer = tempfile();
    let mut command = Command::new(program);
    command.args(["sample", "--random-observation", "--seed", "0", "--json", "--dtype", mode]);
    command.arg("--checkpoint").arg(checkpoint).args(["--repeat", &(arguments.runs + 1).to_string()]);
    command.env("RAYON_NUM_THREADS", arguments.threads.to_string());
    if arguments.model == "pi0_fast" {
        command.args(["--max-decoding-steps", "8"]);
    }
    let out = std::fs::File::create(&answer).with_context(|| answer.display().to_string())?;
    let (status, usage) = watch(command.stdout(out))?;
    let text = std::fs::read_to_string(&answer).with_context(|| answer.display().to_string())?;
    let _ = std::fs::remove_file(&answer);
    ensure!(status.success(), "pi0 sample failed: {status}: {text}");
    let report: Value = serde_json::from_str(&text).context("pi0 sample did not answer in JSON")?;
    let warm: Vec<&Value> = report["runs"].as_array().context("runs")?.iter().skip(1).collect();
    let stage = |name: &str| {
        median(warm.iter().filter_map(|run| {
            run["stages"].as_array()?.iter().find(|s| s["name"] == name).and_then(|s| s["ms"].as_f64())
        }))
    };
    Ok(Figures {
        who: format!("pi0-burn {mode}"),
        total_ms: median(warm.iter().filter_map(|run| run["total_ms"].as_f64())),
        vision_ms: stage("vision"),
        prefix_ms: stage("prefix") + stage("prompt"),
        steps_ms: stage("steps") + stage("tokens"),
        peak_bytes: usage.peak_bytes,
    })
}

fn theirs(root: &Path, python: &Path, peer: &str, arguments: &Arguments) -> Result<Figures> {
    let script = root.join("xtask/peers").join(format!("{peer}_cpu.py"));
    ensure!(script.is_file(), "{peer}: no such peer; there are jax and torch");
    let steps = if arguments.model == "pi0_fast" { "8" } else { "10" };
    let output = Command::new(python)
        .arg(&script)
        .args(["--model", &arguments.model, "--dtype", &arguments.dtype, "--steps", steps])
        .args(["--threads", &arguments.threads.to_string(), "--repeats", &arguments.runs.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", python.display()))?;
    ensure!(output.status.success(), "{} failed: {}", script.display(), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rfind(|line| line.starts_with('{')).context("the peer printed no JSON")?;
    let report: Value = serde_json::from_str(line)?;
    let one = |key: &str| match &report[key] {
        Value::Array(all) => median(all.iter().filter_map(Value::as_f64)),
        other => other.as_f64().unwrap_or(f64::NAN),
    };
    Ok(Figures {
        who: format!("{peer} {}", arguments.dtype),
        total_ms: one("total_ms"),
        vision_ms: one("vision_ms"),
        prefix_ms: one("prefix_ms"),
        steps_ms: one("steps_ms"),
        peak_bytes: (one("max_rss_mib") * f64::from(1 << 20)) as u64,
    })
}

/// Between the middle two of an even number; zero of nothing.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    values.get(low).zip(values.get(high)).map_or(0.0, |(low, high)| (low + high) / 2.0)
}

fn table(all: &[Figures], arguments: &Arguments) -> String {
    let mut text = format!(
        "{} {}, batch 1, 3 cameras, {} threads, medians of {}\n\n{:<22}{:>10}{:>11}{:>11}{:>10}{:>16}{:>8}\n",
        arguments.model,
        arguments.dtype,
        arguments.threads,
        arguments.runs,
        "",
        "total s",
        "vision s",
        "prefix s",
        "steps s",
        "peak RSS MiB",
        "ratio"
    );
    for figures in all {
        text += &format!(
            "{:<22}{:>10.2}{:>11.2}{:>11.2}{:>10.2}{:>16.0}{:>8.2}\n",
            figures.who,
            figures.total_ms / 1e3,
            figures.vision_ms / 1e3,
            figures.prefix_ms / 1e3,
            figures.steps_ms / 1e3,
            mib(figures.peak_bytes),
            figures.total_ms / all[0].total_ms,
        );
    }
    text + "\nratio: times our own wall time; above 1 is slower than we are\n"
}

/// A name for what a child says, beside nothing else's.
fn tempfile() -> PathBuf {
    std::env::temp_dir().join(format!("pi0-bench-{}.json", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
