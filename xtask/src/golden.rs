//! `cargo xtask golden`: the model against the golden sets whose weights no file holds.
//!
//! The weights are made by formula, bit for bit what was recorded with; `pi0 verify` does the rest, so that what is held
//! here is what a user runs. Tiny sets take seconds; `--full` makes models of the published size and needs their disk and
//! memory: a set whose material is not there is skipped with the reason.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use orbax::Dtype;

use crate::bench::process::{Usage, watch};
use crate::synth;

/// Peak memory that a run may need, over the bytes of its weights.
const MEMORY_FACTOR: f64 = 1.3;
/// Room for what is heard of a run.
const HEARD_BYTES: u64 = 1 << 30;

/// What to verify.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The sets of the published size (golden/full) instead of the tiny ones
    #[arg(long)]
    full: bool,
    /// Only these sets, by folder name
    #[arg(long, value_name = "NAME")]
    set: Vec<String>,
    /// Where to make weights: 7 GB for a set in bf16, 14 GB for one in f32 [default: target/golden]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Leave the weights there, and use those that are
    #[arg(long)]
    keep: bool,
    /// Where to compute
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Program to run in place of a freshly built `pi0`
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Verifies the tiny sets, with the `pi0` that was built beside this program for the tests if there is one.
pub(crate) fn tiny(root: &Path) -> Result<bool> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("pi0")));
    let program = beside.filter(|path| path.is_file());
    run(root, &Arguments { full: false, set: vec![], work: None, keep: false, device: "cpu".into(), program })
}

/// Verifies each set; false if one departs.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    let folder = if arguments.full { root.join("golden/full") } else { root.join("golden") };
    let mut sets: Vec<(PathBuf, String, bool)> = vec![];
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let Ok(text) = fs::read_to_string(path.join("set.toml")) else { continue };
        let document: toml::Table = text.parse().with_context(|| path.display().to_string())?;
        let model = document["weights"].as_str().and_then(|w| w.strip_prefix("procedural:"));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = arguments.set.is_empty() || arguments.set.contains(&name);
        if let (Some(model), true) = (model, wanted) {
            sets.push((path.clone(), model.to_owned(), document["mode"].as_str() == Some("f32")));
        }
    }
    sets.sort();
    ensure!(!sets.is_empty(), "{}: no set of procedural weights goes by such a name", folder.display());
    let pi0 = match &arguments.program {
        Some(program) => program.clone(),
        None => built(root, arguments)?,
    };
    let work = arguments.work.clone().unwrap_or_else(|| root.join("target/golden"));
    let mut same = true;
    for (path, model, f32) in sets {
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let dtype = if f32 { Dtype::F32 } else { Dtype::Bf16 };
        if let Some(lacking) = lacking(root, &model, dtype, &work)? {
            println!("{name}: skipped: {lacking}");
            continue;
        }
        let weights = work.join(format!("{model}_{}", dtype.name()));
        if !weights.join("params").is_dir() {
            fs::create_dir_all(&weights).with_context(|| weights.display().to_string())?;
            synth::make(root, &model, dtype, &weights)?;
        }
        let (ok, said, usage) = verify(&pi0, &weights.join("params"), &path, &arguments.device, arguments.full)?;
        same &= ok;
        println!("{name}: {said}; {usage}");
        if !arguments.keep {
            fs::remove_dir_all(&weights).with_context(|| weights.display().to_string())?;
        }
    }
    Ok(same)
}

/// The program, built: optimised for the published size.
fn built(root: &Path, arguments: &Arguments) -> Result<PathBuf> {
    let profile: &[&str] = if arguments.full { &["--release"] } else { &[] };
    let features: &[&str] = if arguments.device.starts_with("cuda") { &["--features", "cuda"] } else { &[] };
    let args = ["build", "--quiet", "--package", "pi0-burn", "--bin", "pi0", "--message-format", "json"];
    let output = Command::new(env!("CARGO"))
        .args(args)
        .args(profile)
        .args(features)
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "building pi0 failed: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executables = messages.filter_map(|m| m["executable"].as_str().map(PathBuf::from));
    let executable = executables.next_back();
    executable.context("cargo built no program")
}

/// Why a set cannot be run here.
fn lacking(root: &Path, model: &str, dtype: Dtype, work: &Path) -> Result<Option<String>> {
    let leaves = crate::procedural::tree::leaves(root, model)?;
    let bytes: u64 = leaves.iter().map(|leaf| leaf.len() * dtype.size() as u64).sum();
    let needed = (bytes as f64 * MEMORY_FACTOR) as u64 + HEARD_BYTES;
    if let Ok(info) = fs::read_to_string("/proc/meminfo") {
        let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let free = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024;
        if free < needed {
            return Ok(Some(format!("it needs {} MiB of memory, {} are free", needed >> 20, free >> 20)));
        }
    }
    fs::create_dir_all(work).with_context(|| work.display().to_string())?;
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(work).output();
    let free = output.ok().and_then(|o| String::from_utf8_lossy(&o.stdout).lines().last()?.trim().parse::<u64>().ok());
    match free {
        Some(free) if free < bytes => {
            Ok(Some(format!("it needs {} MiB of disk, {} are free", bytes >> 20, free >> 20)))
        }
        _ => Ok(None),
    }
}

/// Runs `pi0 verify`; gives its verdict, a line that sums it up, and what it used.
fn verify(pi0: &Path, params: &Path, set: &Path, device: &str, all: bool) -> Result<(bool, String, Usage)> {
    let answer = params.with_file_name("verify.json");
    let out = File::create(&answer).with_context(|| answer.display().to_string())?;
    let mut command = Command::new(pi0);
    command.arg("verify").arg("--checkpoint").arg(params).arg("--golden").arg(set).args(["--json", "--device", device]);
    let (status, usage) = watch(command.stdout(out))?;
    let text = fs::read_to_string(&answer).with_context(|| answer.display().to_string())?;
    let report: serde_json::Value = serde_json::from_str(&text).context("pi0 verify did not answer in JSON")?;
    if status.code() == Some(2) {
        bail!("{}: {}", set.display(), report["error"].as_str().unwrap_or("pi0 verify could not"));
    }
    let lines = report["lines"].as_array().cloned().unwrap_or_default();
    for line in lines.iter().filter(|line| all || line["ok"] != true) {
        let number = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "  {:44} max {:.2e} relative {:.2e} cosine {:.6} ratio {:.3}  {} ({}) {}",
            line["name"].as_str().unwrap_or_default(),
            number("max_abs"),
            number("relative"),
            number("cosine"),
            number("error_ratio"),
            if line["ok"] == true { "ok" } else { "WRONG" },
            line["allowed"].as_str().unwrap_or_default(),
            line["fault"].as_str().unwrap_or_default(),
        );
    }
    let said = match report["first_divergence"].as_str() {
        None => format!("{} arrays within tolerance", lines.len()),
        Some(first) => format!("departs at {first}"),
    };
    Ok((status.success(), said, usage))
}
