//! An observation file as arrays by key: a JSON document with pictures beside it, an npz, or a safetensors file, the
//! inputs of a recorded set included. Nothing is held against a model here.
//!
//! Invariant: keys come out as openpi spells them, joined by `/`: `state`, `image/base_0_rgb`, `tokenized_prompt_mask`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use orbax::{Npz, Source};
use remap::Safetensors;
use serde_json::Value;

use crate::cli::array;
use crate::policy::array::Array;

/// Bytes of a JSON document: pictures stand beside it.
const MAX_JSON: u64 = 1 << 28;
/// What a recorded set wraps its inputs in, and what it has for inference alone.
const RECORDED: &str = "in/";
const INFERENCE: &str = "infer/";
const SAMPLED: &str = "sample/";

/// The arrays of a file, by key.
pub(super) type Keys = BTreeMap<String, Array>;

/// Reads a file by its extension.
pub(super) fn open(path: &Path) -> Result<Keys> {
    ensure!(path.exists(), "{}: there is nothing under this path", path.display());
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") => json(path).with_context(|| path.display().to_string()),
        Some("npz") => arrays(&Npz::open(path)?),
        Some("safetensors") => arrays(&Safetensors::open(path)?),
        _ => bail!("{}: an observation is a .json, a .npz or a .safetensors", path.display()),
    }
}

/// Noise on its own: a `.npy`, or the array `noise` (or `sample/noise`) of an npz or safetensors file.
pub(super) fn noise(path: &Path) -> Result<Array> {
    if !matches!(path.extension().and_then(|e| e.to_str()), Some("npz" | "safetensors")) {
        return array::file(path);
    }
    let mut keys = open(path)?;
    keys.remove("noise").with_context(|| format!("{}: no array named noise or sample/noise", path.display()))
}

fn arrays(source: &dyn Source) -> Result<Keys> {
    let names: Vec<&str> = source.arrays().iter().map(|a| a.name.as_str()).collect();
    let recorded = names.iter().any(|name| name.starts_with(RECORDED));
    let mut keys = Keys::new();
    let sampled = names.contains(&"sample/noise");
    for (i, name) in names.iter().enumerate() {
        let key = match (name.strip_prefix(RECORDED), name.strip_prefix(SAMPLED)) {
            (Some("noise"), _) if sampled => continue,
            (Some(key), _) => key,
            (None, Some("noise")) => "noise",
            // Of a recording the rest is what came out.
            _ if recorded => continue,
            _ => name,
        };
        keys.insert(key.to_owned(), array::of(source, i)?);
    }
    // The prompt of inference ends where the one of training goes on with the actions.
    for (i, name) in names.iter().enumerate() {
        if let Some(key) = name.strip_prefix(INFERENCE).filter(|key| recorded && PROMPT.contains(key)) {
            keys.insert(key.to_owned(), array::of(source, i)?);
            keys.remove("token_loss_mask");
        }
    }
    Ok(keys)
}

/// What `infer/` replaces.
const PROMPT: [&str; 3] = ["tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask"];

fn json(path: &Path) -> Result<Keys> {
    let size = std::fs::metadata(path)?.len();
    ensure!(size <= MAX_JSON, "{size} bytes, at most {MAX_JSON} are accepted: name pictures and arrays by their files");
    let value: Value = serde_json::from_slice(&std::fs::read(path)?).context("not a JSON document")?;
    let Value::Object(members) = value else { bail!("expected an object: {{\"state\": …, \"image\": …}}") };
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut keys = Keys::new();
    let mut put = |key: String, value: &Value| {
        let array = member(value, folder).with_context(|| key.clone())?;
        keys.insert(key, array);
        anyhow::Ok(())
    };
    for (key, value) in &members {
        match value {
            Value::Object(inner) => {
                inner.iter().try_for_each(|(name, value)| put(format!("{key}/{name}"), value))?;
            }
            value => put(key.clone(), value)?,
        }
    }
    Ok(keys)
}

/// A value, or the file or files that it names.
fn member(value: &Value, folder: &Path) -> Result<Array> {
    match value {
        Value::String(file) => array::file(&folder.join(file)),
        Value::Array(files) if files.first().is_some_and(Value::is_string) => {
            let file = |value: &Value| {
                let name = value.as_str().context("a list of file names holds something else")?;
                array::file(&folder.join(name))
            };
            array::stack(files.iter().map(file).collect::<Result<_>>()?)
        }
        value => array::json(value),
    }
}
