//! `pi0 finetune`: a preset, a base and a dataset → a run's folder, which `sample`, `verify`, `convert --to jax` and another
//! `finetune` take as it is.
//!
//! - `begin`: which weights it begins with, and what is trained of them
//! - `plan`: all that is decided before the first step, and told by `--dry-run`
//! - `room`: how much memory it takes, and how much there is
//! - `run`: the steps
//! - `keeping`: what of them is kept on the disk
//!
//! Source: openpi 15a9616, scripts/train.py. Invariant: all that can be refused is refused before the first step.

mod begin;
mod keeping;
mod plan;
mod room;
mod run;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use burn::tensor::Device;
use clap::ValueEnum;

use super::Answer;
use super::output::Mouth;
use super::training_data;
use crate::config::train::{self, Train, overrides};
use crate::device::device;
use plan::Plan;

const EXAMPLES: &str = "\
Examples:
  Low-rank pairs on a base that has none, as openpi's preset says:
    pi0 finetune --config pi0_libero_low_mem_finetune --checkpoint-dir pi0_base/params --dataset ~/data/libero --exp-name try1

  What would be trained, and does it fit into memory?
    pi0 finetune --config pi05_libero --checkpoint-dir pi05_base --dataset ~/data/libero --exp-name try1 --dry-run

  Any field of openpi's TrainConfig under its own name:
    pi0 finetune --config pi0_libero --checkpoint-dir base --dataset data --exp-name b8 \\
      --override batch_size=8 --override lr_schedule.peak_lr=1e-5 --override ema_decay=None

  Go on where a run was stopped or killed, to the same bytes as if it had not been:
    pi0 finetune --config pi0_libero --checkpoint-dir base --dataset data --exp-name b8 --override batch_size=8 --resume

  On two GPUs, with checkpoints that openpi resumes and serves:
    pi0 finetune --config pi0_libero --checkpoint-dir base --dataset data --exp-name two --device cuda:0,cuda:1 \\
      --checkpoint-format orbax

  Several datasets, drawn from by weight:
    pi0 finetune --config pi0_libero --checkpoint-dir base --dataset a=0.7 --dataset b=0.3 --exp-name mix

The run is in CHECKPOINT_BASE_DIR/CONFIG/EXP_NAME: a folder for each step that is kept, metrics.jsonl, events for TensorBoard,
report.html and config.toml, a preset from which the same run can be started again.";

/// In which form checkpoints are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CheckpointFormat {
    /// Ours: one tensor a parameter, read at once by every verb
    #[default]
    Safetensors,
    /// openpi's own: Orbax items params and train_state
    Orbax,
}

/// Fine-tune a model.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 finetune --help")]
pub struct Args {
    /// Preset: one of openpi's names, or a file of your own (.toml)
    #[arg(long, visible_alias = "config-name", value_name = "NAME|FILE")]
    pub config: String,

    /// Weights to begin with: any checkpoint that `pi0 inspect` reads, PaliGemma's npz too; the preset's own if left out
    #[arg(long, visible_alias = "checkpoint", alias = "checkpoint_dir", value_name = "PATH")]
    pub checkpoint_dir: Option<PathBuf>,

    /// The run's name
    #[arg(long, alias = "exp_name", value_name = "NAME")]
    pub exp_name: Option<String>,

    /// A field of openpi's TrainConfig, or of the table finetune, by its own name; again for each
    #[arg(long = "override", value_name = "KEY.PATH=VALUE")]
    pub overrides: Vec<String>,

    /// Steps; the preset's num_train_steps
    #[arg(long, alias = "num_train_steps", value_name = "N")]
    pub num_train_steps: Option<u64>,

    /// Examples of a step; the preset's batch_size
    #[arg(long, alias = "batch_size", value_name = "N")]
    pub batch_size: Option<u64>,

    /// Where chance begins; the preset's seed
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Where it computes: cpu, cuda:0; several, joined by commas, each take a part of every batch
    #[arg(long, default_value = "cpu", value_delimiter = ',', value_name = "DEVICE")]
    pub device: Vec<String>,

    /// Go on from the newest step of the run that is there
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,

    /// Replace the run that is there
    #[arg(long)]
    pub overwrite: bool,

    /// In which form checkpoints are written
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub checkpoint_format: CheckpointFormat,

    /// Keep all activations of the forward pass: up to a quarter less work, and the memory of all blocks at once
    #[arg(long)]
    pub no_recompute: bool,

    /// Do nothing but tell what would be done
    #[arg(long)]
    pub dry_run: bool,

    /// Fetch gs:// addresses into openpi's cache where they are not in it
    #[arg(long)]
    pub download: bool,

    /// Report as JSON
    #[arg(long)]
    pub json: bool,

    // Last, for it begins a heading of its own.
    /// What it learns from.
    #[command(flatten)]
    pub data: training_data::Args,
}

impl Args {
    /// The preset with all that was said over it.
    fn preset(&self) -> Result<(Train, Vec<String>)> {
        let mut pairs: Vec<(String, String)> =
            self.overrides.iter().map(|text| overrides::pair(text)).collect::<Result<_>>()?;
        let numbers = [("num_train_steps", self.num_train_steps), ("batch_size", self.batch_size), ("seed", self.seed)];
        for (key, value) in numbers {
            pairs.extend(value.map(|value| (key.to_owned(), value.to_string())));
        }
        pairs.extend(self.exp_name.clone().map(|name| ("exp_name".to_owned(), name)));
        for (key, said) in [("resume", self.resume), ("overwrite", self.overwrite)] {
            if said {
                let other = if key == "resume" { "overwrite" } else { "resume" };
                pairs.extend([(key.to_owned(), "true".to_owned()), (other.to_owned(), "false".to_owned())]);
            }
        }
        train::find_with(&self.config, &pairs)
    }

    fn devices(&self) -> Result<Vec<Device>> {
        ensure!(!self.device.is_empty(), "--device: name one");
        self.device.iter().map(|name| device(name)).collect()
    }
}

/// Runs it.
///
/// # Errors
/// Whatever keeps it from beginning; a loss that is no number; what data and disk say on the way.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let plan = Plan::make(&args, mouth)?;
    if args.dry_run {
        mouth.say(&plan.told, || plan.told.to_string())?;
        return Ok(if plan.told.fits { Answer::Yes } else { Answer::No });
    }
    let done = run::run(plan, mouth)?;
    mouth.say(&done, || done.to_string())?;
    Ok(Answer::Yes)
}
