//! A preset's policy around a checkpoint: which statistics, which vocabulary, which steps. What openpi's
//! `create_trained_policy` puts together, told piece by piece.
//!
//! Source: openpi 15a9616, policies/policy_config.py. Invariant: nothing is guessed: a preset that contradicts the tensors
//! is refused, and where each part came from is kept to be said.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::output::Mouth;
use super::{statistics, tokenizer};
use crate::config::train::{self, Train};
use crate::model::settings::Settings;
use crate::policy::action_tokens::{ActionTokens, Hold, HoldDimension, Normal, OnMalformed, TokenizeFast};
use crate::policy::chain::{Data, Origin, Statistics, Widths, chain};
use crate::policy::fast::{Codec, Reading, Words};
use crate::policy::norm_stats::{NormStats, Stats};
use crate::policy::prompt::TokenizePrompt;
use crate::policy::record::Record;
use crate::policy::step::{Chain, Step};
use crate::policy::tokenizer::Tokenizer;
use crate::weights::anatomy::Anatomy;
use crate::weights::companions::Kind;
use crate::weights::open::Opened;

/// Beside a checkpoint, or in its assets, a FAST codec of its own.
const FAST_FOLDER: &str = "fast_tokenizer";
/// The published codec, in the cache of Hugging Face's hub.
const FAST_HUB: &str = ".cache/huggingface/hub/models--physical-intelligence--fast/snapshots";

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

/// What becomes of an answer that is no action chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Malformed {
    /// An error
    Fail,
    /// The robot stays where it is
    Hold,
    /// Zeros of the normalised space, as openpi: the middle of the training data, not a rest
    Zeros,
}

