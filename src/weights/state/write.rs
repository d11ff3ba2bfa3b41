//! A state into its step's folder: planned and checked, built aside, published by one rename.
//!
//! Invariant: a save that fails or is killed leaves at most a hidden folder. Memory: one tensor, and what a thread moves;
//! in the Orbax form one stacked array a thread, which above 64 MiB is a file without a name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use orbax::{ArrayInfo, Chunk, Dtype, Empty, Key, NewEmpty, Order, Source};
use remap::{Map, Mover, Options, Plan, Scheme, Settings, Tensor, Writer};

use super::keep::{discard, is_complete};
use super::{Format, MODEL, OPTIMIZER, ORBAX_STATE, Optimizer, Outline, RAW, STATE, StateFile, Tree, VERSION, Values};
use crate::weights::anatomy::Anatomy;
use crate::weights::companions::{Request, companions};
use crate::weights::convert::{Progress, put, watched};
use crate::weights::decide::commonest_float;
use crate::weights::jax;
use crate::weights::stage::Stage;

/// openpi's manager writes this of its items; a restore by item names reads it.
const HANDLERS: [(&str, &str); 3] = [
    ("assets", "openpi.training.checkpoints.CallbackHandler"),
    ("params", "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"),
    ("train_state", "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"),
];

/// Writes the state as `<run>/<step>`. Gives the folder.
///
/// # Errors
/// A step of that number is there; names or shapes that are no model's; what `values` and the file system say. Nothing is
/// left then, nor after `stop`.
pub fn save(
    run: &Path,
    outline: &Outline,
    values: &dyn Values,
    format: Format,
    threads: usize,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<PathBuf> {
    let map = Map::pi0();
    let save = Save::new(&map, outline, values, threads, progress, stop)?;
    let target = run.join(outline.step.to_string());
    if target.exists() {
        let there = outline.step;
        ensure!(!is_complete(&target), "{}: step {there} is saved already, and is not written again", target.display());
        // Half a copy of somebody's: no save leaves such a thing.
        discard(&target)?;
    }
    let stage = Stage::open(&target, false)?;
    match format {
        Format::Safetensors => save.safetensors(stage.path())?,
        Format::Orbax { time_ns } => save.orbax(stage.path(), time_ns)?,
    }
    for (path, bytes) in &save.files {
        put(stage.path(), &target, path, bytes)?;
    }
    stage.publish()?;
    Ok(target)
}

/// A save whose outline is understood.
struct Save<'a> {
    map: &'a Map,
    burn: &'a Scheme,
    outline: &'a Outline,
    values: &'a dyn Values,
    anatomy: Anatomy,
    /// Small files: assets, the configuration, what the caller gave. By path inside the step.
    files: Vec<(PathBuf, Vec<u8>)>,
    dtype: Dtype,
    threads: usize,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
}

impl<'a> Save<'a> {
    fn new(
        map: &'a Map,
        outline: &'a Outline,
        values: &'a dyn Values,
        threads: usize,
        progress: &'a dyn Progress,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let burn = map.scheme("burn").context("the map has a scheme burn")?;
        let options = Options { heads: outline.heads.clone(), ..Options::default() };
        let anatomy = Anatomy::read(map, &outline.tensors, burn, &options)?;
        let plan = Plan::new(map, &outline.tensors, burn, burn, &options)?;
        let names: BTreeSet<&str> = outline.tensors.iter().map(|t| t.name.as_str()).collect();
        if let Some(strange) = outline.trainable.iter().find(|name| !names.contains(name.as_str())) {
            bail!("{strange}: it is to be trained, and is no parameter of this model");
        }
        ensure!(!outline.trainable.is_empty(), "nothing is trained: there is no state to save");
        let mut files = vec![];
        for (id, text) in &outline.assets {
            files.push((Path::new("assets").join(id).join("norm_stats.json"), text.clone()));
        }
        files.extend(outline.beside.iter().cloned());
        for (path, _) in &files {
            ensure!(
                path.components().all(|part| matches!(part, Component::Normal(_))),
                "{}: it would lie outside of the step's folder",
                path.display()
            );
        }
        let dtype = commonest_float(&plan);
        Ok(Save { map, burn, outline, values, anatomy, files, dtype, threads: threads.max(1), progress, stop })
    }

    fn safetensors(&self, folder: &Path) -> Result<()> {
        let served = if self.outline.ema { Tree::Ema } else { Tree::Params };
        let request = Request {
            anatomy: &self.anatomy,
            dtype: self.dtype,
            preset: self.outline.preset.as_ref(),
            action_horizon: None,
            stats: &[],
            asset_id: None,
        };
        for (path, bytes) in companions("burn", &request)?.files {
            put(folder, folder, &Path::new("params").join(path), &bytes)?;
        }
        self.file(&folder.join(MODEL), &[served], if self.outline.ema { "ema" } else { "raw" })?;
        if self.outline.ema {
            self.file(&folder.join(RAW), &[Tree::Params], "raw")?;
        }
        self.file(&folder.join(OPTIMIZER), self.outline.optimizer.trees(), "optimizer")?;
        put(folder, folder, Path::new(STATE), &self.state_file()?)?;
        Ok(())
    }

