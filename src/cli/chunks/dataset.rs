//! Action chunks of datasets, as a preset normalises them: what a model that speaks in FAST's tokens is taught.
//!
//! Source: openpi 15a9616, training/data_loader.py. Invariant: the steps are the policy's own, and a chunk that reaches
//! beyond its episode repeats the last action, as the loader has it. Only tables are read.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;

use super::{Chunks, MAX_BYTES, Units};
use crate::cli::output::Mouth;
use crate::cli::statistics::{self, Told};
use crate::cli::{fetch, motion};
use crate::config::train::{self, Train};
use crate::policy::array::Array;
use crate::policy::chain::{Data, Statistics};
use crate::policy::delta::DeltaActions;
use crate::policy::norm_stats::NormStats;
use crate::policy::normalize::Normalize;
use crate::policy::record::Record;
use crate::policy::statistics::{Column, Motion, exact, stats};
use crate::policy::step::Step;
use crate::weights::convert::Progress as _;

/// Which datasets, and what is done to them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A LeRobot dataset, in place of --chunks; several are taken as one
    #[arg(long, value_name = "DIR", num_args = 1.., requires = "config")]
    pub dataset: Vec<PathBuf>,

    /// Preset under openpi's name, or a file of your own (.toml): robot, delta mask, normalisation, horizon
    #[arg(long, visible_alias = "config-name", value_name = "NAME|FILE", requires = "dataset")]
    pub config: Option<String>,

    /// Norm stats: a norm_stats.json, or a folder of assets; computed from the datasets if left out
    #[arg(long, value_name = "PATH", requires = "dataset")]
    pub norm_stats: Option<PathBuf>,

    /// Checkpoint whose assets have the norm stats: a step's folder
    #[arg(long, alias = "checkpoint_dir", value_name = "PATH", requires = "dataset", conflicts_with = "norm_stats")]
    pub checkpoint_dir: Option<PathBuf>,

    /// Whose statistics of the assets; the preset's asset id if left out
    #[arg(long, value_name = "ID", requires = "dataset")]
    pub asset_id: Option<String>,
}

impl Args {
    /// Makes the chunks: of every frame, or of so many at even distances.
    ///
    /// # Errors
    /// A preset, dataset or statistics that cannot be used; a value that is no number; more than fits into memory.
    pub(super) fn read(&self, horizon: Option<usize>, most: Option<usize>, mouth: &Mouth) -> Result<Chunks> {
        let config = self.config.as_deref().context("--config: by which preset are the actions normalised?")?;
        let mut preset = train::find(config)?;
        if let Some(id) = &self.asset_id {
            preset.source.asset_id = Some(id.clone());
        }
        let horizon = horizon.unwrap_or(preset.model.action_horizon as usize);
        ensure!(horizon > 0, "--horizon 0: a chunk has one step at least");
        let motion = motion::gather(&self.dataset, &preset, horizon, mouth)?;
        let frames = motion.frames();
        ensure!(frames > 0, "the datasets have no frames");
        motion.finite()?;
        let count = most.unwrap_or(frames).min(frames);
        let bytes = (count * horizon).saturating_mul(motion.actions.len() * size_of::<f64>());
        ensure!(
            bytes as u64 <= MAX_BYTES,
            "{count} chunks: {bytes} bytes, at most {MAX_BYTES} are held; --max-chunks takes some, at even distances"
        );
        let data = preset.data.as_ref().with_context(|| format!("{}: its data are made up", preset.name))?;
        let (stats, from) = self.statistics(&preset, &motion, mouth)?;
        let normalize = Normalize::new(&stats, data.use_quantile_norm).map_err(|fault| anyhow!("{from}: {fault}"))?;
        mouth.phase("normalising", 0);
        let all = chunks(&motion, data, &normalize, count)?;
        let of = normalize.unit("actions").with_context(|| format!("{from}: it has no statistics of actions"))?;
        let convention = if data.adapt_to_pi { "pi's convention of joints and grippers" } else { "the robot's units" };
        let folders: Vec<String> = self.dataset.iter().map(|folder| folder.display().to_string()).collect();
        let some =
            if count < frames { format!(", {count} of {frames} frames at even distances") } else { String::new() };
        let source = format!("{} by {}{some}", folders.join(", "), preset.name);
        Ok(Chunks { source, all, units: Some(Units { norm_stats: from, convention, of }) })
    }

