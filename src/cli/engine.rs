//! A checkpoint behind a preset's policy, ready to answer observations again and again: what `serve`, `replay` and
//! `verify --server` run.
//!
//! Source: openpi 15a9616, policies/policy.py. Invariant: an answer has the bits that `pi0 sample` gives with the same noise
//! or seed; everything that can be refused is refused in [`Policy::prepare`](serve::Policy::prepare), with the key's name.

mod args;
mod ready;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Tensor, TensorData};

pub use args::Args;

use super::decoding;
use super::inference::milliseconds;
use super::network;
use super::observation::{self, Noise, Rows, Wanted};
use super::output::Mouth;
use super::policy::{Policy, Told};
use super::sample::chunk::Chunk;
use super::sample::runs::{self, Decoding};
use crate::config::train::Train;
use crate::model::settings::Head;
use crate::model::{Padding, Pi, Settings, Taps};
use crate::policy::array::{Array, Values};
use crate::policy::chunking::{Method, weights};
use crate::policy::fast::Grammar;
use crate::sample::chunking::Continue;
use crate::sample::flow::Steps;
use crate::serve::EXTENSIONS;
use crate::serve::policy::{self as serve, Kind, Refusal};
use crate::serve::request::{Answer, Previous, Request};
use crate::serve::tree::Tree;
use crate::weights::convert::Progress as _;
use crate::weights::open::{Choice, Opened};
use ready::{Begin, Left, Ready};

/// Tokens that a warm-up decodes: the second already runs what all others do.
const WARM_TOKENS: usize = 4;

/// A policy with its network.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    settings: Settings,
    wanted: Wanted,
    horizon: usize,
    decoding: decoding::Args,
    grammar: Option<Grammar>,
    seed: AtomicU64,
    metadata: Tree,
    // One thread computes; the lock is there because a network may be used by one at a time only.
    network: Mutex<Network>,
    /// Milliseconds that reading the weights took.
    pub load_ms: f64,
}

#[derive(Debug)]
struct Network {
    pi: Pi,
    /// pi0 and pi0.5.
    steps: Option<Steps>,
}

