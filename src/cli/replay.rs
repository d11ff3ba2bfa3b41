//! `pi0 replay`: what a server recorded is asked again, and the answers held against the recorded ones.
//!
//! Invariants: recordings go in the order of their numbers, one at a time; what cannot be equal (a recording that does not
//! say what its actions began as) is never called a difference. Whoever answers is behind [`Infer`].

#[cfg(feature = "model")]
mod local;
mod plot;
mod remote;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Answer;
use super::key;
use super::output::Mouth;
use crate::data::recording::{self, Recording};
use crate::policy::record::{Record, Value};
use crate::serve::client::{Address, Settings};
use crate::serve::compare::Comparison;
use crate::serve::recorded;
use crate::serve::tree::Tree;
use crate::weights::convert::Progress as _;
pub use plot::Drawn;
pub use remote::Remote;
pub use report::{Report, Row};

const EXAMPLES: &str = "\
Examples:
  Does this server still answer what it answered then? Its recordings come from `pi0 serve --record policy_records`:
    pi0 replay policy_records --server localhost:8000

  Another device or precision: equal but for this much, in the robot's units:
    pi0 replay policy_records --server ws://10.0.0.7:8000 --tolerance 1e-3

  Without a server: does this build, with this checkpoint, still give what was recorded?
    pi0 replay policy_records --config pi0_libero --checkpoint-dir pi0_libero

  The first ten, joint by joint in a picture, with every number in a file:
    pi0 replay policy_records --server localhost --limit 10 --plot replay.svg --json > replay.json

  One of them:
    pi0 replay policy_records/step_12.npy --server localhost

What openpi's own recorder kept does not say which noise the actions began as. Such actions are one draw of many: shapes,
ranges and spreads are compared, no value, and the answer is not no for that. Recordings of `pi0 serve` say it.
Exit code: 0 within the tolerance, 1 where an answer departs or is refused, 2 where nothing could be compared.";

/// Ask again what was recorded.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 replay --help")]
pub struct Args {
    /// A folder of step_N.npy, or one of them
    #[arg(value_name = "DIR")]
    pub recordings: PathBuf,

    /// The server to ask: HOST, HOST:PORT or ws://HOST:PORT (port 8000 if left out)
    #[arg(long, value_name = "ADDRESS")]
    #[cfg_attr(feature = "model", arg(required_unless_present = "config", conflicts_with_all = ["config", "checkpoint_dir"]))]
    #[cfg_attr(not(feature = "model"), arg(required = true))]
    pub server: Option<String>,

    /// In place of a server, a policy in this process.
    #[cfg(feature = "model")]
    #[command(flatten)]
    pub engine: super::engine::Args,

    /// Key that the server asks for (or PI0_API_KEY)
    #[arg(long, alias = "api_key", value_name = "KEY")]
    pub api_key: Option<String>,

    /// Seconds to wait for a server that is not up yet
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = seconds)]
    pub wait: Duration,

    /// Seconds that an answer may take
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,

    /// How far apart an action may be from the recorded one, in the robot's units
    #[arg(long, default_value_t = 0.0, value_name = "DISTANCE", value_parser = distance)]
    pub tolerance: f64,

    /// The first so many recordings only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,

    /// File for a picture of recorded and replayed actions, a panel for each joint: .svg
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,

    /// Replace what stands under the picture's name
    #[arg(long)]
    pub overwrite: bool,

    /// Report as JSON, with every recording
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<Duration> {
    let value: f64 = text.parse()?;
    Duration::try_from_secs_f64(value).context("expected seconds, 0 or more")
}

fn distance(text: &str) -> Result<f64> {
    let value: f64 = text.parse()?;
    ensure!(value >= 0.0, "expected a distance, 0 or more");
    Ok(value)
}

/// Who is asked: a server, or a policy in this process.
pub trait Infer {
    /// Actions for a message; the inner error is a refusal of this one, after which the next may be asked.
    ///
    /// # Errors
    /// Nobody can be asked any more.
    fn infer(&mut self, message: &Tree) -> Result<Result<Tree, String>>;

    /// Who it is, for people.
    fn name(&self) -> String;
}

