//! What is sent: observations from chance, in the shapes of openpi's simple client, or such as were kept.
//!
//! Invariant: request `n` sends the same bytes in every run, whichever connection it goes through.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::chance::Stream;
use crate::cli::frames::{Episode, Which, kept};
use crate::config::train;
use crate::policy::array::Array;
use crate::policy::record::{Record, nearest};
use crate::serve::request::observation;
use crate::serve::tree::Tree;

/// Side of a random picture.
const SIDE: usize = 224;
const CHANNELS: usize = 3;
/// What a robot is told by chance: openpi's words.
const PROMPT: &str = "do something";

/// What is sent.
#[derive(Debug, clap::Args)]
#[group(id = "scene")]
#[command(next_help_heading = "Observations")]
pub struct Args {
    /// Whose observations, from chance: ALOHA, ALOHA_SIM, DROID or LIBERO (default: ALOHA_SIM)
    #[arg(long, value_name = "ROBOT", value_parser = Env::parse, conflicts_with_all = ["observation", "dataset"])]
    pub env: Option<Env>,

    /// What a robot sees: a .json, or what openpi's PolicyRecorder kept, a step_N.npy or a folder of them, sent in turn
    #[arg(long, value_name = "FILE", conflicts_with = "dataset")]
    pub observation: Option<PathBuf>,

    /// Frames of this LeRobot dataset (v2.0, v2.1, v3.0), sent in turn
    #[arg(long, value_name = "DIR", requires = "config")]
    pub dataset: Option<PathBuf>,

    /// The preset that says which of the dataset's keys the robot calls what
    #[arg(long, value_name = "NAME|FILE", requires = "dataset")]
    pub config: Option<String>,

    /// Which episode of it (default: its first)
    #[arg(long, value_name = "N", requires = "dataset")]
    pub episode: Option<u64>,

    /// Which frame of the episode, alone (default: all of them)
    #[arg(long, value_name = "N", requires = "dataset")]
    pub frame: Option<usize>,

    /// What the robot is told, in place of the observation's own prompt
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
}

/// A robot of openpi's simple client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Env {
    /// Two arms, on a table.
    Aloha,
    /// The same in a simulation.
    AlohaSim,
    /// One arm, three cameras.
    Droid,
    /// One arm in a simulation.
    Libero,
}

const ENVS: [(&str, Env); 4] =
    [("ALOHA", Env::Aloha), ("ALOHA_SIM", Env::AlohaSim), ("DROID", Env::Droid), ("LIBERO", Env::Libero)];

impl Env {
    fn parse(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_uppercase().replace('-', "_");
        let known = ENVS.iter().find(|(known, _)| *known == name).map(|(_, env)| *env);
        known.ok_or_else(|| format!("no such robot; {}", nearest(&name, ENVS.map(|(name, _)| name))))
    }

    fn name(self) -> &'static str {
        ENVS.iter().find(|(_, env)| *env == self).map_or("", |(name, _)| name)
    }

    /// The observation of a request.
    fn random(self, request: u64) -> Tree {
        // As many rows as there are requests; the number is far below usize's.
        let mut chance = Stream::new(0, "observation", usize::try_from(request).unwrap_or(usize::MAX - 1));
        let mut picture = |shape: [usize; 3]| {
            let count = shape.iter().product::<usize>();
            let mut bytes = Vec::with_capacity(count + 8);
            while bytes.len() < count {
                bytes.extend_from_slice(&chance.bits().to_le_bytes());
            }
            bytes.truncate(count);
            Tree::Array(Array::u8(shape, bytes))
        };
        let (chw, hwc) = ([CHANNELS, SIDE, SIDE], [SIDE, SIDE, CHANNELS]);
        let pictures: Vec<(&str, Tree)> = match self {
            Env::Aloha | Env::AlohaSim => {
                ["cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"].map(|camera| (camera, picture(chw))).into()
            }
            Env::Droid => ["observation/exterior_image_1_left", "observation/wrist_image_left"]
                .map(|camera| (camera, picture(hwc)))
                .into(),
            Env::Libero => ["observation/image", "observation/wrist_image"].map(|camera| (camera, picture(hwc))).into(),
        };
        let mut units = |count: usize| Tree::Array(Array::f64([count], (0..count).map(|_| chance.unit()).collect()));
        let mut members: Vec<(&str, Tree)> = match self {
            Env::Aloha | Env::AlohaSim => {
                vec![("state", Tree::Array(Array::f64([14], vec![1.0; 14]))), ("images", map(pictures))]
            }
            Env::Droid => {
                [pictures, vec![("observation/joint_position", units(7)), ("observation/gripper_position", units(1))]]
                    .concat()
            }
            Env::Libero => [vec![("observation/state", units(8))], pictures].concat(),
        };
        members.push(("prompt", Tree::Text(PROMPT.to_owned())));
        map(members)
    }
}

