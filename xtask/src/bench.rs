//! `cargo xtask bench`: what a verb costs, beside what the machine itself needs for the same bytes.
//!
//! `convert` runs the released program as a child process and, in turn, the floor as another: the same chunks through
//! zstd alone and as many bytes written to the same disk. Figures are medians over the runs; the bars are ratios, so
//! that they hold on any machine. The checkpoint is read once before: both find the page cache in the same state.
//!
//! - [`floor`]: the floor
//! - [`sample`]: a chunk, beside openpi's JAX and PyTorch
//! - [`serve`]: what a server adds to its model, beside openpi's Python server
//! - [`statistics`]: norm stats of datasets, beside plain reads of their files
//! - [`train`]: steps of fine-tuning, beside openpi's JAX
//! - [`process`]: wall time, CPU time and peak memory of a child

mod floor;
pub(crate) mod process;
mod sample;
mod serve;
mod statistics;
mod train;

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use process::Usage;

/// Peak memory that a conversion may take, whatever the checkpoint.
const MAX_PEAK_BYTES: u64 = 1 << 30;
/// CPU and wall time over the floor's.
const MAX_RATIO: f64 = 1.5;
/// Below the build folder: what a run writes, and the checkpoint that is made where none is named.
const SCRATCH: &str = "bench";

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// `pi0 convert` of a checkpoint against the machine's floor; exit 1 if a bar is missed
    Convert(Convert),
    /// `pi0 sample` at the published size, beside openpi's JAX and PyTorch on the CPU
    Sample(sample::Arguments),
    /// `pi0 norm-stats` of made-up datasets, beside plain reads of their files
    NormStats(statistics::Arguments),
    /// `pi0 serve` of a small model, beside openpi's Python server; exit 1 if it adds too much
    Serve(serve::Arguments),
    /// `pi0 finetune` of a mid-size model, beside openpi's JAX on the CPU
    Train(train::Arguments),
    /// Decode every chunk of a checkpoint and write some bytes, as fast as this machine can
    #[command(hide = true)]
    Floor(floor::Arguments),
}

#[derive(clap::Args)]
struct Convert {
    /// Checkpoint folder [default: a synthetic pi0 in f32, made on first use in the build folder]
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Naming scheme, handed to `pi0 convert`
    #[arg(long)]
    to: Option<String>,
    /// Threads of both [default: convert's own, and one per core for the floor]
    #[arg(long)]
    threads: Option<usize>,
    /// Runs of each, in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Folder for the outputs, deleted after each run [default: in the build folder]
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Program to measure in place of the released `pi0`
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
    /// More arguments for `pi0 convert`
    #[arg(last = true)]
    more: Vec<OsString>,
}

/// Measures; false if a bar is missed.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    match &arguments.what {
        What::Convert(arguments) => convert(root, arguments),
        What::Sample(arguments) => sample::run(root, arguments),
        What::NormStats(arguments) => statistics::run(root, arguments),
        What::Serve(arguments) => serve::run(root, arguments),
        What::Train(arguments) => train::run(root, arguments),
        What::Floor(arguments) => floor::run(arguments).map(|()| true),
    }
}

/// Medians and the verdict, as `--json` prints them.
#[derive(Serialize)]
struct Report {
    checkpoint_bytes: u64,
    output_bytes: u64,
    runs: u32,
    convert: Usage,
    floor: Usage,
    bars: Vec<Bar>,
}

/// One promise: a figure that must not be above its limit.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Bar {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) limit: f64,
    pub(crate) met: bool,
}

impl Bar {
    pub(crate) fn new(name: &'static str, value: f64, limit: f64) -> Self {
        Self { name, value, limit, met: value <= limit }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, limit, met } = self;
        let verdict = if *met { "met" } else { "MISSED" };
        write!(out, "{name:<18}{value:>8.2}  at most {limit:>7.2}  {verdict}")
    }
}

