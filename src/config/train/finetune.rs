//! `[finetune]`: what openpi has no field for. Left out, a run is openpi's.
//!
//! Invariant: every default is what openpi does.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Optimizer, Training};
pub use crate::train::augment::Augment;

/// Choices of ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Finetune {
    /// In what the network computes; openpi's `model.dtype`.
    pub dtype: Precision,
    /// Which values of a chunk count.
    pub loss: Loss,
    /// How the time of a flow is drawn.
    pub time: Time,
    /// What is done to images.
    pub augment: Augment,
    /// Into how many parts a batch is cut, one after the other; the step is that of the whole batch.
    pub gradient_accumulation: u64,
    /// Checkpoints that are kept besides those of `keep_period`.
    pub max_to_keep: u64,
}

impl Default for Finetune {
    fn default() -> Self {
        Finetune {
            dtype: Precision::default(),
            loss: Loss::default(),
            time: Time::default(),
            augment: Augment::default(),
            gradient_accumulation: 1,
            max_to_keep: 1,
        }
    }
}

/// In what the network computes; weights that are trained are f32 at all times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16.
    #[default]
    Bfloat16,
    /// f32.
    Float32,
}

/// Which values of a chunk count. openpi's loss is the mean over all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Leave out the steps that lie behind an episode's end, as giga-models does.
    pub mask_padded_steps: bool,
    /// Leave out the dimensions that the robot does not have, as LeRobot does.
    pub mask_padded_dims: bool,
}

/// The time of a flow: Beta(alpha, beta), times 0.999, plus 0.001.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Time {
    /// First parameter.
    pub alpha: f64,
    /// Second parameter.
    pub beta: f64,
}

impl Default for Time {
    fn default() -> Self {
        Time { alpha: 1.5, beta: 1.0 }
    }
}

/// What each value must be by itself, and some together.
pub(super) fn check(training: &Training, finetune: &Finetune) -> Result<()> {
    ensure!(!(training.resume && training.overwrite), "resume and overwrite: one of them, not both");
    let counts = [
        ("batch_size", Some(training.batch_size)),
        ("num_train_steps", Some(training.num_train_steps)),
        ("log_interval", Some(training.log_interval)),
        ("save_interval", Some(training.save_interval)),
        ("keep_period", training.keep_period),
        ("fsdp_devices", Some(training.fsdp_devices)),
        ("gradient_accumulation", Some(finetune.gradient_accumulation)),
        ("max_to_keep", Some(finetune.max_to_keep)),
    ];
    for (name, count) in counts {
        ensure!(count != Some(0), "{name}: expected at least 1, found 0");
    }
    ensure!(
        training.batch_size.is_multiple_of(finetune.gradient_accumulation),
        "gradient_accumulation: a batch of {} cannot be cut into {} equal parts",
        training.batch_size,
        finetune.gradient_accumulation
    );
    let (from, to) = (0.0, 1.0);
    let mut numbers = vec![("time.alpha", finetune.time.alpha, None), ("time.beta", finetune.time.beta, None)];
    numbers.extend(training.ema_decay.map(|x| ("ema_decay", x, Some(to))));
    match training.optimizer {
        Optimizer::Adamw { b1, b2, eps, weight_decay, clip_gradient_norm } => numbers.extend([
            ("optimizer.b1", b1, Some(to)),
            ("optimizer.b2", b2, Some(to)),
            ("optimizer.eps", eps, None),
            ("optimizer.weight_decay", weight_decay, None),
            ("optimizer.clip_gradient_norm", clip_gradient_norm, None),
        ]),
        Optimizer::Sgd { lr, momentum, .. } => {
            numbers.extend([("optimizer.lr", lr, None), ("optimizer.momentum", momentum, Some(to))]);
        }
    }
    for (name, x, below) in numbers {
        let fits = x.is_finite() && x >= from && below.is_none_or(|below| x < below);
        let expected = below.map_or("at least 0".to_owned(), |below| format!("at least 0 and less than {below}"));
        ensure!(fits, "{name}: expected {expected}, found {x}");
    }
    for (name, x) in [("time.alpha", finetune.time.alpha), ("time.beta", finetune.time.beta)] {
        ensure!(x > 0.0, "{name}: expected more than 0, found {x}");
    }
    Ok(())
}
