//! What a run of `pi0 sample` tells, as text and as JSON.

use std::fmt;

use serde::Serialize;

use super::chunk::Chunk;
use super::runs::{Run, Sampled, Stage};
use crate::cli::observation::Rows;
use crate::cli::output::grouped;
use crate::device::Precision;
use crate::model::Pi;
use crate::weights::open::Opened;

/// The whole account.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) source: Source,
    model: Model,
    /// `f32`, `train-bf16` or `serve-bf16`.
    precision: &'static str,
    device: String,
    observation: Seen,
    /// What the actions began as, and who told the horizon.
    noise: Option<String>,
    /// Euler steps, or the longest row's tokens.
    steps: usize,
    statistics: Option<Statistics>,
    load_ms: f64,
    /// Time embeddings and modulations, made once for all observations.
    prepare_ms: f64,
    /// The first, cold.
    first: Run,
    /// The others, warm.
    warm: Option<Warm>,
    /// Of each warm run in turn; of the first where it was the only one.
    chunk_ms: Vec<f64>,
    runs: Vec<Run>,
    #[serde(flatten)]
    pub(super) chunk: Chunk,
    /// Files that were written.
    pub(super) written: Vec<String>,
}

/// What was read.
#[derive(Debug, Default, Serialize)]
pub(super) struct Source {
    path: String,
    taken: String,
    format: String,
    scheme: String,
}

impl Source {
    pub(super) fn of(opened: &Opened, scheme: String) -> Self {
        let path = opened.path.display().to_string();
        Source { path, taken: opened.taken.clone(), format: opened.format.clone(), scheme }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} · {} · scheme {}", self.path, self.format, self.scheme)
    }
}

#[derive(Debug, Serialize)]
struct Model {
    family: &'static str,
    parameters: u64,
    action_dim: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Seen {
    from: String,
    rows: usize,
    cameras: Vec<String>,
    image: usize,
    prompt_length: usize,
    prompt_length_from: String,
    /// Of the first row.
    prompt_tokens: usize,
}

/// Of some values. Those that are not finite are counted and left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Spread {
    mean: f64,
    std: f64,
    min: f64,
    max: f64,
    not_finite: usize,
}

#[derive(Debug, Serialize)]
struct Statistics {
    all: Spread,
    /// Of each action dim.
    dims: Vec<Spread>,
}

/// Nearest-rank percentiles of the runs after the first.
#[derive(Debug, Serialize)]
struct Warm {
    runs: usize,
    p50_ms: f64,
    p99_ms: f64,
    /// Each stage's own median.
    stages_p50: Vec<Stage>,
}

impl Spread {
    fn of(values: impl Iterator<Item = f32>) -> Self {
        let (finite, odd): (Vec<f32>, Vec<f32>) = values.partition(|x| x.is_finite());
        let values: Vec<f64> = finite.into_iter().map(f64::from).collect();
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        let least = |sign: f64| values.iter().map(|x| sign * x).reduce(f64::min).unwrap_or(0.0) * sign;
        Spread { mean, std, min: least(1.0), max: least(-1.0), not_finite: odd.len() }
    }
}

fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (part * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

impl Warm {
    fn of(runs: &[Run]) -> Option<Self> {
        let first = runs.first()?;
        let mut totals: Vec<f64> = runs.iter().map(|run| run.total_ms).collect();
        let stage = |(i, stage): (usize, &Stage)| {
            let mut all: Vec<f64> = runs.iter().filter_map(|run| Some(run.stages.get(i)?.ms)).collect();
            Stage { name: stage.name, ms: percentile(&mut all, 0.5) }
        };
        Some(Warm {
            runs: runs.len(),
            p50_ms: percentile(&mut totals, 0.5),
            p99_ms: percentile(&mut totals, 0.99),
            stages_p50: first.stages.iter().enumerate().map(stage).collect(),
        })
    }
}

impl Report {
    /// Of what was sampled.
    pub(super) fn new(
        pi: &Pi,
        precision: Precision,
        device: &str,
        rows: &Rows,
        load_ms: f64,
        sampled: Sampled,
    ) -> Self {
        let statistics = match &sampled.chunk {
            Chunk::Actions { shape, values } => Some(Statistics {
                all: Spread::of(values.values.iter().copied()),
                dims: (0..shape[2])
                    .map(|dim| Spread::of(values.values.iter().skip(dim).step_by(shape[2]).copied()))
                    .collect(),
            }),
            Chunk::Tokens { .. } => None,
        };
        let first = sampled.runs.first().cloned().unwrap_or(Run { stages: vec![], total_ms: 0.0 });
        let seen = rows.images.iter().filter(|images| images.mask.contains(&true));
        Report {
            source: Source::default(),
            model: Model {
                family: pi.settings().family(),
                parameters: pi.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum(),
                action_dim: pi.settings().action_dim(),
            },
            precision: precision.name(),
            device: device.to_owned(),
            observation: Seen {
                from: String::new(),
                rows: rows.rows,
                cameras: seen.map(|images| images.name.clone()).collect(),
                image: rows.side,
                prompt_length: rows.prompt_length,
                prompt_length_from: String::new(),
                prompt_tokens: rows.mask.count(0),
            },
            noise: None,
            steps: sampled.steps,
            statistics,
            load_ms,
            prepare_ms: sampled.prepare_ms,
            first,
            chunk_ms: sampled.runs[usize::from(sampled.runs.len() > 1)..].iter().map(|run| run.total_ms).collect(),
            warm: Warm::of(sampled.runs.get(1..).unwrap_or_default()),
            runs: sampled.runs,
            chunk: sampled.chunk,
            written: vec![],
        }
    }

    /// Who told what.
    pub(super) fn told(&mut self, observation: &str, prompt_length: String, noise: Option<String>) {
        self.observation.from = observation.to_owned();
        self.observation.prompt_length_from = prompt_length;
        self.noise = noise;
    }

    /// Is every action a number?
    pub(super) fn finite(&self) -> bool {
        self.statistics.as_ref().is_none_or(|s| s.all.not_finite == 0)
    }

    fn stages(&self, stages: &[Stage], rows: usize) -> String {
        let spell = |stage: &Stage| {
            let each = stage.ms / self.steps.max(1) as f64;
            match stage.name {
                "steps" => format!("{} steps {:.1} ({each:.2} each)", self.steps, stage.ms),
                "tokens" if rows > 1 => format!("{} tokens a row {:.1} ({each:.2} each)", self.steps, stage.ms),
                "tokens" => format!("{} tokens {:.1} ({each:.2} each)", self.steps, stage.ms),
                "prompt" => format!("vision and prompt {:.1}", stage.ms),
                name => format!("{name} {:.1}", stage.ms),
            }
        };
        stages.iter().map(spell).collect::<Vec<_>>().join(" · ")
    }

    fn actions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Chunk::Actions { shape: [b, horizon, dim], .. }, Some(s)) = (&self.chunk, &self.statistics) else {
            return Ok(());
        };
        let a = &s.all;
        writeln!(
            f,
            "actions  {b}x{horizon}x{dim} · mean {:+.4} · std {:.4} · from {:+.4} to {:+.4}",
            a.mean, a.std, a.min, a.max
        )?;
        let column = |dim: usize, s: &Spread| {
            format!("{dim:>4}  {:>+8.3} ± {:<7.3} [{:+.3}, {:+.3}]", s.mean, s.std, s.min, s.max)
        };
        let lines: Vec<String> = s.dims.iter().enumerate().map(|(dim, s)| column(dim, s)).collect();
        let half = lines.len().div_ceil(2);
        writeln!(f, "         {:>4}  {:>8}   {:<7} range", "dim", "mean", "std")?;
        for (i, left) in lines.iter().take(half).enumerate() {
            let line = format!("         {left:<46}{}", lines.get(half + i).map_or("", String::as_str));
            writeln!(f, "{}", line.trim_end())?;
        }
        let odd: Vec<String> = s
            .dims
            .iter()
            .enumerate()
            .filter(|(_, s)| s.not_finite > 0)
            .map(|(dim, s)| format!("{dim} ({} values)", s.not_finite))
            .collect();
        if odd.is_empty() { Ok(()) } else { writeln!(f, "NOT FINITE in action dims {}", odd.join(", ")) }
    }

    fn tokens(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Chunk::Tokens { tokens, ended } = &self.chunk else { return Ok(()) };
        for (row, (tokens, ended)) in tokens.iter().zip(ended).enumerate() {
            let end = if *ended { "ended" } else { "did not end" };
            let some: Vec<String> = tokens.iter().take(12).map(i32::to_string).collect();
            let more = if tokens.len() > some.len() { " …" } else { "" };
            writeln!(f, "row {row:<4} {} tokens, {end}: {}{more}", tokens.len(), some.join(" "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, seen) = (&self.source, &self.observation);
        writeln!(f, "read     {source}")?;
        let (family, count) = (self.model.family, grouped(self.model.parameters));
        writeln!(f, "model    {family} · {count} parameters · precision {} · {}", self.precision, self.device)?;
        writeln!(
            f,
            "sees     {} · {} images of {}x{} · prompt of {} tokens, padded to {} ({})",
            seen.from,
            seen.cameras.len(),
            seen.image,
            seen.image,
            seen.prompt_tokens,
            seen.prompt_length,
            seen.prompt_length_from
        )?;
        if let Some(noise) = &self.noise {
            writeln!(f, "noise    {noise}")?;
        }
        self.actions(f)?;
        self.tokens(f)?;
        writeln!(f, "time     ms, device-synchronised · load {:.0} · prepare {:.1}", self.load_ms, self.prepare_ms)?;
        let first = &self.first;
        writeln!(f, "         first {:.1}: {}", first.total_ms, self.stages(&first.stages, seen.rows))?;
        if let Some(warm) = &self.warm {
            let stages = self.stages(&warm.stages_p50, seen.rows);
            let times = if warm.runs == 1 { "one more".to_owned() } else { format!("{} more", warm.runs) };
            writeln!(f, "         {times}: p50 {:.1} · p99 {:.1} · p50 of {stages}", warm.p50_ms, warm.p99_ms)?;
        }
        self.written.iter().try_for_each(|path| writeln!(f, "wrote    {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([percentile(&mut values, 0.5), percentile(&mut values, 0.99)], [50.0, 99.0]);
        assert_eq!(percentile(&mut [7.0], 0.99), 7.0);
    }

    #[test]
    fn what_is_not_finite_is_counted_apart() {
        let s = Spread::of([1.0, f32::NAN, 3.0, f32::INFINITY].into_iter());
        assert_eq!(s, Spread { mean: 2.0, std: 1.0, min: 1.0, max: 3.0, not_finite: 2 });
    }
}
