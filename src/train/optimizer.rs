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

use std::ops::Range;

use burn::tensor::Tensor;

use super::leaves::pieces;
use super::settings::Optimizer;

/// What an optimizer remembers of a parameter, flat.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "all of a run are of one kind")]
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

impl Memory {
    /// The same of each tensor.
    pub(super) fn map(&self, f: &dyn Fn(&Tensor<1>) -> Tensor<1>) -> Self {
        match self {
            Memory::Moments { mu, nu } => Memory::Moments { mu: f(mu), nu: f(nu) },
            Memory::Trace(trace) => Memory::Trace(f(trace)),
        }
    }

    /// Puts a piece in its place.
    pub(super) fn replace(&mut self, piece: &Range<usize>, by: Memory) {
        let put = |x: &mut Tensor<1>, part: Tensor<1>| *x = take(x).slice_assign([piece.clone()], part);
        match (self, by) {
            (Memory::Moments { mu, nu }, Memory::Moments { mu: m, nu: n }) => {
                put(mu, m);
                put(nu, n);
            }
            (Memory::Trace(trace), Memory::Trace(part)) => put(trace, part),
            _ => unreachable!("a piece of a memory is of its kind"),
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

/// What a step does with every parameter.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// AdamW or SGD.
    pub optimizer: Optimizer,
    /// As [`clipping`] has it.
    pub clip: Option<(f32, f32)>,
    /// How much of a moving average stays.
    pub ema_decay: Option<f64>,
    /// 1 for the first step.
    pub count: u64,
    /// The schedule's.
    pub rate: f32,
    /// Values that are updated at once.
    pub piece: usize,
}

impl Step {
    /// The new weight; memory and average move along. A long tensor is taken piece by piece, to the same bits.
    pub fn take(
        &self,
        memory: &mut Memory,
        weight: Tensor<1>,
        gradient: Tensor<1>,
        mut average: Option<&mut Tensor<1>>,
    ) -> Tensor<1> {
        let values = weight.dims()[0];
        if values <= self.piece {
            let weight = self.update(memory, weight, gradient);
            if let (Some(decay), Some(average)) = (self.ema_decay, average) {
                let old = take(average);
                *average = mean(old, &weight, decay);
            }
            return weight;
        }
        let mut weight = weight;
        for piece in pieces(values, self.piece) {
            let cut = |x: &Tensor<1>| x.clone().slice(piece.clone());
            let mut part = memory.map(&cut);
            let new = self.update(&mut part, cut(&weight), cut(&gradient));
            memory.replace(&piece, part);
            if let (Some(decay), Some(average)) = (self.ema_decay, average.as_deref_mut()) {
                let part = mean(cut(average), &new, decay);
                *average = take(average).slice_assign([piece.clone()], part);
            }
            weight = weight.slice_assign([piece.clone()], new);
        }
        weight
    }

    fn update(&self, memory: &mut Memory, weight: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
        let gradient = match self.clip {
            Some((norm, most)) => gradient.div_scalar(norm).mul_scalar(most),
            None => gradient,
        };
        update(&self.optimizer, memory, weight, gradient, self.count, self.rate)
    }
}

fn mean(average: Tensor<1>, weight: &Tensor<1>, decay: f64) -> Tensor<1> {
    average.mul_scalar(decay) + weight.clone().mul_scalar(1.0 - decay)
}

/// Takes a tensor out of its place, so that it is nobody else's and may be changed where it lies.
fn take(x: &mut Tensor<1>) -> Tensor<1> {
    let empty = Tensor::empty([0], &x.device());
    std::mem::replace(x, empty)
}

fn power(base: f32, count: u64) -> f32 {
    base.powi(i32::try_from(count).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::chance::Stream;

    #[test]
    fn a_parameter_taken_in_pieces_comes_to_the_same_bits() {
        let values = |name: &str| Tensor::<1>::from_data(&Stream::new(5, name, 0).normals(103)[..], &Device::flex());
        let adamw = Optimizer::Adamw { b1: 0.9, b2: 0.95, eps: 1e-8, weight_decay: 0.1, clip_gradient_norm: 1.0 };
        for optimizer in [adamw, Optimizer::Sgd { lr: 1e-3, momentum: 0.9, nesterov: true }] {
            let run = |piece: usize| {
                let mut weight = values("weight");
                let (mut memory, mut average) = (Memory::new(&optimizer, &weight), weight.clone());
                for count in 1..4 {
                    let clip = (count == 2).then_some((3.5, 1.0));
                    let step = Step { optimizer, clip, ema_decay: Some(0.99), count, rate: 1e-3, piece };
                    weight = step.take(&mut memory, weight, values(&format!("gradient {count}")), Some(&mut average));
                }
                let list = |x: &Tensor<1>| x.clone().into_data().iter::<f32>().collect::<Vec<f32>>();
                let memory = match &memory {
                    Memory::Moments { mu, nu } => vec![list(mu), list(nu)],
                    Memory::Trace(trace) => vec![list(trace)],
                };
                (list(&weight), list(&average), memory)
            };
            let whole = run(103);
            assert_ne!(whole.0, values("weight").into_data().iter::<f32>().collect::<Vec<f32>>());
            for piece in [1, 7, 50, 102] {
                assert_eq!(run(piece), whole, "pieces of {piece}");
            }
        }
    }
}
