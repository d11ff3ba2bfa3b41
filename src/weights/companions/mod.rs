//! The files that go along with weights, as values: configuration, processors and normalisation statistics, each in
//! the form that the reader of a scheme expects. Nothing is written here.
//!
//! Invariant: the same request gives the same bytes, on every machine and at every time.

use std::path::PathBuf;

use anyhow::Result;
use orbax::Dtype;

use super::anatomy::Anatomy;
use super::norm_stats::NormStats;

mod preset;

pub use preset::{Kind, Preset};

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

/// The companions of weights in a scheme.
///
/// # Errors
/// What the target cannot represent; several asset ids where it has room for one, and none chosen.
pub fn companions(_scheme: &str, _request: &Request<'_>) -> Result<Companions> {
    Ok(Companions::default())
}