fn convert(root: &Path, arguments: &Convert) -> Result<bool> {
    let build = build_folder()?;
    let scratch = arguments.scratch.clone().unwrap_or_else(|| build.join(SCRATCH));
    std::fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => release(root, &build)?,
    };
    let checkpoint = match &arguments.checkpoint {
        Some(checkpoint) => checkpoint.clone(),
        None => synthetic(&build.join(SCRATCH))?,
    };
    let checkpoint_bytes = read_once(&checkpoint)?;
    let output = scratch.join(format!("convert-{}", std::process::id()));
    let floor_output = scratch.join(format!("floor-{}", std::process::id()));

    let (mut converts, mut floors, mut output_bytes) = (Vec::new(), Vec::new(), 0);
    for run in 1..=arguments.runs {
        let mut command = Command::new(&program);
        command.arg("convert").arg("--checkpoint-dir").arg(&checkpoint).arg("--output").arg(&output).arg("--overwrite");
        command.args(arguments.to.iter().flat_map(|to| ["--to", to]));
        command.args(arguments.threads.iter().flat_map(|threads| ["--threads".to_owned(), threads.to_string()]));
        let usage = process::measure(command.args(&arguments.more));
        output_bytes = size(&output)?;
        remove(&output)?;
        converts.push(usage?);

        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["bench", "floor", "--checkpoint"]).arg(&checkpoint).arg("--out").arg(&floor_output);
        command.arg("--write-bytes").arg(output_bytes.to_string());
        command.args(arguments.threads.iter().flat_map(|threads| ["--threads".to_owned(), threads.to_string()]));
        let usage = process::measure(&mut command);
        remove(&floor_output)?;
        floors.push(usage?);
        eprintln!(
            "run {run} of {}: convert {}, floor {}",
            arguments.runs,
            converts[converts.len() - 1],
            floors[floors.len() - 1]
        );
    }

    let (convert, floor) = (Usage::median(&converts), Usage::median(&floors));
    let report =
        Report { checkpoint_bytes, output_bytes, runs: arguments.runs, bars: bars(&convert, &floor), convert, floor };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table(&report));
    }
    Ok(report.bars.iter().all(|bar| bar.met))
}

fn bars(convert: &Usage, floor: &Usage) -> Vec<Bar> {
    vec![
        Bar::new("peak memory, MiB", mib(convert.peak_bytes), mib(MAX_PEAK_BYTES)),
        Bar::new("CPU over floor", convert.cpu_s / floor.cpu_s, MAX_RATIO),
        Bar::new("wall over floor", convert.wall_s / floor.wall_s, MAX_RATIO),
    ]
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "{} bytes read, {} written, medians of {}\n\n{:<10}{:>10}{:>10}{:>16}{:>14}\n",
        report.checkpoint_bytes, report.output_bytes, report.runs, "", "wall s", "CPU s", "peak RSS MiB", "output MB/s"
    );
    for (name, usage) in [("convert", &report.convert), ("floor", &report.floor)] {
        text += &format!(
            "{name:<10}{:>10.2}{:>10.2}{:>16.0}{:>14.0}\n",
            usage.wall_s,
            usage.cpu_s,
            mib(usage.peak_bytes),
            report.output_bytes as f64 / 1e6 / usage.wall_s
        );
    }
    text.push('\n');
    for bar in &report.bars {
        text += &format!("{bar}\n");
    }
    text
}

/// The folder that this program was built into, one above its profile.
pub(crate) fn build_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program")?;
    program.parent().and_then(Path::parent).map(Path::to_owned).context("this program lies in no build folder")
}

/// Builds the program as it is released; gives its path.
pub(crate) fn release(root: &Path, build: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "pi0-burn", "--bin", "pi0", "--target-dir"])
        .arg(build)
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "pi0 does not build");
    Ok(build.join("release").join("pi0"))
}

