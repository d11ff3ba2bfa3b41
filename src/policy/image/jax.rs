//! jax.image.resize, linear with antialiasing, in f32.
//!
//! Source: jax 0.5.3, image/scale.py (compute_weight_mat), within openpi 15a9616, shared/image_tools.py (resize_with_pad).
//! Columns first, then rows, nothing rounded in between. Sums run in another order than XLA's, hence about 1e-5.

use super::{CHANNELS, centred, fitted};

/// Where the weights of one output begin, and they.
struct Window {
    first: usize,
    weights: Vec<f32>,
}

/// The windows of an axis of `from` values made `to` long.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let inverse = (from as f64 / to as f64) as f32;
    let spread = inverse.max(1.0);
    let window = |at: usize| {
        let center = (at as f32 + 0.5).mul_add(inverse, -0.5);
        let triangle = |i: usize| (1.0 - (center - i as f32).abs() / spread).max(0.0);
        // One more on either side, where rounding may have left a trace.
        let first = (center - spread).floor().max(0.0) as usize;
        let end = ((center + spread).ceil().max(0.0) as usize + 1).min(from);
        let weights: Vec<f32> = (first..end).map(triangle).collect();
        let total: f32 = weights.iter().sum();
        Window { first, weights: weights.iter().map(|weight| weight / total).collect() }
    };
    (0..to).map(window).collect()
}

/// `[h, w, C]` → `[to_h, to_w, C]`.
fn resize(image: &[f32], (h, w): (usize, usize), (to_h, to_w): (usize, usize)) -> Vec<f32> {
    let line = w * CHANNELS;
    let columns = windows(w, to_w);
    let mut out = Vec::with_capacity(to_h * to_w * CHANNELS);
    let mut tall = vec![0.0; line];
    for window in windows(h, to_h) {
        tall.fill(0.0);
        for (weight, row) in window.weights.iter().zip(image[window.first * line..].chunks_exact(line)) {
            for (sum, value) in tall.iter_mut().zip(row) {
                *sum += value * weight;
            }
        }
        for window in &columns {
            let mut sums = [0.0; CHANNELS];
            let pixels = tall[window.first * CHANNELS..].as_chunks::<CHANNELS>().0;
            for (weight, pixel) in window.weights.iter().zip(pixels) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += value * weight;
                }
            }
            out.extend(sums);
        }
    }
    out
}

/// `[h, w, C]` floats of [-1, 1] → `[height, width, C]`, with -1 around the picture.
///
/// # Panics
/// If there are not `h · w · C` values, or if nothing is left of the picture: ask [`fitted`] first.
pub fn resize_with_pad_jax(image: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    assert_eq!(image.len(), from.0 * from.1 * CHANNELS, "values of a picture of {} x {}", from.0, from.1);
    let fit = fitted(from.0, from.1, to.0, to.1).expect("a picture that is not too narrow");
    let resized: Vec<f32> = if fit == from {
        image.iter().map(|x| x.clamp(-1.0, 1.0)).collect()
    } else {
        resize(image, from, fit).into_iter().map(|x| x.clamp(-1.0, 1.0)).collect()
    };
    centred(&resized, fit, to, -1.0)
}

/// The same of bytes, rounded half to even, with 0 around the picture. Within one level of JAX's.
///
/// # Panics
/// As [`resize_with_pad_jax`].
pub fn resize_with_pad_jax_u8(image: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    assert_eq!(image.len(), from.0 * from.1 * CHANNELS, "bytes of a picture of {} x {}", from.0, from.1);
    let fit = fitted(from.0, from.1, to.0, to.1).expect("a picture that is not too narrow");
    let floats: Vec<f32> = image.iter().map(|x| f32::from(*x)).collect();
    let resized = if fit == from { floats } else { resize(&floats, from, fit) };
    let bytes: Vec<u8> = resized.into_iter().map(|x| x.round_ties_even().clamp(0.0, 255.0) as u8).collect();
    centred(&bytes, fit, to, 0)
}
