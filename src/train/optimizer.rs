//! What makes new weights of gradients: optax's AdamW and SGD, after its clipping by the global norm.
//!
//! ```text
//! g  ← g                     if |g| < max, else g / |g| · max          |g| over all trainable parameters at once
//! mu ← (1 − b1) g + b1 mu,   nu ← (1 − b2) g² + b2 nu
//! u  = mu / (1 − b1ⁿ) / (sqrt(nu / (1 − b2ⁿ)) + eps) + weight_decay · w
//! w  ← w − rate · u
//! ```
//!
//! Burn's own optimizers deviate: `AdamW` decays weights apart from the update and has an epsilon of 1e-5 unless told, and its
//! clipping by norm takes each tensor's own norm. So these are written out, in the order of optax's operations.
//!
//! Invariant: all of it is f32, elementwise, and the same whatever order the parameters come in.
//! Sources: optax 0.2.4 (`adamw`, `sgd`, `clip_by_global_norm`); openpi 15a9616, training/optimizer.py.

use burn::tensor::Tensor;

use super::settings::Optimizer;

/// What an optimizer remembers of a parameter, flat.
#[derive(Debug, Clone)]
pub enum Memory {
    /// AdamW: the means of the gradient and of its square.
    Moments {
        /// Of the gradient.
        mu: Tensor<1>,
        /// Of its square.
        nu: Tensor<1>,
    },
    /// SGD: the gradient and those before it, less and less of them.
    Trace(Tensor<1>),
}

impl Memory {
    /// Of a parameter like this, before the first step.
    pub fn new(optimizer: &Optimizer, like: &Tensor<1>) -> Self {
        match optimizer {
            Optimizer::Adamw { .. } => Memory::Moments { mu: like.zeros_like(), nu: like.zeros_like() },
            Optimizer::Sgd { .. } => Memory::Trace(like.zeros_like()),
        }
    }
}

/// By what a gradient is divided and then multiplied, for a norm of all of them. `None`: it stays.
pub fn clipping(optimizer: &Optimizer, norm: f64) -> Option<(f32, f32)> {
    match *optimizer {
        Optimizer::Adamw { clip_gradient_norm, .. } => {
            (norm as f32 >= clip_gradient_norm as f32).then_some((norm as f32, clip_gradient_norm as f32))
        }
        Optimizer::Sgd { .. } => None,
    }
}

/// The new weight. `count` is 1 for the first step; `rate` is the schedule's.
pub fn update(
    optimizer: &Optimizer,
    memory: &mut Memory,
    weight: Tensor<1>,
    gradient: Tensor<1>,
    count: u64,
    rate: f32,
) -> Tensor<1> {
    match (*optimizer, memory) {
        (Optimizer::Adamw { b1, b2, eps, weight_decay, .. }, Memory::Moments { mu, nu }) => {
            let mean = |old: &Tensor<1>, new: Tensor<1>, decay: f64| {
                new.mul_scalar(1.0 - decay) + old.clone().mul_scalar(decay)
            };
            *mu = mean(mu, gradient.clone(), b1);
            *nu = mean(nu, gradient.clone() * gradient, b2);
            // Powers and differences in f32, as the reference has them.
            let unbiased = |x: &Tensor<1>, decay: f64| x.clone().div_scalar(1.0 - power(decay as f32, count));
            let step = unbiased(mu, b1) / (unbiased(nu, b2).sqrt() + eps);
            let step = step + weight.clone().mul_scalar(weight_decay);
            weight + step.mul_scalar(-rate)
        }
        (Optimizer::Sgd { momentum, nesterov, .. }, Memory::Trace(trace)) => {
            *trace = gradient.clone() + trace.clone().mul_scalar(momentum);
            let step = if nesterov { gradient + trace.clone().mul_scalar(momentum) } else { trace.clone() };
            weight + step.mul_scalar(-rate)
        }
        _ => unreachable!("a memory belongs to the optimizer that made it"),
    }
}

fn power(base: f32, count: u64) -> f32 {
    base.powi(i32::try_from(count).unwrap_or(i32::MAX))
}
