//! Frames of a LeRobot dataset as the robot's program would have sent them, and observations that were kept.
//!
//! Invariant: pictures, state and words, under the robot's own keys; no action.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::record;
use crate::data::lerobot::Dataset;
use crate::data::recording;
use crate::policy::chain::Data;
use crate::policy::record::Record;
use crate::policy::repack::Repack;
use crate::policy::step::Step;
use crate::policy::task::PromptFromTask;

/// Which of a dataset's frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Which {
    /// `episode_index`; the first if left out.
    pub(super) episode: Option<u64>,
    /// Counted from the episode's first; that one if left out.
    pub(super) frame: Option<usize>,
    /// The whole episode, every so many frames.
    pub(super) stride: Option<u32>,
}

/// Frames of one episode.
pub(super) struct Episode {
    dataset: Dataset,
    folder: PathBuf,
    /// `episode_index`.
    pub(super) index: u64,
    /// The first of the episode's frames in the dataset's order.
    start: usize,
    /// All of them.
    pub(super) len: usize,
    /// Those that are looked at, counted from the episode's first.
    pub(super) frames: Vec<usize>,
    repack: Repack,
    task: Option<PromptFromTask>,
    /// Does the preset hand the dataset's words on?
    says_task: bool,
    /// Has neither the preset nor the user any words? Then the task is what the robot was told.
    silent: bool,
    /// What a user may not expect.
    pub(super) notices: Vec<String>,
}

/// What is there already: a document, a recording, or a folder of recordings, each with a name.
pub(super) fn kept(path: &Path) -> Result<Vec<(String, Record)>> {
    ensure!(path.exists(), "{}: there is nothing under this path", path.display());
    let recorded =
        |path: &Path| -> Result<(String, Record)> { Ok((path.display().to_string(), recording::read(path)?.inputs)) };
    if path.is_dir() {
        let steps = recording::steps(path)?;
        ensure!(!steps.is_empty(), "{}: no step_N.npy, as openpi's PolicyRecorder writes them", path.display());
        return steps.iter().map(|(_, path)| recorded(path)).collect();
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") => Ok(vec![(path.display().to_string(), record::read(path)?)]),
        Some("npy") => Ok(vec![recorded(path)?]),
        _ => bail!(
            "{}: a robot's observation is a .json, a step_N.npy of openpi's PolicyRecorder, or a folder of those",
            path.display()
        ),
    }
}

impl Episode {
    pub(super) fn open(folder: &Path, which: Which, preset: &str, data: &Data) -> Result<Self> {
        // Prepared frames stay aside: they may be of another size than this model's, and would then be resized twice.
        let dataset = Dataset::open(folder)?;
        let index = which.episode.unwrap_or(dataset.episodes().first().map_or(0, |first| first.index));
        let episode = dataset.episode(index)?;
        let (start, len) = (episode.frames.start, episode.frames.len());
        let frames: Vec<usize> = match (which.stride, which.frame) {
            (Some(stride), _) => (0..len).step_by(stride as usize).collect(),
            (None, frame) => vec![frame.unwrap_or(0)],
        };
        if let Some(frame) = frames.iter().find(|frame| **frame >= len) {
            bail!("--frame {frame}: episode {index} of {} has frames 0 to {}", folder.display(), len - 1);
        }
        let mut notices = vec![];
        let repack = repack(&dataset, preset, data, &mut notices)?;
        let task = data.prompt_from_task.then(|| PromptFromTask { tasks: dataset.tasks().clone() });
        let handed = data.repack.as_ref().is_none_or(|keys| keys.iter().any(|(new, _)| new == "prompt"));
        let (says_task, silent) = (task.is_some() && handed, data.default_prompt.is_none());
        let folder = folder.to_owned();
        Ok(Episode { folder, index, start, len, frames, repack, task, says_task, silent, notices, dataset })
    }

    /// Which frames, for people.
    pub(super) fn told(&self) -> String {
        let frames = match &self.frames[..] {
            [one] => format!("frame {one}"),
            all => format!("{} frames", all.len()),
        };
        format!("{}, episode {}, {frames}", self.folder.display(), self.index)
    }

