//! `cargo xtask bench train`: steps of fine-tuning a mid-size model, beside openpi's own JAX step on the same CPU.
//!
//! The model is openpi's preset `debug`: SigLIP So400m at its published size and two small Gemmas, 429 M values, all of
//! them trained from chance on made-up examples by AdamW with a moving average. Each program runs alone, one after the
//! other. Ours is `pi0 finetune` itself, pictures augmented and batches loaded meanwhile; it is ended by force after the
//! last step that counts, so that no checkpoint of several GB is written. The peer is `xtask/peers/jax_train_cpu.py` in a
//! Python that has openpi; without one only ours is measured, and it says so.
//!
//! Invariant: peak memory is read from the same place of the same file for all.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::process::{follow, watch};
use super::sample::median;
use super::{SCRATCH, build_folder, mib, release, remove};

/// Kernels of So400m's 27 blocks: four of attention, two of the feed-forward layer.
const TOWER_KERNELS: f64 = 27.0 * (4.0 * 1152.0 * 1152.0 + 2.0 * 1152.0 * 4304.0);
/// Patches of three pictures.
const TOWER_TOKENS: f64 = 3.0 * 256.0;
/// More than are ever made.
const ENDLESS: u32 = 1_000_000;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Preset: pi0, or pi0.5, with the published vision tower and small Gemmas
    #[arg(long, default_value = "debug", value_parser = ["debug", "debug_pi05"])]
    config: String,
    /// What they compute in; parameters are f32 in both
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16", value_parser = ["f32", "bf16"])]
    dtypes: Vec<String>,
    /// Examples of a step
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Steps that count
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Steps before them
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    warm_up: u32,
    /// Ours: with blocks computed again in the backward pass, or all activations kept
    #[arg(long, value_delimiter = ',', default_value = "recompute,no-recompute", value_parser = ["recompute", "no-recompute"])]
    ways: Vec<String>,
    /// Python with openpi; without it only ours is measured
    #[arg(long)]
    python: Option<PathBuf>,
    /// Threads of each
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Folder for the runs, deleted after each [default: in the build folder]
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Program to measure in place of the released `pi0`
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

/// One program's figures: medians over the steps that count.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Figures {
    who: String,
    dtype: String,
    step_s: f64,
    /// Of all threads.
    step_cpu_s: f64,
    samples_per_s: f64,
    /// The vision tower's products alone, forward and backward, what is computed again not counted.
    gflop_per_s: f64,
    peak_bytes: u64,
}

impl Figures {
    fn new(who: &str, dtype: &str, walls: &[f64], cpus: &[f64], batch_size: u32, peak_bytes: u64) -> Self {
        let [step_s, step_cpu_s] = [walls, cpus].map(|all| median(all.iter().copied()));
        let samples_per_s = f64::from(batch_size) / step_s;
        let gflop_per_s = 6.0 * TOWER_KERNELS * TOWER_TOKENS * samples_per_s / 1e9;
        Self { who: who.into(), dtype: dtype.into(), step_s, step_cpu_s, samples_per_s, gflop_per_s, peak_bytes }
    }
}

/// Measures; false if openpi did not come to its end. No bar is set: ratios are for people to read.
pub(super) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    let build = build_folder()?;
    let scratch = arguments.scratch.clone().unwrap_or_else(|| build.join(SCRATCH));
    std::fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => release(root, &build)?,
    };
    if arguments.python.is_none() {
        eprintln!("no --python: openpi is not measured (xtask/peers/README.md says what it needs)");
    }
    let (mut all, mut measured) = (vec![], true);
    for dtype in &arguments.dtypes {
        for way in &arguments.ways {
            let folder = scratch.join(format!("train-{}", std::process::id()));
            let figures = ours(&program, &folder, dtype, way, arguments);
            remove(&folder)?;
            all.push(figures?);
        }
        if let Some(python) = &arguments.python {
            // The memory may not suffice for the one that needs most.
            match theirs(root, python, &scratch, dtype, arguments) {
                Ok(figures) => all.push(figures),
                Err(error) => {
                    eprintln!("openpi JAX {dtype}: {error:#}");
                    measured = false;
                }
            }
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print!("{}", table(&all, arguments));
    }
    Ok(measured)
}

fn ours(program: &Path, folder: &Path, dtype: &str, way: &str, arguments: &Arguments) -> Result<Figures> {
    let in_full = if dtype == "f32" { "float32" } else { "bfloat16" };
    let mut command = Command::new(program);
    command.args(["finetune", "--config", &arguments.config, "--exp-name", "bench", "--json"]);
    command.args(["--override", &format!("checkpoint_base_dir={}", folder.display())]);
    command.args(["--override", &format!("model.dtype={in_full}"), "--override", "log_interval=1"]);
    command.args(["--override", &format!("save_interval={ENDLESS}"), "--num-train-steps", &ENDLESS.to_string()]);
    command.args(["--batch-size", &arguments.batch_size.to_string()]);
    command.args((way == "no-recompute").then_some("--no-recompute"));
    command.env("RAYON_NUM_THREADS", arguments.threads.to_string()).stdout(Stdio::null());
    let journal = folder.join(&arguments.config).join("bench").join("metrics.jsonl");
    let wanted = (arguments.warm_up + arguments.steps) as usize;
    // When each step was done, by the run's own clock, and the CPU time until then.
    let (mut walls, mut cpus): (Vec<f64>, Vec<f64>) = (vec![], vec![]);
    let peak_bytes = follow(&mut command, &mut |cpu_s| {
        let Ok(text) = std::fs::read_to_string(&journal) else { return Ok(false) };
        walls = seconds(&text)?;
        cpus.resize(walls.len(), cpu_s);
        Ok(walls.len() >= wanted)
    })?;
    let spent = |marks: &[f64]| -> Vec<f64> {
        let marks = &marks[arguments.warm_up as usize - 1..wanted];
        marks.windows(2).map(|pair| pair[1] - pair[0]).collect()
    };
    let (walls, cpus) = (spent(&walls), spent(&cpus));
    let who = if way == "recompute" { "pi0-burn" } else { "pi0-burn --no-recompute" };
    eprintln!("{who} {dtype}: {walls:.2?} s, {cpus:.2?} s CPU, {} MiB", peak_bytes >> 20);
    Ok(Figures::new(who, dtype, &walls, &cpus, arguments.batch_size, peak_bytes))
}

