//! Our own `config.json`: what the tensors tell, and what was told of the model besides.
//!
//! Members, in this order; `null` where nobody told:
//!
//! | member | meaning |
//! | --- | --- |
//! | `model` | `pi0`, `pi05` or `pi0_fast` |
//! | `action_dim` | width of a state or action vector inside the model |
//! | `action_horizon` | steps of an action chunk |
//! | `prompt_length` | tokens of a prompt; of pi0-FAST, prompt and action tokens together |
//! | `state` | where the model finds the state: `token`, `prompt`, or `none` |
//! | `normalization` | of state and actions: `z_score` or `quantile` |
//! | `anatomy` | what the tensors tell, as `pi0 inspect --json` prints it |
//!
//! Invariant: a reader needs no other file to build the model; told values never contradict the anatomy.

use anyhow::Result;
use serde::Serialize;

use super::{Companions, Kind, Request};
use crate::weights::anatomy::Anatomy;

#[derive(Serialize)]
struct Config<'a> {
    model: &'a str,
    action_dim: Option<u64>,
    action_horizon: Option<u64>,
    prompt_length: Option<u64>,
    state: &'a str,
    normalization: &'a str,
    anatomy: &'a Anatomy,
}

pub(super) fn add(made: &mut Companions, request: &Request<'_>, kind: Kind) -> Result<()> {
    let state = match kind {
        Kind::Pi0 => "token",
        _ if request.preset.is_some_and(|p| !p.discrete_state_input) => "none",
        _ => "prompt",
    };
    let config = Config {
        model: kind.name(),
        action_dim: request.action_dim(),
        action_horizon: request.told_horizon(),
        prompt_length: request.preset.map(|p| p.max_token_len),
        state,
        normalization: if kind.quantiles() { "quantile" } else { "z_score" },
        anatomy: request.anatomy,
    };
    let mut text = serde_json::to_vec_pretty(&config)?;
    text.push(b'\n');
    made.files.push(("config.json".into(), text));
    Ok(())
}
