//! `pi0 verify`.

mod remote;

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Answer;
use super::convert::default_threads;
use super::fetch::resolve;
use super::output::{Mouth, shape};
use crate::device::{Precision, device, packs};
use crate::verify::against;
use crate::verify::compare::{Line, compare};
use crate::verify::record::{Recording, record};
use crate::verify::report::{Report, certificate, check_certificate, files_sha256};
use crate::verify::set::Set;
use crate::weights::load::{Load, Loaded, load};
use crate::weights::open::{Choice, Opened};

const EXAMPLES: &str = "\
Examples:
  Does this build compute what openpi computed?
    pi0 verify --checkpoint fixtures/checkpoints/base/pi0 --golden golden/pi0_f32

  Of your own checkpoint: record once with openpi, then verify anything made of it
    python golden/record.py --checkpoint-dir params --out golden/mine
    pi0 verify --checkpoint model.safetensors --golden golden/mine --device cuda:0 --certificate parity.json

  Does a policy behind a websocket compute what this checkpoint does?
    pi0 verify --server ws://robot:8000 --checkpoint pi05_libero --config pi05_libero

  Do two checkpoints compute the same? (no golden set needed)
    pi0 verify --checkpoint params --against model.safetensors

Exit codes: 0 all within tolerance · 1 not (the first divergence is named) · 2 could not";

/// Tell whether this build, on this device, with this checkpoint, computes what JAX computes.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 verify --help")]
pub struct Args {
    /// Checkpoint: an Orbax folder or safetensors, in any scheme
    #[arg(
        long,
        visible_alias = "checkpoint-dir",
        alias = "checkpoint_dir",
        value_name = "PATH",
        required_unless_present = "check"
    )]
    pub checkpoint: Option<PathBuf>,

    /// Golden set: a folder with set.toml and io.safetensors
    #[arg(long, value_name = "DIR", required_unless_present_any = ["against", "check", "server"])]
    pub golden: Option<PathBuf>,

    /// Another checkpoint: compare what the two compute on a random observation, intermediate by intermediate
    #[arg(long, value_name = "PATH", conflicts_with = "golden")]
    pub against: Option<PathBuf>,

    /// With --against or --server: seed of the random observations
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// With --against or --server: largest difference, as a share of an array's largest value
    #[arg(long, default_value_t = 1e-5)]
    pub tolerance: f64,

    /// A policy behind a websocket.
    #[command(flatten)]
    pub remote: remote::Remote,

    /// Read a certificate and tell whether it is unchanged and what it says
    #[arg(long, value_name = "FILE", conflicts_with_all = ["checkpoint", "golden", "against"])]
    pub check: Option<PathBuf>,

    /// Where to compute: cpu, cuda:0, ...
    #[arg(long, default_value = "cpu")]
    pub device: String,

    /// Precision mode: f32, train-bf16 or serve-bf16; the golden set's own if left out (f32 with --against)
    #[arg(long, value_name = "MODE")]
    pub dtype: Option<Precision>,

    /// Naming scheme; detected from the names
    #[arg(long, value_name = "SCHEME")]
    pub from: Option<String>,

    /// alpha / rank of the attention's LoRA, where it is not 1
    #[arg(long, default_value_t = 1.0)]
    pub lora_scale: f64,

    /// Threads that read weights
    #[arg(long)]
    pub threads: Option<usize>,

    /// Write a hash-stamped certificate (JSON) that says what was compared and how it went
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,

    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// Verifies, says how it went, and answers whether it is the same.
pub(super) fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    if let Some(path) = &args.check {
        let report = check_certificate(path)?;
        let ok = report["ok"] == true;
        let say = || {
            let field = |name: &str| report[name].as_str().unwrap_or_default().to_owned();
            let verdict = if ok { "same" } else { "NOT the same" };
            let (checkpoint, against) = (field("checkpoint"), field("against"));
            format!("{verdict}: {checkpoint} against {against}, {}, {}\n", field("mode"), field("device"))
        };
        mouth.say(&report, say)?;
        return Ok(if ok { Answer::Yes } else { Answer::No });
    }
    let checkpoint = args.checkpoint.as_deref().context("--checkpoint names what to verify")?;
    if args.golden.is_some() && (args.seed != 0 || args.tolerance != 1e-5) {
        bail!(
            "--seed and --tolerance are of --against and --server; a golden set has its own observation and tolerances"
        );
    }
    let report = match (&args.golden, &args.against) {
        _ if let Some(server) = &args.remote.server => remote::run(&args, server, mouth)?,
        (Some(golden), _) => with_golden(&args, checkpoint, golden, mouth)?,
        (None, Some(other)) => with_other(&args, checkpoint, other, mouth)?,
        (None, None) => bail!("--golden, --against or --server says what to hold it against"),
    };
    if let Some(path) = &args.certificate {
        remap::write_whole(path, certificate(&report)?.as_bytes())?;
    }
    mouth.say(&report, || table(&report))?;
    Ok(if report.ok { Answer::Yes } else { Answer::No })
}

