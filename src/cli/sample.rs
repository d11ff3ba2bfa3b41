//! `pi0 sample`: an observation in, actions out, and how long each stage took.
//!
//! Invariant: all that can be refused is refused before a weight is read; the precision mode is always named; the same
//! arguments give the same actions.

pub(super) mod chunk;
mod plot;
mod report;
mod robot;
pub(super) mod runs;
mod scenes;
mod told;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::Answer;
use super::decoding;
use super::fetch::resolve;
use super::network::{self, Weights};
use super::observation::{self, Rows, Wanted};
use super::output::Mouth;
use super::policy;
use crate::device::{Precision, device};
use crate::model::Settings;
use crate::model::settings::Head;
use crate::weights::convert::Progress as _;
use crate::weights::open::{Choice, Opened};
use chunk::Kept;
use report::{Report, Source};
use told::Told;

const EXAMPLES: &str = "\
Examples:
  Are these weights alive? Nothing is needed but the checkpoint:
    pi0 sample --checkpoint params --random-observation

  An observation with pictures beside it, in the dtype of openpi's server:
    pi0 sample --checkpoint model.safetensors --dtype serve-bf16 --observation obs.json --output actions.npy

  What JAX recorded, with its own noise:
    pi0 sample --checkpoint params --observation golden/pi0_f32/io.safetensors --output actions.safetensors

  How long does a chunk take, once warm?
    pi0 sample --checkpoint params --random-observation --repeat 20 --json

  pi0-FAST, sampled instead of greedy:
    pi0 sample --checkpoint params --observation obs.npz --temperature 0.7 --seed 3

  What the policy makes of a frame of a LeRobot dataset, beside what was recorded:
    pi0 sample --config pi0_aloha --checkpoint-dir pi0_base --dataset data --episode 0 --frame 12 --plot out.svg

  Of a whole episode, every 25th frame, with the errors by joint in one page:
    pi0 sample --config pi05_libero --checkpoint-dir pi05_libero --dataset libero --episode 3 --stride 25 --html report.html

  Of what a robot saw: pictures beside a JSON file, or what openpi's PolicyRecorder kept:
    pi0 sample --config pi05_droid --checkpoint-dir pi05_droid --observation obs.json --prompt 'put the cup away'
    pi0 sample --config pi0_aloha --checkpoint-dir pi0_aloha --observation policy_records --json