    /// Trees as one file: weights under their names, optimizer vectors under `mu/<name>`.
    fn file(&self, path: &Path, trees: &[Tree], weights: &str) -> Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        let source = Live::new(self, trees);
        let tensors: Vec<Tensor> = source.tensors(|tree, name| match tree {
            Tree::Params | Tree::Ema => name.to_owned(),
            _ => format!("{}/{name}", tree.name()),
        });
        let plan = Plan::as_is(&tensors, None)?;
        let outputs = plan.outputs.iter().map(|o| o.tensor.clone()).collect();
        let writer = Writer::create(path, outputs, &self.metadata(weights), None)?;
        let arrays: Vec<usize> = (0..tensors.len()).collect();
        let mover = Mover::new(&plan, &source, &arrays, None, Settings::threads(self.threads), self.stop);
        let moved = watched(&mover, self.progress, "saving", || Ok(mover.run(&mover.units(|_| true), &writer)?));
        source.reason(moved)?;
        writer.publish()?;
        Ok(())
    }

    fn metadata(&self, weights: &str) -> BTreeMap<String, String> {
        let pairs = [
            ("format", "pt".to_owned()),
            ("pi0.writer", concat!("pi0-burn ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("pi0.scheme", self.burn.name.clone()),
            ("pi0.from", "training".to_owned()),
            ("pi0.step", self.outline.step.to_string()),
            ("pi0.weights", weights.to_owned()),
            ("pi0.lora", if self.anatomy.has_lora() { "keep" } else { "none" }.to_owned()),
            ("pi0.precision", "as stored".to_owned()),
            ("pi0.anatomy", serde_json::to_string(&self.anatomy).unwrap_or_default()),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn state_file(&self) -> Result<Vec<u8>> {
        let Outline { step, count, optimizer, ema, ref run, .. } = *self.outline;
        let mut text =
            serde_json::to_vec_pretty(&StateFile { version: VERSION, step, count, optimizer, ema, run: run.clone() })?;
        text.push(b'\n');
        Ok(text)
    }

    fn orbax(&self, folder: &Path, time_ns: u64) -> Result<()> {
        let count = i32::try_from(self.outline.count).context("openpi counts its updates in 32 bits")?;
        let at = |path: &str| path.split('/').map(key).collect::<Vec<Key>>();
        let stamp = jax::Stamp { time_ns, hashes: false };
        let params = at("params");
        let served = if self.outline.ema { Tree::Ema } else { Tree::Params };
        self.item(&folder.join("params"), &[(served, params.clone())], vec![], vec![], &stamp)?;

        // optax's states, in the order of its chain: clip (nothing), scale by Adam, decay (nothing), scale by schedule.
        let (places, counters, nothing): (&[(Tree, &str)], &[&str], &[&str]) = match self.outline.optimizer {
            Optimizer::AdamW => (
                &[(Tree::Mu, "opt_state/1/0/mu"), (Tree::Nu, "opt_state/1/0/nu")],
                &["opt_state/1/0/count", "opt_state/1/2/count"],
                &["opt_state/0", "opt_state/1/1"],
            ),
            Optimizer::Sgd => (&[(Tree::Trace, "opt_state/0/trace")], &["opt_state/1/count"], &[]),
        };
        let mut branches: Vec<(Tree, Vec<Key>)> = places.iter().map(|(tree, path)| (*tree, at(path))).collect();
        let none = |path: &str| NewEmpty { path: at(path), kind: Empty::None };
        let mut empty: Vec<NewEmpty> = nothing.iter().chain(&["model_def", "ema_params"]).map(|p| none(p)).collect();
        if self.outline.ema {
            branches.push((Tree::Params, params));
        } else {
            empty.push(NewEmpty { path: params, kind: Empty::Dict });
        }
        let scalars = counters.iter().chain(&["step"]).map(|path| (at(path), count)).collect();
        self.item(&folder.join("train_state"), &branches, scalars, empty, &stamp)?;

        let handlers: BTreeMap<&str, &str> = HANDLERS.into_iter().collect();
        let document = serde_json::json!({
            "item_handlers": handlers, "metrics": {}, "performance_metrics": {}, "init_timestamp_nsecs": time_ns,
            "commit_timestamp_nsecs": time_ns, "custom_metadata": {},
        });
        put(folder, folder, Path::new("_CHECKPOINT_METADATA"), &serde_json::to_vec(&document)?)?;
        put(folder, folder, Path::new(ORBAX_STATE), &self.state_file()?)?;
        // openpi's item, with or without anything in it.
        std::fs::create_dir_all(folder.join("assets")).context("creating assets")?;
        Ok(())
    }

    /// An item of branches, each a tree in openpi's names and layout.
    fn item(
        &self,
        folder: &Path,
        branches: &[(Tree, Vec<Key>)],
        scalars: Vec<(Vec<Key>, i32)>,
        empty: Vec<NewEmpty>,
        stamp: &jax::Stamp,
    ) -> Result<()> {
        let jax_scheme = self.map.scheme("jax").context("the map has a scheme jax")?;
        let sources: Vec<Live<'_>> = branches.iter().map(|(tree, _)| Live::new(self, &[*tree])).collect();
        let mut planned = vec![];
        for ((tree, _), source) in branches.iter().zip(&sources) {
            let tensors = source.tensors(|_, name| name.to_owned());
            let part = !matches!(tree, Tree::Params | Tree::Ema);
            let options = Options { heads: self.anatomy.heads(), part, ..Options::default() };
            let plan = Plan::new(self.map, &tensors, self.burn, jax_scheme, &options).with_context(|| {
                format!("the tree {} cannot be stacked as openpi has it; save in safetensors", tree.name())
            })?;
            for m in &plan.moves {
                let (from, to) = (&tensors[m.source], &plan.outputs[m.output].tensor);
                ensure!(
                    from.dtype == to.dtype,
                    "{}: it is {}, and its layers are stacked as {}; the Orbax form cannot tell them apart, save in \
                     safetensors",
                    from.name,
                    from.dtype.name(),
                    to.dtype.name()
                );
            }
            planned.push((plan, (0..tensors.len()).collect::<Vec<usize>>()));
        }
        let movers: Vec<Mover<'_>> = planned
            .iter()
            .zip(&sources)
            .map(|((plan, arrays), source)| Mover::new(plan, source, arrays, None, Settings::threads(1), self.stop))
            .collect();
        let item = jax::Item {
            branches: branches
                .iter()
                .zip(&planned)
                .zip(&movers)
                .map(|(((_, prefix), (plan, _)), mover)| jax::Branch {
                    mover,
                    plan,
                    prefix: prefix.clone(),
                    value: true,
                })
                .collect(),
            scalars,
            empty,
        };
        self.progress.phase("saving", movers.iter().flat_map(|m| m.units(|_| true)).map(|u| u.bytes).sum());
        let written = jax::write(&item, folder, stamp, self.threads).map(|_| ());
        sources.iter().fold(written, |written, source| source.reason(written))
    }
}

/// `0` is an index, `mu` a name.
fn key(step: &str) -> Key {
    step.parse().map_or_else(|_| jax::name(step), Key::Index)
}

/// Trees of a run as a source: each tensor one chunk, asked of the device when its turn comes.
struct Live<'a> {
    values: &'a dyn Values,
    arrays: Vec<ArrayInfo>,
    places: Vec<(Tree, &'a str)>,
    /// One at a time; and what went wrong, in the device's own words.
    turn: Mutex<Option<anyhow::Error>>,
}

impl<'a> Live<'a> {
    fn new(save: &Save<'a>, trees: &[Tree]) -> Self {
        let (mut arrays, mut places) = (vec![], vec![]);
        for tree in trees {
            let all = matches!(tree, Tree::Params | Tree::Ema);
            for tensor in save.outline.tensors.iter().filter(|t| all || save.outline.trainable.contains(&t.name)) {
                arrays.push(ArrayInfo {
                    name: format!("{} of {}", tree.name(), tensor.name),
                    shape: tensor.shape.clone(),
                    dtype: tensor.dtype,
                    order: Order::C,
                    chunk_shape: tensor.shape.iter().map(|n| (*n).max(1)).collect(),
                });
                places.push((*tree, tensor.name.as_str()));
            }
        }
        Live { values: save.values, arrays, places, turn: Mutex::new(None) }
    }

    fn tensors(&self, name: impl Fn(Tree, &str) -> String) -> Vec<Tensor> {
        let tensor = |(info, (tree, own)): (&ArrayInfo, &(Tree, &str))| Tensor {
            name: name(*tree, own),
            shape: info.shape.clone(),
            dtype: info.dtype,
        };
        self.arrays.iter().zip(&self.places).map(tensor).collect()
    }

    /// The result, or rather the device's error that led to it.
    fn reason<T>(&self, result: Result<T>) -> Result<T> {
        match (result, self.turn.lock().unwrap_or_else(PoisonError::into_inner).take()) {
            (Err(_), Some(own)) => Err(own),
            (result, _) => result,
        }
    }
}

impl Source for Live<'_> {
    fn arrays(&self) -> &[ArrayInfo] {
        &self.arrays
    }

    fn chunk(&self, array: usize, _: u64) -> orbax::Result<Chunk<'_>> {
        let (info, (tree, name)) = (&self.arrays[array], self.places[array]);
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = self.stored_len(array, 0)?;
        let found = self.values.bytes(tree, name).with_context(|| info.name.clone()).and_then(|bytes| {
            let found = bytes.len() as u64;
            ensure!(found == expected, "{}: expected {expected} bytes, found {found}", info.name);
            Ok(bytes)
        });
        found.map(|bytes| Chunk::Stream(Box::new(Cursor::new(bytes)))).map_err(|error| {
            let said = orbax::Error::Io { path: info.name.clone().into(), source: std::io::Error::other("not given") };
            turn.get_or_insert(error);
            said
        })
    }

    fn stored_len(&self, array: usize, _: u64) -> orbax::Result<u64> {
        let info = &self.arrays[array];
        Ok(info.shape.iter().product::<u64>() * info.dtype.size() as u64)
    }
}
