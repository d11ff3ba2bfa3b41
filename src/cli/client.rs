//! `pi0 client`: asks a policy server for actions, and tells how long they took.
//!
//! Source: openpi 15a9616, examples/simple_client/main.py. Invariants: what is measured is the request alone, from the
//! packing of the observation to the unpacked reply; the two requests with which each connection begins are not counted.
//! Memory grows with `--num-steps` by some sixty bytes a request, and with nothing else.
//!
//! - `scene`: what is sent
//! - `load`: who sends it, and when
//! - `timing`: what is measured
//! - `report`: what is said

mod load;
mod report;
mod scene;
mod timing;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Answer;
use super::array;
use super::key;
use super::output::Mouth;
use crate::serve::client::{Address, Client, Settings};
use crate::serve::request::Extensions;
use load::Load;
use report::Report;
use scene::Scene;
use timing::TimingFile;

const EXAMPLES: &str = "\
Examples:
  Is the server up, and how fast does it answer?
    pi0 client --host robot-pc --port 8000

  As openpi's simple client, with DROID's observations and a key:
    pi0 client --env DROID --api-key secret --num-steps 100 --timing-file timing.parquet

  What does the policy say to frames of a LeRobot dataset?
    pi0 client --dataset libero --config pi05_libero --episode 3 --show-action-chunk

  To what openpi's PolicyRecorder kept, with a chance that can be repeated:
    pi0 client --observation policy_records/step_0.npy --seed 7 --num-steps 1 --show-action-chunk

  Eight robots at 5 Hz each, ten thousand requests in all:
    pi0 client --clients 8 --rate 5 --num-steps 10000 --json

Works with openpi's Python server as well; --seed, --noise, --deadline-ms and --ask are understood by `pi0 serve` alone.
Exit code 1 if a request had no actions.";

/// Ask a policy server.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 client --help")]
pub struct Args {
    /// Where the server is: HOST, HOST:PORT or ws://HOST:PORT
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// Its port (default: 8000)
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// Sent as `Authorization: Api-Key KEY` (or PI0_API_KEY)
    #[arg(long, visible_alias = "api_key", value_name = "KEY")]
    pub api_key: Option<String>,

    /// Wait so many seconds for a server that is not up yet
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub wait: Option<Duration>,

    /// Seconds that a reply may take
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "300")]
    pub timeout: Duration,

    /// Requests in all
    #[arg(long, visible_alias = "num_steps", value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub num_steps: u64,

    /// Connections that share the requests, each with its own thread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub clients: u16,

    /// Requests per second of each connection at most, as a robot's loop has them
    #[arg(long, value_name = "HZ", value_parser = parse_rate)]
    pub rate: Option<f64>,

    /// What is sent.
    #[command(flatten)]
    pub scene: scene::Args,

    /// Where the noise of the actions begins, the same for each request (`pi0 serve`)
    #[arg(long, value_name = "N", conflicts_with = "noise", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,

    /// What the actions begin as: a .npy `[horizon, action dims]` (`pi0 serve`)
    #[arg(long, value_name = "FILE")]
    pub noise: Option<PathBuf>,

    /// Milliseconds that a request may wait for the model before it is refused (`pi0 serve`)
    #[arg(long, visible_alias = "deadline_ms", value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    pub deadline_ms: Option<u32>,

    /// Ask for the time in the queue and in the model as well (`pi0 serve`)
    #[arg(long)]
    pub ask: bool,

    /// Print the first rows of each chunk
    #[arg(long, visible_alias = "show_action_chunk")]
    pub show_action_chunk: bool,

    /// How many rows
    #[arg(
        long,
        visible_alias = "max_action_rows",
        value_name = "N",
        default_value_t = 3,
        requires = "show_action_chunk"
    )]
    pub max_action_rows: usize,

    /// Write the times of each request: a .parquet, as openpi's simple client does, or a .json
    #[arg(long, visible_alias = "timing_file", value_name = "FILE")]
    pub timing_file: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= 1e6);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds above 0".to_owned())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| *rate >= 1e-3 && *rate <= 1e6);
    rate.ok_or_else(|| "expected a rate in Hz, above 0".to_owned())
}

/// Runs the verb.
///
/// # Errors
/// Nothing to send, no server, or no place to write to. A request that failed is no error, but the answer No.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let file = args.timing_file.as_deref().map(TimingFile::of).transpose()?;
    let extensions = extensions(&args)?;
    let scene = Scene::find(&args.scene)?;
    scene.notices().iter().for_each(|notice| mouth.note(notice));
    let settings = Settings {
        api_key: key::or_environment(args.api_key.as_deref()),
        wait: args.wait,
        timeout: args.timeout,
        ..Settings::new(Address::parse(&args.host, args.port)?)
    };
    let mut clients = vec![];
    for _ in 0..args.clients {
        let told = |error: &_| mouth.note(&format!("{error} Waiting for it."));
        clients.push(Client::connect(&settings, told)?);
    }
    let metadata = clients.first().context("no client")?.metadata().clone();
    let load = Load {
        settings: &settings,
        scene: &scene,
        extensions: extensions.as_ref(),
        requests: args.num_steps,
        rate: args.rate,
        rows: args.show_action_chunk.then_some(args.max_action_rows.max(1)),
    };
    let outcome = load.run(clients, mouth)?;
    if let Some(file) = &file {
        file.write(&outcome.timings)?;
    }
    let report = Report::of(&settings.address, &metadata, &scene, args.clients, &outcome);
    mouth.say(&report, || report.text())?;
    Ok(if report.failed == 0 { Answer::Yes } else { Answer::No })
}

/// What openpi's protocol does not have; `None` where nothing of it was said, so that openpi's own server sees none of it.
fn extensions(args: &Args) -> Result<Option<Extensions>> {
    let noise = match &args.noise {
        None => None,
        Some(path) => {
            let noise = array::file(path).context("--noise")?;
            ensure!(noise.shape.len() == 2, "--noise: expected [horizon, action dims], found {noise}");
            if !noise.values.to_f64().iter().all(|value| value.is_finite()) {
                bail!("--noise: found values that are no numbers, expected finite ones");
            }
            Some(noise)
        }
    };
    let deadline = args.deadline_ms.map(|ms| Duration::from_millis(u64::from(ms)));
    let said = args.ask || noise.is_some() || args.seed.is_some() || deadline.is_some();
    Ok(said.then_some(Extensions { noise, seed: args.seed, deadline, previous: None }))
}
