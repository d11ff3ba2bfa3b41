//! Robot data ⇄ model data: what openpi calls transforms, each with its way back, written once. No Burn, no files of weights.
//!
//! In reading order:
//! - `array`, `record`: what flows: arrays and texts under keys joined by `/`, as openpi's flattened dictionaries.
//! - `step`: one step, and the chain of them. `apply` runs first to last, `undo` the same steps last to first.
//! - `task`, `repack`, `robot`, `delta`, `normalize`, `image`, `prompt`, `action_tokens`, `pad`: the steps.
//! - `chain`: the steps of a preset, in their order.
//! - `tokenizer`, `fast`: text ⇄ tokens, action chunks ⇄ tokens.
//! - [`norm_stats`]: the file of statistics that `normalize` goes by; `statistics`: how they are computed, and held against data.
//!
//! Invariant: nothing here asks which model it is for; a chain is told (`state` in the prompt or as a token, which widths,
//! which cameras). Source: openpi 15a9616, transforms.py and policies/.

#[cfg(feature = "robot")]
pub mod action_tokens;
#[cfg(feature = "robot")]
pub mod array;
#[cfg(feature = "robot")]
pub mod chain;
#[cfg(feature = "robot")]
pub mod chunking;
#[cfg(feature = "robot")]
pub mod delta;
#[cfg(feature = "robot")]
pub mod fast;
#[cfg(feature = "robot")]
pub mod image;
pub mod norm_stats;
#[cfg(feature = "robot")]
pub mod normalize;
#[cfg(feature = "robot")]
pub mod pad;
#[cfg(feature = "robot")]
pub mod prompt;
#[cfg(feature = "robot")]
pub mod record;
#[cfg(feature = "robot")]
pub mod repack;
#[cfg(feature = "robot")]
pub mod robot;
#[cfg(feature = "robot")]
pub mod statistics;
#[cfg(feature = "robot")]
pub mod step;
#[cfg(feature = "robot")]
pub mod task;
#[cfg(feature = "robot")]
pub mod tokenizer;
