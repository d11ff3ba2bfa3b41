//! The state of a run: weights, what the optimizer remembers, the moving average; and the step that moves all of them.
//!
//! Invariants: what is frozen stays bit for bit and has neither memory nor average of its own; a step is a function of the
//! state, the batch and the step's number; a step whose loss is no number changes nothing.
//! Source: openpi 15a9616, scripts/train.py (`train_step`).

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};

use super::backward::{self, Input, Slope};
use super::leaves::{Gradients, norm};
use super::optimizer::{Memory, clipping, update};
use super::settings::Optimizer;
use crate::model::Pi;

/// How a step is made.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// AdamW or SGD.
    pub optimizer: Optimizer,
    /// How much of the moving average stays at each step; `None`: there is none.
    pub ema_decay: Option<f64>,
    /// Is every block's inside computed again in the backward pass?
    pub recompute: bool,
}

/// A run's state.
#[derive(Debug)]
pub struct State {
    /// Whole, but while a step replaces weights.
    pi: Option<Pi>,
    /// Copies on other devices, which take part of each batch.
    replicas: Vec<Pi>,
    trainable: BTreeSet<String>,
    memory: BTreeMap<String, Memory>,
    average: Option<BTreeMap<String, Tensor<1>>>,
    rule: Rule,
    step: u64,
}

/// What a step was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Its number: 0 for the first.
    pub step: u64,
    /// Before the step.
    pub loss: f32,
    /// Of the gradient over all that is trained, before it is clipped.
    pub grad_norm: f64,
}

impl State {
    /// Before the first step. Weights that are trained become f32; `trains` says which they are.
    ///
    /// `frozen` is the dtype of all others: bf16 in openpi's own runs, `None` leaves them as they are.
    pub fn new(pi: Pi, rule: Rule, frozen: Option<DType>, trains: &dyn Fn(&str) -> bool) -> Self {
        let trainable: BTreeSet<String> = pi.parameters().into_iter().map(|(n, _)| n).filter(|n| trains(n)).collect();
        let pi = map(pi, &mut |name, x| match trainable.contains(name) {
            true => x.cast(DType::F32),
            false => frozen.map_or(x.clone(), |dtype| x.cast(dtype)),
        });
        let mut memory = BTreeMap::new();
        let mut average = rule.ema_decay.map(|_| BTreeMap::new());
        visit(&pi, &mut |name, x| {
            if trainable.contains(name) {
                memory.insert(name.to_owned(), Memory::new(&rule.optimizer, &x));
                if let Some(average) = &mut average {
                    average.insert(name.to_owned(), x);
                }
            }
        });
        State { pi: Some(pi), replicas: vec![], trainable, memory, average, rule, step: 0 }
    }

    /// The weights.
    pub fn pi(&self) -> &Pi {
        self.pi.as_ref().expect("a step gives the weights back")
    }

    /// Steps that were made; the next one's number.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// How steps are made.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Names of what is trained.
    pub fn trainable(&self) -> &BTreeSet<String> {
        &self.trainable
    }

    /// What the optimizer remembers of a parameter.
    pub fn memory(&self, name: &str) -> Option<&Memory> {
        self.memory.get(name)
    }

    /// The moving average of a trained parameter, flat; of what is frozen the weight itself is the average.
    pub fn average(&self, name: &str) -> Option<&Tensor<1>> {
        self.average.as_ref()?.get(name)
    }

    /// Goes on from what another process saved: `step` steps were made.
    pub fn restore(
        &mut self,
        step: u64,
        memory: BTreeMap<String, Memory>,
        average: Option<BTreeMap<String, Tensor<1>>>,
    ) {
        (self.step, self.memory, self.average) = (step, memory, average);
    }

    /// Learns from the parts of a batch, one after another on this device.
    ///
    /// # Errors
    /// [`NotFinite`]: nothing has changed.
    pub fn learn(&mut self, parts: impl IntoIterator<Item = Input>, rate: f32) -> Result<Outcome, NotFinite> {
        let mut loss = 0.0;
        let mut gradients = Gradients::default();
        for part in parts {
            let slope = self.slope(&part);
            loss += f64::from(slope.loss.into_scalar::<f32>());
            gradients.join(slope.gradients, &self.pi().device());
        }
        self.apply(loss, gradients, rate)
    }

