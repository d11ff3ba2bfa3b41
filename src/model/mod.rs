//! The network, written once for pi0, pi0.5 and pi0-FAST.
//!
//! Modules in reading order: [`settings`] (what a model is made of), [`observation`] (what it sees), [`vision`] and
//! [`language`] (SigLIP and Gemma), made of [`linear`], [`norm`], [`rope`], [`mask`], [`cache`],
//! [`time`]; [`pi`] (the whole), [`flow`] and [`fast`] (what it is asked to do), [`tap`] (what can be heard of it).
//!
//! Letters, everywhere: B batch, T query, S key, N heads, K kv heads, H head size, W width, F hidden, L layer, E expert,
//! V vocabulary, A action dim, D vision width, R LoRA rank.
//!
//! Invariants: no file, clock or random source is known here; noise and time are arguments. The dtype of activations is
//! the model's; a weight of another dtype is cast where it is used.

pub mod cache;
pub mod fast;
pub mod flow;
pub mod language;
pub mod linear;
pub mod mask;
pub mod norm;
pub mod observation;
pub mod pi;
pub mod rope;
pub mod settings;
pub mod tap;
pub mod time;
pub mod vision;

pub use pi::{Padding, Pi, Prefix};
pub use settings::Settings;
pub use tap::Taps;
