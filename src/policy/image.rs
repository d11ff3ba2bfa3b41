//! Pictures: to bytes, channels last, and to the model's size with black around them.
//!
//! Source: openpi 15a9616, packages/openpi-client image_tools.py (Pillow, of bytes: what every policy does) and
//! src/openpi/shared/image_tools.py (jax.image.resize, of floats: what the model does with a picture of another size).
//! The two differ by one level in some per cent of the values, so each is here: [`resize_with_pad`] has Pillow's bits,
//! [`resize_with_pad_jax`] JAX's values to about 1e-5. Letters: h, w height and width, C = 3 channels, last.

mod jax;
mod pillow;

use super::array::{Array, Values};
use super::record::{Fault, Record, Value};
use super::step::Step;

pub use jax::{resize_with_pad_jax, resize_with_pad_jax_u8};
pub use pillow::resize_with_pad;

/// Red, green, blue.
pub const CHANNELS: usize = 3;
/// Where the model's pictures stand.
const IMAGE: &str = "image/";

/// The size at which a picture of `h × w` fits into `height × width` without distortion; `None` where nothing is left of it.
pub fn fitted(h: usize, w: usize, height: usize, width: usize) -> Option<(usize, usize)> {
    if h == 0 || w == 0 {
        return None;
    }
    let ratio = (w as f64 / width as f64).max(h as f64 / height as f64);
    let (fitted_h, fitted_w) = ((h as f64 / ratio) as usize, (w as f64 / ratio) as usize);
    let fits = (1..=height).contains(&fitted_h) && (1..=width).contains(&fitted_w);
    fits.then_some((fitted_h, fitted_w))
}

/// `[h, w, C]` in the middle of `[height, width, C]`; an odd row or column is left below or to the right.
fn centred<T: Copy>(image: &[T], (h, w): (usize, usize), (height, width): (usize, usize), around: T) -> Vec<T> {
    let (top, left) = ((height - h) / 2, (width - w) / 2);
    let mut out = vec![around; height * width * CHANNELS];
    for y in 0..h {
        let at = ((top + y) * width + left) * CHANNELS;
        out[at..at + w * CHANNELS].copy_from_slice(&image[y * w * CHANNELS..(y + 1) * w * CHANNELS]);
    }
    out
}

/// A camera's picture as `[h, w, C]` bytes: floats of [0, 1] are multiplied by 255 and cut off, channels come last.
///
/// `[C, h, w]` where the first axis is 3, or else `[h, w, C]`. openpi's ALOHA policy takes the former alone and makes noise
/// of the latter; a picture read from a file is the latter.
///
/// # Errors
/// Another shape; floats outside of [0, 1], which openpi would let wrap around; another dtype.
pub fn parse(key: &str, image: &Array) -> Result<Array, Fault> {
    let misfit = |expected: &str, hint: &str| Fault::Shape {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: image.to_string(),
        hint_text: hint.to_owned(),
    };
    let [a, b, c] = image.shape[..] else {
        return Err(misfit("a picture of three axes", ""));
    };
    let first = a == CHANNELS;
    if !first && c != CHANNELS {
        return Err(misfit("[height, width, 3] or [3, height, width]", ""));
    }
    if image.values.is_empty() {
        return Err(misfit("a picture with rows and columns", ""));
    }
    let bytes = match &image.values {
        Values::U8(x) => x.clone(),
        Values::F32(x) => bytes(key, x.iter().map(|x| 255.0 * x).map(f64::from))?,
        Values::F64(x) => bytes(key, x.iter().map(|x| 255.0 * x))?,
        _ => return Err(misfit("bytes, or floats of [0, 1]", "")),
    };
    if !first {
        return Ok(Array::u8([a, b, c], bytes));
    }
    let plane = b * c;
    let mut turned = Vec::with_capacity(bytes.len());
    for at in 0..plane {
        turned.extend((0..CHANNELS).map(|channel| bytes[channel * plane + at]));
    }
    Ok(Array::u8([b, c, CHANNELS], turned))
}

