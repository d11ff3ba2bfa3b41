//! `cargo xtask check`: the one list of what every change must pass; `.ci/run` calls it.
//!
//! Stops at the first step that fails. The sum over all tests is printed last, alone on its line, so that whoever reads
//! only the end of a log sees it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{golden, tidy, tokenizer};

/// A step that is a cargo command.
struct Step {
    what: &'static str,
    cargo: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    hint: &'static str,
}

const TEST: Step = Step {
    what: "tests",
    cargo: &["test", "--workspace"],
    environment: &[],
    hint: "the failing tests are named above",
};
/// The one feature that is off by default: downloads, against a server on the loopback.
const TEST_DOWNLOAD: Step = Step {
    what: "tests of downloading",
    cargo: &["test", "--package", "pi0-burn", "--no-default-features", "--features", "gcs", "--test", "download"],
    environment: &[],
    hint: "the failing tests are named above",
};
const FORMAT: Step = Step {
    what: "formatting",
    cargo: &["fmt", "--all", "--check", "--", "--color", "never"],
    environment: &[],
    hint: "run `cargo fmt --all`",
};
const LINT: Step = Step {
    what: "lints",
    cargo: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    environment: &[],
    hint: "clippy's findings are above",
};
const DOCUMENT: Step = Step {
    what: "documentation",
    cargo: &["doc", "--workspace", "--no-deps"],
    environment: &[("RUSTDOCFLAGS", "-D warnings")],
    hint: "rustdoc's findings are above",
};
/// Code that only a GPU can run is at least compiled and linted; it needs no GPU and no toolkit.
const LINT_CUDA: Step = Step {
    what: "lints of the CUDA build",
    cargo: &["clippy", "--package", "pi0-burn", "--features", "cuda", "--lib", "--bins", "--", "-D", "warnings"],
    environment: &[],
    hint: "the findings are above; vendor/cubecl-llvm says what stands in for what",
};

/// Runs every step in `root`; false at the first that fails.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let mut tally = Tally::default();
    let ok = steps(root, &mut tally)?;
    for line in &tally.lines {
        println!("{line}");
    }
    if !tally.lines.is_empty() {
        println!("{} passed, {} failed", tally.passed, tally.failed);
    }
    Ok(ok)
}

fn steps(root: &Path, tally: &mut Tally) -> Result<bool> {
    real_vocabulary(root)?;
    // The tests have built `pi0` with everything; the tests of downloading build it without the model.
    Ok(cargo(root, &TEST, Some(&mut *tally))?
        && procedural_sets(root)?
        && cargo(root, &TEST_DOWNLOAD, Some(&mut *tally))?
        && cargo(root, &FORMAT, None)?
        && cargo(root, &LINT, None)?
        && house_rules(root)?
        && cargo(root, &DOCUMENT, None)?
        && cargo(root, &LINT_CUDA, None)?)
}

/// Without it the tests that need it say that they were skipped: a machine without a network is no failure.
fn real_vocabulary(root: &Path) -> Result<()> {
    println!("== the real vocabulary: cargo xtask tokenizer");
    tokenizer::run(root).map(|_| ())
}

fn procedural_sets(root: &Path) -> Result<bool> {
    println!("== golden sets of procedural weights: cargo xtask golden");
    let ok = golden::tiny(root)?;
    if !ok {
        println!("check: a set departs: its lines above say where");
    }
    Ok(ok)
}

fn house_rules(root: &Path) -> Result<bool> {
    println!("== house rules: cargo xtask tidy");
    let ok = tidy::run(root)?;
    if !ok {
        println!("check: house rules failed: each line above says what to do instead");
    }
    Ok(ok)
}

/// Runs one step, passing its output on; with a tally, also reads the test runner's closing lines.
fn cargo(root: &Path, step: &Step, tally: Option<&mut Tally>) -> Result<bool> {
    println!("== {}: cargo {}", step.what, step.cargo.join(" "));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(step.cargo).envs(step.environment.iter().copied()).current_dir(root);
    // What cargo tells the program it runs about that program's package is not for the commands we start.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let cannot = || format!("cannot run cargo {}", step.cargo.join(" "));
    let status = match tally {
        None => command.status().with_context(cannot)?,
        Some(tally) => {
            let mut child = command.stdout(Stdio::piped()).spawn().with_context(cannot)?;
            let output = child.stdout.take().context("the child has no standard output")?;
            for line in BufReader::new(output).split(b'\n') {
                let line = line.with_context(cannot)?;
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                tally.read(&line);
            }
            child.wait().with_context(cannot)?
        }
    };
    if !status.success() {
        println!("check: {} failed ({status}): {}", step.what, step.hint);
    }
    Ok(status.success())
}

/// The sum of the test runner's closing lines.
#[derive(Default)]
pub(crate) struct Tally {
    lines: Vec<String>,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// Takes in a line such as `test result: ok. 12 passed; 0 failed; 0 ignored; …`; any other line is nothing to it.
    pub(crate) fn read(&mut self, line: &str) {
        let Some(counts) = line.trim().strip_prefix("test result: ") else { return };
        let count = |what: &str| {
            let words: Vec<&str> = counts.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
            words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse::<u64>().ok())
        };
        if let (Some(passed), Some(failed)) = (count("passed"), count("failed")) {
            self.passed += passed;
            self.failed += failed;
            self.lines.push(line.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_all_test_programs_are_summed() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test a_test_result: ok. 5 passed; is only a name ... ok",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.lines.len()), (15, 2, 2));
    }
}
