//! `cargo xtask gpu`: everything about a GPU that can be found out in one command, as one report.
//!
//! Looks for driver, NVRTC and headers; builds in release with the feature of the device; runs the suites of parity,
//! training and chunking there, `pi0 verify` over the golden sets and `pi0 sample` against the clock. A thing that is missing is a sentence that says
//! what to do; what does not need it still runs. `--device cpu` takes the same way without a GPU.
//!
//! - [`toolkit`]: driver, NVRTC, headers
//! - [`machine`]: what the figures were measured on
//! - [`child`]: the programs, built or brought along
//! - [`trial`]: parity, training, chunking, verify, sample
//! - [`report`]: JSON and Markdown

mod child;
mod machine;
mod report;
mod toolkit;
mod trial;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use child::{Ground, Programs};
use machine::Machine;
use report::{Item, Outcome, Report, Verdict};
use toolkit::Toolkit;
use trial::{Timing, Weights};

use crate::procedural::recording::MODELS;

/// Below the root, where nothing else is named: git ignores it.
const OUTPUT: &str = "target/gpu";

/// What `--help` adds to the options.
const GUIDE: &str = "\
The machine needs an NVIDIA driver, and NVRTC and CUDA's headers. These come with the CUDA toolkit
(looked for in CUDA_PATH, /usr/local/cuda, /opt/cuda, and where nvcc is), or with four wheels in the
environment of `python3`; take the driver's version of CUDA, here 13.0:

  python3 -m pip install 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-runtime==13.0.*' \\
      'nvidia-cuda-crt==13.0.*' nvidia-cuda-cccl

To run `pi0 --device cuda:0` yourself with the wheels, set both
CUDA_PATH=.../site-packages/nvidia/cu13 and LD_LIBRARY_PATH=$CUDA_PATH/lib.
No LLVM, no cuBLAS, no cuDNN is needed; the build needs no GPU and no toolkit.

A GPU machine without a network, or without Rust: build on another machine with the same
architecture and a C library that is no newer; take this tree and the folder along; run in the tree.

  cargo xtask gpu --prepare FOLDER     there; makes pi0, parity, training, chunking, xtask (strip and xz: 10 MB each)
  FOLDER/xtask gpu --programs FOLDER   here

The first run of a shape compiles and tunes its kernels, which takes seconds to minutes;
CUBECL_AUTOTUNE_LEVEL=minimal tunes less. Exit codes: 0 all passed, 1 something failed, 2 could not.";

/// Where, what, and how often.
#[derive(clap::Args)]
#[command(after_long_help = GUIDE)]
pub(crate) struct Arguments {
    /// Device: `cuda:0` (or another number), `wgpu`, or `cpu` to rehearse every stage without a GPU
    #[arg(long, default_value = "cuda:0", value_parser = known)]
    device: String,
    /// Trials to make [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Trial>,
    /// Checkpoint to sample from, as often as wanted [default: the weights of the golden sets]
    #[arg(long)]
    checkpoint: Vec<PathBuf>,
    /// Make a full-size checkpoint with procedural weights (pi0: 12 GB), verify the sets recorded with it and sample from
    /// it; as often as wanted
    #[arg(long, value_parser = MODELS)]
    synthetic: Vec<String>,
    /// Precision modes to sample in
    #[arg(long, value_delimiter = ',', default_value = "f32,serve-bf16")]
    dtype: Vec<String>,
    /// Chunks to time for each checkpoint and mode
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Folder for report.json, report.md and logs [default: target/gpu]
    #[arg(long)]
    output: Option<PathBuf>,
    /// CUDA toolkit, or the wheels' folder nvidia/cu13 [default: searched for]
    #[arg(long)]
    cuda_path: Option<PathBuf>,
    /// Run the programs in this folder, that --prepare made; build nothing
    #[arg(long, conflicts_with = "prepare")]
    programs: Option<PathBuf>,
    /// Build for the device, put the programs into this folder, and stop
    #[arg(long)]
    prepare: Option<PathBuf>,
    /// Seconds after which a program is ended
    #[arg(long, default_value_t = 3600)]
    limit_s: u64,
    /// More arguments for `pi0 sample`
    #[arg(last = true)]
    more: Vec<OsString>,
}

/// What a device is put through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Trial {
    /// tests/parity.rs
    Parity,
    /// tests/training.rs
    Training,
    /// tests/chunking.rs
    Chunking,
    /// `pi0 verify` over the golden sets
    Verify,
    /// `pi0 sample`, timed
    Sample,
}

impl Trial {
    fn name(self) -> &'static str {
        match self {
            Self::Parity => "parity",
            Self::Training => "training",
            Self::Chunking => "chunking",
            Self::Verify => "verify",
            Self::Sample => "sample",
        }
    }
}

