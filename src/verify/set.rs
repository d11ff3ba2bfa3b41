//! A golden set: a folder with `io.safetensors` (inputs and every recorded intermediate) and `set.toml` (which model in
//! which precision, how it was recorded, how near is near enough).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::weights::arrays::{Array, read_arrays};

/// `set.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// `pi0`, `pi05`, `pi0_fast`.
    pub model: String,
    /// Precision mode of the recording.
    pub mode: String,
    /// Where the weights are, seen from the folder; `procedural:NAME` are made by `cargo xtask golden`.
    pub weights: Option<String>,
    /// Actions of a chunk.
    pub action_horizon: Option<usize>,
    /// Tokens of a prompt.
    pub prompt_length: Option<usize>,
    /// Width of states and actions.
    pub action_dim: Option<usize>,
    /// Sets in bf16: the f32 set of the same weights and inputs, seen from the folder.
    pub reference: Option<String>,
    /// pi0-FAST: tokens decoded at most.
    pub max_decoding_steps: Option<usize>,
    /// How it was recorded.
    pub recorded: BTreeMap<String, toml::Value>,
    /// How near is near enough.
    pub tolerance: Tolerance,
}

/// How near is near enough.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// Largest difference, as a share of the recorded array's largest absolute value.
    pub relative: Option<f64>,
    /// The same for sampled actions.
    pub actions: Option<f64>,
    /// Sets in bf16: our error against the f32 set, as a multiple of the recording's own error against it.
    pub error_ratio: Option<f64>,
    /// Sets in bf16: least cosine to the recording.
    pub cosine: Option<f64>,
    /// For single arrays.
    #[serde(default)]
    pub tap: Vec<Exception>,
}

/// A tolerance of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// Exact names, or beginnings that end in `*`.
    pub names: Vec<String>,
    /// Largest difference.
    pub absolute: Option<f64>,
    /// Largest difference, as a share of the largest absolute value.
    pub relative: Option<f64>,
    /// As in the tolerance of the set.
    pub error_ratio: Option<f64>,
    /// Why.
    pub reason: String,
}

impl Tolerance {
    /// The exception for an array, if there is one.
    pub fn exception(&self, name: &str) -> Option<&Exception> {
        let meant = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        self.tap.iter().find(|e| e.names.iter().any(meant))
    }
}

/// A golden set, read.
#[derive(Debug, Clone)]
pub struct Set {
    /// Its folder.
    pub path: PathBuf,
    /// `set.toml`.
    pub document: Document,
    /// `io.safetensors`.
    pub arrays: BTreeMap<String, Array>,
    /// Arrays of the f32 set that a bf16 set refers to.
    pub reference: Option<BTreeMap<String, Array>>,
}

impl Set {
    /// Reads a folder.
    ///
    /// # Errors
    /// What is missing, unknown or contradictory, by file and name.
    pub fn open(path: &Path) -> Result<Self> {
        let at = path.join("set.toml");
        let text = std::fs::read_to_string(&at)
            .with_context(|| format!("{}: a golden set is a folder with set.toml and io.safetensors", at.display()))?;
        let document: Document = toml::from_str(&text).with_context(|| at.display().to_string())?;
        let t = &document.tolerance;
        let bf16 = document.mode != "f32";
        if bf16 && (t.error_ratio.is_none() || t.cosine.is_none() || document.reference.is_none()) {
            bail!(
                "{}: a set in {} needs tolerance.error_ratio, tolerance.cosine and reference, the f32 set of the same \
                 weights and inputs",
                at.display(),
                document.mode
            );
        }
        if !bf16 && t.relative.is_none() {
            bail!("{}: a set in f32 needs tolerance.relative", at.display());
        }
        let reference = match &document.reference {
            Some(other) => Some(read_arrays(&path.join(other).join("io.safetensors"))?),
            None => None,
        };
        Ok(Set { path: path.to_owned(), arrays: read_arrays(&path.join("io.safetensors"))?, document, reference })
    }

    /// Where its weights are, if it says so and they are no recipe.
    pub fn weights(&self) -> Option<PathBuf> {
        let weights = self.document.weights.as_deref().filter(|w| !w.starts_with("procedural:"))?;
        Some(self.path.join(weights))
    }

    /// An input.
    ///
    /// # Errors
    /// It was not recorded.
    pub fn input(&self, name: &str) -> Result<&Array> {
        self.arrays.get(name).with_context(|| format!("{}: {name} is not in io.safetensors", self.path.display()))
    }
}
