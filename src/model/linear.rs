//! Linear layers with their low-rank pairs, which are never merged: `x W + s (x A) B`.
//!
//! Invariants: the product is in the dtype of `x` (f32 or bf16), accumulated in f32 and rounded once; a weight of
//! another dtype is cast. Only [`Linear::promoted`] computes in the wider dtype of the two, as openpi's projections do.
//! Sources: openpi 15a9616, models/lora.py (`Einsum`, `FeedForward`), models/gemma.py.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor};

use crate::kernels;

/// A parameter that is not there yet: it takes no memory until weights are loaded into it.
pub(crate) fn param<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    let zeros = move |device: &Device, grad| Tensor::zeros(shape, (device, DType::F32)).set_require_grad(grad);
    Param::uninitialized(ParamId::new(), zeros, device.clone(), true, shape.into())
}

/// The wider of two float types.
pub(crate) fn wider(a: DType, b: DType) -> DType {
    if a == b { a } else { DType::F32 }
}

/// `[.., in] x [in, out]`, both of one dtype, as one product of two matrices.
fn product<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let mut shape = x.dims();
    let [inputs, outputs] = weight.dims();
    let rows = shape[..D - 1].iter().product();
    shape[D - 1] = outputs;
    x.reshape([rows, inputs]).matmul(weight).reshape(shape)
}

/// `x + y` as the stream goes on with it, and unrounded, as the next norm reads it: XLA rounds a sum in bf16 for the one
/// and not for the other.
pub(crate) fn joined(x: Tensor<3>, y: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let dtype = x.dtype();
    let sum = kernels::add(x.clone(), y.clone(), DType::F32);
    let stream = if dtype == DType::F32 { sum.clone() } else { kernels::add(x, y, dtype) };
    (stream, sum)
}

/// A weight whose content was rearranged for the CPU's matrix instructions: its shape before that.
type Packed = Option<[usize; 2]>;

/// `x weight` in the dtype of `x`; summed in f32, rounded once.
fn times<const D: usize>(x: Tensor<D>, weight: &Param<Tensor<2>>, packed: Packed) -> Tensor<D> {
    let dtype = x.dtype();
    match packed {
        Some([k, n]) => kernels::linear_packed(x, weight.val(), k, n, dtype),
        None => product(x, weight.val().cast(dtype)),
    }
}

/// Rearranges a bf16 weight for products on the CPU. Only for inference: what is packed is not trained.
fn pack(weight: &mut Param<Tensor<2>>, packed: &mut Packed) {
    if packed.is_none() && weight.val().dtype() == DType::BF16 {
        *packed = Some(weight.val().dims());
        // The weight is let go before its successor is there for good: never two models in memory.
        *weight = Param::initialized(weight.id, kernels::pack(weight.val()));
    }
}

/// `y = x weight + bias`, perhaps with a low-rank pair.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// `[in, R]`.
    pub lora_a: Option<Param<Tensor<2>>>,
    /// `[R, out]`.
    pub lora_b: Option<Param<Tensor<2>>>,
    #[module(skip)]
    packed: Packed,
}

impl Linear {
    /// Without bias; `rank` 0 is without a low-rank pair.
    pub fn init(inputs: usize, outputs: usize, rank: usize, device: &Device) -> Self {
        Linear {
            weight: param([inputs, outputs], device),
            bias: None,
            lora_a: (rank > 0).then(|| param([inputs, rank], device)),
            lora_b: (rank > 0).then(|| param([rank, outputs], device)),
            packed: None,
        }
    }

    /// With bias.
    pub fn init_biased(inputs: usize, outputs: usize, device: &Device) -> Self {
        Linear { bias: Some(param([outputs], device)), ..Self::init(inputs, outputs, 0, device) }
    }

    /// `x [.., in]` to `[.., out]`, in the dtype of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let mut y = times(x.clone(), &self.weight, self.packed);
        if let (Some(a), Some(b)) = (&self.lora_a, &self.lora_b) {
            y = y + product(product(x, a.val().cast(dtype)), b.val().cast(dtype));
        }
        match &self.bias {
            Some(bias) => y + bias.val().cast(dtype).unsqueeze(),
            None => y,
        }
    }

    /// Makes the weight ready for fast products on the CPU.
    pub(crate) fn pack(&mut self) {
        pack(&mut self.weight, &mut self.packed);
    }

    /// The same in the wider dtype of `x` and the weight.
    pub fn promoted<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = wider(x.dtype(), self.weight.val().dtype());
        self.forward(x.cast(dtype))
    }
}

