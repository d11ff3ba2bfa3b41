//! What a robot saw: frames of a dataset, a JSON document, or what openpi's PolicyRecorder kept; each a record under the
//! robot's own keys.
//!
//! Invariant: a dataset's frame becomes what the robot's program would have sent: pictures, state and words, no action.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cli::policy::Policy;
use crate::cli::record;
use crate::data::lerobot::Dataset;
use crate::data::recording;
use crate::policy::record::Record;
use crate::policy::repack::Repack;
use crate::policy::step::Step;
use crate::policy::task::PromptFromTask;

/// Frames of a dataset.
#[derive(Debug, clap::Args)]
#[group(id = "scenes")]
#[command(next_help_heading = "Frames of a dataset")]
pub struct Args {
    /// A LeRobot dataset (v2.0, v2.1, v3.0)
    #[arg(long, value_name = "DIR", requires = "config", conflicts_with_all = ["observation", "random_observation"])]
    pub dataset: Option<PathBuf>,

    /// Which episode (default: 0)
    #[arg(long, value_name = "N", requires = "dataset")]
    pub episode: Option<u64>,

    /// Which frame of it (default: 0, or all that --stride leaves)
    #[arg(long, value_name = "N", requires = "dataset", conflicts_with = "stride")]
    pub frame: Option<usize>,

    /// The whole episode, every so many frames
    #[arg(long, value_name = "N", requires = "dataset", value_parser = clap::value_parser!(u32).range(1..))]
    pub stride: Option<u32>,
}

/// What is seen, one after another.
pub(super) enum Scenes {
    /// Frames of one episode.
    Episode(Box<Episode>),
    /// Records that are there already, each with a name.
    Kept(Vec<(String, Record)>),
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

impl Scenes {
    /// Finds them. Reads no picture of a dataset yet.
    pub(super) fn find(args: &super::Args, policy: &Policy) -> Result<Self> {
        if let Some(folder) = &args.scenes.dataset {
            return Ok(Scenes::Episode(Box::new(Episode::open(folder, args, policy)?)));
        }
        let path = args.observation.as_deref().context("--observation or --dataset: what does the robot see?")?;
        let said = args.policy.prompt.as_deref();
        Ok(Scenes::Kept(kept(path)?.into_iter().map(|(name, record)| (name, told(record, said))).collect()))
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        match self {
            Scenes::Episode(episode) => episode.frames.len(),
            Scenes::Kept(all) => all.len(),
        }
    }

    /// One of them, and its name.
    pub(super) fn get(&self, i: usize) -> Result<(String, Record)> {
        match self {
            Scenes::Episode(episode) => episode.record(episode.frames[i]),
            Scenes::Kept(all) => Ok(all[i].clone()),
        }
    }
}

/// `prompt` as the user said it.
fn told(mut record: Record, said: Option<&str>) -> Record {
    if let Some(prompt) = said {
        record.put_text("prompt", prompt);
    }
    record
}

fn kept(path: &Path) -> Result<Vec<(String, Record)>> {
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
            "{}: with --config an observation is a .json, a step_N.npy of openpi's PolicyRecorder, or a folder of those",
            path.display()
        ),
    }
}

impl Episode {
    fn open(folder: &Path, args: &super::Args, policy: &Policy) -> Result<Self> {
        // Prepared frames stay aside: they may be of another size than this model's, and would then be resized twice.
        let dataset = Dataset::open(folder)?;
        let index = args.scenes.episode.unwrap_or(dataset.episodes().first().map_or(0, |first| first.index));
        let episode = dataset.episode(index)?;
        let (start, len) = (episode.frames.start, episode.frames.len());
        let frames: Vec<usize> = match (args.scenes.stride, args.scenes.frame) {
            (Some(stride), _) => (0..len).step_by(stride as usize).collect(),
            (None, frame) => vec![frame.unwrap_or(0)],
        };
        if let Some(frame) = frames.iter().find(|frame| **frame >= len) {
            bail!("--frame {frame}: episode {index} of {} has frames 0 to {}", folder.display(), len - 1);
        }
        let mut notices = vec![];
        let repack = repack(&dataset, policy, &mut notices)?;
        let data = &policy.data;
        let task = data.prompt_from_task.then(|| PromptFromTask { tasks: dataset.tasks().clone() });
        let handed = data.repack.as_ref().is_none_or(|keys| keys.iter().any(|(new, _)| new == "prompt"));
        let (says_task, silent) = (task.is_some() && handed, data.default_prompt.is_none());
        let folder = folder.to_owned();
        Ok(Episode { folder, index, start, len, frames, repack, task, says_task, silent, notices, dataset })
    }

    /// What the robot's program would have sent at a frame.
    fn record(&self, frame: usize) -> Result<(String, Record)> {
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
    pub(super) fn recorded(&self, policy: &Policy) -> Result<(Vec<Vec<f64>>, Vec<String>)> {
        let robot = &policy.data.robot.actions;
        let keys = policy.data.repack.iter().flatten();
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
fn repack(dataset: &Dataset, policy: &Policy, notices: &mut Vec<String>) -> Result<Repack> {
    let data = &policy.data;
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
            policy.preset.name,
            missing.join(", "),
            dataset.info().features.keys().cloned().collect::<Vec<_>>().join(", ")
        );
    }
    notices.push(format!(
        "{} reads {}, which the dataset lacks; taken by LeRobot's own names: {}",
        policy.preset.name,
        missing.join(", "),
        usual.iter().map(|(new, old)| format!("{new} = {old}")).collect::<Vec<_>>().join(", ")
    ));
    Ok(Repack { keys: usual })
}
