//! openpi's training configurations by name: what a conversion can hold against the tensors.
//!
//! Source: openpi 15a9616, training/config.py, as data in `configs/train/`. Here only `[model]` is read; the rest is for
//! those who feed or train the model. Invariant: a preset never changes what tensors are; it can only contradict them, or
//! tell what no tensor tells.

use std::sync::LazyLock;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::weights::anatomy::{Anatomy, Expert};

/// A file of `configs/train/` by its name.
macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../configs/train/", $name, ".toml")))),*]
    };
}

/// Every preset's name and file, sorted by name: the one list of them.
pub const PRESETS: [(&str, &str); 31] = presets![
    "debug",
    "debug_pi05",
    "debug_restore",
    "paligemma_binning_droid",
    "paligemma_binning_droid_jointpos",
    "paligemma_diffusion_droid",
    "paligemma_fast_droid",
    "paligemma_fast_specialist_droid",
    "paligemma_vq_droid",
    "pi05_aloha",
    "pi05_aloha_pen_uncap",
    "pi05_droid",
    "pi05_droid_finetune",
    "pi05_droid_jointpos_polaris",
    "pi05_full_droid_finetune",
    "pi05_libero",
    "pi0_aloha",
    "pi0_aloha_pen_uncap",
    "pi0_aloha_sim",
    "pi0_aloha_towel",
    "pi0_aloha_tupperware",
    "pi0_droid",
    "pi0_droid_jointpos_100k_polaris",
    "pi0_droid_jointpos_polaris",
    "pi0_fast_droid",
    "pi0_fast_droid_jointpos_polaris",
    "pi0_fast_full_droid_finetune",
    "pi0_fast_libero",
    "pi0_fast_libero_low_mem_finetune",
    "pi0_libero",
    "pi0_libero_low_mem_finetune",
];

/// A broken file is kept as its message: it is ours, and a test reads it.
static ALL: LazyLock<Result<Vec<Preset>, String>> =
    LazyLock::new(|| PRESETS.iter().map(|(name, text)| parse(name, text)).collect());

/// The three models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `pi0`
    Pi0,
    /// `pi05`
    Pi05,
    /// `pi0_fast`
    Pi0Fast,
}

impl Kind {
    /// The kind that an [`Anatomy`] names; `None` for a part of a model.
    pub fn of(anatomy: &Anatomy) -> Option<Self> {
        [Kind::Pi0, Kind::Pi05, Kind::Pi0Fast].into_iter().find(|k| anatomy.model.as_deref() == Some(k.name()))
    }

    /// `pi0`, `pi05` or `pi0_fast`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pi0 => "pi0",
            Kind::Pi05 => "pi05",
            Kind::Pi0Fast => "pi0_fast",
        }
    }

    /// Steps of an action chunk as published.
    pub fn action_horizon(self) -> u64 {
        match self {
            Kind::Pi0 | Kind::Pi05 => 50,
            Kind::Pi0Fast => 32,
        }
    }

    /// Are state and actions scaled by quantiles (or else by mean and deviation)? openpi decides it by the model.
    pub fn quantiles(self) -> bool {
        self != Kind::Pi0
    }
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
    /// Tokens of a prompt; of pi0-FAST, prompt and action tokens together.
    pub max_token_len: u64,
    /// Variant of the language model.
    pub paligemma_variant: String,
    /// Variant of the action expert, where the model has one.
    pub action_expert_variant: Option<String>,
    /// Does the state stand in the prompt?
    pub discrete_state_input: bool,
    /// What turns actions into tokens, where the model speaks in tokens: `fast`, `fast_specialist`, `binning`, `fsq`.
    pub action_tokenizer: Option<String>,
    /// Where that is, if it is not the usual place.
    pub action_tokenizer_path: Option<String>,
}

/// A preset as it stands in its file.
#[derive(Deserialize)]
struct File {
    model: Entry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "type")]
    model: Kind,
    action_dim: u64,
    action_horizon: u64,
    max_token_len: u64,
    paligemma_variant: String,
    action_expert_variant: Option<String>,
    discrete_state_input: Option<bool>,
    action_tokenizer: Option<String>,
    action_tokenizer_path: Option<String>,
}

fn parse(name: &str, text: &str) -> Result<Preset, String> {
    let File { model: e } = toml::from_str(text).map_err(|error| format!("{name}: {error}"))?;
    Ok(Preset {
        name: name.to_owned(),
        model: e.model,
        action_dim: e.action_dim,
        action_horizon: e.action_horizon,
        max_token_len: e.max_token_len,
        paligemma_variant: e.paligemma_variant,
        action_expert_variant: e.action_expert_variant,
        discrete_state_input: e.discrete_state_input.unwrap_or(e.model == Kind::Pi0Fast),
        action_tokenizer: e.action_tokenizer,
        action_tokenizer_path: e.action_tokenizer_path,
    })
}

impl Preset {
    /// A preset's `[model]`, from its file's text.
    ///
    /// # Errors
    /// What the text is not.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        parse(name, text).map_err(anyhow::Error::msg)
    }

    /// All of them, sorted by name.
    ///
    /// # Errors
    /// The file with them is broken.
    pub fn all() -> Result<&'static [Self]> {
        match &*ALL {
            Ok(presets) => Ok(presets),
            Err(message) => bail!("{message}"),
        }
    }

    /// The configuration with this name.
    ///
    /// # Errors
    /// None has it: the nearest names.
    pub fn named(name: &str) -> Result<&'static Self> {
        let all = Self::all()?;
        if let Some(preset) = all.iter().find(|p| p.name == name) {
            return Ok(preset);
        }
        let mut near: Vec<(usize, &str)> = all.iter().map(|p| (distance(name, &p.name), p.name.as_str())).collect();
        near.sort_unstable();
        let near: Vec<&str> = near.iter().take(3).map(|(_, name)| *name).collect();
        bail!("{name}: openpi has no configuration of this name; the nearest are {}", near.join(", "))
    }

    /// Holds it against tensors. What the tensors do not tell is not held against them, and a configuration with
    /// low-rank pairs may be named for weights into which they were merged.
    ///
    /// # Errors
    /// What contradicts it.
    pub fn check(&self, anatomy: &Anatomy) -> Result<(), String> {
        let name = &self.name;
        if let Some(found) = Kind::of(anatomy).filter(|found| *found != self.model) {
            return Err(format!("{name} is a {}; these tensors are a {}", self.model.name(), found.name()));
        }
        let mut wrong = vec![];
        if let Some(found) = anatomy.action_dim.filter(|found| *found != self.action_dim) {
            wrong.push(format!("{name} has {} values in an action; these tensors have {found}", self.action_dim));
        }
        let told =
            [("language model", Some(&self.paligemma_variant)), ("action expert", self.action_expert_variant.as_ref())];
        for ((what, told), expert) in told.into_iter().zip(&anatomy.experts) {
            let Some(told) = told else {
                wrong.push(format!("{name} has no {what}; these tensors have one"));
                continue;
            };
            if told.trim_end_matches("_lora") != expert.variant.trim_end_matches("_lora") {
                wrong.push(format!("the {what} of {name} is {told}; of these tensors it is {}", described(expert)));
            } else if expert.lora.is_some() && !told.ends_with("_lora") {
                wrong.push(format!("the {what} of {name} has no LoRA; of these tensors it has"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

fn described(expert: &Expert) -> String {
    match expert.variant.trim_end_matches("_lora") {
        "custom" => format!("custom (width {}, depth {}, mlp {})", expert.width, expert.depth, expert.mlp),
        _ => expert.variant.clone(),
    }
}

/// Letters to insert, delete or change to make one name of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
