//! Parameters as leaves of a graph, and what a backward pass found for each, by canonical name.
//!
//! Invariant: what is not named stays outside the graph: it keeps no activation and gets no gradient.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor};

use super::memory::PIECE;

/// Gradients by canonical name, each flat and in f32.
#[derive(Debug, Default)]
pub struct Gradients {
    by_name: BTreeMap<String, Tensor<1>>,
}

impl Gradients {
    /// Adds to what is there: a parameter that is used twice has two terms.
    pub fn add(&mut self, name: String, gradient: Tensor<1>) {
        let sum = match self.by_name.remove(&name) {
            Some(there) => there + gradient,
            None => gradient,
        };
        self.by_name.insert(name, sum);
    }

    /// Adds another's, term by term in the order of names.
    pub fn join(&mut self, other: Gradients, device: &Device) {
        for (name, gradient) in other.by_name {
            self.add(name, gradient.to_device(device));
        }
    }

    /// Takes one out. `None` where the loss does not depend on the parameter.
    pub fn take(&mut self, name: &str) -> Option<Tensor<1>> {
        self.by_name.remove(name)
    }

    /// Names that have one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Tensor<1>> {
        self.by_name.get(name)
    }

    /// Root of the sum of all squares: per parameter in f32 on the device, together in f64.
    pub fn norm(&self) -> f64 {
        norm(self.by_name.values().cloned().collect())
    }
}

/// A long tensor's pieces: what is made of one of them on the way is small.
pub(super) fn pieces(values: usize, piece: usize) -> impl Iterator<Item = Range<usize>> {
    (0..values).step_by(piece).map(move |first| first..(first + piece).min(values))
}

/// Root of the sum of all squares of several tensors.
pub(super) fn norm(tensors: Vec<Tensor<1>>) -> f64 {
    if tensors.is_empty() {
        return 0.0;
    }
    let square = |x: Tensor<1>| x.clone().mul(x).sum();
    let piece = |x: Tensor<1>| pieces(x.dims()[0], PIECE).map(|p| square(x.clone().slice(p))).collect::<Vec<_>>();
    let squares = tensors.into_iter().flat_map(piece).collect();
    let squares = Tensor::cat(squares, 0).into_data();
    let sum: f64 = squares.iter::<f32>().map(f64::from).sum();
    sum.sqrt()
}

/// Takes one leaf's gradient out of what a backward pass found.
type Collect = Box<dyn FnOnce(&mut burn::tensor::Gradients) -> Option<Tensor<1>>>;

/// The leaves of one graph.
#[derive(Default)]
pub(super) struct Leaves {
    found: Vec<(String, Collect)>,
}

impl Leaves {
    /// Puts each leaf's gradient under its name.
    pub(super) fn collect(self, from: &mut burn::tensor::Gradients, into: &mut Gradients) {
        for (name, take) in self.found {
            if let Some(gradient) = take(from) {
                into.add(name, gradient);
            }
        }
    }

    /// Are there any?
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

/// A module whose parameters of these names are leaves. `path` is where the module stands in the model.
pub(super) fn track<M: Module>(module: &M, path: &str, trains: &dyn Fn(&str) -> bool) -> (M, Leaves) {
    struct Track<'a> {
        path: Vec<String>,
        trains: &'a dyn Fn(&str) -> bool,
        leaves: Leaves,
    }
    impl ModuleMapper for Track<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = self.path.join(".");
            if !(self.trains)(&name) {
                return param;
            }
            let leaf = param.val().autodiff().require_grad();
            let own = leaf.clone();
            let collect = move |found: &mut burn::tensor::Gradients| {
                let gradient = own.grad_remove(found)?.cast(DType::F32);
                let count = gradient.shape().num_elements();
                Some(gradient.reshape([count]))
            };
            self.leaves.found.push((name, Box::new(collect)));
            Param::initialized(param.id, leaf)
        }
    }
    let path = path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let mut tracked = Track { path, trains, leaves: Leaves::default() };
    let module = module.clone().map(&mut tracked);
    (module, tracked.leaves)
}
