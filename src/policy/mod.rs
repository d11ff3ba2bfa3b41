//! Robot data ⇄ model data: what openpi calls transforms, each with its way back, written once. No Burn, no files of weights.
//!
//! In reading order:
//! - [`mod@array`], [`record`]: what flows: arrays and texts under keys joined by `/`, as openpi's flattened dictionaries.
//! - [`step`]: one step, and the chain of them. `apply` runs first to last, `undo` the same steps last to first.
//! - `repack`, `robot`, `delta`, `normalize`, `image`, `pad`, [`prompt`], [`action_tokens`]: the steps.
//! - [`tokenizer`], [`fast`]: text ⇄ tokens, action chunks ⇄ tokens.
//! - [`norm_stats`]: the file of statistics that `normalize` goes by.
//!
//! Invariant: nothing here asks which model it is for; a chain is told (`state` in the prompt or as a token, which widths,
//! which cameras). Source: openpi 15a9616, transforms.py and policies/.

#[cfg(feature = "robot")]
pub mod action_tokens;
#[cfg(feature = "robot")]
pub mod array;
#[cfg(feature = "robot")]
pub mod fast;
pub mod norm_stats;
#[cfg(feature = "robot")]
pub mod prompt;
#[cfg(feature = "robot")]
pub mod record;
#[cfg(feature = "robot")]
pub mod step;
#[cfg(feature = "robot")]
pub mod tokenizer;
