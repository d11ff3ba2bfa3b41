//! The state of a run: weights, what the optimizer remembers, the moving average; and the step that moves all of them.
//!
//! Invariants: what is frozen stays bit for bit and has neither memory nor average of its own; a step is a function of the
//! state, the batch and the step's number; a step whose loss is no number changes nothing.
//! Source: openpi 15a9616, scripts/train.py (`train_step`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};

use super::backward::{self, Input, Slope};
use super::leaves::{Gradients, norm};
use super::memory::PIECE;
use super::optimizer::{Memory, Step, clipping};
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

    /// The dtype of every parameter, by name.
    pub fn dtypes(&self) -> BTreeMap<String, DType> {
        let mut dtypes = BTreeMap::new();
        visit(self.pi(), &mut |name, x| {
            dtypes.insert(name.to_owned(), x.dtype());
        });
        dtypes
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

    /// With other weights.
    pub(super) fn with_weights(mut self, f: &mut dyn FnMut(&str, Tensor<1>) -> Tensor<1>) -> Self {
        self.pi = self.pi.take().map(|pi| map(pi, f));
        self.refresh();
        self
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

    /// Goes on on several devices: this state's own, and a copy of the weights on each of `others`.
    pub fn spread(&mut self, others: &[Device]) {
        self.replicas = others.iter().map(|device| self.pi().clone().to_device(device)).collect();
    }

    /// Learns from the parts of a batch, one after another on this device.
    ///
    /// # Errors
    /// [`NotFinite`]: nothing has changed.
    pub fn learn(&mut self, parts: impl IntoIterator<Item = Input>, rate: f32) -> Result<Outcome, NotFinite> {
        let mut sum = Sum::default();
        for part in parts {
            sum.add(slope(self.pi(), &part, &self.trainable, self.rule.recompute), &self.pi().device());
        }
        self.apply(sum, rate)
    }

    /// Learns from a batch of `rows` that is cut into equal parts: `each` for every device, which run side by side, the
    /// parts of one device one after another. `part` puts rows onto a device.
    ///
    /// Gradients are added up part by part in the order of rows: two devices make of a batch what one makes of it in two
    /// parts, bit for bit.
    ///
    /// # Errors
    /// [`NotFinite`]: nothing has changed.
    ///
    /// # Panics
    /// The rows cannot be cut so.
    pub fn learn_in_parts(
        &mut self,
        rows: usize,
        each: usize,
        part: &(dyn Fn(Range<usize>, &Device) -> Input + Sync),
        rate: f32,
    ) -> Result<Outcome, NotFinite> {
        let parts = each * (1 + self.replicas.len());
        assert!(rows.is_multiple_of(parts), "{rows} rows cannot be cut into {parts} equal parts");
        let size = rows / parts;
        let (trainable, recompute) = (&self.trainable, self.rule.recompute);
        let slopes = |pi: &Pi, first: usize| -> Vec<Slope> {
            let range = |i: usize| (first + i) * size..(first + i + 1) * size;
            (0..each).map(|i| slope(pi, &part(range(i), &pi.device()), trainable, recompute)).collect()
        };
        let device = self.pi().device();
        let mut sum = Sum::default();
        if self.replicas.is_empty() {
            // One part's gradients at a time.
            let range = |i: usize| i * size..(i + 1) * size;
            (0..each).for_each(|i| sum.add(slope(self.pi(), &part(range(i), &device), trainable, recompute), &device));
        } else {
            let models: Vec<Pi> = std::iter::once(self.pi()).chain(&self.replicas).cloned().collect();
            let slopes = &slopes;
            let all: Vec<Slope> = std::thread::scope(|scope| {
                let work = |(i, pi): (usize, Pi)| scope.spawn(move || slopes(&pi, i * each));
                let running: Vec<_> = models.into_iter().enumerate().map(work).collect();
                running
                    .into_iter()
                    .flat_map(|one| one.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
                    .collect()
            });
            all.into_iter().for_each(|one| sum.add(one, &device));
        }
        self.apply(sum, rate)
    }

    fn apply(&mut self, sum: Sum, rate: f32) -> Result<Outcome, NotFinite> {
        let Sum { loss, mut gradients } = sum;
        let outcome = Outcome { step: self.step, loss: loss as f32, grad_norm: gradients.norm() };
        if !outcome.loss.is_finite() || !outcome.grad_norm.is_finite() {
            return Err(NotFinite(outcome));
        }
        let step = Step {
            optimizer: self.rule.optimizer,
            clip: clipping(&self.rule.optimizer, outcome.grad_norm),
            ema_decay: self.rule.ema_decay,
            count: self.step + 1,
            rate,
            piece: PIECE,
        };
        let pi = self.pi.take().expect("a step gives the weights back");
        let (memory, average) = (&mut self.memory, &mut self.average);
        let pi = map(pi, &mut |name, weight| {
            let Some(memory) = memory.get_mut(name) else { return weight };
            let gradient = gradients.take(name).unwrap_or_else(|| weight.zeros_like());
            step.take(memory, weight, gradient, average.as_mut().and_then(|a| a.get_mut(name)))
        });
        self.pi = Some(pi);
        self.step = step.count;
        self.refresh();
        Ok(outcome)
    }

    /// The copies on other devices get the new weights; what is frozen they have.
    fn refresh(&mut self) {
        for i in 0..self.replicas.len() {
            let replica = self.replicas[i].clone();
            let device = replica.device();
            let mut new = BTreeMap::new();
            visit(self.pi(), &mut |name, x| {
                if self.trainable.contains(name) {
                    new.insert(name.to_owned(), x.to_device(&device));
                }
            });
            self.replicas[i] = map(replica, &mut |name, x| new.remove(name).unwrap_or(x));
        }
    }

    /// Are all weights that are trained numbers still? A step may be finite and what it makes of them not.
    pub fn is_finite(&self) -> bool {
        let mut trained = vec![];
        visit(self.pi(), &mut |name, x| {
            if self.trainable.contains(name) {
                trained.push(x);
            }
        });
        trained.into_iter().all(|x| x.is_finite().all().into_scalar::<bool>())
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

/// Parts of a batch, added up.
#[derive(Default)]
struct Sum {
    loss: f64,
    gradients: Gradients,
}

impl Sum {
    fn add(&mut self, slope: Slope, device: &Device) {
        self.loss += f64::from(slope.loss.into_scalar::<f32>());
        self.gradients.join(slope.gradients, device);
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
