//! How much memory a run takes, and how much a device has.
//!
//! Invariant: what cannot be told is not guessed: without a figure nothing is refused.

use std::collections::BTreeSet;
use std::process::Command;

use crate::model::Settings;
use crate::model::settings::Head;
use crate::train::memory::{Counts, Expert, Sizes, Vision};

/// What of a batch decides how much it takes.
pub(super) struct Batch {
    /// Rows that are computed at once.
    pub(super) rows: u64,
    /// Pictures of a row.
    pub(super) cameras: u64,
    /// Tokens of a prompt.
    pub(super) prompt: u64,
    /// Steps of a chunk.
    pub(super) horizon: u64,
    /// Does it compute in bf16?
    pub(super) bf16: bool,
    /// Are several parts added up?
    pub(super) accumulated: bool,
    /// Values that the optimizer keeps for each that is trained.
    pub(super) moments: u64,
    /// Is there a moving average?
    pub(super) ema: bool,
}

/// A model's and a batch's sizes.
pub(super) fn sizes(
    settings: &Settings,
    parameters: &[(String, Vec<usize>)],
    frozen: &BTreeSet<&str>,
    batch: &Batch,
) -> Sizes {
    let v = &settings.vision;
    let prefix = batch.cameras * v.tokens as u64 + batch.prompt;
    let suffix = match settings.head {
        Head::StateToken { .. } => batch.horizon + 1,
        Head::Adaptive { .. } => batch.horizon,
        Head::Tokens => 0,
    };
    let expert = |(e, x): (usize, &crate::model::settings::Expert)| Expert {
        width: x.width as u64,
        depth: x.depth as u64,
        mlp: x.mlp as u64,
        heads: x.heads as u64,
        kv_heads: x.kv_heads as u64,
        head_size: x.head_size as u64,
        tokens: if e == 0 { prefix } else { suffix },
    };
    let values = parameters.iter().map(|(name, shape)| (name.as_str(), shape.iter().product::<usize>() as u64));
    Sizes {
        vision: Vision {
            width: v.width as u64,
            depth: v.depth as u64,
            mlp: v.mlp as u64,
            heads: v.heads as u64,
            tokens: v.tokens as u64,
        },
        images: batch.cameras,
        experts: settings.experts.iter().enumerate().map(expert).collect(),
        logits: if settings.head == Head::Tokens { (batch.prompt, settings.vocabulary as u64) } else { (0, 0) },
        counts: Counts::of(values, frozen),
        batch: batch.rows,
        bf16: batch.bf16,
        accumulated: batch.accumulated,
        moments: batch.moments,
        ema: batch.ema,
    }
}

/// Bytes that a device can still give; `None` where nothing tells.
pub(super) fn available(device: &str) -> Option<u64> {
    let (kind, index) = device.split_once(':').unwrap_or((device, "0"));
    match kind {
        "cpu" => {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1 << 10)
        }
        "cuda" => {
            let query = ["--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", index];
            let told = Command::new("nvidia-smi").args(query).output().ok()?;
            String::from_utf8(told.stdout).ok()?.trim().parse::<u64>().ok()?.checked_mul(1 << 20)
        }
        _ => None,
    }
}
