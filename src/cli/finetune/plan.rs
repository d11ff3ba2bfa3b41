//! All that is decided before the first step.
//!
//! Invariant: a plan touches nothing: what it says is what the run does.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use serde::Serialize;

use super::begin::{Begin, Weights};
use super::{Args, CheckpointFormat, room};
use crate::cli::output::{Mouth, condense, grouped, size};
use crate::cli::training_data::{self, Network, TrainingData};
use crate::config::train::{self, Train};
use crate::device::Precision;
use crate::train::batch::Making;
use crate::train::memory::Memory;
use crate::train::settings::Optimizer;
use crate::train::state::Rule;
use crate::weights::state::{Begin as Folder, Keep};

/// A run that can begin.
pub(super) struct Plan {
    /// The preset, with all that was said over it.
    pub(super) preset: Train,
    /// The weights.
    pub(super) begin: Begin,
    /// How they are read.
    pub(super) weights: Weights,
    /// Of what dtype those are that are not trained; `None`: as they are read.
    pub(super) frozen: Option<DType>,
    /// Names of what is trained.
    pub(super) trainable: BTreeSet<String>,
    /// What it learns from.
    pub(super) data: TrainingData,
    /// How batches are made.
    pub(super) making: Making,
    /// How steps are made.
    pub(super) rule: Rule,
    /// Where it computes.
    pub(super) devices: Vec<Device>,
    /// The run's folder.
    pub(super) folder: PathBuf,
    /// What becomes of a folder that is there.
    pub(super) start: Folder,
    /// In which form checkpoints are written.
    pub(super) format: CheckpointFormat,
    /// Which steps stay.
    pub(super) keep: Keep,
    /// The same, for people.
    pub(super) told: Told,
}

/// A plan, told.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Told {
    config: String,
    exp_name: String,
    folder: String,
    model: String,
    weights: String,
    precision: &'static str,
    devices: Vec<String>,
    trainable: Parameters,
    frozen: Parameters,
    steps: u64,
    batch_size: u64,
    gradient_accumulation: u64,
    recompute: bool,
    ema_decay: Option<f64>,
    save_interval: u64,
    keep_period: Option<u64>,
    max_to_keep: u64,
    data: training_data::Told,
    /// What it takes on the first device.
    memory: Memory,
    /// Bytes that there are; `None` where nothing tells.
    available: Option<u64>,
    /// Does it fit into memory?
    pub(super) fits: bool,
    notices: Vec<String>,
}

impl Told {
    /// What a user may not expect.
    pub(super) fn notices(&self) -> &[String] {
        &self.notices
    }
}

/// Some parameters.
#[derive(Debug, Clone, Serialize)]
struct Parameters {
    values: u64,
    tensors: usize,
    names: Vec<String>,
}

impl Parameters {
    fn of(all: &[(String, Vec<usize>)], belongs: impl Fn(&str) -> bool) -> Self {
        let own: Vec<&(String, Vec<usize>)> = all.iter().filter(|(name, _)| belongs(name)).collect();
        let values = own.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        let names = condense(own.iter().map(|(name, _)| name.as_str())).into_iter().map(|(name, _)| name).collect();
        Parameters { values, tensors: own.len(), names }
    }
}

