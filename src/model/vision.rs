//! SigLIP: an image to tokens. All patches go through the head; nothing is pooled.
//!
//! Patches and positions are in f32 whatever the activations are. Source: openpi 15a9616, models/siglip.py.
//! Letters: B batch, S tokens, D width, N heads, H head size, F hidden, W width of the language model.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};

use super::linear::{Linear, joined, param};
use super::norm::LayerNorm;
use super::settings;
use super::tap::Taps;
use crate::kernels;

/// The tower and the projection to the language model's width.
#[derive(Module, Debug)]
pub struct Vision {
    /// A patch of pixels to one token.
    pub patch: Patch,
    /// `[S, D]`: learned positions.
    pub pos: Param<Tensor<2>>,
    /// Transformer blocks.
    pub blocks: Vec<Block>,
    /// The last norm.
    pub norm: LayerNorm,
    /// D to W.
    pub head: Linear,
}

/// The convolution over patches that do not overlap.
#[derive(Module, Debug)]
pub struct Patch {
    /// `[D, 3, P, P]`.
    pub weight: Param<Tensor<4>>,
    /// `[D]`.
    pub bias: Param<Tensor<1>>,
}

/// `x + sa(norm1(x))`, then `x + mlp(norm2(x))`.
#[derive(Module, Debug)]
pub struct Block {
    /// Before the attention.
    pub norm1: LayerNorm,
    /// Self attention.
    pub attn: Attention,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// MLP.
    pub mlp: Mlp,
}

/// Attention of N equal heads over all tokens.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[D, N H]`.
    pub q: Linear,
    /// `[D, N H]`.
    pub k: Linear,
    /// `[D, N H]`.
    pub v: Linear,
    /// `[N H, D]`.
    pub o: Linear,
    heads: usize,
}

/// `down(gelu(up(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[D, F]`.
    pub up: Linear,
    /// `[F, D]`.
    pub down: Linear,
}

impl Vision {
    /// A tower of these sizes whose tokens are `out` wide.
    pub fn init(s: &settings::Vision, out: usize, device: &Device) -> Self {
        let (d, p) = (s.width, s.patch);
        let square = || Linear::init_biased(d, d, device);
        let block = || Block {
            norm1: LayerNorm::init(d, device),
            attn: Attention { q: square(), k: square(), v: square(), o: square(), heads: s.heads },
            norm2: LayerNorm::init(d, device),
            mlp: Mlp { up: Linear::init_biased(d, s.mlp, device), down: Linear::init_biased(s.mlp, d, device) },
        };
        Vision {
            patch: Patch { weight: param([d, 3, p, p], device), bias: param([d], device) },
            pos: param([s.tokens, d], device),
            blocks: (0..s.depth).map(|_| block()).collect(),
            norm: LayerNorm::init(d, device),
            head: Linear::init_biased(d, out, device),
        }
    }

    /// `image [B, P side, P side, 3]` in f32 to `[B, S, W]` in `dtype`.
    pub fn forward(&self, image: Tensor<4>, dtype: DType, taps: &mut Taps<'_>) -> Tensor<3> {
        let mut x = self.begin(image, dtype, taps);
        for (l, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, l, taps);
        }
        self.finish(x, taps)
    }

    /// What comes before the blocks: patches and positions, `[B, S, D]` in `dtype`.
    pub(crate) fn begin(&self, image: Tensor<4>, dtype: DType, taps: &mut Taps<'_>) -> Tensor<3> {
        let stem = self.patch.forward(image);
        taps.note(format_args!("stem"), &stem);
        let [b, rows, cols, d] = stem.dims();
        let x = stem.reshape([b, rows * cols, d]) + self.pos.val().cast(DType::F32).unsqueeze();
        taps.note(format_args!("with_posemb"), &x);
        x.cast(dtype)
    }

    /// What comes after them: the last norm and the head, `[B, S, W]` in the dtype of `x`.
    pub(crate) fn finish(&self, x: Tensor<3>, taps: &mut Taps<'_>) -> Tensor<3> {
        let dtype = x.dtype();
        let x = self.norm.forward(x, dtype);
        taps.note(format_args!("encoded"), &x);
        let x = self.head.forward(x);
        taps.note(format_args!("tokens"), &x);
        x
    }
}

impl Vision {
    /// Makes the weights ready for fast products on the CPU.
    pub(crate) fn pack(&mut self) {
        for Block { attn, mlp, .. } in &mut self.blocks {
            [&mut attn.q, &mut attn.k, &mut attn.v, &mut attn.o, &mut mlp.up, &mut mlp.down]
                .into_iter()
                .for_each(Linear::pack);
        }
        self.head.pack();
    }
}

impl Patch {
    /// `[B, rows P, cols P, 3]` to `[B, rows, cols, D]`, in f32.
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val().cast(DType::F32);
        let ([d, c, p, q], [b, height, width, _]) = (weight.dims(), image.dims());
        let (rows, cols) = (height / p, width / q);
        let image = image.cast(DType::F32);
        // Patches do not overlap, so the convolution is one product: brpsqc -> (brs)(cpq).
        let patches = image.reshape([b, rows, p, cols, q, c]).permute([0, 1, 3, 5, 2, 4]);
        let patches = patches.reshape([b * rows * cols, c * p * q]);
        let y = patches.matmul(weight.reshape([d, c * p * q]).transpose());
        (y + self.bias.val().cast(DType::F32).unsqueeze()).reshape([b, rows, cols, d])
    }
}

impl Block {
    /// One layer, the `l`th: `x [B, S, D]` to the same.
    pub(crate) fn forward(&self, x: Tensor<3>, l: usize, taps: &mut Taps<'_>) -> Tensor<3> {
        let dtype = x.dtype();
        let y = self.attn.forward(self.norm1.forward(x.clone(), dtype));
        taps.note(format_args!("block{l:02}/sa"), &y);
        let (x, unrounded) = joined(x, y);
        taps.note(format_args!("block{l:02}/+sa"), &x);
        let y = self.mlp.forward(self.norm2.forward(unrounded, dtype));
        taps.note(format_args!("block{l:02}/mlp"), &y);
        let x = kernels::add(x, y, dtype);
        taps.note(format_args!("block{l:02}/+mlp"), &x);
        x
    }
}

impl Attention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, t, d] = x.dims();
        let heads = |y: Tensor<3>| y.reshape([b, t, self.heads, d / self.heads]);
        let q = heads(self.q.forward(x.clone()));
        let (k, v) = (heads(self.k.forward(x.clone())), heads(self.v.forward(x)));
        // The divisor is rounded to the compute dtype first: 8.5 in bf16 for heads of 72.
        let root = ((d / self.heads) as f32).sqrt();
        let root = if q.dtype() == DType::BF16 { half::bf16::from_f32(root).to_f32() } else { root };
        let y = kernels::attention_in_dtype(q.div_scalar(root), k, v);
        self.o.forward(y.reshape([b, t, d]))
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.down.forward(kernels::gelu_tanh(self.up.forward(x)))
    }
}
