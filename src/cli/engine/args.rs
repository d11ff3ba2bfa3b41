//! What a policy with its network goes by, for every verb that runs one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cli::decoding;
use crate::cli::network::Weights;
use crate::cli::policy::{self, Malformed, ReadingChoice};
use crate::device::Precision;
use crate::model::Settings;
use crate::model::settings::Head;

/// Which checkpoint, behind which policy, run how.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "engine")]
#[command(next_help_heading = "The policy")]
pub struct Args {
    /// Preset under openpi's name, or a file of your own (.toml)
    #[arg(long, alias = "policy.config", visible_alias = "config-name", value_name = "NAME|FILE")]
    pub config: Option<String>,

    /// Checkpoint: an Orbax folder (params, a step, an experiment), safetensors, or gs:// in openpi's cache
    #[arg(long, alias = "policy.dir", visible_alias = "checkpoint", alias = "checkpoint_dir", value_name = "PATH")]
    pub checkpoint_dir: Option<PathBuf>,

    /// Naming scheme of the checkpoint; detected from its names
    #[arg(long, value_name = "SCHEME")]
    pub from: Option<String>,

    /// What the robot is told where an observation says nothing, in place of the preset's words
    #[arg(long, alias = "default_prompt", value_name = "TEXT")]
    pub default_prompt: Option<String>,

    /// Norm stats: a norm_stats.json, or a folder of assets; the checkpoint's own if left out
    #[arg(long, value_name = "PATH")]
    pub norm_stats: Option<PathBuf>,

    /// Whose statistics of the assets; the preset's asset id if left out
    #[arg(long, value_name = "ID")]
    pub asset_id: Option<String>,

    /// PaliGemma's tokenizer (.model or tokenizer.json); looked for beside the checkpoint and in openpi's cache
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,

    /// pi0-FAST: folder of the FAST codec; looked for beside the checkpoint and in Hugging Face's cache
    #[arg(long, value_name = "DIR")]
    pub fast_tokenizer: Option<PathBuf>,

    /// pi0-FAST: what becomes of an answer that is no action chunk (default: fail)
    #[arg(long, value_enum)]
    pub on_malformed: Option<Malformed>,

    /// pi0-FAST: how an answer is read (default: exact)
    #[arg(long, value_enum)]
    pub reading: Option<ReadingChoice>,

    /// Where chance begins: the first request without noise or seed of its own takes it, the next one more (default: 0)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,

    /// Euler steps of pi0 and pi0.5 (default: 10)
    #[arg(long, alias = "num_steps", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub num_steps: Option<u16>,

    /// alpha / rank of the attention's LoRA, where it is not 1
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub lora_scale: f64,

    /// Where to compute: cpu, cuda:0
    #[arg(long, default_value = "cpu")]
    pub device: String,

    /// Precision mode: f32, train-bf16 (parameters as stored), serve-bf16 (all bf16, as openpi serves)
    #[arg(long, default_value = "f32", value_name = "MODE")]
    pub dtype: Precision,

    /// Threads that read and compute; left out, as many as there are processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Fetch a gs:// path that is not in openpi's cache yet (needs the cargo feature `gcs`)
    #[arg(long)]
    pub download: bool,

    /// How tokens are decoded.
    #[command(flatten)]
    pub decoding: decoding::Args,
}

impl Default for Args {
    fn default() -> Self {
        Args {
            config: None,
            checkpoint_dir: None,
            from: None,
            default_prompt: None,
            norm_stats: None,
            asset_id: None,
            tokenizer: None,
            fast_tokenizer: None,
            on_malformed: None,
            reading: None,
            seed: None,
            num_steps: None,
            lora_scale: 1.0,
            device: "cpu".to_owned(),
            dtype: Precision::F32,
            threads: None,
            download: false,
            decoding: decoding::Args::default(),
        }
    }
}

impl Args {
    pub(super) fn checkpoint(&self) -> Result<&Path> {
        self.checkpoint_dir.as_deref().context("--checkpoint-dir: which checkpoint?")
    }

    pub(super) fn policy(&self) -> policy::Args {
        policy::Args {
            config: self.config.clone(),
            prompt: self.default_prompt.clone(),
            norm_stats: self.norm_stats.clone(),
            asset_id: self.asset_id.clone(),
            tokenizer: self.tokenizer.clone(),
            fast_tokenizer: self.fast_tokenizer.clone(),
            on_malformed: self.on_malformed,
            reading: self.reading,
        }
    }

    pub(super) fn weights(&self) -> Weights {
        Weights {
            from: self.from.clone(),
            precision: self.dtype,
            lora_scale: self.lora_scale,
            threads: self.threads.map(usize::from),
        }
    }

    /// Flags of the other kind of model.
    pub(super) fn refuse_strangers(&self, settings: &Settings) -> Result<()> {
        let tokens = self.decoding.told();
        let flows = [("--num-steps", self.num_steps.is_some())];
        let flow = settings.head != Head::Tokens;
        let (strange, of): (&[(&str, bool)], _) = if flow { (&tokens, "pi0-FAST") } else { (&flows, "pi0 and pi0.5") };
        let told: Vec<&str> = strange.iter().filter(|(_, told)| *told).map(|(name, _)| *name).collect();
        let family = settings.family();
        ensure!(told.is_empty(), "{}: of {of} alone, and these tensors are a {family}; leave it out", told.join(", "));
        Ok(())
    }
}