/// q, k or v: from the width to heads, with a low-rank pair for each head.
#[derive(Module, Debug)]
pub struct IntoHeads {
    /// `[W, N H]`.
    pub weight: Param<Tensor<2>>,
    /// `[N, W, R]`.
    pub lora_a: Option<Param<Tensor<3>>>,
    /// `[N, R, H]`.
    pub lora_b: Option<Param<Tensor<3>>>,
    heads: usize,
    scale: f64,
    #[module(skip)]
    packed: Packed,
}

impl IntoHeads {
    /// `heads` of `head_size` out of `width`; `rank` 0 is without low-rank pairs.
    pub fn init(width: usize, [heads, head_size]: [usize; 2], rank: usize, scale: f64, device: &Device) -> Self {
        IntoHeads {
            weight: param([width, heads * head_size], device),
            lora_a: (rank > 0).then(|| param([heads, width, rank], device)),
            lora_b: (rank > 0).then(|| param([heads, rank, head_size], device)),
            heads,
            scale,
            packed: None,
        }
    }

    /// `x [B, T, W]` to `[B, T, N, H]`, in the dtype of `x`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<4> {
        let (dtype, [b, t, w], n) = (x.dtype(), x.dims(), self.heads);
        let y = times(x.clone(), &self.weight, self.packed);
        let h = y.dims()[2] / n;
        let y = y.reshape([b, t, n, h]);
        let (Some(lora_a), Some(lora_b)) = (&self.lora_a, &self.lora_b) else { return y };
        // btw,nwr->nbtr, then nbtr,nrh->nbth: one product a head.
        let x = x.reshape([1, b * t, w]).expand([n, b * t, w]);
        let delta = x.matmul(lora_a.val().cast(dtype)).matmul(lora_b.val().cast(dtype));
        let delta = delta.reshape([n, b, t, h]).permute([1, 2, 0, 3]);
        y + delta.mul_scalar(self.scale)
    }

    /// Makes the weight ready for fast products on the CPU.
    pub(crate) fn pack(&mut self) {
        pack(&mut self.weight, &mut self.packed);
    }
}

/// The attention's output: from heads to the width.
#[derive(Module, Debug)]
pub struct FromHeads {
    /// `[N H, W]`.
    pub weight: Param<Tensor<2>>,
    /// `[N, H, R]`.
    pub lora_a: Option<Param<Tensor<3>>>,
    /// `[N, R, W]`.
    pub lora_b: Option<Param<Tensor<3>>>,
    scale: f64,
    #[module(skip)]
    packed: Packed,
}

impl FromHeads {
    /// `heads` of `head_size` into `width`; `rank` 0 is without low-rank pairs.
    pub fn init([heads, head_size]: [usize; 2], width: usize, rank: usize, scale: f64, device: &Device) -> Self {
        FromHeads {
            weight: param([heads * head_size, width], device),
            lora_a: (rank > 0).then(|| param([heads, head_size, rank], device)),
            lora_b: (rank > 0).then(|| param([heads, rank, width], device)),
            scale,
            packed: None,
        }
    }

    /// `x [B, T, N, H]` to `[B, T, W]`, in the dtype of `x`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<3> {
        let (dtype, [b, t, n, h]) = (x.dtype(), x.dims());
        let x = x.reshape([b, t, n * h]);
        let y = times(x.clone(), &self.weight, self.packed);
        let (Some(lora_a), Some(lora_b)) = (&self.lora_a, &self.lora_b) else { return y };
        // btnh,nhr->btr and btr,nrw->btw: openpi's einsum sums over the heads in both factors.
        let a = lora_a.val().cast(dtype);
        let rank = a.dims()[2];
        let b = lora_b.val().cast(dtype).sum_dim(0).squeeze_dim::<2>(0);
        let delta = product(product(x, a.reshape([n * h, rank])), b);
        y + delta.mul_scalar(self.scale)
    }

    /// Makes the weight ready for fast products on the CPU.
    pub(crate) fn pack(&mut self) {
        pack(&mut self.weight, &mut self.packed);
    }
}