Without --config an observation is model-ready. As JSON, with files named relative to it:
  {\"state\": [0.1, ...], \"tokenized_prompt\": [2, 7, ...], \"tokenized_prompt_mask\": [true, true, ...],
   \"image\": {\"base_0_rgb\": \"base.png\", \"left_wrist_0_rgb\": \"left.npy\", \"right_wrist_0_rgb\": \"right.png\"},
   \"image_mask\": {\"right_wrist_0_rgb\": false}}
npz and safetensors have the same keys, joined by `/`. pi0-FAST's cameras are base_0_rgb, base_1_rgb, wrist_0_rgb.
With --config it is what the robot's program sends, in the robot's units (`pi0 explain --config NAME` tells the keys):
  {\"state\": [0.1, ...], \"images\": {\"cam_high\": \"high.png\"}, \"prompt\": \"fold the towel\"}";

/// Sample actions.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 sample --help")]
pub struct Args {
    /// Checkpoint: an Orbax folder (params, a step, an experiment), safetensors, an npz, or gs:// in openpi's cache
    #[arg(long, visible_alias = "checkpoint-dir", alias = "checkpoint_dir", value_name = "PATH")]
    pub checkpoint: PathBuf,

    /// Naming scheme of the checkpoint; detected from its names
    #[arg(long, value_name = "SCHEME")]
    pub from: Option<String>,

    /// What the model sees: a .json, a .npz or a .safetensors. With --config what the robot sees: a .json, or what openpi's
    /// PolicyRecorder kept, a step_N.npy or a folder of them
    #[arg(long, value_name = "FILE", required_unless_present_any = ["random_observation", "dataset"])]
    pub observation: Option<PathBuf>,

    /// A robot's policy.
    #[command(flatten)]
    pub policy: policy::Args,

    /// Frames of a dataset.
    #[command(flatten)]
    pub scenes: scenes::Args,

    /// A camera's image (.png, .npy), in place of the observation's own
    #[arg(long, value_name = "CAMERA=FILE", value_parser = parse_image, conflicts_with = "config")]
    pub image: Vec<(String, PathBuf)>,

    /// An observation from chance
    #[arg(long, conflicts_with_all = ["observation", "config"])]
    pub random_observation: bool,

    /// What the actions begin as: a .npy, or the array `noise` of an npz or safetensors file. Left out, it is the
    /// observation's own, or else normal noise from the seed
    #[arg(long, value_name = "FILE")]
    pub noise: Option<PathBuf>,

    /// Where chance begins; 0 if left out. Told, it goes before the observation's own noise
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Euler steps of pi0 and pi0.5 (default: 10)
    #[arg(long, alias = "num_steps", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub num_steps: Option<u16>,

    /// Steps of an action chunk; left out, those of the noise, of the checkpoint, or of the published model
    #[arg(long, alias = "action_horizon", value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub action_horizon: Option<u64>,

    /// Tokens to which a prompt is padded, or which a random one has
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub prompt_length: Option<u64>,

    /// Rows: the observation again and again, each with its own noise
    #[arg(long, alias = "batch-size", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub batch: Option<u64>,

    /// How tokens are decoded.
    #[command(flatten)]
    pub decoding: decoding::Args,

    /// alpha / rank of the attention's LoRA, where it is not 1
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub lora_scale: f64,

    /// Where to compute: cpu, cuda:0
    #[arg(long, default_value = "cpu")]
    pub device: String,

    /// Precision mode: f32, train-bf16 (parameters as stored), serve-bf16 (all bf16)
    #[arg(long, default_value = "f32", value_name = "MODE")]
    pub dtype: Precision,

    /// Threads that read and compute; left out, as many as there are processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Sample so often, for the times; the actions are the same
    #[arg(long, alias = "runs", default_value = "1", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,

    /// File for the actions: .json, .npy or .safetensors
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// File for a picture of the actions, of a dataset's frames beside the recorded ones: .svg
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,

    /// File for a report of a dataset's frames: pictures, errors by joint, what was seen, in one .html
    #[arg(long, alias = "vis-output-path", value_name = "FILE", requires = "dataset")]
    pub html: Option<PathBuf>,

    /// Replace what stands under these files' names
    #[arg(long)]
    pub overwrite: bool,

    /// Fetch a gs:// path that is not in openpi's cache yet (needs the cargo feature `gcs`)
    #[arg(long)]
    pub download: bool,

    /// Report as JSON, with the actions and every run's times
    #[arg(long)]
    pub json: bool,
}

fn parse_image(text: &str) -> Result<(String, PathBuf)> {
    let (name, path) = text.split_once('=').context("name the camera: base_0_rgb=base.png")?;
    Ok((name.to_owned(), path.into()))
}

/// Runs it. The answer is no where an action is not finite.
///
/// # Errors
/// A checkpoint, observation, noise, device or file that cannot be used, with all that is wrong with it.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let kept = args.output.as_deref().map(|path| Kept::of(path, args.overwrite)).transpose()?;
    if let Some(path) = &args.plot {
        plot::may_write(path, args.overwrite)?;
    }
    let device = device(&args.device)?;
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().context("--threads: the threads could not be started")?;
    }
    let path = resolve(&args.checkpoint, args.download, mouth)?;
    let opened = Opened::open(&path, &Choice { from: args.from.clone(), ..Choice::default() })?;
    let (scheme, anatomy, settings) = network::understand(&opened, args.from.as_deref())?;
    let flow = settings.head != Head::Tokens;
    refuse_strangers(&args, flow, settings.family())?;
    if args.policy.config.is_some() {
        return robot::run(&args, kept, &robot::Network { opened, scheme, anatomy, settings, device }, mouth);
    }
    let seen = see(&args, &opened, &settings)?;
    let noise = flow.then(|| begin(&args, &opened, &settings, &seen)).transpose()?;

    let (pi, load_ms) = network::read(&weights(&args), &opened, &device, mouth)?;

    let rows = match &noise {
        Some(noise) => runs::repeated(&seen.rows, noise.value.rows),
        None => runs::repeated(&seen.rows, args.batch.map_or(seen.rows.rows, |n| n as usize)),
    };
    mouth.phase("sampling", 0);
    let sampled = match &noise {
        Some(noise) => {
            let num_steps = args.num_steps.map_or(10, usize::from);
            runs::flow(&pi, &rows, &noise.value, num_steps, args.repeat)?
        }
        None => runs::tokens(&pi, &rows, &args.decoding.with(args.seed.unwrap_or(0), None), args.repeat)?,
    };
    let mut report = Report::new(&pi, args.dtype, &args.device, &rows, load_ms, sampled);
    report.source = Source::of(&opened, scheme);
    report.told(&seen.from, seen.prompt_length.by, noise.map(|noise| noise.by));
    write(&args, kept, &mut report, mouth)
}

