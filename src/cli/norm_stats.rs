//! `pi0 norm-stats`: a dataset in, the statistics that training and sampling normalise by out; or held against data.
//!
//! Invariant: only tables are read, never a video; nothing is written before all of it is known.

mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::Answer;
use super::output::Mouth;
use super::statistics::{self, Found, Told};
use super::{fetch, motion};
use crate::config::train::{self, Train};
use crate::policy::chain::Statistics;
use crate::policy::norm_stats::{self, FILE};
use crate::policy::statistics::{Motion, Summaries, check, exact, running, shuffled, stats};
use crate::weights::convert::Progress as _;
use report::{Held, Report};

const EXAMPLES: &str = "\
Examples:
  What training with a preset needs, from a LeRobot dataset (v2.0, v2.1 or v3.0), in seconds:
    pi0 norm-stats --config pi0_aloha_pen_uncap --dataset ~/data/aloha_pen_uncap_diverse

  Of several datasets at once, and to a folder of your own:
    pi0 norm-stats --config pi05_libero --dataset libero_10 --dataset libero_90 --assets-dir assets

  Exactly what openpi's script writes, with its running histogram:
    pi0 norm-stats --config pi0_libero --dataset libero --method openpi

  May this checkpoint be used on this data? Do my statistics still fit?
    pi0 norm-stats --config pi0_aloha_pen_uncap --dataset data --check --checkpoint-dir checkpoints/pi0_base
    pi0 norm-stats --config pi0_aloha_pen_uncap --dataset data --check --norm-stats norm_stats.json

Exit codes: 0 done, or the statistics fit · 1 with --check: something was found · 2 could not";

/// Compute norm stats, or hold them against data.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 norm-stats --help")]
pub struct Args {
    /// Preset under openpi's name, or a file of your own (.toml): robot, delta mask, horizon
    #[arg(long, alias = "config-name", alias = "config_name", value_name = "NAME|FILE")]
    pub config: String,

    /// A LeRobot dataset; several are taken as one
    #[arg(long, alias = "data-paths", value_name = "DIR", required = true, num_args = 1..)]
    pub dataset: Vec<PathBuf>,

    /// How percentiles are found
    #[arg(long, value_enum, default_value = "exact")]
    pub method: Method,

    /// So many frames at most, chosen as openpi's loader shuffles them
    #[arg(long, alias = "max_frames", value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    pub max_frames: Option<u64>,

    /// This share of the frames, chosen alike
    #[arg(long, alias = "sample_rate", value_name = "SHARE", conflicts_with = "max_frames", value_parser = parse_share)]
    pub sample_rate: Option<f64>,

    /// Actions of a chunk, in place of the preset's
    #[arg(long, alias = "action-chunk", value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub action_horizon: Option<u64>,

    /// Folder that gets ASSET_ID/norm_stats.json; the preset's own, assets/CONFIG, if left out
    #[arg(long, alias = "output-path", value_name = "DIR", conflicts_with = "check")]
    pub assets_dir: Option<PathBuf>,

    /// Whose statistics they are; the preset's asset id if left out
    #[arg(long, value_name = "ID")]
    pub asset_id: Option<String>,

    /// Replace a norm_stats.json that is there
    #[arg(long)]
    pub overwrite: bool,

    /// Write nothing: hold statistics against the data and say what they make of it
    #[arg(long)]
    pub check: bool,

    /// With --check: the statistics (openpi's, giga-models' or LeRobot's file), or a folder of assets
    #[arg(long, value_name = "PATH", requires = "check")]
    pub norm_stats: Option<PathBuf>,

    /// With --check: a checkpoint, whose assets have the statistics
    #[arg(
        long,
        alias = "checkpoint",
        alias = "checkpoint_dir",
        value_name = "PATH",
        requires = "check",
        conflicts_with = "norm_stats"
    )]
    pub checkpoint_dir: Option<PathBuf>,

    /// Threads; as many as there are processors if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

/// How percentiles are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Of all values, as numpy.quantile defines them; sums in f64
    Exact,
    /// As openpi's script: 5000 moving bins, sums in f32, in batches of the preset's size
    Openpi,
}

fn parse_share(text: &str) -> Result<f64> {
    let share: f64 = text.parse()?;
    ensure!(share > 0.0 && share <= 1.0, "a share is above 0 and at most 1");
    Ok(share)
}

