//! The values that a model is born with, where no checkpoint has them: openpi's own distributions, by parameter.
//!
//! Sources: openpi 15a9616, models/gemma.py, models/gemma_fast.py, models/lora.py, models/siglip.py, models/pi0.py;
//! flax 0.10.2 (`nn.Conv`, `nn.Dense`, `nn.LayerNorm`, `nn.MultiHeadDotProductAttention`, `nnx.Linear`) and JAX 0.5.3
//! (`variance_scaling`). Fans are those of the JAX leaf: of one layer, whatever the canonical layout has merged.
//! Invariant: a parameter's values are a function of seed, name and shape alone, whatever else is drawn and by how many
//! threads. They are not JAX's bits, only of its distributions.

use std::sync::LazyLock;

use rayon::prelude::*;
use regex::Regex;

use super::companions::Kind;
use super::names;
use crate::chance::Stream;

/// Values that one stream gives; a longer parameter is drawn in parts.
const PART: usize = 1 << 16;
/// Deviation of a normal distribution that is cut at two deviations (JAX's constant).
const TRUNCATED: f64 = 0.879_625_661_034_239_8;
/// `nn.initializers.normal()`, and the low-rank pairs' own.
const NORMAL: f64 = 0.01;

/// What decides how parameters begin, besides their shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// Which model: pi0-FAST's Gemma begins otherwise in two places.
    pub model: Kind,
    /// N, Gemma's attention heads.
    pub heads: usize,
    /// The run's.
    pub seed: u64,
}

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Law {
    /// All of them are this.
    Constant(f32),
    /// Normal.
    Normal {
        /// Its deviation.
        deviation: f64,
    },
    /// Normal, cut at two deviations, scaled so that this is what is left.
    Truncated {
        /// Its deviation.
        deviation: f64,
    },
    /// Evenly between minus this and this.
    Uniform {
        /// The limit.
        limit: f64,
    },
}

/// Laws as the sources write them, before fans are known.
#[derive(Debug, Clone, Copy)]
enum Rule {
    Zeros,
    Ones,
    Normal(f64),
    /// `normal(1 / sqrt(width))`, the width being the last axis.
    ByWidth,
    /// `lecun_normal` over all axes but the last; of a convolution's `D C P Q` over all but the first.
    Lecun,
    /// `xavier_uniform` of a matrix.
    Xavier,
    /// `zeros` in gemma_fast, `normal(0.01)` in gemma.
    Embedding,
    /// `lecun_normal` of `N H W`: over N and H in gemma, over H alone in gemma_fast.
    Output,
}

/// By the path of the JAX leaf: the first row that matches it whole.
const RULES: [(&str, Rule); 17] = [
    // models/lora.py, LoRAConfig.init_fn
    (".*lora_[ab]", Rule::Normal(NORMAL)),
    // models/siglip.py, `_Module`: nn.Conv, get_posemb, nn.Dense with head_zeroinit
    ("PaliGemma/img/embedding/kernel", Rule::Lecun),
    ("PaliGemma/img/embedding/bias", Rule::Zeros),
    ("PaliGemma/img/pos_embedding", Rule::ByWidth),
    ("PaliGemma/img/head/(kernel|bias)", Rule::Zeros),
    // models/siglip.py, MlpBlock
    ("PaliGemma/img/.*/MlpBlock_0/.*/kernel", Rule::Xavier),
    ("PaliGemma/img/.*/MlpBlock_0/.*/bias", Rule::Normal(1e-6)),
    // models/siglip.py, Encoder1DBlock: nn.MultiHeadDotProductAttention, whose kernels are made as matrices
    ("PaliGemma/img/.*/MultiHeadDotProductAttention_0/.*/kernel", Rule::Xavier),
    ("PaliGemma/img/.*/MultiHeadDotProductAttention_0/.*/bias", Rule::Zeros),
    // nn.LayerNorm
    ("PaliGemma/img/Transformer/.*/?(LayerNorm_.|encoder_norm)/scale", Rule::Ones),
    ("PaliGemma/img/Transformer/.*/?(LayerNorm_.|encoder_norm)/bias", Rule::Zeros),
    // models/gemma.py, Embedder, RMSNorm (the plain one and the adaptive one), Attention, and lora.FeedForward
    ("PaliGemma/llm/embedder/input_embedding", Rule::Embedding),
    ("PaliGemma/llm/.*(/scale|/Dense_0/kernel|/Dense_0/bias)", Rule::Zeros),
    ("PaliGemma/llm/layers/attn/attn_vec_einsum(_1)?/w", Rule::Output),
    ("PaliGemma/llm/layers/(attn/.*/w|mlp(_1)?/(gating_einsum|linear))", Rule::Lecun),
    // models/pi0.py, nnx.Linear
    ("[a-z_]+/kernel", Rule::Lecun),
    ("[a-z_]+/bias", Rule::Zeros),
];

/// The same, ready to be asked.
static LAWS: LazyLock<Vec<(Regex, Rule)>> = LazyLock::new(|| {
    let read = |(path, rule): (&str, Rule)| Some((Regex::new(&format!("^(?:{path})$")).ok()?, rule));
    RULES.into_iter().filter_map(read).collect()
});

