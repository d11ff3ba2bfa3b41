//! A checkpoint item: its tree of leaves over lazy arrays.
//!
//! Source: Orbax's PyTree handler, versions 0.4 to 0.12 (<https://github.com/google/orbax>).
//! Invariant: after [`Checkpoint::open`] every array leaf has a document that was understood; no chunk was touched.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::array::Arrays;
use crate::error::{Error, Result};
use crate::metadata::{self, LeafDoc, Metadata};
use crate::store::{OcdbtStore, PlainStore, Store};
use crate::tree::{self, Leaf, Value, path_name, stored_name};
use crate::{ArrayInfo, Chunk, Source};

/// What Orbax puts into the name of a folder it is still writing.
pub(crate) const TEMPORARY: &str = ".orbax-checkpoint-tmp";

/// An opened checkpoint item: its tree, nothing of its data.
pub struct Checkpoint {
    leaves: Vec<Leaf>,
    arrays: Arrays,
    warnings: Vec<String>,
    layout: String,
    /// By array index.
    prng_impls: HashMap<usize, String>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("layout", &self.layout)
            .field("leaves", &self.leaves.len())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens exactly this item folder (see [`locate`](crate::locate()) for kinder arguments).
    ///
    /// # Errors
    /// Everything that is wrong with the tree, the database or the arrays' documents; chunks are not looked at.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        refuse_unfinished(dir)?;
        let metadata = Metadata::read(dir)?;
        let has_manifest = dir.join("manifest.ocdbt").exists();
        let processes = process_folders(dir)?;
        let Some(metadata) = metadata else {
            return Err(without_metadata(dir, has_manifest));
        };
        if !has_manifest && !processes.is_empty() {
            return Err(Error::Unfinished {
                dir: dir.to_path_buf(),
                problem: format!("{} without a merged manifest.ocdbt beside it", processes.join(", ")),
            });
        }
        if !has_manifest && metadata.use_ocdbt == Some(true) {
            return Err(Error::NotACheckpoint {
                dir: dir.to_path_buf(),
                problem: "_METADATA says OCDBT (use_ocdbt), but manifest.ocdbt is missing; the copy is incomplete"
                    .to_owned(),
            });
        }
        let store: Box<dyn Store> =
            if has_manifest { Box::new(OcdbtStore::open(dir)?) } else { Box::new(PlainStore::open(dir)) };
        let mut arrays = Arrays::new(store, metadata.every_chunk_stored);
        let mut warnings = Vec::new();
        let strings = metadata::read_strings(dir)?;
        let impls = metadata::read_prng_impls(dir, &mut warnings);
        let mut prng_impls = HashMap::new();
        let mut leaf_of_array: HashMap<String, String> = HashMap::new();
        let mut leaves = Vec::new();
        for doc in tree::check(metadata.leaves)? {
            let (name, stored) = (path_name(&doc.path), stored_name(&doc.path));
            let value = match kind(&doc)? {
                Kind::Empty => Value::Empty(doc.value_type),
                Kind::String => match strings.get(&stored) {
                    Some(text) => Value::String(text.clone()),
                    None => {
                        return Err(Error::leaf(name, format!("a string, but _strings.json has no {stored:?}")));
                    }
                },
                Kind::Array => {
                    if let Some(other) = leaf_of_array.insert(stored.clone(), name.clone()) {
                        return Err(Error::leaf(name, format!("shares the array {stored:?} with the leaf {other:?}")));
                    }
                    let Some(array) = arrays.add(&stored, &name, metadata.use_zarr3)? else {
                        return Err(Error::NoArray { name, array: stored });
                    };
                    if let Some(prng) = impls.get(&stored) {
                        prng_impls.insert(array, prng.clone());
                    }
                    Value::Array(array)
                }
            };
            leaves.push(Leaf { path: doc.path, value });
        }
        let (found, odd) = arrays.store().array_names()?;
        warnings.extend(odd);
        for name in found {
            if !leaf_of_array.contains_key(&name) {
                warnings.push(format!("array {name:?} is stored, but _METADATA lists no leaf for it; it was left out"));
            }
        }
        let formats = match arrays.formats() {
            (true, false) => "zarr2",
            (false, true) => "zarr3",
            (true, true) => "zarr2 and zarr3",
            (false, false) => "no arrays",
        };
        let layout = format!("{}, {formats}", if has_manifest { "ocdbt" } else { "plain" });
        Ok(Checkpoint { leaves, arrays, warnings, layout, prng_impls })
    }

    /// Every leaf, in the saved order.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// What is odd but not wrong (arrays without a leaf, ...).
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// `ocdbt` or `plain`, `zarr2` or `zarr3`: for reports (`"ocdbt, zarr2"`).
    pub fn layout(&self) -> &str {
        &self.layout
    }

    /// PRNG implementation of a typed key leaf (`threefry2x32`), by array index.
    pub fn prng_impl(&self, array: usize) -> Option<&str> {
        self.prng_impls.get(&array).map(String::as_str)
    }
}

impl Source for Checkpoint {
    fn arrays(&self) -> &[ArrayInfo] {
        self.arrays.infos()
    }
    fn chunk(&self, array: usize, chunk: u64) -> Result<Chunk<'_>> {
        self.arrays.chunk(array, chunk)
    }
    fn stored_len(&self, array: usize, chunk: u64) -> Result<u64> {
        self.arrays.stored_len(array, chunk)
    }
}

enum Kind {
    Array,
    String,
    Empty,
}

fn kind(doc: &LeafDoc) -> Result<Kind> {
    match (doc.value_type.as_str(), doc.skip) {
        ("None" | "Dict" | "List" | "Tuple" | "NamedTuple", true) => Ok(Kind::Empty),
        ("jax.Array" | "np.ndarray" | "scalar", false) => Ok(Kind::Array),
        ("string", false) => Ok(Kind::String),
        (other, skip) => Err(Error::leaf(
            path_name(&doc.path),
            format!(
                "unknown value_type {other:?} (skip_deserialize {skip}); known are jax.Array, np.ndarray, scalar, string, and None, Dict, List, Tuple, NamedTuple for nodes without content"
            ),
        )),
    }
}

/// Orbax renames a folder to its final name only when all is written.
pub(crate) fn refuse_unfinished(dir: &Path) -> Result<()> {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if name.contains(TEMPORARY) {
        return Err(Error::Unfinished {
            dir: dir.to_path_buf(),
            problem: format!("its name contains {TEMPORARY}, which Orbax removes when a save is complete"),
        });
    }
    Ok(())
}

fn process_folders(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let name = entry.map_err(|e| Error::io(dir, e))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with("ocdbt.process_")) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn without_metadata(dir: &Path, has_manifest: bool) -> Error {
    let problem = if dir.join("checkpoint").is_file() {
        "no _METADATA, but a msgpack file `checkpoint`: a checkpoint of Orbax < 0.4, which keeps its tree only there; restore and save it with a newer Orbax"
    } else if has_manifest {
        "an OCDBT database without _METADATA; its arrays can be listed raw, its tree is unknown"
    } else {
        "no _METADATA in it; not a checkpoint item"
    };
    Error::NotACheckpoint { dir: dir.to_path_buf(), problem: problem.to_owned() }
}