impl Engine {
    /// Reads checkpoint, policy and weights.
    ///
    /// # Errors
    /// A preset, checkpoint, statistics, tokenizer or device that cannot be used, with what is wrong with it.
    pub(super) fn open(args: &Args, mouth: &Mouth) -> Result<Self> {
        let device = crate::device::device(&args.device)?;
        if let Some(threads) = args.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
            pool.build_global().context("--threads: the threads could not be started")?;
        }
        let path = super::fetch::resolve(args.checkpoint()?, args.download, mouth)?;
        let opened = Opened::open(&path, &Choice { from: args.from.clone(), ..Choice::default() })?;
        let (_, anatomy, settings) = network::understand(&opened, args.from.as_deref())?;
        args.refuse_strangers(&settings)?;
        let policy = Policy::new(&args.policy(), args.download, &opened, &anatomy, &settings, mouth)?;
        let wanted = Wanted { cameras: policy.slots()?, ..Wanted::by(&settings, None) };
        let horizon = policy.preset.model.action_horizon as usize;
        let grammar = args.decoding.grammar(&policy, horizon)?;
        let metadata = metadata(&policy.preset);
        let (pi, load_ms) = network::read(&args.weights(), &opened, &device, mouth)?;
        let steps = (settings.head != Head::Tokens).then(|| Steps::new(&pi, args.num_steps.map_or(10, usize::from)));
        Ok(Engine {
            policy,
            settings,
            wanted,
            horizon,
            decoding: args.decoding.clone(),
            grammar,
            seed: AtomicU64::new(args.seed.unwrap_or(0)),
            metadata,
            network: Mutex::new(Network { pi, steps }),
            load_ms,
        })
    }

    /// The preset.
    pub(super) fn preset(&self) -> &Train {
        &self.policy.preset
    }

    /// Where the policy's parts came from.
    pub(super) fn told(&self) -> &Told {
        &self.policy.told
    }

    /// `pi0`, `pi05`, `pi0_fast`.
    pub(super) fn family(&self) -> &'static str {
        self.settings.family()
    }

    /// Steps of a chunk, and values of an action as the model has them; `None` for pi0-FAST, which begins with no noise.
    pub(super) fn noise_shape(&self) -> Option<[usize; 2]> {
        self.wanted.action_dim().map(|dim| [self.horizon, dim])
    }

    /// Noise from a seed and a number, `[horizon, A]`; `None` for pi0-FAST.
    pub(super) fn noise(&self, seed: u64, number: usize) -> Option<Array> {
        let [horizon, dim] = self.noise_shape()?;
        let noise = observation::random_noise(seed.wrapping_add(number as u64), 1, horizon, dim);
        Some(Array::f32([horizon, dim], noise.values))
    }

    /// Runs the network on observations from chance, twice, so that no client waits for what is done once. Milliseconds
    /// of the second.
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn warm_up(&self, batch: usize, mouth: &Mouth) -> Result<f64> {
        mouth.phase("warming up", 0);
        let length = self.policy.preset.model.max_token_len as usize;
        let rows = observation::random(0, length, &[], &self.wanted)?;
        let network = self.network.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut sizes = vec![1];
        sizes.extend((batch > 1).then_some(batch));
        let mut ms = 0.0;
        for size in sizes {
            let rows = rows.repeat(size);
            for _ in 0..2 {
                let began = Instant::now();
                match &network.steps {
                    Some(steps) => {
                        let dim = self.wanted.action_dim().unwrap_or(0);
                        let noise = observation::random_noise(0, size, self.horizon, dim);
                        flow(&network.pi, steps, &rows, &noise, None)?;
                    }
                    None => {
                        let how = Decoding { max_decoding_steps: WARM_TOKENS, ..self.decode(0) };
                        runs::tokens(&network.pi, &rows, &how, 1)?;
                    }
                }
                ms = milliseconds(began);
            }
        }
        Ok(ms)
    }

    fn decode(&self, seed: u64) -> Decoding<'_> {
        self.decoding.with(seed, self.grammar.as_ref())
    }

    fn run(&self, batch: &[Ready]) -> Result<(Vec<Array>, f64)> {
        let network = self.network.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let all: Vec<&Rows> = batch.iter().map(|ready| &ready.seen.rows).collect();
        let joined;
        let rows = match all[..] {
            [only] => only,
            _ => {
                joined = Rows::join(&all);
                &joined
            }
        };
        let began = Instant::now();
        let chunks = match (&network.steps, &batch[0].begin) {
            (Some(steps), Begin::Noise(first)) => {
                let values = batch.iter().flat_map(|ready| match &ready.begin {
                    Begin::Noise(noise) => noise.values.iter().copied(),
                    Begin::Seed => [].iter().copied(),
                });
                let noise = Noise { rows: batch.len(), values: values.collect(), ..*first };
                let values = flow(&network.pi, steps, rows, &noise, batch[0].left.as_ref())?;
                let size = (noise.horizon * noise.dim).max(1);
                values.chunks(size).map(|row| Array::f32([noise.horizon, noise.dim], row.to_vec())).collect()
            }
            _ => {
                let sampled = runs::tokens(&network.pi, rows, &self.decode(batch[0].seed.unwrap_or(0)), 1)?;
                let Chunk::Tokens { tokens, .. } = sampled.chunk else {
                    anyhow::bail!("expected tokens, found actions")
                };
                tokens.into_iter().map(|row| Array::new([row.len()], Values::I32(row))).collect()
            }
        };
        Ok((chunks, milliseconds(began)))
    }

    fn answer(&self, ready: &Ready, chunk: Array, infer_ms: f64) -> Result<Answer> {
        let answer = ready.seen.answer(chunk)?;
        let (actions, _) = self.policy.undo(answer)?;
        if let Some(at) = actions.values.to_f64().iter().position(|x| !x.is_finite()) {
            let width = actions.width().unwrap_or(1).max(1);
            anyhow::bail!("actions: step {}, value {} is not finite", at / width, at % width);
        }
        let key = self.policy.data.robot.actions.key.clone();
        Ok(Answer { outputs: vec![(key, Tree::Array(actions))], infer_ms, seed: ready.seed })
    }

    /// What is left of the last chunk, if it can be.
    fn previous(&self, previous: Option<Previous>) -> Result<Option<Previous>> {
        let Some(previous) = previous else { return Ok(None) };
        let key = "pi0/previous";
        let [horizon, _] = self.noise_shape().with_context(|| {
            format!("{key}: a {} answers in tokens; real-time chunking is of pi0 and pi0.5", self.family())
        })?;
        let width = self.policy.data.robot.actions.width;
        let n = match previous.actions.shape[..] {
            [n, d] if d == width && (1..=horizon).contains(&n) => n,
            _ => anyhow::bail!(
                "{key}: expected [n, {width}] with n from 1 to {horizon}, found {}; it is what is left of the last chunk",
                previous.actions
            ),
        };
        ensure!(
            previous.delay <= n,
            "pi0/delay: {} actions are run before the new chunk is there, and {key} has {n}",
            previous.delay
        );
        finite(key, &previous.actions)?;
        Ok(Some(previous))
    }

    /// The same as the model has it, padded to its horizon.
    fn left(&self, previous: &Previous, actions: &Array) -> Result<Left> {
        let n = previous.actions.shape[0];
        let shape = self.noise_shape().context("pi0/previous: the model has no noise")?;
        let [horizon, dim] = shape;
        ensure!(actions.shape == [n, dim], "pi0/previous: the steps made {actions} of it, expected [{n}, {dim}]");
        let mut values = actions.values.to_f32();
        values.resize(horizon * dim, 0.0);
        Ok(Left { values, shape, n, delay: previous.delay, method: previous.method })
    }

    fn ready(&self, request: Request) -> Result<Ready> {
        for (key, value) in &request.observation.values {
            if let crate::policy::record::Value::Array(array) = value {
                finite(key, array)?;
            }
        }
        let extensions = request.extensions.unwrap_or_default();
        let previous = self.previous(extensions.previous)?;
        let mut observation = request.observation;
        // As in training, actions go through the steps beside the observation that they are seen from.
        let apart = match &previous {
            Some(previous) => self.policy.actions_beside(&mut observation, previous.actions.clone())?,
            None => None,
        };
        let seen = ready::Seen::of("the observation".to_owned(), observation, &self.policy.chain, &self.wanted)?;
        let left = match (&previous, apart) {
            (Some(previous), Some(actions)) => Some(self.left(previous, &actions)?),
            (Some(previous), None) => Some(self.left(previous, seen.record.array("actions")?)?),
            (None, _) => None,
        };
        let drawn = || match extensions.seed {
            Some(seed) => seed,
            None => self.seed.fetch_add(1, Ordering::Relaxed),
        };
        let (begin, seed) = match (self.noise_shape(), extensions.noise) {
            (None, Some(_)) => anyhow::bail!("pi0/noise: a {} begins with no noise; leave it out", self.family()),
            (None, None) => (Begin::Seed, Some(drawn())),
            (Some([horizon, dim]), Some(array)) => {
                let noise = observation::noise_of(array, &self.wanted);
                let noise = noise.map_err(|fault| anyhow::anyhow!("{EXTENSIONS}/{fault}"))?;
                ensure!(
                    (noise.rows, noise.horizon) == (1, horizon),
                    "pi0/noise: expected [{horizon}, {dim}], found {} rows of {} steps",
                    noise.rows,
                    noise.horizon
                );
                (Begin::Noise(noise), None)
            }
            (Some([horizon, dim]), None) => {
                let seed = drawn();
                (Begin::Noise(observation::random_noise(seed, 1, horizon, dim)), Some(seed))
            }
        };
        Ok(Ready { seen, begin, seed, left })
    }

    /// One request, there and back.
    ///
    /// # Errors
    /// As [`Policy::prepare`](serve::Policy::prepare) and [`Policy::infer`](serve::Policy::infer).
    pub(super) fn infer_one(&self, request: Request) -> Result<Answer, Refusal> {
        use serve::Policy as _;
        let ready = self.prepare(request)?;
        let mut answers = self.infer(vec![ready]);
        answers.pop().unwrap_or_else(|| Err(Refusal::new(Kind::Internal, "no answer")))
    }
}

