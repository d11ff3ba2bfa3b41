//! The first batch's pictures, as the model saw them: PNG files in a folder, with what belongs to each beside them.
//!
//! Invariant: the captions are written last, and at once: a folder that has them is whole. A run that goes on shows what
//! it showed before.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Durable, JournalError, io, replace};
use crate::plot::png;

/// The folder, and the captions in it.
const FOLDER: &str = "first_batch";
const CAPTIONS: &str = "captions.json";
/// Examples that are shown.
pub(super) const MAX_EXAMPLES: usize = 8;
/// Cameras of an example that are shown.
const MAX_CAMERAS: usize = 8;
/// Bytes that are read back: of the captions, and of a picture.
const MAX_CAPTIONS_BYTES: u64 = 1 << 20;
const MAX_PNG_BYTES: u64 = 8 << 20;

/// An example of a batch, at the model's size, before it is augmented.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// What it was told.
    pub prompt: String,
    /// The dataset it is of.
    pub dataset: String,
    /// Its frame, counted over the whole dataset.
    pub frame: u64,
    /// Its pictures.
    pub images: Vec<Image>,
}

/// A camera's picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The camera: `base_0_rgb`.
    pub camera: String,
    /// Height and width.
    pub size: [usize; 2],
    /// RGB, row by row.
    pub pixels: Vec<u8>,
}

/// An example in the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Shown {
    pub(super) prompt: String,
    pub(super) dataset: String,
    pub(super) frame: u64,
    pub(super) pictures: Vec<Picture>,
}

/// A picture in the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Picture {
    pub(super) camera: String,
    pub(super) size: [usize; 2],
    file: String,
    #[serde(skip)]
    pub(super) png: Vec<u8>,
}

/// Writes what is shown of a batch.
pub(super) fn write(dir: &Path, examples: &[Example]) -> Result<Vec<Shown>, JournalError> {
    let folder = dir.join(FOLDER);
    fs::create_dir_all(&folder).map_err(io(&folder, "made"))?;
    let mut all = vec![];
    for (row, example) in examples.iter().take(MAX_EXAMPLES).enumerate() {
        let mut pictures = vec![];
        for (place, image) in example.images.iter().take(MAX_CAMERAS).enumerate() {
            let Image { camera, size, pixels } = image;
            let png = png(*size, pixels).map_err(|error| JournalError::Picture {
                camera: camera.clone(),
                size: *size,
                bytes: pixels.len(),
                why: error.to_string(),
            })?;
            let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
            let name: String = camera.chars().take(64).map(plain).collect();
            let file = format!("{row}_{place}_{name}.png");
            let path = folder.join(&file);
            fs::write(&path, &png).map_err(io(&path, "written"))?;
            pictures.push(Picture { camera: camera.clone(), size: *size, file, png });
        }
        let Example { prompt, dataset, frame, .. } = example.clone();
        all.push(Shown { prompt, dataset, frame, pictures });
    }
    let path = folder.join(CAPTIONS);
    let text = serde_json::to_vec_pretty(&all).map_err(|error| io(&path, "written")(error.into()))?;
    replace(&path, &mut &text[..], Durable::Yes)?;
    Ok(all)
}

/// What is shown; nothing where no captions are.
pub(super) fn read(dir: &Path) -> Result<Vec<Shown>, JournalError> {
    let folder = dir.join(FOLDER);
    let path = folder.join(CAPTIONS);
    if !path.exists() {
        return Ok(vec![]);
    }
    let text = bounded(&path, MAX_CAPTIONS_BYTES)?;
    let odd = |why: String| JournalError::Captions { path: path.clone(), why };
    let mut all: Vec<Shown> = serde_json::from_slice(&text).map_err(|error| odd(error.to_string()))?;
    all.truncate(MAX_EXAMPLES);
    for picture in all.iter_mut().flat_map(|shown| &mut shown.pictures) {
        let Picture { file, .. } = picture;
        if file.contains(['/', '\\']) || !file.ends_with(".png") {
            return Err(odd(format!("{file:?} is not the name of a picture")));
        }
        picture.png = bounded(&folder.join(&*file), MAX_PNG_BYTES)?;
    }
    Ok(all)
}

fn bounded(path: &Path, most: u64) -> Result<Vec<u8>, JournalError> {
    let file = File::open(path).map_err(io(path, "read"))?;
    let mut bytes = vec![];
    let read = file.take(most + 1).read_to_end(&mut bytes).map_err(io(path, "read"))?;
    if read as u64 > most {
        return Err(JournalError::TooLarge { path: path.to_owned(), most });
    }
    Ok(bytes)
}
