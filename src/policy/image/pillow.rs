//! Pillow's bilinear resizing of bytes, bit for bit.
//!
//! Source: Pillow 13.0, src/libImaging/Resample.c. Two passes, rows first, each rounded to bytes; weights in f64, then in
//! fixed point of 22 bits. Invariant: a pass that would change no length is left out, as Pillow leaves it out.

use super::{CHANNELS, centred, fitted};

/// Bits behind the point of a weight.
const PRECISION: u32 = 32 - 8 - 2;

/// Where the weights of one output begin, and they.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The windows of an axis of `from` values made `to` long.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let unit = 1.0 / support;
    let window = |at: usize| {
        let center = (at as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let triangle = |i: usize| (1.0 - ((i as f64 - center + 0.5) * unit).abs()).max(0.0);
        let weights: Vec<f64> = (first..end).map(triangle).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let weight = if total == 0.0 { *weight } else { weight / total };
            (0.5 + weight * f64::from(1 << PRECISION)) as i32
        };
        Window { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

/// `[h, w, C]` → `[h, to, C]`.
fn along_rows(image: &[u8], w: usize, to: usize) -> Vec<u8> {
    let windows = windows(w, to);
    let mut out = Vec::with_capacity(image.len() / w * to);
    for row in image.chunks_exact(w * CHANNELS) {
        for window in &windows {
            let mut sums = [HALF; CHANNELS];
            let pixels = row[window.first * CHANNELS..].as_chunks::<CHANNELS>().0;
            for (weight, pixel) in window.weights.iter().zip(pixels) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.extend(sums.map(byte));
        }
    }
    out
}

/// `[h, w, C]` → `[to, w, C]`.
fn along_columns(image: &[u8], h: usize, w: usize, to: usize) -> Vec<u8> {
    let line = w * CHANNELS;
    let mut out = Vec::with_capacity(to * line);
    let mut sums = vec![HALF; line];
    for window in windows(h, to) {
        sums.fill(HALF);
        for (weight, row) in window.weights.iter().zip(image[window.first * line..].chunks_exact(line)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().copied().map(byte));
    }
    out
}

/// `[h, w, C]` bytes → `[height, width, C]`: as large as fits, in the middle, black around it.
///
/// # Panics
/// If there are not `h · w · C` bytes, or if nothing is left of the picture: ask [`fitted`] first.
pub fn resize_with_pad(image: &[u8], (h, w): (usize, usize), to: (usize, usize)) -> Vec<u8> {
    assert_eq!(image.len(), h * w * CHANNELS, "bytes of a picture of {h} x {w}");
    if (h, w) == to {
        return image.to_vec();
    }
    let (fitted_h, fitted_w) = fitted(h, w, to.0, to.1).expect("a picture that is not too narrow");
    let wide = if fitted_w == w { image.to_vec() } else { along_rows(image, w, fitted_w) };
    let resized = if fitted_h == h { wide } else { along_columns(&wide, h, fitted_w, fitted_h) };
    centred(&resized, (fitted_h, fitted_w), to, 0)
}
