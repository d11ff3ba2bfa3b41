//! The time of a flow step as a vector of sines and cosines.
//!
//! `[sin(2 pi t / period), cos(..)]`, periods from 4e-3 to 4.0 in equal ratios. Phases reach 1570 rad, where f32 is off
//! by 1.4e-4: computed in f64. Source: openpi 15a9616, models/pi0.py, `posemb_sincos`.

use burn::tensor::{DType, Device, Tensor, TensorData};

const MIN_PERIOD: f64 = 4e-3;
const MAX_PERIOD: f64 = 4.0;

/// Embeds each time: `[times, width]`, f32.
pub fn posemb_sincos(times: &[f32], width: usize, device: &Device) -> Tensor<2> {
    let half = width / 2;
    let step = if half > 1 { 1.0 / (half - 1) as f64 } else { 0.0 };
    let frequency: Vec<f64> = (0..half)
        .map(|i| std::f64::consts::TAU / (MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD).powf(i as f64 * step)))
        .collect();
    let mut values = Vec::with_capacity(times.len() * width);
    for time in times {
        let phase = |f: &f64| f64::from(*time) * f;
        values.extend(frequency.iter().map(|f| phase(f).sin() as f32));
        values.extend(frequency.iter().map(|f| phase(f).cos() as f32));
    }
    Tensor::from_data(TensorData::new(values, [times.len(), half * 2]), (device, DType::F32))
}
