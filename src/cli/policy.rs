//! A preset's policy around a checkpoint: which statistics, which vocabulary, which steps. What openpi's
//! `create_trained_policy` puts together, told piece by piece.
//!
//! Source: openpi 15a9616, policies/policy_config.py. Invariant: nothing is guessed: a preset that contradicts the tensors
//! is refused, and where each part came from is kept to be said.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::output::Mouth;
pub use super::tokenizing::{Malformed, ReadingChoice};
use super::tokenizing::{Wanted, tokenizing};
use super::{statistics, tokenizer};
use crate::config::train::{self, Train};
use crate::model::settings::Settings;
use crate::policy::array::Array;
use crate::policy::chain::{Data, Delta, Origin, Widths, chain};
use crate::policy::delta::Ways;
use crate::policy::fast::Words;
use crate::policy::record::{Record, Value};
use crate::policy::step::Chain;
use crate::policy::tokenizer::Tokenizer;
use crate::weights::anatomy::Anatomy;
use crate::weights::companions::Kind;
use crate::weights::open::Opened;

/// Whose policy, and what it goes by.
#[derive(Debug, clap::Args)]
#[group(id = "policy")]
#[command(next_help_heading = "A robot's policy")]
pub struct Args {
    /// Preset under openpi's name, or a file of your own (.toml): the observation is then a robot's, not model-ready
    #[arg(long, visible_alias = "config-name", value_name = "NAME|FILE")]
    pub config: Option<String>,

    /// What the robot is told, in place of the preset's, the task's or the observation's own words
    #[arg(long, visible_alias = "default-prompt", alias = "default_prompt", value_name = "TEXT", requires = "config")]
    pub prompt: Option<String>,

    /// Norm stats: a norm_stats.json, or a folder of assets; the checkpoint's own if left out
    #[arg(long, value_name = "PATH", requires = "config")]
    pub norm_stats: Option<PathBuf>,

    /// Whose statistics of the assets; the preset's asset id if left out
    #[arg(long, value_name = "ID", requires = "config")]
    pub asset_id: Option<String>,

    /// PaliGemma's tokenizer (.model or tokenizer.json); looked for beside the checkpoint and in openpi's cache
    #[arg(long, value_name = "PATH", requires = "config")]
    pub tokenizer: Option<PathBuf>,

    /// pi0-FAST: folder of the FAST codec; looked for beside the checkpoint and in Hugging Face's cache
    #[arg(long, value_name = "DIR", requires = "config")]
    pub fast_tokenizer: Option<PathBuf>,

    /// pi0-FAST: what becomes of an answer that is no action chunk (default: fail)
    #[arg(long, value_enum, requires = "config")]
    pub on_malformed: Option<Malformed>,

    /// pi0-FAST: how an answer is read (default: exact)
    #[arg(long, value_enum, requires = "config")]
    pub reading: Option<ReadingChoice>,
}

/// Where the parts came from.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Told {
    /// The preset.
    pub config: String,
    /// The file of the statistics.
    pub norm_stats: String,
    /// `mean and std` or `q01 and q99`.
    pub normalized_by: &'static str,
    /// The file of the vocabulary.
    pub tokenizer: String,
    /// The folder of the FAST codec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fast_tokenizer: Option<String>,
    /// What a user may not expect.
    pub notices: Vec<String>,
}

/// Robot data → model data and back, for one checkpoint.
#[derive(Debug)]
pub struct Policy {
    /// The preset.
    pub preset: Train,
    /// What it does to data.
    pub data: Data,
    /// The steps, for a robot's own observations.
    pub chain: Chain,
    /// Where [`Policy::chain`] takes actions as they are relative to the state already, the steps for absolute ones.
    absolute: Option<Chain>,
    /// FAST's tokens, where the model speaks in them.
    pub words: Option<Words>,
    /// Where the parts came from.
    pub told: Told,
}