    /// Loss and gradients of some rows.
    pub fn slope(&self, input: &Input) -> Slope {
        slope(self.pi(), input, &self.trainable, self.rule.recompute)
    }

    fn apply(&mut self, loss: f64, mut gradients: Gradients, rate: f32) -> Result<Outcome, NotFinite> {
        let outcome = Outcome { step: self.step, loss: loss as f32, grad_norm: gradients.norm() };
        if !outcome.loss.is_finite() || !outcome.grad_norm.is_finite() {
            return Err(NotFinite(outcome));
        }
        let clip = clipping(&self.rule.optimizer, outcome.grad_norm);
        let pi = self.pi.take().expect("a step gives the weights back");
        let (memory, average, rule, count) = (&mut self.memory, &mut self.average, self.rule, self.step + 1);
        let pi = map(pi, &mut |name, weight| {
            let Some(memory) = memory.get_mut(name) else { return weight };
            let gradient = gradients.take(name).unwrap_or_else(|| weight.zeros_like());
            let gradient = match clip {
                Some((norm, most)) => gradient.div_scalar(norm).mul_scalar(most),
                None => gradient,
            };
            let weight = update(&rule.optimizer, memory, weight, gradient, count, rate);
            if let (Some(decay), Some(average)) = (rule.ema_decay, average.as_mut().and_then(|a| a.get_mut(name))) {
                *average = average.clone().mul_scalar(decay) + weight.clone().mul_scalar(1.0 - decay);
            }
            weight
        });
        self.pi = Some(pi);
        self.step = count;
        Ok(outcome)
    }

    /// Root of the sum of squares of all kernels, frozen ones included: not of biases, norms' scales, positions and word
    /// vectors.
    pub fn param_norm(&self) -> f64 {
        let mut kernels = vec![];
        visit(self.pi(), &mut |name, x| {
            if is_kernel(name) {
                kernels.push(x.cast(DType::F32));
            }
        });
        norm(kernels)
    }
}

/// A loss or a gradient that is no number. The state is as it was before the step.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("step {}: the loss is {} and the gradient's norm {}", .0.step, .0.loss, .0.grad_norm)]
pub struct NotFinite(pub Outcome);

fn slope(pi: &Pi, input: &Input, trainable: &BTreeSet<String>, recompute: bool) -> Slope {
    let trains = |name: &str| trainable.contains(name);
    if recompute { backward::by_blocks(pi, input, &trains) } else { backward::in_one_graph(pi, input, &trains) }
}

/// openpi's kernel filter, which works on the names of JAX: of more than one axis there, and none of these.
fn is_kernel(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    !(["bias", "scale", "gamma", "beta"].contains(&last) || name == "img.pos" || name == "llm.embed.weight")
}

/// Every parameter, flat, by name, replaced by what `f` makes of it.
pub(super) fn map(pi: Pi, f: &mut dyn FnMut(&str, Tensor<1>) -> Tensor<1>) -> Pi {
    struct Map<'a>(Vec<String>, &'a mut dyn FnMut(&str, Tensor<1>) -> Tensor<1>);
    impl ModuleMapper for Map<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let id = param.id;
            let x = param.into_value();
            let (shape, count) = (x.shape(), x.shape().num_elements());
            let x = (self.1)(&self.0.join("."), x.reshape([count]));
            Param::initialized(id, x.reshape(shape))
        }
    }
    pi.map(&mut Map(vec![], f))
}

/// Shows every parameter, flat, by name.
pub(super) fn visit(pi: &Pi, f: &mut dyn FnMut(&str, Tensor<1>)) {
    struct Visit<'a>(Vec<String>, &'a mut dyn FnMut(&str, Tensor<1>));
    impl ModuleVisitor for Visit<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let x = param.val();
            let count = x.shape().num_elements();
            (self.1)(&self.0.join("."), x.reshape([count]));
        }
    }
    pi.visit(&mut Visit(vec![], f));
}

/// One parameter, flat.
pub fn parameter(pi: &Pi, wanted: &str) -> Option<Tensor<1>> {
    let mut found = None;
    visit(pi, &mut |name, x| {
        if name == wanted {
            found = Some(x);
        }
    });
    found
}
