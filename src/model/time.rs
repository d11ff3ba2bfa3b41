//! The time of a flow step as a vector of sines and cosines.
//!
//! `[sin(2 pi t / period), cos(..)]`, periods from 4e-3 to 4.0 in equal ratios. Phases reach 1570 rad, where an ulp of
//! f32 is 1.2e-4: every intermediate is rounded to f32 where JAX rounds it, which brings the result to within 1.5e-8 of
//! JAX's; computing in f64 would be nearer to the truth and 9e-5 away from it.
//! Source: openpi 15a9616, models/pi0.py, `posemb_sincos`.

use std::f32::consts::PI;

use burn::tensor::{DType, Device, Tensor, TensorData};

const MIN_PERIOD: f64 = 4e-3;
const MAX_PERIOD: f64 = 4.0;

/// Embeds each time: `[times, width]`, f32.
pub fn posemb_sincos(times: &[f32], width: usize, device: &Device) -> Tensor<2> {
    let half = width / 2;
    let frequency = frequencies(half);
    let mut values = Vec::with_capacity(times.len() * width);
    for time in times {
        let phase = |f: &f32| f64::from(time * f);
        values.extend(frequency.iter().map(|f| phase(f).sin() as f32));
        values.extend(frequency.iter().map(|f| phase(f).cos() as f32));
    }
    Tensor::from_data(TensorData::new(values, [times.len(), half * 2]), (device, DType::F32))
}

/// `2 pi / period` of each pair.
fn frequencies(half: usize) -> Vec<f32> {
    let step = if half > 1 { 1.0 / (half - 1) as f32 } else { 0.0 };
    let ratio = MAX_PERIOD / MIN_PERIOD;
    let fraction = |i: usize| if i + 1 == half && half > 1 { 1.0 } else { i as f32 * step };
    let period = |i: usize| MIN_PERIOD as f32 * ratio.powf(f64::from(fraction(i))) as f32;
    (0..half).map(|i| 1.0 / period(i) * 2.0 * PI).collect()
}