    /// What the robot's program would have sent at a frame.
    pub(super) fn record(&self, frame: usize) -> Result<(String, Record)> {
        let mut record = self.dataset.frame(self.start + frame)?;
        let task = record.text("task").map(str::to_owned).ok();
        let within = |step: &dyn Step| format!("step {}", step.name());
        if let Some(step) = &self.task {
            step.apply(&mut record).with_context(|| within(step))?;
        }
        let said = record.text("prompt").map(str::to_owned).ok();
        self.repack.apply(&mut record).with_context(|| within(&self.repack))?;
        let words = if self.says_task { said } else { self.silent.then_some(task).flatten() };
        if let Some(prompt) = words.filter(|_| !record.has("prompt")) {
            record.put_text("prompt", prompt);
        }
        Ok((format!("{}, episode {}, frame {frame}", self.folder.display(), self.index), record))
    }

    /// The recorded actions of all frames, in the robot's units, and the joints' names.
    pub(super) fn recorded(&self, data: &Data) -> Result<(Vec<Vec<f64>>, Vec<String>)> {
        let robot = &data.robot.actions;
        let keys = data.repack.iter().flatten();
        let key = keys.filter(|(new, _)| *new == robot.key).map(|(_, old)| old.as_str()).next().unwrap_or(&robot.key);
        let (array, _) = self.dataset.chunk(key, self.index, 0, self.len)?;
        let width = array.width().filter(|width| *width > 0).context("the actions have no dims")?;
        ensure!(width == robot.width, "{key}: {width} values, expected {}, what the robot has", robot.width);
        let names = &self.dataset.feature(key)?.names;
        let name = |d: usize| names.get(d).cloned().unwrap_or_else(|| format!("dim {d}"));
        let rows = array.values.to_f64().chunks(width).map(<[f64]>::to_vec).collect();
        Ok((rows, (0..width).map(name).collect()))
    }

    /// Frames per second.
    pub(super) fn fps(&self) -> f64 {
        self.dataset.info().fps
    }
}

/// The preset's names for the dataset's keys, without the actions. Where the dataset lacks one of them, LeRobot's own name
/// for what the robot calls so: `images/cam_high` is `observation.images.cam_high`.
fn repack(dataset: &Dataset, preset: &str, data: &Data, notices: &mut Vec<String>) -> Result<Repack> {
    let there = |key: &str| dataset.info().features.contains_key(key);
    let own = |key: &String| (key.clone(), key.clone());
    let slots = data.robot.layout(&data.layout)?;
    let wanted =
        || data.robot.state.iter().map(|part| &part.key).chain(slots.iter().filter_map(|slot| slot.camera.as_ref()));
    let mut keys: Vec<(String, String)> = match &data.repack {
        Some(keys) => keys.clone(),
        None => wanted().map(own).collect(),
    };
    keys.retain(|(new, _)| *new != data.robot.actions.key);
    if keys.iter().all(|(new, old)| new == "prompt" || there(old)) {
        // The words are put there afterwards, if the dataset does not have them under this key.
        keys.retain(|(new, old)| new != "prompt" || there(old));
        return Ok(Repack { keys });
    }
    keys.retain(|(new, _)| new != "prompt");
    let missing: Vec<&str> = keys.iter().map(|(_, old)| old.as_str()).filter(|old| !there(old)).collect();
    let usual = |key: &String| {
        (key.clone(), format!("observation.{}", key.trim_start_matches("observation/").replace('/', ".")))
    };
    let usual: Vec<(String, String)> = wanted().map(usual).filter(|(_, old)| there(old)).collect();
    let needed = data.robot.state.iter().map(|part| &part.key);
    let needed = needed.chain(slots.iter().filter(|slot| !slot.optional).filter_map(|slot| slot.camera.as_ref()));
    for key in needed {
        ensure!(
            usual.iter().any(|(new, _)| new == key),
            "{}: the preset {} reads {}, which the dataset lacks, and nothing stands for the robot's {key}; the dataset \
             has {}. Say in [data.repack] of a preset of your own what is what",
            dataset.dir().display(),
            preset,
            missing.join(", "),
            dataset.info().features.keys().cloned().collect::<Vec<_>>().join(", ")
        );
    }
    notices.push(format!(
        "{} reads {}, which the dataset lacks; taken by LeRobot's own names: {}",
        preset,
        missing.join(", "),
        usual.iter().map(|(new, old)| format!("{new} = {old}")).collect::<Vec<_>>().join(", ")
    ));
    Ok(Repack { keys: usual })
}
