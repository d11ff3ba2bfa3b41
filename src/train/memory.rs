//! What a run will need in memory, by part, before it begins: an estimate from sizes alone.
//!
//! Kept all the time: weights (trained ones f32, frozen ones bf16), gradients, moments, the moving average. Of activations
//! a step keeps the input of every block and recomputes one block at a time; a block is counted with all that its forward
//! makes and as much again for the way back. Then the update needs room for a piece of a parameter; the two never stand
//! side by side, so the greater one counts. Invariant: linear in the batch, so the largest batch that fits can be told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// Bytes of f32 and bf16.
const F32: u64 = 4;
const BF16: u64 = 2;
/// What an optimizer's step makes of one parameter besides its gradient: a moment's hat, its root, the update.
const UPDATE: u64 = 3;
/// Values of a parameter that are updated at once: a longer one is updated piece by piece.
pub const PIECE: usize = 1 << 25;
/// Logits, their softmax, and the gradient of the logits.
const LOGITS: u64 = 3;
/// Part of what comes and goes that an allocator's pages waste.
const WASTE: u64 = 16;

/// SigLIP's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vision {
    /// D.
    pub width: u64,
    /// L.
    pub depth: u64,
    /// F.
    pub mlp: u64,
    /// N.
    pub heads: u64,
    /// Tokens of an image.
    pub tokens: u64,
}

/// A Gemma's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expert {
    /// W.
    pub width: u64,
    /// L.
    pub depth: u64,
    /// F.
    pub mlp: u64,
    /// N.
    pub heads: u64,
    /// K.
    pub kv_heads: u64,
    /// H.
    pub head_size: u64,
    /// Tokens that it reads of an example.
    pub tokens: u64,
}

/// How many values of which kind a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// In parameters that are trained.
    pub trainable: u64,
    /// In those that are not.
    pub frozen: u64,
    /// In the largest one that is trained.
    pub largest: u64,
    /// In the largest block, all its experts together.
    pub block: u64,
}

/// What decides how much a run needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// SigLIP.
    pub vision: Vision,
    /// Images of an example.
    pub images: u64,
    /// PaliGemma's Gemma, then the action expert.
    pub experts: Vec<Expert>,
    /// Tokens whose logits the loss reads, of an example, and V; 0 where the loss is a flow's.
    pub logits: (u64, u64),
    /// Values in parameters.
    pub counts: Counts,
    /// Examples that are computed at once: a batch, or a part of one.
    pub batch: u64,
    /// Is a step's gradient summed up of several parts?
    pub accumulated: bool,
    /// Does the network compute in bf16 (or in f32)?
    pub bf16: bool,
    /// Values that the optimizer keeps for each that is trained: AdamW 2, SGD with momentum 1.
    pub moments: u64,
    /// Is there a moving average?
    pub ema: bool,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What.
    pub name: &'static str,
    /// How much.
    pub bytes: u64,
    /// Is it there all the time, or only while a step is computed, or only while it is taken?
    pub when: When,
}

/// When a part is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// All the time.
    Always,
    /// Forward and back.
    Backward,
    /// While weights are changed.
    Update,
}

/// The whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Line by line.
    pub parts: Vec<Part>,
    /// Bytes at the worst moment.
    pub total: u64,
    /// Examples that are computed at once.
    pub batch: u64,
    /// Bytes that every further example costs.
    pub example: u64,
}

/// It does not fit.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("memory: expected {needed} GB at most at once, found {available} GB; {hint}")]
pub struct TooLarge {
    needed: String,
    available: String,
    hint: String,
}

impl Counts {
    /// Of a model's parameters: canonical name and number of values.
    pub fn of<'a>(parameters: impl IntoIterator<Item = (&'a str, u64)>, frozen: &BTreeSet<&str>) -> Self {
        let mut counts = Counts::default();
        let mut blocks: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, values) in parameters {
            if frozen.contains(name) {
                counts.frozen += values;
            } else {
                counts.trainable += values;
                counts.largest = counts.largest.max(values);
            }
            // `llm.blocks.3.experts...` and `img.blocks.3.attn...`: up to the layer's number.
            if let Some((at, _)) = name.match_indices('.').nth(2).filter(|_| name.contains(".blocks.")) {
                *blocks.entry(&name[..at]).or_default() += values;
            }
        }
        counts.block = blocks.into_values().max().unwrap_or_default();
        counts
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        self.trainable + self.frozen
    }
}

