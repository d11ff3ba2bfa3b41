//! `pi0 fast-tokenizer`: a FAST codec made of a dataset's own action chunks, and what encoding them costs.
//!
//! Invariant: nothing is written before the codec has been made and every chunk has been sent there and back.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::Answer;
use super::chunks::{self, free};
use super::output::Mouth;
use crate::policy::array::Array;
use crate::policy::fast::{Codec, Fit, RoundTrip, round_trip};
use crate::weights::convert::Progress as _;

const EXAMPLES: &str = "\
Examples:
  A codec of one's own, of what training with a preset normalises a dataset's actions to:
    pi0 fast-tokenizer fit --dataset ~/data/pen_uncap --config my_preset.toml --output fast/
    pi0 fast-tokenizer fit --dataset libero_10 --dataset libero_90 --config pi0_fast_libero --max-chunks 20000 --output fast/

  Or of normalised action chunks [n, steps, dimensions]:
    pi0 fast-tokenizer fit --chunks chunks.npy --output fast/
    pi0 fast-tokenizer fit --chunks chunks.safetensors --vocab-size 2048 --horizon 16 --output fast/

  One that can spell every action there will ever be, which Python's fit does not promise:
    pi0 fast-tokenizer fit --chunks chunks.npy --every-byte --output fast/

  How well does a codec fit these actions? (exit code 1 if some of them cannot be encoded)
    pi0 fast-tokenizer check --codec fast/ --dataset ~/data/pen_uncap --config my_preset.toml --norm-stats assets/mine
    pi0 fast-tokenizer check --codec fast/ --chunks chunks.npy

The folder has the layout of physical-intelligence/fast: tokenizer.json, processor_config.json, tokenizer_config.json.";

/// Make or check a FAST codec.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 fast-tokenizer --help")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub what: What,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// Make a codec of action chunks
    #[command(after_long_help = EXAMPLES)]
    Fit(FitArgs),
    /// Encode and decode action chunks, and tell what it costs
    #[command(after_long_help = EXAMPLES)]
    Check(CheckArgs),
}

/// Make a codec.
#[derive(Debug, clap::Args)]
pub struct FitArgs {
    /// Which chunks.
    #[command(flatten)]
    pub from: chunks::From,

    /// Folder to write
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,

    /// Tokens of the vocabulary
    #[arg(long, alias = "vocab_size", default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub vocab_size: u32,

    /// What coefficients are multiplied by before they are rounded: more is finer, and longer
    #[arg(long, default_value_t = 10.0, value_name = "FACTOR")]
    pub scale: f64,

    /// Let the vocabulary spell every byte, so that no action is ever lost
    #[arg(long)]
    pub every_byte: bool,

    /// Replace a folder that is there
    #[arg(long)]
    pub overwrite: bool,

    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
}

/// Check a codec.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Which chunks.
    #[command(flatten)]
    pub from: chunks::From,

    /// Folder of the codec
    #[arg(long, value_name = "DIR")]
    pub codec: PathBuf,

    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// Whether to answer as JSON.
    pub fn json(&self) -> bool {
        match &self.what {
            What::Fit(args) => args.json,
            What::Check(args) => args.json,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    codec: String,
    chunks: String,
    count: usize,
    horizon: usize,
    dim: usize,
    tokens: usize,
    scale: f64,
    min_token: i64,
    /// Of a fit.
    max_token: Option<i64>,
    unspelt: Vec<i64>,
    tokens_per_chunk: f64,
    longest: usize,
    /// Chunks that cannot be encoded, and the coefficients they fail on.
    lost: usize,
    unseen: Vec<i64>,
    clamped: usize,
    /// Of each dimension, normalised.
    max_error: Vec<f64>,
    rms_error: Vec<f64>,
    /// Of chunks of datasets: the same before normalising.
    #[serde(skip_serializing_if = "Option::is_none")]
    units: Option<InUnits>,
    warnings: Vec<String>,
}

/// Errors as they are before normalising.
#[derive(Debug, Serialize)]
struct InUnits {
    norm_stats: String,
    convention: &'static str,
    /// Of each dimension.
    max_error: Vec<f64>,
    rms_error: Vec<f64>,
}

/// Runs it.
///
/// # Errors
/// Chunks that cannot be read or encoded; a codec that cannot be read, made or written.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    match args.what {
        What::Fit(args) => fit(&args, mouth),
        What::Check(args) => check(&args, mouth),
    }
}

