//! Where the verbs about action chunks take them from.
//!
//! - a file of them, here
//! - `dataset`: datasets, normalised as a preset says
//!
//! Invariant: every source of chunks ends in a [`Chunks`]: normalised actions `[H, D]`, one array each, in the order of the
//! data.

mod dataset;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use orbax::{Dtype, Npy, Npz, Source, read_array};
use remap::Safetensors;

use super::output::Mouth;
use crate::policy::array::{Array, Values};

/// A million chunks of 50 steps and 14 dimensions in f32 have 2.8 GB.
const MAX_BYTES: u64 = 8 << 30;

/// Which chunks a verb is about.
#[derive(Debug, clap::Args)]
pub struct From {
    /// Normalised action chunks [n, steps, dimensions]: a .npy, or the one such array of a .npz or .safetensors
    #[arg(long, value_name = "FILE", required_unless_present = "dataset", conflicts_with = "dataset")]
    pub chunks: Option<PathBuf>,

    /// Or which datasets.
    #[command(flatten)]
    pub datasets: dataset::Args,

    /// Only the first so many of them; of datasets, so many at even distances
    #[arg(long, value_name = "N")]
    pub max_chunks: Option<usize>,

    /// Only the first steps of each, H; of datasets, in place of the preset's
    #[arg(long, visible_alias = "action-horizon", value_name = "STEPS")]
    pub horizon: Option<usize>,
}

/// Chunks of one shape.
#[derive(Debug)]
pub struct Chunks {
    /// What they were read from, for people.
    pub source: String,
    /// `[H, D]` each.
    pub all: Vec<Array>,
    /// What they were before they were normalised, where that is known.
    pub units: Option<Units>,
}

/// What normalised values were before.
#[derive(Debug)]
pub struct Units {
    /// Where the statistics are from.
    pub norm_stats: String,
    /// Whose units, for people.
    pub convention: &'static str,
    /// What a step of 1 in a normalised value is, by dimension.
    pub of: Vec<f64>,
}

impl From {
    /// Reads them.
    ///
    /// # Errors
    /// A file that has no such array, or several; a horizon longer than its chunks; datasets that cannot be read, or not
    /// by the preset.
    pub fn read(&self, mouth: &Mouth) -> Result<Chunks> {
        ensure!(self.max_chunks != Some(0), "--max-chunks 0: one chunk is the least");
        let Some(path) = &self.chunks else {
            return self.datasets.read(self.horizon, self.max_chunks, mouth);
        };
        let named = || path.display().to_string();
        ensure!(path.exists(), "{}: there is nothing under this path", named());
        let stacked = match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => only(&Npy::open(path)?),
            Some("npz") => only(&Npz::open(path)?),
            Some("safetensors") => only(&Safetensors::open(path)?),
            _ => bail!("{}: chunks are read from a .npy, a .npz or a .safetensors", named()),
        };
        let all = self.split(stacked.with_context(named)?).with_context(named)?;
        Ok(Chunks { source: named(), all, units: None })
    }

    fn split(&self, stacked: Array) -> Result<Vec<Array>> {
        let &[count, steps, dim] = &stacked.shape[..] else {
            bail!("expected [n, steps, dimensions], found {stacked}")
        };
        let horizon = self.horizon.unwrap_or(steps);
        ensure!(horizon <= steps && horizon > 0, "expected a horizon of 1 to {steps} steps, found {horizon}");
        ensure!(dim > 0, "expected [n, steps, dimensions], found {stacked}");
        let count = count.min(self.max_chunks.unwrap_or(count));
        let cut = |i: usize| i * steps * dim..(i * steps + horizon) * dim;
        let shape = [horizon, dim];
        Ok(match &stacked.values {
            Values::F32(values) => (0..count).map(|i| Array::f32(shape, values[cut(i)].to_vec())).collect(),
            other => {
                let values = other.to_f64();
                (0..count).map(|i| Array::f64(shape, values[cut(i)].to_vec())).collect()
            }
        })
    }
}

/// The one array of three axes.
fn only(source: &dyn Source) -> Result<Array> {
    let fitting: Vec<usize> =
        (0..source.arrays().len()).filter(|i| source.arrays().get(*i).is_some_and(|a| a.shape.len() == 3)).collect();
    let &[index] = &fitting[..] else {
        let all: Vec<String> = source.arrays().iter().map(|a| format!("{} {:?}", a.name, a.shape)).collect();
        bail!("expected one array [n, steps, dimensions], found {} of: {}", fitting.len(), all.join(", "));
    };
    let info = source.arrays().get(index).context("no such array")?;
    let size = info.dtype.size() as u64;
    let bytes = info.shape.iter().try_fold(size, |n, d| n.checked_mul(*d)).unwrap_or(u64::MAX);
    ensure!(bytes <= MAX_BYTES, "{}: {bytes} bytes, at most {MAX_BYTES} are read; see --max-chunks", info.name);
    let shape: Vec<usize> = info.shape.iter().map(|n| *n as usize).collect();
    let dtype = info.dtype;
    let data = read_array(source, index)?;
    match dtype {
        Dtype::F32 => Ok(Array::f32(shape, data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())),
        Dtype::F64 => Ok(Array::f64(shape, data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())),
        other => bail!("expected float32 or float64, found {other}"),
    }
}

/// Whether a folder may be written.
///
/// # Errors
/// It is a file, or holds something and may not be replaced.
pub(super) fn free(folder: &Path, overwrite: bool) -> Result<()> {
    let taken = folder.is_dir() && std::fs::read_dir(folder)?.next().is_some();
    ensure!(!folder.is_file(), "{}: it is a file; give a folder", folder.display());
    ensure!(!taken || overwrite, "{}: it is there already; replace it with --overwrite", folder.display());
    Ok(())
}
