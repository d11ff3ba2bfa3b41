//! pi0 and pi0.5: actions from noise, by the velocity of a flow.
//!
//! `x_t = t noise + (1 - t) actions`, and the model learns `u = noise - actions`. Noise and time are arguments.
//! Source: openpi 15a9616, models/pi0.py. Letters: B batch, P prefix, T suffix, A action dim, W width.

use burn::tensor::{DType, Tensor, TensorData, activation};

use super::cache::Cache;
use super::language::{Attend, Depth, Modulations};
use super::linear::Linear;
use super::mask::{Mask, Positions};
use super::norm::tokens;
use super::observation::{Flags, Observation};
use super::pi::{Padding, Pi, Prefix};
use super::rope::Rope;
use super::tap::Taps;
use super::time::posemb_sincos;

/// What the model makes of one or more times: all that depends on no action.
#[derive(Debug, Clone)]
pub struct Condition {
    /// `[times, 1, W]`, f32: sines and cosines; `[1, horizon, W]` where each action has a time of its own.
    pub embedding: Tensor<3>,
    /// pi0.5: `[times, W]`, f32, what the norms are modulated by.
    pub adarms_cond: Option<Tensor<2>>,
    /// pi0.5: scale, shift and gate of every norm of the action expert.
    pub modulations: Option<Modulations>,
}

impl Condition {
    /// Of one time: shared by all rows of a batch.
    pub fn row(&self, row: usize) -> Self {
        Condition {
            embedding: self.embedding.clone().narrow(0, row, 1),
            adarms_cond: self.adarms_cond.as_ref().map(|x| x.clone().narrow(0, row, 1)),
            modulations: self.modulations.as_ref().map(|m| m.row(row)),
        }
    }

    /// Of actions with times of their own: `first` for so many of them, `then` for so many more; both of one row.
    pub fn by_token((first, n): (&Self, usize), (then, m): (&Self, usize)) -> Self {
        let modulations = first.modulations.as_ref().zip(then.modulations.as_ref());
        Condition {
            embedding: tokens((&first.embedding, n), (&then.embedding, m)),
            adarms_cond: None,
            modulations: modulations.map(|(a, b)| Modulations::by_token((a, n), (b, m))),
        }
    }
}

/// Embedded state and noisy actions.
#[derive(Debug, Clone)]
pub struct Suffix {
    /// `[B, T, W]`, f32.
    pub tokens: Tensor<3>,
    /// `[B, T]`: all are valid.
    pub mask: Flags,
    /// `[B, T]`: which begin a block.
    pub ar: Flags,
}

/// A prefix that has been read.
#[derive(Debug, Clone)]
pub struct Context {
    /// Its keys and values.
    pub cache: Cache,
    /// `[B, P]`: which of it are no padding.
    pub mask: Flags,
}

/// A layer that these settings have.
fn need(layer: &Option<Linear>) -> &Linear {
    layer.as_ref().expect("a flow model has its projections: Pi::init made them")
}

impl Pi {
    /// Images and prompt as tokens that all see each other.
    pub fn embed_prefix(&self, observation: &Observation, padding: Padding, taps: &mut Taps<'_>) -> Prefix {
        let prefix = self.embed(observation, padding, taps);
        taps.note(format_args!("embed_prefix/tokens"), &prefix.tokens);
        taps.note_host("embed_prefix/mask", || prefix.mask.data());
        taps.note_host("embed_prefix/ar", || flags(prefix.ar.row(0)));
        prefix
    }

    /// What the model makes of `times`, one row each.
    pub fn condition(&self, times: &[f32], taps: &mut Taps<'_>) -> Condition {
        let width = self.settings().experts[1].width;
        let condition = self.condition_unmodulated(posemb_sincos(times, width, &self.device()), taps);
        let adarms_cond = condition.adarms_cond.clone();
        let modulations = adarms_cond.and_then(|x| self.llm.modulate(1, x, self.activations()));
        Condition { modulations, ..condition }
    }

