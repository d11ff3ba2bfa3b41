//! Fine-tuning: from batches to weights, with the model that `verify` proved.
//!
//! Invariants: a run is a function of its configuration, its data and its seed: chance comes from (seed, step) alone, so
//! that a run that was stopped ends with the same bytes as one that was not; what is frozen has no gradient and no state.

pub mod freeze;
pub mod memory;
