//! `configs/train/*.toml`: openpi's presets, or a user's own: which model, which data, how it is trained.
//!
//! Source: openpi 15a9616, training/config.py and training/misc; defaults are written out in the files. Invariant: a preset
//! is whole and strict: no value comes from anywhere else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::robot;
use crate::policy::chain::{Data, Delta};
use crate::policy::delta::{Ways, make_bool_mask};
use crate::policy::record::nearest;
use crate::policy::robot::Robot;
use crate::train::freeze::{Freeze, Rule};
use crate::weights::companions::{Kind, PRESETS, Preset};

mod finetune;
pub mod overrides;
mod value;

pub use finetune::{Augment, Finetune, Loss, Precision, Time};

/// Dimensions of a mask; no robot has as many.
const MAX_DIMS: u64 = 4096;

/// A preset.
#[derive(Debug, Clone, PartialEq)]
pub struct Train {
    /// Its name.
    pub name: String,
    /// The model.
    pub model: Preset,
    /// Where data and statistics are.
    pub source: Source,
    /// What is done to the data; `None` where they are made up.
    pub data: Option<Data>,
    /// How the model is trained.
    pub training: Training,
    /// What openpi has no field for.
    pub finetune: Finetune,
    /// What all this was read from, defaults filled in.
    document: toml::Table,
}

/// Where data and statistics are.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The dataset.
    pub repo_id: Option<String>,
    /// Whose statistics; without a name of their own the dataset's. Made-up data have none.
    pub asset_id: Option<String>,
    /// Where they are; or else in `assets_base_dir`/name.
    pub assets_dir: Option<String>,
    /// A dataset's keys of which chunks are made.
    pub action_sequence_keys: Vec<String>,
    /// DROID in RLDS form.
    pub rlds: Option<Rlds>,
}

/// DROID in RLDS form.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlds {
    /// The folder.
    pub data_dir: String,
    /// What an action is; `None` leaves openpi's loader at positions.
    pub action_space: Option<ActionSpace>,
    /// What is drawn from.
    pub datasets: Vec<RldsDataset>,
}

/// What a DROID action is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionSpace {
    /// Angles.
    JointPosition,
    /// Angles per step.
    JointVelocity,
}

/// One of several datasets.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RldsDataset {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How often it is drawn from, of 1.
    pub weight: f64,
    /// Which frames are taken.
    pub filter_dict_path: Option<String>,
}

/// TrainConfig's other fields, under their names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Training {
    pub weight_loader: WeightLoader,
    pub freeze: Freeze,
    pub lr_schedule: LrSchedule,
    pub optimizer: Optimizer,
    pub ema_decay: Option<f64>,
    pub num_train_steps: u64,
    pub batch_size: u64,
    pub seed: u64,
    pub log_interval: u64,
    pub save_interval: u64,
    pub keep_period: Option<u64>,
    pub num_workers: u64,
    pub fsdp_devices: u64,
    pub project_name: String,
    pub exp_name: Option<String>,
    pub assets_base_dir: String,
    pub checkpoint_base_dir: String,
    pub overwrite: bool,
    pub resume: bool,
    pub wandb_enabled: bool,
    pub pytorch_weight_path: Option<String>,
    pub policy_metadata: Option<toml::Table>,
}

/// What training begins with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum WeightLoader {
    /// Chance.
    None {},
    /// A checkpoint's weights; low-rank pairs that it lacks come from chance.
    Checkpoint {
        /// Its `params`.
        params_path: String,
    },
    /// PaliGemma's; all else comes from chance.
    Paligemma {},
}

/// The learning rate by step.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum LrSchedule {
    /// Up in a line, down in a cosine.
    CosineDecay { warmup_steps: u64, peak_lr: f64, decay_steps: u64, decay_lr: f64 },
    /// Up in a line, down by the root of the steps.
    RsqrtDecay { warmup_steps: u64, peak_lr: f64, timescale: f64 },
}

