//! What the user named, opened: an Orbax folder, safetensors, an npz. One type for all, no data read yet.
//!
//! Invariant: every array of the item is either one of `tensors` or in `left_out` with the reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use orbax::{Checkpoint, Npz, Source, Value};
use remap::{Map, Safetensors, Scheme, Tensor, is_safetensors};
use serde::Serialize;

use super::anatomy::Anatomy;
use super::state::{Own, own_run, own_step};

/// Which of a training step's trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// What openpi serves: the moving average where there is one.
    #[default]
    Ema,
    /// The weights that training goes on with.
    Raw,
    /// Adam's first moment.
    Mu,
    /// Adam's second moment.
    Nu,
    /// SGD's momentum.
    Trace,
}

impl Weights {
    /// Is it no weights at all, but what an optimizer remembers of those it trains?
    pub fn is_optimizer(self) -> bool {
        matches!(self, Weights::Mu | Weights::Nu | Weights::Trace)
    }
}

/// What to take of what is there.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Item of a step folder: `params`, `train_state`.
    pub item: Option<String>,
    /// Which tree.
    pub weights: Weights,
    /// Naming scheme; detected where it is not told.
    pub from: Option<String>,
}

/// An opened checkpoint.
pub struct Opened {
    /// The folder or file that is read.
    pub path: PathBuf,
    /// In a sentence: what was taken, and why.
    pub taken: String,
    /// `orbax (ocdbt, zarr2)`, `safetensors`, `npz`.
    pub format: String,
    /// Training step, if it stands in one.
    pub step: Option<u64>,
    /// Where the arrays are.
    pub source: Box<dyn Source>,
    /// Names as the scheme has them.
    pub tensors: Vec<Tensor>,
    /// Where each tensor stands among the source's arrays.
    pub arrays: Vec<usize>,
    /// Arrays that are no part of the chosen tree.
    pub left_out: Vec<LeftOut>,
    /// What wrapped every name: `params/`, `/value`.
    pub wrapping: Wrapping,
    /// `__metadata__` of a safetensors file.
    pub metadata: BTreeMap<String, String>,
    /// Folder with `norm_stats.json` below it.
    pub assets: Option<PathBuf>,
    /// Odd, not wrong.
    pub warnings: Vec<String>,
}

/// An array that is not part of what is converted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What stands around every name of a JAX tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Wrapping {
    /// All names begin with `params/`.
    pub params: bool,
    /// All names end with `/value` (saved by NNX).
    pub value: bool,
}

impl Opened {
    /// Opens what `path` names.
    ///
    /// # Errors
    /// What is missing or broken, with what was found instead.
    pub fn open(path: &Path, choice: &Choice) -> Result<Self> {
        if !path.exists() {
            bail!("{}: there is nothing under this path", path.display());
        }
        if path.is_file() && path.extension().is_some_and(|e| e == "npz") {
            if choice.item.is_some() || choice.weights != Weights::Ema {
                bail!("{}: an npz has no items and no training state; leave --item and --weights out", path.display());
            }
            let npz = Npz::open(path).with_context(|| path.display().to_string())?;
            return Ok(Self::plain(path, "npz", Box::new(npz)));
        }
        if let Some(step) = own_step(path) {
            return Self::own(&step, choice, None);
        }
        if is_safetensors(path) {
            if choice.item.is_some() || choice.weights != Weights::Ema {
                bail!(
                    "{}: safetensors has no items and no training state; leave --item and --weights out",
                    path.display()
                );
            }
            let file = Safetensors::open(path)?;
            let metadata = file.metadata().clone();
            let folder = file.files().first().and_then(|f| f.parent()).map(Path::to_owned);
            let mut opened = Self::plain(path, "safetensors", Box::new(file));
            opened.metadata = metadata;
            opened.assets = folder.map(|f| f.join("assets")).filter(|a| a.is_dir());
            return Ok(opened);
        }
        match own_run(path) {
            Some((latest, step)) => Self::own(&step, choice, Some(latest)),
            None => Self::orbax(path, choice),
        }
    }

    /// A step's folder in our form.
    fn own(step: &Path, choice: &Choice, latest: Option<String>) -> Result<Self> {
        let own = Own::choose(step, choice)?;
        let file = Safetensors::open(&own.file)?;
        let metadata = file.metadata().clone();
        let mut opened = Self::plain(&own.file, "safetensors", Box::new(file));
        if choice.weights == Weights::Ema {
            // What else belongs to these weights lies in their folder.
            opened.path = step.join("params");
        }
        opened.taken = latest.into_iter().chain([own.taken]).collect::<Vec<_>>().join("; ");
        opened.metadata = metadata;
        opened.step = own.step;
        opened.assets = own.assets;
        if let Some(prefix) = own.prefix {
            opened.narrow(prefix);
            if opened.tensors.is_empty() {
                bail!("{}: no {} in it", own.file.display(), prefix.trim_end_matches('/'));
            }
        }
        Ok(opened)
    }