    /// The same of embedded times `[times, W]`, but for what it makes of the norms.
    pub(crate) fn condition_unmodulated(&self, embedding: Tensor<2>, taps: &mut Taps<'_>) -> Condition {
        taps.note(format_args!("posemb_sincos"), &embedding);
        let adarms_cond = self.time_mlp_in.as_ref().map(|mlp_in| {
            let x = activation::silu(mlp_in.promoted(embedding.clone()));
            activation::silu(need(&self.time_mlp_out).promoted(x))
        });
        if let Some(x) = &adarms_cond {
            taps.note(format_args!("embed_suffix/adarms_cond"), x);
        }
        Condition { embedding: embedding.unsqueeze_dim(1), adarms_cond, modulations: None }
    }

    /// State `[B, A]` and noisy actions `x_t [B, horizon, A]` as tokens. `condition` has a row for each of B, or one.
    pub fn embed_suffix(
        &self,
        state: &Tensor<2>,
        x_t: Tensor<3>,
        condition: &Condition,
        taps: &mut Taps<'_>,
    ) -> Suffix {
        let [b, horizon, _] = x_t.dims();
        let actions = need(&self.action_in_proj).promoted(x_t);
        let (tokens, first) = match &self.state_proj {
            Some(state_proj) => {
                let w = actions.dims()[2];
                let time = condition.embedding.clone().expand([b, horizon, w]);
                let x = need(&self.action_time_mlp_in).promoted(Tensor::cat(vec![actions, time], 2));
                let x = need(&self.action_time_mlp_out).promoted(activation::silu(x));
                let state = state_proj.promoted(state.clone()).unsqueeze_dim::<3>(1);
                (Tensor::cat(vec![state, x], 1), 2)
            }
            None => (actions, 1),
        };
        let t = tokens.dims()[1];
        // The state begins a block, the first action another; later actions belong to the first one's.
        let suffix = Suffix { tokens, mask: Flags::all(b, t, true), ar: Flags::build(b, t, |_, token| token < first) };
        taps.note(format_args!("embed_suffix/tokens"), &suffix.tokens);
        taps.note_host("embed_suffix/mask", || suffix.mask.data());
        taps.note_host("embed_suffix/ar", || flags(suffix.ar.row(0)));
        suffix
    }

    /// Mean squared error of the velocity over all action dims: `[B, horizon]`, f32.
    ///
    /// `actions` and `noise` are `[B, horizon, A]`, f32; `time` has B values in (0, 1].
    pub fn compute_loss(
        &self,
        observation: &Observation,
        actions: Tensor<3>,
        noise: Tensor<3>,
        time: &[f32],
        taps: &mut Taps<'_>,
    ) -> Tensor<2> {
        let horizon = actions.dims()[1];
        let (x_t, u_t) = interpolate(actions, noise, time);
        taps.note(format_args!("loss/x_t"), &x_t);
        taps.note(format_args!("loss/u_t"), &u_t);
        let prefix = self.embed_prefix(observation, Padding::Keep, taps);
        let condition = self.condition(time, taps);
        let suffix = self.embed_suffix(&observation.state, x_t, &condition, taps);
        let at = self.attend_jointly(&prefix, &suffix, taps);
        let xs = vec![Some(prefix.tokens), Some(suffix.tokens.cast(self.activations()))];
        let modulations = [None, condition.modulations.as_ref()];
        let read = self.llm.forward(xs, &at, &modulations, None, Depth::Whole);
        note_cache("full", &read.cache, taps);
        if let [Some(prefix), Some(suffix)] = &read.outputs[..] {
            taps.note(format_args!("full/prefix_out"), prefix);
            taps.note(format_args!("full/suffix_out"), suffix);
        }
        let v_t = self.velocity(&read.outputs, horizon);
        taps.note(format_args!("full/v_t"), &v_t);
        let loss = (v_t.cast(DType::F32) - u_t).square().mean_dim(2).squeeze_dim::<2>(2);
        taps.note(format_args!("loss/chunked"), &loss);
        loss
    }

