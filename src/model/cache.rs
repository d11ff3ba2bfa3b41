//! Keys and values of tokens that have been read: what a later forward attends to.

use burn::tensor::Tensor;

/// Of every layer, after RoPE: `k [B, S, K, H]` and `v [B, S, K, H]`, in the activations' dtype.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    /// By layer.
    pub layers: Vec<(Tensor<4>, Tensor<4>)>,
}

impl Cache {
    /// Tokens in it, S.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(k, _)| k.dims()[1])
    }

    /// Has nothing been read yet?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All keys as one tensor, `[L, B, S, K, H]`.
    pub fn keys(&self) -> Tensor<5> {
        Tensor::stack(self.layers.iter().map(|(k, _)| k.clone()).collect(), 0)
    }

    /// All values as one tensor, `[L, B, S, K, H]`.
    pub fn values(&self) -> Tensor<5> {
        Tensor::stack(self.layers.iter().map(|(_, v)| v.clone()).collect(), 0)
    }
}