impl Plan {
    /// Decides everything.
    pub(super) fn make(args: &Args, mouth: &Mouth) -> Result<Self> {
        let (preset, mut notices) = args.preset()?;
        let training = &preset.training;
        let exp_name = training.exp_name.clone().context("--exp-name: it is missing; what is the run called?")?;
        ensure!(
            !exp_name.is_empty() && Path::new(&exp_name).components().count() == 1 && exp_name != "..",
            "--exp-name {exp_name}: expected a name that can be a folder's"
        );
        let devices = args.devices()?;
        let begin = Begin::find(args.checkpoint_dir.as_deref(), &preset, args.download, mouth)?;
        notices.extend(begin.notices.iter().cloned());
        let parameters = begin.parameters(&devices[0]);
        let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        let frozen = training.freeze.frozen(&names)?;
        let trainable: BTreeSet<String> =
            names.iter().filter(|name| !frozen.contains(*name)).map(|name| (*name).to_owned()).collect();

        let image = begin.settings.vision.image();
        let network = Network { image, vocabulary: begin.settings.vocabulary, checkpoint: begin.checkpoint.as_deref() };
        let data = training_data::open(&args.data, &preset, network, training.seed, mouth)?;
        let own = &preset.finetune;
        let (accumulation, parts) = (own.gradient_accumulation, own.gradient_accumulation * devices.len() as u64);
        ensure!(
            training.batch_size.is_multiple_of(parts),
            "batch_size: {} examples cannot be cut into {parts} equal parts ({} devices, gradient_accumulation {accumulation})",
            training.batch_size,
            devices.len()
        );
        let precision = match own.dtype {
            train::Precision::Float32 => Precision::F32,
            train::Precision::Bfloat16 => Precision::TrainBf16,
        };
        let robot_dims = preset.data.as_ref().map(|data| data.robot.actions.width);
        let making = Making {
            slots: data.slots.clone(),
            image,
            action_dim: begin.settings.action_dim(),
            augment: own.augment,
            time: (own.time.alpha, own.time.beta),
            mask_padded_steps: own.loss.mask_padded_steps,
            mask_dims_from: robot_dims.filter(|_| own.loss.mask_padded_dims),
            seed: training.seed,
        };
        let rule = Rule { optimizer: training.optimizer, ema_decay: training.ema_decay, recompute: !args.no_recompute };
        let folder = Path::new(&training.checkpoint_base_dir).join(&preset.name).join(&exp_name);
        let start = match (training.resume, training.overwrite) {
            (true, _) => Folder::Resume,
            (_, true) => Folder::Overwrite,
            _ => Folder::Fresh,
        };
        let max_to_keep = usize::try_from(own.max_to_keep).unwrap_or(usize::MAX);
        let keep = Keep { max_to_keep: Some(max_to_keep), keep_period: training.keep_period };
        notices.extend(data.told.notices.iter().cloned());
        let memory = room::sizes(
            &begin.settings,
            &parameters,
            &frozen,
            &room::Batch {
                rows: training.batch_size / parts,
                cameras: data.slots.len() as u64,
                prompt: preset.model.max_token_len,
                horizon: preset.model.action_horizon,
                bf16: precision == Precision::TrainBf16,
                accumulated: accumulation > 1,
                moments: if matches!(training.optimizer, Optimizer::Adamw { .. }) { 2 } else { 1 },
                ema: training.ema_decay.is_some(),
            },
        );
        let memory = memory.plan();
        if args.no_recompute {
            notices.push(
                "--no-recompute: the memory below is without it; all activations take several times as much".into(),
            );
        }
        let available = room::available(&args.device[0]);
        let fits = available.map_or(Ok(()), |available| memory.fits(available));
        if args.dry_run {
            notices.extend(fits.as_ref().err().map(ToString::to_string));
        } else {
            fits.as_ref().map_err(|too_large| anyhow::anyhow!("{}: {too_large}", args.device[0]))?;
        }
        let told = Told {
            config: preset.name.clone(),
            exp_name,
            folder: folder.display().to_string(),
            model: model(&begin),
            weights: begin.whence.clone(),
            precision: precision.name(),
            devices: args.device.clone(),
            trainable: Parameters::of(&parameters, |name| trainable.contains(name)),
            frozen: Parameters::of(&parameters, |name| !trainable.contains(name)),
            steps: training.num_train_steps,
            batch_size: training.batch_size,
            gradient_accumulation: accumulation,
            recompute: rule.recompute,
            ema_decay: training.ema_decay,
            save_interval: training.save_interval,
            keep_period: training.keep_period,
            max_to_keep: own.max_to_keep,
            data: data.told.clone(),
            available,
            fits: fits.is_ok(),
            memory,
            notices,
        };
        let weights = Weights { parameters: precision.parameters(), activations: precision.activations() };
        let frozen = (precision == Precision::TrainBf16).then_some(DType::BF16);
        let format = args.checkpoint_format;
        Ok(Plan {
            preset,
            begin,
            weights,
            frozen,
            trainable,
            data,
            making,
            rule,
            devices,
            folder,
            start,
            format,
            keep,
            told,
        })
    }

