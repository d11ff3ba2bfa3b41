//! `pi0 convert`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::{ArgAction, ValueEnum};
use orbax::Dtype;
use remap::{Fate, Lora, Tie};

use super::fetch::resolve;
use super::output::{Mouth, condense, shape, size, skeleton};
use super::{Answer, inspect};
use crate::weights::anatomy::grouped;
use crate::weights::convert::{Request, convert};
use crate::weights::open::{Choice, Weights};
use crate::weights::report::Report;

const EXAMPLES: &str = "\
Examples:
  An openpi checkpoint into one exact safetensors file:
    pi0 convert --checkpoint-dir params --output model.safetensors

  For LeRobot's from_pretrained, in bf16:
    pi0 convert --checkpoint-dir ckpt/29999 --to lerobot --precision bfloat16 --output pi0_lerobot

  For openpi's PyTorch models, LoRA merged exactly:
    pi0 convert --checkpoint-dir ckpt/29999 --to openpi-torch --lora merge --output pi0_torch

  Back to JAX, for openpi's own server:
    pi0 convert --checkpoint-dir model.safetensors --to jax --output ckpt

  What would happen, without writing:
    pi0 convert --checkpoint-dir params --to openpi-torch --dry-run

openpi's and giga-models' own spellings are accepted: --checkpoint_dir, --output_path, --config_name,
--inspect_only, --pi05-enabled, --tokenizer-id. What they say is held against the tensors.";

/// Convert a checkpoint.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 convert --help")]
pub struct Args {
    /// Checkpoint: an Orbax folder (params, a step, an experiment), safetensors, an npz, or gs:// in openpi's cache
    #[arg(long, alias = "checkpoint_dir", value_name = "PATH")]
    pub checkpoint_dir: PathBuf,

    /// File (*.safetensors) or folder to make
    #[arg(long, aliases = ["output-path", "output_path"], value_name = "PATH")]
    pub output: Option<PathBuf>,

    /// Naming scheme to write: burn, jax, openpi-torch, lerobot, giga, big_vision, as-is
    #[arg(long, default_value = "burn", value_name = "SCHEME")]
    pub to: String,

    /// Naming scheme of the checkpoint; detected from its names
    #[arg(long, value_name = "SCHEME")]
    pub from: Option<String>,

    /// Element type to write; every float keeps its own if left out
    #[arg(long, visible_alias = "dtype", value_enum)]
    pub precision: Option<Precision>,

    /// Low-rank pairs: keep them, merge them into their weights, or drop them. Kept where the scheme has names for
    /// them, else merged; `keep` into a PyTorch scheme writes a PEFT adapter
    #[arg(long, value_enum)]
    pub lora: Option<LoraChoice>,

    /// openpi's LoRA alpha, where it is not the rank
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true)]
    pub lora_alpha: Option<f64>,

    /// Which weights of a training step
    #[arg(long, value_enum, default_value = "ema")]
    pub weights: WeightsChoice,

    /// Item of a step folder: params, train_state, ...
    #[arg(long)]
    pub item: Option<String>,

    /// Only tensors whose source name matches
    #[arg(long, value_name = "REGEX")]
    pub filter: Option<regex::Regex>,

    /// Cut safetensors into files of at most this size (5GB, 500MB), with an index
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_shard_size: Option<u64>,

    /// Names of the tied embedding: as the target's own writer, the tensor's own, or both
    #[arg(long, value_enum)]
    pub tied: Option<TieChoice>,

    /// The unread gemma_expert.lm_head: zeros where a strict loader wants it, or omitted
    #[arg(long, value_enum)]
    pub unused_head: Option<UnusedHead>,

    /// Attention heads of the language model, where no shape tells
    #[arg(long, value_name = "N")]
    pub heads: Option<u64>,

    /// Key and value heads of the language model, where no shape tells
    #[arg(long, value_name = "N")]
    pub kv_heads: Option<u64>,

    /// Attention heads of the vision tower, where no shape tells
    #[arg(long, value_name = "N")]
    pub vision_heads: Option<u64>,

    /// openpi's config name: held against the tensors; gives the action horizon
    #[arg(long, alias = "config_name", value_name = "NAME")]
    pub config_name: Option<String>,

    /// Say that it is a pi0.5: held against the tensors
    #[arg(long, action = ArgAction::SetTrue, overrides_with = "no_pi05_enabled")]
    pub pi05_enabled: bool,

    /// Say that it is not a pi0.5: held against the tensors
    #[arg(long, action = ArgAction::SetTrue)]
    pub no_pi05_enabled: bool,

    /// The tokenizer (giga-models asks for it): a PaliGemma's is held against the embedding's rows
    #[arg(long, alias = "tokenizer_id", value_name = "ID")]
    pub tokenizer_id: Option<String>,

    /// Steps of an action chunk, for the config that is written: no tensor tells
    #[arg(long, value_name = "STEPS")]
    pub action_horizon: Option<u64>,

    /// Whose norm stats go where there is room for one
    #[arg(long, value_name = "ID")]
    pub asset_id: Option<String>,

    /// End JAX paths in `value`, as openpi's training saves them
    #[arg(long)]
    pub value_suffix: bool,

    /// List what is in the checkpoint, and stop (as `pi0 inspect`)
    #[arg(long, alias = "inspect_only")]
    pub inspect_only: bool,

    /// Plan and report, write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Replace what stands under the output's name
    #[arg(long)]
    pub overwrite: bool,

    /// Threads; one more than there are processors (at most eight) if left out
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Fetch a gs:// path that is not in openpi's cache yet (needs the cargo feature `gcs`)
    #[arg(long)]
    pub download: bool,

    /// Report as JSON, with the SHA-256 of every tensor written
    #[arg(long)]
    pub json: bool,
}

