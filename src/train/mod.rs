//! Fine-tuning: from batches to weights, with the model that `verify` proved.
//!
//! In reading order:
//! - [`settings`]: how a step is made, as a preset says it.
//! - [`freeze`]: what is not trained, by names.
//! - [`augment`]: the pictures of a batch, cropped, turned and recoloured as openpi does it.
//! - [`schedule`]: the learning rate by step.
//! - [`journal`]: what a run writes about itself.
//! - [`memory`]: what a run takes on its device.
//! - `batch`: examples as the model takes them.
//! - `leaves`, `backward`: loss and gradients.
//! - `optimizer`, `state`: what a step makes of them, on one device or several.
//! - `snapshot`: the state as it is saved and taken up again.
//!
//! Invariants: a run is a function of its configuration, its data and its seed: chance comes from (seed, step) alone, so
//! that a run that was stopped ends with the same bytes as one that was not; what is frozen has no gradient and no state.

pub mod augment;
#[cfg(feature = "model")]
pub mod backward;
#[cfg(feature = "model")]
pub mod batch;
pub mod freeze;
pub mod journal;
#[cfg(feature = "model")]
pub mod leaves;
pub mod memory;
#[cfg(feature = "model")]
pub mod optimizer;
pub mod schedule;
pub mod settings;
#[cfg(feature = "model")]
pub mod snapshot;
#[cfg(feature = "model")]
pub mod state;
