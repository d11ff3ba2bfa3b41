//! What came out, on the host, and the three kinds of files it is kept in.
//!
//! Invariant: every kind holds the same numbers: f32 of actions and i32 of tokens come back bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use orbax::Dtype;
use remap::Tensor;
use serde::Serialize;

use crate::sample::tokens::{END, Tokens};
use crate::weights::stage::may_replace;

/// What came out of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(in crate::cli) enum Chunk {
    /// pi0, pi0.5.
    Actions {
        /// `[B, horizon, A]`.
        shape: [usize; 3],
        #[serde(rename = "actions", serialize_with = "nested")]
        values: Actions,
    },
    /// pi0-FAST.
    Tokens {
        /// Of each row, with its end.
        tokens: Vec<Tokens>,
        /// Did the row emit the end?
        ended: Vec<bool>,
    },
}

/// Values with the shape that they are written in.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct Actions {
    pub(super) shape: [usize; 3],
    pub(in crate::cli) values: Vec<f32>,
}

fn nested<S: serde::Serializer>(actions: &Actions, serializer: S) -> Result<S::Ok, S::Error> {
    let [_, horizon, dim] = actions.shape;
    let rows: Vec<Vec<&[f32]>> = actions.values.chunks(horizon * dim).map(|row| row.chunks(dim).collect()).collect();
    rows.serialize(serializer)
}

impl Chunk {
    /// `values` of `[B, horizon, A]`.
    pub(super) fn actions(shape: [usize; 3], values: Vec<f32>) -> Self {
        Chunk::Actions { shape, values: Actions { shape, values } }
    }

    /// Rows of tokens.
    pub(super) fn tokens(tokens: Vec<Tokens>) -> Self {
        let ended = tokens.iter().map(|row| row.contains(&END)).collect();
        Chunk::Tokens { tokens, ended }
    }
}

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Json,
    Npy,
    Safetensors,
}

impl Kept {
    /// The kind that a name tells, where the file may be written.
    pub(super) fn of(path: &Path, overwrite: bool) -> Result<Self> {
        let kind = match path.extension().and_then(|e| e.to_str()) {
            Some("json") => Kept::Json,
            Some("npy") => Kept::Npy,
            Some("safetensors") => Kept::Safetensors,
            _ => bail!("--output {}: actions are kept in a .json, a .npy or a .safetensors", path.display()),
        };
        may_write(path, overwrite)?;
        Ok(kind)
    }

    /// The file's content. Rows of tokens are padded with zeros, as openpi's are.
    pub(super) fn bytes(self, chunk: &Chunk) -> Result<Vec<u8>> {
        if self == Kept::Json {
            let mut text = serde_json::to_vec(chunk)?;
            text.push(b'\n');
            return Ok(text);
        }
        let (name, dtype, shape, data): (_, _, Vec<usize>, Vec<u8>) = match chunk {
            Chunk::Actions { shape, values } => {
                ("actions", Dtype::F32, shape.to_vec(), values.values.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            Chunk::Tokens { tokens, .. } => {
                let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
                let padded = |row: &Tokens| (0..longest).map(|i| row.get(i).copied().unwrap_or(0)).collect::<Vec<_>>();
                let data = tokens.iter().flat_map(padded).flat_map(i32::to_le_bytes).collect();
                ("tokens", Dtype::I32, vec![tokens.len(), longest], data)
            }
        };
        let shape: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
        match self {
            Kept::Npy => orbax::npy_bytes(dtype, &shape, &data).context("the actions as npy"),
            _ => Ok(remap::to_bytes(&[(Tensor { name: name.to_owned(), shape, dtype }, data)], &BTreeMap::new())),
        }
    }
}

/// Chunks in the robot's units, `[n, horizon, D]`, in f64 as openpi's policy gives most of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RobotActions {
    pub(super) shape: [usize; 3],
    pub(super) values: Vec<f64>,
}

impl Kept {
    /// As [`Kept::bytes`].
    pub(super) fn of_robot(self, actions: &RobotActions) -> Result<Vec<u8>> {
        let RobotActions { shape: [_, horizon, dim], values } = actions;
        let size = (horizon * dim).max(1);
        if self == Kept::Json {
            let rows: Vec<Vec<&[f64]>> = values.chunks(size).map(|row| row.chunks((*dim).max(1)).collect()).collect();
            let mut text = serde_json::to_vec(&serde_json::json!({ "actions": rows }))?;
            text.push(b'\n');
            return Ok(text);
        }
        let shape: Vec<u64> = actions.shape.iter().map(|n| *n as u64).collect();
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        match self {
            Kept::Npy => orbax::npy_bytes(Dtype::F64, &shape, &data).context("the actions as npy"),
            _ => {
                let tensor = Tensor { name: "actions".to_owned(), shape, dtype: Dtype::F64 };
                Ok(remap::to_bytes(&[(tensor, data)], &BTreeMap::new()))
            }
        }
    }
}

/// A file of this name may be made: its folder is there, and nothing is lost unasked.
pub(super) fn may_write(path: &Path, overwrite: bool) -> Result<()> {
    if path.is_dir() {
        bail!("{} is a folder; a file of that name cannot be made", path.display());
    }
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty() && !f.is_dir()) {
        bail!("{}: the folder {} is not there", path.display(), folder.display());
    }
    may_replace(path, overwrite)
}