/// How weights are read.
fn weights(args: &Args) -> Weights {
    let Args { from, dtype, lora_scale, threads, .. } = args;
    Weights { from: from.clone(), precision: *dtype, lora_scale: *lora_scale, threads: threads.map(usize::from) }
}

fn write(args: &Args, kept: Option<Kept>, report: &mut Report, mouth: &Mouth) -> Result<Answer> {
    if let (Some(kept), Some(path)) = (kept, &args.output) {
        remap::write_whole(path, &kept.bytes(&report.chunk)?)?;
        report.written.push(path.display().to_string());
    }
    if let Some(path) = &args.plot {
        remap::write_whole(path, plot::svg(&report.chunk)?.as_bytes())?;
        report.written.push(path.display().to_string());
    }
    mouth.say(&*report, || report.to_string())?;
    Ok(if report.finite() { Answer::Yes } else { Answer::No })
}

/// Flags of the other kind of model.
fn refuse_strangers(args: &Args, flow: bool, family: &str) -> Result<()> {
    let tokens = args.decoding.told();
    let flows = [
        ("--num-steps", args.num_steps.is_some()),
        ("--noise", args.noise.is_some()),
        ("--action-horizon", args.action_horizon.is_some()),
        ("--plot", args.plot.is_some() && args.policy.config.is_none()),
    ];
    let (strange, of): (&[(&str, bool)], _) = if flow { (&tokens, "pi0-FAST") } else { (&flows, "pi0 and pi0.5") };
    let told: Vec<&str> = strange.iter().filter(|(_, told)| *told).map(|(name, _)| *name).collect();
    ensure!(told.is_empty(), "{}: of {of} alone, and these tensors are a {family}; leave it out", told.join(", "));
    Ok(())
}

/// What is seen, where it came from, and how long its prompt is.
struct Seen {
    rows: Rows,
    from: String,
    prompt_length: Told,
}

fn see(args: &Args, opened: &Opened, settings: &Settings) -> Result<Seen> {
    let flag = args.prompt_length.map(|n| n as usize);
    let wanted = Wanted::by(settings, flag);
    let (rows, from, by) = match &args.observation {
        Some(path) => {
            let rows = observation::read(path, &args.image, &wanted)?;
            let by = if flag.is_some() { "--prompt-length" } else { "the observation" };
            (rows, path.display().to_string(), by.to_owned())
        }
        None => {
            let seed = args.seed.unwrap_or(0);
            let length = told::prompt_length(flag, opened, settings.family())?;
            let rows = observation::random(seed, length.value, &args.image, &wanted)?;
            (rows, format!("random, seed {seed}"), length.by)
        }
    };
    let (found, batch) = (rows.rows, args.batch.map_or(rows.rows, |n| n as usize));
    ensure!(
        found == 1 || found == batch,
        "--batch {batch}: the observation has {found} rows already; only one is repeated"
    );
    let prompt_length = Told { value: rows.prompt_length, by };
    Ok(Seen { rows, from, prompt_length })
}

/// A noise, and where it came from.
struct Begun {
    value: observation::Noise,
    by: String,
}

fn begin(args: &Args, opened: &Opened, settings: &Settings, seen: &Seen) -> Result<Begun> {
    let horizon = args.action_horizon.map(|n| n as usize);
    let dim = settings.action_dim().context("a flow model has an action dim")?;
    let wanted = Wanted::by(settings, None);
    let own = || seen.rows.noise.clone().filter(|_| args.seed.is_none());
    let found = match (&args.noise, own()) {
        (Some(path), _) => Some((observation::noise(path, &wanted)?, path.display().to_string())),
        (None, Some(own)) => Some((own, format!("{} (its own noise)", seen.from))),
        (None, None) => None,
    };
    let Some((value, by)) = found else {
        let rows = args.batch.map_or(seen.rows.rows, |n| n as usize);
        let seed = args.seed.unwrap_or(0);
        let horizon = told::action_horizon(horizon, opened, settings.family())?;
        let by = format!("seed {seed}, horizon {} from {}", horizon.value, horizon.by);
        return Ok(Begun { value: observation::random_noise(seed, rows, horizon.value, dim), by });
    };
    if let Some(told) = horizon.filter(|told| *told != value.horizon) {
        bail!("--action-horizon {told}: the noise has {} steps; leave it out", value.horizon);
    }
    let rows = args.batch.map_or(if seen.rows.rows == 1 { value.rows } else { seen.rows.rows }, |n| n as usize);
    ensure!(
        value.rows == rows,
        "{by}: noise of {} rows, expected {rows}: one for each row of the batch. --seed draws it instead",
        value.rows
    );
    Ok(Begun { value, by })
}