/// A device that there is a feature for.
fn known(text: &str) -> Result<String, String> {
    let number = text.strip_prefix("cuda:").is_some_and(|number| number.parse::<u16>().is_ok());
    match text {
        "cpu" | "wgpu" => Ok(text.to_owned()),
        "cuda" => Ok("cuda:0".to_owned()),
        _ if number => Ok(text.to_owned()),
        _ => Err("name `cuda:0`, `wgpu` or `cpu`".to_owned()),
    }
}

/// The cargo features that a device needs.
fn features(device: &str) -> &'static [&'static str] {
    match device.split(':').next() {
        Some("cuda") => &["cuda"],
        Some("wgpu") => &["wgpu"],
        _ => &[],
    }
}

/// Finds out; false if something failed.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    let root = root.canonicalize().context("cannot find the tree of this project")?;
    let root = root.as_path();
    let device = arguments.device.as_str();
    if let Some(folder) = &arguments.prepare {
        Programs::build(root, features(device))?.pack(folder)?;
        println!("in {}: pi0, parity, training, chunking, xtask; there: xtask gpu --programs FOLDER", folder.display());
        return Ok(true);
    }
    let output = arguments.output.clone().unwrap_or_else(|| root.join(OUTPUT));
    std::fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let output = output.canonicalize().with_context(|| format!("cannot find {}", output.display()))?;

    let machine = Machine::read(root);
    let mut report = Report { device: device.to_owned(), machine, toolkit: None, stages: Vec::new() };
    let started = Instant::now();
    let probed = probe(device, arguments.cuda_path.as_deref(), &report.machine);
    report.toolkit = probed.toolkit;
    let lacking = probed.items.iter().any(|item| item.verdict == Verdict::Failed);
    keep(&mut report, Outcome::new("probe", started.elapsed().as_secs_f64(), probed.items), &output)?;

    let started = Instant::now();
    let (programs, built) = programs(root, device, arguments.programs.as_deref());
    keep(&mut report, Outcome::new("build", started.elapsed().as_secs_f64(), vec![built]), &output)?;

    let limit = Duration::from_secs(arguments.limit_s);
    let ground = Ground { root, logs: &output, environment: &probed.environment, limit };
    for trial in Trial::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(trial) {
            continue;
        }
        let started = Instant::now();
        let items = match &programs {
            _ if lacking => vec![Item::new(device, Verdict::Skipped, "the probe found something missing")],
            None => vec![Item::new("pi0", Verdict::Skipped, "there is no program to run")],
            Some(programs) => try_out(*trial, &ground, programs, arguments)
                .unwrap_or_else(|error| vec![Item::failed(trial.name(), format!("{error:#}"))]),
        };
        keep(&mut report, Outcome::new(trial.name(), started.elapsed().as_secs_f64(), items), &output)?;
    }
    println!("report: {}", output.join("report.md").display());
    Ok(report.passed())
}

/// Says what became of a stage, and writes it down.
fn keep(report: &mut Report, outcome: Outcome, output: &Path) -> Result<()> {
    println!("== {}: {}, {:.1} s", outcome.stage, outcome.verdict.word(), outcome.wall_s);
    for item in &outcome.items {
        println!("   {:<8} {}: {}", item.verdict.word(), item.name, item.says);
    }
    report.stages.push(outcome);
    report.write(output)
}