    /// Keeps the tensors below `prefix`, under what is left of their names; the others are left out.
    fn narrow(&mut self, prefix: &str) {
        let (tensors, arrays) = (std::mem::take(&mut self.tensors), std::mem::take(&mut self.arrays));
        for (tensor, array) in tensors.into_iter().zip(arrays) {
            if let Some(name) = tensor.name.strip_prefix(prefix) {
                self.tensors.push(Tensor { name: name.to_owned(), ..tensor });
                self.arrays.push(array);
            } else {
                let reason = format!("no part of {}", prefix.trim_end_matches('/'));
                self.left_out.push(LeftOut { name: tensor.name, reason });
            }
        }
    }

    fn plain(path: &Path, format: &str, source: Box<dyn Source>) -> Self {
        let tensors = tensors_of(&*source);
        Opened {
            path: path.to_owned(),
            taken: format!("{} as it is", path.display()),
            format: format.into(),
            step: None,
            arrays: (0..tensors.len()).collect(),
            tensors,
            source,
            left_out: vec![],
            wrapping: Wrapping::default(),
            metadata: BTreeMap::new(),
            assets: None,
            warnings: vec![],
        }
    }

    fn orbax(path: &Path, choice: &Choice) -> Result<Self> {
        let item = match (choice.weights, choice.item.as_deref()) {
            (Weights::Ema, item) => item,
            (_, None | Some("train_state")) => Some("train_state"),
            (_, Some(other)) => bail!("--weights reads the item train_state, not {other}; leave --item out"),
        };
        let location = match orbax::locate(path, item) {
            // `params` was named; what else belongs to its step stands beside it.
            Err(_) if item == Some("train_state") && path.parent().is_some_and(|p| p.join("train_state").is_dir()) => {
                orbax::locate(path.parent().unwrap_or(path), item)?
            }
            other => other?,
        };
        let checkpoint = Checkpoint::open(&location.dir)?;
        let mut warnings = checkpoint.warnings().to_vec();
        let mut taken = location.taken.clone();
        let all = tensors_of(&checkpoint);
        let prefix = match choice.weights {
            Weights::Ema => None,
            Weights::Raw => Some("params/".to_owned()),
            Weights::Mu => moments(&all, "mu"),
            Weights::Nu => moments(&all, "nu"),
            Weights::Trace => moments(&all, "trace"),
        };
        if choice.weights == Weights::Raw && !all.iter().any(|t| t.name.starts_with("params/")) {
            // openpi moves the weights out of train_state where there is no moving average.
            let mut opened = Self::orbax(path, &Choice { weights: Weights::Ema, item: None, ..choice.clone() })?;
            opened.taken += "; it was trained without a moving average, so these are the raw weights";
            return Ok(opened);
        }
        if choice.weights.is_optimizer() && prefix.is_none() {
            let what = if choice.weights == Weights::Trace { "momentum" } else { "Adam moments" };
            bail!("{}: no {what} in this train_state", location.dir.display());
        }
        let leaves = checkpoint.leaves().iter();
        let strings = leaves.filter(|l| matches!(l.value, Value::String(_))).count();
        match strings {
            0 => {}
            1 => warnings.push("one leaf is a string: it is no tensor and stays behind".into()),
            _ => warnings.push(format!("{strings} leaves are strings: they are no tensors and stay behind")),
        }
        if let Some(prefix) = &prefix {
            taken += &format!("; of it the tree {}", prefix.trim_end_matches('/'));
        }
        let mut opened = Opened {
            path: location.dir,
            taken,
            format: format!("orbax ({})", checkpoint.layout()),
            step: location.step,
            source: Box::new(checkpoint),
            arrays: (0..all.len()).collect(),
            tensors: all,
            left_out: vec![],
            wrapping: Wrapping::default(),
            metadata: BTreeMap::new(),
            assets: location.assets,
            warnings,
        };
        if let Some(prefix) = &prefix {
            opened.narrow(prefix);
        }
        opened.wrapping = unwrap(&mut opened.tensors, prefix.is_some());
        Ok(opened)
    }

