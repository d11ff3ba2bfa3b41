//! pi0-burn: Physical Intelligence's pi0 models out of Python.
//!
//! The rooms, in reading order:
//! - [`cache`]: what a `gs://` address means on this machine; only the feature `gcs` downloads.
//! - [`weights`]: checkpoints opened, understood, converted, compared. Nothing is written before all that can be
//!   refused is refused.
//! - `kernels` (feature `model`): the operations that Burn's CPU backend is too slow at. Every path through them gives the
//!   same result but for the order of sums.
//! - [`cli`]: the `pi0` command: one file a verb, one mouth.

pub mod cache;
pub mod cli;
#[cfg(feature = "model")]
pub mod kernels;
pub mod weights;
