//! A request on its way to the network.

pub(super) use crate::cli::inference::Seen;
use crate::cli::observation::Noise;
use crate::policy::chunking::Method;

/// An observation that is ready for the network.
#[derive(Debug)]
pub struct Ready {
    pub(super) seen: Seen,
    pub(super) begin: Begin,
    /// From which chance was drawn; `None` where the noise was given.
    pub(super) seed: Option<u64>,
    pub(super) left: Option<Left>,
}

/// What the answer begins as.
#[derive(Debug)]
pub(super) enum Begin {
    /// pi0, pi0.5.
    Noise(Noise),
    /// pi0-FAST: nothing, but chance may choose tokens.
    Seed,
}

/// What is left of the last chunk, as the model has actions.
#[derive(Debug)]
pub(super) struct Left {
    /// `[horizon, A]`, zeros where nothing is left.
    pub(super) values: Vec<f32>,
    pub(super) shape: [usize; 2],
    /// Actions that are left.
    pub(super) n: usize,
    /// How many of them are run before the new chunk is there.
    pub(super) delay: usize,
    pub(super) method: Method,
}