/// Element types to write.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(missing_docs)]
pub enum Precision {
    Float32,
    Bfloat16,
    Float16,
}

/// What becomes of low-rank pairs.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LoraChoice {
    /// Add them to their weights, exactly
    Merge,
    /// Keep them
    Keep,
    /// Leave them out
    Drop,
}

/// Which weights.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WeightsChoice {
    /// What openpi serves: the moving average where there is one
    Ema,
    /// What training goes on with
    Raw,
    /// Adam's first moment
    Mu,
    /// Adam's second moment
    Nu,
    /// SGD's momentum
    Trace,
}

/// Names of a tied tensor.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TieChoice {
    /// lm_head
    Alias,
    /// embed_tokens
    Own,
    /// Both
    Both,
}

/// The filler.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum UnusedHead {
    /// Zeros
    Zeros,
    /// Left out
    Omit,
}

/// Runs it.
///
/// # Errors
/// See [`convert`].
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let checkpoint = resolve(&args.checkpoint_dir, args.download, mouth)?;
    let choice = Choice {
        item: args.item.clone(),
        weights: match args.weights {
            WeightsChoice::Ema => Weights::Ema,
            WeightsChoice::Raw => Weights::Raw,
            WeightsChoice::Mu => Weights::Mu,
            WeightsChoice::Nu => Weights::Nu,
            WeightsChoice::Trace => Weights::Trace,
        },
        from: args.from.clone(),
    };
    if args.inspect_only {
        return inspect::one(&checkpoint, &choice, mouth);
    }
    if args.output.is_none() && !args.dry_run {
        bail!("--output is missing: name the file (*.safetensors) or folder to make, or add --dry-run");
    }
    let mut heads = BTreeMap::new();
    for (zone, letter, count) in
        [("llm", 'N', args.heads), ("llm", 'K', args.kv_heads), ("img", 'N', args.vision_heads)]
    {
        if let Some(count) = count {
            if count == 0 {
                bail!("a tower has at least one head");
            }
            heads.insert((zone.to_owned(), letter), count);
        }
    }
    let request = Request {
        checkpoint,
        choice,
        output: args.output,
        to: args.to,
        cast: args.precision.map(|p| match p {
            Precision::Float32 => Dtype::F32,
            Precision::Bfloat16 => Dtype::Bf16,
            Precision::Float16 => Dtype::F16,
        }),
        lora: args.lora.map(|l| match l {
            LoraChoice::Merge => Lora::Merge,
            LoraChoice::Keep => Lora::Keep,
            LoraChoice::Drop => Lora::Drop,
        }),
        lora_alpha: args.lora_alpha,
        tie: args.tied.map(|t| match t {
            TieChoice::Alias => Tie::Alias,
            TieChoice::Own => Tie::Own,
            TieChoice::Both => Tie::Both,
        }),
        zeros: args.unused_head.map(|u| matches!(u, UnusedHead::Zeros)),
        heads,
        filter: args.filter,
        max_shard_bytes: args.max_shard_size,
        dry_run: args.dry_run,
        overwrite: args.overwrite,
        threads: args.threads.unwrap_or_else(default_threads).max(1),
        hashes: args.json,
        config_name: args.config_name,
        tokenizer_id: args.tokenizer_id,
        pi05: match (args.pi05_enabled, args.no_pi05_enabled) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        },
        action_horizon: args.action_horizon,
        asset_id: args.asset_id,
        value: args.value_suffix,
        // Not the clock: the same input gives the same bytes.
        time_ns: 0,
    };
    let report = convert(&request, mouth, &AtomicBool::new(false))?;
    mouth.say(&report, || text(&report))?;
    Ok(Answer::Yes)
}

/// One more than there are processors (at most eight of them): while one thread writes, another decodes.
pub(super) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(8) + 1
}

fn parse_size(text: &str) -> Result<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" | "K" => 1e3,
        "MB" | "M" => 1e6,
        "GB" | "G" => 1e9,
        "KIB" => 1024.0,
        "MIB" => 1024.0 * 1024.0,
        "GIB" => 1024.0 * 1024.0 * 1024.0,
        other => bail!("{other:?} is no unit; use KB, MB, GB, KiB, MiB or GiB"),
    };
    let number: f64 = number.parse().with_context(|| format!("{text:?} is no size"))?;
    let bytes = (number * factor) as u64;
    if bytes == 0 {
        bail!("{text:?}: a file needs at least one byte");
    }
    Ok(bytes)
}