/// What makes a step of a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Optimizer {
    /// AdamW, after the gradient's norm is clipped.
    Adamw { b1: f64, b2: f64, eps: f64, weight_decay: f64, clip_gradient_norm: f64 },
    /// Stochastic gradient descent.
    Sgd { lr: f64, momentum: f64, nesterov: bool },
}

/// A preset as it stands in its file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Instead of the file's.
    name: Option<String>,
    /// Read by [`Preset`], which owns it.
    #[serde(rename = "model")]
    _model: toml::Table,
    data: DataDocument,
    train: Training,
    #[serde(default)]
    finetune: Finetune,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataDocument {
    robot: Option<String>,
    layout: Option<String>,
    #[serde(default)]
    adapt_to_pi: bool,
    delta_action_mask: Option<Vec<i64>>,
    delta_ways: Option<DeltaWays>,
    use_quantile_norm: bool,
    default_prompt: Option<String>,
    prompt_from_task: bool,
    repo_id: Option<String>,
    asset_id: Option<String>,
    assets_dir: Option<String>,
    action_sequence_keys: Vec<String>,
    repack: Option<BTreeMap<String, String>>,
    rlds: Option<Rlds>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum DeltaWays {
    Both,
    Out,
}

/// openpi's names, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// One of openpi's presets.
///
/// # Errors
/// None has this name: the nearest.
pub fn named(name: &str) -> Result<Train> {
    Text::named(name)?.parse()
}

/// A user's own preset; it bears the name of its file, or that which stands in it as `name`.
///
/// # Errors
/// It, or the robot it names, cannot be read; a key that is missing or that nothing knows; what contradicts itself.
pub fn file(path: &Path) -> Result<Train> {
    Text::file(path)?.parse()
}

/// A name, or a file if it ends in `.toml`.
///
/// # Errors
/// As [`named`] and [`file()`].
pub fn find(config: &str) -> Result<Train> {
    Text::find(config)?.parse()
}

/// A name or a file as [`find`] has it, with values put in; and what there is to say of these.
///
/// # Errors
/// As [`find`] and [`overrides::apply`].
pub fn find_with(config: &str, overrides: &[(String, String)]) -> Result<(Train, Vec<String>)> {
    let mut text = Text::find(config)?;
    let overridden = overrides::apply(&text.text, overrides).context("--override")?;
    if !overrides.is_empty() {
        text.text = overridden.text;
    }
    Ok((text.parse()?, overridden.notices))
}

/// A preset that is not read yet.
struct Text {
    name: String,
    text: String,
    /// What a robot's file is relative to.
    folder: PathBuf,
    /// Where the text is from.
    whence: String,
}

impl Text {
    fn find(config: &str) -> Result<Self> {
        if config.ends_with(".toml") { Self::file(Path::new(config)) } else { Self::named(config) }
    }

    fn named(name: &str) -> Result<Self> {
        let Some((_, text)) = PRESETS.iter().find(|(known, _)| *known == name) else {
            bail!("{name}: no such preset; {}. A file of your own ends in .toml", nearest(name, names()));
        };
        Ok(Text {
            name: name.to_owned(),
            text: (*text).to_owned(),
            folder: PathBuf::from("."),
            whence: format!("configs/train/{name}.toml"),
        })
    }

    fn file(path: &Path) -> Result<Self> {
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let name = name.with_context(|| format!("{}: the name is not UTF-8", path.display()))?.to_owned();
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Text { name, text: robot::read(path)?, folder, whence: path.display().to_string() })
    }

    fn parse(&self) -> Result<Train> {
        parse(&self.name, &self.text, &self.folder).with_context(|| self.whence.clone())
    }
}

