//! `cargo xtask tidy`: the house rules that a machine can hold, held.
//!
//! Every rule is a function from the tree's text to findings, so a test can plant a violation in a tree of two lines.
//! A finding is one line, `file:line: what is wrong; what to do instead`. An error fails the run, a warning does not.
//!
//! - [`arrows`]: who may use whom, read from paths in the sources and from the manifests
//! - [`lines`]: what no line, file or name may be
//! - [`layout`]: what the README, `lib.rs` and `Cargo.toml` owe the reader
//! - [`source`]: Rust text with its comments and strings blanked out, which the rules read

mod arrows;
mod layout;
mod lines;
mod source;

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Files above this are not read: they are data, and too big to hold a sentence.
const MAX_TEXT_BYTES: u64 = 2 << 20;

/// One text file of the tree. `path` is relative to the root, with `/`.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The last part of the path.
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// A file that holds nothing but tests: unit tests beside the code, or a folder of integration tests.
    fn is_test(&self) -> bool {
        let stem = self.name().trim_end_matches(".rs");
        stem == "tests" || stem.ends_with("_tests") || self.path.split('/').any(|part| part == "tests")
    }
}

/// What one rule has to say about one place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    warning: bool,
    text: String,
}

impl Finding {
    fn error(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, warning: false, text: text.into() }
    }

    fn warning(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, warning: true, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.warning { "warning: " } else { "" };
        write!(out, "{}:{}: {mark}{}", self.path, self.line, self.text)
    }
}

/// Reads the tree, prints every finding; true if none is an error.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let files = read(root)?;
    let mut findings = inspect(&files);
    findings.extend(layout::builds(root));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    let errors = findings.iter().filter(|finding| !finding.warning).count();
    println!("tidy: {} files, {errors} errors, {} warnings", files.len(), findings.len() - errors);
    Ok(errors == 0)
}

/// Every rule that needs only the text of the tree.
fn inspect(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        lines::inspect(file, &mut findings);
        arrows::inspect(file, &mut findings);
    }
    lines::one_memory_map(files, &mut findings);
    layout::inspect(files, &mut findings);
    findings
}

/// The text files that git would take: tracked, or new and not ignored.
fn read(root: &Path) -> Result<Vec<File>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git: the house rules are held against the files git knows")?;
    if !listed.status.success() {
        bail!("git ls-files failed in {}: {}", root.display(), String::from_utf8_lossy(&listed.stderr).trim());
    }
    let mut files = Vec::new();
    for path in listed.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
        let path = String::from_utf8_lossy(path).into_owned();
        let full = root.join(&path);
        // A file deleted but not yet committed is listed, and gone.
        let Ok(metadata) = std::fs::symlink_metadata(&full) else { continue };
        if !metadata.is_file() {
            continue;
        }
        let bytes = if metadata.len() <= MAX_TEXT_BYTES {
            std::fs::read(&full).with_context(|| format!("cannot read {path}"))?
        } else {
            Vec::new()
        };
        // Data files stay in the list without text: the rooms they lie in still count.
        files.push(File { path, text: String::from_utf8(bytes).unwrap_or_default() });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    Ok(files)
}

#[cfg(test)]
fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_place_first() {
        let finding = Finding::error("src/model.rs", 3, "uses `policy`; they meet through Observation");
        assert_eq!(finding.to_string(), "src/model.rs:3: uses `policy`; they meet through Observation");
        assert_eq!(Finding::warning("a.rs", 1, "long").to_string(), "a.rs:1: warning: long");
    }
}
