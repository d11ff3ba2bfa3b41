//! The `pi0` command: one file a verb, one mouth ([`output`]).
//!
//! Exit codes: 0 done, 1 done and the answer is no, 2 could not.

#[cfg(feature = "model")]
mod chance;
#[cfg(feature = "robot")]
pub mod chunks;
pub mod convert;
mod diff;
#[cfg(feature = "robot")]
pub mod fast_tokenizer;
mod fetch;
pub mod inspect;
#[cfg(feature = "model")]
pub mod observation;
pub mod output;
mod raw;
#[cfg(feature = "model")]
pub mod sample;
#[cfg(feature = "robot")]
pub mod tokenizer;
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
    /// Convert a checkpoint: Orbax, safetensors or npz in; safetensors, an Orbax folder, a LeRobot folder out
    Convert(Box<convert::Args>),
    /// Make a FAST codec of action chunks, or check one against them
    #[cfg(feature = "robot")]
    FastTokenizer(Box<fast_tokenizer::Args>),
    /// Tell what a checkpoint is, list what is in it, or compare two
    Inspect(Box<inspect::Args>),
    /// Sample actions from an observation, or from chance: are the weights alive, and how fast?
    #[cfg(feature = "model")]
    Sample(Box<sample::Args>),
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
    let (mouth, result) = match cli.verb {
        Verb::Convert(args) => {
            let mouth = Mouth::new(args.json);
            let result = convert::run(*args, &mouth);
            (mouth, result)
        }
        #[cfg(feature = "robot")]
        Verb::FastTokenizer(args) => {
            let mouth = Mouth::new(args.json());
            let result = fast_tokenizer::run(*args, &mouth);
            (mouth, result)
        }
        Verb::Inspect(args) => {
            let mouth = Mouth::new(args.json);
            let result = inspect::run(*args, &mouth);
            (mouth, result)
        }
        #[cfg(feature = "model")]
        Verb::Sample(args) => {
            let mouth = Mouth::new(args.json);
            let result = sample::run(*args, &mouth);
            (mouth, result)
        }
        #[cfg(feature = "robot")]
        Verb::Tokenizer(args) => {
            let mouth = Mouth::new(args.json);
            let result = tokenizer::run(*args, &mouth);
            (mouth, result)
        }
        #[cfg(feature = "model")]
        Verb::Verify(args) => {
            let mouth = Mouth::new(args.json);
            let result = verify::run(*args, &mouth);
            (mouth, result)
        }
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
