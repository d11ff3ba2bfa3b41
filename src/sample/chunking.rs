//! Real-time chunking: a chunk that goes on from the last one, which is still being run while this one is computed.
//!
//! `Y` is what is left of the last chunk, its first action run now; d of its actions are run before the new chunk is there.
//!
//! - [`Continue::Guided`], for any model: every step's velocity is corrected by how the clean actions that it promises,
//!   `A = x_t - t v`, miss `Y`. `g = min(c ((1 - t)² + t²) / t², max)` with `c = t / (1 - t)`, and
//!   `v ← v - g Jᵀ(w (Y - A))`, where J is the true Jacobian of A by x_t, through the network. Source: Black, Galliker,
//!   Levine 2025, arXiv 2506.07339, and its code (real-time-chunking-kinetix, model.py), whose time runs the other way.
//! - [`Continue::Frozen`], for models that were trained so: the first d actions are the last chunk's own in every step, at
//!   time 0, and the others see them. Source: Black et al. 2025, arXiv 2512.05964.
//!
//! Invariant: with nothing to go on from (weights of zero, no delay) both are plain sampling.

use burn::tensor::{DType, Tensor};

use super::flow::{At, Steps};
use crate::model::flow::{Condition, Context};
use crate::model::{Pi, Taps};

/// What is left of the last chunk, and how the next one goes on from it.
#[derive(Debug, Clone)]
pub enum Continue {
    /// The velocity is corrected.
    Guided {
        /// `[B, horizon, A]`, f32, as the model has actions; zeros where nothing is left.
        previous: Tensor<3>,
        /// What each action of the horizon counts: see [`weights`](crate::policy::chunking::weights).
        weights: Vec<f32>,
        /// The bound of g.
        max_guidance_weight: f32,
    },
    /// The first actions stay.
    Frozen {
        /// `[B, horizon, A]`, f32, as the model has actions.
        previous: Tensor<3>,
        /// How many stay.
        delay: usize,
    },
}

/// g at time t.
fn guidance(t: f32, max: f32) -> f32 {
    // At t = 1 the first factor is infinite and the bound holds.
    let c = if t >= 1.0 { max } else { t / (1.0 - t) };
    let spread = ((1.0 - t) * (1.0 - t) + t * t) / (t * t);
    (c * spread).min(max)
}

impl Steps {
    /// As [`Steps::denoise`], going on from the last chunk.
    pub fn denoise_on(
        &self,
        pi: &Pi,
        context: &Context,
        state: &Tensor<2>,
        noise: Tensor<3>,
        from: &Continue,
        taps: &mut Taps<'_>,
    ) -> Tensor<3> {
        let at = At::new(pi, context, state);
        let [b, horizon, a] = noise.dims();
        match from {
            Continue::Guided { previous, weights, max_guidance_weight } => {
                let w = Tensor::<1>::from_data(&weights[..], (&noise.device(), DType::F32)).reshape([1, horizon, 1]);
                self.walk(noise, taps, |x_t, t, condition, taps| {
                    let x = x_t.autodiff().require_grad();
                    let v = at.velocity(x.clone(), condition, &mut Taps::off());
                    let dtype = v.dtype();
                    let v = v.cast(DType::F32);
                    let clean = x.clone() - v.clone().mul_scalar(t);
                    let error = (previous.clone() - clean.clone().inner()) * w.clone();
                    let mut found = (clean * error).sum().backward();
                    let pull = x.grad_remove(&mut found).expect("the clean actions depend on the noisy ones");
                    taps.note(format_args!("step/pull"), &pull);
                    (v.inner() - pull.mul_scalar(guidance(t, *max_guidance_weight))).cast(dtype)
                })
            }
            Continue::Frozen { previous, delay } => {
                let delay = (*delay).min(horizon);
                let last = previous.clone().slice([0..b, 0..delay, 0..a]);
                let begin = |x: Tensor<3>| match delay {
                    0 => x,
                    _ => x.slice_assign([0..b, 0..delay, 0..a], last.clone()),
                };
                let x = self.walk(begin(noise), taps, |x_t, _, condition, taps| {
                    if delay == 0 {
                        return at.velocity(x_t, condition, taps);
                    }
                    let condition = Condition::by_token((self.clean(pi), delay), (condition, horizon - delay));
                    let v = at.velocity(x_t, &condition, taps);
                    let (still, dtype) = ([0..b, 0..delay, 0..a], v.dtype());
                    v.slice_assign(still, Tensor::zeros([b, delay, a], (&last.device(), dtype)))
                });
                begin(x)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guidance_is_bounded_where_its_factor_is_infinite() {
        assert_eq!(guidance(1.0, 5.0), 5.0);
        assert_eq!(guidance(0.5, 5.0), 2.0);
        assert!(guidance(0.1, 5.0) > 5.0 * 0.99);
    }
}
