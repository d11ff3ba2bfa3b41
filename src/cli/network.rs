//! The network of a checkpoint, for the verbs that run one: understood from its names, then read.
//!
//! Invariant: what the tensors are is read from the tensors; no weight is read before all that can be refused is refused.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;
use remap::{Map, Options};

use super::convert::default_threads;
use super::inference::milliseconds;
use super::output::Mouth;
use crate::device::{Precision, packs};
use crate::model::{Pi, Settings};
use crate::weights::anatomy::Anatomy;
use crate::weights::load::{self, Load};
use crate::weights::open::Opened;

/// How weights are read.
#[derive(Debug, Clone)]
pub(super) struct Weights {
    /// Naming scheme; `None`: told by the names.
    pub(super) from: Option<String>,
    pub(super) precision: Precision,
    /// alpha / rank of the attention's low-rank pairs.
    pub(super) lora_scale: f64,
    /// `None`: as many as there are processors.
    pub(super) threads: Option<usize>,
}

/// The scheme of the names, and the model that the tensors are. Reads none.
pub(super) fn understand(opened: &Opened, from: Option<&str>) -> Result<(String, Anatomy, Settings)> {
    let map = Map::pi0();
    let scheme = opened.scheme(&map, from)?;
    let heads = opened.own_anatomy().map(|a| a.heads()).unwrap_or_default();
    let anatomy = Anatomy::read(&map, &opened.tensors, scheme, &Options { heads, ..Options::default() })?;
    let settings = load::settings(&anatomy, 1.0)?;
    Ok((scheme.name.clone(), anatomy, settings))
}

/// The weights, and how long they took in milliseconds.
pub(super) fn read(weights: &Weights, opened: &Opened, device: &Device, mouth: &Mouth) -> Result<(Pi, f64)> {
    let how = Load {
        from: weights.from.clone(),
        parameters: weights.precision.parameters(),
        activations: weights.precision.activations(),
        lora_scale: weights.lora_scale,
        threads: weights.threads.unwrap_or_else(default_threads),
        pack: packs(device, weights.precision),
        digest: false,
    };
    let began = Instant::now();
    let pi = load::load(opened, &how, device, mouth)?.pi;
    device.sync()?;
    Ok((pi, milliseconds(began)))
}