fn parse(name: &str, text: &str, folder: &Path) -> Result<Train> {
    let Document { name: own, _model, data: document, train: training, finetune } = toml::from_str(text)?;
    let name = own.as_deref().unwrap_or(name);
    let model = Preset::parse(name, text)?;
    let lora = |variant: &str| variant.ends_with("_lora");
    let pairs = lora(&model.paligemma_variant) || model.action_expert_variant.as_deref().is_some_and(lora);
    ensure!(
        !training.freeze.has(&Rule::Lora) || pairs,
        "train.freeze: \"lora\", and no variant of the model has low-rank pairs"
    );
    finetune::check(&training, &finetune)?;
    let source = Source {
        repo_id: document.repo_id.clone(),
        asset_id: document.asset_id.clone().or_else(|| document.robot.as_ref().and(document.repo_id.clone())),
        assets_dir: document.assets_dir.clone(),
        action_sequence_keys: document.action_sequence_keys.clone(),
        rlds: document.rlds.clone(),
    };
    let data = match &document.robot {
        None => {
            let made_up = document.layout.is_none() && document.delta_action_mask.is_none() && !document.adapt_to_pi;
            ensure!(made_up, "data.robot: it is missing, and the other keys of [data] are about one");
            None
        }
        Some(name) => Some(data(document.robot_of(name, folder)?, &document)?),
    };
    let mut whole: toml::Table = text.parse()?;
    whole.insert("name".into(), toml::Value::String(name.to_owned()));
    whole.insert("finetune".into(), toml::Value::try_from(&finetune)?);
    if let Some(path) = document.robot.as_ref().filter(|robot| robot.ends_with(".toml")) {
        // Read again from elsewhere, it is the same robot.
        let path = std::path::absolute(folder.join(path))?;
        let path = path.to_str().context("data.robot: the path is not UTF-8")?.to_owned();
        if let Some(data) = whole.get_mut("data").and_then(toml::Value::as_table_mut) {
            data.insert("robot".into(), toml::Value::String(path));
        }
    }
    Ok(Train { name: name.to_owned(), model, source, data, training, finetune, document: whole })
}

impl DataDocument {
    fn robot_of(&self, name: &str, folder: &Path) -> Result<Robot> {
        robot::find(name, folder).context("data.robot")
    }
}

fn data(robot: Robot, document: &DataDocument) -> Result<Data> {
    let layout = document.layout.clone().context("data.layout: it is missing; say which of the robot's layouts")?;
    robot.layout(&layout)?;
    ensure!(
        !document.adapt_to_pi || robot.adapt_to_pi.is_some(),
        "data.adapt_to_pi: {} has no [adapt_to_pi] to go by",
        robot.name
    );
    let delta = match (&document.delta_action_mask, document.delta_ways) {
        (None, None) => None,
        (Some(dims), Some(ways)) => {
            let width = dims.iter().fold(0_u64, |sum, dim| sum.saturating_add(dim.unsigned_abs()));
            ensure!(width <= MAX_DIMS, "data.delta_action_mask: {width} dimensions, at most {MAX_DIMS}");
            let known = robot.actions.width.min(robot.state_width());
            ensure!(
                width <= known as u64,
                "data.delta_action_mask: {width} dimensions, expected at most {known}, what {} has in state and actions",
                robot.name
            );
            let ways = match ways {
                DeltaWays::Both => Ways::Both,
                DeltaWays::Out => Ways::Out,
            };
            Some(Delta { mask: make_bool_mask(dims), ways })
        }
        _ => bail!("data: delta_action_mask and delta_ways belong together"),
    };
    Ok(Data {
        robot,
        layout,
        adapt_to_pi: document.adapt_to_pi,
        repack: document.repack.clone().map(|keys| keys.into_iter().collect()),
        prompt_from_task: document.prompt_from_task,
        default_prompt: document.default_prompt.clone(),
        delta,
        use_quantile_norm: document.use_quantile_norm,
    })
}

impl Train {
    /// What this was configured with, overrides and defaults included, as a preset of its own: [`file()`] makes the same
    /// of it. What was changed in the value since it was read is not in it.
    ///
    /// # Errors
    /// A value that TOML cannot write; a preset was TOML, so there is none.
    pub fn echo(&self) -> Result<String> {
        Ok(format!(
            "# What this run was configured with; a preset like any other.\n\n{}",
            toml::to_string(&self.document)?
        ))
    }

    /// A, to which state and actions are padded; pi0-FAST reads both as text and pads neither.
    pub fn padded_to(&self) -> Option<usize> {
        (self.model.model != Kind::Pi0Fast).then(|| usize::try_from(self.model.action_dim).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
