//! States and actions of whole datasets, through the robot's own steps, as columns: what statistics and FAST codecs are
//! made of.
//!
//! Invariant: the steps are those of the policy; only pictures and prompts stay away, and no video is touched.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::*;

use super::output::Mouth;
use crate::config::train::Train;
use crate::data::lerobot::{Columns as Rows, Dataset};
use crate::policy::array::{Array, Values};
use crate::policy::chain::Data;
use crate::policy::delta::Ways;
use crate::policy::record::{Record, nearest};
use crate::policy::robot::Part;
use crate::policy::statistics::{Columns, Motion};
use crate::weights::convert::Progress as _;

/// Frames that one thread takes through the steps at a time.
const BLOCK: usize = 1 << 13;

/// Reads the datasets, one after another.
///
/// # Errors
/// A preset whose data are made up; a dataset that cannot be read or lacks a key; datasets of several widths.
pub(super) fn gather(folders: &[PathBuf], preset: &Train, horizon: usize, mouth: &Mouth) -> Result<Motion> {
    let data = preset.data.as_ref().with_context(|| {
        format!("{}: its data are made up, so it reads no state and no actions of a dataset", preset.name)
    })?;
    let mut motion = Motion {
        state: vec![],
        actions: vec![],
        episodes: vec![],
        horizon,
        // Data that are relative already stay as they are on the way in.
        delta: data
            .delta
            .iter()
            .filter(|delta| delta.ways == Ways::Both)
            .flat_map(|delta| delta.mask.clone())
            .collect(),
        picked: None,
    };
    let (mut state, mut actions) = (vec![], vec![]);
    for folder in folders {
        let within = || folder.display().to_string();
        let dataset = Dataset::open(folder)?;
        let (more_state, more_actions) = read(&dataset, preset, data, mouth).with_context(within)?;
        state.extend(more_state);
        actions.extend(more_actions);
        let before = motion.frames();
        motion.episodes.extend(dataset.episodes().iter().map(|e| before + e.frames.start..before + e.frames.end));
    }
    for (columns, blocks) in [(&mut motion.state, state), (&mut motion.actions, actions)] {
        *columns = Columns::joined(&blocks).map_err(anyhow::Error::msg)?.columns;
    }
    Ok(motion)
}

/// The dataset's key for one of the robot's.
fn dataset_key<'a>(data: &'a Data, key: &'a str) -> &'a str {
    let renamed = data.repack.iter().flatten().find(|(new, _)| new == key);
    renamed.map_or(key, |(_, old)| old)
}

/// Refuses a dataset without the key that a preset reads `what` from.
///
/// # Errors
/// There is no such feature: the nearest, and how keys are renamed.
pub(super) fn demand(dataset: &Dataset, preset: &Train, key: &str, what: &str) -> Result<()> {
    let features = &dataset.info().features;
    ensure!(
        features.contains_key(key),
        "{key}: {} reads its {what} here, and the dataset has no such feature; {}. [data.repack] of a preset of your own \
         (--config my.toml, begun as a copy of configs/train/) says under which keys a dataset has what the robot reads",
        preset.name,
        nearest(key, features.keys().map(String::as_str))
    );
    Ok(())
}

fn read(dataset: &Dataset, preset: &Train, data: &Data, mouth: &Mouth) -> Result<(Vec<Columns>, Vec<Columns>)> {
    let robot = &data.robot;
    let parts: Vec<&Part> = robot.state.iter().chain([&robot.actions]).collect();
    let keys: Vec<&str> = parts.iter().map(|part| dataset_key(data, &part.key)).collect();
    for (part, key) in parts.iter().zip(&keys) {
        demand(dataset, preset, key, &part.key)?;
    }
    let frames = dataset.frames();
    mouth.count("reading frames", frames as u64);
    let rows: Vec<Rows> = dataset.columns(&keys, &|done| mouth.at(done))?;
    let step = robot.vectors(data.adapt_to_pi).map_err(|fault| anyhow!("step robot-vectors: {fault}"))?;
    mouth.phase("through the robot's steps", 0);
    let blocks: Vec<usize> = (0..frames).step_by(BLOCK).collect();
    let adapted: Vec<(Columns, Columns)> = blocks
        .into_par_iter()
        .map(|start| {
            let end = (start + BLOCK).min(frames);
            let mut record = Record::default();
            for (part, rows) in parts.iter().zip(&rows) {
                record.put_array(part.key.clone(), block(rows, start, end));
            }
            let record = step.columns(record).map_err(|fault| anyhow!("step robot-vectors: {fault}"))?;
            let turned = |key| Columns::of(record.array(key)?).map_err(anyhow::Error::msg);
            Ok((turned("state")?, turned("actions")?))
        })
        .collect::<Result<_>>()?;
    Ok(adapted.into_iter().unzip())
}

/// Rows `start..end`. A width of one loses its axis, as LeRobot has it.
fn block(rows: &Rows, start: usize, end: usize) -> Array {
    let width = rows.width;
    fn cut<T: Clone>(values: &[T], width: usize, start: usize, end: usize) -> Vec<T> {
        values[start * width..end * width].to_vec()
    }
    let values = match &rows.values {
        Values::U8(x) => Values::U8(cut(x, width, start, end)),
        Values::I32(x) => Values::I32(cut(x, width, start, end)),
        Values::I64(x) => Values::I64(cut(x, width, start, end)),
        Values::F32(x) => Values::F32(cut(x, width, start, end)),
        Values::F64(x) => Values::F64(cut(x, width, start, end)),
        Values::Bool(x) => Values::Bool(cut(x, width, start, end)),
    };
    Array::new([end - start, width], values)
}
