//! x
use anyhow::Result;
use std::path::Path;
#[derive(clap::Args)]
pub(crate) struct Arguments {}
pub(crate) fn run(_: &Path, _: &Arguments) -> Result<bool> {
    Ok(true)
}
