//! The data of training: examples in an order that chance decides, by worker threads, a batch at a time.
//!
//! In reading order:
//! - [`order`]: which example stands at which position of a run.
//! - [`workers`]: the threads that make batches of it.
//! - [`frames`]: the frames of a LeRobot dataset, through a policy's steps.
//! - [`fake`]: made-up examples of any size.
//!
//! Source: openpi 15a9616, training/data_loader.py. Two differences: openpi drops the rest of an epoch that fills no batch,
//! here it is the next batch's beginning; and openpi's several datasets are of RLDS alone.
//!
//! Invariant: a batch is a function of the examples, the seed, the batch size and its step: how many threads there are,
//! how far they read ahead and where the run began changes nothing.

pub mod fake;
pub mod frames;
pub mod order;
pub mod workers;

use std::sync::Arc;

use super::lerobot::DataError;
use crate::policy::record::{Fault, Record};
use crate::policy::step::StepError;

pub use fake::Fake;
pub use frames::Frames;
pub use order::{Cursor, Order, OrderError, Place};
pub use workers::{Batch, Loader, LoaderError, Settings};

/// Examples that can be asked for in any order, from any thread.
pub trait Examples: Send + Sync {
    /// How many.
    fn len(&self) -> usize;

    /// Are there none?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whose they are, for people: a dataset's folder.
    fn name(&self) -> &str;

    /// Makes one. The same index gives the same example, whatever was asked for before.
    ///
    /// # Errors
    /// Data that cannot be read, or that a policy's step cannot take.
    fn example(&self, index: usize) -> Result<Example, ExampleError>;

    /// Which one it is, for people: `frame 64 (episode 1, frame 24 of it)`.
    fn which(&self, index: usize) -> String {
        format!("frame {index}")
    }
}

/// What a model learns from once.
///
/// Letters: h, w the model's picture; H `action_horizon`; A `action_dim`; L `max_token_len`.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Model-ready, in numpy's dtypes, without a batch axis:
    ///
    /// | key | dtype and shape | |
    /// | --- | --- | --- |
    /// | `image/<slot>` | uint8 `[h, w, 3]` | 0 to 255 |
    /// | `image_mask/<slot>` | bool `[]` | |
    /// | `state` | floats `[A]` | normalised; pi0-FAST: the robot's own width, for it reads the state in the prompt |
    /// | `actions` | floats `[H, A]` | normalised; pi0-FAST: the robot's own width |
    /// | `tokenized_prompt` | int32 `[L]` | padded with 0 |
    /// | `tokenized_prompt_mask` | bool `[L]` | |
    /// | `token_ar_mask` | int32 `[L]` | pi0-FAST: 1 where a token sees only what is before it |
    /// | `token_loss_mask` | bool `[L]` | pi0-FAST: which tokens are learned |
    ///
    /// Floats are float32 or float64, as numpy's rules have it; openpi hands JAX either, which makes float32 of both.
    pub record: Record,
    /// `[H]`: which steps of the chunk lie behind the episode's end, where its last action is repeated.
    pub padded: Vec<bool>,
    /// What the steps said of it to people: a prompt that was cut, actions that a vocabulary cannot spell.
    pub notices: Vec<String>,
}

/// Why there is no example.
#[derive(Debug, thiserror::Error)]
pub enum ExampleError {
    /// The dataset.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A step of the policy.
    #[error(transparent)]
    Step(#[from] StepError),
    /// What the steps made of it is nothing to learn from.
    #[error(transparent)]
    Record(#[from] Fault),
    /// What made it gave up.
    #[error("its reader panicked: {0}")]
    Panicked(String),
}

/// Examples, and how often they are drawn from beside others.
#[derive(Clone)]
pub struct Source {
    /// The examples.
    pub examples: Arc<dyn Examples>,
    /// Its share, in whatever unit the others have theirs.
    pub weight: f64,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Source { examples, weight } = self;
        write!(out, "{} ({} examples, weight {weight})", examples.name(), examples.len())
    }
}
