//! What a robot saw: frames of a dataset, a JSON document, or what openpi's PolicyRecorder kept; each a record under the
//! robot's own keys.
//!
//! Invariant: a dataset's frame becomes what the robot's program would have sent: pictures, state and words, no action.

use std::path::PathBuf;

use anyhow::{Context, Result};

pub(super) use crate::cli::frames::Episode;
use crate::cli::frames::{Which, kept};
use crate::cli::policy::Policy;
use crate::policy::record::Record;

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

impl Scenes {
    /// Finds them. Reads no picture of a dataset yet.
    pub(super) fn find(args: &super::Args, policy: &Policy) -> Result<Self> {
        if let Some(folder) = &args.scenes.dataset {
            let Args { episode, frame, stride, .. } = args.scenes;
            let which = Which { episode, frame, stride };
            return Ok(Scenes::Episode(Box::new(Episode::open(folder, which, &policy.preset.name, &policy.data)?)));
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