fn bytes(key: &str, scaled: impl Iterator<Item = f64>) -> Result<Vec<u8>, Fault> {
    let byte = |x: f64| {
        // Cut off, not rounded: -0.9 is 0 and 255.9 is 255.
        if x > -1.0 && x < 256.0 {
            return Ok(x as u8);
        }
        let what =
            format!("a value of {} in a picture of floats, expected [0, 1]; give bytes, or divide by 255", x / 255.0);
        Err(Fault::Wrong { key: key.to_owned(), what })
    };
    scaled.map(byte).collect()
}

/// Every `image/*` to one size, by Pillow.
#[derive(Debug, Clone)]
pub struct ResizeImages {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Step for ResizeImages {
    fn name(&self) -> &'static str {
        "resize-images"
    }

    fn describe(&self) -> String {
        format!("to {} x {} without distortion, black around it, bilinear as Pillow", self.height, self.width)
    }

    fn reads(&self) -> Vec<String> {
        vec![format!("{IMAGE}*")]
    }

    fn writes(&self) -> Vec<String> {
        self.reads()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        for (key, value) in record.values.iter_mut().filter(|(key, _)| key.starts_with(IMAGE)) {
            let Value::Array(image) = value else {
                let what = "a text, expected a picture".to_owned();
                return Err(Fault::Wrong { key: key.clone(), what });
            };
            *image = self.resize(key, image)?;
        }
        Ok(())
    }
}

impl ResizeImages {
    /// `[.., h, w, C]` bytes → `[.., height, width, C]`.
    fn resize(&self, key: &str, image: &Array) -> Result<Array, Fault> {
        let misfit = |expected: &str| Fault::Shape {
            key: key.to_owned(),
            expected: expected.to_owned(),
            found: image.to_string(),
            hint_text: String::new(),
        };
        let (Values::U8(bytes), [lead @ .., h, w, CHANNELS]) = (&image.values, &image.shape[..]) else {
            return Err(misfit("uint8[.., height, width, 3]"));
        };
        if (*h, *w) == (self.height, self.width) {
            return Ok(image.clone());
        }
        if fitted(*h, *w, self.height, self.width).is_none() {
            return Err(misfit("a picture that is not so narrow that nothing is left of it"));
        }
        let shape: Vec<usize> = lead.iter().copied().chain([self.height, self.width, CHANNELS]).collect();
        // The slots without a camera.
        if bytes.iter().all(|level| *level == 0) {
            let pixels = shape.iter().product();
            return Ok(Array::u8(shape, vec![0; pixels]));
        }
        let resized = bytes
            .chunks_exact(h * w * CHANNELS)
            .flat_map(|one| resize_with_pad(one, (*h, *w), (self.height, self.width)))
            .collect();
        Ok(Array::u8(shape, resized))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_last_and_floats_are_cut_off() {
        let image = Array::f32([3, 1, 2], vec![0.0, 1.0, 0.5, 0.999, 0.25, 0.1]);
        let expected = Array::u8([1, 2, 3], vec![0, 127, 63, 255, 254, 25]);
        assert_eq!(parse("a", &image).unwrap(), expected);
        assert_eq!(parse("a", &expected).unwrap(), expected);
    }

    #[test]
    fn a_picture_that_would_come_out_as_noise_is_refused() {
        let refusal = |image| parse("images/top", &image).unwrap_err().to_string();
        let levels = Array::f32([1, 1, 3], vec![0.0, 128.0, 255.0]);
        assert!(refusal(levels).contains("expected [0, 1]"));
        let negative = Array::f64([1, 1, 3], vec![-1.0, 0.0, 1.0]);
        assert!(refusal(negative).contains("a value of -1"));
        let grey = Array::u8([2, 4, 1], vec![0; 8]);
        assert!(refusal(grey).contains("found uint8[2, 4, 1]"));
        let whole = Array::new([1, 1, 3], Values::I64(vec![0; 3]));
        assert!(refusal(whole).contains("bytes"));
        let nothing = Array::u8([0, 0, 3], vec![]);
        assert!(refusal(nothing).starts_with("images/top: expected a picture with rows and columns"));
    }

    #[test]
    fn a_picture_so_narrow_that_nothing_is_left_is_refused() {
        let mut record = Record::default();
        record.put_array("image/a", Array::u8([1, 500, 3], vec![0; 1500]));
        let fault = ResizeImages { height: 224, width: 224 }.apply(&mut record).unwrap_err();
        assert!(fault.to_string().starts_with("image/a: expected"), "{fault}");
    }
}
