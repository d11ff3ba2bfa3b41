//! What a model is made of: sizes and the few choices in which the three models differ. Sizes come from a checkpoint's
//! tensors or from `configs/model/*.toml`; nothing in this room has one written down.

use serde::{Deserialize, Serialize};

/// A whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// SigLIP.
    pub vision: Vision,
    /// PaliGemma's Gemma, then the action expert where there is one.
    pub experts: Vec<Expert>,
    /// Rows of the embedding, V.
    pub vocabulary: usize,
    /// How states and actions come in and go out.
    pub head: Head,
}

/// SigLIP, a vision transformer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vision {
    /// D.
    pub width: usize,
    /// L.
    pub depth: usize,
    /// F.
    pub mlp: usize,
    /// N.
    pub heads: usize,
    /// Side of a patch, pixels.
    pub patch: usize,
    /// Tokens of an image: patches along its side, squared.
    pub tokens: usize,
}

impl Vision {
    /// Side of the square input image, pixels.
    pub fn image(&self) -> usize {
        self.tokens.isqrt() * self.patch
    }
}

/// One Gemma. All experts of a model share depth, heads, kv_heads and head_size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expert {
    /// W.
    pub width: usize,
    /// L.
    pub depth: usize,
    /// F.
    pub mlp: usize,
    /// N.
    pub heads: usize,
    /// K.
    pub kv_heads: usize,
    /// H.
    pub head_size: usize,
    /// Are its norms modulated by the time (AdaRMS)?
    pub adaptive: bool,
    /// Low-rank pairs, not merged.
    pub lora: Lora,
}

/// Ranks of an expert's low-rank pairs; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Of q, k, v and o.
    pub attention: usize,
    /// Of gate, up and down.
    pub feed_forward: usize,
    /// Factor of the attention's pairs, alpha / rank; openpi's feed-forward has none.
    pub scale: f64,
}

impl Default for Lora {
    fn default() -> Self {
        Lora { attention: 0, feed_forward: 0, scale: 1.0 }
    }
}

/// How states and actions come in and go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// pi0: the state is the first token of the suffix, time is mixed into the action tokens.
    StateToken {
        /// A, width of a state or an action.
        action_dim: usize,
    },
    /// pi0.5: the state is text in the prompt, time modulates the action expert's norms.
    Adaptive {
        /// A, width of a state or an action.
        action_dim: usize,
    },
    /// pi0-FAST: actions are text after the prompt; there is no action expert.
    Tokens,
}

impl Settings {
    /// openpi's name of the family: `pi0`, `pi05`, `pi0_fast`.
    pub fn family(&self) -> &'static str {
        match self.head {
            Head::StateToken { .. } => "pi0",
            Head::Adaptive { .. } => "pi05",
            Head::Tokens => "pi0_fast",
        }
    }

    /// A, where states and actions are vectors.
    pub fn action_dim(&self) -> Option<usize> {
        match self.head {
            Head::StateToken { action_dim } | Head::Adaptive { action_dim } => Some(action_dim),
            Head::Tokens => None,
        }
    }

    /// What contradicts itself in these settings: a sentence each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = vec![];
        let experts = if self.head == Head::Tokens { 1 } else { 2 };
        if self.experts.len() != experts {
            faults.push(format!("{} has {experts} experts, not {}", self.family(), self.experts.len()));
        }
        for (e, x) in self.experts.iter().enumerate() {
            let first = &self.experts[0];
            if (x.depth, x.heads, x.kv_heads, x.head_size)
                != (first.depth, first.heads, first.kv_heads, first.head_size)
            {
                faults.push(format!("expert {e} attends with other layers or heads than expert 0"));
            }
            if x.kv_heads == 0 || !x.heads.is_multiple_of(x.kv_heads) {
                faults.push(format!("expert {e}: {} heads do not share {} kv heads", x.heads, x.kv_heads));
            }
            if !x.head_size.is_multiple_of(2) {
                faults.push(format!("expert {e}: a head of {} has no two halves to rotate", x.head_size));
            }
            if x.adaptive != (e == 1 && matches!(self.head, Head::Adaptive { .. })) {
                faults.push(format!(
                    "expert {e} of a {}: adaptive norms, or their lack, are of another model",
                    self.family()
                ));
            }
        }
        if self.vision.heads == 0 || !self.vision.width.is_multiple_of(self.vision.heads) {
            faults.push(format!("SigLIP: {} heads do not share a width of {}", self.vision.heads, self.vision.width));
        }
        if self.vision.tokens.isqrt().pow(2) != self.vision.tokens {
            faults.push(format!("SigLIP: {} tokens are no square image", self.vision.tokens));
        }
        faults
    }
}
