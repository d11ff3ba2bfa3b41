//! Actions by Euler steps from noise at t = 1 to t = 0.
//!
//! The prefix is read once; time embeddings and the norms' modulations are made once for all steps, and again only for
//! another number of steps. t is accumulated in f32, as openpi does. Source: openpi 15a9616, models/pi0.py,
//! `sample_actions`.

use burn::tensor::{DType, Tensor};
use half::bf16;

use crate::model::flow::{Condition, Context};
use crate::model::observation::Observation;
use crate::model::{Padding, Pi, Taps};

/// The steps of a model, with all that no observation changes.
#[derive(Debug, Clone)]
pub struct Steps {
    times: Vec<f32>,
    dt: f32,
    conditions: Vec<Condition>,
}

impl Steps {
    /// `num_steps` equal steps, at least one.
    pub fn new(pi: &Pi, num_steps: usize) -> Self {
        let dt = -1.0 / num_steps as f32;
        let (mut times, mut time) = (vec![], 1.0f32);
        while time >= -dt / 2.0 {
            times.push(time);
            time += dt;
        }
        let all = pi.condition(&times, &mut Taps::off());
        Steps { conditions: (0..times.len()).map(|i| all.row(i)).collect(), times, dt }
    }

    /// The time at which each step begins.
    pub fn times(&self) -> &[f32] {
        &self.times
    }

    /// From `noise [B, horizon, A]`, f32, to actions after a prefix that has been read; `state [B, A]`.
    pub fn denoise(
        &self,
        pi: &Pi,
        context: &Context,
        state: &Tensor<2>,
        noise: Tensor<3>,
        taps: &mut Taps<'_>,
    ) -> Tensor<3> {
        let horizon = noise.dims()[1];
        let (mut x_t, mut at) = (noise, None);
        for condition in &self.conditions {
            let suffix = pi.embed_suffix(state, x_t.clone(), condition, &mut Taps::off());
            taps.note(format_args!("step/embed_suffix"), &suffix.tokens);
            if let Some(x) = &condition.adarms_cond {
                taps.note(format_args!("step/adarms_cond"), x);
            }
            let at = at.get_or_insert_with(|| pi.attend_suffix(context, &suffix));
            let v_t = pi.velocity_after(context, at, suffix, condition, horizon, taps);
            taps.note(format_args!("step/v_t"), &v_t);
            // A velocity in bf16 rounds dt to bf16, but not the product.
            let dt = if v_t.dtype() == DType::BF16 { bf16::from_f32(self.dt).to_f32() } else { self.dt };
            x_t = x_t + v_t.cast(DType::F32).mul_scalar(dt);
        }
        x_t
    }
}

/// Actions `[B, horizon, A]`, f32, from `noise` of that shape.
pub fn sample_actions(
    pi: &Pi,
    observation: &Observation,
    noise: Tensor<3>,
    steps: &Steps,
    padding: Padding,
    taps: &mut Taps<'_>,
) -> Tensor<3> {
    let prefix = pi.embed_prefix(observation, padding, taps);
    let context = pi.read_prefix(prefix, taps);
    steps.denoise(pi, &context, &observation.state, noise, taps)
}
