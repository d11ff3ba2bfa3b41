//! `pi0 verify --server`: does a policy behind a websocket compute what this build computes with this checkpoint?
//!
//! Observations and noise come from chance and go over the wire; both answers, in the robot's units, are compared. Invariant:
//! the noise is the request's own, so a server that does not know the extension is told apart from one that is wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Args, Report};
use crate::cli::engine::{self, Engine};
use crate::cli::key;
use crate::cli::made_up;
use crate::cli::output::Mouth;
use crate::device::Precision;
use crate::policy::array::Array;
use crate::serve::EXTENSIONS;
use crate::serve::client::{Address, Client, Settings};
use crate::serve::request::{self, Extensions, Request};
use crate::serve::tree::Tree;
use crate::verify::compare::{Line, measure};
use crate::weights::convert::Progress as _;

/// A server and the policy that it should be.
#[derive(Debug, clap::Args)]
#[group(id = "remote")]
#[command(next_help_heading = "A policy behind a websocket")]
pub struct Remote {
    /// A policy server that knows noise over the wire (`pi0 serve`): compare its actions with this checkpoint's
    #[arg(long, value_name = "URL", requires = "config", conflicts_with_all = ["golden", "against", "check"])]
    pub server: Option<String>,

    /// With --server: the preset that both serve
    #[arg(long, visible_alias = "config-name", value_name = "NAME|FILE", requires = "server")]
    pub config: Option<String>,

    /// With --server: how many observations
    #[arg(long, default_value_t = 4, value_name = "N", requires = "server", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub observations: u32,

    /// With --server: Euler steps, if the server was told another number than 10
    #[arg(long, alias = "num_steps", value_name = "N", requires = "server", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub num_steps: Option<u16>,

    /// With --server: its key (or PI0_API_KEY)
    #[arg(long, value_name = "KEY", requires = "server")]
    pub api_key: Option<String>,

    /// With --server: what the robot is told where an observation says nothing, if the server was told so
    #[arg(long, alias = "default_prompt", value_name = "TEXT", requires = "server")]
    pub default_prompt: Option<String>,

    /// With --server: norm stats of this side; the checkpoint's own if left out
    #[arg(long, value_name = "PATH", requires = "server")]
    pub norm_stats: Option<std::path::PathBuf>,

    /// With --server: PaliGemma's tokenizer of this side
    #[arg(long, value_name = "PATH", requires = "server")]
    pub tokenizer: Option<std::path::PathBuf>,

    /// With --server: folder of the FAST codec of this side
    #[arg(long, value_name = "DIR", requires = "server")]
    pub fast_tokenizer: Option<std::path::PathBuf>,
}

/// How long a server may take over a chunk.
const PATIENCE: Duration = Duration::from_secs(600);

/// Compares.
pub(super) fn run(args: &Args, server: &str, mouth: &Mouth) -> Result<Report> {
    let precision = args.dtype.unwrap_or(Precision::F32);
    let address = Address::parse(server, None)?;
    let key = key::or_environment(args.remote.api_key.as_deref());
    let mut settings = Settings::new(address);
    (settings.api_key, settings.timeout) = (key, PATIENCE);
    // Whether it is there is known at once; reading weights takes longer.
    let mut client = Client::connect(&settings, |_| {})?;
    let engine = Engine::open(&here(args, precision), mouth)?;
    let data = engine.preset().data.clone().context("--config: its data are made up, so there is no robot")?;
    mouth.count("comparing", args.remote.observations.into());
    let mut lines = vec![];
    for number in 0..args.remote.observations as usize {
        let observation = made_up::observation(&data, args.seed, number)?;
        let extensions = Extensions {
            noise: engine.noise(args.seed, number),
            seed: engine.noise_shape().is_none().then_some(args.seed.wrapping_add(number as u64)),
            ..Extensions::default()
        };
        let message = extensions.beside(request::observation(&observation))?;
        let theirs = client.infer(&message).with_context(|| format!("observation {number}"))?;
        ensure!(
            theirs.get(EXTENSIONS).is_some(),
            "{server}: it answers, but knows nothing of noise over the wire (no key {EXTENSIONS:?} in its answer), so its \
             actions began as other noise; `pi0 serve` knows it"
        );
        let ours = engine.infer_one(Request { observation, extensions: Some(extensions) });
        let ours = ours.with_context(|| format!("observation {number}"))?;
        for (name, ours) in &ours.outputs {
            let Tree::Array(ours) = ours else { continue };
            lines.push(line(format!("{number}/{name}"), ours, theirs.get(name), args.tolerance));
        }
        mouth.at(number as u64 + 1);
    }
    client.close();
    Ok(Report {
        ok: lines.iter().all(|line| line.ok),
        first_divergence: Report::first(&lines),
        lines,
        model: engine.family().into(),
        mode: precision.name().into(),
        device: args.device.clone(),
        checkpoint: server.to_owned(),
        weights_sha256: String::new(),
        against: args.checkpoint.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
        against_sha256: String::new(),
        pi0_burn: env!("CARGO_PKG_VERSION").into(),
    })
}

fn here(args: &Args, precision: Precision) -> engine::Args {
    engine::Args {
        config: args.remote.config.clone(),
        checkpoint_dir: args.checkpoint.clone(),
        from: args.from.clone(),
        default_prompt: args.remote.default_prompt.clone(),
        norm_stats: args.remote.norm_stats.clone(),
        tokenizer: args.remote.tokenizer.clone(),
        fast_tokenizer: args.remote.fast_tokenizer.clone(),
        num_steps: args.remote.num_steps,
        lora_scale: args.lora_scale,
        device: args.device.clone(),
        dtype: precision,
        ..engine::Args::default()
    }
}

/// Theirs against ours.
fn line(name: String, ours: &Array, theirs: Option<&Tree>, tolerance: f64) -> Line {
    let mut line = Line {
        name,
        shape: ours.shape.clone(),
        max_abs: f64::INFINITY,
        relative: f64::INFINITY,
        cosine: 0.0,
        error_ratio: None,
        allowed: format!("relative {tolerance:e}"),
        reason: None,
        ok: false,
        at: None,
        fault: None,
    };
    let theirs = match theirs {
        Some(Tree::Array(array)) if array.shape == ours.shape => array,
        Some(other) => {
            line.fault = Some(format!("expected {ours}, found {other}"));
            return line;
        }
        None => {
            line.fault = Some("it is not in the server's answer".to_owned());
            return line;
        }
    };
    let found = measure(&theirs.values.to_f32(), &ours.values.to_f32());
    line.max_abs = found.max_abs;
    line.relative = if found.max_abs == 0.0 { 0.0 } else { found.max_abs / found.largest.max(f64::MIN_POSITIVE) };
    line.cosine = found.cosine;
    line.ok = line.relative <= tolerance;
    line
}
