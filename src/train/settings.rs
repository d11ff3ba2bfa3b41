//! How a step is made, as openpi's TrainConfig says it; the schedule of its rate is in [`super::schedule`].
//!
//! Source: openpi 15a9616, training/optimizer.py. Invariant: no default stands here; they are written out in the presets.

use serde::Deserialize;

/// What makes a step of a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Optimizer {
    /// AdamW, after the gradient's norm is clipped.
    Adamw { b1: f64, b2: f64, eps: f64, weight_decay: f64, clip_gradient_norm: f64 },
    /// Stochastic gradient descent.
    Sgd { lr: f64, momentum: f64, nesterov: bool },
}
