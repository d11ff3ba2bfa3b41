//! A message as a request, an answer as a message.
//!
//! A request is the observation as the robot's program sends it, a dictionary of dictionaries; flattened with `/` it is the
//! [`Record`] that policies read. Under [`EXTENSIONS`](super::EXTENSIONS) it may carry what openpi's protocol does not have:
//!
//! | key | what |
//! | --- | --- |
//! | `noise` | `[horizon, A]`: what the actions begin as, model-ready |
//! | `seed` | a whole number that noise is drawn from, as `pi0 sample --seed` draws it |
//! | `deadline_ms` | how long the request may wait before it is refused |
//! | `previous` | `[n, D]`: actions of the last chunk that are still to be run, in the robot's units; the first is run now |
//! | `delay` | how many of them are run before this chunk is there |
//! | `method` | `guided` (default) or `frozen` |
//! | `schedule` | of `guided`: `exp` (default), `linear`, `ones`, `zeros` |
//! | `max_guidance_weight` | of `guided` (default 5) |
//!
//! An answer to a request that carried the key carries it too: `seed` (absent where noise was given), `queue_ms`,
//! `model_ms`, `prev_model_ms` (of the client's chunk before, from its second on), `batch`.

use std::time::Duration;

use super::tree::Tree;
use crate::policy::array::Array;
pub use crate::policy::chunking::{Method, Schedule};
use crate::policy::record::Record;

/// A request, understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// The robot's own keys.
    pub observation: Record,
    /// What openpi's protocol does not have; `None` for a client that knows nothing of it.
    pub extensions: Option<Extensions>,
}

/// What openpi's protocol does not have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extensions {
    /// `[horizon, A]`.
    pub noise: Option<Array>,
    /// Where chance begins.
    pub seed: Option<u64>,
    /// How long it may wait.
    pub deadline: Option<Duration>,
    /// The last chunk, for real-time chunking.
    pub previous: Option<Previous>,
}

/// What is left of the last chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Previous {
    /// `[n, D]`, in the robot's units; the first is run now.
    pub actions: Array,
    /// How many of them are run before the new chunk is there.
    pub delay: usize,
    /// How they are kept.
    pub method: Method,
}

/// Actions, and how long they took.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What the policy gave, in openpi's order: `actions` `[H, D]` first, in the dtype that openpi's would have.
    pub outputs: Vec<(String, Tree)>,
    /// The model's own time, when the device said that it was done: openpi's `policy_timing.infer_ms`.
    pub infer_ms: f64,
    /// From which seed its noise was drawn; `None` where it was given.
    pub seed: Option<u64>,
}