/// Runs it. The answer is no where an answer departs or is refused.
///
/// # Errors
/// No recordings; a server that is not there; a picture that cannot be written.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let steps = steps(&args.recordings, args.limit)?;
    if let Some(path) = &args.plot {
        plot::may_write(path, args.overwrite)?;
    }
    let mut asked = asked(&args, mouth)?;
    let mut drawn = args.plot.is_some().then(Drawn::default);
    let mut report = replay(&steps, asked.as_mut(), args.tolerance, drawn.as_mut(), mouth)?;
    if let (Some(path), Some(drawn)) = (&args.plot, drawn) {
        std::fs::write(path, plot::svg(&drawn, &report)?).with_context(|| path.display().to_string())?;
        report.written.push(path.display().to_string());
    }
    let answer = if report.departs() { Answer::No } else { Answer::Yes };
    mouth.say(&report, || report.to_string())?;
    Ok(answer)
}

/// Who is asked.
fn asked(args: &Args, mouth: &Mouth) -> Result<Box<dyn Infer>> {
    if let Some(server) = &args.server {
        let settings = Settings {
            api_key: key::or_environment(args.api_key.as_deref()),
            wait: Some(args.wait),
            timeout: args.timeout,
            ..Settings::new(Address::parse(server, None)?)
        };
        return Ok(Box::new(Remote::connect(settings, mouth)?));
    }
    #[cfg(feature = "model")]
    return Ok(Box::new(local::Local::open(&args.engine, mouth)?));
    #[cfg(not(feature = "model"))]
    anyhow::bail!("--server: which server is asked?")
}

/// The recordings under a path, in order.
///
/// # Errors
/// There are none.
pub fn steps(path: &Path, limit: Option<u64>) -> Result<Vec<(u64, PathBuf)>> {
    let mut steps = if path.is_dir() {
        recording::steps(path)?
    } else {
        ensure!(path.exists(), "{}: there is nothing under this path", path.display());
        // Its number is for the report alone.
        let digits = path.file_stem().and_then(|stem| stem.to_str()?.strip_prefix("step_")?.parse().ok());
        vec![(digits.unwrap_or(0), path.to_owned())]
    };
    steps.truncate(limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    Ok(steps)
}

/// Asks for each again and holds the answers against the recorded ones.
///
/// # Errors
/// Nobody can be asked any more.
pub fn replay(
    steps: &[(u64, PathBuf)],
    to: &mut dyn Infer,
    tolerance: f64,
    mut drawn: Option<&mut Drawn>,
    mouth: &Mouth,
) -> Result<Report> {
    let mut comparison = Comparison::new(tolerance);
    let mut rows = Vec::with_capacity(steps.len());
    mouth.count("replaying", steps.len() as u64);
    for (done, (number, path)) in steps.iter().enumerate() {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut row = Row { number: *number, file, ..Row::default() };
        match recording::read(path) {
            Err(error) => row.error = Some(error.fault.to_string()),
            Ok(kept) => {
                let answer = one(&kept, to, &mut row).with_context(|| format!("at {}", path.display()))?;
                if let Some(answer) = answer {
                    row.held = Some(comparison.hold(&kept.outputs, &answer, row.noise_is_known));
                    if let Some(drawn) = &mut drawn {
                        drawn.add(&kept.outputs, &answer);
                    }
                }
            }
        }
        rows.push(row);
        mouth.at(done as u64 + 1);
    }
    Ok(Report::new(to.name(), comparison, rows))
}

fn one(kept: &Recording, to: &mut dyn Infer, row: &mut Row) -> Result<Option<Record>> {
    row.noise_is_known = recorded::noise_is_known(kept);
    row.recorded_ms = time(&kept.outputs);
    let begun = Instant::now();
    let answer = to.infer(&recorded::message(kept))?;
    row.round_trip_ms = Some(begun.elapsed().as_secs_f64() * 1000.0);
    Ok(match answer {
        Ok(answer) => {
            let answer = recorded::record(&answer);
            row.replayed_ms = time(&answer);
            Some(answer)
        }
        Err(refusal) => {
            row.error = Some(refusal);
            None
        }
    })
}

/// The model's own time, as the policy told it.
fn time(outputs: &Record) -> Option<f64> {
    match outputs.get("policy_timing/infer_ms") {
        Some(Value::Array(array)) => array.values.to_f64().first().copied(),
        _ => None,
    }
}