impl Sizes {
    /// The plan.
    pub fn plan(&self) -> Memory {
        let counts = self.counts;
        let width = if self.bf16 { BF16 } else { F32 };
        let tokens: u64 = self.experts.iter().map(|e| e.tokens).sum();
        let pictures = self.images * self.batch;
        let kept = pictures * self.vision.depth * self.vision.tokens * self.vision.width * width
            + self.experts.iter().map(|e| self.batch * e.depth * e.tokens * e.width * width).sum::<u64>();
        let vision = pictures * self.vision.block(width);
        let language = self.batch
            * (self.experts.iter().map(|e| e.block(width)).sum::<u64>()
                + self.experts.first().map_or(0, |e| e.scores(tokens, width)));
        let logits = self.batch * self.logits.0 * self.logits.1 * F32 * LOGITS;
        // A block's weights in the dtype of its activations, and their gradients as they come.
        let weights = if self.bf16 { 2 * counts.block * BF16 } else { 0 };
        // Tied to the embedding, the logits' gradient of it comes on top of the embedding's own.
        let tied = if logits > 0 && counts.frozen == 0 { counts.largest * F32 } else { 0 };
        let gradients = counts.trainable * F32 * if self.accumulated { 2 } else { 1 };
        let always = [
            ("trained weights, f32", counts.trainable * F32),
            ("frozen weights, bf16", counts.frozen * BF16),
            ("gradients, f32", gradients),
            ("optimizer's moments, f32", counts.trainable * F32 * self.moments),
            ("moving average, f32", if self.ema { counts.trainable * F32 } else { 0 }),
        ];
        let waste = |bytes: u64| bytes / WASTE;
        let passing = kept + 2 * vision.max(language) + logits;
        let backward = [
            ("inputs of all blocks", kept),
            ("one block, forth and back", 2 * vision.max(language)),
            ("logits, f32", logits),
            ("one block's weights and gradients, bf16", weights),
            ("the tied embedding's second gradient, f32", tied),
            ("waste", waste(passing + weights + tied)),
        ];
        // And the pieces of weight, gradient and average themselves.
        let update = counts.largest.min(PIECE as u64) * F32 * (UPDATE + 3);
        let update = [("one piece's update, f32", update + waste(update))];
        let part = |when| move |(name, bytes)| Part { name, bytes, when };
        let parts: Vec<Part> = (always.into_iter().map(part(When::Always)))
            .chain(backward.into_iter().map(part(When::Backward)))
            .chain(update.into_iter().map(part(When::Update)))
            .filter(|part| part.bytes > 0)
            .collect();
        let sum = |when| parts.iter().filter(|p| p.when == when).map(|p| p.bytes).sum::<u64>();
        let total = sum(When::Always) + sum(When::Backward).max(sum(When::Update));
        Memory { total, parts, batch: self.batch, example: (passing + waste(passing)) / self.batch.max(1) }
    }
}

impl Vision {
    /// Bytes of what one block makes of one image.
    fn block(&self, width: u64) -> u64 {
        // Two norms, q, k, v, what is attended to, the output, two sums, down: ten of width D; up and its GELU.
        let rows = self.tokens * (10 * self.width + 2 * self.mlp) * width;
        // Logits and softmax are in the dtype of the activations here.
        rows + 2 * self.heads * self.tokens * self.tokens * width
    }
}

impl Expert {
    /// Bytes of what one block makes of this expert's tokens of one example, without the scores.
    fn block(&self, width: u64) -> u64 {
        let heads = 2 * self.heads * self.head_size + 2 * self.kv_heads * self.head_size;
        // Norms, outputs and sums: six of width W; the norms' squares in f32; gate, its GELU, up, their product.
        self.tokens * ((6 * self.width + heads + 4 * self.mlp) * width + 2 * self.width * F32)
    }

    /// Bytes of the scores of one example: logits and softmax in f32, then cast.
    fn scores(&self, tokens: u64, width: u64) -> u64 {
        self.heads * tokens * tokens * (2 * F32 + width)
    }
}

impl Memory {
    /// Does it fit?
    ///
    /// # Errors
    /// It does not: what would.
    pub fn fits(&self, available: u64) -> Result<(), TooLarge> {
        if self.total <= available {
            return Ok(());
        }
        let rest = self.total.saturating_sub(self.example * self.batch);
        let most = available.saturating_sub(rest) / self.example.max(1);
        let hint = if most > 0 {
            format!(
                "{} examples at once would fit, {} would not: cut the batch with gradient_accumulation",
                most.min(self.batch.saturating_sub(1)),
                self.batch
            )
        } else {
            "not even one example at once would fit: train low-rank pairs (a preset with _low_mem_finetune), freeze more, \
             or leave out the moving average (ema_decay=None)"
                .to_owned()
        };
        Err(TooLarge { needed: gigabytes(self.total), available: gigabytes(available), hint })
    }
}

/// In units of 10⁹ bytes.
fn gigabytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e9)
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.parts.iter().map(|p| p.name.chars().count()).max().unwrap_or_default();
        let mut last = None;
        for part in &self.parts {
            if last != Some(part.when) {
                writeln!(
                    f,
                    "{}",
                    match part.when {
                        When::Always => "all the time",
                        When::Backward => "while a step is computed",
                        When::Update => "while weights are changed",
                    }
                )?;
                last = Some(part.when);
            }
            writeln!(f, "  {:<widest$} {:>8} GB", part.name, gigabytes(part.bytes))?;
        }
        let at_once = if self.batch == 1 { "1 example".to_owned() } else { format!("{} examples", self.batch) };
        write!(
            f,
            "at the worst moment {} GB, {at_once} at once; each further one {} GB",
            gigabytes(self.total),
            gigabytes(self.example)
        )
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
