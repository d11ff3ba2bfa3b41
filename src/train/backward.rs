//! Loss and gradients of a batch: in one graph, or block by block with every block's inside computed again.
//!
//! Block by block, the forward pass keeps what goes into each block and nothing else; the backward pass runs each block a
//! second time, now with a graph, and asks it for the product of its Jacobian with what the blocks above said. That is
//! JAX's `nothing_saveable`: memory for one block's inside, for a third more work.
//!
//! Invariants: both give the same gradients, but for the order of sums; what is frozen and what feeds no trainable
//! parameter is never differentiated. What nobody may see (cameras masked in every row, padding of every row) is not run
//! for pi0 and pi0.5; pi0-FAST's positions count it, so it stays.
//! Sources: openpi 15a9616, scripts/train.py (`train_step`), models/pi0.py and pi0_fast.py (`compute_loss`).

use burn::tensor::{DType, Tensor};

use super::leaves::{Gradients, Leaves, track};
use crate::model::Pi;
use crate::model::flow::interpolate;
use crate::model::language::{Attend, Streams};
use crate::model::norm::Modulation;
use crate::model::observation::Observation;
use crate::model::pi::{Layout, Padding};
use crate::model::tap::Taps;
use crate::model::time::posemb_sincos;

/// Rows to learn from, on a device.
#[derive(Debug, Clone)]
pub struct Input {
    /// What the model sees.
    pub observation: Observation,
    /// What it should do.
    pub target: Target,
    /// What these rows are of the batch: 1 if they are all of it.
    pub share: f64,
}

/// What a model learns.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one to a batch")]
pub enum Target {
    /// pi0, pi0.5: the velocity from actions to noise.
    Flow {
        /// `[B, horizon, A]`, f32, normalised.
        actions: Tensor<3>,
        /// `[B, horizon, A]`, f32.
        noise: Tensor<3>,
        /// B values in (0, 1].
        time: Vec<f32>,
        /// `[B, horizon, A]`: what each value counts in the loss, all of the batch together 1; `None`: all the same.
        weights: Option<Tensor<3>>,
    },
    /// pi0-FAST: the next token.
    Tokens,
}

/// A loss and which way it grows.
#[derive(Debug)]
pub struct Slope {
    /// `[1]`, f32: these rows' part of the batch's loss.
    pub loss: Tensor<1>,
    /// By canonical name.
    pub gradients: Gradients,
}

/// The loss of some rows, their part of the batch's.
pub fn loss(pi: &Pi, input: &Input) -> Tensor<1> {
    let taps = &mut Taps::off();
    match &input.target {
        Target::Flow { actions, noise, time, weights: None } => {
            let loss = pi.compute_loss(&input.observation, actions.clone(), noise.clone(), time, taps);
            loss.mean().mul_scalar(input.share)
        }
        Target::Flow { .. } => {
            let (xs, at, condition) = forward_to_blocks(pi, input);
            let (mut xs, horizon) = (xs, input.horizon());
            for block in &pi.llm.blocks {
                let m = condition.as_ref().and_then(|c| block.modulate(1, c));
                xs = block.forward(xs, &at, &|e| if e == 1 { m.as_ref() } else { None }, None, false).0;
            }
            head(pi, input, xs, condition.as_ref(), horizon)
        }
        Target::Tokens => pi.compute_token_loss(&input.observation, taps).mean().mul_scalar(input.share),
    }
}

/// Loss and gradients in one graph: all activations are kept.
pub fn in_one_graph(pi: &Pi, input: &Input, trains: &dyn Fn(&str) -> bool) -> Slope {
    let (tracked, leaves) = track(pi, "", trains);
    let loss = loss(&tracked, input);
    let mut gradients = Gradients::default();
    leaves.collect(&mut loss.backward(), &mut gradients);
    Slope { loss: loss.inner(), gradients }
}

