//! An episode's recorded actions beside the chunks that a policy predicted along it: numbers, a picture, a report.
//!
//! Invariant: a step is compared with the action that was recorded for its frame and with no other; steps beyond the
//! episode's end are neither compared nor drawn.
//!
//! - [`metrics`]: errors by joint and by horizon step, and those of standing still
//! - [`svg`]: a panel for each joint; the error over the horizon
//! - [`html`]: all of it in one file

pub mod html;
pub mod metrics;
pub mod svg;

use anyhow::{Result, ensure};

use crate::plot::usable;
pub use crate::plot::{escape, number, percent};

/// Joints at most: a picture of more is none.
const MAX_JOINTS: usize = 256;
/// Predicted values at most, of all chunks and joints.
const MAX_VALUES: usize = 1 << 20;

/// An episode, recorded and predicted. All actions are in the robot's units.
#[derive(Debug, Clone, Default)]
pub struct Compared {
    /// What it is: the dataset and the episode.
    pub title: String,
    /// What predicted: config, precision, checkpoint.
    pub subtitle: String,
    /// Frames per second.
    pub fps: f64,
    /// Names of the joints, D of them: `left_waist`, or `dim 0`.
    pub joints: Vec<String>,
    /// The recorded actions: frames of D values.
    pub recorded: Vec<Vec<f64>>,
    /// The frame of the episode to which the first of `recorded` belongs.
    pub first_frame: usize,
    /// What was predicted, by frame.
    pub chunks: Vec<Chunk>,
}

/// What was predicted at one frame.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// The frame of the episode, counted as [`Compared::first_frame`] is. Action h is for frame + h.
    pub frame: usize,
    /// The actions: horizon steps of D values.
    pub actions: Vec<Vec<f64>>,
    /// What the policy saw, each a PNG under its camera's name; only the report shows them.
    pub images: Vec<(String, Vec<u8>)>,
    /// What it was told.
    pub prompt: String,
    /// How long it took.
    pub infer_ms: f64,
}

impl Compared {
    /// Refuses what cannot be compared.
    ///
    /// # Errors
    /// No chunk, no frame or no joint; widths or horizons that differ; a chunk outside the episode; too much of all.
    pub fn check(&self) -> Result<()> {
        let joints = self.joints.len();
        ensure!(!self.chunks.is_empty(), "nothing was predicted: there is no chunk to compare");
        ensure!(!self.recorded.is_empty(), "nothing was recorded: the episode has no frame");
        ensure!(joints > 0, "the actions have no dim");
        ensure!(joints <= MAX_JOINTS, "{joints} dims are too many for a picture; at most {MAX_JOINTS} are drawn");
        ensure!(self.fps.is_finite() && self.fps > 0.0, "fps: expected a number above 0, found {}", self.fps);
        for (i, action) in self.recorded.iter().enumerate() {
            let frame = self.first_frame + i;
            ensure!(action.len() == joints, "frame {frame}: expected {joints} dims, recorded are {}", action.len());
        }
        let end = self.first_frame + self.recorded.len();
        let horizon = self.horizon();
        ensure!(horizon > 0, "the chunks have no steps");
        for Chunk { frame, actions, .. } in &self.chunks {
            let (first, last) = (self.first_frame, end - 1);
            ensure!((first..end).contains(frame), "a chunk at frame {frame}: the episode has {first} to {last}");
            ensure!(
                actions.len() == horizon,
                "frame {frame}: expected {horizon} steps, predicted are {}",
                actions.len()
            );
            for action in actions {
                ensure!(
                    action.len() == joints,
                    "frame {frame}: expected {joints} dims, predicted are {}",
                    action.len()
                );
            }
        }
        let values = self.chunks.len().saturating_mul(horizon).saturating_mul(joints);
        ensure!(values <= MAX_VALUES, "{values} predicted values are too many for a picture; take a larger --stride");
        Ok(())
    }

    /// Steps of a chunk.
    fn horizon(&self) -> usize {
        self.chunks.first().map_or(0, |chunk| chunk.actions.len())
    }

    /// When a frame was, in seconds of the episode.
    fn seconds(&self, frame: usize) -> f64 {
        frame as f64 / self.fps
    }

    /// Where a chunk begins in `recorded`, and how many of its steps were recorded.
    fn overlap(&self, chunk: &Chunk) -> (usize, usize) {
        let start = chunk.frame.saturating_sub(self.first_frame);
        (start, chunk.actions.len().min(self.recorded.len().saturating_sub(start)))
    }
}

#[cfg(test)]
mod tests;
