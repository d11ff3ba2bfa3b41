//! Actions by Euler steps from noise at t = 1 to t = 0.
//!
//! The prefix is read once; time embeddings and the norms' modulations are made once for all steps, and again only for
//! another number of steps. t is accumulated in f32, as openpi does. Source: openpi 15a9616, models/pi0.py,
//! `sample_actions`.

use std::sync::OnceLock;

use burn::tensor::{DType, Tensor};
use half::bf16;

use crate::model::flow::{Condition, Context};
use crate::model::language::Attend;
use crate::model::observation::Observation;
use crate::model::{Padding, Pi, Taps};

/// The steps of a model, with all that no observation changes.
#[derive(Debug, Clone)]
pub struct Steps {
    times: Vec<f32>,
    dt: f32,
    conditions: Vec<Condition>,
    clean: OnceLock<Condition>,
}

/// Where an action is on its way, and what it depends on.
pub(super) struct At<'a> {
    pub(super) pi: &'a Pi,
    pub(super) context: &'a Context,
    /// `[B, A]`.
    pub(super) state: &'a Tensor<2>,
    attend: OnceLock<Attend>,
}

impl<'a> At<'a> {
    pub(super) fn new(pi: &'a Pi, context: &'a Context, state: &'a Tensor<2>) -> Self {
        At { pi, context, state, attend: OnceLock::new() }
    }

    /// The velocity of `x_t [B, horizon, A]`: f32, or bf16 where the projection's weights are.
    pub(super) fn velocity(&self, x_t: Tensor<3>, condition: &Condition, taps: &mut Taps<'_>) -> Tensor<3> {
        let horizon = x_t.dims()[1];
        let suffix = self.pi.embed_suffix(self.state, x_t, condition, &mut Taps::off());
        taps.note(format_args!("step/embed_suffix"), &suffix.tokens);
        if let Some(x) = &condition.adarms_cond {
            taps.note(format_args!("step/adarms_cond"), x);
        }
        let attend = self.attend.get_or_init(|| self.pi.attend_suffix(self.context, &suffix));
        self.pi.velocity_after(self.context, attend, suffix, condition, horizon, taps)
    }
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
        let conditions = (0..times.len()).map(|i| all.row(i)).collect();
        Steps { conditions, times, dt, clean: OnceLock::new() }
    }

    /// The time at which each step begins.
    pub fn times(&self) -> &[f32] {
        &self.times
    }

    /// What the model makes of a step's time.
    pub(super) fn condition(&self, step: usize) -> &Condition {
        &self.conditions[step]
    }

    /// What the model makes of t = 0, where actions are clean.
    pub(super) fn clean(&self, pi: &Pi) -> &Condition {
        self.clean.get_or_init(|| pi.condition(&[0.0], &mut Taps::off()))
    }

    /// Step by step from `x [B, horizon, A]`, f32; `velocity` of an x, the time and what the model makes of it.
    pub(super) fn walk(
        &self,
        mut x: Tensor<3>,
        taps: &mut Taps<'_>,
        mut velocity: impl FnMut(Tensor<3>, f32, &Condition, &mut Taps<'_>) -> Tensor<3>,
    ) -> Tensor<3> {
        for (time, condition) in self.times.iter().zip(&self.conditions) {
            let v_t = velocity(x.clone(), *time, condition, taps);
            taps.note(format_args!("step/v_t"), &v_t);
            // A velocity in bf16 rounds dt to bf16, but not the product.
            let dt = if v_t.dtype() == DType::BF16 { bf16::from_f32(self.dt).to_f32() } else { self.dt };
            x = x + v_t.cast(DType::F32).mul_scalar(dt);
        }
        x
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
        let at = At::new(pi, context, state);
        self.walk(noise, taps, |x_t, _, condition, taps| at.velocity(x_t, condition, taps))
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
