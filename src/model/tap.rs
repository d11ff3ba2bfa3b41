//! Taps: every intermediate is named when it is born, and costs nothing while nobody listens.
//!
//! Names are those of the golden files: `siglip/base_0_rgb/block00/+sa`, `full/kv_k`.

use std::fmt::Arguments;

use burn::tensor::{Tensor, TensorData};

/// Where intermediates go.
pub type Listener<'a> = dyn FnMut(&str, TensorData) + 'a;

/// Passed through every forward.
#[derive(Default)]
pub struct Taps<'a> {
    listener: Option<&'a mut Listener<'a>>,
    prefixes: Vec<String>,
}

impl<'a> Taps<'a> {
    /// Nobody listens.
    pub fn off() -> Self {
        Taps { listener: None, prefixes: vec![] }
    }

    /// `listener` hears every intermediate, in the order in which they are computed.
    pub fn on(listener: &'a mut Listener<'a>) -> Self {
        Taps { listener: Some(listener), prefixes: vec![] }
    }

    /// Does anybody listen?
    pub fn listening(&self) -> bool {
        self.listener.is_some()
    }

    /// Until the next call, rows of the first axis belong to these names in equal parts: `siglip/base_0_rgb/`, ...
    /// With none, names stand alone.
    pub fn share(&mut self, prefixes: Vec<String>) {
        self.prefixes = prefixes;
    }

    /// Tells an intermediate.
    pub fn note<const D: usize>(&mut self, name: Arguments<'_>, x: &Tensor<D>) {
        let Some(listener) = &mut self.listener else { return };
        if self.prefixes.is_empty() {
            listener(&name.to_string(), x.to_data());
            return;
        }
        let rows = x.dims()[0] / self.prefixes.len();
        for (i, prefix) in self.prefixes.iter().enumerate() {
            listener(&format!("{prefix}{name}"), x.clone().narrow(0, i * rows, rows).into_data());
        }
    }

    /// Tells what is on the host already.
    pub fn note_host(&mut self, name: &str, data: impl FnOnce() -> TensorData) {
        if let Some(listener) = &mut self.listener {
            listener(name, data());
        }
    }
}