    /// Keeps the tensors whose name matches; the others are left out.
    pub fn filter(&mut self, pattern: &regex::Regex) {
        let kept: Vec<bool> = self.tensors.iter().map(|t| pattern.is_match(&t.name)).collect();
        let mut keep = kept.iter();
        self.arrays.retain(|_| keep.next() == Some(&true));
        let mut keep = kept.iter();
        let left_out = &mut self.left_out;
        self.tensors.retain(|t| {
            let stays = keep.next() == Some(&true);
            if !stays {
                left_out.push(LeftOut { name: t.name.clone(), reason: format!("does not match --filter {pattern}") });
            }
            stays
        });
    }

    /// The scheme of its names: as told, or the one that knows most of them.
    ///
    /// # Errors
    /// A scheme that does not exist; names that no scheme knows.
    pub fn scheme<'a>(&self, map: &'a Map, told: Option<&str>) -> Result<&'a Scheme> {
        let known = |scheme: &&Scheme| {
            let knows = |name: &str| {
                map.find(&scheme.column, name).is_some()
                    || map.tied.iter().any(|t| t.column == scheme.column && t.name == name)
                    || map.zeros.iter().any(|z| z.column == scheme.column && z.name == name)
            };
            self.tensors.iter().filter(|t| scheme.strip(&t.name).is_some_and(|n| knows(&n))).count()
        };
        if let Some(told) = told {
            let names: Vec<&str> = map.schemes.iter().map(|s| s.name.as_str()).collect();
            let scheme = map
                .scheme(told)
                .with_context(|| format!("--from {told}: no such scheme; there are {}", names.join(", ")))?;
            if known(&scheme) == 0
                && let Some(likely) = map.schemes.iter().max_by_key(|s| known(s)).filter(|s| known(s) > 0)
            {
                bail!(
                    "--from {told}: none of the names is of that scheme; they are {}'s. Leave --from out",
                    likely.name
                );
            }
            return Ok(scheme);
        }
        // The first of equals: schemes stand in the map in the order of preference.
        let mut best: Option<(usize, &Scheme)> = None;
        for scheme in &map.schemes {
            let count = known(&scheme);
            if count > 0 && best.is_none_or(|(most, _)| count > most) {
                best = Some((count, scheme));
            }
        }
        best.map(|(_, scheme)| scheme).with_context(|| {
            let some: Vec<&str> = self.tensors.iter().take(3).map(|t| t.name.as_str()).collect();
            format!(
                "{}: none of its {} names belongs to the pi0 family; it begins with {}. \
                 `--to as-is` copies arrays of any kind under their own names",
                self.path.display(),
                self.tensors.len(),
                if some.is_empty() { "nothing at all".into() } else { some.join(", ") }
            )
        })
    }

    /// Is `params` a moving average? `None` where there is no training state beside it to tell.
    pub fn ema(&self) -> Option<bool> {
        let beside = self.path.parent()?.join("train_state");
        if is_safetensors(&self.path) && beside.join("optimizer.safetensors").is_file() {
            return Some(beside.join("raw.safetensors").is_file());
        }
        let state = Checkpoint::open(beside).ok()?;
        Some(state.arrays().iter().any(|a| a.name.starts_with("params/")))
    }

    /// What the file says of itself, if it was written here.
    pub fn own_anatomy(&self) -> Option<Anatomy> {
        serde_json::from_str(self.metadata.get("pi0.anatomy")?).ok()
    }

    /// Decoded bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }
}

fn tensors_of(source: &dyn Source) -> Vec<Tensor> {
    let tensor = |a: &orbax::ArrayInfo| Tensor { name: a.name.clone(), shape: a.shape.clone(), dtype: a.dtype };
    source.arrays().iter().map(tensor).collect()
}

/// Where optax keeps a moment: `opt_state/<n>/<m>/mu/` of the one place that has it.
fn moments(tensors: &[Tensor], moment: &str) -> Option<String> {
    let middle = format!("/{moment}/");
    let mut found = tensors.iter().filter(|t| t.name.starts_with("opt_state/")).filter_map(|t| {
        let at = t.name.find(&middle)?;
        Some(t.name[..at + middle.len()].to_owned())
    });
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

/// Takes `params/` and `/value` off, each only where every name has it (SigLIP has a module called `value`).
fn unwrap(tensors: &mut [Tensor], inner: bool) -> Wrapping {
    let all = |f: &dyn Fn(&str) -> bool, t: &[Tensor]| !t.is_empty() && t.iter().all(|t| f(&t.name));
    let params = !inner && all(&|n| n.starts_with("params/"), tensors);
    let value = all(&|n| n.ends_with("/value"), tensors);
    for tensor in tensors {
        let name = tensor.name.as_str();
        let name = if params { name.strip_prefix("params/").unwrap_or(name) } else { name };
        let name = if value { name.strip_suffix("/value").unwrap_or(name) } else { name };
        tensor.name = name.to_owned();
    }
    Wrapping { params, value }
}
