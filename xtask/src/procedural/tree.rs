//! A model's parameter tree, made from `configs/model/<model>.toml`: names and shapes as JAX has them.
//!
//! Letters of the shapes: L layer, N heads, K kv heads, H head size, W width, F hidden, V vocabulary, A action dim.
//! Layers are stacked on a leading axis L; the modules of the second expert carry the suffix `_1`.
//! Invariant: leaves are in the order of their names, as they are in a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Leaf;

/// Where the descriptions lie, below the root.
const FOLDER: &str = "configs/model";
/// What a random embedding of a model that reads its own tokens back is damped by: its logits are the embedding again.
const TOKEN_EMBEDDING_GAIN: f64 = 0.12;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variants {
    gemma: BTreeMap<String, Gemma>,
    siglip: BTreeMap<String, Siglip>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gemma {
    width: u64,
    depth: u64,
    mlp: u64,
    heads: u64,
    kv_heads: u64,
    head_size: u64,
    /// Rank of the low-rank pairs: procedural weights have none.
    #[serde(default)]
    lora: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Siglip {
    width: u64,
    depth: u64,
    mlp: u64,
    heads: u64,
    patch: u64,
    image: u64,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum State {
    Token,
    Prompt,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum ActionNorm {
    Scale,
    Adaptive,
    None,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Head {
    Flow,
    Tokens,
}

/// A model file. What the parameters do not depend on (horizon, prompt length) is not read here.
#[derive(Deserialize)]
struct Model {
    vocabulary: u64,
    vision: String,
    experts: Vec<String>,
    state: State,
    action_norm: ActionNorm,
    head: Head,
    action_dim: u64,
}

/// The leaves of the model that `configs/model/<name>.toml` below `root` describes.
///
/// # Errors
/// A file that is missing or not of its form, or a variant that `variants.toml` does not have.
pub(crate) fn leaves(root: &Path, name: &str) -> Result<Vec<Leaf>> {
    let variants: Variants = parse(root, "variants")?;
    let model: Model = parse(root, name)?;
    let siglip = variants.siglip.get(&model.vision).with_context(|| format!("{name}: no vision `{}`", model.vision))?;
    let experts = model
        .experts
        .iter()
        .map(|expert| variants.gemma.get(expert).with_context(|| format!("{name}: no expert `{expert}`")))
        .collect::<Result<Vec<_>>>()?;
    ensure!(
        experts.len() == if model.head == Head::Flow { 2 } else { 1 },
        "{name}: a flow head needs two experts, a token head one; found {}",
        experts.len()
    );
    ensure!(experts.iter().all(|expert| expert.lora == 0), "{name}: procedural weights have no low-rank pairs");
    let mut tree = Tree { leaves: Vec::new(), gain: embedding_gain(model.head) };
    tree.vision(siglip, experts[0].width);
    tree.put("PaliGemma/llm/embedder/input_embedding", &[model.vocabulary, experts[0].width]);
    for (index, gemma) in experts.iter().enumerate() {
        tree.expert(gemma, if index == 0 { "" } else { "_1" }, index == 1 && model.action_norm == ActionNorm::Adaptive);
    }
    if let Some(action) = experts.get(1) {
        tree.action(&model, action.width);
    }
    tree.leaves.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tree.leaves)
}

fn embedding_gain(head: Head) -> f64 {
    if head == Head::Tokens { TOKEN_EMBEDDING_GAIN } else { 1.0 }
}

fn parse<T: for<'a> Deserialize<'a>>(root: &Path, name: &str) -> Result<T> {
    let path = root.join(FOLDER).join(name).with_extension("toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not of its form", path.display()))
}

struct Tree {
    leaves: Vec<Leaf>,
    gain: f64,
}

impl Tree {
    fn put(&mut self, name: impl Into<String>, shape: &[u64]) {
        self.leaves.push(Leaf::new(name.into(), shape.to_vec(), self.gain));
    }

    /// `{module}/kernel` of this shape and `{module}/bias` of that.
    fn dense(&mut self, module: &str, kernel: &[u64], bias: &[u64]) {
        self.put(format!("{module}/kernel"), kernel);
        self.put(format!("{module}/bias"), bias);
    }

    fn vision(&mut self, of: &Siglip, language_width: u64) {
        let (l, w, n, h) = (of.depth, of.width, of.heads, of.width / of.heads);
        let side = of.image / of.patch;
        let img = "PaliGemma/img";
        self.dense(&format!("{img}/embedding"), &[of.patch, of.patch, 3, w], &[w]);
        self.put(format!("{img}/pos_embedding"), &[1, side * side, w]);
        self.dense(&format!("{img}/head"), &[w, language_width], &[language_width]);
        for part in ["scale", "bias"] {
            self.put(format!("{img}/Transformer/encoder_norm/{part}"), &[w]);
            for norm in ["LayerNorm_0", "LayerNorm_1"] {
                self.put(format!("{img}/Transformer/encoderblock/{norm}/{part}"), &[l, w]);
            }
        }
        let block = format!("{img}/Transformer/encoderblock");
        self.dense(&format!("{block}/MlpBlock_0/Dense_0"), &[l, w, of.mlp], &[l, of.mlp]);
        self.dense(&format!("{block}/MlpBlock_0/Dense_1"), &[l, of.mlp, w], &[l, w]);
        let attention = format!("{block}/MultiHeadDotProductAttention_0");
        for projection in ["query", "key", "value"] {
            self.dense(&format!("{attention}/{projection}"), &[l, w, n, h], &[l, n, h]);
        }
        self.dense(&format!("{attention}/out"), &[l, n, h, w], &[l, w]);
    }

    fn expert(&mut self, of: &Gemma, suffix: &str, adaptive: bool) {
        let (l, w, n, k, h, f) = (of.depth, of.width, of.heads, of.kv_heads, of.head_size, of.mlp);
        let llm = "PaliGemma/llm";
        self.put(format!("{llm}/layers/attn/q_einsum{suffix}/w"), &[l, n, w, h]);
        self.put(format!("{llm}/layers/attn/kv_einsum{suffix}/w"), &[l, 2, k, w, h]);
        self.put(format!("{llm}/layers/attn/attn_vec_einsum{suffix}/w"), &[l, n, h, w]);
        self.put(format!("{llm}/layers/mlp{suffix}/gating_einsum"), &[l, 2, w, f]);
        self.put(format!("{llm}/layers/mlp{suffix}/linear"), &[l, f, w]);
        let norms: [(&str, &[u64]); 3] =
            [("layers/pre_attention_norm", &[l]), ("layers/pre_ffw_norm", &[l]), ("final_norm", &[])];
        for (norm, stack) in norms {
            let module = format!("{llm}/{norm}{suffix}");
            if adaptive {
                // scale, shift and gate
                self.dense(&format!("{module}/Dense_0"), &[stack, &[w, 3 * w]].concat(), &[stack, &[3 * w]].concat());
            } else {
                self.put(format!("{module}/scale"), &[stack, &[w]].concat());
            }
        }
    }

    fn action(&mut self, model: &Model, w: u64) {
        let a = model.action_dim;
        self.dense("action_in_proj", &[a, w], &[w]);
        self.dense("action_out_proj", &[w, a], &[a]);
        if model.state == State::Token {
            self.dense("state_proj", &[a, w], &[w]);
        }
        // With an adaptive norm the time goes to the norms; without, it is joined to the action.
        let (mlp, joined) = match model.action_norm {
            ActionNorm::Adaptive => ("time_mlp", w),
            ActionNorm::Scale | ActionNorm::None => ("action_time_mlp", 2 * w),
        };
        self.dense(&format!("{mlp}_in"), &[joined, w], &[w]);
        self.dense(&format!("{mlp}_out"), &[w, w], &[w]);
    }
}
