//! Crop, resize and rotation as one bilinear sampling.
//!
//! Source: augmax 0.4.1, geometric.py (`GeometricChain`), and JAX 0.5.3, scipy/ndimage.py (`map_coordinates`, mode `constant`). With y and x
//! counted from the picture's centre:
//!
//! ```text
//! source = | 1 0 center_y | | h'/h 0    0 | |  cos sin 0 | | y |
//!          | 0 1 center_x | | 0    w'/w 0 | | -sin cos 0 | | x |      h', w' = ⌊0.95 h⌋, ⌊0.95 w⌋
//!          | 0 0 1        | | 0    0    1 | |  0   0   1 | | 1 |
//! ```
//!
//! A source outside of the picture is 0, each of its four neighbours for itself.
//! Invariant: coordinates are rounded where JAX on a CPU rounds them. They reach a hundred pixels, so each rounding moves a
//! source by up to 4e-6 of a pixel; in another order of sums a noisy picture of 224 pixels differs by 4e-5, in this one by 4e-7.

use super::draws::View;
use crate::policy::image::CHANNELS;

/// A pixel.
type Pixel = [f32; CHANNELS];

/// What a crop leaves of a side.
pub(super) fn cropped(side: usize) -> usize {
    (side as f64 * 0.95) as usize
}

impl View {
    /// `[h, w, C]` in [0, 1], as seen from here; `seen` has the same shape.
    pub(super) fn sample(&self, picture: &[f32], (h, w): (usize, usize), seen: &mut [f32]) {
        let pixels = picture.as_chunks::<CHANNELS>().0;
        let scale = |side: usize| (cropped(side) as f64 / side as f64) as f32;
        let middle = |side: usize| (side as f64 / 2.0 - 0.5) as f32;
        let (sin, cos) = libm::sincos(f64::from(self.angle));
        let (sin, cos) = (sin as f32, cos as f32);
        let (middle_y, middle_x) = (middle(h), middle(w));
        let (of_y, of_x) = ([scale(h) * cos, scale(h) * sin], [-(scale(w) * sin), scale(w) * cos]);
        for (y, row) in seen.as_chunks_mut::<CHANNELS>().0.chunks_mut(w.max(1)).enumerate() {
            let y = y as f32 - middle_y;
            let (row_y, row_x) = (of_y[0] * y, of_x[0] * y);
            for (x, pixel) in row.iter_mut().enumerate() {
                let x = x as f32 - middle_x;
                let source_y = fused(of_y[1], x, row_y) + self.center_y + middle_y;
                let source_x = fused(of_x[1], x, row_x) + self.center_x + middle_x;
                *pixel = bilinear(pixels, (h, w), source_y, source_x);
            }
        }
    }
}

/// a b + c, rounded once; f64 holds the product exactly. (`mul_add` is a call where the processor is not known to have it.)
fn fused(a: f32, b: f32, c: f32) -> f32 {
    (f64::from(a) * f64::from(b) + f64::from(c)) as f32
}

/// The whole part, and the rest in [0, 1).
fn parted(x: f32) -> (i32, f32) {
    // The cast rounds towards 0 and ends at the ends of i32. `floor` is a call where SSE 4.1 is not known of.
    let whole = x as i32;
    let whole = if whole as f32 > x { whole.saturating_sub(1) } else { whole };
    (whole, x - whole as f32)
}

fn bilinear(pixels: &[Pixel], (h, w): (usize, usize), y: f32, x: f32) -> Pixel {
    let ((top, below), (left, right)) = (parted(y), parted(x));
    let at = |y: i32, x: i32| {
        let (y, x) = (usize::try_from(y).ok()?, usize::try_from(x).ok()?);
        if y < h && x < w { pixels.get(y * w + x) } else { None }
    };
    let neighbours = [
        ((1.0 - below) * (1.0 - right), at(top, left)),
        ((1.0 - below) * right, at(top, left.saturating_add(1))),
        (below * (1.0 - right), at(top.saturating_add(1), left)),
        (below * right, at(top.saturating_add(1), left.saturating_add(1))),
    ];
    let mut sum = [0.0; CHANNELS];
    for (weight, pixel) in neighbours {
        let pixel = pixel.unwrap_or(&[0.0; CHANNELS]);
        sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += weight * value);
    }
    sum
}