    /// Its precision mode.
    pub(super) fn precision(&self) -> &'static str {
        self.told.precision
    }

    /// For the journal's head.
    pub(super) fn header(&self) -> crate::train::journal::Header {
        let told = &self.told;
        let mut settings = vec![
            ("weights".to_owned(), told.weights.clone()),
            ("gradient_accumulation".to_owned(), told.gradient_accumulation.to_string()),
            ("ema_decay".to_owned(), told.ema_decay.map_or("none".to_owned(), |x| x.to_string())),
            ("optimizer".to_owned(), format!("{:?}", self.rule.optimizer)),
            ("lr_schedule".to_owned(), format!("{:?}", self.preset.training.lr_schedule)),
            ("seed".to_owned(), self.preset.training.seed.to_string()),
        ];
        settings.extend(told.data.norm_stats.clone().map(|path| ("norm_stats".to_owned(), path)));
        crate::train::journal::Header {
            config: told.config.clone(),
            exp: told.exp_name.clone(),
            model: told.model.clone(),
            datasets: told.data.datasets.iter().map(|d| format!("{} ({} frames)", d.name, d.frames)).collect(),
            device: told.devices.join(", "),
            precision: told.precision.to_owned(),
            trainable: told.trainable.values,
            frozen: told.frozen.values,
            steps: told.steps,
            batch_size: told.batch_size,
            settings,
        }
    }
}

/// `pi0, language 2048 wide with pairs of rank 16, action 1024 wide`.
fn model(begin: &Begin) -> String {
    let settings = &begin.settings;
    let expert = |(e, x): (usize, &crate::model::settings::Expert)| {
        let pairs = match x.lora.attention.max(x.lora.feed_forward) {
            0 => String::new(),
            rank => format!(" with pairs of rank {rank}"),
        };
        format!("{} {} wide, {} layers{pairs}", if e == 0 { "language" } else { "action" }, x.width, x.depth)
    };
    let experts: Vec<String> = settings.experts.iter().enumerate().map(expert).collect();
    format!("{}: {}", settings.family(), experts.join("; "))
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, what: String| writeln!(f, "{name:<10} {what}");
        row("run", self.folder.clone())?;
        row("model", self.model.clone())?;
        row("begins", format!("with {}", self.weights))?;
        row("computes", format!("{} on {}", self.precision, self.devices.join(", ")))?;
        for (name, p, other) in [("trained", &self.trainable, &self.frozen), ("frozen", &self.frozen, &self.trainable)]
        {
            row(name, format!("{} values in {} tensors", grouped(p.values), p.tensors))?;
            // Where all of it is one or the other there is nothing to tell apart.
            for names in p.names.iter().filter(|_| other.tensors > 0) {
                row("", format!("  {names}"))?;
            }
        }
        for d in &self.data.datasets {
            row("learns", format!("from {}: {} frames, {:.0} %", d.name, grouped(d.frames as u64), d.share * 100.0))?;
        }
        let parts = [
            ("statistics", &self.data.norm_stats),
            ("tokenizer", &self.data.tokenizer),
            ("codec", &self.data.fast_tokenizer),
        ];
        for (name, path) in parts {
            if let Some(path) = path {
                row(name, path.clone())?;
            }
        }
        let cut = match self.gradient_accumulation {
            1 => String::new(),
            n => format!(", {n} parts one after another"),
        };
        row("steps", format!("{} of {} examples{cut}", grouped(self.steps), self.batch_size))?;
        let ema = self.ema_decay.map_or("none".to_owned(), |x| format!("{x} of it stays each step"));
        row("average", ema)?;
        let period = self.keep_period.map_or(String::new(), |n| format!(", and every {n}th for ever"));
        let kept = format!("every {} steps; the newest {} stay{period}", self.save_interval, self.max_to_keep);
        row("saved", kept)?;
        for notice in &self.notices {
            row("note", notice.clone())?;
        }
        writeln!(f, "\nmemory of {}\n{}", self.devices.first().map_or("", String::as_str), self.memory)?;
        match self.available {
            Some(bytes) => {
                writeln!(f, "there are {}: it {}", size(bytes), if self.fits { "fits" } else { "does not fit" })
            }
            None => writeln!(f, "how much there is, this machine does not tell"),
        }
    }
}