/// The checkpoint that is measured where none is named; made once.
fn synthetic(folder: &Path) -> Result<PathBuf> {
    let checkpoint = folder.join("pi0_f32");
    if !checkpoint.join("params").exists() {
        eprintln!("making a synthetic pi0 in {}", checkpoint.display());
        let status = Command::new(std::env::current_exe().context("cannot find this program")?)
            .args(["synth", "--model", "pi0", "--time-ns", "0", "--out"])
            .arg(&checkpoint)
            .status()
            .context("cannot start this program again")?;
        ensure!(status.success(), "the synthetic checkpoint could not be written");
    }
    Ok(checkpoint)
}

/// Every file below `path`, each with its length in bytes.
fn files(path: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let cannot = || format!("cannot read {}", path.display());
    let metadata = std::fs::symlink_metadata(path).with_context(cannot)?;
    if !metadata.is_dir() {
        return Ok(vec![(path.to_owned(), metadata.len())]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(cannot)? {
        found.extend(files(&entry.with_context(cannot)?.path())?);
    }
    Ok(found)
}

/// Bytes of all files below `path`; 0 where nothing is.
fn size(path: &Path) -> Result<u64> {
    if !path.exists() {
        return Ok(0);
    }
    Ok(files(path)?.iter().map(|(_, len)| len).sum())
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Reads all files below `path`, so that each run finds as much of them in memory as fits; gives their bytes.
fn read_once(path: &Path) -> Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    for (path, len) in files(path)? {
        let mut file = std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        while file.read(&mut buffer)? > 0 {}
        total += len;
    }
    if total == 0 {
        bail!("{} holds no bytes", path.display());
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(wall_s: f64, cpu_s: f64, peak_bytes: u64) -> Usage {
        Usage { wall_s, cpu_s, peak_bytes }
    }

    #[test]
    fn a_bar_is_missed_by_a_figure_above_its_limit_and_by_no_other() {
        let floor = usage(10.0, 20.0, 1 << 20);
        let met = |convert: &Usage| bars(convert, &floor).iter().map(|bar| bar.met).collect::<Vec<_>>();
        assert_eq!(met(&usage(15.0, 30.0, MAX_PEAK_BYTES)), [true, true, true]);
        assert_eq!(met(&usage(15.1, 30.0, MAX_PEAK_BYTES)), [true, true, false]);
        assert_eq!(met(&usage(1.0, 30.1, 0)), [true, false, true]);
        assert_eq!(met(&usage(1.0, 1.0, MAX_PEAK_BYTES + 1)), [false, true, true]);
        // A floor that could not be measured is no reason to be content.
        assert_eq!(bars(&usage(1.0, 1.0, 0), &usage(0.0, 0.0, 0)).iter().filter(|bar| bar.met).count(), 1);
    }

    #[test]
    fn the_table_names_every_bar_that_is_missed() {
        let (convert, floor) = (usage(20.0, 20.0, 1 << 21), usage(10.0, 20.0, 1 << 20));
        let bars = bars(&convert, &floor);
        let text = table(&Report { checkpoint_bytes: 5, output_bytes: 40_000_000, runs: 1, convert, floor, bars });
        assert!(text.contains("convert        20.00     20.00               2             2\n"), "{text}");
        assert!(text.contains("wall over floor       2.00  at most    1.50  MISSED\n"), "{text}");
        assert_eq!(text.matches("MISSED").count(), 1, "{text}");
    }

    #[test]
    fn sizes_are_summed_below_a_folder_and_missing_ones_are_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/b"), [0; 3]).unwrap();
        std::fs::write(folder.path().join("c"), [0; 4]).unwrap();
        assert_eq!(size(folder.path()).unwrap(), 7);
        assert_eq!(read_once(folder.path()).unwrap(), 7);
        remove(&folder.path().join("a")).unwrap();
        assert_eq!(size(&folder.path().join("a")).unwrap(), 0);
        remove(&folder.path().join("a")).unwrap();
    }
}
