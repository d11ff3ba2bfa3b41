//! What no tensor tells, and who told it instead: a flag, the checkpoint's own configuration, or the published model.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::weights::open::Opened;

/// Bytes of a `config.json`.
const MAX_CONFIG: u64 = 1 << 20;
/// Names that the family's own and foreign configurations have for them: ours, LeRobot's, openpi's.
const ACTION_HORIZON: [&str; 2] = ["action_horizon", "chunk_size"];
const PROMPT_LENGTH: [&str; 3] = ["prompt_length", "tokenizer_max_length", "max_token_len"];

/// A size, and who told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) value: usize,
    pub(super) by: String,
}

/// Steps of an action chunk.
pub(super) fn action_horizon(flag: Option<usize>, opened: &Opened, family: &str) -> Result<Told> {
    tell(flag, "--action-horizon", &ACTION_HORIZON, opened, family)
}

/// Tokens of a prompt.
pub(super) fn prompt_length(flag: Option<usize>, opened: &Opened, family: &str) -> Result<Told> {
    tell(flag, "--prompt-length", &PROMPT_LENGTH, opened, family)
}

fn tell(flag: Option<usize>, flag_name: &str, keys: &[&str], opened: &Opened, family: &str) -> Result<Told> {
    if let Some(value) = flag {
        return Ok(Told { value, by: flag_name.to_owned() });
    }
    if let Some((config, by)) = own_config(opened)? {
        let found = keys.iter().find_map(|key| Some((config.get(key)?.as_u64()?, key)));
        if let Some((value, key)) = found {
            ensure!((1..=100_000).contains(&value), "{by}: {key} {value}: expected 1 to 100000");
            return Ok(Told { value: value as usize, by });
        }
    }
    published(keys[0], family)
}

/// The configuration beside the weights, or in the file's metadata.
fn own_config(opened: &Opened) -> Result<Option<(Value, String)>> {
    if let Some(text) = opened.metadata.get("pi0.config") {
        return Ok(serde_json::from_str(text).ok().map(|value| (value, "the file's metadata".to_owned())));
    }
    let folder = if opened.path.is_dir() { Some(opened.path.as_path()) } else { opened.path.parent() };
    let Some(path) = folder.map(|f| f.join("config.json")).filter(|p| p.is_file()) else { return Ok(None) };
    read(&path).map(|value| value.map(|value| (value, path.display().to_string())))
}

/// A configuration of another program may be anything; only one that is JSON tells something.
fn read(path: &Path) -> Result<Option<Value>> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_CONFIG {
        return Ok(None);
    }
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&text).ok())
}

fn published(key: &str, family: &str) -> Result<Told> {
    let (text, name) = match family {
        "pi0" => (include_str!("../../../configs/model/pi0.toml"), "configs/model/pi0.toml"),
        "pi05" => (include_str!("../../../configs/model/pi05.toml"), "configs/model/pi05.toml"),
        _ => (include_str!("../../../configs/model/pi0_fast.toml"), "configs/model/pi0_fast.toml"),
    };
    let table: toml::Table = toml::from_str(text).with_context(|| name.to_owned())?;
    let value = table.get(key).and_then(toml::Value::as_integer).with_context(|| format!("{name}: no {key}"))?;
    Ok(Told { value: value as usize, by: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_published_sizes() {
        let told = |family| [ACTION_HORIZON[0], PROMPT_LENGTH[0]].map(|key| published(key, family).unwrap().value);
        assert_eq!([told("pi0"), told("pi05"), told("pi0_fast")], [[50, 48], [50, 200], [32, 250]]);
    }
}
