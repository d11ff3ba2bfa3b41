//! The model, run and timed: every stage ends with the device's own word that it is done.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use serde::Serialize;

use super::chunk::Chunk;
use crate::chance::Stream;
use crate::cli::observation::{Noise, Rows};
use crate::model::fast::Next;
use crate::model::{Padding, Pi, Taps};
use crate::policy::fast::Grammar;
use crate::sample::flow::Steps;
use crate::sample::tokens::{Choice, Limits, Stop, sample_tokens};

/// A stage and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(in crate::cli) struct Stage {
    pub(in crate::cli) name: &'static str,
    pub(in crate::cli) ms: f64,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::cli) struct Run {
    pub(in crate::cli) stages: Vec<Stage>,
    pub(in crate::cli) total_ms: f64,
}

/// All runs, and what came out of them.
#[derive(Debug)]
pub(in crate::cli) struct Sampled {
    pub(in crate::cli) chunk: Chunk,
    /// What is done once for all observations.
    pub(in crate::cli) prepare_ms: f64,
    pub(in crate::cli) runs: Vec<Run>,
    /// Of the last stage: Euler steps, or decoded tokens a row.
    pub(in crate::cli) steps: usize,
}

/// Milliseconds since.
pub(in crate::cli) fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The rows as they are, or one of them so many times.
pub(in crate::cli) fn repeated(rows: &Rows, batch: usize) -> Rows {
    if rows.rows == batch { rows.clone() } else { rows.repeat(batch) }
}

/// Lap after lap.
struct Watch<'a> {
    device: &'a Device,
    began: Instant,
    lap: Instant,
    stages: Vec<Stage>,
}

impl<'a> Watch<'a> {
    fn start(device: &'a Device) -> Result<Self> {
        device.sync()?;
        let now = Instant::now();
        Ok(Watch { device, began: now, lap: now, stages: vec![] })
    }

    fn lap(&mut self, name: &'static str) -> Result<()> {
        self.device.sync()?;
        self.stages.push(Stage { name, ms: ms(self.lap) });
        self.lap = Instant::now();
        Ok(())
    }

    fn stop(self) -> Run {
        Run { total_ms: ms(self.began), stages: self.stages }
    }
}

/// pi0 and pi0.5.
pub(in crate::cli) fn flow(pi: &Pi, rows: &Rows, noise: &Noise, num_steps: usize, repeat: u32) -> Result<Sampled> {
    let device = pi.device();
    let observation = rows.upload(&device);
    let began = Instant::now();
    let steps = Steps::new(pi, num_steps);
    device.sync()?;
    let prepare_ms = ms(began);
    let (mut runs, mut actions) = (vec![], vec![]);
    for _ in 0..repeat {
        let noise = noise.upload(&device);
        let mut watch = Watch::start(&device)?;
        let prefix = pi.embed_prefix(&observation, Padding::Drop, &mut Taps::off());
        watch.lap("vision")?;
        let context = pi.read_prefix(prefix, &mut Taps::off());
        watch.lap("prefix")?;
        let chunk = steps.denoise(pi, &context, &observation.state, noise, &mut Taps::off());
        watch.lap("steps")?;
        runs.push(watch.stop());
        actions = chunk.into_data().try_to_vec::<f32>().context("the actions")?;
    }
    let chunk = Chunk::actions([noise.rows, noise.horizon, noise.dim], actions);
    Ok(Sampled { chunk, prepare_ms, runs, steps: num_steps })
}

/// How pi0-FAST decodes.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Decoding<'a> {
    pub(in crate::cli) max_decoding_steps: usize,
    pub(in crate::cli) stop: Stop,
    pub(in crate::cli) next: Next,
    pub(in crate::cli) temperature: f32,
    pub(in crate::cli) seed: u64,
    /// Only sentences of this grammar.
    pub(in crate::cli) grammar: Option<&'a Grammar>,
}

impl Decoding<'_> {
    /// What may follow a row.
    fn allowed(&self, row: &[i32]) -> Option<Vec<u32>> {
        let row: Vec<u32> = row.iter().map(|id| *id as u32).collect();
        let mut ids = self.grammar?.allowed_after(&row).ok()?;
        // The first of equals is the lowest, as without a grammar.
        ids.sort_unstable();
        Some(ids)
    }
}

/// pi0-FAST.
pub(in crate::cli) fn tokens(pi: &Pi, rows: &Rows, how: &Decoding<'_>, repeat: u32) -> Result<Sampled> {
    let device = pi.device();
    let observation = rows.upload(&device);
    let limits = Limits { max_decoding_steps: how.max_decoding_steps, stop: how.stop, next: how.next };
    let (mut runs, mut out) = (vec![], vec![]);
    for _ in 0..repeat {
        // Numbers are asked for row by row, step by step; each row has its own.
        let mut streams: Vec<Stream> = (0..rows.rows).map(|row| Stream::new(how.seed, "token", row)).collect();
        let mut asked = 0;
        let mut random = || {
            let row = asked % streams.len();
            asked += 1;
            streams[row].unit()
        };
        let choice = match how.temperature {
            0.0 => Choice::Greedy,
            temperature => Choice::Temperature(temperature, &mut random),
        };
        let mut watch = Watch::start(&device)?;
        let mut read = Ok(());
        let allowed = |row: &[i32]| how.allowed(row);
        let mut ready = || read = watch.lap("prompt");
        out = sample_tokens(pi, &observation, limits, choice, &allowed, &mut Taps::off(), &mut ready);
        read?;
        watch.lap("tokens")?;
        runs.push(watch.stop());
    }
    let steps = out.iter().map(Vec::len).max().unwrap_or(0);
    Ok(Sampled { chunk: Chunk::tokens(out), prepare_ms: 0.0, runs, steps })
}