/// Loss and gradients block by block.
pub fn by_blocks(pi: &Pi, input: &Input, trains: &dyn Fn(&str) -> bool) -> Slope {
    let off = &mut Taps::off();
    let flow = Flow::of(pi, trains);
    let mut gradients = Gradients::default();

    // Forward, outside of any graph.
    let layout = Layout::of(&input.observation, input.padding());
    let images = layout.images(&input.observation);
    let mut pictures = vec![];
    let seen = images.clone().map(|images| {
        let mut x = pi.img.begin(images, pi.activations(), off);
        for (l, block) in pi.img.blocks.iter().enumerate() {
            pictures.push(x.clone());
            x = block.forward(x, l, off);
        }
        pictures.push(x.clone());
        pi.img.finish(x, off)
    });
    let cameras = seen.as_ref().map_or([0; 3], Tensor::dims);
    let words = layout.words(&input.observation);
    let said = words.clone().map(|words| pi.llm.embed.encode(words, pi.activations()));
    let prefix = layout.join(&input.observation, seen, said);
    let whole = prefix.tokens.dims();
    let Begun { mut xs, at, condition } = begin(pi, input, prefix);
    let mut inputs = vec![];
    for block in &pi.llm.blocks {
        inputs.push(xs.clone());
        let m = condition.as_ref().and_then(|c| block.modulate(1, c));
        xs = block.forward(xs, &at, &modulation(&m), None, false).0;
    }

    // The last norm, the projection and the loss.
    let depth = pi.llm.blocks.len();
    let mut conditions = condition.clone().filter(|_| flow.condition).map(|c| c.zeros_like().cast(DType::F32));
    let (tracked, leaves) = track(pi, "", &|name| trains(name) && ends(name));
    let used = if xs.len() > 1 { 1 } else { 0 };
    let top = xs.into_iter().enumerate().map(|(e, x)| if e == used { leaf(x, flow.needs(e, depth)) } else { None });
    let top: Streams = top.collect();
    let c = leaf(condition.clone(), flow.condition);
    let loss = head(&tracked, input, top.clone(), c.as_ref(), input.horizon());
    let mut dxs: Streams = vec![None; top.len()];
    if loss.is_tracked() {
        let mut found = loss.backward();
        leaves.collect(&mut found, &mut gradients);
        dxs = top.iter().map(|x| x.as_ref().and_then(|x| x.grad_remove(&mut found))).collect();
        add_condition(&mut conditions, c, &mut found);
    }
    let loss = loss.inner();

    // The blocks, from the last to the first.
    for (l, (block, input)) in pi.llm.blocks.iter().zip(inputs).enumerate().rev() {
        let streams = dxs.len();
        let dys = std::mem::replace(&mut dxs, vec![None; streams]);
        if dys.iter().all(Option::is_none) {
            break;
        }
        let (block, leaves) = track(block, &format!("llm.blocks.{l}"), trains);
        let xs: Streams = input.into_iter().enumerate().map(|(e, x)| leaf(x, flow.needs(e, l))).collect();
        if leaves.is_empty() && !xs.iter().flatten().any(Tensor::is_tracked) {
            break;
        }
        let c = leaf(condition.clone(), flow.condition);
        let m = c.as_ref().and_then(|c| block.modulate(1, c));
        let ys = block.forward(xs.clone(), &at, &modulation(&m), None, false).0;
        let products = ys.into_iter().zip(dys).filter_map(|(y, dy)| Some((y? * dy?).sum()));
        let mut found = match products.filter(Tensor::is_tracked).reduce(|a, b| a + b) {
            Some(product) => product.backward(),
            None => break,
        };
        leaves.collect(&mut found, &mut gradients);
        dxs =
            xs.iter().map(|x| x.as_ref().filter(|x| x.is_tracked()).and_then(|x| x.grad_remove(&mut found))).collect();
        add_condition(&mut conditions, c, &mut found);
    }

    // State, actions and time.
    let suffix = dxs.get(1).cloned().flatten();
    if suffix.is_some() || conditions.is_some() {
        let (tracked, leaves) = track(pi, "", &|name| trains(name) && is_projection(name));
        let (x, c) = suffix_of(&tracked, input);
        let terms = [suffix.map(|dx| (x * dx).sum()), conditions.zip(c).map(|(dc, c)| (c.cast(DType::F32) * dc).sum())];
        backward(terms.into_iter().flatten().collect(), leaves, &mut gradients);
    }
    // Words and pictures.
    let Some(dprefix) = dxs.into_iter().next().flatten() else { return Slope { loss, gradients } };
    let dprefix = pad(dprefix, whole[1]);
    let [of_all, tokens, _] = cameras;
    let b = whole[0];
    let shown = of_all / b.max(1) * tokens;
    if let Some(words) = words.filter(|_| trains(EMBEDDING)) {
        let (embed, leaves) = track(&pi.llm.embed, "llm.embed", trains);
        let said = dprefix.clone().narrow(1, shown, whole[1] - shown);
        backward(vec![(embed.encode(words, pi.activations()) * said).sum()], leaves, &mut gradients);
    }
    if let (Some(images), true) = (images, flow.pictures) {
        let dy = (0..of_all / b).map(|i| dprefix.clone().narrow(1, i * tokens, tokens)).collect();
        pictures_backward(pi, images, pictures, Tensor::cat(dy, 0), trains, &mut gradients);
    }
    Slope { loss, gradients }
}

