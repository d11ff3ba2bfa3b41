//! `pi0 explain`: what a preset does to a robot's data, step by step, and what becomes of one observation.
//!
//! Invariant: what is shown is what is run: the chain is the one that sampling, statistics and training use.

mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Answer;
use super::output::Mouth;
use super::statistics::{self, Told};
use super::{fetch, record};
use crate::config::{robot, train};
use crate::policy::chain::{self, Origin, Statistics, Widths, chain};
use crate::policy::record::{Fault, Record};
use crate::policy::step::{Chain, Step};
use crate::weights::companions::Kind;
pub use report::{Entry, Explanation, Preset, Stage, Stats};

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
    #[arg(long, conflicts_with_all = ["config", "observation"])]
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

    /// The observation has a dataset's keys: take the steps of datasets as well
    #[arg(long)]
    pub as_dataset: bool,

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
    let checkpoint = args.checkpoint_dir.as_deref().map(|path| fetch::resolve(path, false, mouth)).transpose()?;
    let told = Told { norm_stats: args.norm_stats.as_deref(), checkpoint_dir: checkpoint.as_deref() };
    let named = told.norm_stats.is_some() || told.checkpoint_dir.is_some();
    let mut found = statistics::find(&preset, told)?;
    let stats = Stats::of(&found, args.skip_norm_stats);
    // Without an observation there is nothing to normalise, and the chain can be told without.
    if args.skip_norm_stats || (args.observation.is_none() && !named) && found.from.is_none() {
        found.statistics = Statistics::Skipped;
    }
    let origin = if args.as_dataset { Origin::Dataset { tasks: BTreeMap::new() } } else { Origin::Robot };
    let chain = match &preset.data {
        None => Chain::default(),
        Some(data) => {
            let widths = Widths { image: (IMAGE, IMAGE), action_dim: preset.padded_to() };
            let tokenize: Box<dyn Step> = Box::new(Untokenized::of(&preset));
            match chain(data, &origin, &found.statistics, widths, Some(tokenize)) {
                Err(error @ chain::Error::NoStatistics { .. }) => bail!("{error}: {STATISTICS}"),
                other => other?,
            }
        }
    };
    let record = args.observation.as_deref().map(record::read).transpose()?.map(|mut record| {
        if let Some(prompt) = &args.prompt {
            record.put_text("prompt", prompt.clone());
        }
        record
    });
    let explanation = explain(Preset::of(&preset), stats, &chain, record)?;
    mouth.say(&explanation, || explanation.to_string())?;
    Ok(Answer::Yes)
}

/// A chain told, and run on a record where there is one.
///
/// # Errors
/// The step that cannot take the record, and why.
pub fn explain(preset: Preset, stats: Stats, chain: &Chain, record: Option<Record>) -> Result<Explanation> {
    let mut stages: Vec<Stage> =
        chain.steps.iter().enumerate().map(|(i, step)| Stage::of(i + 1, step.as_ref())).collect();
    let input = record.as_ref().map(Entry::all);
    if let Some(record) = record {
        let mut before = record.clone();
        let mut at = 0;
        chain.watched(record, |_, after| {
            stages[at].saw(&before, after);
            before.clone_from(after);
            at += 1;
        })?;
    }
    Ok(Explanation { preset, norm_stats: stats, input, steps: stages })
}

/// Stands where the prompt becomes tokens, in a chain that is told and not sampled from.
#[derive(Debug)]
struct Untokenized {
    name: &'static str,
    what: String,
    state: bool,
}

impl Untokenized {
    fn of(preset: &train::Train) -> Self {
        let length = preset.model.max_token_len;
        let fast = preset.model.model == Kind::Pi0Fast;
        let state = preset.model.discrete_state_input;
        let what = match (fast, state) {
            (true, _) => format!(
                "prompt, state and actions become {length} tokens, by the action tokenizer {}",
                preset.model.action_tokenizer.as_deref().unwrap_or("fast")
            ),
            (false, true) => format!("prompt and state become {length} tokens"),
            (false, false) => format!("prompt becomes {length} tokens"),
        };
        Untokenized { name: if fast { "tokenize-fast-inputs" } else { "tokenize-prompt" }, what, state }
    }
}

impl Step for Untokenized {
    fn name(&self) -> &'static str {
        self.name
    }

    fn describe(&self) -> String {
        format!("{}; not run here: the prompt is shown as text", self.what)
    }

    fn reads(&self) -> Vec<String> {
        let state = self.state.then(|| "state".to_owned());
        std::iter::once("prompt".to_owned()).chain(state).collect()
    }

    fn writes(&self) -> Vec<String> {
        vec!["tokenized_prompt".to_owned(), "tokenized_prompt_mask".to_owned()]
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        record.text("prompt").map(|_| ())
    }
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
