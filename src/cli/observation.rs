//! Observations as users bring them: a JSON document with pictures, an npz, safetensors, a recorded set, or chance.
//! Read, held against a model, and only then made into its [`Observation`].
//!
//! What is read is model-ready: normalised state, tokens instead of text, images of the model's own side. Keys, joined
//! by `/`, with or without `in/` in front, with or without a first axis of rows:
//!
//! | key | one row | what |
//! | --- | --- | --- |
//! | `state` | `[A]` | numbers; pi0 reads it, pi0.5 and pi0-FAST have it in the prompt and may leave it out |
//! | `tokenized_prompt` | `[T]` | whole numbers |
//! | `tokenized_prompt_mask` | `[T]` | which are no padding; all, if it is left out |
//! | `token_ar_mask`, `token_loss_mask` | `[T]` | pi0-FAST; none, if left out |
//! | `image/<camera>`, `image_u8/<camera>` | `[side, side, 3]` | bytes, or floats in [-1, 1] |
//! | `image_mask/<camera>` | `[]` | is there an image? Yes, if left out; a camera that has none needs no image |
//! | `noise` | `[horizon, A]` | what the actions begin as |
//! | `actions` | any | what was recorded; not looked at |
//!
//! Invariant: all that is wrong is told at once, before anything is computed. Source: openpi 15a9616, models/model.py.

mod document;
mod fit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};

pub use fit::{Error, Fault};

use super::array;
use crate::chance::Stream;
use crate::model::observation::{Camera, Flags, Observation, Prompt};
use crate::model::settings::{Head, Settings};
use crate::policy::array::{Array, Values};
use document::Keys;

/// The cameras of a model as published, in the order in which it reads them.
pub fn cameras(head: Head) -> Vec<String> {
    let names = match head {
        Head::Tokens => ["base_0_rgb", "base_1_rgb", "wrist_0_rgb"],
        _ => ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"],
    };
    names.map(str::to_owned).to_vec()
}

/// What a model wants to see.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its head: whether it reads a state.
    pub head: Head,
    /// Its cameras, in the order in which it reads them.
    pub cameras: Vec<String>,
    /// Side of its images, pixels.
    pub image: usize,
    /// Rows of its embedding.
    pub vocabulary: usize,
    /// To how many tokens prompts are padded; `None` leaves them as they are.
    pub prompt_length: Option<usize>,
}

impl Wanted {
    /// By a model of these settings.
    pub fn by(settings: &Settings, prompt_length: Option<usize>) -> Self {
        let (image, vocabulary) = (settings.vision.image(), settings.vocabulary);
        Wanted { head: settings.head, cameras: cameras(settings.head), image, vocabulary, prompt_length }
    }

    /// A, where states and actions are vectors.
    pub fn action_dim(&self) -> Option<usize> {
        match self.head {
            Head::StateToken { action_dim } | Head::Adaptive { action_dim } => Some(action_dim),
            Head::Tokens => None,
        }
    }
}

/// Values `[rows, horizon, dim]` that actions begin as.
#[derive(Debug, Clone, PartialEq)]
pub struct Noise {
    /// B.
    pub rows: usize,
    /// Steps of a chunk.
    pub horizon: usize,
    /// A.
    pub dim: usize,
    /// In C order.
    pub values: Vec<f32>,
}

/// A camera's images on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// openpi's key.
    pub name: String,
    /// `[B, side, side, 3]`, in [-1, 1].
    pub pixels: Vec<f32>,
    /// Per row: is there an image?
    pub mask: Vec<bool>,
}

/// An observation on the host that fits its model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// B.
    pub rows: usize,
    /// Side of the images.
    pub side: usize,
    /// In the model's order.
    pub images: Vec<Images>,
    /// `[B, width]`.
    pub state: Vec<f32>,
    /// T.
    pub prompt_length: usize,
    /// `[B, T]`.
    pub tokens: Vec<i32>,
    /// `[B, T]`.
    pub mask: Flags,
    /// `[B, T]`: pi0-FAST alone reads it.
    pub ar: Option<Flags>,
    /// `[B, T]`: pi0-FAST's loss alone reads it.
    pub loss: Option<Flags>,
    /// What stood beside it.
    pub noise: Option<Noise>,
}

