//! A frame of a dataset as openpi's loader gives it to training: the chunk of actions beside it, pictures as floats.
//!
//! Source: openpi 15a9616, training/data_loader.py (`create_torch_dataset`) and LeRobot, which it calls. Invariant: nothing
//! is replaced: what the preset reads and the dataset lacks is an error, before a frame is read.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::cli::training_data::fits;
use crate::config::train::Train;
use crate::data::lerobot::Dataset;
use crate::data::loader::frames::chunks;
use crate::policy::array::{Array, Values};
use crate::policy::image::CHANNELS;
use crate::policy::record::{Record, Value};

/// Which frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// The dataset.
    pub dataset: String,
    /// `episode_index`.
    pub episode: u64,
    /// Counted from the episode's first.
    pub frame: usize,
    /// Frames of the episode.
    pub of: usize,
}

/// A frame, and what there is to know about it.
pub(super) struct Seen {
    pub(super) which: Frame,
    pub(super) record: Record,
    pub(super) tasks: BTreeMap<i64, String>,
}

/// Reads it.
///
/// # Errors
/// A dataset that cannot be read or lacks what the preset reads; no such episode or frame.
pub(super) fn read(folder: &Path, episode: Option<u64>, frame: usize, preset: &Train) -> Result<Seen> {
    let data = preset.data.as_ref();
    let data = data.with_context(|| format!("{}: its data are made up, so it reads no dataset", preset.name))?;
    let dataset = Dataset::open(folder)?;
    let shown = || folder.display().to_string();
    fits(&dataset, preset, data).with_context(shown)?;
    let first = dataset.episodes().first().map_or(0, |first| first.index);
    let episode = dataset.episode(episode.unwrap_or(first)).with_context(|| format!("--episode: {}", shown()))?;
    ensure!(
        frame < episode.len(),
        "--frame {frame}: episode {} of {} has {} frames, 0 to {}",
        episode.index,
        shown(),
        episode.len(),
        episode.len().saturating_sub(1)
    );
    let deltas = chunks(&dataset, &preset.source.action_sequence_keys, preset.model.action_horizon as usize);
    let mut record = dataset.frame_with(episode.frames.start + frame, &deltas).with_context(shown)?;
    for key in dataset.cameras() {
        if let Some(Value::Array(picture)) = record.values.get_mut(key) {
            *picture = floats(picture);
        }
    }
    let which = Frame { dataset: shown(), episode: episode.index, frame, of: episode.len() };
    Ok(Seen { which, record, tasks: dataset.tasks().clone() })
}

/// Bytes `[h, w, C]` as LeRobot's floats `[C, h, w]` of [0, 1].
fn floats(picture: &Array) -> Array {
    let (Values::U8(bytes), &[h, w, CHANNELS]) = (&picture.values, &picture.shape[..]) else { return picture.clone() };
    let plane = |channel: usize| bytes.iter().skip(channel).step_by(CHANNELS).map(|level| f32::from(*level) / 255.0);
    Array::f32([CHANNELS, h, w], (0..CHANNELS).flat_map(plane).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::image::parse;

    #[test]
    fn a_policy_makes_the_same_bytes_of_the_floats_again() {
        let bytes: Vec<u8> = (0..=u8::MAX).flat_map(|level| [level, 255 - level, level / 2]).collect();
        let picture = Array::u8([16, 16, 3], bytes);
        let floats = floats(&picture);
        assert_eq!(floats.shape, [3, 16, 16]);
        assert_eq!(parse("a", &floats).unwrap(), picture);
    }
}
