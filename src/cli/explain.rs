//! `pi0 explain`: what a preset does to a robot's data, step by step, and what becomes of one observation or frame.
//!
//! - `frame`: a frame of a dataset, as training sees it
//! - `tokens`: the step that makes tokens
//! - `report`: what is said
//!
//! Invariant: what is shown is what is run: the chain is the one that sampling, statistics and training use.

mod frame;
mod report;
mod tokens;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Answer;
use super::output::Mouth;
use super::statistics::{self, Told};
use super::{fetch, record};
use crate::config::{robot, train};
use crate::policy::chain::{self, Origin, Statistics, Widths, chain};
use crate::policy::record::Record;
use crate::policy::step::Chain;
use crate::policy::tokenizer::Tokenizer;
pub use frame::Frame;
pub use report::{Entry, Explanation, Preset, Stage, Stats};
pub use tokens::Tokens;

/// Side of a model's pictures.
const IMAGE: usize = 224;

/// What to do without norm stats.
const STATISTICS: &str = "--norm-stats or --checkpoint-dir names them, --skip-norm-stats leaves them out";

const EXAMPLES: &str = "\
Examples:
  Which presets are there?
    pi0 explain --list

  What does a preset do, with which parameters?
    pi0 explain --config pi0_aloha

  What becomes of an observation, and of which range is it after each step?
    pi0 explain --config pi05_droid --observation obs.json --checkpoint-dir checkpoints/pi05_droid

  What does training make of a frame of a dataset, down to the tokens?
    pi0 explain --config pi05_aloha_pen_uncap --dataset ~/data/pen_uncap --episode 3 --frame 120 --tokenizer tokenizer.model

  A robot of your own, without statistics yet:
    pi0 explain --config pi0_libero --robot my_robot.toml --observation obs.json --skip-norm-stats

An observation is what the robot's program sends. As JSON, with .png and .npy files named relative to it:
  {\"state\": [0.1, ...], \"images\": {\"cam_high\": \"high.npy\"}, \"prompt\": \"fold the towel\"}
Nested names are joined by `/`. configs/robot/README.md says how a robot is described.";

/// Explain a preset.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 explain --help")]
pub struct Args {
    /// Preset: one of openpi's names, or a file of your own
    #[arg(long, visible_alias = "config-name", value_name = "NAME|FILE", required_unless_present = "list")]
    pub config: Option<String>,

    /// List the presets
    #[arg(long, conflicts_with_all = ["config", "observation", "dataset"])]
    pub list: bool,

    /// Another robot: one of the program's, or a file of your own
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "list")]
    pub robot: Option<String>,

    /// What the robot sees: a .json
    #[arg(long, value_name = "FILE")]
    pub observation: Option<PathBuf>,

    /// What it is told, in place of the observation's own prompt
    #[arg(long, value_name = "TEXT", requires = "observation")]
    pub prompt: Option<String>,

    /// A frame of this LeRobot dataset (v2.0, v2.1, v3.0) in place of an observation, through the steps of training
    #[arg(long, value_name = "DIR", conflicts_with = "observation")]
    pub dataset: Option<PathBuf>,

    /// Which episode of it (default: its first)
    #[arg(long, value_name = "N", requires = "dataset")]
    pub episode: Option<u64>,

    /// Which frame of the episode (default: its first)
    #[arg(long, value_name = "N", requires = "dataset")]
    pub frame: Option<usize>,

    /// The observation has a dataset's keys: take the steps of datasets as well
    #[arg(long)]
    pub as_dataset: bool,

    /// PaliGemma's tokenizer (.model or tokenizer.json); looked for beside the checkpoint and in openpi's cache
    #[arg(long, value_name = "PATH", conflicts_with = "list")]
    pub tokenizer: Option<PathBuf>,

    /// pi0-FAST: folder of the FAST codec; looked for beside the checkpoint and in Hugging Face's cache
    #[arg(long, value_name = "DIR", conflicts_with = "list")]
    pub fast_tokenizer: Option<PathBuf>,

    /// Norm stats: a norm_stats.json, or a folder of assets
    #[arg(long, value_name = "PATH", conflicts_with = "skip_norm_stats")]
    pub norm_stats: Option<PathBuf>,

    /// Checkpoint whose assets have the norm stats: a step's folder, or gs:// in openpi's cache
    #[arg(long, alias = "checkpoint_dir", value_name = "PATH", conflicts_with = "norm_stats")]
    pub checkpoint_dir: Option<PathBuf>,

    /// Leave state and actions as they are
    #[arg(long, alias = "skip_norm_stats")]
    pub skip_norm_stats: bool,

    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs it.