    /// Where prefix and suffix stand when both are read at once, as in training.
    pub(crate) fn attend_jointly(&self, prefix: &Prefix, suffix: &Suffix, taps: &mut Taps<'_>) -> Attend {
        let valid = Flags::beside(&[&prefix.mask, &suffix.mask]);
        let mask = Mask::blocks(&valid, &Flags::beside(&[&prefix.ar, &suffix.ar]));
        let positions = Positions::counted(&valid, |_| 0);
        taps.note_host("full/attn_mask", || mask.data());
        taps.note_host("full/positions", || positions.data());
        self.attend(&positions, &mask)
    }

    /// Reads a prefix once, for all steps. With taps on, the last layer runs to its end so that its output is there.
    pub fn read_prefix(&self, prefix: Prefix, taps: &mut Taps<'_>) -> Context {
        let mask = Mask::blocks(&prefix.mask, &prefix.ar);
        let at = self.attend(&Positions::counted(&prefix.mask, |_| 0), &mask);
        let depth = if taps.listening() { Depth::Whole } else { Depth::Cache };
        let read = self.llm.forward(vec![Some(prefix.tokens), None], &at, &[], None, depth);
        note_cache("prefix", &read.cache, taps);
        if let Some(Some(out)) = read.outputs.first() {
            taps.note(format_args!("prefix/out"), out);
        }
        Context { cache: read.cache, mask: prefix.mask }
    }

    /// Where the suffix stands after a prefix, for every step the same.
    pub fn attend_suffix(&self, context: &Context, suffix: &Suffix) -> Attend {
        let own = Mask::blocks(&suffix.mask, &suffix.ar);
        let mask = Mask::after(&context.mask, &own);
        let positions = Positions::counted(&suffix.mask, |row| context.mask.count(row) as i32);
        self.attend(&positions, &mask)
    }

    /// The velocity at `suffix`, `[B, horizon, A]`: f32, or bf16 where the projection's weights are.
    pub fn velocity_after(
        &self,
        context: &Context,
        at: &Attend,
        suffix: Suffix,
        condition: &Condition,
        horizon: usize,
        taps: &mut Taps<'_>,
    ) -> Tensor<3> {
        let xs = vec![None, Some(suffix.tokens.cast(self.activations()))];
        let modulations = [None, condition.modulations.as_ref()];
        let read = self.llm.forward(xs, at, &modulations, Some(&context.cache), Depth::Whole);
        if let Some(Some(out)) = read.outputs.get(1) {
            taps.note(format_args!("step/suffix_out"), out);
        }
        self.velocity(&read.outputs, horizon)
    }

    /// The last `horizon` tokens of the action expert's output as velocities, `[B, horizon, A]`.
    pub(crate) fn velocity(&self, outputs: &[Option<Tensor<3>>], horizon: usize) -> Tensor<3> {
        let out = outputs[1].clone().expect("the action expert ran");
        let first = out.dims()[1] - horizon;
        need(&self.action_out_proj).promoted(out.narrow(1, first, horizon))
    }

    fn attend(&self, positions: &Positions, mask: &Mask) -> Attend {
        let device = self.device();
        Attend {
            rope: Rope::new(positions, self.settings().experts[0].head_size, &device),
            mask: mask.upload(&device),
            query_f32: false,
            unused_keys: 0,
        }
    }
}

/// Where the flow is at `time`, and which way it goes: `x_t` and `u_t`, `[B, horizon, A]`, f32.
pub(crate) fn interpolate(actions: Tensor<3>, noise: Tensor<3>, time: &[f32]) -> (Tensor<3>, Tensor<3>) {
    let t = TensorData::new(time.to_vec(), [time.len(), 1, 1]);
    let t = Tensor::<3>::from_data(t, (&actions.device(), DType::F32));
    let x_t = t.clone() * noise.clone() + (t.neg() + 1.0) * actions.clone();
    (x_t, noise - actions)
}

fn note_cache(at: &str, cache: &Cache, taps: &mut Taps<'_>) {
    if taps.listening() {
        taps.note(format_args!("{at}/kv_k"), &cache.keys());
        taps.note(format_args!("{at}/kv_v"), &cache.values());
    }
}

/// A row of flags, as a tap shows it.
fn flags(row: &[bool]) -> TensorData {
    TensorData::new(row.to_vec(), [row.len()])
}
