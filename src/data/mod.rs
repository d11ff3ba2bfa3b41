//! Recorded robot data: LeRobot datasets, their tables and their videos. No Burn.
//!
//! In reading order:
//! - [`video`]: the frames of a video, each at its time, through the `ffmpeg` program.
//! - [`lerobot`]: a dataset opened, its columns read fast, its frames as records.
//!
//! Invariant: a dataset is foreign bytes. What it says of itself is checked against what lies there before anything is
//! allocated by it, and every refusal names the file.

pub mod lerobot;
pub mod video;
