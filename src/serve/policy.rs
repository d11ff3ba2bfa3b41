//! What a server asks of a policy.
//!
//! Two halves, so that one client's pictures are resized while another's actions are computed: [`Policy::prepare`] runs on
//! any thread, [`Policy::infer`] on the one thread that owns the device.

use super::request::{Answer, Request};
use super::tree::Tree;

/// A policy, served.
pub trait Policy: Send + Sync + 'static {
    /// An observation that is ready for the model.
    type Ready: Send + 'static;

    /// What every client is told first: openpi's `policy_metadata`, a dictionary.
    fn metadata(&self) -> Tree;

    /// Everything that can be refused is refused here: keys, shapes, values that are no numbers. Runs on any thread.
    ///
    /// # Errors
    /// What is wrong with the request, with the key's name.
    fn prepare(&self, request: Request) -> Result<Self::Ready, Refusal>;

    /// May these two go through the model at once?
    fn together(&self, first: &Self::Ready, other: &Self::Ready) -> bool {
        let _ = (first, other);
        false
    }

    /// Actions for each, in order; as many answers as there were observations. Only ever called by one thread at a time.
    fn infer(&self, batch: Vec<Self::Ready>) -> Vec<Result<Answer, Refusal>>;

    /// Bytes of the device's memory in use, where the device tells.
    fn device_memory_bytes(&self) -> Option<u64> {
        None
    }
}

/// Keeps what was asked and answered.
pub trait Tap: Send + Sync + 'static {
    /// Called on a thread of its own, one at a time, in the order in which answers were sent, after they were. Where noise was
    /// drawn, `inputs` has the seed that it was drawn from; `outputs` is what openpi's `Policy.infer` returns, without the
    /// server's timings.
    ///
    /// # Errors
    /// Why it could not be kept, for the log. The server goes on.
    fn keep(&self, inputs: &Request, outputs: &Tree) -> Result<(), String>;
}

/// Why a request has no actions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whose fault it is, for the metrics.
    pub kind: Kind,
    /// For the client: the key, what was expected and found. No path, no trace.
    pub message: String,
    /// For the log alone: what the client is not told. Empty for nothing more.
    pub detail: String,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes that are no message.
    Malformed,
    /// An observation that the policy cannot take.
    Observation,
    /// The model's answer is no action, or it is not finite.
    Answer,
    /// Too many wait already.
    Busy,
    /// It waited longer than it may.
    Late,
    /// The server ends.
    Ending,
    /// Ours.
    Internal,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] =
        [Kind::Malformed, Kind::Observation, Kind::Answer, Kind::Busy, Kind::Late, Kind::Ending, Kind::Internal];

    /// As metrics and logs name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Malformed => "malformed",
            Kind::Observation => "observation",
            Kind::Answer => "answer",
            Kind::Busy => "busy",
            Kind::Late => "late",
            Kind::Ending => "ending",
            Kind::Internal => "internal",
        }
    }
}

impl Refusal {
    /// With nothing more for the log.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into(), detail: String::new() }
    }

    /// With what only the log is told.
    #[must_use]
    pub fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}