/// The vision tower, from its head to its patches.
fn pictures_backward(
    pi: &Pi,
    images: Tensor<4>,
    mut inputs: Vec<Tensor<3>>,
    mut dy: Tensor<3>,
    trains: &dyn Fn(&str) -> bool,
    gradients: &mut Gradients,
) {
    let off = &mut Taps::off();
    let (tower, leaves) = track(&pi.img, "img", &|name| trains(name) && ends(name));
    let Some(x) = inputs.pop().map(|x| x.autodiff().require_grad()) else { return };
    let mut found = (tower.finish(x.clone(), off) * dy).sum().backward();
    leaves.collect(&mut found, gradients);
    let Some(dx) = x.grad_remove(&mut found) else { return };
    dy = dx;
    for (l, (block, x)) in pi.img.blocks.iter().zip(inputs).enumerate().rev() {
        let (block, leaves) = track(block, &format!("img.blocks.{l}"), trains);
        let x = x.autodiff().require_grad();
        let mut found = (block.forward(x.clone(), l, off) * dy).sum().backward();
        leaves.collect(&mut found, gradients);
        let Some(dx) = x.grad_remove(&mut found) else { return };
        dy = dx;
    }
    let (tower, leaves) = track(&pi.img, "img", &|name| trains(name) && !ends(name) && !name.contains(".blocks."));
    backward(vec![(tower.begin(images, pi.activations(), off) * dy).sum()], leaves, gradients);
}

/// Differentiates a sum, if it depends on a leaf.
fn backward(terms: Vec<Tensor<1>>, leaves: Leaves, gradients: &mut Gradients) {
    if let Some(sum) = terms.into_iter().filter(Tensor::is_tracked).reduce(|a, b| a + b) {
        leaves.collect(&mut sum.backward(), gradients);
    }
}

/// The word vectors: read at the beginning, and by pi0-FAST at the end too.
const EMBEDDING: &str = "llm.embed.weight";

/// Is it of what comes after the blocks?
fn ends(name: &str) -> bool {
    ["llm.norms.", "action_out_proj.", EMBEDDING, "img.norm.", "img.head."].iter().any(|p| name.starts_with(p))
}

/// Is it of what makes tokens of state, actions and time?
fn is_projection(name: &str) -> bool {
    ["action_in_proj.", "state_proj.", "action_time_mlp_", "time_mlp_"].iter().any(|p| name.starts_with(p))
}

/// Where gradients have to go.
struct Flow {
    /// By layer: does something trainable feed what goes in? The last is what comes out of the blocks.
    streams: [Vec<bool>; 2],
    /// The time's condition.
    condition: bool,
    /// The vision tower.
    pictures: bool,
}

impl Flow {
    fn of(pi: &Pi, trains: &dyn Fn(&str) -> bool) -> Self {
        let names: Vec<String> = pi.parameters().into_iter().map(|(name, _)| name).filter(|n| trains(n)).collect();
        let any = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
        let pictures = any("img.");
        let (mut prefix, mut suffix) = (pictures || any(EMBEDDING), names.iter().any(|n| is_projection(n)));
        let mut streams = [vec![], vec![]];
        for l in 0..=pi.llm.blocks.len() {
            streams[0].push(prefix);
            streams[1].push(prefix || suffix);
            prefix |= any(&format!("llm.blocks.{l}.experts.0."));
            suffix |= any(&format!("llm.blocks.{l}.experts.1."));
        }
        Flow { streams, condition: any("time_mlp_"), pictures }
    }

    fn needs(&self, e: usize, l: usize) -> bool {
        self.streams[e.min(1)][l]
    }
}

/// What goes into the blocks.
struct Begun {
    xs: Streams,
    at: Attend,
    /// pi0.5: what modulates the action expert's norms, `[B, W]` in the activations' dtype.
    condition: Option<Tensor<2>>,
}

fn begin(pi: &Pi, input: &Input, prefix: crate::model::pi::Prefix) -> Begun {
    let off = &mut Taps::off();
    match &input.target {
        Target::Flow { actions, noise, time, .. } => {
            let (x_t, _) = interpolate(actions.clone(), noise.clone(), time);
            let embedding = posemb_sincos(time, pi.settings().experts[1].width, &pi.device());
            let condition = pi.condition_unmodulated(embedding, off);
            let suffix = pi.embed_suffix(&input.observation.state, x_t, &condition, off);
            let at = pi.attend_jointly(&prefix, &suffix, off);
            let xs = vec![Some(prefix.tokens), Some(suffix.tokens.cast(pi.activations()))];
            Begun { xs, at, condition: condition.adarms_cond.map(|c| c.cast(pi.activations())) }
        }
        Target::Tokens => {
            let at = pi.attend_to_all_but_last(&prefix, off);
            let [b, s, w] = prefix.tokens.dims();
            Begun { xs: vec![Some(prefix.tokens.slice([0..b, 0..s - 1, 0..w]))], at, condition: None }
        }
    }
}

