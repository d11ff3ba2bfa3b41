//! Training states on disk: what a run writes every so often, and what it goes on from.
//!
//! A step's folder is what openpi's is, `<run>/<step>/{params, train_state, assets}`, in one of two forms:
//!
//! | | safetensors | orbax |
//! | --- | --- | --- |
//! | what is served: the average, or else the weights | `params/model.safetensors`, `params/config.json` | item `params` |
//! | the weights, where what is served is an average | `train_state/raw.safetensors` | item `train_state`, `params` |
//! | the optimizer's vectors | `train_state/optimizer.safetensors`: `mu/<name>`, `nu/<name>`, `trace/<name>` | item `train_state`, `opt_state` |
//! | counters, and what the run says of itself | `train_state/state.json` | `pi0_state.json` |
//! | statistics | `assets/<asset_id>/norm_stats.json` | the same |
//!
//! Invariants: under a step's name there is a whole step or nothing; the same state gives the same bytes (an Orbax folder
//! also has the time that it was told in them); every tensor comes back bit for bit.
//! Source: openpi 15a9616, training/checkpoints.py and training/optimizer.py; optax 0.2.4 for the shape of its states.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use remap::Tensor;
use serde::{Deserialize, Serialize};

use super::companions::Preset;

mod keep;
mod read;
mod write;

pub use keep::{Begin, Folder, Keep, condemned, latest, steps};
pub(super) use read::{Own, own_run, own_step};
pub use read::{StateOnDisk, open};
pub use write::save;

/// Version of `state.json`.
const VERSION: u32 = 1;
/// Weights that are served, in a step's folder.
const MODEL: &str = "params/model.safetensors";
/// Weights that training goes on with, where others are served.
const RAW: &str = "train_state/raw.safetensors";
/// The optimizer's vectors.
const OPTIMIZER: &str = "train_state/optimizer.safetensors";
/// Counters and the run's own words, beside safetensors.
const STATE: &str = "train_state/state.json";
/// The same beside Orbax items: a file among folders, which Orbax does not look at.
const ORBAX_STATE: &str = "pi0_state.json";

/// A tree of tensors that a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tree {
    /// The weights.
    Params,
    /// Their moving average: of all of them, frozen or not.
    Ema,
    /// AdamW's first moment, of what is trained.
    Mu,
    /// AdamW's second moment.
    Nu,
    /// SGD's momentum.
    Trace,
}

impl Tree {
    /// As optax calls it, and as names in `optimizer.safetensors` begin.
    pub fn name(self) -> &'static str {
        match self {
            Tree::Params => "params",
            Tree::Ema => "ema",
            Tree::Mu => "mu",
            Tree::Nu => "nu",
            Tree::Trace => "trace",
        }
    }
}

/// openpi's optimizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Two moments, behind a clip by global norm.
    AdamW,
    /// One momentum.
    Sgd,
}

impl Optimizer {
    /// What it remembers.
    pub fn trees(self) -> &'static [Tree] {
        match self {
            Optimizer::AdamW => &[Tree::Mu, Tree::Nu],
            Optimizer::Sgd => &[Tree::Trace],
        }
    }
}

/// In which form a step is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Ours: one tensor a parameter, read at once by every verb.
    #[default]
    Safetensors,
    /// openpi's own, for its resume and its server.
    Orbax {
        /// Commit time, nanoseconds since the epoch.
        time_ns: u64,
    },
}

/// All of a state but its tensors' bytes.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Name of the step's folder.
    pub step: u64,
    /// Updates done; openpi's `state.step`, and the counters in its optimizer's state. openpi names a folder by the index of
    /// the last update, which is one less.
    pub count: u64,
    /// Every parameter under its canonical name: `llm.blocks.0.experts.1.q.weight`, one tensor a layer. An average has
    /// the same types, the optimizer's vectors those of their parameters.
    pub tensors: Vec<Tensor>,
    /// Names of those that are trained: only they have optimizer vectors.
    pub trainable: BTreeSet<String>,
    /// Which optimizer.
    pub optimizer: Optimizer,
    /// Is there an average?
    pub ema: bool,
    /// Head counts by zone and letter, where shapes do not tell (`Anatomy::heads` of what training began with).
    pub heads: BTreeMap<(String, char), u64>,
    /// What no tensor tells of the model, for the `config.json` beside it.
    pub preset: Option<Preset>,
    /// Anything that the run needs to go on: seed, position in the data, configuration. Comes back as it is.
    pub run: serde_json::Value,
    /// `norm_stats.json` by asset id, byte for byte.
    pub assets: Vec<(String, Vec<u8>)>,
    /// More small files (a tokenizer), by their path inside the step's folder.
    pub beside: Vec<(PathBuf, Vec<u8>)>,
}

/// Where the bytes of a state are: on a device, mostly. Never asked for two tensors at a time.
pub trait Values: Sync {
    /// The bytes of one tensor: little endian, last axis fastest. Asked for each once in a save, in any order, perhaps from
    /// several threads.
    ///
    /// # Errors
    /// What the device says; it ends the save, and nothing is left of it.
    fn bytes(&self, tree: Tree, name: &str) -> Result<Vec<u8>>;
}

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StateFile {
    version: u32,
    step: u64,
    count: u64,
    optimizer: Optimizer,
    ema: bool,
    run: serde_json::Value,
}

/// A step's number, by its folder's name.
fn number(folder: &Path) -> Option<u64> {
    let name = folder.file_name()?.to_str()?;
    // As we write it: no sign, no leading zeros.
    let number: u64 = name.parse().ok()?;
    (number.to_string() == name).then_some(number)
}
