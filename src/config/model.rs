//! `configs/model/*.toml` as the settings types that the rooms own: what a model is called, and what no tensor tells.
//!
//! Invariant: the files are part of the program; every name in them is openpi's.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::model::settings::{Expert, Head, Lora, Settings, Vision};
use crate::weights::companions::{Kind, Preset};

const VARIANTS: &str = include_str!("../../configs/model/variants.toml");
/// The published models.
const MODELS: [(&str, &str); 3] = [
    ("pi0", include_str!("../../configs/model/pi0.toml")),
    ("pi05", include_str!("../../configs/model/pi05.toml")),
    ("pi0_fast", include_str!("../../configs/model/pi0_fast.toml")),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variants {
    gemma: BTreeMap<String, Gemma>,
    siglip: BTreeMap<String, Siglip>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gemma {
    width: usize,
    depth: usize,
    mlp: usize,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    #[serde(default)]
    lora: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Siglip {
    width: usize,
    depth: usize,
    mlp: usize,
    heads: usize,
    patch: usize,
    image: usize,
}

/// A model file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    vocabulary: usize,
    vision: String,
    experts: Vec<String>,
    state: String,
    action_norm: String,
    head: String,
    action_dim: usize,
    action_horizon: usize,
    prompt_length: usize,
}

/// A model as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// What it is made of.
    pub settings: Settings,
    /// Actions of a chunk: no tensor tells.
    pub action_horizon: usize,
    /// Tokens of a prompt: no tensor tells.
    pub prompt_length: usize,
}

/// A published model by openpi's name.
///
/// # Errors
/// There is none of that name.
pub fn model(name: &str) -> Result<Model> {
    let names = || MODELS.map(|(name, _)| name).join(", ");
    let found = MODELS.iter().find(|(known, _)| *known == name);
    let (_, text) = found.with_context(|| format!("{name}: no such model; there are {}", names()))?;
    parse(text).with_context(|| format!("configs/model/{name}.toml"))
}

/// A preset's model in the sizes of its variants, SigLIP and the vocabulary as published.
///
/// # Errors
/// A variant that no file describes.
pub fn of(preset: &Preset) -> Result<Settings> {
    let base = match preset.model {
        Kind::Pi0 => "pi0",
        Kind::Pi05 => "pi05",
        Kind::Pi0Fast => "pi0_fast",
    };
    let mut settings = model(base)?.settings;
    let action_dim = usize::try_from(preset.action_dim).context("action_dim")?;
    settings.head = match settings.head {
        Head::StateToken { .. } => Head::StateToken { action_dim },
        Head::Adaptive { .. } => Head::Adaptive { action_dim },
        Head::Tokens => Head::Tokens,
    };
    let variants = [Some(&preset.paligemma_variant), preset.action_expert_variant.as_ref()];
    let experts = variants.into_iter().flatten().zip(settings.experts.clone());
    settings.experts = experts.map(|(name, old)| Ok(gemma(name)?.expert(old.adaptive))).collect::<Result<_>>()?;
    match settings.faults() {
        faults if faults.is_empty() => Ok(settings),
        faults => bail!("{}: {}", preset.name, faults.join("; ")),
    }
}

/// Rank of a variant's low-rank pairs; 0 is none.
///
/// # Errors
/// No file describes it.
pub fn rank(variant: &str) -> Result<usize> {
    Ok(gemma(variant)?.lora)
}

fn gemma(name: &str) -> Result<Gemma> {
    let mut variants: Variants = toml::from_str(VARIANTS).context("configs/model/variants.toml")?;
    variants.gemma.remove(name).with_context(|| format!("{name}: no such Gemma in variants.toml"))
}

impl Gemma {
    fn expert(&self, adaptive: bool) -> Expert {
        Expert {
            width: self.width,
            depth: self.depth,
            mlp: self.mlp,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            adaptive,
            lora: Lora { attention: self.lora, feed_forward: self.lora, scale: 1.0 },
        }
    }
}

/// A model file's text.
///
/// # Errors
/// Keys or variants that do not exist, choices that contradict each other.
pub fn parse(text: &str) -> Result<Model> {
    let document: Document = toml::from_str(text)?;
    let variants: Variants = toml::from_str(VARIANTS).context("configs/model/variants.toml")?;
    let siglip =
        variants.siglip.get(&document.vision).with_context(|| format!("{}: no such SigLIP", document.vision))?;
    let action_dim = document.action_dim;
    let head = match (document.head.as_str(), document.state.as_str(), document.action_norm.as_str()) {
        ("flow", "token", "scale") => Head::StateToken { action_dim },
        ("flow", "prompt", "adaptive") => Head::Adaptive { action_dim },
        ("tokens", "prompt", "none") => Head::Tokens,
        (head, state, norm) => bail!("no model has head = {head}, state = {state} and action_norm = {norm}"),
    };
    let expert = |(e, name): (usize, &String)| {
        let adaptive = e == 1 && matches!(head, Head::Adaptive { .. });
        let found = variants.gemma.get(name).with_context(|| format!("{name}: no such Gemma in variants.toml"))?;
        Ok(found.expert(adaptive))
    };
    let settings = Settings {
        vision: Vision {
            width: siglip.width,
            depth: siglip.depth,
            mlp: siglip.mlp,
            heads: siglip.heads,
            patch: siglip.patch,
            tokens: (siglip.image / siglip.patch).pow(2),
        },
        experts: document.experts.iter().enumerate().map(expert).collect::<Result<_>>()?,
        vocabulary: document.vocabulary,
        head,
    };
    match settings.faults() {
        faults if faults.is_empty() => {
            Ok(Model { settings, action_horizon: document.action_horizon, prompt_length: document.prompt_length })
        }
        faults => bail!("{}", faults.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_models_are_what_openpi_calls_them() {
        for (name, _) in MODELS {
            let model = model(name).expect("a model");
            assert_eq!(model.settings.family(), name);
            assert_eq!(model.settings.vision.image(), 224);
        }
        assert!(model("pi1").expect_err("no such model").to_string().contains("pi0, pi05, pi0_fast"));
    }

    #[test]
    fn a_choice_that_no_model_has_is_refused() {
        let text = MODELS[0].1.replace("\"adaptive\"", "\"scale\"").replace("\"token\"", "\"prompt\"");
        assert!(parse(&text).expect_err("contradictory").to_string().contains("no model has"));
    }
}
