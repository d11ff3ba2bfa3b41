//! What the tests of the whole tool share: the binary, the shipped checkpoints, and a reader that is not ours.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The shipped checkpoints whose weights are a whole model, by their `params`.
pub const CHECKPOINTS: [&str; 8] = [
    "base/pi0/params",
    "base/pi05/params",
    "base/pi0fast/params",
    "base/pi0_bf16/params",
    "standard/pi0/params",
    "manager/pi0_ema/7/params",
    "manager/pi0_noema/7/params",
    "manager/pi0_lora/7/params",
];

pub fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/checkpoints").join(name)
}

/// Runs `pi0` with these arguments.
pub fn pi0<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi0")).args(arguments).output().expect("pi0 runs")
}

/// Runs `pi0` and demands that it succeeds; gives stdout.
pub fn done<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(arguments: &[S]) -> String {
    let output = pi0(arguments);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pi0 {arguments:?}\n{words}\n{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs `pi0` and demands that it could not; gives stderr.
pub fn refused<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(arguments: &[S]) -> String {
    let output = pi0(arguments);
    assert_eq!(output.status.code(), Some(2), "pi0 {arguments:?}\n{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).expect("text")
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Every tensor of a file, read by the safetensors crate.
pub fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.iter()
        .map(|(name, view)| {
            let tensor = Tensor {
                dtype: format!("{:?}", view.dtype()),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            (name.to_owned(), tensor)
        })
        .collect()
}

/// `pi0 convert --checkpoint-dir FROM --output TO` and more.
pub fn convert(from: &Path, to: &Path, more: &[&str]) -> String {
    let mut arguments = vec!["convert".into(), "--checkpoint-dir".into(), from.as_os_str().to_owned()];
    arguments.extend(["--output".into(), to.as_os_str().to_owned()]);
    arguments.extend(more.iter().map(Into::into));
    done(&arguments)
}
