#![doc = include_str!("../README.md")]
//!
//! # Map of the source
//!
//! `varint`, `cursor` (bytes that know their place) → `envelope` → `table` (data files and references) → `node` (B+tree), `version` (version
//! tree), `manifest` → `file` (careful opening), `walk` → `database`; `tree` (building) → `writer`. Each format piece's encoder stands beside its decoder.
//!
//! Invariant: foreign bytes end in a value or in an [`Error`] that names file and byte; they never panic, never make the crate allocate by a number they
//! claim, and never keep it busy for ever.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod cursor;
mod database;
mod envelope;
mod error;
mod file;
#[doc(hidden)]
pub mod fuzzing;
pub mod limits;
mod manifest;
mod node;
mod table;
#[cfg(test)]
mod tests;
mod tree;
mod varint;
mod version;
mod walk;
mod writer;

pub use database::{Database, Entry, Value};
pub use envelope::Compression;
pub use error::{Error, Place, Problem, Result};
pub use manifest::Config;
pub use node::Statistics;
pub use version::Version;
pub use writer::{DataFile, Options, ValueWriter, Writer};

/// A bounded reader over one value. `Read` only; ends exactly at the value's end.
pub type ValueReader<'a> = Box<dyn std::io::Read + Send + 'a>;
