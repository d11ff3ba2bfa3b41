//! A step's folder, read back in either form: as a checkpoint that every verb takes, and as the state of a run.
//!
//! Invariant: no tensor is read before the trees are seen to belong together. What openpi wrote is read as well; only what
//! the run says of itself is not there then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use orbax::{Checkpoint, Dtype, Source};
use remap::{Map, Mover, Options, Plan, Settings, Tensor, is_safetensors};

use super::keep::steps;
use super::{MODEL, OPTIMIZER, ORBAX_STATE, Optimizer, RAW, STATE, StateFile, Tree, VERSION, Values, number};
use crate::weights::anatomy::Anatomy;
use crate::weights::open::{Choice, Opened, Weights};
use crate::weights::scratch::Scratch;

/// Bytes of a `state.json`.
const MAX_STATE_BYTES: u64 = 64 << 20;
/// A tree of an Orbax item up to this size is unstacked in memory, a larger one in a file without a name.
const IN_MEMORY_BYTES: u64 = 64 << 20;

/// One of our safetensors files in a step's folder.
pub(in crate::weights) struct Own {
    pub(in crate::weights) file: PathBuf,
    /// What the names of the tree begin with.
    pub(in crate::weights) prefix: Option<&'static str>,
    pub(in crate::weights) step: Option<u64>,
    pub(in crate::weights) assets: Option<PathBuf>,
    pub(in crate::weights) taken: String,
}

/// The step that `path` names, if it is in our form: its folder, its `params`, or the file in there.
pub(in crate::weights) fn own_step(path: &Path) -> Option<PathBuf> {
    // `.` and `..` have no name of their own, and a step is known by its name.
    let path = &if path.file_name().is_some() { path.to_owned() } else { path.canonicalize().ok()? };
    if path.is_dir() && is_safetensors(&path.join("params")) {
        return Some(path.to_owned());
    }
    let params = if path.is_dir() { path } else { path.parent()? };
    let step = params.parent()?;
    let named = params.file_name()? == "params" && (number(step).is_some() || step.join("train_state").is_dir());
    (named && is_safetensors(path)).then(|| step.to_owned())
}

/// The newest step of a run, if it is in our form: a sentence, and the step's folder.
pub(in crate::weights) fn own_run(path: &Path) -> Option<(String, PathBuf)> {
    let names = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
    let ours = |step: &PathBuf| step.join(MODEL).is_file();
    let (newest, folder) = names.filter(ours).filter_map(|step| Some((number(&step)?, step))).max()?;
    let other = orbax::locate(path, None).ok().and_then(|location| location.step);
    let count = steps(path).map(|all| all.len()).unwrap_or(1);
    let sentence =
        if count > 1 { format!("latest of {count} steps: {newest}") } else { format!("the only step: {newest}") };
    other.is_none_or(|other| other < newest).then_some((sentence, folder))
}

impl Own {
    /// Which file of a step the choice means.
    ///
    /// # Errors
    /// A tree that this step has not got.
    pub(in crate::weights) fn choose(step: &Path, choice: &Choice) -> Result<Self> {
        match choice.item.as_deref() {
            None | Some("params") => {}
            Some("train_state") if choice.weights != Weights::Ema => {}
            Some("train_state") => {
                bail!("{}: of train_state name a tree, with --weights raw, mu or nu", step.display())
            }
            Some(other) => bail!("{}: no item {other:?}; found params, train_state", step.display()),
        }
        let name = number(step).map_or("a step's folder".to_owned(), |n| format!("step {n}"));
        let has_raw = step.join(RAW).is_file();
        let (file, prefix, what) = match choice.weights {
            Weights::Ema => (MODEL, None, "params"),
            Weights::Raw if has_raw => (RAW, None, "the raw weights"),
            Weights::Raw => {
                (MODEL, None, "params; it was trained without a moving average, so these are the raw weights")
            }
            Weights::Mu => (OPTIMIZER, Some("mu/"), "the tree mu"),
            Weights::Nu => (OPTIMIZER, Some("nu/"), "the tree nu"),
            Weights::Trace => (OPTIMIZER, Some("trace/"), "the tree trace"),
        };
        let mut file = step.join(file);
        if file.ends_with("model.safetensors") && !file.is_file() {
            // Cut into shards by somebody, or under another name: the folder says which.
            file = step.join("params");
        }
        ensure!(file.exists(), "{}: it has no {what}: {} is not there", step.display(), file.display());
        Ok(Own {
            file,
            prefix,
            step: number(step),
            assets: Some(step.join("assets")).filter(|folder| folder.is_dir()),
            taken: format!("of {name} {what}"),
        })
    }
}