/// Runs it.
///
/// # Errors
/// A preset, dataset or file that cannot be used, with what is wrong with it.
pub(super) fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().context("--threads: the threads could not be started")?;
    }
    let preset = train::find(&args.config)?;
    let asset_id = asset_id(&args, &preset)?;
    let held = if args.check { Some(held(&args, &preset, &asset_id, mouth)?) } else { None };
    let target = match args.check {
        true => None,
        false => Some(target(&args, &preset, &asset_id)?),
    };
    let began = Instant::now();
    let horizon = args.action_horizon.unwrap_or(preset.model.action_horizon) as usize;
    let mut motion = motion::gather(&args.dataset, &preset, horizon, mouth)?;
    let read_s = began.elapsed().as_secs_f64();
    motion.picked = picked(&args, motion.frames())?;
    ensure!(motion.counted() > 1, "{} frame: statistics need two at least", motion.counted());
    mouth.phase("statistics", 0);
    let quantiles = preset.model.model.quantiles();
    let mut report = Report::new(&args, &preset, &asset_id, &motion, read_s);
    if let Some(held) = held {
        let keys = ["state", "actions"].map(|key| held.stats.keys.get(key));
        let checked = check::check(&motion, keys[0], keys[1], quantiles)?;
        let fine = checked.iter().all(check::Checked::fine);
        report.checked(held.from, checked);
        report.seconds = began.elapsed().as_secs_f64();
        mouth.say(&report, || report.to_string())?;
        return Ok(if fine { Answer::Yes } else { Answer::No });
    }
    let summaries = summaries(&args, &preset, &motion)?;
    report.computed(&summaries, quantiles);
    if let Some(path) = target {
        let (state, actions) = (stats(&summaries.state), stats(&summaries.actions));
        let text = norm_stats::text(&[("state", &state), ("actions", &actions)])?;
        let folder = path.parent().context("a file stands in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        remap::write_whole(&path, text.as_bytes())?;
        report.written = Some(path.display().to_string());
    }
    report.seconds = began.elapsed().as_secs_f64();
    mouth.say(&report, || report.to_string())?;
    Ok(Answer::Yes)
}

fn asset_id(args: &Args, preset: &Train) -> Result<String> {
    let found = args.asset_id.clone().or_else(|| preset.source.asset_id.clone());
    let id = found.with_context(|| format!("{}: the preset has no asset id; name one with --asset-id", preset.name))?;
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\\');
    ensure!(id.split('/').all(plain), "--asset-id {id:?}: expected names joined by `/`");
    Ok(id)
}

fn target(args: &Args, preset: &Train, asset_id: &str) -> Result<PathBuf> {
    let own = || Path::new(&preset.training.assets_base_dir).join(&preset.name);
    let path = args.assets_dir.clone().unwrap_or_else(own).join(asset_id).join(FILE);
    ensure!(args.overwrite || !path.exists(), "{}: it is there already; --overwrite replaces it", path.display());
    Ok(path)
}

/// Which statistics are held against the data: those named, or else where this verb writes them.
fn held(args: &Args, preset: &Train, asset_id: &str, mouth: &Mouth) -> Result<Held> {
    let checkpoint = args.checkpoint_dir.as_deref().map(|path| fetch::resolve(path, false, mouth)).transpose()?;
    let told = Told { norm_stats: args.norm_stats.as_deref(), checkpoint_dir: checkpoint.as_deref() };
    let mut preset = preset.clone();
    (preset.source.asset_id, preset.source.assets_dir) = (Some(asset_id.to_owned()), None);
    match statistics::find(&preset, told)? {
        Found { statistics: Statistics::Given(stats), from: Some(from) } => {
            Ok(Held { stats, from: from.display().to_string() })
        }
        Found { statistics: Statistics::Missing { looked, .. }, .. } => bail!(
            "norm stats of {asset_id}: there are none; looked in {}. --norm-stats or --checkpoint-dir names them, \
             --asset-id whose they are",
            looked.join(", ")
        ),
        _ => bail!("norm stats of {asset_id}: there are none"),
    }
}

/// The frames that count, in openpi's shuffled order; all of them if nothing was said.
fn picked(args: &Args, frames: usize) -> Result<Option<Vec<usize>>> {
    let wanted = match (args.max_frames, args.sample_rate) {
        (Some(most), _) => usize::try_from(most).unwrap_or(usize::MAX),
        (None, Some(share)) => (share * frames as f64) as usize,
        (None, None) => frames,
    };
    if wanted >= frames {
        return Ok(None);
    }
    let mut order = shuffled(frames, 0).map_err(anyhow::Error::msg)?;
    order.truncate(wanted);
    Ok(Some(order))
}

fn summaries(args: &Args, preset: &Train, motion: &Motion) -> Result<Summaries> {
    match args.method {
        Method::Exact => Ok(exact::exact(motion)?),
        Method::Openpi => {
            let batch = preset.training.batch_size as usize;
            ensure!(
                motion.counted() >= batch,
                "{} frames: openpi computes in batches of {batch} and leaves out what does not fill one; use --method exact",
                motion.counted()
            );
            Ok(running::running(motion, batch)?)
        }
    }
}