fn map(members: Vec<(&str, Tree)>) -> Tree {
    Tree::Map(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// What is sent.
pub(super) struct Scene {
    source: Source,
    prompt: Option<String>,
}

enum Source {
    Random(Env),
    /// With their file or folder.
    Kept(String, Vec<Record>),
    Episode(Box<Episode>),
}

impl Scene {
    /// Finds it. Reads no picture of a dataset yet.
    pub(super) fn find(args: &Args) -> Result<Self> {
        let source = match (&args.dataset, &args.observation) {
            (Some(folder), _) => {
                let name = args.config.as_deref().context("--config: which preset reads the dataset?")?;
                let preset = train::find(name)?;
                let Some(data) = &preset.data else {
                    bail!("{}: its data are made up, so it reads no dataset", preset.name);
                };
                let stride = if args.frame.is_some() { None } else { Some(1) };
                let which = Which { episode: args.episode, frame: args.frame, stride };
                Source::Episode(Box::new(Episode::open(folder, which, &preset.name, data)?))
            }
            (None, Some(path)) => {
                let records = kept(path)?.into_iter().map(|(_, record)| record).collect();
                Source::Kept(path.display().to_string(), records)
            }
            (None, None) => Source::Random(args.env.unwrap_or(Env::AlohaSim)),
        };
        Ok(Scene { source, prompt: args.prompt.clone() })
    }

    /// What a user may not expect.
    pub(super) fn notices(&self) -> &[String] {
        match &self.source {
            Source::Episode(episode) => &episode.notices,
            _ => &[],
        }
    }

    /// What it is, for people.
    pub(super) fn told(&self) -> String {
        match &self.source {
            Source::Random(env) => format!("random, {}", env.name()),
            Source::Kept(path, records) if records.len() == 1 => path.clone(),
            Source::Kept(path, records) => format!("{path}, {} observations", records.len()),
            Source::Episode(episode) => episode.told(),
        }
    }

    /// The observation of a request.
    ///
    /// # Errors
    /// A dataset's frame that cannot be read.
    pub(super) fn message(&self, request: u64) -> Result<Tree> {
        let turn = |of: usize| usize::try_from(request % of.max(1) as u64).unwrap_or_default();
        let mut message = match &self.source {
            Source::Random(env) => env.random(request),
            Source::Kept(_, records) => observation(records.get(turn(records.len())).context("no observation")?),
            Source::Episode(episode) => {
                let frame = *episode.frames.get(turn(episode.frames.len())).context("the episode has no frames")?;
                observation(&episode.record(frame)?.1)
            }
        };
        if let (Some(prompt), Tree::Map(members)) = (&self.prompt, &mut message) {
            members.retain(|(key, _)| key != "prompt");
            members.push(("prompt".to_owned(), Tree::Text(prompt.clone())));
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn robots_are_named_in_openpis_spelling_and_in_the_command_lines() {
        for name in ["ALOHA_SIM", "aloha-sim", "Aloha_Sim"] {
            assert_eq!(Env::parse(name), Ok(Env::AlohaSim), "{name}");
        }
        assert_eq!(Env::parse("lbero"), Err("no such robot; the nearest is LIBERO".to_owned()));
    }

    #[test]
    fn a_request_sends_the_same_in_every_run_and_another_than_the_next() {
        for (_, env) in ENVS {
            assert_eq!(env.random(3), env.random(3));
            assert_ne!(env.random(3), env.random(4));
        }
    }

    #[test]
    fn random_observations_have_the_keys_and_shapes_of_openpis_client() {
        // Recorded from openpi's own functions, with smaller pictures.
        for (env, file) in [(Env::AlohaSim, "aloha.bin"), (Env::Droid, "droid.bin"), (Env::Libero, "libero.bin")] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/protocol").join(file);
            let limits = crate::serve::wire::Limits::default();
            let recorded = crate::serve::wire::decode(&std::fs::read(path).unwrap(), &limits).unwrap();
            fn shapes(tree: &Tree, key: &str, all: &mut Vec<String>) {
                match tree {
                    Tree::Map(members) => members.iter().for_each(|(name, value)| shapes(value, name, all)),
                    other => all.push(format!("{key}: {other}").replace("6, 8", "224, 224")),
                }
            }
            let (mut found, mut expected) = (vec![], vec![]);
            shapes(&env.random(0), "", &mut found);
            shapes(&recorded, "", &mut expected);
            let prompts = |all: &mut Vec<String>| all.retain(|line| !line.starts_with("prompt"));
            prompts(&mut found);
            prompts(&mut expected);
            assert_eq!(found, expected);
        }
    }
}