fn fit(args: &FitArgs, mouth: &Mouth) -> Result<Answer> {
    free(&args.output, args.overwrite)?;
    let chunks = args.from.read(mouth)?;
    let fit = Fit { scale: args.scale, vocab_size: args.vocab_size as usize, every_byte: args.every_byte };
    mouth.phase("fitting", 0);
    let fitted = fit.run(&chunks.all, |_| {})?;
    let told = there_and_back(&fitted.codec, &chunks.all, mouth)?;
    fitted.codec.save(&args.output)?;
    let mut report = report(args.output.display().to_string(), &fitted.codec, &chunks, told);
    report.max_token = Some(fitted.max_token);
    report.warnings.extend(fitted.warnings);
    if !fitted.unspelt.is_empty() {
        report.warnings.push(format!(
            "the vocabulary cannot spell the coefficients {}: an action that needs one of them is lost; --every-byte \
             makes a vocabulary that can",
            some(&fitted.unspelt)
        ));
    }
    report.unspelt = fitted.unspelt;
    mouth.say(&report, || words(&report))?;
    Ok(Answer::Yes)
}

fn check(args: &CheckArgs, mouth: &Mouth) -> Result<Answer> {
    let codec = Codec::open(&args.codec)?;
    let chunks = args.from.read(mouth)?;
    let told = there_and_back(&codec, &chunks.all, mouth)?;
    let report = report(args.codec.display().to_string(), &codec, &chunks, told);
    mouth.say(&report, || words(&report))?;
    Ok(if report.lost > 0 { Answer::No } else { Answer::Yes })
}

fn there_and_back(codec: &Codec, chunks: &[Array], mouth: &Mouth) -> Result<RoundTrip> {
    // The bar counts bytes: those of the actions in f32.
    let each = chunks.first().map_or(0, |chunk| chunk.values.len() as u64 * 4);
    mouth.phase("there and back", chunks.len() as u64 * each);
    Ok(round_trip(codec, chunks, |seen| mouth.at(seen as u64 * each))?)
}

fn report(codec_folder: String, codec: &Codec, chunks: &chunks::Chunks, told: RoundTrip) -> Report {
    let shape = chunks.all.first().map(|chunk| chunk.shape.clone()).unwrap_or_default();
    let mut warnings = vec![];
    if told.lost > 0 {
        warnings.push(format!(
            "{} of {} chunks cannot be encoded: no token spells the coefficients {}; fit a codec on these actions",
            told.lost,
            told.chunks,
            some(&told.unseen)
        ));
    }
    if told.clamped > 0 {
        warnings
            .push(format!("{} of {} chunks have coefficients below {}", told.clamped, told.chunks, codec.min_token));
    }
    let units = chunks.units.as_ref().map(|units| {
        let scaled = |errors: &[f64]| errors.iter().zip(&units.of).map(|(error, unit)| error * unit).collect();
        InUnits {
            norm_stats: units.norm_stats.clone(),
            convention: units.convention,
            max_error: scaled(&told.max),
            rms_error: scaled(&told.rms),
        }
    });
    Report {
        codec: codec_folder,
        chunks: chunks.source.clone(),
        count: told.chunks,
        horizon: shape.first().copied().unwrap_or_default(),
        dim: shape.get(1).copied().unwrap_or_default(),
        tokens: codec.len(),
        scale: codec.scale,
        min_token: codec.min_token,
        max_token: None,
        unspelt: vec![],
        tokens_per_chunk: told.tokens as f64 / told.chunks.max(1) as f64,
        longest: told.longest,
        lost: told.lost,
        unseen: told.unseen,
        clamped: told.clamped,
        max_error: told.max,
        rms_error: told.rms,
        units,
        warnings,
    }
}

/// The first of many.
fn some(values: &[i64]) -> String {
    let first: Vec<String> = values.iter().take(12).map(i64::to_string).collect();
    let more = values.len().saturating_sub(first.len());
    if more > 0 { format!("{} and {more} more", first.join(", ")) } else { first.join(", ") }
}

fn words(r: &Report) -> String {
    let mut t = String::new();
    let upto = r.max_token.map(|max| format!(" to {max}")).unwrap_or_default();
    let _ =
        writeln!(t, "{} · {} tokens · scale {} · coefficients from {}{upto}", r.codec, r.tokens, r.scale, r.min_token);
    let _ = writeln!(t, "{} · {} chunks of {} steps and {} dimensions", r.chunks, r.count, r.horizon, r.dim);
    let _ = writeln!(t, "{:.1} tokens a chunk, {} in the longest", r.tokens_per_chunk, r.longest);
    if let Some(units) = &r.units {
        let _ = writeln!(t, "norm stats: {}", units.norm_stats);
    }
    let and = r.units.as_ref().map(|units| format!(" | in {}", units.convention)).unwrap_or_default();
    let _ = writeln!(t, "there and back, in normalised units{and}:");
    for (d, (max, rms)) in r.max_error.iter().zip(&r.rms_error).enumerate() {
        let _ = write!(t, "  dimension {d:>2}  largest error {max:.4}  rms {rms:.4}");
        if let Some((max, rms)) = r.units.as_ref().and_then(|u| Some((u.max_error.get(d)?, u.rms_error.get(d)?))) {
            let _ = write!(t, "  | {max:.6}  {rms:.6}");
        }
        let _ = writeln!(t);
    }
    for warning in &r.warnings {
        let _ = writeln!(t, "warning: {warning}");
    }
    t
}
