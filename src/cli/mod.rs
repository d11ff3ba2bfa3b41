//! The `pi0` command: one file a verb, one mouth ([`output`]).
//!
//! Exit codes: 0 done, 1 done and the answer is no, 2 could not.

// Of pictures and arrays the network's verbs take more kinds than the others.
#[cfg(feature = "robot")]
#[cfg_attr(not(feature = "model"), allow(dead_code))]
pub mod array;
#[cfg(feature = "robot")]
pub mod chunks;
#[cfg(feature = "serve")]
pub mod client;
pub mod convert;
#[cfg(feature = "robot")]
pub mod dataset;
#[cfg(feature = "model")]
pub mod decoding;
mod diff;
#[cfg(feature = "model")]
pub mod engine;
#[cfg(feature = "robot")]
pub mod episode;
#[cfg(feature = "robot")]
pub mod explain;
#[cfg(feature = "robot")]
pub mod fast_tokenizer;
mod fetch;
#[cfg(feature = "model")]
pub mod finetune;
// Of an episode `sample` takes more than `client`.
#[cfg(feature = "serve")]
#[cfg_attr(not(feature = "model"), allow(dead_code))]
mod frames;
#[cfg(feature = "model")]
mod inference;
pub mod inspect;
#[cfg(feature = "serve")]
mod key;
#[cfg(feature = "serve")]
#[cfg_attr(not(feature = "model"), allow(dead_code, unreachable_pub))]
pub mod log;
#[cfg(feature = "model")]
mod made_up;
#[cfg(feature = "robot")]
mod motion;
#[cfg(feature = "model")]
mod network;
#[cfg(feature = "robot")]
pub mod norm_stats;
#[cfg(feature = "model")]
pub mod observation;
pub mod output;
#[cfg(feature = "model")]
pub mod policy;
#[cfg(feature = "robot")]
pub mod prepare;
mod raw;
#[cfg(feature = "robot")]
mod record;
#[cfg(feature = "serve")]
pub mod replay;
#[cfg(feature = "model")]
pub mod sample;
#[cfg(feature = "model")]
pub mod serve;
#[cfg(feature = "robot")]
mod statistics;
#[cfg(feature = "robot")]
pub mod tokenizer;
#[cfg(feature = "robot")]
mod tokenizing;
#[cfg(feature = "robot")]
pub mod training_data;
#[cfg(feature = "model")]
pub mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use output::Mouth;

/// Physical Intelligence's pi0 models out of Python.
#[derive(Debug, Parser)]
#[command(name = "pi0", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Ask a policy server, openpi's or ours, for actions: is it up, and how fast?
    #[cfg(feature = "serve")]
    Client(Box<client::Args>),
    /// Convert a checkpoint: Orbax, safetensors or npz in; safetensors, an Orbax folder, a LeRobot folder out
    Convert(Box<convert::Args>),
    /// Tell what a preset does to a robot's data, step by step
    #[cfg(feature = "robot")]
    Explain(Box<explain::Args>),
    /// Make a FAST codec of action chunks, or check one against them
    #[cfg(feature = "robot")]
    FastTokenizer(Box<fast_tokenizer::Args>),
    /// Fine-tune a model on a robot's data: whole, or by low-rank pairs
    #[cfg(feature = "model")]
    Finetune(Box<finetune::Args>),
    /// Tell what a checkpoint is, list what is in it, or compare two
    Inspect(Box<inspect::Args>),
    /// Compute what a dataset is normalised by, or hold such statistics against data
    #[cfg(feature = "robot")]
    NormStats(Box<norm_stats::Args>),
    /// Tell what a LeRobot dataset is (v2.0, v2.1, v3.0), and what is wrong with it
    #[cfg(feature = "robot")]
    Dataset(Box<dataset::Args>),
    /// Decode and resize the pictures of a LeRobot dataset once
    #[cfg(feature = "robot")]
    Prepare(Box<prepare::Args>),
    /// Ask a policy server again what it was asked, and hold its answers against the recorded ones
    #[cfg(feature = "serve")]
    Replay(Box<replay::Args>),
    /// Sample actions from an observation, or from chance: are the weights alive, and how fast?
    #[cfg(feature = "model")]
    Sample(Box<sample::Args>),
    /// Serve a policy to robots by openpi's websocket protocol
    #[cfg(feature = "model")]
    Serve(Box<serve::Args>),
    /// Tell what a tokenizer is; text to tokens, tokens to text; a .model as a tokenizer.json
    #[cfg(feature = "robot")]
    Tokenizer(Box<tokenizer::Args>),
    /// Tell whether this build, device and checkpoint compute what JAX computes, and where they first depart
    #[cfg(feature = "model")]
    Verify(Box<verify::Args>),
}

/// An answer: done, or done and it is no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Exit code 0.
    Yes,
    /// Exit code 1.
    No,
}

/// Runs a verb and turns its result into words and an exit code.
pub fn run(cli: Cli) -> ExitCode {
    /// A verb's own mouth, and what it said.
    macro_rules! speak {
        ($verb:ident, $args:expr) => {{
            let mouth = Mouth::new($args.json);
            let result = $verb::run(*$args, &mouth);
            (mouth, result)
        }};
    }
    let (mouth, result) = match cli.verb {
        #[cfg(feature = "serve")]
        Verb::Client(args) => speak!(client, args),
        Verb::Convert(args) => speak!(convert, args),
        #[cfg(feature = "robot")]
        Verb::Explain(args) => speak!(explain, args),
        #[cfg(feature = "robot")]
        Verb::FastTokenizer(args) => {
            let mouth = Mouth::new(args.json());
            let result = fast_tokenizer::run(*args, &mouth);
            (mouth, result)
        }
        #[cfg(feature = "model")]
        Verb::Finetune(args) => speak!(finetune, args),
        Verb::Inspect(args) => speak!(inspect, args),
        #[cfg(feature = "robot")]
        Verb::NormStats(args) => speak!(norm_stats, args),
        #[cfg(feature = "robot")]
        Verb::Dataset(args) => speak!(dataset, args),
        #[cfg(feature = "robot")]
        Verb::Prepare(args) => speak!(prepare, args),
        #[cfg(feature = "serve")]
        Verb::Replay(args) => speak!(replay, args),
        #[cfg(feature = "model")]
        Verb::Sample(args) => speak!(sample, args),
        #[cfg(feature = "model")]
        Verb::Serve(args) => speak!(serve, args),
        #[cfg(feature = "robot")]
        Verb::Tokenizer(args) => speak!(tokenizer, args),
        #[cfg(feature = "model")]
        Verb::Verify(args) => speak!(verify, args),
    };
    match result {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) => {
            mouth.error(&error);
            ExitCode::from(2)
        }
    }
}
