//! What a set of tensors is: model, variants, sizes, LoRA ranks, action dim. Read from the tensors alone.
//!
//! Invariant: nothing here comes from a path or a flag. What shapes cannot tell (action horizon, prompt length, how
//! state and actions are normalised) is not in it. Source: openpi 15a9616, models/gemma.py and models/siglip.py.

use remap::{Map, Options, Plan, Scheme, Tensor};
use serde::{Deserialize, Serialize};

/// A model, as far as its tensors tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anatomy {
    /// `pi0`, `pi05` or `pi0_fast`; `None` for a part of a model.
    pub model: Option<String>,
    /// Values in all tensors, tied copies and unread fillers not counted.
    pub parameters: u64,
    /// Width of a state or action vector; `None` where the model has no such projection.
    pub action_dim: Option<u64>,
    /// Rows of the embedding.
    pub vocabulary: Option<u64>,
    /// The vision tower.
    pub vision: Option<Tower>,
    /// PaliGemma's language model, then the action expert.
    pub experts: Vec<Expert>,
}

/// SigLIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tower {
    /// `so400m`, or `custom`.
    pub variant: String,
    /// Width.
    pub width: u64,
    /// Layers.
    pub depth: u64,
    /// Width of the MLP.
    pub mlp: u64,
    /// Attention heads, where known.
    pub heads: Option<u64>,
    /// Side of a patch, in pixels.
    pub patch: u64,
    /// Tokens of an image.
    pub tokens: u64,
}

/// One Gemma.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expert {
    /// openpi's name (`gemma_2b`, `gemma_300m_lora`, ...), or `custom`.
    pub variant: String,
    /// Width.
    pub width: u64,
    /// Layers.
    pub depth: u64,
    /// Width of the MLP.
    pub mlp: u64,
    /// Attention heads, where known.
    pub heads: Option<u64>,
    /// Key and value heads, where known.
    pub kv_heads: Option<u64>,
    /// Width of a head, where known.
    pub head_size: Option<u64>,
    /// Is its norm modulated by time?
    pub adaptive: bool,
    /// Ranks of its low-rank pairs, where it has any: attention, feed-forward.
    pub lora: Option<Ranks>,
}

/// LoRA ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranks {
    /// Of q, k, v and the output.
    pub attention: Option<u64>,
    /// Of gate, up and down.
    pub feed_forward: Option<u64>,
}

/// openpi's variants: name, width, depth, mlp.
const VARIANTS: [(&str, u64, u64, u64); 3] =
    [("dummy", 64, 4, 128), ("gemma_300m", 1024, 18, 4096), ("gemma_2b", 2048, 18, 16384)];

impl Anatomy {
    /// Reads it from tensors in a scheme.
    ///
    /// # Errors
    /// All faults of the set, as converting it would find them.
    pub fn read(map: &Map, tensors: &[Tensor], scheme: &Scheme, options: &Options) -> Result<Self, remap::Refused> {
        let burn = map.scheme("burn").unwrap_or(scheme);
        let keep = Options { lora: remap::Lora::Keep, cast: None, ..options.clone() };
        let plan = Plan::new(map, tensors, scheme, burn, &keep)?;
        let size = |zone: &str, by: Option<u64>, letter: char| plan.sizes.get(zone, by, letter);
        let vision = || {
            let (width, depth) = (size("img", None, 'D')?, size("img", None, 'L')?);
            let mlp = size("img", None, 'F')?;
            let variant = if (width, depth, mlp) == (1152, 27, 4304) { "so400m" } else { "custom" };
            Some(Tower {
                variant: variant.into(),
                width,
                depth,
                mlp,
                heads: size("img", None, 'N'),
                patch: size("img", None, 'P')?,
                tokens: size("img", None, 'S')?,
            })
        };
        let expert = |e: u64| {
            let (width, mlp) = (size("llm", Some(e), 'W')?, size("llm", Some(e), 'F')?);
            let depth = size("llm", None, 'L')?;
            let rank = |families: &[&str]| {
                plan.outputs.iter().find_map(|o| {
                    let rest = o.tensor.name.strip_prefix("llm.blocks.0.experts.")?;
                    let (expert, rest) = rest.split_once('.')?;
                    let (family, factor) = rest.split_once('.')?;
                    let ours = expert == e.to_string() && factor == "lora_a" && families.contains(&family);
                    ours.then(|| o.tensor.shape.last().copied()).flatten()
                })
            };
            let ranks = Ranks { attention: rank(&["q", "k", "v", "o"]), feed_forward: rank(&["gate", "up", "down"]) };
            let lora = (ranks.attention.is_some() || ranks.feed_forward.is_some()).then_some(ranks);
            let known = VARIANTS.iter().find(|(_, w, d, m)| (*w, *d, *m) == (width, depth, mlp));
            let variant = known.map_or("custom".to_owned(), |(name, ..)| {
                if lora.is_some() { format!("{name}_lora") } else { (*name).to_owned() }
            });
            Some(Expert {
                variant,
                width,
                depth,
                mlp,
                heads: size("llm", None, 'N'),
                kv_heads: size("llm", None, 'K'),
                head_size: size("llm", None, 'H'),
                adaptive: plan.canonical.contains_key(&format!("llm.norms.{e}.ada.weight")),
                lora,
            })
        };
        Ok(Anatomy {
            model: plan.model.clone(),
            parameters: plan.outputs.iter().map(|o| o.tensor.len()).sum(),
            action_dim: size("action_in_proj", None, 'X'),
            vocabulary: size("llm", None, 'V'),
            vision: vision(),
            experts: (0..2).map_while(expert).collect(),
        })
    }

    /// Does any expert have low-rank pairs?
    pub fn has_lora(&self) -> bool {
        self.experts.iter().any(|e| e.lora.is_some())
    }

    /// Head counts, as a plan wants them: what a converted file says of itself.
    pub fn heads(&self) -> std::collections::BTreeMap<(String, char), u64> {
        let mut heads = std::collections::BTreeMap::new();
        let mut tell = |zone: &str, letter, count: Option<u64>| {
            if let Some(count) = count {
                heads.insert((zone.to_owned(), letter), count);
            }
        };
        tell("img", 'N', self.vision.as_ref().and_then(|v| v.heads));
        if let Some(e) = self.experts.first() {
            tell("llm", 'N', e.heads);
            tell("llm", 'K', e.kv_heads);
        }
        heads
    }

    /// The model without its low-rank pairs: what merging or dropping them leaves.
    pub fn without_lora(&self, parameters: u64) -> Self {
        let mut plain = Anatomy { parameters, ..self.clone() };
        for expert in &mut plain.experts {
            expert.lora = None;
            expert.variant = expert.variant.trim_end_matches("_lora").to_owned();
        }
        plain
    }
}

impl std::fmt::Display for Anatomy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.model.as_deref().unwrap_or("part of a model"))?;
        let variants: Vec<&str> = self.experts.iter().map(|e| e.variant.as_str()).collect();
        if !variants.is_empty() {
            write!(f, " · {}", variants.join(" + "))?;
        }
        if let Some(dim) = self.action_dim {
            write!(f, " · action dim {dim}")?;
        }
        write!(f, " · {} parameters", grouped(self.parameters))
    }
}

/// `3238048528` as `3,238,048,528`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|c| std::str::from_utf8(c).ok()).collect();
    parts.join(",")
}