    /// The statistics, and where they are from.
    fn statistics(&self, preset: &Train, motion: &Motion, mouth: &Mouth) -> Result<(NormStats, String)> {
        if self.norm_stats.is_none() && self.checkpoint_dir.is_none() {
            ensure!(motion.frames() > 1, "one frame: statistics need two at least; --norm-stats names others");
            mouth.phase("statistics", 0);
            let summaries = exact::exact(motion)?;
            let keys = [("state", &summaries.state), ("actions", &summaries.actions)];
            let keys = keys.into_iter().map(|(key, all)| (key.to_owned(), stats(all))).collect();
            let stats = NormStats { asset_id: String::new(), text: vec![], keys };
            return Ok((stats, "computed from these datasets (exact)".to_owned()));
        }
        let checkpoint = self.checkpoint_dir.as_deref().map(|path| fetch::resolve(path, false, mouth)).transpose()?;
        let told = Told { norm_stats: self.norm_stats.as_deref(), checkpoint_dir: checkpoint.as_deref() };
        let found = statistics::find(preset, told)?;
        match (found.statistics, found.from) {
            (Statistics::Given(stats), Some(from)) => Ok((stats, from.display().to_string())),
            (Statistics::Missing { asset_id, looked }, _) => bail!(
                "norm stats of {asset_id}: there are none; looked in {}. --asset-id names others; without --norm-stats and \
                 --checkpoint-dir they are computed from the datasets",
                looked.join(", ")
            ),
            _ => bail!("norm stats: there are none"),
        }
    }
}

/// Chunks that begin at so many frames, each through the policy's steps.
fn chunks(motion: &Motion, data: &Data, normalize: &Normalize, count: usize) -> Result<Vec<Array>> {
    let delta = data.delta.clone().map(|delta| DeltaActions { mask: delta.mask, ways: delta.ways });
    let frames = motion.frames();
    let chunk = |i: usize| -> Result<Array> {
        // Frames are counted through all episodes, without gaps.
        let frame = (i as u128 * frames as u128 / count as u128) as usize;
        let episode = motion.episodes.partition_point(|episode| episode.end <= frame);
        let last = motion.episodes[episode].end - 1;
        let mut record = Record::default();
        record.put_array("state", rows(&motion.state, &[frame], vec![motion.state.len()]));
        let at: Vec<usize> = (0..motion.horizon).map(|step| (frame + step).min(last)).collect();
        record.put_array("actions", rows(&motion.actions, &at, vec![motion.horizon, motion.actions.len()]));
        let steps = delta.iter().map(|step| step as &dyn Step).chain([normalize as &dyn Step]);
        for step in steps {
            step.apply(&mut record).map_err(|fault| anyhow!("frame {frame}: step {}: {fault}", step.name()))?;
        }
        Ok(record.array("actions")?.clone())
    };
    (0..count).into_par_iter().map(chunk).collect()
}

/// These rows of the columns, in their dtype.
fn rows(columns: &[Column], at: &[usize], shape: Vec<usize>) -> Array {
    let single: Option<Vec<&Vec<f32>>> = columns
        .iter()
        .map(|column| match column {
            Column::F32(values) => Some(values),
            Column::F64(_) => None,
        })
        .collect();
    if let Some(columns) = single {
        return Array::f32(shape, at.iter().flat_map(|at| columns.iter().map(|column| column[*at])).collect());
    }
    let value = |column: &Column, at: usize| match column {
        Column::F32(values) => f64::from(values[at]),
        Column::F64(values) => values[at],
    };
    Array::f64(shape, at.iter().flat_map(|at| columns.iter().map(|column| value(column, *at))).collect())
}