/// The state of a run, opened. Its tensors are read when they are asked for.
pub struct StateOnDisk {
    /// The step's folder.
    pub folder: PathBuf,
    /// Its number.
    pub step: u64,
    /// Updates done.
    pub count: u64,
    /// Which optimizer's state it is.
    pub optimizer: Optimizer,
    /// Is there an average?
    pub ema: bool,
    /// Every parameter, by canonical name, sorted.
    pub tensors: Vec<Tensor>,
    /// Names of those that have optimizer vectors.
    pub trainable: BTreeSet<String>,
    /// What they are.
    pub anatomy: Anatomy,
    /// What the run said of itself; `None` in what openpi wrote.
    pub run: Option<serde_json::Value>,
    trees: BTreeMap<Tree, Stored>,
}

/// A tree on disk, and its way to canonical names.
struct Stored {
    opened: Opened,
    plan: Plan,
    output: BTreeMap<String, usize>,
    /// Names are canonical and every tensor stands by itself: no unstacking.
    direct: bool,
    unstacked: Mutex<Option<Scratch>>,
}

impl std::fmt::Debug for StateOnDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateOnDisk").field("folder", &self.folder).field("step", &self.step).finish_non_exhaustive()
    }
}

/// Opens the state in a step's folder, ours in either form or openpi's.
///
/// # Errors
/// Not a step that a run can go on from; trees that do not belong together.
pub fn open(folder: &Path) -> Result<StateOnDisk> {
    let own = own_step(folder).is_some();
    let file = read_state(&folder.join(if own { STATE } else { ORBAX_STATE }))?;
    ensure!(!own || file.is_some(), "{}: {STATE} is missing: no run can go on from here", folder.display());
    let facts = match file {
        Some(file) => Facts { count: file.count, optimizer: file.optimizer, ema: file.ema, run: Some(file.run) },
        None => openpi_facts(folder)?,
    };
    let map = Map::pi0();
    let params = Stored::open(&map, folder, Tree::Params, &BTreeMap::new())?;
    let from = params.opened.scheme(&map, None)?;
    let heads = params.opened.own_anatomy().map(|a| a.heads()).unwrap_or_default();
    let options = Options { heads: heads.clone(), ..Options::default() };
    let anatomy = Anatomy::read(&map, &params.opened.tensors, from, &options)?;
    let tensors: Vec<Tensor> = params.plan.outputs.iter().map(|o| o.tensor.clone()).collect();
    let mut trees = BTreeMap::from([(Tree::Params, params)]);
    for tree in facts.optimizer.trees().iter().chain(facts.ema.then_some(&Tree::Ema)) {
        let stored = Stored::open(&map, folder, *tree, &heads)
            .with_context(|| format!("{}: the tree {}", folder.display(), tree.name()))?;
        stored.agrees(&tensors, *tree)?;
        trees.insert(*tree, stored);
    }
    let mut trained = facts.optimizer.trees().iter().filter_map(|tree| trees.get(tree)).map(Stored::names);
    let trainable = trained.next().unwrap_or_default();
    ensure!(trained.all(|other| other == trainable), "{}: mu and nu are not of the same parameters", folder.display());
    let step =
        number(folder).with_context(|| format!("{}: a step's folder is named by its number", folder.display()))?;
    let Facts { count, optimizer, ema, run } = facts;
    Ok(StateOnDisk { folder: folder.to_owned(), step, count, optimizer, ema, tensors, trainable, anatomy, run, trees })
}

