//! `pi0 dataset`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::Answer;
use super::output::Mouth;
use crate::data::lerobot::doctor::{Finding, Severity};
use crate::data::lerobot::{Dataset, Kind};
use crate::weights::convert::Progress;

/// Tasks that are listed; the rest are counted.
const MAX_TASKS: usize = 20;

const EXAMPLES: &str = "\
Examples:
  What is in it, and are its files there?
    pi0 dataset ~/data/aloha_pen_uncap

  Every number, and both ends of every video (exit code 1 if there is a fault):
    pi0 dataset ~/data/aloha_pen_uncap --check

  For a script:
    pi0 dataset ~/data/aloha_pen_uncap --check --json";

/// Tell what a LeRobot dataset is, and what is wrong with it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 dataset --help")]
pub struct Args {
    /// Folder of a LeRobot dataset: v2.0, v2.1 or v3.0
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Look at every number and at both ends of every video
    #[arg(long)]
    pub check: bool,

    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// What a dataset is.
#[derive(Debug, Serialize)]
struct Description {
    path: String,
    version: String,
    robot: String,
    fps: f64,
    episodes: usize,
    frames: usize,
    /// Frames of the shortest and of the longest episode.
    episode_frames: [usize; 2],
    features: Vec<Line>,
    tasks: Vec<String>,
    checked: bool,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Line {
    key: String,
    /// `float32`, `video`, `image`, …
    dtype: String,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    codec: Option<String>,
    names: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// No dataset, or one that cannot be opened.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let dataset = Dataset::open(&args.dir)?;
    mouth.phase("looking", 0);
    let mut findings = dataset.look();
    if args.check {
        let close = dataset.look_closely(&|_| ());
        findings.extend(close.into_iter().filter(|finding| !findings.contains(finding)).collect::<Vec<_>>());
    }
    let lengths = || dataset.episodes().iter().map(|episode| episode.len());
    let line = |(key, feature): (&String, &crate::data::lerobot::Feature)| Line {
        key: key.clone(),
        dtype: match &feature.kind {
            Kind::Numbers(dtype) => dtype.clone(),
            Kind::Image => "image".to_owned(),
            Kind::Video { .. } => "video".to_owned(),
            Kind::Text => "string".to_owned(),
            Kind::Other(what) => format!("{what} (left alone)"),
        },
        shape: feature.shape.clone(),
        codec: match &feature.kind {
            Kind::Video { codec } if !codec.is_empty() => Some(codec.clone()),
            _ => None,
        },
        names: feature.names.clone(),
    };
    let description = Description {
        path: args.dir.display().to_string(),
        version: dataset.info().version.to_string(),
        robot: dataset.info().robot.clone(),
        fps: dataset.info().fps,
        episodes: dataset.episodes().len(),
        frames: dataset.frames(),
        episode_frames: [lengths().min().unwrap_or(0), lengths().max().unwrap_or(0)],
        features: dataset.info().features.iter().map(line).collect(),
        tasks: dataset.tasks().values().cloned().collect(),
        checked: args.check,
        findings,
    };
    mouth.say(&description, || text(&description))?;
    let faulty = description.findings.iter().any(|finding| finding.severity == Severity::Fault);
    Ok(if faulty { Answer::No } else { Answer::Yes })
}

fn text(d: &Description) -> String {
    let mut t = String::new();
    let robot = if d.robot.is_empty() { "no robot named" } else { &d.robot };
    let _ = writeln!(t, "{} · LeRobot {} · {robot}", d.path, d.version);
    let [shortest, longest] = d.episode_frames;
    let seconds = d.frames as f64 / d.fps;
    let _ = writeln!(
        t,
        "{} episodes of {shortest} to {longest} frames · {} frames at {} fps · {seconds:.1} s",
        d.episodes, d.frames, d.fps
    );
    let _ = writeln!(t);
    let widest = d.features.iter().map(|line| line.key.chars().count()).max().unwrap_or(0);
    for line in &d.features {
        let shape: Vec<String> = line.shape.iter().map(usize::to_string).collect();
        let codec = line.codec.as_ref().map(|codec| format!(" {codec}")).unwrap_or_default();
        let _ = writeln!(t, "{:<widest$}  {}[{}]{codec}", line.key, line.dtype, shape.join(", "));
    }
    let _ = writeln!(t);
    for task in d.tasks.iter().take(MAX_TASKS) {
        let _ = writeln!(t, "task: {task}");
    }
    if d.tasks.len() > MAX_TASKS {
        let _ = writeln!(t, "… and {} more tasks", d.tasks.len() - MAX_TASKS);
    }
    let _ = writeln!(t);
    for finding in &d.findings {
        let word = match finding.severity {
            Severity::Fault => "fault",
            Severity::Oddity => "odd",
        };
        let _ = writeln!(t, "{word:<6} {}", finding.what);
    }
    match (d.findings.is_empty(), d.checked) {
        (true, true) => t += "sound: every number, and both ends of every video\n",
        (true, false) => t += "its files are there and as long as they should be; --check looks inside\n",
        (false, false) => t += "--check looks inside\n",
        (false, true) => {}
    }
    t
}
