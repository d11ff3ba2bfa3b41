//! What of a run is kept on the disk: steps, and with each what it needs to be sampled from.
//!
//! Invariant: a step's folder is whole in itself: weights, statistics, tokenizer, and the run's own words.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use orbax::Dtype;
use remap::Tensor;
use serde::{Deserialize, Serialize};

use super::CheckpointFormat;
use super::plan::Plan;
use crate::cli::convert::default_threads;
use crate::cli::output::Mouth;
use crate::cli::tokenizing::FAST_FOLDER;
use crate::policy::tokenizer;
use crate::train::snapshot::{Saving, kind};
use crate::train::state::State;
use crate::weights::state::{self, Format, Outline};

/// Larger files are not carried along.
const MAX_BESIDE_BYTES: u64 = 64 << 20;

/// What a run says of itself in every step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Own {
    /// The preset with all that was said over it, as a preset of its own.
    pub(super) config: String,
    /// What chance and data follow from, besides the step.
    pub(super) seed: u64,
    /// The same.
    pub(super) batch_size: u64,
    /// The same.
    pub(super) datasets: Vec<Drawn>,
    /// Precision mode.
    pub(super) precision: String,
    /// Seconds of training so far.
    pub(super) seconds: f64,
}

/// A dataset that is drawn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Drawn {
    /// Its folder's name.
    pub(super) name: String,
    /// Examples in it.
    pub(super) frames: usize,
    /// Its share.
    pub(super) share: f64,
}

impl Own {
    /// Of a plan.
    pub(super) fn of(plan: &Plan, seconds: f64) -> Result<Self> {
        let drawn = |d: &crate::cli::training_data::ToldDataset| Drawn {
            name: Path::new(&d.name).file_name().map_or(d.name.clone(), |n| n.to_string_lossy().into_owned()),
            frames: d.frames,
            share: d.share,
        };
        Ok(Own {
            config: plan.preset.echo()?,
            seed: plan.preset.training.seed,
            batch_size: plan.preset.training.batch_size,
            datasets: plan.data.told.datasets.iter().map(drawn).collect(),
            precision: plan.precision().to_owned(),
            seconds,
        })
    }

    /// Does another run of these settings go on where this one stopped?
    pub(super) fn agrees(&self, now: &Own) -> Result<()> {
        let differ = |what: &str, before: String, now: String| {
            bail!(
                "--resume: {what}: the run had {before}, and now it is {now}: what it learned from could not go on. Say it \
                 as before, or begin another run from its params"
            )
        };
        if self.seed != now.seed {
            return differ("seed", self.seed.to_string(), now.seed.to_string());
        }
        if self.batch_size != now.batch_size {
            return differ("batch_size", self.batch_size.to_string(), now.batch_size.to_string());
        }
        if self.datasets != now.datasets {
            return differ("datasets", format!("{:?}", self.datasets), format!("{:?}", now.datasets));
        }
        if self.precision != now.precision {
            return differ("dtype", self.precision.clone(), now.precision.clone());
        }
        Ok(())
    }
}

/// Writes steps.
pub(super) struct Keeping {
    outline: Outline,
    format: CheckpointFormat,
}

impl Keeping {
    /// Reads what goes into every step.
    pub(super) fn new(plan: &Plan, state: &State) -> Result<Self> {
        let dtypes = state.dtypes();
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let dtype = match dtypes.get(&name) {
                Some(burn::tensor::DType::BF16) => Dtype::Bf16,
                _ => Dtype::F32,
            };
            Tensor { name, shape: shape.into_iter().map(|n| n as u64).collect(), dtype }
        };
        let stats = plan.data.norm_stats.iter().map(|stats| (stats.asset_id.clone(), stats.text.clone()));
        let outline = Outline {
            step: 0,
            count: 0,
            tensors: state.pi().parameters().into_iter().map(tensor).collect(),
            trainable: state.trainable().clone(),
            optimizer: kind(&plan.rule.optimizer),
            ema: plan.rule.ema_decay.is_some(),
            heads: plan.begin.heads.clone(),
            preset: Some(plan.preset.model.clone()),
            run: serde_json::Value::Null,
            assets: stats.collect(),
            beside: beside(plan)?,
        };
        Ok(Keeping { outline, format: plan.format })
    }

    /// Saves the state as the step that was made last. Gives the folder.
    pub(super) fn save(&mut self, run: &Path, state: &State, own: &Own, mouth: &Mouth) -> Result<PathBuf> {
        ensure!(state.step() > 0, "no step was made yet: there is nothing to save");
        self.outline.step = state.step() - 1;
        self.outline.count = state.step();
        self.outline.run = serde_json::to_value(own)?;
        let format = match self.format {
            CheckpointFormat::Safetensors => Format::Safetensors,
            CheckpointFormat::Orbax => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Format::Orbax { time_ns: u64::try_from(now.as_nanos()).unwrap_or_default() }
            }
        };
        let saving = Saving::new(state);
        // A save that was begun is finished, also after a signal.
        let never = AtomicBool::new(false);
        state::save(run, &self.outline, &saving, format, default_threads(), mouth, &never)
    }
}

/// Tokenizer and codec, so that a step can be sampled from on its own.
fn beside(plan: &Plan) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = vec![];
    let mut add = |to: PathBuf, from: &Path| -> Result<()> {
        let bytes = std::fs::metadata(from).with_context(|| from.display().to_string())?.len();
        if bytes <= MAX_BESIDE_BYTES {
            files.push((to, std::fs::read(from).with_context(|| from.display().to_string())?));
        }
        Ok(())
    };
    if let Some(path) = plan.data.told.tokenizer.as_deref().map(Path::new) {
        // Under a name that is looked for beside a checkpoint.
        let [model, _, document] = tokenizer::NAMES;
        let json = path.extension().is_some_and(|e| e == "json");
        add(PathBuf::from(if json { document } else { model }), path)?;
    }
    if let Some(folder) = plan.data.told.fast_tokenizer.as_deref().map(Path::new) {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
        entries.sort();
        for path in entries.iter().filter(|path| path.is_file()) {
            if let Some(name) = path.file_name() {
                add(Path::new(FAST_FOLDER).join(name), path)?;
            }
        }
    }
    Ok(files)
}