///
/// # Errors
/// A preset, robot, observation or statistics that cannot be used; the step that cannot take the observation.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    if args.list {
        return list(mouth);
    }
    let config = args.config.as_deref().context("--config: which preset?")?;
    let mut preset = train::find(config)?;
    if let Some(name) = &args.robot {
        let data =
            preset.data.as_mut().with_context(|| format!("{config}: its data are made up, there is no robot"))?;
        data.robot = robot::find(name, Path::new("")).context("--robot")?;
    }
    let (which, record, origin) = match (&args.dataset, &args.observation) {
        (Some(folder), _) => {
            let seen = frame::read(folder, args.episode, args.frame.unwrap_or(0), &preset)?;
            (Some(seen.which), Some(seen.record), Origin::Dataset { tasks: seen.tasks })
        }
        (None, observation) => {
            let origin = if args.as_dataset { Origin::Dataset { tasks: BTreeMap::new() } } else { Origin::Robot };
            (None, observation.as_deref().map(|path| observed(path, args.prompt.as_deref())).transpose()?, origin)
        }
    };
    let checkpoint = args.checkpoint_dir.as_deref().map(|path| fetch::resolve(path, false, mouth)).transpose()?;
    let checkpoint = checkpoint.as_deref();
    let told = Told { norm_stats: args.norm_stats.as_deref(), checkpoint_dir: checkpoint };
    let named = told.norm_stats.is_some() || told.checkpoint_dir.is_some();
    let mut found = statistics::find(&preset, told)?;
    let stats = Stats::of(&found, args.skip_norm_stats);
    // Without a record there is nothing to normalise, and the chain can be told without.
    if args.skip_norm_stats || (record.is_none() && !named) && found.from.is_none() {
        found.statistics = Statistics::Skipped;
    }
    let (chain, tokenizer) = match &preset.data {
        None => (Chain::default(), None),
        Some(data) => {
            let widths = Widths { image: (IMAGE, IMAGE), action_dim: preset.padded_to() };
            let (tokenizer, fast_tokenizer) = (args.tokenizer.as_deref(), args.fast_tokenizer.as_deref());
            let places = tokens::Places { tokenizer, fast_tokenizer, checkpoint };
            let (step, tokenizer) = tokens::step(places, &preset, data, &found.statistics, record.is_some(), mouth)?;
            match chain(data, &origin, &found.statistics, widths, Some(step)) {
                Err(error @ chain::Error::NoStatistics { .. }) => bail!("{error}: {STATISTICS}"),
                other => (other?, tokenizer),
            }
        }
    };
    let mut explanation = explain(Preset::of(&preset), stats, &chain, record, tokenizer.as_deref())?;
    explanation.frame = which;
    mouth.say(&explanation, || explanation.to_string())?;
    Ok(Answer::Yes)
}

/// An observation, with the words that were said in place of its own.
fn observed(path: &Path, prompt: Option<&str>) -> Result<Record> {
    let mut record = record::read(path)?;
    if let Some(prompt) = prompt {
        record.put_text("prompt", prompt);
    }
    Ok(record)
}

/// A chain told, and run on a record where there is one; its tokens as text, where the vocabulary is there.
///
/// # Errors
/// The step that cannot take the record, and why.
pub fn explain(
    preset: Preset,
    stats: Stats,
    chain: &Chain,
    record: Option<Record>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Explanation> {
    let mut stages: Vec<Stage> =
        chain.steps.iter().enumerate().map(|(i, step)| Stage::of(i + 1, step.as_ref())).collect();
    let input = record.as_ref().map(Entry::all);
    if let Some(record) = record {
        let mut before = record.clone();
        let mut at = 0;
        chain.watched(record, |_, after| {
            stages[at].saw(&before, after);
            if !before.has("tokenized_prompt") {
                stages[at].tokens = tokenizer.and_then(|tokenizer| Tokens::of(after, tokenizer));
            }
            before.clone_from(after);
            at += 1;
        })?;
    }
    Ok(Explanation { preset, norm_stats: stats, frame: None, input, steps: stages })
}

fn list(mouth: &Mouth) -> Result<Answer> {
    let presets = train::names().map(|name| Ok(Preset::of(&train::named(name)?))).collect::<Result<Vec<_>>>()?;
    mouth.say(&presets, || {
        let width = presets.iter().map(|preset| preset.name.len()).max().unwrap_or(0);
        let line = |preset: &Preset| {
            let robot = preset.robot.as_deref().unwrap_or("made-up data");
            format!("{:width$}  {:8}  {robot}\n", preset.name, preset.model)
        };
        presets.iter().map(line).collect()
    })?;
    Ok(Answer::Yes)
}