impl StateOnDisk {
    /// The bytes of one tensor: little endian, last axis fastest.
    ///
    /// Of an Orbax item, the first call for a tree unstacks all of it, in a file without a name beside the steps (or in
    /// the system's temporary folder): there must be room for it on the disk until [`close`](Self::close).
    ///
    /// # Errors
    /// A tree or tensor that is not there; what the medium says.
    pub fn bytes(&self, tree: Tree, name: &str) -> Result<Vec<u8>> {
        let stored = self
            .trees
            .get(&tree)
            .with_context(|| format!("{}: there is no tree {}", self.folder.display(), tree.name()))?;
        let output = *stored.output.get(name).with_context(|| format!("{}: {name} is not in it", tree.name()))?;
        let tensor = &stored.plan.outputs[output].tensor;
        if stored.direct {
            let source = *stored.plan.canonical.get(name).with_context(|| format!("{name}: it has no source"))?;
            return Ok(orbax::read_array(&*stored.opened.source, stored.opened.arrays[source])?);
        }
        let mut scratch = stored.unstacked.lock().unwrap_or_else(PoisonError::into_inner);
        if scratch.is_none() {
            *scratch = Some(stored.unstack(&self.folder)?);
        }
        let Some(scratch) = scratch.as_ref() else { bail!("{name}: it was not unstacked") };
        Ok(scratch.with(output, 0, usize::try_from(tensor.bytes())?, <[u8]>::to_vec)?)
    }

