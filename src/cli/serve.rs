//! `pi0 serve`: a policy for robots that speak openpi's websocket protocol.
//!
//! Source: openpi 15a9616, scripts/serve_policy.py, whose command line is taken as it is. Invariant: nobody can connect
//! before the model is loaded and warm.

mod grammar;

use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level;

use super::Answer;
use super::engine::{self, Engine};
use super::key;
use super::log::{self, Form};
use super::output::Mouth;
use crate::serve::policy::Tap;
use crate::serve::recorder::{self, Recorder};
use crate::serve::server::event::{Event, Listener, What};
use crate::serve::server::{Key, Server, Settings};
use grammar::Env;

const EXAMPLES: &str = "\
Examples:
  A policy of openpi's, on port 8000 of this machine:
    pi0 serve --config pi05_droid --checkpoint-dir pi05_droid --port 8000

  With openpi's own words; robots elsewhere may connect:
    pi0 serve --host 0.0.0.0 policy:checkpoint --policy.config=pi0_libero --policy.dir=checkpoints/pi0_libero/29999
    pi0 serve --env LIBERO --default_prompt 'do something'      # the published checkpoint, from openpi's cache

  Tiny weights that stand in this repository, to try a robot's program:
    pi0 serve --config pi0_aloha --checkpoint-dir fixtures/checkpoints/policy/pi0

  What is asked and answered is kept, as openpi's PolicyRecorder keeps it; and is it the same tomorrow?
    pi0 serve --config pi0_libero --checkpoint-dir pi0_libero --record policy_records
    pi0 replay policy_records --config pi0_libero --checkpoint-dir pi0_libero

  Only for those who know the key; refuse what has waited for 200 ms; logs as JSON:
    PI0_API_KEY=... pi0 serve --config pi05_libero --checkpoint-dir pi05_libero --deadline-ms 200 --log-format json

Clients: openpi-client's WebsocketClientPolicy, unchanged; `pi0 client`. GET /healthz answers OK, GET /metrics Prometheus.
Ctrl-C or SIGTERM: what waits is answered, then it ends.";

/// Serve a policy.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 serve --help")]
pub struct Args {
    /// openpi's word for which policy: policy:checkpoint (--policy.config and --policy.dir say which), or policy:default
    #[arg(value_name = "POLICY", value_parser = grammar::POLICIES)]
    pub policy: Option<String>,

    /// Of policy:default: whose published checkpoint (default: aloha_sim, as in openpi)
    #[arg(long, value_enum, ignore_case = true, value_name = "ENVIRONMENT")]
    pub env: Option<Env>,

    /// Address to listen on; 0.0.0.0 lets other machines in
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,

    /// Port; 0 takes any that is free
    #[arg(long, default_value_t = 8000)]
    pub port: u16,

    /// Keep what is asked and answered in this folder, as openpi's PolicyRecorder (without a name: policy_records)
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = grammar::RECORDS)]
    pub record: Option<PathBuf>,

    /// The policy.
    #[command(flatten)]
    pub engine: engine::Args,

    /// How it is served.
    #[command(flatten)]
    pub serving: Serving,

    /// Form of the log on stderr
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    pub log_format: Form,

    /// Say where it listens, and at the end what was done, as JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// How it is served.
#[derive(Debug, clap::Args)]
#[group(id = "serving")]
#[command(next_help_heading = "The server")]
pub struct Serving {
    /// What clients must send (`Authorization: Api-Key KEY`). Others can read a command line: PI0_API_KEY or a file are better
    #[arg(long, value_name = "KEY", conflicts_with = "api_key_file")]
    pub api_key: Option<String>,

    /// File with the key
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Observations that go through the model at once, where several wait
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_batch: u16,

    /// How long an observation waits for others to go with it, where --max-batch is more than 1
    #[arg(long, default_value_t = 2, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub max_wait_ms: u64,

    /// How long a request may wait before it is refused; a request may ask for less
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    pub deadline_ms: Option<u64>,

    /// Requests that wait for the model at most; one more is refused
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub queue: u32,

    /// Clients at once
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_connections: u32,

    /// Longest message, in MiB
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_message_mib: u32,

    /// On a signal: how long what waits is still served
    #[arg(long, default_value_t = 10_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=3_600_000))]
    pub grace_ms: u64,
}

