#![doc = include_str!("../README.md")]
//!
//! Modules in reading order: [`Map`] (text to rows), [`Plan`] (names and shapes to moves, or all faults), [`Mover`]
//! (chunks to slabs to regions to runs), [`Pairs`] (LoRA), [`Safetensors`] and [`Writer`].

#![forbid(unsafe_code)]

mod block;
mod build;
mod cast;
mod error;
mod gather;
mod lora;
mod map;
mod peft;
mod plan;
mod resolve;
mod run;
mod safetensors;
mod sizes;
mod whole;
mod writer;

pub use cast::castable;
pub use error::{Error, Fault, MapError, Refused, Result};
pub use lora::{Deltas, Memory, Pairs};
pub use map::{Index, Kind, Letter, Map, PI0, Row, Scheme, Side};
pub use peft::Adapter;
pub use plan::{At, Axis, Fate, From, Lora, Move, Options, Output, Plan, Tensor, Tie};
pub use run::{Mover, Settings, Sink, Tally, Unit};
pub use safetensors::{Safetensors, is_safetensors};
pub use sizes::{Scope, Sizes};
pub use whole::nearest;
pub use writer::{Writer, index_path, storable, to_bytes, write_whole};
