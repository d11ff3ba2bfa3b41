//! The `pi0` command: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    pi0_burn::cli::run(pi0_burn::cli::Cli::parse())
}