/// Reads a file; each of `images` (camera, `.png` or `.npy`) takes the place of the file's own.
///
/// # Errors
/// A file that cannot be read; everything in which it does not fit the model.
pub fn read(path: &Path, images: &[(String, PathBuf)], wanted: &Wanted) -> anyhow::Result<Rows> {
    let mut keys = document::open(path)?;
    replace(&mut keys, images)?;
    Ok(fit::fit(keys, wanted).map_err(|faults| Error { from: path.display().to_string(), faults })?)
}

/// Arrays by key, held against a model.
///
/// # Errors
/// Everything in which they do not fit; `from` says where they came from.
pub(super) fn fit(keys: BTreeMap<String, Array>, wanted: &Wanted, from: &str) -> anyhow::Result<Rows> {
    Ok(fit::fit(keys, wanted).map_err(|faults| Error { from: from.to_owned(), faults })?)
}

/// One row from chance: uniform bytes for images, a uniform state in [-1, 1), and a prompt of `prompt_length` tokens
/// without padding, so that times are those of the longest prompt.
///
/// # Errors
/// `images` that cannot be read or do not fit.
pub fn random(seed: u64, prompt_length: usize, images: &[(String, PathBuf)], wanted: &Wanted) -> anyhow::Result<Rows> {
    let mut keys = Keys::new();
    let side = wanted.image;
    for name in &wanted.cameras {
        let mut stream = Stream::new(seed, &format!("image/{name}"), 0);
        let bytes = (0..side * side * 3).map(|_| (stream.bits() >> 56) as u8).collect();
        keys.insert(format!("image/{name}"), Array::u8([side, side, 3], bytes));
    }
    if let Some(dim) = wanted.action_dim() {
        let mut stream = Stream::new(seed, "state", 0);
        let state = (0..dim).map(|_| (2.0 * stream.unit() - 1.0) as f32).collect();
        keys.insert("state".into(), Array::f32([dim], state));
    }
    let mut stream = Stream::new(seed, "tokenized_prompt", 0);
    // Below are padding, end and beginning of a text.
    let first = 3.min(wanted.vocabulary as u64 - 1);
    let tokens = (0..prompt_length).map(|_| (first + stream.below(wanted.vocabulary as u64 - first)) as i64).collect();
    keys.insert("tokenized_prompt".into(), Array::new([prompt_length], Values::I64(tokens)));
    replace(&mut keys, images)?;
    Ok(fit::fit(keys, wanted).map_err(|faults| Error { from: "the random observation".into(), faults })?)
}

fn replace(keys: &mut Keys, images: &[(String, PathBuf)]) -> anyhow::Result<()> {
    for (name, path) in images {
        keys.remove(&format!("image_u8/{name}"));
        keys.insert(format!("image/{name}"), array::file(path)?);
    }
    Ok(())
}

/// Noise of a file: a `.npy`, or the array `noise` of an npz or safetensors file.
///
/// # Errors
/// What the file says; another shape than `[rows, horizon, A]`, another A than the model's, a value that is not finite.
pub fn noise(path: &Path, wanted: &Wanted) -> anyhow::Result<Noise> {
    let array = document::noise(path)?;
    Ok(fit::noise(array, wanted).map_err(|fault| Error { from: path.display().to_string(), faults: vec![fault] })?)
}

/// Noise that came otherwise.
///
/// # Errors
/// As [`noise`].
pub(super) fn noise_of(array: Array, wanted: &Wanted) -> Result<Noise, Fault> {
    fit::noise(array, wanted)
}

/// Normal noise: row b is the same in every batch.
pub fn random_noise(seed: u64, rows: usize, horizon: usize, dim: usize) -> Noise {
    let row = |row| Stream::new(seed, "noise", row).normals(horizon * dim);
    Noise { rows, horizon, dim, values: (0..rows).flat_map(row).collect() }
}