fn with_golden(args: &Args, checkpoint: &Path, golden: &Path, mouth: &Mouth) -> Result<Report> {
    let set = Set::open(golden)?;
    let precision = match args.dtype {
        Some(precision) => precision,
        None => set.document.mode.parse().with_context(|| format!("{}: mode", golden.display()))?,
    };
    let loaded = opened(args, checkpoint, precision, mouth)?;
    let recording = heard(mouth, || record(&loaded.pi, &set))?;
    let lines = compare(&set, &recording);
    let files = [golden.join("set.toml"), golden.join("io.safetensors")];
    let mut report = report(args, precision, &loaded, checkpoint, lines);
    report.against = golden.display().to_string();
    report.against_sha256 = files_sha256(&[&files[0], &files[1]])?;
    if precision.name() != set.document.mode {
        report.against += &format!(" (recorded in {})", set.document.mode);
    }
    Ok(report)
}

fn with_other(args: &Args, checkpoint: &Path, other: &Path, mouth: &Mouth) -> Result<Report> {
    let precision = args.dtype.unwrap_or(Precision::F32);
    // One model at a time: two of the published size do not fit into small machines.
    let (set, against_sha256) = {
        let loaded = opened(args, other, precision, mouth)?;
        let set = against::observed(&loaded.pi, args.seed, args.tolerance)?;
        let recording = heard(mouth, || record(&loaded.pi, &set))?;
        (against::recorded(set, recording), loaded.digest)
    };
    let loaded = opened(args, checkpoint, precision, mouth)?;
    let recording = heard(mouth, || record(&loaded.pi, &set))?;
    let lines = compare(&set, &recording);
    let mut report = report(args, precision, &loaded, checkpoint, lines);
    report.against = other.display().to_string();
    report.against_sha256 = against_sha256;
    Ok(report)
}

fn heard(mouth: &Mouth, run: impl FnOnce() -> Result<Recording>) -> Result<Recording> {
    crate::weights::convert::Progress::phase(mouth, "running the model", 0);
    run()
}

fn opened(args: &Args, path: &Path, precision: Precision, mouth: &Mouth) -> Result<Loaded> {
    let device = device(&args.device)?;
    let path = resolve(path, false, mouth)?;
    let opened = Opened::open(&path, &Choice { from: args.from.clone(), ..Choice::default() })?;
    let how = Load {
        from: args.from.clone(),
        parameters: precision.parameters(),
        activations: precision.activations(),
        lora_scale: args.lora_scale,
        threads: args.threads.unwrap_or_else(default_threads).max(1),
        pack: packs(&device, precision),
        digest: true,
    };
    load(&opened, &how, &device, mouth)
}

fn report(args: &Args, precision: Precision, loaded: &Loaded, checkpoint: &Path, lines: Vec<Line>) -> Report {
    let first_divergence = Report::first(&lines);
    Report {
        ok: first_divergence.is_none(),
        first_divergence,
        lines,
        model: loaded.pi.settings().family().into(),
        mode: precision.name().into(),
        device: args.device.clone(),
        checkpoint: checkpoint.display().to_string(),
        weights_sha256: loaded.digest.clone(),
        against: String::new(),
        against_sha256: String::new(),
        pi0_burn: env!("CARGO_PKG_VERSION").into(),
    }
}

/// For people: a line for each intermediate, the first divergence in bold.
fn table(report: &Report) -> String {
    let bold = std::io::stdout().is_terminal();
    let mut out = String::new();
    let head = format!("{} · {} · {} · {}", report.model, report.mode, report.device, report.checkpoint);
    let _ = writeln!(out, "{head}\nagainst {}\n", report.against);
    let width = report.lines.iter().map(|l| l.name.len()).max().unwrap_or(0);
    let _ = writeln!(
        out,
        "{:width$}  {:>16}  {:>8}  {:>8}  {:>9}  {:>6}  verdict",
        "intermediate", "shape", "max abs", "relative", "cosine", "ratio"
    );
    for line in &report.lines {
        let is_first = report.first_divergence.as_deref() == Some(&line.name);
        let (on, off) = if is_first && bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let dims: Vec<u64> = line.shape.iter().map(|n| *n as u64).collect();
        let verdict = match (&line.fault, line.ok) {
            (Some(fault), _) => format!("WRONG: {fault}"),
            (None, true) => format!("ok ({})", line.allowed),
            (None, false) => {
                let at = line.at.as_ref().map_or(String::new(), |at| format!(" (first in {at})"));
                format!("WRONG: allowed is {}{at}", line.allowed)
            }
        };
        let ratio = line.error_ratio.map_or(String::new(), |r| format!("{r:.3}"));
        let _ = writeln!(
            out,
            "{on}{:width$}  {:>16}  {:>8.1e}  {:>8.1e}  {:>9.6}  {ratio:>6}  {verdict}{}{off}",
            line.name,
            shape(&dims),
            line.max_abs,
            line.relative,
            line.cosine,
            if is_first { "  <- first divergence" } else { "" },
        );
    }
    let wrong = report.lines.iter().filter(|l| !l.ok).count();
    let _ = match &report.first_divergence {
        None => writeln!(out, "\nsame: {} of {} within tolerance", report.lines.len(), report.lines.len()),
        Some(first) => writeln!(out, "\nNOT the same: {wrong} of {} outside; the first is {first}", report.lines.len()),
    };
    out
}
