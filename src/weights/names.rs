//! A parameter's name in openpi: for those who know models by their JAX paths.

use std::sync::LazyLock;

use remap::Map;

static PI0: LazyLock<Map> = LazyLock::new(Map::pi0);

/// The JAX path of the leaf in which a parameter lies, by its canonical name: `llm.blocks.3.experts.1.k.weight` lies in
/// `PaliGemma/llm/layers/attn/kv_einsum_1/w`. `None` for a name that is no parameter's.
pub fn jax(canonical: &str) -> Option<String> {
    let (row, at) = PI0.find("burn", canonical)?;
    PI0.rows.get(row)?.side("jax")?.write(&at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_in_its_leaf() {
        let path = |name: &str| jax(name).expect("a parameter");
        assert_eq!(path("llm.blocks.3.experts.1.k.weight"), "PaliGemma/llm/layers/attn/kv_einsum_1/w");
        assert_eq!(path("llm.blocks.17.experts.0.up.lora_b"), "PaliGemma/llm/layers/mlp/gating_einsum_lora_b");
        assert_eq!(path("img.blocks.0.norm2.beta"), "PaliGemma/img/Transformer/encoderblock/LayerNorm_1/bias");
        assert_eq!(path("time_mlp_in.bias"), "time_mlp_in/bias");
        assert_eq!(jax("llm.blocks.3.experts.2.k.weight"), None);
        assert_eq!(jax("PaliGemma/img/head/bias"), None);
    }
}
