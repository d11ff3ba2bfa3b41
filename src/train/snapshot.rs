//! The state of a run as it is saved, and taken up again bit for bit.
//!
//! Invariant: what is saved and read back continues to the same bytes: weights, what the optimizer remembers, the average
//! and the number of steps are all there is; chance and data follow from the step's number.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Tensor, TensorData};

use super::optimizer::Memory;
use super::settings::Optimizer;
use super::state::{State, visit};
use crate::weights::state::{self as disk, StateOnDisk, Tree, Values};

/// A state, asked for its bytes.
pub struct Saving<'a> {
    state: &'a State,
    weights: BTreeMap<String, Tensor<1>>,
}

impl<'a> Saving<'a> {
    /// Of this state.
    pub fn new(state: &'a State) -> Self {
        let mut weights = BTreeMap::new();
        visit(state.pi(), &mut |name, x| {
            weights.insert(name.to_owned(), x);
        });
        Saving { state, weights }
    }
}

impl Values for Saving<'_> {
    fn bytes(&self, tree: Tree, name: &str) -> Result<Vec<u8>> {
        let missing = || format!("{name}: the state has no {}", tree.name());
        let weight = || self.weights.get(name);
        let found = match (tree, self.state.memory(name)) {
            (Tree::Params, _) => weight(),
            // What is frozen is its own average.
            (Tree::Ema, _) => self.state.average(name).or_else(weight),
            (Tree::Mu, Some(Memory::Moments { mu, .. })) => Some(mu),
            (Tree::Nu, Some(Memory::Moments { nu, .. })) => Some(nu),
            (Tree::Trace, Some(Memory::Trace(trace))) => Some(trace),
            _ => None,
        };
        let tensor = found.with_context(missing)?.clone();
        let data = tensor.try_into_data().with_context(|| format!("{name}: reading it from the device"))?;
        Ok(data.into_bytes().to_vec())
    }
}

/// Which optimizer's state it is, as the disk calls it.
pub fn kind(optimizer: &Optimizer) -> disk::Optimizer {
    match optimizer {
        Optimizer::Adamw { .. } => disk::Optimizer::AdamW,
        Optimizer::Sgd { .. } => disk::Optimizer::Sgd,
    }
}

/// Takes up a saved state: weights and all.
///
/// # Errors
/// It is of another model or optimizer, has an average where this run has none or the other way round, or trains other
/// parameters.
pub fn restore(state: State, saved: &StateOnDisk) -> Result<State> {
    let rule = *state.rule();
    ensure!(
        saved.optimizer == kind(&rule.optimizer),
        "{}: the optimizer is another: saved is {:?}, the run has {:?}",
        saved.folder.display(),
        saved.optimizer,
        kind(&rule.optimizer)
    );
    ensure!(
        saved.ema == rule.ema_decay.is_some(),
        "{}: ema_decay: the saved run has {} moving average, this one {}",
        saved.folder.display(),
        if saved.ema { "a" } else { "no" },
        if rule.ema_decay.is_some() { "has" } else { "has none" }
    );
    if saved.trainable != *state.trainable() {
        let odd = saved.trainable.symmetric_difference(state.trainable()).next().cloned().unwrap_or_default();
        bail!("{}: freeze: other parameters are trained than before: {odd} for one", saved.folder.display());
    }
    let device = state.pi().device();
    let dtypes: BTreeMap<&str, &str> = saved.tensors.iter().map(|t| (t.name.as_str(), t.dtype.name())).collect();
    let read = |tree: Tree, name: &str, count: usize, dtype: DType| -> Result<Tensor<1>> {
        let bytes = saved.bytes(tree, name)?;
        ensure!(bytes.len() == count * dtype.size(), "{name}: {} bytes, expected {count} values", bytes.len());
        let data = TensorData::from_bytes_vec(bytes, [count], dtype);
        Ok(Tensor::from_data(data, (&device, dtype)))
    };
    let trainable = state.trainable().clone();
    let mut fault = None;
    let mut memory = BTreeMap::new();
    let mut average = rule.ema_decay.map(|_| BTreeMap::new());
    let mut state = state.with_weights(&mut |name, x| {
        let count = x.shape().num_elements();
        let dtype = match dtypes.get(name).copied() {
            Some("float32") => DType::F32,
            Some("bfloat16") => DType::BF16,
            other => {
                fault.get_or_insert_with(|| anyhow::anyhow!("{name}: found {other:?}, expected float32 or bfloat16"));
                return x;
            }
        };
        match read(Tree::Params, name, count, dtype) {
            Ok(weight) => weight,
            Err(error) => {
                fault.get_or_insert(error);
                x
            }
        }
    });
    saved.close(Tree::Params);
    if let Some(error) = fault {
        return Err(error.context(saved.folder.display().to_string()));
    }
    let mut counts = BTreeMap::new();
    visit(state.pi(), &mut |name, x| {
        counts.insert(name.to_owned(), x.shape().num_elements());
    });
    for tree in [Tree::Mu, Tree::Nu, Tree::Trace, Tree::Ema] {
        let wanted = match tree {
            Tree::Ema => saved.ema,
            _ => saved.optimizer.trees().contains(&tree),
        };
        if !wanted {
            continue;
        }
        for name in &trainable {
            let count = counts.get(name).copied().unwrap_or_default();
            let x = read(tree, name, count, DType::F32).with_context(|| saved.folder.display().to_string())?;
            match tree {
                Tree::Mu => {
                    memory.insert(name.clone(), Memory::Moments { nu: x.zeros_like(), mu: x });
                }
                Tree::Nu => {
                    if let Some(Memory::Moments { nu, .. }) = memory.get_mut(name) {
                        *nu = x;
                    }
                }
                Tree::Trace => {
                    memory.insert(name.clone(), Memory::Trace(x));
                }
                _ => {
                    if let Some(average) = &mut average {
                        average.insert(name.clone(), x);
                    }
                }
            }
        }
        saved.close(tree);
    }
    state.restore(saved.count, memory, average);
    Ok(state)
}
