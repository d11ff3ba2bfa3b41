//! Recorded robot data: LeRobot datasets, their tables and their videos; what openpi's recorder keeps. No Burn.
//!
//! In reading order:
//! - [`video`]: the frames of a video, each at its time, through the `ffmpeg` program.
//! - [`lerobot`]: a dataset opened, its columns read fast, its frames as records.
//! - [`loader`]: examples of training, in an order of chance, by worker threads.
//! - [`numpy`]: numpy's dtypes as bytes.
//! - [`recording`]: one inference as openpi's `PolicyRecorder` keeps it, read and written.
//!
//! Invariant: all of it is foreign bytes. What they say of themselves is checked against what lies there before anything
//! is allocated by it, and every refusal names the file.

pub mod lerobot;
pub mod loader;
pub mod numpy;
pub mod recording;
pub mod video;
