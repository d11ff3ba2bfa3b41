//! The check values of `golden/procedural/`: what a run of the real models saw of these weights.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The models with a description in `configs/model/` and a recording, each also as `tiny_…`.
pub(crate) const MODELS: [&str; 3] = ["pi0", "pi05", "pi0_fast"];

/// Check values of one leaf; bit patterns are in hexadecimal. What only tests compare is read only there.
#[derive(Deserialize)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    #[cfg(test)]
    pub(crate) shape: Vec<u64>,
    #[cfg(test)]
    pub(crate) seed: String,
    #[cfg(test)]
    pub(crate) scale: String,
    #[cfg(test)]
    pub(crate) offset: f32,
    pub(crate) f32: Values,
    pub(crate) bf16: Values,
}

/// Some values of a leaf, and the wrapping sum of the bit patterns of all.
#[derive(Deserialize)]
pub(crate) struct Values {
    #[cfg(test)]
    pub(crate) first: Vec<String>,
    #[cfg(test)]
    pub(crate) last: Vec<String>,
    /// At index n/2.
    #[cfg(test)]
    pub(crate) mid: String,
    pub(crate) sum: u32,
}

#[derive(Deserialize)]
struct Recording {
    leaves: Vec<Recorded>,
}

/// Reads the check values of a model's leaves, in the order of their names.
pub(crate) fn read(root: &Path, model: &str) -> Result<Vec<Recorded>> {
    let path = root.join("golden/procedural").join(model).with_extension("json");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let recording: Recording =
        serde_json::from_slice(&text).with_context(|| format!("{} is not of its form", path.display()))?;
    Ok(recording.leaves)
}