impl serve::Policy for Engine {
    type Ready = Ready;

    fn metadata(&self) -> Tree {
        self.metadata.clone()
    }

    fn prepare(&self, request: Request) -> Result<Ready, Refusal> {
        self.ready(request).map_err(|error| Refusal::new(Kind::Observation, format!("{error:#}")))
    }

    /// Tokens are decoded until all rows end in the same step, so that neighbours would show in them; what goes on from a
    /// last chunk has weights of its own.
    fn together(&self, first: &Ready, other: &Ready) -> bool {
        let plain = |ready: &Ready| ready.left.is_none() && matches!(ready.begin, Begin::Noise(_));
        plain(first) && plain(other) && first.seen.rows.prompt_length == other.seen.rows.prompt_length
    }

    fn infer(&self, batch: Vec<Ready>) -> Vec<Result<Answer, Refusal>> {
        if batch.is_empty() {
            return vec![];
        }
        match self.run(&batch) {
            Ok((chunks, infer_ms)) => {
                let answer = |(ready, chunk)| {
                    self.answer(ready, chunk, infer_ms)
                        .map_err(|error| Refusal::new(Kind::Answer, format!("{error:#}")))
                };
                batch.iter().zip(chunks).map(answer).collect()
            }
            Err(error) => {
                let refusal = Refusal::new(Kind::Internal, "the model could not be run; the server's log says why");
                let refusal = refusal.because(format!("{error:#}"));
                batch.iter().map(|_| Err(refusal.clone())).collect()
            }
        }
    }

