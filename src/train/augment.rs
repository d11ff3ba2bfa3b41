//! Augmentation of a training batch's pictures: crop, turn and jitter of colours, with openpi's chances and formulas.
//!
//! Source: openpi 15a9616, models/model.py (`preprocess_observation(train=True)`), and augmax 0.4.1 beneath it. Letters: B rows,
//! h, w height and width, C = 3 channels, last; values in [-1, 1] as the model sees them.
//!
//! A picture goes to [0, 1], then, unless its camera has `wrist` in its name, is cropped to 95 %, brought back to its size and
//! turned by up to 5°, in one bilinear sampling; then, in every other picture, brightness, contrast and hue are moved; then it
//! goes back to [-1, 1]. What is not moved makes this way too, and may come back an ulp from where it was. Nothing is cut off at
//! the ends of the range; but for rounding the formulas do not leave it.
//!
//! What is odd about openpi's, and which of it [`Augment::Fixed`] mends:
//!
//! | openpi | why | fixed |
//! | --- | --- | --- |
//! | saturation does nothing | augmax computes it and drops the result | saturation is multiplied by 1 ± 0.5, at most to 1 |
//! | cameras draw alike: those without `wrist` have one crop, angle and jitter, those with it one jitter | one key for all cameras | every camera draws for itself |
//! | a row's wrist pictures are jittered exactly if its crop is above the middle | a wrist's jitter has the key of the crop | the same |
//! | hue moves by ± 0.1, though openpi never says so | augmax's default | left as it is |
//! | corners turn black | what lies outside of the picture is 0 in [0, 1] | left as it is |
//!
//! The mended saturation is not what the dropped result would have been: that would move grey, which has no hue, to red.
//!
//! Invariants: all chance is in [`Draws`], a function of (seed, step, row) and, where cameras draw for themselves, of the camera;
//! given its draws, a picture is a function of itself alone. So neither the batch's size, nor the rows beside it, nor the number
//! of threads can be seen in the result.

mod draws;
mod jitter;
#[cfg(test)]
mod tests;
mod view;

use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::policy::image::CHANNELS;

pub use draws::{Draws, Jitter, View};

/// Which augmentation a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// None: pictures stay as they are, to the bit.
    Off,
    /// openpi's, with all that is odd about it.
    #[default]
    Openpi,
    /// openpi's, mended.
    Fixed,
}

/// What is odd about openpi's augmentation and can be mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quirks {
    /// Saturation is drawn, and nothing is done with it.
    pub saturation_ignored: bool,
    /// All cameras of a row draw from one key.
    pub cameras_draw_alike: bool,
}

impl Quirks {
    /// All of them.
    pub const OPENPI: Quirks = Quirks { saturation_ignored: true, cameras_draw_alike: true };
    /// None of them.
    pub const FIXED: Quirks = Quirks { saturation_ignored: false, cameras_draw_alike: false };
}

impl Augment {
    /// Every one, in the order of the words.
    pub const ALL: [Augment; 3] = [Augment::Off, Augment::Openpi, Augment::Fixed];

    /// `None` where nothing is augmented.
    pub fn quirks(self) -> Option<Quirks> {
        match self {
            Augment::Off => None,
            Augment::Openpi => Some(Quirks::OPENPI),
            Augment::Fixed => Some(Quirks::FIXED),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Augment::Off => "off",
            Augment::Openpi => "openpi",
            Augment::Fixed => "fixed",
        }
    }
}

impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A word that names no augmentation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: no such augmentation; there are off, openpi and fixed")]
pub struct UnknownAugment(pub String);

impl FromStr for Augment {
    type Err = UnknownAugment;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let all = Augment::ALL.into_iter();
        all.clone().find(|augment| augment.word() == word).ok_or_else(|| UnknownAugment(word.to_owned()))
    }
}

/// Pictures that are not of the size they are said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{of}: expected {expected}, found {found} values")]
pub struct Misfit {
    /// The camera, or `picture`.
    pub of: String,
    /// How many values there should be.
    pub expected: String,
    /// How many there are.
    pub found: usize,
}

/// A camera's pictures in a batch.
#[derive(Debug)]
pub struct Pictures<'a> {
    /// The camera as openpi names it: `base_0_rgb`, `left_wrist_0_rgb`, …
    pub camera: &'a str,
    /// `[B, h, w, C]`, f32 in [-1, 1].
    pub values: &'a mut [f32],
}

/// Augments one picture, `[h, w, C]` in [-1, 1], by its draws.
///
/// # Errors
/// A picture of another size.
pub fn apply(picture: &mut [f32], (h, w): (usize, usize), draws: &Draws, quirks: Quirks) -> Result<(), Misfit> {
    if size((h, w)) != Some(picture.len()) {
        let expected = format!("{h} × {w} × {CHANNELS}");
        return Err(Misfit { of: "picture".to_owned(), expected, found: picture.len() });
    }
    augment(picture, (h, w), draws, quirks, &mut vec![]);
    Ok(())
}

/// Augments every picture of a batch, on all threads of the pool. The batch's first row is number `first` of the step's rows:
/// not 0 where a step's rows come in several batches, one after another or on several devices.
///
/// # Errors
/// Pictures of another size; cameras that do not have the same number of rows. Then nothing is changed.
pub fn augment_rows(
    augmentation: Augment,
    (seed, step): (u64, u64),
    first: usize,
    (h, w): (usize, usize),
    cameras: &mut [Pictures<'_>],
) -> Result<(), Misfit> {
    let misfit = |camera: &Pictures<'_>, expected| {
        Err(Misfit { of: camera.camera.to_owned(), expected, found: camera.values.len() })
    };
    let Some(size) = size((h, w)).filter(|size| *size > 0) else {
        return cameras.first().map_or(Ok(()), |camera| misfit(camera, format!("B × {h} × {w} × {CHANNELS}")));
    };
    let all = cameras.first().map_or(0, |camera| camera.values.len());
    for camera in cameras.iter() {
        if camera.values.len() % size != 0 {
            return misfit(camera, format!("B × {h} × {w} × {CHANNELS}"));
        }
        if camera.values.len() != all {
            return misfit(camera, format!("{} × {h} × {w} × {CHANNELS} as the cameras before it", all / size));
        }
    }
    let Some(quirks) = augmentation.quirks() else {
        return Ok(());
    };
    let rows = cameras.iter_mut().flat_map(|camera| {
        let name = camera.camera;
        camera.values.chunks_exact_mut(size).enumerate().map(move |(row, picture)| (name, first + row, picture))
    });
    rows.collect::<Vec<_>>().into_par_iter().for_each_init(Vec::new, |seen, (camera, row, picture)| {
        augment(picture, (h, w), &Draws::of((seed, step), row, camera, (h, w), quirks), quirks, seen);
    });
    Ok(())
}

/// Values of a picture; `None` where no machine has as many.
fn size((h, w): (usize, usize)) -> Option<usize> {
    h.checked_mul(w)?.checked_mul(CHANNELS)
}

/// `seen` is room for a copy of the picture; what it holds does not matter.
fn augment(picture: &mut [f32], size: (usize, usize), draws: &Draws, quirks: Quirks, seen: &mut Vec<f32>) {
    picture.iter_mut().for_each(|x| *x = *x / 2.0 + 0.5);
    if let Some(view) = &draws.view {
        seen.clear();
        seen.extend_from_slice(picture);
        view.sample(seen, size, picture);
    }
    if draws.jitter.applied {
        draws.jitter.recolor(picture, quirks.saturation_ignored);
    }
    picture.iter_mut().for_each(|x| *x = *x * 2.0 - 1.0);
}
