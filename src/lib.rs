//! pi0-burn

/// Where openpi keeps its downloads, and what a `gs://` address means on this machine; only the feature `gcs` downloads.
pub mod cache;
