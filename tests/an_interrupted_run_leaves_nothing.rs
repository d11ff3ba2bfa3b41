//! Killed at any moment, a conversion leaves nothing under the final name, and the next one succeeds.

mod tool;

use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn killed_at_many_moments() {
    let from = tool::checkpoint("manager/pi0_ema/7");
    for scheme in ["burn", "jax", "openpi-torch"] {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        tool::convert(&from, &whole, &["--to", scheme]);
        let expected = listing(&whole);
        let mut killed = 0;
        for moment in 0..24 {
            let to = folder.path().join("out");
            let mut child = Command::new(env!("CARGO_BIN_EXE_pi0"))
                .args(["convert", "--to", scheme, "--threads", "1", "--checkpoint-dir"])
                .args([&from])
                .arg("--output")
                .args([&to])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(700 * moment));
            child.kill().unwrap();
            if !child.wait().unwrap().success() {
                killed += 1;
            }
            // Nothing, or all of it.
            if to.exists() {
                assert_eq!(listing(&to), expected, "{scheme}: half a folder after {moment} steps");
                std::fs::remove_dir_all(&to).unwrap();
            }
            tool::convert(&from, &to, &["--to", scheme]);
            assert_eq!(listing(&to), expected, "{scheme}: after a run that was killed");
            std::fs::remove_dir_all(&to).unwrap();
            let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(left, ["whole"], "{scheme}: leftovers");
        }
        assert!(killed > 0, "{scheme}: no run was interrupted");
    }
}

/// Every file below a folder with its bytes.
fn listing(folder: &std::path::Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut all = std::collections::BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                all.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            }
        }
    }
    all
}
