//! Rotary position embedding, in halves: `[x1 cos - x2 sin, x2 cos + x1 sin]`, timescale 10000^(2i/H), in f32.
//!
//! Invariant: the tables are made once for the positions of a forward, for all its layers and both of q and k.
//! Source: openpi 15a9616, models/gemma.py, `_apply_rope`.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::mask::Positions;
use crate::kernels;

const MAX_WAVELENGTH: f64 = 10_000.0;

/// sin and cos of each position, `[B, T, H/2]`, f32.
#[derive(Debug, Clone)]
pub struct Rope {
    sin: Tensor<3>,
    cos: Tensor<3>,
}

impl Rope {
    /// For heads of `head_size`.
    pub fn new(positions: &Positions, head_size: usize, device: &Device) -> Self {
        let half = head_size / 2;
        // Rounded where JAX rounds: the timescale, the quotient and the result are f32.
        let timescale: Vec<f32> =
            (0..half).map(|i| MAX_WAVELENGTH.powf(2.0 * i as f64 / head_size as f64) as f32).collect();
        let angles = || positions.at.iter().flat_map(|p| timescale.iter().map(move |t| f64::from(*p as f32 / t)));
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles().map(|a| f(a) as f32).collect();
            let data = TensorData::new(values, [positions.rows, positions.cols, half]);
            Tensor::<3>::from_data(data, (device, DType::F32))
        };
        Rope { sin: table(f64::sin), cos: table(f64::cos) }
    }

    /// Rotates `x [B, T, N, H]` in f32; the result is rounded to `dtype`.
    pub fn apply(&self, x: Tensor<4>, dtype: DType) -> Tensor<4> {
        kernels::rope(x, self.sin.clone(), self.cos.clone(), dtype)
    }
}
