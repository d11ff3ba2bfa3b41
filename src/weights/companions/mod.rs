//! The files that go along with weights, as values: configuration, processors and normalisation statistics, each in
//! the form that the reader of a scheme expects. Nothing is written here.
//!
//! Invariant: the same request gives the same bytes, on every machine and at every time.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use orbax::Dtype;

use super::anatomy::{Anatomy, grouped};
use crate::policy::norm_stats::NormStats;

mod giga;
mod json;
mod lerobot;
mod native;
mod openpi_torch;
mod preset;
#[cfg(test)]
mod tests;

pub use preset::{Kind, PRESETS, Preset};

/// Files beside the weights, and what a reader should know about them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Companions {
    /// Path relative to the output folder, and content.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// Sentences for the report.
    pub notes: Vec<String>,
}

/// What the companions are made of.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Of what is written: after merging low-rank pairs.
    pub anatomy: &'a Anatomy,
    /// Of the written weights: the commonest float type.
    pub dtype: Dtype,
    /// openpi's configuration, if the user named it.
    pub preset: Option<&'a Preset>,
    /// Steps of an action chunk, as told by the user.
    pub action_horizon: Option<u64>,
    /// One per asset id.
    pub stats: &'a [NormStats],
    /// Which of them takes the single place that the target has.
    pub asset_id: Option<&'a str>,
}

/// The companions of weights in a scheme. Every scheme gets the statistics as they are, under
/// `assets/<asset_id>/norm_stats.json`. A part of a model gets nothing else: no configuration would be true of it.
///
/// # Errors
/// A scheme that does not exist; what the target cannot represent; several asset ids where it has room for one, and
/// none chosen; an asset id that is not there.
pub fn companions(scheme: &str, request: &Request<'_>) -> Result<Companions> {
    if let Some(id) = request.asset_id {
        ensure!(request.stats.iter().any(|s| s.asset_id == id), "--asset-id {id}: {}", request.there_are());
    }
    ensure!(request.action_horizon != Some(0), "--action-horizon 0: an action chunk has at least one step");
    let mut made = Companions::default();
    let known = ["jax", "big_vision", "burn", "openpi-torch", "lerobot", "giga"];
    ensure!(known.contains(&scheme), "{scheme}: no such scheme; there are {}", known.join(", "));
    match (scheme, Kind::of(request.anatomy)) {
        ("jax" | "big_vision", _) => {}
        (_, None) => made.notes.push("part of a model: no configuration is written beside it".into()),
        ("burn", Some(kind)) => native::add(&mut made, request, kind)?,
        ("openpi-torch", Some(kind)) => openpi_torch::add(&mut made, request, kind),
        ("lerobot", Some(kind)) => lerobot::add(&mut made, request, kind)?,
        (_, Some(kind)) => giga::add(&mut made, request, kind),
    }
    for stats in request.stats {
        made.files.push((place(&stats.asset_id)?, stats.text.clone()));
    }
    Ok(made)
}

/// Where the statistics of an asset id lie.
fn place(asset_id: &str) -> Result<PathBuf> {
    let inside = Path::new(asset_id).components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(inside, "asset id {asset_id}: it would lie outside of assets");
    Ok(Path::new("assets").join(asset_id).join("norm_stats.json"))
}

impl<'a> Request<'a> {
    /// The statistics for a target that has room for one.
    fn chosen(&self) -> Result<Option<&'a NormStats>> {
        match (self.asset_id, self.stats) {
            (Some(id), stats) => {
                let found = stats.iter().find(|s| s.asset_id == id);
                found.map(Some).with_context(|| format!("--asset-id {id}: {}", self.there_are()))
            }
            (None, []) => Ok(None),
            (None, [one]) => Ok(Some(one)),
            (None, _) => {
                bail!(
                    "the target has room for the norm stats of one robot: choose it with --asset-id; {}",
                    self.there_are()
                )
            }
        }
    }

    fn there_are(&self) -> String {
        let ids: Vec<&str> = self.stats.iter().map(|s| s.asset_id.as_str()).collect();
        if ids.is_empty() { "there are no norm stats".into() } else { format!("there are {}", ids.join(", ")) }
    }

    /// Steps of an action chunk, if the user or the preset tells. The user's word counts more.
    fn told_horizon(&self) -> Option<u64> {
        self.action_horizon.or(self.preset.map(|p| p.action_horizon))
    }

    /// Steps of an action chunk for a file that cannot leave it open.
    fn horizon(&self, kind: Kind, made: &mut Companions) -> u64 {
        self.told_horizon().unwrap_or_else(|| {
            let steps = kind.action_horizon();
            made.notes.push(format!(
                "no tensor tells how many steps an action chunk has: config.json says {steps}, as the published {} has; \
                 --action-horizon or --config-name tells it otherwise",
                kind.name()
            ));
            steps
        })
    }

    /// Width of a state or action vector inside the model; a model without projections has it from the preset.
    fn action_dim(&self) -> Option<u64> {
        self.anatomy.action_dim.or(self.preset.map(|p| p.action_dim))
    }

    /// Variant of an expert: `gemma_2b`, without its low-rank pairs.
    fn variant(&self, expert: usize) -> Option<&'a str> {
        self.anatomy.experts.get(expert).map(|e| e.variant.trim_end_matches("_lora"))
    }

    /// What of this model has another size than the published ones, whose sizes some readers have built in.
    fn unusual(&self) -> Vec<String> {
        let mut odd = vec![];
        for (i, (what, usual)) in [("language model", "gemma_2b"), ("action expert", "gemma_300m")].iter().enumerate() {
            if let Some(found) = self.variant(i).filter(|found| found != usual) {
                odd.push(format!("{what} {found}, not {usual}"));
            }
        }
        if let Some(vision) = self.anatomy.vision.as_ref().filter(|v| v.variant != "so400m") {
            odd.push(format!("vision {}, not so400m", vision.variant));
        }
        if let Some(tokens) = self.anatomy.vision.as_ref().map(|v| v.tokens).filter(|tokens| *tokens != 256) {
            odd.push(format!("{tokens} tokens an image, not 256"));
        }
        if let Some(rows) = self.anatomy.vocabulary.filter(|rows| *rows != 257_152) {
            odd.push(format!("a vocabulary of {}, not 257,152", grouped(rows)));
        }
        odd
    }
}