/// The closing report, for people.
fn text(report: &Report) -> String {
    let mut t = String::new();
    let (s, target, totals) = (&report.source, &report.target, &report.totals);
    let _ = writeln!(t, "read     {} · {} · scheme {}", s.path, s.format, s.scheme);
    let _ = writeln!(t, "         {}", s.taken);
    let _ = writeln!(t, "model    {}", report.model);
    let _ = writeln!(t);
    lines(&mut t, report);
    let _ = writeln!(t);
    let dropped = if totals.dropped > 0 { format!(", {} dropped", totals.dropped) } else { String::new() };
    let merged = if totals.merged > 0 { format!(", {} merged", totals.merged) } else { String::new() };
    let _ = writeln!(t, "sources  {} tensors: {} moved{merged}{dropped}", report.tensors.len(), totals.moved);
    let exact = match (totals.changed, totals.rounded) {
        (0, 0) => "every value exact".to_owned(),
        (changed, 0) => format!("{} of {} values changed by the cast", grouped(changed), grouped(totals.elements)),
        (0, rounded) => format!("{} merged values rounded once", grouped(rounded)),
        (changed, rounded) => {
            format!("{} values changed by the cast, {} merged values rounded once", grouped(changed), grouped(rounded))
        }
    };
    for warning in &report.warnings {
        let _ = writeln!(t, "warning  {warning}");
    }
    for note in &report.notes {
        let _ = writeln!(t, "note     {note}");
    }
    let verb = if target.written { "wrote   " } else { "would write" };
    let place = if target.path.is_empty() { String::new() } else { format!("{} · ", target.path) };
    let types = condense_types(report);
    let _ = writeln!(
        t,
        "{verb} {place}scheme {} · {} tensors · {types} · {}",
        target.scheme,
        report.outputs.len(),
        size(target.bytes)
    );
    if target.written {
        let rate = target.bytes as f64 / totals.seconds.max(1e-9);
        let _ = writeln!(t, "         {exact} · {:.1} s · {}/s", totals.seconds, size(rate as u64));
        for file in target.files.iter().filter(|f| **f != target.path) {
            let _ = writeln!(t, "         {file}");
        }
    }
    t
}

/// A line for each source tensor; those that differ only in numbers share one.
fn lines(t: &mut String, report: &Report) {
    let mut groups: Vec<((String, String, String), Vec<usize>)> = vec![];
    for (i, line) in report.tensors.iter().enumerate() {
        let (skeleton, _) = skeleton(&line.name);
        let fate = match &line.fate {
            Fate::Moved(to) | Fate::Merged(to) => condense(to.iter().map(String::as_str))
                .iter()
                .map(|(name, _)| super::output::skeleton(name).0)
                .collect::<Vec<_>>()
                .join(" "),
            Fate::Dropped(reason) => reason.clone(),
        };
        let key = (skeleton, format!("{} {}", line.dtype, shape(&line.shape)), fate);
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, members)) => members.push(i),
            None => groups.push((key, vec![i])),
        }
    }
    let named = |members: &[usize]| {
        condense(members.iter().map(|i| report.tensors[*i].name.as_str())).into_iter().map(|(n, _)| n).next()
    };
    for ((_, described, _), members) in &groups {
        let many = if members.len() > 1 { format!(" ×{}", members.len()) } else { String::new() };
        let _ = write!(t, "  {}  {described}{many}", named(members).unwrap_or_default());
        let to = |f: &Fate| match f {
            Fate::Moved(to) | Fate::Merged(to) => to.clone(),
            Fate::Dropped(_) => vec![],
        };
        let all: Vec<String> = members.iter().flat_map(|i| to(&report.tensors[*i].fate)).collect();
        let condensed = condense(all.iter().map(String::as_str));
        let spelled: Vec<String> =
            condensed.iter().map(|(name, n)| if *n > 1 { format!("{name} ×{n}") } else { name.clone() }).collect();
        let _ = match members.first().map(|i| &report.tensors[*i].fate) {
            Some(Fate::Moved(_)) => writeln!(t, "\n    → {}", spelled.join(", ")),
            Some(Fate::Merged(_)) => writeln!(t, "\n    + into {}", spelled.join(", ")),
            Some(Fate::Dropped(reason)) => writeln!(t, "\n    × {reason}"),
            None => writeln!(t),
        };
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for out in &report.left_out {
        *reasons.entry(&out.reason).or_default() += 1;
    }
    for (reason, count) in reasons {
        let _ = writeln!(t, "  {count} arrays left out: {reason}");
    }
}

fn condense_types(report: &Report) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for output in &report.outputs {
        *counts.entry(&output.dtype).or_default() += 1;
    }
    match counts.len() {
        1 => counts.keys().next().map(|k| (*k).to_owned()).unwrap_or_default(),
        _ => counts.iter().map(|(k, n)| format!("{n} {k}")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_size("5GB").unwrap(), 5_000_000_000);
        assert_eq!(parse_size("1.5MiB").unwrap(), 1_572_864);
        assert!(parse_size("five").is_err());
        assert!(parse_size("5 parsecs").is_err());
        assert!(parse_size("0").is_err());
    }
}
