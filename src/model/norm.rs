//! Norms: SigLIP's LayerNorm, Gemma's RMSNorm with a learned or an adaptive scale.
//!
//! Statistics are in f32 whatever comes in; the result is rounded once.
//! Sources: openpi 15a9616, models/gemma.py (`RMSNorm`), models/siglip.py (flax `LayerNorm`).

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};

use super::linear::{Linear, param};
use crate::kernels;

/// `(x - mean) / sqrt(var + eps) * gamma + beta`.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[D]`.
    pub gamma: Param<Tensor<1>>,
    /// `[D]`.
    pub beta: Param<Tensor<1>>,
}

impl LayerNorm {
    /// Of `width`.
    pub fn init(width: usize, device: &Device) -> Self {
        LayerNorm { gamma: param([width], device), beta: param([width], device) }
    }

    /// Over the last axis of `x [B, T, D]`, in any float type, rounded to `out`.
    pub fn forward(&self, x: Tensor<3>, out: DType) -> Tensor<3> {
        kernels::layer_norm(x, self.gamma.val(), self.beta.val(), out)
    }
}

/// `x / sqrt(mean(x²) + eps)`, scaled by `1 + scale` or by what the time says.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[W]`: a learned scale.
    pub scale: Option<Param<Tensor<1>>>,
    /// `[W, 3 W]`: scale, shift and gate from a condition.
    pub ada: Option<Linear>,
}

/// What a condition makes of one adaptive norm, each `[B or 1, 1, W]`, or `[1, T, W]` where each token has its own.
#[derive(Debug, Clone)]
pub struct Modulation {
    /// Added to one, the factor of the normed input.
    pub scale: Tensor<3>,
    /// Added to the normed input.
    pub shift: Tensor<3>,
    /// Factor of what the layer adds to its input.
    pub gate: Tensor<3>,
}

impl Modulation {
    /// Of one row: what every row of a batch shares.
    pub fn row(&self, row: usize) -> Self {
        let pick = |x: &Tensor<3>| x.clone().narrow(0, row, 1);
        Modulation { scale: pick(&self.scale), shift: pick(&self.shift), gate: pick(&self.gate) }
    }

    /// `first` for so many tokens, `then` for so many more; both of one row.
    pub fn by_token((first, n): (&Self, usize), (then, m): (&Self, usize)) -> Self {
        Modulation {
            scale: tokens((&first.scale, n), (&then.scale, m)),
            shift: tokens((&first.shift, n), (&then.shift, m)),
            gate: tokens((&first.gate, n), (&then.gate, m)),
        }
    }
}

/// `[1, 1, W]` for n tokens, then another for m: `[1, n + m, W]`.
pub(super) fn tokens((first, n): (&Tensor<3>, usize), (then, m): (&Tensor<3>, usize)) -> Tensor<3> {
    let w = first.dims()[2];
    let part = |x: &Tensor<3>, n: usize| x.clone().expand([1, n, w]);
    match (n, m) {
        (0, _) => part(then, m),
        (_, 0) => part(first, n),
        _ => Tensor::cat(vec![part(first, n), part(then, m)], 1),
    }
}

impl RmsNorm {
    /// With a learned scale, or an adaptive one.
    pub fn init(width: usize, adaptive: bool, device: &Device) -> Self {
        RmsNorm {
            scale: (!adaptive).then(|| param([width], device)),
            ada: adaptive.then(|| Linear::init_biased(width, 3 * width, device)),
        }
    }

    /// Makes the weights ready for fast products on the CPU.
    pub(crate) fn pack(&mut self) {
        if let Some(ada) = &mut self.ada {
            ada.pack();
        }
    }

    /// What `condition [B, W]`, in the activations' dtype, makes of this norm. `None` where the scale is learned.
    pub fn modulate(&self, condition: &Tensor<2>) -> Option<Modulation> {
        let all = self.ada.as_ref()?.forward(condition.clone()).unsqueeze_dim::<3>(1);
        let w = all.dims()[2] / 3;
        let part = |i: usize| all.clone().narrow(2, i * w, w);
        Some(Modulation { scale: part(0), shift: part(1), gate: part(2) })
    }

    /// Over the last axis of `x [B, T, W]`, in any float type, rounded to `out`. An adaptive norm needs its modulation.
    pub fn forward(&self, x: Tensor<3>, modulation: Option<&Modulation>, out: DType) -> Tensor<3> {
        match (&self.scale, modulation) {
            (Some(scale), _) => kernels::rms_norm(x, scale.val(), out),
            (None, Some(m)) if m.scale.dims()[1] > 1 => {
                // Each token is a row of its own.
                let [b, t, w] = x.dims();
                let rows = |y: Tensor<3>| y.expand([b, t, w]).reshape([b * t, 1, w]);
                let (scale, shift) = (rows(m.scale.clone()), rows(m.shift.clone()));
                kernels::rms_norm_modulated(rows(x), scale, shift, out).reshape([b, t, w])
            }
            (None, Some(m)) => kernels::rms_norm_modulated(x, m.scale.clone(), m.shift.clone(), out),
            (None, None) => unreachable!("an adaptive norm runs with what modulates it"),
        }
    }
}
