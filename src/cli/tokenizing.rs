//! The step that makes tokens of prompts, states and actions, as a preset wants it: with which codec, read how.
//!
//! Source: openpi 15a9616, training/config.py (ModelTransformFactory). Invariant: sampling and `pi0 explain` take the step
//! from here, so that what is shown is what is run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::config::train::Train;
use crate::policy::action_tokens::{ActionTokens, Hold, HoldDimension, Normal, OnMalformed, TokenizeFast};
use crate::policy::chain::{Data, Statistics};
use crate::policy::fast::{Codec, Reading, Words};
use crate::policy::norm_stats::{NormStats, Stats};
use crate::policy::prompt::TokenizePrompt;
use crate::policy::step::Step;
use crate::policy::tokenizer::Tokenizer;
use crate::weights::companions::Kind;

/// Beside a checkpoint, or in its assets, a FAST codec of its own.
pub(super) const FAST_FOLDER: &str = "fast_tokenizer";
/// The published codec, in the cache of Hugging Face's hub.
const FAST_HUB: &str = ".cache/huggingface/hub/models--physical-intelligence--fast/snapshots";

/// What becomes of an answer that is no action chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[cfg_attr(not(feature = "model"), allow(dead_code, unreachable_pub))]
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
#[cfg_attr(not(feature = "model"), allow(dead_code, unreachable_pub))]
pub enum ReadingChoice {
    /// By token ids: every chunk that was encoded comes home
    Exact,
    /// As openpi: to text, and from text to tokens again
    Openpi,
}

/// What a user asked for; all of it is of pi0-FAST alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted<'a> {
    /// Folder of the codec.
    pub(super) fast_tokenizer: Option<&'a Path>,
    /// What becomes of an answer that is no action chunk.
    pub(super) on_malformed: Option<Malformed>,
    /// How an answer is read.
    pub(super) reading: Option<ReadingChoice>,
    /// Beside which a codec may be.
    pub(super) checkpoint: Option<&'a Path>,
}

/// The step, and what it was made of.
#[cfg_attr(not(feature = "model"), allow(dead_code))]
pub(super) struct Tokenizing {
    pub(super) step: Box<dyn Step>,
    /// FAST's tokens, where the model speaks in them.
    pub(super) words: Option<Words>,
    /// Folder of the codec.
    pub(super) codec: Option<PathBuf>,
}

/// The step that makes tokens, and FAST's words.
///
/// # Errors
/// Something of pi0-FAST that another model does not have; a codec that is nowhere or none; statistics that holding lacks.
pub(super) fn tokenizing(
    wanted: &Wanted<'_>,
    preset: &Train,
    data: &Data,
    statistics: &Statistics,
    tokenizer: &Arc<Tokenizer>,
) -> Result<Tokenizing> {
    let model = &preset.model;
    let max_token_len = model.max_token_len as usize;
    if model.model != Kind::Pi0Fast {
        let strange = [
            ("--fast-tokenizer", wanted.fast_tokenizer.is_some()),
            ("--on-malformed", wanted.on_malformed.is_some()),
            ("--reading", wanted.reading.is_some()),
        ];
        if let Some((name, _)) = strange.iter().find(|(_, told)| *told) {
            bail!("{name}: of pi0-FAST alone, and {} is a {}; leave it out", preset.name, model.model.name());
        }
        let discrete_state_input = model.model == Kind::Pi05 && model.discrete_state_input;
        let step = TokenizePrompt { tokenizer: Arc::clone(tokenizer), max_token_len, discrete_state_input };
        return Ok(Tokenizing { step: Box::new(step), words: None, codec: None });
    }
    let (action_horizon, action_dim) = (model.action_horizon as usize, model.action_dim as usize);
    let mut folder = None;
    let (tokens, words) = match model.action_tokenizer.as_deref() {
        Some("binning") => (ActionTokens::Binning { tokenizer: Arc::clone(tokenizer), bins: 256 }, None),
        Some("fsq") => (ActionTokens::Fsq { tokenizer: Arc::clone(tokenizer) }, None),
        _ => {
            let found = fast_folder(wanted)?;
            let codec = Arc::new(Codec::open(&found)?);
            folder = Some(found);
            let words = Words::new(Arc::clone(tokenizer), codec)?;
            let reading = match wanted.reading {
                Some(ReadingChoice::Openpi) => Reading::Openpi,
                _ => Reading::Exact,
            };
            (ActionTokens::Fast { words: words.clone(), reading }, Some(words))
        }
    };
    let on_malformed = match wanted.on_malformed {
        None | Some(Malformed::Fail) => OnMalformed::Fail,
        Some(Malformed::Zeros) => OnMalformed::Zeros,
        Some(Malformed::Hold) => OnMalformed::Hold(hold(data, statistics, action_dim)?),
    };
    let step = TokenizeFast { tokens, max_token_len, action_horizon, action_dim, on_malformed };
    Ok(Tokenizing { step: Box::new(step), words, codec: folder })
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
                let scale = (high - low + 1e-6) / 2.0;
                Normal { shift: low + scale, scale }
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

fn fast_folder(wanted: &Wanted<'_>) -> Result<PathBuf> {
    if let Some(folder) = wanted.fast_tokenizer {
        return Ok(folder.to_owned());
    }
    let near = wanted.checkpoint.map(|folder| [folder, folder.parent().unwrap_or(Path::new("."))]);
    let mut looked: Vec<PathBuf> = near
        .iter()
        .flatten()
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
