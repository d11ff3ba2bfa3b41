//! stub
use super::*;
pub(super) fn run(_a: &std::path::Path, _b: Option<&str>, _m: &Mouth) -> anyhow::Result<Answer> {
    anyhow::bail!("stub")
}
