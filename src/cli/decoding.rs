//! How pi0-FAST decodes, for every verb that lets it.
//!
//! Invariant: left out, everything is as openpi has it: 256 tokens at most, the likeliest each time.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::policy::Policy;
use super::sample::runs::Decoding;
use crate::model::fast::Next;
use crate::policy::fast::Grammar;
use crate::sample::tokens::Stop;

/// Tokens at most, if nothing else was said.
const MAX_DECODING_STEPS: usize = 256;

/// How tokens are decoded.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(id = "decoding")]
#[command(next_help_heading = "Decoding of pi0-FAST")]
pub struct Args {
    /// Tokens to decode at most (default: 256)
    #[arg(long, alias = "max_decoding_steps", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub max_decoding_steps: Option<u64>,

    /// 0 takes the likeliest token (default: 0)
    #[arg(long, value_name = "T", value_parser = parse_temperature)]
    pub temperature: Option<f32>,

    /// Choose only among tokens that can become an action chunk
    #[arg(long, requires = "config")]
    pub constrained: bool,

    /// Where decoded tokens stand (default: reference)
    #[arg(long, value_enum)]
    pub positions: Option<Positions>,

    /// When rows end (default: all-at-once)
    #[arg(long, value_enum)]
    pub stop: Option<StopChoice>,
}

/// Where decoded tokens stand.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Positions {
    /// As openpi decodes: one position is skipped
    Reference,
    /// One after another
    Fixed,
}

/// When rows end.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StopChoice {
    /// As openpi: when all rows emit the end in the same step
    AllAtOnce,
    /// Each at its own end
    EachRow,
}

fn parse_temperature(text: &str) -> Result<f32> {
    let temperature: f32 = text.parse()?;
    ensure!(temperature.is_finite() && temperature >= 0.0, "a temperature is 0 or more");
    Ok(temperature)
}

impl Args {
    fn most(&self) -> usize {
        self.max_decoding_steps.map_or(MAX_DECODING_STEPS, |n| n as usize)
    }

    /// Flags, and whether each was told: for a model that decodes no tokens.
    pub(super) fn told(&self) -> [(&'static str, bool); 5] {
        [
            ("--max-decoding-steps", self.max_decoding_steps.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--positions", self.positions.is_some()),
            ("--stop", self.stop.is_some()),
            ("--constrained", self.constrained),
        ]
    }

    /// What may be said, if not everything.
    ///
    /// # Errors
    /// The policy has no FAST codec, or its chunks do not fit into so few tokens.
    pub(super) fn grammar(&self, policy: &Policy, horizon: usize) -> Result<Option<Grammar>> {
        if !self.constrained {
            return Ok(None);
        }
        let words = policy.words.as_ref().with_context(|| {
            format!("--constrained: {} has no FAST codec, whose tokens could be chosen among", policy.preset.name)
        })?;
        let dim = policy.preset.model.action_dim as usize;
        Ok(Some(Grammar::new(words, horizon, dim, Some(self.most()))?))
    }

    /// With chance that begins at `seed`.
    pub(super) fn with<'a>(&self, seed: u64, grammar: Option<&'a Grammar>) -> Decoding<'a> {
        Decoding {
            max_decoding_steps: self.most(),
            stop: match self.stop {
                Some(StopChoice::EachRow) => Stop::EachRow,
                _ => Stop::AllAtOnce,
            },
            next: match self.positions {
                Some(Positions::Fixed) => Next::Fixed,
                _ => Next::Reference,
            },
            temperature: self.temperature.unwrap_or(0.0),
            seed,
            grammar,
        }
    }
}