/// How an answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadingChoice {
    /// By token ids: every chunk that was encoded comes home
    Exact,
    /// As openpi: to text, and from text to tokens again
    Openpi,
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
        let (tokenize, words) = tokenizing(args, &preset, &data, &found.statistics, &tokenizer, checkpoint, &mut told)?;
        let side = settings.vision.image();
        let widths = Widths { image: (side, side), action_dim: preset.padded_to() };
        let chain = chain(&data, &Origin::Robot, &found.statistics, widths, Some(tokenize))
            .context("--norm-stats names others")?;
        Ok(Policy { preset, data, chain, words, told })
    }

    /// Cameras in the order in which the model reads them.
    pub fn slots(&self) -> Result<Vec<String>> {
        let slots = self.data.robot.layout(&self.data.layout)?;
        let mut names: Vec<String> = slots.iter().map(|slot| slot.slot.clone()).collect();
        // openpi reads pi0-FAST's pictures in the order of a dictionary that JAX has sorted.
        if self.preset.model.model == Kind::Pi0Fast {
            names.sort();
        }
        Ok(names)
    }

    /// A chunk as the model gave it → the robot's actions, `[H][D]`. `state` is the model's.
    ///
    /// # Errors
    /// The step that cannot take it back.
    pub(super) fn undo(&self, answer: Record) -> Result<(Vec<Vec<f64>>, Vec<String>)> {
        let mut record = answer;
        let notices = take_notices(&mut record);
        let mut undone = self.chain.undo(record)?;
        let notices = notices.into_iter().chain(take_notices(&mut undone)).collect();
        let key = &self.data.robot.actions.key;
        let actions = undone.array(key)?;
        let width = actions.width().filter(|width| *width > 0).context("the actions have no dims")?;
        Ok((actions.values.to_f64().chunks(width).map(<[f64]>::to_vec).collect(), notices))
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

/// The step that makes tokens, and FAST's words.
fn tokenizing(
    args: &Args,
    preset: &Train,
    data: &Data,
    statistics: &Statistics,
    tokenizer: &Arc<Tokenizer>,
    checkpoint: &Path,
    told: &mut Told,
) -> Result<(Box<dyn Step>, Option<Words>)> {
    let model = &preset.model;
    let max_token_len = model.max_token_len as usize;
    if model.model != Kind::Pi0Fast {
        let strange = [
            ("--fast-tokenizer", args.fast_tokenizer.is_some()),
            ("--on-malformed", args.on_malformed.is_some()),
            ("--reading", args.reading.is_some()),
        ];
        if let Some((name, _)) = strange.iter().find(|(_, told)| *told) {
            bail!("{name}: of pi0-FAST alone, and {} is a {}; leave it out", preset.name, model.model.name());
        }
        let discrete_state_input = model.model == Kind::Pi05 && model.discrete_state_input;
        let step = TokenizePrompt { tokenizer: Arc::clone(tokenizer), max_token_len, discrete_state_input };
        return Ok((Box::new(step), None));
    }
    let (action_horizon, action_dim) = (model.action_horizon as usize, model.action_dim as usize);
    let (tokens, words) = match model.action_tokenizer.as_deref() {
        Some("binning") => (ActionTokens::Binning { tokenizer: Arc::clone(tokenizer), bins: 256 }, None),
        Some("fsq") => (ActionTokens::Fsq { tokenizer: Arc::clone(tokenizer) }, None),
        _ => {
            let folder = fast_folder(args, checkpoint)?;
            let codec = Arc::new(Codec::open(&folder)?);
            told.fast_tokenizer = Some(folder.display().to_string());
            let words = Words::new(Arc::clone(tokenizer), codec)?;
            let reading = match args.reading {
                Some(ReadingChoice::Openpi) => Reading::Openpi,
                _ => Reading::Exact,
            };
            (ActionTokens::Fast { words: words.clone(), reading }, Some(words))
        }
    };
    let on_malformed = match args.on_malformed {
        None | Some(Malformed::Fail) => OnMalformed::Fail,
        Some(Malformed::Zeros) => OnMalformed::Zeros,
        Some(Malformed::Hold) => OnMalformed::Hold(hold(data, statistics, action_dim)?),
    };
    Ok((Box::new(TokenizeFast { tokens, max_token_len, action_horizon, action_dim, on_malformed }), words))
}

/// "Stay where you are" for this robot: no movement where actions are relative to the state or small steps of it, the
/// state itself where they are positions.
fn hold(data: &Data, statistics: &Statistics, action_dim: usize) -> Result<Hold> {
    let Statistics::Given(NormStats { keys, .. }) = statistics else {
        bail!("--on-malformed hold: it needs norm stats")
    };
    let stats = |key: &str| keys.get(key).with_context(|| format!("--on-malformed hold: no norm stats of {key}"));
    let (state, actions) = (stats("state")?, stats("actions")?);
    let normal = |stats: &Stats, d: usize| -> Result<Normal> {
        let at = |list: &[f64]| {
            list.get(d).copied().with_context(|| format!("--on-malformed hold: no norm stats of dim {d}"))
        };
        Ok(match (data.use_quantile_norm, &stats.q01, &stats.q99) {
            (true, Some(low), Some(high)) => {
                let (low, high) = (at(low)?, at(high)?);
                Normal { shift: (low + high) / 2.0, scale: (high - low) / 2.0 + 5e-7 }
            }
            _ => Normal { shift: at(&stats.mean)?, scale: at(&stats.std)? + 1e-6 },
        })
    };
    let delta = data.delta.as_ref().map(|delta| delta.mask.as_slice());
    let one = |d: usize| -> Result<HoldDimension> {
        let relative = delta.is_some_and(|mask| mask.get(d).copied().unwrap_or(false));
        if relative {
            return Ok(Hold::relative(normal(actions, d)?));
        }
        // A robot whose actions have no mask moves by steps or velocities, but for its gripper, which keeps its place.
        match (delta, d < state.width()) {
            (Some(_), true) => Ok(Hold::absolute(normal(actions, d)?, normal(state, d)?)),
            _ => Ok(Hold::relative(normal(actions, d)?)),
        }
    };
    Ok(Hold { dimensions: (0..action_dim).map(one).collect::<Result<_>>()? })
}

fn fast_folder(args: &Args, checkpoint: &Path) -> Result<PathBuf> {
    if let Some(folder) = &args.fast_tokenizer {
        return Ok(folder.clone());
    }
    let parent = checkpoint.parent().unwrap_or(Path::new("."));
    let mut looked: Vec<PathBuf> = [checkpoint, parent]
        .iter()
        .flat_map(|folder| [folder.join(FAST_FOLDER), folder.join("assets").join(FAST_FOLDER)])
        .collect();
    if let Some(home) = std::env::home_dir() {
        let hub = home.join(FAST_HUB);
        let mut snapshots: Vec<PathBuf> =
            std::fs::read_dir(&hub).map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
        snapshots.sort();
        looked.extend(if snapshots.is_empty() { vec![hub] } else { snapshots });
    }
    let found = looked.iter().find(|folder| folder.join("processor_config.json").is_file());
    found.cloned().with_context(|| {
        let places: Vec<String> = looked.iter().map(|path| format!("  {}", path.display())).collect();
        format!(
            "no FAST codec was found; looked for processor_config.json in\n{}\nto get it: `hf download \
             physical-intelligence/fast`, or fit one with `pi0 fast-tokenizer fit`; then name it with --fast-tokenizer",
            places.join("\n")
        )
    })
}
