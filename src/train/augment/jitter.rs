//! Brightness, contrast, saturation and hue, in this order, of hue, saturation and value.
//!
//! Source: augmax 0.4.1, colorspace.py (`ColorJitter`), functional/colorspace.py and utils.py. For a pixel with the channels c, largest value v
//! at the first index m that has it, and range d from the smallest:
//!
//! ```text
//! hue = (2 m + (c[m+1] - c[m+2]) / d) / 6, 0 where d = 0          saturation = d / v, 0 where v = 0
//! channel i = v - v saturation clamp(min(k, 4 - k), 0, 1),        k = (n[i] + 6 hue) mod 6,  n = [5, 3, 1]
//! ```
//!
//! Invariant: [0, 1] goes to [0, 1], but for rounding.

use super::draws::Jitter;
use crate::policy::image::CHANNELS;

/// Where the colour circle's channels begin, in sixths.
const BEGIN: [f32; CHANNELS] = [5.0, 3.0, 1.0];

impl Jitter {
    /// Pixels `[…, C]` in [0, 1], recoloured.
    pub(super) fn recolor(&self, picture: &mut [f32], saturation_ignored: bool) {
        let contrast = Contrast::new(self.contrast);
        let saturation = if saturation_ignored { 0.0 } else { self.saturation };
        for pixel in picture.as_chunks_mut::<CHANNELS>().0 {
            let (hue, mut strength, value) = apart(*pixel);
            let value = contrast.of(brightened(value, self.brightness));
            if saturation != 0.0 {
                strength = (strength * (1.0 + saturation)).clamp(0.0, 1.0);
            }
            *pixel = together(hue + self.hue, strength, value);
        }
    }
}

/// Towards white or black.
fn brightened(value: f32, by: f32) -> f32 {
    if by < 0.0 { value * (1.0 + by) } else { value * (1.0 - by) + by }
}

/// Three straight pieces through (0, 0), (1/2, 1/2) and (1, 1): the middle one of slope `slant`, the outer ones of its inverse.
struct Contrast {
    slant: f32,
    /// Where the first piece ends. The source's (s - s²) / (2 (1 - s²)) is the same, but 0 / 0 where the slope is 1.
    knee: f32,
}

impl Contrast {
    fn new(contrast: f32) -> Self {
        let angle = (contrast + 1.0) * std::f32::consts::FRAC_PI_4;
        let slant = libm::tan(f64::from(angle)) as f32;
        Contrast { slant, knee: slant / (2.0 * (1.0 + slant)) }
    }

    fn of(&self, value: f32) -> f32 {
        if value < self.knee {
            value / self.slant
        } else if value > 1.0 - self.knee {
            value / self.slant + 1.0 - 1.0 / self.slant
        } else {
            self.slant * (value - 0.5) + 0.5
        }
    }
}

/// Hue in turns from -1/6 to 5/6, saturation and value.
fn apart([r, g, b]: [f32; CHANNELS]) -> (f32, f32, f32) {
    let (value, sixths, second, third) = if r >= g && r >= b {
        (r, 0.0, g, b)
    } else if g >= b {
        (g, 2.0, b, r)
    } else {
        (b, 4.0, r, g)
    };
    let range = value - r.min(g).min(b);
    let hue = if range == 0.0 { 0.0 } else { (sixths + (second - third) / range) / 6.0 };
    (hue, if value == 0.0 { 0.0 } else { range / value }, value)
}

fn together(hue: f32, saturation: f32, value: f32) -> [f32; CHANNELS] {
    BEGIN.map(|begin| {
        // The amounts of hue that are drawn take this to -0.6 at least and to 10.6 at most; others go the long way.
        let k = match begin + hue * 6.0 {
            k if (0.0..6.0).contains(&k) => k,
            k if (6.0..12.0).contains(&k) => k - 6.0,
            k if (-6.0..0.0).contains(&k) => k + 6.0,
            k => k.rem_euclid(6.0),
        };
        value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}
