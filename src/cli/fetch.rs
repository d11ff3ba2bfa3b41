//! From what the user typed to a path on this machine: as it is, from openpi's cache, or downloaded into it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::output::Mouth;
use crate::cache::{self, Home};

/// A path as typed, or where openpi keeps what it downloaded from there.
///
/// # Errors
/// A `gs://` path that is not in the cache and may not, or cannot, be fetched.
pub(super) fn resolve(path: &Path, download: bool, mouth: &Mouth) -> Result<PathBuf> {
    let home = Home::from_env();
    match cache::locate(&home, path) {
        Ok(found) => Ok(found.into_path()),
        Err(error @ (cache::Error::NotCached { .. } | cache::Error::Outdated { .. })) if download => {
            fetch(&home, path, error, mouth)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(feature = "gcs")]
fn fetch(home: &Home, path: &Path, _: cache::Error, mouth: &Mouth) -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::weights::convert::Progress as _;

    struct Bar<'a>(&'a Mouth, AtomicU64);
    impl cache::Progress for Bar<'_> {
        fn start(&self, files: u64, bytes: u64) {
            self.0.phase(&format!("downloading {files} files"), bytes.max(1));
        }
        fn advance(&self, bytes: u64) {
            self.0.at(self.1.fetch_add(bytes, Ordering::Relaxed) + bytes);
        }
    }
    let url = path.to_string_lossy();
    Ok(cache::download(home, &url, &Bar(mouth, AtomicU64::new(0)), &cache::Options::default())?)
}

#[cfg(not(feature = "gcs"))]
fn fetch(_: &Home, _: &Path, error: cache::Error, _: &Mouth) -> Result<PathBuf> {
    Err(anyhow::Error::from(error)
        .context("--download needs a build with the cargo feature gcs: cargo install --path . --features gcs"))
}