/// Serves until a signal.
///
/// # Errors
/// A policy that cannot be put together, a port that cannot be had.
pub fn run(mut args: Args, mouth: &Mouth) -> Result<Answer> {
    grammar::apply(&mut args)?;
    let key = args.serving.key()?;
    let asks = key.is_some();
    let listener = log::listener(args.log_format);
    let engine = Arc::new(Engine::open(&args.engine, mouth)?);
    let warm_ms = engine.warm_up(args.serving.max_batch.into(), mouth)?;
    let recorder = args.record.as_deref().map(|folder| recorder(folder, &listener)).transpose()?;
    let settings = args.serving.settings(key, recorder.map(|recorder| Arc::new(recorder) as Arc<dyn Tap>));
    let server = Server::bind(&args.host, args.port, settings)?;
    let about = About {
        address: server.address().to_string(),
        config: engine.preset().name.clone(),
        model: engine.family(),
        precision: args.engine.dtype.name(),
        device: args.engine.device.clone(),
        load_ms: engine.load_ms,
        warm_ms,
        record: args.record.as_ref().map(|path| path.display().to_string()),
        key: asks,
        notices: engine.told().notices.clone(),
    };
    mouth.say(&about, || about.to_string())?;
    let stop = server.stop();
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).context("signals cannot be heard")?;
    let heard = signals.handle();
    let listens = std::thread::Builder::new().name("pi0-signals".to_owned()).spawn(move || {
        for (count, signal) in signals.forever().enumerate() {
            match count {
                0 => stop.stop(),
                // Whoever asks twice does not want to wait.
                _ => drop(low_level::emulate_default_handler(signal)),
            }
        }
    })?;
    let served = server.run(engine, listener);
    heard.close();
    let _ = listens.join();
    served?;
    Ok(Answer::Yes)
}

/// What keeps requests and answers; what goes wrong with it stands in the log.
fn recorder(folder: &Path, listener: &Listener) -> Result<Recorder> {
    let listener = Arc::clone(listener);
    let tell = move |event: recorder::Event| {
        let why = match event {
            recorder::Event::Dropped { dropped } => {
                format!("the disk does not keep up; {dropped} recordings were dropped so far")
            }
            recorder::Event::Failed { error } => error.to_string(),
        };
        listener(&Event { at: SystemTime::now(), place: Location::caller(), what: What::NotKept { why } });
    };
    Recorder::open(folder, recorder::Room::default(), tell).context("--record")
}

impl Serving {
    fn key(&self) -> Result<Option<Key>> {
        let text = match &self.api_key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                Some(text.with_context(|| format!("--api-key-file {}", path.display()))?)
            }
            None => self.api_key.clone().or_else(|| key::or_environment(None)),
        };
        let Some(text) = text else { return Ok(None) };
        let key = text.trim();
        ensure!(
            !key.is_empty(),
            "the key is empty: leave --api-key, --api-key-file and {} away to ask for none",
            key::VARIABLE
        );
        Ok(Some(Key::new(key)))
    }

    fn settings(&self, key: Option<Key>, tap: Option<Arc<dyn Tap>>) -> Settings {
        Settings {
            key,
            max_connections: self.max_connections as usize,
            max_message_bytes: (self.max_message_mib as usize) << 20,
            queue: self.queue as usize,
            max_batch: self.max_batch.into(),
            max_wait: Duration::from_millis(self.max_wait_ms),
            deadline: self.deadline_ms.map(Duration::from_millis),
            grace: Duration::from_millis(self.grace_ms),
            tap,
            ..Settings::default()
        }
    }
}

/// What is served, and where.
#[derive(Debug, serde::Serialize)]
struct About {
    address: String,
    config: String,
    model: &'static str,
    /// `f32`, `train-bf16` or `serve-bf16`.
    precision: &'static str,
    device: String,
    load_ms: f64,
    /// Of a chunk, warm.
    warm_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<String>,
    /// Must clients show one?
    key: bool,
    notices: Vec<String>,
}

impl std::fmt::Display for About {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let About { address, config, model, precision, device, .. } = self;
        writeln!(f, "serves   {config} · {model} · precision {precision} · {device}")?;
        writeln!(f, "at       ws://{address} · /healthz · /metrics{}", if self.key { " · key asked for" } else { "" })?;
        writeln!(f, "time     ms · load {:.0} · a chunk, warm {:.1}", self.load_ms, self.warm_ms)?;
        if let Some(folder) = &self.record {
            writeln!(f, "records  {folder}")?;
        }
        self.notices.iter().try_for_each(|notice| writeln!(f, "note: {notice}"))
    }
}