    /// Frees what a tree took while it was read.
    pub fn close(&self, tree: Tree) {
        if let Some(stored) = self.trees.get(&tree) {
            *stored.unstacked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// A state on disk can be written again: in the other form, as another step.
impl Values for StateOnDisk {
    fn bytes(&self, tree: Tree, name: &str) -> Result<Vec<u8>> {
        StateOnDisk::bytes(self, tree, name)
    }
}

impl Stored {
    fn open(map: &Map, folder: &Path, tree: Tree, heads: &BTreeMap<(String, char), u64>) -> Result<Self> {
        let weights = match tree {
            Tree::Params => Weights::Raw,
            Tree::Ema => Weights::Ema,
            Tree::Mu => Weights::Mu,
            Tree::Nu => Weights::Nu,
            Tree::Trace => Weights::Trace,
        };
        let opened = Opened::open(folder, &Choice { weights, ..Choice::default() })?;
        let burn = map.scheme("burn").context("the map has a scheme burn")?;
        let from = opened.scheme(map, None)?;
        let own = opened.own_anatomy().map(|a| a.heads()).unwrap_or_default();
        let heads = heads.clone().into_iter().chain(own).collect();
        let options = Options { heads, part: weights.is_optimizer(), ..Options::default() };
        let plan = Plan::new(map, &opened.tensors, from, burn, &options)?;
        let output = plan.outputs.iter().enumerate().map(|(i, o)| (o.tensor.name.clone(), i)).collect();
        let direct = from.name == burn.name;
        Ok(Stored { opened, plan, output, direct, unstacked: Mutex::new(None) })
    }

    fn names(&self) -> BTreeSet<String> {
        self.output.keys().cloned().collect()
    }

    /// Every tensor is one of the parameters; of an average, every parameter is there.
    fn agrees(&self, tensors: &[Tensor], tree: Tree) -> Result<()> {
        let known: BTreeMap<&str, &Tensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        for output in &self.plan.outputs {
            let own = &output.tensor;
            let parameter = known
                .get(own.name.as_str())
                .with_context(|| format!("{}: {} is no parameter of these weights", tree.name(), own.name))?;
            ensure!(
                (&own.shape, own.dtype) == (&parameter.shape, parameter.dtype),
                "{}: {} is {} {:?}, its parameter {} {:?}",
                tree.name(),
                own.name,
                own.dtype.name(),
                own.shape,
                parameter.dtype.name(),
                parameter.shape
            );
        }
        let whole = tree != Tree::Ema || self.plan.outputs.len() == tensors.len();
        ensure!(whole, "ema: it has {} of {} parameters", self.plan.outputs.len(), tensors.len());
        Ok(())
    }

    fn unstack(&self, folder: &Path) -> Result<Scratch> {
        let sizes: Vec<Option<u64>> = self.plan.outputs.iter().map(|o| Some(o.tensor.bytes())).collect();
        let beside = folder.parent().unwrap_or(folder);
        let scratch = Scratch::new(&sizes, IN_MEMORY_BYTES, beside)
            .or_else(|_| Scratch::new(&sizes, IN_MEMORY_BYTES, &std::env::temp_dir()))?;
        let stop = AtomicBool::new(false);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let settings = Settings::threads(threads);
        let mover = Mover::new(&self.plan, &*self.opened.source, &self.opened.arrays, None, settings, &stop);
        mover.run(&mover.units(|_| true), &scratch)?;
        Ok(scratch)
    }
}

/// What a state is besides tensors.
struct Facts {
    count: u64,
    optimizer: Optimizer,
    ema: bool,
    run: Option<serde_json::Value>,
}

/// The same, out of what optax and openpi store.
fn openpi_facts(folder: &Path) -> Result<Facts> {
    let location = orbax::locate(folder, Some("train_state"))?;
    let item = Checkpoint::open(&location.dir)?;
    let names = || item.arrays().iter().map(|array| array.name.as_str());
    let has = |part: &str| names().any(|name| name.starts_with("opt_state/") && name.contains(part));
    let optimizer = match (has("/mu/"), has("/trace/")) {
        (true, false) => Optimizer::AdamW,
        (false, true) => Optimizer::Sgd,
        _ => bail!("{}: neither AdamW's moments nor SGD's momentum are in it", location.dir.display()),
    };
    let counter = names().position(|name| name.starts_with("opt_state/") && name.ends_with("/count"));
    let counter = counter.with_context(|| format!("{}: no counter in opt_state", location.dir.display()))?;
    let count = integer(&item, counter).with_context(|| location.dir.display().to_string())?;
    Ok(Facts { count, optimizer, ema: names().any(|name| name.starts_with("params/")), run: None })
}

/// An array without axes, as a count.
fn integer(source: &dyn Source, array: usize) -> Result<u64> {
    let info = &source.arrays()[array];
    ensure!(info.shape.is_empty(), "{}: expected one number, found shape {:?}", info.name, info.shape);
    let bytes = orbax::read_array(source, array)?;
    let value = match (info.dtype, &bytes[..]) {
        (Dtype::I32, &[a, b, c, d]) => i64::from(i32::from_le_bytes([a, b, c, d])),
        (Dtype::I64, bytes) => i64::from_le_bytes(bytes.try_into()?),
        (other, _) => bail!("{}: expected an integer, found {}", info.name, other.name()),
    };
    u64::try_from(value).with_context(|| format!("{}: {value} updates", info.name))
}

fn read_state(path: &Path) -> Result<Option<StateFile>> {
    let naming = || path.display().to_string();
    let size = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.with_context(naming)?.len(),
    };
    ensure!(size <= MAX_STATE_BYTES, "{}: {size} bytes, at most {MAX_STATE_BYTES} are read", path.display());
    let text = std::fs::read(path).with_context(naming)?;
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(&text).with_context(naming)?;
    ensure!(version == VERSION, "{}: version {version}, this program reads {VERSION}", path.display());
    serde_json::from_slice(&text).map(Some).with_context(naming)
}