/// `seconds` of each whole line.
fn seconds(journal: &str) -> Result<Vec<f64>> {
    let whole = journal.rfind('\n').map_or("", |end| &journal[..end]);
    let one = |line: &str| {
        let line: Value = serde_json::from_str(line).with_context(|| format!("metrics.jsonl: {line}"))?;
        line["seconds"].as_f64().context("metrics.jsonl: a line without seconds")
    };
    whole.lines().map(one).collect()
}

fn theirs(root: &Path, python: &Path, scratch: &Path, dtype: &str, arguments: &Arguments) -> Result<Figures> {
    let script = root.join("xtask/peers/jax_train_cpu.py");
    let answer = scratch.join(format!("train-peer-{}.json", std::process::id()));
    let out = std::fs::File::create(&answer).with_context(|| answer.display().to_string())?;
    let mut command = Command::new(python);
    command.arg(&script).args(["--config", &arguments.config, "--dtype", dtype]);
    command.args(["--batch-size", &arguments.batch_size.to_string(), "--steps", &arguments.steps.to_string()]);
    command.args(["--warm-up", &arguments.warm_up.to_string(), "--threads", &arguments.threads.to_string()]);
    let (status, usage) = watch(command.stdout(out))?;
    let text = std::fs::read_to_string(&answer).with_context(|| answer.display().to_string())?;
    remove(&answer)?;
    ensure!(status.success(), "{} failed: {status}", script.display());
    let line = text.lines().rfind(|line| line.starts_with('{')).context("the peer printed no JSON")?;
    eprintln!("openpi JAX {dtype}: {line}");
    let report: Value = serde_json::from_str(line)?;
    let list = |key: &str| -> Result<Vec<f64>> {
        Ok(report[key].as_array().with_context(|| key.to_owned())?.iter().filter_map(Value::as_f64).collect())
    };
    let (walls, cpus) = (list("step_s")?, list("step_cpu_s")?);
    Ok(Figures::new("openpi JAX", dtype, &walls, &cpus, arguments.batch_size, usage.peak_bytes))
}

fn table(all: &[Figures], arguments: &Arguments) -> String {
    let mut text = format!(
        "{}, batch {}, 3 cameras, {} threads, medians of {} steps after {}\n\n{:<30}{:>8}{:>8}{:>11}{:>10}{:>14}{:>7}{:>8}\n",
        arguments.config,
        arguments.batch_size,
        arguments.threads,
        arguments.steps,
        arguments.warm_up,
        "",
        "step s",
        "CPU s",
        "samples/s",
        "GFLOP/s",
        "peak RSS MiB",
        "time",
        "memory"
    );
    for one in all {
        let first = all.iter().find(|other| other.dtype == one.dtype).unwrap_or(one);
        text += &format!(
            "{:<30}{:>8.2}{:>8.2}{:>11.4}{:>10.1}{:>14.0}{:>7.2}{:>8.2}\n",
            format!("{} {}", one.who, one.dtype),
            one.step_s,
            one.step_cpu_s,
            one.samples_per_s,
            one.gflop_per_s,
            mib(one.peak_bytes),
            one.step_s / first.step_s,
            one.peak_bytes as f64 / first.peak_bytes as f64,
        );
    }
    text + "\ntime, memory: times those of the first of the same dtype; above 1 is slower, or more\n\
            GFLOP/s: 6 x kernels x tokens of the vision tower; what is computed again is not counted\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_being_written_is_not_read() {
        assert_eq!(seconds("").unwrap(), [0.0; 0]);
        assert_eq!(seconds("{\"seconds\":1.5}\n{\"seconds\":4}\n{\"sec").unwrap(), [1.5, 4.0]);
        assert!(seconds("{\"step\":1}\n").is_err());
    }

    #[test]
    fn ratios_are_to_the_first_of_the_same_dtype() {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            arguments: Arguments,
        }
        let arguments = <Program as clap::Parser>::parse_from(["train"]).arguments;
        assert_eq!((&arguments.dtypes[..], arguments.ways.len()), (&["f32".to_owned(), "bf16".to_owned()][..], 2));
        let figures = |who, dtype, step: f64, mib: u64| Figures::new(who, dtype, &[step], &[2.0 * step], 2, mib << 20);
        let all = [figures("a", "f32", 10.0, 100), figures("b", "f32", 15.0, 300), figures("b", "bf16", 5.0, 50)];
        let text = table(&all, &arguments);
        let line = |end: &str| assert!(text.contains(end), "{text}");
        line("b f32                            15.00   30.00     0.1333     252.6           300   1.50    3.00\n");
        line("b bf16                            5.00   10.00     0.4000     757.7            50   1.00    1.00\n");
    }
}
