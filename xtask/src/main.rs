//! `cargo xtask <verb>`: the housekeeping of the project, in Rust so that it runs wherever the project builds.
//!
//! - [`check`]: everything a change must pass, in the order and with the flags CI uses
//! - [`tidy`]: the house rules that a machine can hold: arrows between rooms, sizes, names, heads, tours
//! - [`synth`]: full-size checkpoints with weights that any language can regenerate bit for bit
//! - [`mod@bench`]: what a verb costs, beside what the machine itself needs for the same bytes
//! - [`dataset`]: LeRobot datasets of any size, made up
//! - [`golden`]: the model verified on procedural weights, tiny ones and those of the published size
//! - [`soak`]: thousands of good and bad clients against a server that must hold
//! - [`wire`]: the clients, of the standard library alone
//! - [`gpu`]: a GPU probed, tested, verified and timed in one command
//! - [`tokenizer`]: Gemma's vocabulary fetched, for the tests of the real tokenizer
//!
//! Invariant: nothing here is shipped; no room depends on this one.
#![forbid(unsafe_code)]

mod bench;
mod check;
mod dataset;
mod golden;
mod gpu;
mod parallel;
mod procedural;
mod soak;
mod synth;
mod tidy;
mod tokenizer;
mod wire;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Housekeeping of pi0-burn", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run all that CI runs: tests, formatting, lints, house rules, documentation
    Check,
    /// Hold the tree against the house rules
    Tidy,
    /// Write a checkpoint with procedural weights, or check the generator against the recorded sums
    Synth(synth::Arguments),
    /// Measure a verb against the machine's own floor
    Bench(bench::Arguments),
    /// Make up a LeRobot dataset without pictures
    Dataset(dataset::Arguments),
    /// Make procedural weights and verify the model on them: tiny ones, or with --full the published size
    Golden(golden::Arguments),
    /// Let thousands of good and bad clients ask a server; exit 1 if it loses a good one, grows, or does not end
    Soak(soak::Arguments),
    /// Probe, test, verify and time a GPU, and write a report
    Gpu(gpu::Arguments),
    /// Fetch Gemma's vocabulary, for the tests of the real tokenizer
    Tokenizer,
}

fn main() -> ExitCode {
    // A program that was taken to another machine runs in the tree that was taken along.
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent().filter(|root| root.join("Cargo.toml").exists());
    let root = built_in.unwrap_or(Path::new("."));
    let done = match Arguments::parse().verb {
        Verb::Check => check::run(root),
        Verb::Tidy => tidy::run(root),
        Verb::Synth(arguments) => synth::run(root, &arguments),
        Verb::Bench(arguments) => bench::run(root, &arguments),
        Verb::Dataset(arguments) => dataset::run(&arguments),
        Verb::Golden(arguments) => golden::run(root, &arguments),
        Verb::Soak(arguments) => soak::run(root, &arguments),
        Verb::Gpu(arguments) => gpu::run(root, &arguments),
        Verb::Tokenizer => tokenizer::run(root),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