/// What the probe found.
struct Probed {
    items: Vec<Item>,
    toolkit: Option<Toolkit>,
    /// What children are told.
    environment: Vec<(&'static str, OsString)>,
}

/// Looks for all that the device needs; every item that failed says what to do.
fn probe(device: &str, cuda_path: Option<&Path>, machine: &Machine) -> Probed {
    if !device.starts_with("cuda") {
        let items = vec![Item::new(device, Verdict::Passed, "needs no CUDA")];
        return Probed { items, toolkit: None, environment: Vec::new() };
    }
    let mut items = vec![gpu(device, machine)];
    let driver = toolkit::driver_folder();
    items.push(match &driver {
        Ok(None) => Item::new("driver", Verdict::Passed, "its library is known to the loader"),
        Ok(Some(folder)) => Item::new("driver", Verdict::Passed, format!("its library is in {}", folder.display())),
        Err(missing) => Item::failed("driver", missing),
    });
    let advice = toolkit::advice(machine.driver_cuda.as_deref());
    let toolkit = toolkit::choose(&toolkit::roots(cuda_path));
    let name = "NVRTC and headers";
    items.push(match &toolkit {
        None => Item::failed(name, format!("nowhere; {advice}")),
        Some(part) if !part.is_whole() => Item::failed(name, format!("{}; {advice}", part.complaint())),
        Some(whole) => {
            let version = whole.nvrtc.as_deref().unwrap_or("of unknown version");
            let doubt = whole.nvrtc.as_deref().zip(machine.driver_cuda.as_deref());
            let doubt = doubt.and_then(|(nvrtc, driver)| toolkit::too_new(nvrtc, driver));
            let doubt = doubt.map_or(String::new(), |doubt| format!("; {doubt}; {advice}"));
            Item::new(name, Verdict::Passed, format!("{version}, in {}{doubt}", whole.root.display()))
        }
    });
    let folder = driver.ok().flatten();
    let environment = toolkit.as_ref().map(|toolkit| toolkit::environment(toolkit, folder.as_deref()));
    Probed { items, toolkit, environment: environment.unwrap_or_default() }
}

/// The GPU of that number.
fn gpu(device: &str, machine: &Machine) -> Item {
    let number = device.strip_prefix("cuda:").and_then(|number| number.parse::<usize>().ok()).unwrap_or(0);
    match machine.gpus.get(number) {
        Some(gpu) => Item::new("GPU", Verdict::Passed, format!("{}, driver {}", gpu.name, gpu.driver)),
        None if machine.gpus.is_empty() => Item::failed(
            "GPU",
            "`nvidia-smi` names none: it comes with the driver and must be on PATH; in a container, start it with GPUs",
        ),
        None => Item::failed("GPU", format!("`nvidia-smi` names {}, none has number {number}", machine.gpus.len())),
    }
}

/// The programs, brought along or built now.
fn programs(root: &Path, device: &str, folder: Option<&Path>) -> (Option<Programs>, Item) {
    let (what, programs) = match folder {
        Some(folder) => ("brought along", Programs::brought(folder)),
        None => ("built in release", Programs::build(root, features(device))),
    };
    match programs {
        Ok(programs) => (Some(programs), Item::new("pi0, parity, training and chunking", Verdict::Passed, what)),
        Err(error) => (None, Item::failed("pi0, parity, training and chunking", format!("{error:#}"))),
    }
}

fn try_out(trial: Trial, ground: &Ground, programs: &Programs, arguments: &Arguments) -> Result<Vec<Item>> {
    let device = arguments.device.as_str();
    Ok(match trial {
        Trial::Parity => trial::suite(ground, &programs.parity, "parity", device),
        Trial::Training => trial::suite(ground, &programs.training, "training", device),
        Trial::Chunking => trial::suite(ground, &programs.chunking, "chunking", device),
        Trial::Verify => {
            let there = |weights: &Weights| checkpoint_of(weights, ground.logs, &arguments.synthetic);
            trial::verify(ground, programs, device, &trial::sets(ground.root)?, there)
        }
        Trial::Sample => {
            let checkpoints = checkpoints(ground, arguments)?;
            let (dtypes, runs, more) = (&arguments.dtype, arguments.runs, &arguments.more);
            trial::sample(ground, programs, device, &Timing { checkpoints: &checkpoints, dtypes, runs, more })
        }
    })
}

/// What to sample from, each with the name it has in the report.
fn checkpoints(ground: &Ground, arguments: &Arguments) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for path in &arguments.checkpoint {
        // The program runs in the tree, not here.
        let path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
        found.push(path);
    }
    if found.is_empty() && arguments.synthetic.is_empty() {
        found.extend(trial::sets(ground.root)?.into_iter().filter_map(|set| match set.weights {
            Weights::Stored(path) => Some(path.canonicalize().unwrap_or(path)),
            Weights::Procedural { .. } => None,
        }));
        found.sort();
        found.dedup();
    }
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut named: Vec<(String, PathBuf)> = found.into_iter().map(|path| (name(&path), path)).collect();
    for model in &arguments.synthetic {
        named.push((format!("synthetic {model}"), synthetic(ground.logs, model, false)?));
    }
    Ok(named)
}

/// The path of a set's weights; small procedural ones are made here, full-size ones only if they were asked for.
///
/// # Errors
/// There is none: the item says why.
fn checkpoint_of(weights: &Weights, folder: &Path, wanted: &[String]) -> Result<PathBuf, Box<Item>> {
    match weights {
        Weights::Stored(path) => Ok(path.clone()),
        Weights::Procedural { model, tiny } if *tiny || wanted.contains(model) => {
            synthetic(folder, model, *tiny).map_err(|error| Box::new(Item::failed(model, format!("{error:#}"))))
        }
        Weights::Procedural { model, .. } => Err(Box::new(Item::new(
            model,
            Verdict::Skipped,
            format!("needs a full-size checkpoint: add --synthetic {model}"),
        ))),
    }
}

/// A checkpoint with procedural weights; made once.
fn synthetic(folder: &Path, model: &str, tiny: bool) -> Result<PathBuf> {
    let checkpoint = folder.join(format!("synthetic-{}{model}", if tiny { "tiny-" } else { "" }));
    if !checkpoint.join("params").exists() {
        eprintln!("writing {}", checkpoint.display());
        let status = Command::new(std::env::current_exe().context("cannot find this program")?)
            .args(["synth", "--model", model, "--time-ns", "0", "--out"])
            .arg(&checkpoint)
            .args(tiny.then_some("--tiny"))
            .status()
            .context("cannot start this program again")?;
        ensure!(status.success(), "the synthetic {model} could not be written");
    }
    Ok(checkpoint)
}

#[cfg(test)]
mod tests;
