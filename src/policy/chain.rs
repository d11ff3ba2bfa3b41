//! The chain of a preset: which steps, in which order, for a dataset or for a robot.
//!
//! ```text
//! (prompt-from-task) → (repack) → robot-vectors → robot-cameras → (delta-actions) → normalize
//!     → inject-default-prompt → resize-images → tokenize → (pad-states-and-actions)
//! ```
//!
//! Source: openpi 15a9616, training/config.py (the data configs, ModelTransformFactory), policies/policy_config.py and
//! training/data_loader.py. Invariant: prompt-from-task and repack are of datasets alone; the model's own steps come last,
//! so that the state in a prompt is the normalised one before it is padded.

use super::delta::{DeltaActions, Ways};
use super::image::ResizeImages;
use super::norm_stats::NormStats;
use super::normalize::Normalize;
use super::pad::PadStatesAndActions;
use super::record::Fault;
use super::repack::Repack;
use super::robot::Robot;
use super::step::{Chain, Step};
use super::task::{InjectDefaultPrompt, PromptFromTask};

/// What a chain does to a robot's data, whatever the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// The robot.
    pub robot: Robot,
    /// Which of its layouts.
    pub layout: String,
    /// Into pi's convention of joints and grippers?
    pub adapt_to_pi: bool,
    /// (new, old) keys of a dataset; `None` where a dataset has the robot's own.
    pub repack: Option<Vec<(String, String)>>,
    /// Is a dataset's task the prompt?
    pub prompt_from_task: bool,
    /// Words for want of others.
    pub default_prompt: Option<String>,
    /// Which actions are relative to the state.
    pub delta: Option<Delta>,
    /// Quantiles, or mean and deviation?
    pub use_quantile_norm: bool,
}

/// Actions relative to the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Of the first dimensions.
    pub mask: Vec<bool>,
    /// Which way.
    pub ways: Ways,
}

/// Where records come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// A robot's own program, as a policy server sees them.
    Robot,
    /// A dataset, with its sentences.
    Dataset {
        /// By index.
        tasks: std::collections::BTreeMap<i64, String>,
    },
}

/// The statistics to normalise by.
#[derive(Debug, Clone, PartialEq)]
pub enum Statistics {
    /// These.
    Given(NormStats),
    /// There are none.
    Missing {
        /// Whose.
        asset_id: String,
        /// The places.
        looked: Vec<String>,
    },
    /// Not wanted: state and actions stay as they are.
    Skipped,
}

/// What the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    /// Rows and columns of a picture.
    pub image: (usize, usize),
    /// A, to which state and actions are padded; `None` for a model that reads both as text.
    pub action_dim: Option<usize>,
}

/// Why there is no chain.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// No statistics.
    #[error("norm stats of {asset_id}: there are none; looked in {}", looked.join(", "))]
    NoStatistics {
        /// Whose.
        asset_id: String,
        /// The places.
        looked: Vec<String>,
    },
    /// A part that does not fit.
    #[error("step {step}: {fault}")]
    Step {
        /// Its name.
        step: &'static str,
        /// What is wrong.
        fault: Fault,
    },
}

/// Puts the steps together. `tokenize` makes tokens of the prompt, and for pi0-FAST of state and actions; without it the
/// prompt stays text.
///
/// # Errors
/// Statistics that are missing or lack quantiles; a layout or a convention that the robot does not have.
pub fn chain(
    data: &Data,
    origin: &Origin,
    statistics: &Statistics,
    widths: Widths,
    tokenize: Option<Box<dyn Step>>,
) -> Result<Chain, Error> {
    let within = |step| move |fault| Error::Step { step, fault };
    let mut steps: Vec<Box<dyn Step>> = vec![];
    if let Origin::Dataset { tasks } = origin {
        if data.prompt_from_task {
            steps.push(Box::new(PromptFromTask { tasks: tasks.clone() }));
        }
        if let Some(keys) = &data.repack {
            steps.push(Box::new(Repack { keys: keys.clone() }));
        }
    }
    steps.push(Box::new(data.robot.vectors(data.adapt_to_pi).map_err(within("robot-vectors"))?));
    steps.push(Box::new(data.robot.cameras(&data.layout).map_err(within("robot-cameras"))?));
    if let Some(Delta { mask, ways }) = &data.delta {
        steps.push(Box::new(DeltaActions { mask: mask.clone(), ways: *ways }));
    }
    match statistics {
        Statistics::Given(stats) => {
            let step = Normalize::new(stats, data.use_quantile_norm).map_err(within("normalize"))?;
            steps.push(Box::new(step));
        }
        Statistics::Missing { asset_id, looked } => {
            return Err(Error::NoStatistics { asset_id: asset_id.clone(), looked: looked.clone() });
        }
        Statistics::Skipped => {}
    }
    steps.push(Box::new(InjectDefaultPrompt { prompt: data.default_prompt.clone() }));
    steps.push(Box::new(ResizeImages { height: widths.image.0, width: widths.image.1 }));
    steps.extend(tokenize);
    if let Some(model_action_dim) = widths.action_dim {
        steps.push(Box::new(PadStatesAndActions { model_action_dim }));
    }
    Ok(Chain { steps })
}
