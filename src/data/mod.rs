//! Recorded robot data: LeRobot datasets, their tables and their videos. No Burn.

pub mod recording;