impl Rows {
    /// Observations of one model, with prompts of one length, row after row. What stood beside them is left.
    ///
    /// # Panics
    /// There is none, or their prompts differ in length: a fault of the caller's.
    pub(super) fn join(all: &[&Rows]) -> Self {
        let first = all.first().expect("at least one observation");
        assert!(all.iter().all(|rows| rows.prompt_length == first.prompt_length), "prompts of one length");
        let flags = |part: &dyn Fn(&Rows) -> Option<&Flags>| {
            let parts: Vec<&Flags> = all.iter().filter_map(|rows| part(rows)).collect();
            let bits = parts.iter().flat_map(|flags| flags.bits.iter().copied()).collect();
            let rows = parts.iter().map(|flags| flags.rows).sum();
            (parts.len() == all.len()).then_some(Flags { rows, cols: first.prompt_length, bits })
        };
        let images = |(i, of): (usize, &Images)| Images {
            name: of.name.clone(),
            pixels: all.iter().flat_map(|rows| rows.images[i].pixels.iter().copied()).collect(),
            mask: all.iter().flat_map(|rows| rows.images[i].mask.iter().copied()).collect(),
        };
        Rows {
            rows: all.iter().map(|rows| rows.rows).sum(),
            side: first.side,
            images: first.images.iter().enumerate().map(images).collect(),
            state: all.iter().flat_map(|rows| rows.state.iter().copied()).collect(),
            prompt_length: first.prompt_length,
            tokens: all.iter().flat_map(|rows| rows.tokens.iter().copied()).collect(),
            mask: flags(&|rows| Some(&rows.mask)).expect("every observation has a mask"),
            ar: flags(&|rows| rows.ar.as_ref()),
            loss: flags(&|rows| rows.loss.as_ref()),
            noise: None,
        }
    }

    /// One row, as many times.
    pub fn repeat(&self, times: usize) -> Self {
        let again =
            |flags: &Flags| Flags { rows: flags.rows * times, cols: flags.cols, bits: flags.bits.repeat(times) };
        Rows {
            rows: self.rows * times,
            side: self.side,
            images: self
                .images
                .iter()
                .map(|i| Images { name: i.name.clone(), pixels: i.pixels.repeat(times), mask: i.mask.repeat(times) })
                .collect(),
            state: self.state.repeat(times),
            prompt_length: self.prompt_length,
            tokens: self.tokens.repeat(times),
            mask: again(&self.mask),
            ar: self.ar.as_ref().map(again),
            loss: self.loss.as_ref().map(again),
            noise: self.noise.clone(),
        }
    }

    /// As the model takes it.
    pub fn upload(&self, device: &Device) -> Observation {
        let (b, side) = (self.rows, self.side);
        let camera = |images: &Images| {
            let data = TensorData::new(images.pixels.clone(), [b, side, side, 3]);
            Camera {
                name: images.name.clone(),
                image: Tensor::from_data(data, (device, DType::F32)),
                mask: images.mask.clone(),
            }
        };
        let state = TensorData::new(self.state.clone(), [b, self.state.len() / b.max(1)]);
        let tokens = TensorData::new(self.tokens.clone(), [b, self.prompt_length]);
        Observation {
            cameras: self.images.iter().map(camera).collect(),
            state: Tensor::from_data(state, (device, DType::F32)),
            prompt: Prompt {
                tokens: Tensor::from_data(tokens, (device, DType::I32)),
                mask: self.mask.clone(),
                ar: self.ar.clone(),
                loss: self.loss.clone(),
            },
        }
    }
}

impl Noise {
    /// As the model takes it: `[B, horizon, A]`, f32.
    pub fn upload(&self, device: &Device) -> Tensor<3> {
        let data = TensorData::new(self.values.clone(), [self.rows, self.horizon, self.dim]);
        Tensor::from_data(data, (device, DType::F32))
    }
}