    fn device_memory_bytes(&self) -> Option<u64> {
        let network = self.network.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        network.pi.device().memory_pool_usage().map(|usage| usage.bytes_reserved)
    }
}

/// Actions `[B, horizon, A]` on the host, row by row, by the same operations as `pi0 sample`.
fn flow(pi: &Pi, steps: &Steps, rows: &Rows, noise: &Noise, left: Option<&Left>) -> Result<Vec<f32>> {
    let device = pi.device();
    let observation = rows.upload(&device);
    let noise = noise.upload(&device);
    let taps = &mut Taps::off();
    let prefix = pi.embed_prefix(&observation, Padding::Drop, taps);
    let context = pi.read_prefix(prefix, taps);
    let actions = match left {
        None => steps.denoise(pi, &context, &observation.state, noise, taps),
        Some(left) => steps.denoise_on(pi, &context, &observation.state, noise, &left.upload(&device), taps),
    };
    actions.into_data().try_to_vec::<f32>().context("the actions")
}

impl Left {
    fn upload(&self, device: &Device) -> Continue {
        let [horizon, dim] = self.shape;
        let data = TensorData::new(self.values.clone(), [1, horizon, dim]);
        let previous = Tensor::<3>::from_data(data, (device, DType::F32));
        match self.method {
            Method::Guided { schedule, max_guidance_weight } => Continue::Guided {
                previous,
                weights: weights(schedule, self.delay, self.n, horizon),
                max_guidance_weight,
            },
            Method::Frozen => Continue::Frozen { previous, delay: self.delay },
        }
    }
}

/// No value may be something else than a number.
fn finite(key: &str, array: &Array) -> Result<()> {
    let at = match &array.values {
        Values::F32(x) => x.iter().position(|x| !x.is_finite()),
        Values::F64(x) => x.iter().position(|x| !x.is_finite()),
        _ => None,
    };
    match at {
        None => Ok(()),
        Some(at) => {
            anyhow::bail!("{key}: value {at} of {array} is {}, expected a finite number", array.values.to_f64()[at])
        }
    }
}

/// What openpi's server tells first: the preset's `policy_metadata`.
fn metadata(preset: &Train) -> Tree {
    fn tree(value: &toml::Value) -> Tree {
        match value {
            toml::Value::String(text) => Tree::Text(text.clone()),
            toml::Value::Integer(value) => Tree::Int(*value),
            toml::Value::Float(value) => Tree::Float(*value),
            toml::Value::Boolean(value) => Tree::Bool(*value),
            toml::Value::Datetime(value) => Tree::Text(value.to_string()),
            toml::Value::Array(items) => Tree::List(items.iter().map(tree).collect()),
            toml::Value::Table(members) => Tree::Map(members.iter().map(|(k, v)| (k.clone(), tree(v))).collect()),
        }
    }
    let members = preset.training.policy_metadata.iter().flatten();
    Tree::Map(members.map(|(key, value)| (key.clone(), tree(value))).collect())
}
