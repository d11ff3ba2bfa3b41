//! pi0-burn: Physical Intelligence's pi0 models out of Python.
//!
//! The rooms, in reading order:
//! - [`cache`]: what a `gs://` address means on this machine; only the feature `gcs` downloads.
//! - `chance`: every random value of the tool, a function of a seed, a name, a row and an index.
//! - `plot`: curves and pages that stand alone: no script, nothing from elsewhere, every text escaped.
//! - [`policy`]: robot data ⇄ model data, each step with its way back. No Burn.
//! - `data`: LeRobot datasets as records that `policy` reads. No Burn.
//! - `kernels`: the operations that Burn's CPU backend is too slow at. Every path through them gives the
//!   same result but for the order of sums.
//! - `model`: the network, written once for pi0, pi0.5 and pi0-FAST. It knows no file, no clock, no chance.
//! - [`weights`]: checkpoints opened, understood, converted, compared. Nothing is written before all that can be
//!   refused is refused.
//! - `sample`: from an observation to actions, by Euler steps or token by token.
//! - `device`: the one place that names a backend or decides a dtype.
//! - `train`: fine-tuning: the loss as openpi has it, the step as optax makes it, runs that go on where they stopped.
//! - `serve`: openpi's websocket protocol: a server that holds, and a client. It knows a policy only as a trait. No Burn.
//! - `verify`: the proof: the model run on recorded inputs, every intermediate compared with what JAX recorded.
//! - [`config`]: `configs/*.toml` as settings: models, robots, presets.
//! - [`cli`]: the `pi0` command: one file a verb, one mouth.

pub mod cache;
#[cfg(feature = "robot")]
pub mod chance;
pub mod cli;
pub mod config;
#[cfg(feature = "robot")]
pub mod data;
#[cfg(feature = "model")]
pub mod device;
#[cfg(feature = "model")]
pub mod kernels;
#[cfg(feature = "model")]
pub mod model;
#[cfg(feature = "robot")]
pub mod plot;
pub mod policy;
#[cfg(feature = "model")]
pub mod sample;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "robot")]
pub mod train;
#[cfg(feature = "model")]
pub mod verify;
pub mod weights;
