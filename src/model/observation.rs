//! What the model sees: images, state, prompt. The one type in which `policy` and `model` meet.
//!
//! Invariants: all parts have the same number of rows, B; masks live on the host, because shapes follow from them.
//! Source: openpi 15a9616, models/model.py, `Observation`.

use burn::tensor::{Int, Tensor, TensorData};

/// A rectangle of flags, row by row: `[B, T]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    /// B.
    pub rows: usize,
    /// T.
    pub cols: usize,
    /// Row by row.
    pub bits: Vec<bool>,
}

impl Flags {
    /// The same flag everywhere.
    pub fn all(rows: usize, cols: usize, bit: bool) -> Self {
        Flags { rows, cols, bits: vec![bit; rows * cols] }
    }

    /// From `f(row, column)`.
    pub fn build(rows: usize, cols: usize, f: impl Fn(usize, usize) -> bool) -> Self {
        Flags { rows, cols, bits: (0..rows * cols).map(|i| f(i / cols, i % cols)).collect() }
    }

    /// A flag.
    pub fn get(&self, row: usize, col: usize) -> bool {
        self.bits[row * self.cols + col]
    }

    /// A row.
    pub fn row(&self, row: usize) -> &[bool] {
        &self.bits[row * self.cols..(row + 1) * self.cols]
    }

    /// Flags that are set in a row.
    pub fn count(&self, row: usize) -> usize {
        self.row(row).iter().filter(|b| **b).count()
    }

    /// Side by side.
    pub fn beside(parts: &[&Flags]) -> Flags {
        let rows = parts.first().map_or(0, |p| p.rows);
        let cols = parts.iter().map(|p| p.cols).sum();
        let bits = (0..rows).flat_map(|r| parts.iter().flat_map(move |p| p.row(r).iter().copied())).collect();
        Flags { rows, cols, bits }
    }

    /// Only these columns.
    pub fn columns(&self, keep: &[usize]) -> Flags {
        Flags::build(self.rows, keep.len(), |r, c| self.get(r, keep[c]))
    }

    /// As a tap shows it.
    pub fn data(&self) -> TensorData {
        TensorData::new(self.bits.clone(), [self.rows, self.cols])
    }
}

/// A camera's image.
#[derive(Debug, Clone)]
pub struct Camera {
    /// openpi's key: `base_0_rgb`.
    pub name: String,
    /// `[B, height, width, 3]`, f32 in [-1, 1].
    pub image: Tensor<4>,
    /// Per row: is there an image?
    pub mask: Vec<bool>,
}

/// Tokens that the prompt became.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// `[B, T]`, padded.
    pub tokens: Tensor<2, Int>,
    /// Which are no padding.
    pub mask: Flags,
    /// pi0-FAST: which begin or continue the autoregressive part; without it none does, as in a prompt to decode from.
    pub ar: Option<Flags>,
    /// pi0-FAST, training: which tokens count in the loss.
    pub loss: Option<Flags>,
}

/// What the model sees.
#[derive(Debug, Clone)]
pub struct Observation {
    /// In the order in which the model reads them.
    pub cameras: Vec<Camera>,
    /// `[B, A]`, f32, normalised.
    pub state: Tensor<2>,
    /// The prompt.
    pub prompt: Prompt,
}

impl Observation {
    /// B.
    pub fn batch(&self) -> usize {
        self.state.dims()[0]
    }

    /// One example of it.
    pub fn row(&self, row: usize) -> Self {
        let flags = |flags: &Flags| Flags { rows: 1, cols: flags.cols, bits: flags.row(row).to_vec() };
        let camera = |camera: &Camera| Camera {
            name: camera.name.clone(),
            image: camera.image.clone().narrow(0, row, 1),
            mask: vec![camera.mask[row]],
        };
        let Prompt { tokens, mask, ar, loss } = &self.prompt;
        Observation {
            cameras: self.cameras.iter().map(camera).collect(),
            state: self.state.clone().narrow(0, row, 1),
            prompt: Prompt {
                tokens: tokens.clone().narrow(0, row, 1),
                mask: flags(mask),
                ar: ar.as_ref().map(flags),
                loss: loss.as_ref().map(flags),
            },
        }
    }

    /// What does not fit together, or not to a model: a sentence each. `image` is the side the vision tower wants.
    pub fn faults(&self, image: usize, action_dim: Option<usize>) -> Vec<String> {
        let mut faults = vec![];
        let b = self.batch();
        let mut expect = |what: &str, found: &[usize], expected: &[usize]| {
            if found != expected {
                faults.push(format!("{what}: found {found:?}, expected {expected:?}"));
            }
        };
        for camera in &self.cameras {
            expect(&format!("image {}", camera.name), &camera.image.dims(), &[b, image, image, 3]);
            expect(&format!("image mask {}", camera.name), &[camera.mask.len()], &[b]);
        }
        let [_, t] = self.prompt.tokens.dims();
        expect("tokenized_prompt", &self.prompt.tokens.dims(), &[b, t]);
        expect("tokenized_prompt_mask", &[self.prompt.mask.rows, self.prompt.mask.cols], &[b, t]);
        for (what, flags) in [("token_ar_mask", &self.prompt.ar), ("token_loss_mask", &self.prompt.loss)] {
            if let Some(flags) = flags {
                expect(what, &[flags.rows, flags.cols], &[b, t]);
            }
        }
        if let Some(dim) = action_dim {
            expect("state", &self.state.dims(), &[b, dim]);
        }
        if self.cameras.is_empty() {
            faults.push("no camera: the model reads at least one image (a missing camera is a masked one)".into());
        }
        faults
    }
}