fn forward_to_blocks(pi: &Pi, input: &Input) -> (Streams, Attend, Option<Tensor<2>>) {
    let prefix = pi.embed_prefix(&input.observation, input.padding(), &mut Taps::off());
    let Begun { xs, at, condition } = begin(pi, input, prefix);
    (xs, at, condition)
}

/// Tokens of state and actions, and the condition, both in the activations' dtype.
fn suffix_of(pi: &Pi, input: &Input) -> (Tensor<3>, Option<Tensor<2>>) {
    let Target::Flow { actions, noise, time, .. } = &input.target else {
        unreachable!("only a flow has a suffix");
    };
    let off = &mut Taps::off();
    let (x_t, _) = interpolate(actions.clone(), noise.clone(), time);
    let embedding = posemb_sincos(time, pi.settings().experts[1].width, &pi.device());
    let condition = pi.condition_unmodulated(embedding, off);
    let suffix = pi.embed_suffix(&input.observation.state, x_t, &condition, off);
    (suffix.tokens.cast(pi.activations()), condition.adarms_cond.map(|c| c.cast(pi.activations())))
}

/// From the streams after the last block to the loss.
fn head(pi: &Pi, input: &Input, xs: Streams, condition: Option<&Tensor<2>>, horizon: usize) -> Tensor<1> {
    let dtype = pi.activations();
    match &input.target {
        Target::Flow { actions, noise, time, weights } => {
            let (_, u_t) = interpolate(actions.clone(), noise.clone(), time);
            let x = xs.into_iter().nth(1).flatten().expect("the action expert ran");
            let m = condition.and_then(|c| pi.llm.norms[1].modulate(c));
            let out = pi.llm.norms[1].forward(x, m.as_ref(), dtype);
            let error = (pi.velocity(&[None, Some(out)], horizon).cast(DType::F32) - u_t).square();
            match weights {
                None => error.mean_dim(2).mean().mul_scalar(input.share),
                Some(weights) => (error * weights.clone()).sum(),
            }
        }
        Target::Tokens => {
            let x = xs.into_iter().next().flatten().expect("the only expert ran");
            let out = pi.llm.norms[0].forward(x, None, dtype);
            pi.cross_entropy(out, &input.observation, &mut Taps::off()).mean().mul_scalar(input.share)
        }
    }
}

impl Input {
    fn horizon(&self) -> usize {
        match &self.target {
            Target::Flow { actions, .. } => actions.dims()[1],
            Target::Tokens => 0,
        }
    }

    fn padding(&self) -> Padding {
        match self.target {
            Target::Flow { .. } => Padding::Drop,
            Target::Tokens => Padding::Keep,
        }
    }
}

/// A leaf of a new graph, if a gradient has to go through it.
fn leaf<const D: usize>(x: Option<Tensor<D>>, needed: bool) -> Option<Tensor<D>> {
    x.map(|x| if needed { x.autodiff().require_grad() } else { x })
}

/// The modulation of the action expert, for a block.
fn modulation<'m>(m: &'m Option<[Modulation; 2]>) -> impl Fn(usize) -> Option<&'m [Modulation; 2]> {
    move |e| if e == 1 { m.as_ref() } else { None }
}

/// Adds what one block says of the condition, in f32.
fn add_condition(sum: &mut Option<Tensor<2>>, c: Option<Tensor<2>>, found: &mut burn::tensor::Gradients) {
    if let (Some(sum), Some(c)) = (sum, c.filter(Tensor::is_tracked))
        && let Some(dc) = c.grad_remove(found)
    {
        *sum = sum.clone() + dc.cast(DType::F32);
    }
}

/// With rows of zero at the end: pi0-FAST does not read its last token.
fn pad(dx: Tensor<3>, tokens: usize) -> Tensor<3> {
    let [b, s, w] = dx.dims();
    if s == tokens {
        return dx;
    }
    let zeros = Tensor::zeros([b, tokens - s, w], (&dx.device(), dx.dtype()));
    Tensor::cat(vec![dx, zeros], 1)
}
