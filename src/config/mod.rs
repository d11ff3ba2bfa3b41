//! `configs/*.toml` as the settings types that the rooms own.
//!
//! - `model`: `configs/model/`, what a model is made of.
//! - `robot`: `configs/robot/`, a robot as data.
//! - `train`: `configs/train/`, openpi's presets: model, data and training.
//!
//! Invariant: the files are part of the program; every name in them is openpi's; a key that nothing knows is refused.

#[cfg(feature = "model")]
pub mod model;
#[cfg(feature = "robot")]
pub mod robot;
#[cfg(feature = "robot")]
pub mod train;

#[cfg(feature = "model")]
pub use model::{Model, model, parse};
