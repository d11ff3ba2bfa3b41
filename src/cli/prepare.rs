//! `pi0 prepare`.
//!
//! Invariant: a prepared picture is the one that a policy makes of the frame (`policy::image`), bit for bit.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::Answer;
use super::output::{Mouth, size};
use crate::data::lerobot::prepared::DEFAULT_DIR;
use crate::data::lerobot::{Dataset, Episode};
use crate::policy::image::{fitted, resize_with_pad};
use crate::weights::convert::Progress;

const EXAMPLES: &str = "\
Examples:
  Decode and resize all frames once, into <dataset>/.pi0-cache:
    pi0 prepare ~/data/aloha_pen_uncap

  Some episodes, to another disk (broken off, it goes on where it was):
    pi0 prepare ~/data/aloha_pen_uncap --episodes 0-49,60 --cache /fast/pen_uncap";

/// Decode and resize the pictures of a LeRobot dataset once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, after_help = "More, with examples: pi0 prepare --help")]
pub struct Args {
    /// Folder of a LeRobot dataset: v2.0, v2.1 or v3.0
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Height and width to resize to, with black around
    #[arg(long, default_value = "224", value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub size: u16,

    /// Episodes: `3`, `0-49`, `0-9,20` (default: all)
    #[arg(long, value_name = "LIST")]
    pub episodes: Option<String>,

    /// Where to keep the frames (default: .pi0-cache in the dataset)
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    cache: String,
    episodes: usize,
    cameras: Vec<String>,
    size: u16,
    written: u64,
    kept: u64,
    bytes: u64,
}

/// Runs it.
///
/// # Errors
/// No dataset, no cameras, no ffmpeg where it is needed, frames that cannot be decoded, a full disk.
pub fn run(args: Args, mouth: &Mouth) -> Result<Answer> {
    let dataset = Dataset::open(&args.dir)?;
    let cameras: Vec<String> = dataset.cameras().map(str::to_owned).collect();
    ensure!(!cameras.is_empty(), "{}: the dataset has no cameras: there is nothing to prepare", args.dir.display());
    let episodes = match &args.episodes {
        Some(list) => chosen(&dataset, list).with_context(|| format!("--episodes {list}"))?,
        None => dataset.episodes().iter().collect(),
    };
    let cache = args.cache.unwrap_or_else(|| args.dir.join(DEFAULT_DIR));
    let pixels = usize::from(args.size);
    let frame_bytes = (pixels * pixels * 3) as u64;
    let frames: usize = episodes.iter().map(|episode| episode.len()).sum();
    mouth.phase("preparing", (frames * cameras.len()) as u64 * frame_bytes);
    let resize = |picture: &[u8], from: (usize, usize)| resized(picture, from, pixels);
    let done = dataset.prepare(&cache, &episodes, pixels, HOW, &resize, &|frames| mouth.at(frames * frame_bytes))?;
    let report = Report {
        cache: cache.display().to_string(),
        episodes: episodes.len(),
        cameras,
        size: args.size,
        written: done.written,
        kept: done.kept,
        bytes: done.bytes,
    };
    mouth.say(&report, || {
        let Report { cache, episodes, cameras, written, kept, bytes, .. } = &report;
        let (cameras, bytes) = (cameras.len(), size(*bytes));
        format!("{cache}: {episodes} episodes of {cameras} cameras, {bytes}; {written} written, {kept} were there\n")
    })?;
    Ok(Answer::Yes)
}

/// What is done to pictures; films that were made otherwise are made anew.
pub(super) const HOW: &str = "Pillow bilinear, padded";

/// A picture at the size asked for, as a policy resizes it.
fn resized(picture: &[u8], (h, w): (usize, usize), pixels: usize) -> Result<Vec<u8>, String> {
    match fitted(h, w, pixels, pixels) {
        Some(_) => Ok(resize_with_pad(picture, (h, w), (pixels, pixels))),
        None => Err(format!("pictures of {w}x{h}: nothing would be left of them at {pixels}x{pixels}")),
    }
}

/// `0-9,20` as episodes.
fn chosen<'a>(dataset: &'a Dataset, list: &str) -> Result<Vec<&'a Episode>> {
    let mut all = vec![];
    for part in list.split(',').map(str::trim) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u64>().with_context(|| format!("{text:?} is no number"));
        let (from, to) = (number(from)?, number(to)?);
        // Both ends must be there; between them, what the dataset has.
        dataset.episode(from)?;
        dataset.episode(to)?;
        if from > to {
            bail!("{part}: it ends before it begins");
        }
        all.extend(dataset.episodes().iter().filter(|episode| (from..=to).contains(&episode.index)));
    }
    all.sort_by_key(|episode: &&Episode| episode.index);
    all.dedup_by_key(|episode| episode.index);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_so_narrow_that_nothing_is_left_is_refused_with_both_sizes() {
        let fault = resized(&[0; 1500], (1, 500), 224).unwrap_err();
        assert_eq!(fault, "pictures of 500x1: nothing would be left of them at 224x224");
        assert_eq!(resized(&[7; 12], (2, 2), 2).unwrap(), [7; 12]);
    }
}