impl Policy {
    /// Puts the policy together. Reads no weight.
    ///
    /// # Errors
    /// A preset that contradicts the tensors; statistics, a tokenizer or a codec that are missing or do not fit.
    pub(super) fn new(
        args: &Args,
        download: bool,
        opened: &Opened,
        anatomy: &Anatomy,
        settings: &Settings,
        mouth: &Mouth,
    ) -> Result<Self> {
        let config = args.config.as_deref().context("--config: which preset?")?;
        let mut preset = train::find(config)?;
        let mut told = Told { config: preset.name.clone(), ..Told::default() };
        agree(&preset, anatomy, settings, &mut told)?;
        if let Some(id) = &args.asset_id {
            preset.source.asset_id = Some(id.clone());
        }
        let mut data = preset.data.clone().with_context(|| {
            format!("{}: its data are made up, so there is no robot; name a preset that has one", preset.name)
        })?;
        if let Some(prompt) = &args.prompt {
            (data.prompt_from_task, data.default_prompt) = (false, Some(prompt.clone()));
        }
        told.normalized_by = if data.use_quantile_norm { "q01 and q99" } else { "mean and std" };
        let checkpoint = opened.path.as_path();
        let named = statistics::Told { norm_stats: args.norm_stats.as_deref(), checkpoint_dir: Some(checkpoint) };
        let found = statistics::find(&preset, named)?;
        told.norm_stats = found.from.as_deref().map(|path| path.display().to_string()).unwrap_or_default();

        let path = tokenizer::find(args.tokenizer.as_deref(), Some(checkpoint), download, mouth)?;
        let tokenizer = Arc::new(Tokenizer::open(&path)?);
        told.tokenizer = path.display().to_string();
        ensure!(
            tokenizer.len() <= settings.vocabulary,
            "{}: {} pieces, and the model's embedding has {} rows: it is another model's tokenizer",
            path.display(),
            tokenizer.len(),
            settings.vocabulary
        );
        let wanted = Wanted {
            fast_tokenizer: args.fast_tokenizer.as_deref(),
            on_malformed: args.on_malformed,
            reading: args.reading,
            checkpoint: Some(checkpoint),
        };
        let made = tokenizing(&wanted, &preset, &data, &found.statistics, &tokenizer)?;
        let (tokenize, words) = (made.step, made.words);
        told.fast_tokenizer = made.codec.map(|folder| folder.display().to_string());
        let side = settings.vision.image();
        let widths = Widths { image: (side, side), action_dim: preset.padded_to() };
        let chain = chain(&data, &Origin::Robot, &found.statistics, widths, Some(tokenize))
            .context("--norm-stats names others")?;
        let absolute = match data.delta.clone().filter(|delta| delta.ways == Ways::Out) {
            Some(delta) => {
                let data = Data { delta: Some(Delta { ways: Ways::Both, ..delta }), ..data.clone() };
                Some(self::chain(&data, &Origin::Robot, &found.statistics, widths, None)?)
            }
            None => None,
        };
        Ok(Policy { preset, data, chain, absolute, words, told })
    }

    /// Puts the robot's own actions `[n, D]` beside an observation, so that the steps make the model's `[n, A]` of them under
    /// `actions`. Where the steps would take them for relative ones, gives the model's at once.
    ///
    /// # Errors
    /// The step that cannot take them.
    pub(super) fn actions_beside(&self, observation: &mut Record, actions: Array) -> Result<Option<Array>> {
        let key = self.data.robot.actions.key.clone();
        let Some(absolute) = &self.absolute else {
            observation.put_array(key, actions);
            return Ok(None);
        };
        let mut record = observation.clone();
        record.put_array(key, actions);
        let Value::Array(actions) = absolute.apply(record)?.take("actions")? else { bail!("actions: they are a text") };
        Ok(Some(actions))
    }

    /// Cameras in the order in which the model reads them.
    pub fn slots(&self) -> Result<Vec<String>> {
        self.preset.slots()
    }

    /// A chunk as the model gave it → the robot's actions, `[H, D]`, in the dtype that openpi's have. `state` is the model's.
    ///
    /// # Errors
    /// The step that cannot take it back.
    pub(super) fn undo(&self, answer: Record) -> Result<(Array, Vec<String>)> {
        let mut record = answer;
        let notices = take_notices(&mut record);
        let mut undone = self.chain.undo(record)?;
        let notices = notices.into_iter().chain(take_notices(&mut undone)).collect();
        let key = &self.data.robot.actions.key;
        let Value::Array(actions) = undone.take(key)? else { bail!("{key}: the actions are a text") };
        ensure!(actions.width().is_some_and(|width| width > 0), "{key}: the actions have no dims");
        Ok((actions, notices))
    }
}

/// What steps have left for people.
pub(super) fn take_notices(record: &mut Record) -> Vec<String> {
    use crate::policy::prompt::NOTICE;
    let text = record.text(NOTICE).map(str::to_owned).unwrap_or_default();
    record.values.remove(NOTICE);
    text.lines().map(str::to_owned).collect()
}

/// Does the preset describe these tensors? Sizes of the network may differ: it is the tensors that are run.
fn agree(preset: &Train, anatomy: &Anatomy, settings: &Settings, told: &mut Told) -> Result<()> {
    let model = &preset.model;
    if let Some(found) = Kind::of(anatomy).filter(|found| *found != model.model) {
        bail!("--config {}: it is a {}, and these tensors are a {}", preset.name, model.model.name(), found.name());
    }
    if let Some(found) = settings.action_dim().filter(|found| *found as u64 != model.action_dim) {
        bail!(
            "--config {}: its actions have {} values, and these tensors' {found}; a preset of your own can say so",
            preset.name,
            model.action_dim
        );
    }
    if let Err(contradiction) = model.check(anatomy) {
        told.notices.push(format!("{contradiction}; the tensors are run as they are"));
    }
    Ok(())
}
