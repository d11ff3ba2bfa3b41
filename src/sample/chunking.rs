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

use burn::tensor::{DType, Tensor, TensorData};

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
        /// `[B, horizon]`: what each action counts: see [`weights`](crate::policy::chunking::weights).
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

/// One way from noise to actions.
struct Course<'a> {
    steps: &'a Steps,
    at: At<'a>,
    from: &'a Continue,
}

impl Course<'_> {
    /// The velocity of `x_t`, made to go on from the last chunk.
    fn velocity(&self, x_t: Tensor<3>, t: f32, condition: &Condition, taps: &mut Taps<'_>) -> Tensor<3> {
        let [b, horizon, a] = x_t.dims();
        match self.from {
            Continue::Guided { previous, weights, max_guidance_weight } => {
                let w = TensorData::new(weights.clone(), [weights.len() / horizon, horizon, 1]);
                let w = Tensor::<3>::from_data(w, (&x_t.device(), DType::F32));
                let x = x_t.autodiff().require_grad();
                let v = self.at.velocity(x.clone(), condition, &mut Taps::off());
                let dtype = v.dtype();
                let v = v.cast(DType::F32);
                let clean = x.clone() - v.clone().mul_scalar(t);
                let error = (previous.clone() - clean.clone().inner()) * w;
                taps.note(format_args!("step/error"), &error);
                let mut found = (clean * error).sum().backward();
                let pull = x.grad_remove(&mut found).expect("the clean actions depend on the noisy ones");
                taps.note(format_args!("step/correction"), &pull);
                (v.inner() - pull.mul_scalar(guidance(t, *max_guidance_weight))).cast(dtype)
            }
            Continue::Frozen { delay: 0, .. } => self.at.velocity(x_t, condition, taps),
            Continue::Frozen { delay, .. } => {
                let delay = (*delay).min(horizon);
                let clean = self.steps.clean(self.at.pi);
                let condition = Condition::by_token((clean, delay), (condition, horizon - delay));
                let v = self.at.velocity(x_t, &condition, taps);
                let still = Tensor::zeros([b, delay, a], (&v.device(), v.dtype()));
                v.slice_assign([0..b, 0..delay, 0..a], still)
            }
        }
    }

    /// With the actions that stay where they stay.
    fn pinned(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, horizon, a] = x.dims();
        match self.from {
            Continue::Frozen { previous, delay } if *delay > 0 => {
                let stays = [0..b, 0..(*delay).min(horizon), 0..a];
                x.slice_assign(stays.clone(), previous.clone().slice(stays))
            }
            _ => x,
        }
    }
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
        let course = Course { steps: self, at: At::new(pi, context, state), from };
        let x =
            self.walk(course.pinned(noise), taps, |x_t, t, condition, taps| course.velocity(x_t, t, condition, taps));
        course.pinned(x)
    }

    /// The velocity in one step of [`Steps::denoise_on`], counted from 0.
    #[allow(clippy::too_many_arguments, reason = "those of denoise_on, and which step")]
    pub fn velocity_on(
        &self,
        step: usize,
        pi: &Pi,
        context: &Context,
        state: &Tensor<2>,
        x_t: Tensor<3>,
        from: &Continue,
        taps: &mut Taps<'_>,
    ) -> Tensor<3> {
        let course = Course { steps: self, at: At::new(pi, context, state), from };
        course.velocity(x_t, self.times()[step], self.condition(step), taps)
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