impl Birth {
    /// How a parameter begins, by its canonical name and shape; `None` for a name that is no parameter's.
    pub fn law(&self, name: &str, shape: &[usize]) -> Option<Law> {
        let path = names::jax(name)?;
        let (_, rule) = LAWS.iter().find(|(pattern, _)| pattern.is_match(&path))?;
        let size = |axis: usize| shape.get(axis).map(|n| *n as f64);
        let lecun = |fan: f64| Law::Truncated { deviation: fan.sqrt().recip() };
        Some(match rule {
            Rule::Zeros => Law::Constant(0.0),
            Rule::Ones => Law::Constant(1.0),
            Rule::Normal(deviation) => Law::Normal { deviation: *deviation },
            Rule::ByWidth => Law::Normal { deviation: (*shape.last()? as f64).sqrt().recip() },
            Rule::Lecun => match shape {
                [_, channels, rows, columns] => lecun((channels * rows * columns) as f64),
                _ => lecun(size(0)?),
            },
            Rule::Xavier => Law::Uniform { limit: (6.0 / (size(0)? + size(1)?)).sqrt() },
            Rule::Embedding if self.model == Kind::Pi0Fast => Law::Constant(0.0),
            Rule::Embedding => Law::Normal { deviation: NORMAL },
            Rule::Output if self.model == Kind::Pi0Fast => lecun(size(0)? / self.heads.max(1) as f64),
            Rule::Output => lecun(size(0)?),
        })
    }

    /// A parameter's first values, row-major, by its canonical name and shape; `None` for a name that is no parameter's.
    pub fn values(&self, name: &str, shape: &[usize]) -> Option<Vec<f32>> {
        let law = self.law(name, shape)?;
        let mut values = vec![0.0; shape.iter().product()];
        let name = format!("init/{name}");
        values.par_chunks_mut(PART).enumerate().for_each(|(part, values)| {
            law.fill(values, &mut Stream::new(self.seed, &name, part));
        });
        Some(values)
    }
}

impl Law {
    fn fill(self, values: &mut [f32], stream: &mut Stream) {
        match self {
            Law::Constant(value) => values.fill(value),
            Law::Normal { deviation } => {
                let drawn = stream.normals(values.len());
                values.iter_mut().zip(drawn).for_each(|(v, x)| *v = (f64::from(x) * deviation) as f32);
            }
            Law::Truncated { deviation } => {
                let mut at = 0;
                // 95 % stay within two deviations, so this ends.
                while at < values.len() {
                    let drawn = stream.normals(values.len() - at).into_iter().filter(|x| x.abs() < 2.0);
                    for x in drawn {
                        values[at] = (f64::from(x) * deviation / TRUNCATED) as f32;
                        at += 1;
                    }
                }
            }
            Law::Uniform { limit } => {
                values.iter_mut().for_each(|v| *v = ((2.0 * stream.unit() - 1.0) * limit) as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIRTH: Birth = Birth { model: Kind::Pi0, heads: 8, seed: 42 };

    #[test]
    fn a_parameter_does_not_know_what_else_is_drawn() {
        let name = "llm.blocks.3.experts.1.q.weight";
        let alone = BIRTH.values(name, &[640, 512]).expect("a parameter");
        BIRTH.values("llm.blocks.2.experts.1.q.weight", &[8, 8]).expect("a parameter");
        assert_eq!(BIRTH.values(name, &[640, 512]).expect("a parameter"), alone);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
        assert_eq!(one.install(|| BIRTH.values(name, &[640, 512])).expect("a parameter"), alone);
        assert_ne!(BIRTH.values("llm.blocks.2.experts.1.q.weight", &[640, 512]).expect("a parameter"), alone);
        assert_ne!(Birth { seed: 43, ..BIRTH }.values(name, &[640, 512]).expect("a parameter"), alone);
        // The parts are drawn apart.
        assert_ne!(alone[..PART], alone[PART..2 * PART]);
    }

    #[test]
    fn every_row_is_an_expression() {
        assert_eq!(LAWS.len(), RULES.len());
    }

    #[test]
    fn fans_are_those_of_the_jax_leaf() {
        let deviation = |birth: Birth, name: &str, shape: &[usize]| match birth.law(name, shape) {
            Some(Law::Truncated { deviation }) => deviation,
            other => panic!("{name}: {other:?}"),
        };
        let fast = Birth { model: Kind::Pi0Fast, ..BIRTH };
        assert_eq!(deviation(BIRTH, "llm.blocks.0.experts.0.o.weight", &[2048, 1024]), 2048f64.sqrt().recip());
        assert_eq!(deviation(fast, "llm.blocks.0.experts.0.o.weight", &[2048, 1024]), 256f64.sqrt().recip());
        assert_eq!(deviation(BIRTH, "llm.blocks.0.experts.0.v.weight", &[2048, 256]), 2048f64.sqrt().recip());
        assert_eq!(deviation(BIRTH, "img.patch.weight", &[1152, 3, 14, 14]), 588f64.sqrt().recip());
        assert_eq!(fast.law("llm.embed.weight", &[512, 8]), Some(Law::Constant(0.0)));
        assert_eq!(BIRTH.law("llm.embed.weight", &[512, 8]), Some(Law::Normal { deviation: 0.01 }));
        assert_eq!(BIRTH.law("llm.embed", &[512, 8]), None);
    }
}
