//! `norm_stats.json`: how state and actions were normalised in training, one file per asset id.
//!
//! Source: openpi 15a9616, shared/normalize.py. The statistics stand under `norm_stats`; files of other tools that
//! leave this outer name away are read too. Numbers that are none are written by Python as bare `NaN`, `Infinity`.
//! Invariant: `text` is the file, byte for byte; what is parsed of it is for those who write it in another form.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// The file's name.
pub const FILE: &str = "norm_stats.json";
/// A real one has some kilobytes.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Folders in folders; an asset id has one or two parts.
const MAX_DEPTH: usize = 8;
/// Folders and files looked at in all.
const MAX_ENTRIES: usize = 100_000;

/// One `norm_stats.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct NormStats {
    /// Folder of the file below `assets`, with `/` between its parts; empty where it lies in `assets` itself.
    pub asset_id: String,
    /// The file.
    pub text: Vec<u8>,
    /// Statistics under their key: `state`, `actions`, and whatever else was normalised.
    pub keys: BTreeMap<String, Stats>,
}

/// Statistics of one vector; all lists are as long as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Mean.
    pub mean: Vec<f64>,
    /// Standard deviation.
    pub std: Vec<f64>,
    /// 1st percentile; older files have none.
    pub q01: Option<Vec<f64>>,
    /// 99th percentile; older files have none.
    pub q99: Option<Vec<f64>>,
}

impl Stats {
    /// Those that are there, by name, in the order openpi writes them.
    pub fn lists(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        let lists = [
            ("mean", Some(&self.mean)),
            ("std", Some(&self.std)),
            ("q01", self.q01.as_ref()),
            ("q99", self.q99.as_ref()),
        ];
        lists.into_iter().filter_map(|(name, list)| Some((name, list?.as_slice())))
    }

    /// Length of the vector.
    pub fn width(&self) -> usize {
        self.mean.len()
    }
}

impl NormStats {
    /// Parses a file's bytes.
    ///
    /// # Errors
    /// The key that is wrong, what it should be and what it is.
    pub fn parse(asset_id: impl Into<String>, text: Vec<u8>) -> Result<Self> {
        let readable = std::str::from_utf8(&text).context("it is not UTF-8")?;
        let document: Value = serde_json::from_str(&quote_bare_numbers(readable)).context("it is not JSON")?;
        let Value::Object(document) = document else { bail!("expected an object, found {}", kind(&document)) };
        let (prefix, entries) = match document.get("norm_stats") {
            Some(Value::Object(inner)) => ("norm_stats.", inner),
            Some(other) => bail!("norm_stats: expected an object, found {}", kind(other)),
            None => ("", &document),
        };
        let mut keys = BTreeMap::new();
        for (key, value) in entries {
            keys.insert(key.clone(), stats(&format!("{prefix}{key}"), value)?);
        }
        ensure!(!keys.is_empty(), "it has no statistics: expected keys such as state and actions");
        Ok(Self { asset_id: asset_id.into(), text, keys })
    }
}

/// What other tools call state and actions.
const ALIASES: [(&str, &[&str]); 2] = [("state", &["state", "observation.state"]), ("actions", &["actions", "action"])];

/// The statistics of state and actions in any tool's file: openpi's and giga-models' `norm_stats.json`, LeRobot's
/// `stats.json`, whose other entries (pictures, timestamps) are passed over. LeRobot's percentiles are weighted means of
/// those of its episodes, so they are left out: they are no percentiles of the dataset.
///
/// # Errors
/// A file that cannot be read or has neither; the key that is wrong.
pub fn read_any(path: &Path) -> Result<NormStats> {
    let shown = || path.display().to_string();
    let about = std::fs::metadata(path).with_context(shown)?;
    let file = if about.is_dir() { path.join(FILE) } else { path.to_owned() };
    let folder = file.parent().unwrap_or(Path::new("."));
    let text = read_inside(&folder.canonicalize().with_context(shown)?, &file)?;
    of_any_tool(text).with_context(|| file.display().to_string())
}

fn of_any_tool(text: Vec<u8>) -> Result<NormStats> {
    let readable = std::str::from_utf8(&text).context("it is not UTF-8")?;
    let document: Value = serde_json::from_str(&quote_bare_numbers(readable)).context("it is not JSON")?;
    let entries = document.get("norm_stats").unwrap_or(&document);
    let Value::Object(entries) = entries else { bail!("expected an object, found {}", kind(entries)) };
    let mut keys = BTreeMap::new();
    for (name, aliases) in ALIASES {
        let mut found = aliases.iter().filter_map(|alias| Some((*alias, entries.get(*alias)?)));
        let Some((alias, value)) = found.next() else { continue };
        ensure!(found.next().is_none(), "{name}: it is there under two names, {}", aliases.join(" and "));
        let mut stats = stats(alias, value)?;
        // Only LeRobot counts, and only LeRobot averages percentiles.
        if value.get("count").is_some() {
            (stats.q01, stats.q99) = (None, None);
        }
        keys.insert(name.to_owned(), stats);
    }
    let there: Vec<&str> = entries.keys().map(String::as_str).take(8).collect();
    ensure!(!keys.is_empty(), "no statistics of state or actions; there are {}", there.join(", "));
    Ok(NormStats { asset_id: String::new(), text, keys })
}

/// The file's text as openpi writes it.
///
/// # Errors
/// A number that is none: JSON has no word for it.
pub fn text(keys: &[(&str, &Stats)]) -> Result<String> {
    for (key, stats) in keys {
        for (name, list) in stats.lists() {
            ensure!(list.iter().all(|x| x.is_finite()), "{key}.{name}: a value is no number");
        }
    }
    Ok(serde_json::to_string_pretty(&Document { norm_stats: Entries(keys) })?)
}

/// The file as it is written: keys in the order given, which a map would sort.
#[derive(Serialize)]
struct Document<'a> {
    norm_stats: Entries<'a>,
}

struct Entries<'a>(&'a [(&'a str, &'a Stats)]);

struct Lists<'a>(&'a Stats);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(key, stats)| (key, Lists(stats))))
    }
}

impl Serialize for Lists<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_map(self.0.lists())
    }
}

/// Every `norm_stats.json` below a folder, sorted by asset id.
///
/// # Errors
/// A folder or file that cannot be read; a file that is none, with its path and the key that is wrong; a link that
/// leads out of the folder.
pub fn read_all(assets: &Path) -> Result<Vec<NormStats>> {
    let root = assets.canonicalize().with_context(|| assets.display().to_string())?;
    let mut found = vec![];
    let mut entries = 0;
    let mut folders = vec![(assets.to_owned(), String::new(), 0)];
    while let Some((folder, id, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry.with_context(|| folder.display().to_string())?;
            entries += 1;
            ensure!(
                entries <= MAX_ENTRIES,
                "{}: more than {MAX_ENTRIES} entries; is this a folder of assets?",
                assets.display()
            );
            let path = entry.path();
            let kind = entry.file_type().with_context(|| path.display().to_string())?;
            if kind.is_dir() {
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                    bail!("{}: the name is not UTF-8, so it cannot be an asset id", path.display());
                };
                ensure!(depth < MAX_DEPTH, "{}: folders lie more than {MAX_DEPTH} deep", path.display());
                let id = if id.is_empty() { name } else { format!("{id}/{name}") };
                folders.push((path, id, depth + 1));
            } else if entry.file_name() == FILE {
                let text = read_inside(&root, &path)?;
                found.push(NormStats::parse(id.clone(), text).with_context(|| path.display().to_string())?);
            }
        }
    }
    found.sort_by(|a, b| a.asset_id.cmp(&b.asset_id));
    Ok(found)
}

/// A plain file of bounded size, which after all links still lies in `root`.
fn read_inside(root: &Path, path: &Path) -> Result<Vec<u8>> {
    let shown = || path.display().to_string();
    let real: PathBuf = path.canonicalize().with_context(shown)?;
    ensure!(
        real.starts_with(root),
        "{}: a link that leads out of {}; put the file itself there",
        shown(),
        root.display()
    );
    let about = std::fs::metadata(&real).with_context(shown)?;
    ensure!(about.is_file(), "{}: not a file", shown());
    let mut text = vec![];
    let file = std::fs::File::open(&real).with_context(shown)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).with_context(shown)?;
    ensure!(text.len() as u64 <= MAX_FILE_BYTES, "{}: larger than {MAX_FILE_BYTES} bytes", shown());
    Ok(text)
}

/// `NaN`, `Infinity` and `-Infinity` outside of strings, put into quotes: JSON has no such numbers, Python writes them.
fn quote_bare_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_string = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        if in_string {
            match c {
                '"' => in_string = false,
                '\\' => taken += rest[taken..].chars().next().map_or(0, char::len_utf8),
                _ => {}
            }
        } else if c == '"' {
            in_string = true;
        } else if let Some(bare) = ["NaN", "Infinity", "-Infinity"].into_iter().find(|b| rest.starts_with(b)) {
            out.push('"');
            out.push_str(bare);
            out.push('"');
            rest = &rest[bare.len()..];
            continue;
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

fn stats(key: &str, value: &Value) -> Result<Stats> {
    let Value::Object(members) = value else { bail!("{key}: expected an object, found {}", kind(value)) };
    let list = |name: &str| match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => numbers(&format!("{key}.{name}"), value).map(Some),
    };
    let needed = |name: &str| list(name)?.with_context(|| format!("{key}.{name}: it is missing"));
    let stats = Stats { mean: needed("mean")?, std: needed("std")?, q01: list("q01")?, q99: list("q99")? };
    ensure!(stats.width() > 0, "{key}.mean: expected at least one value, found none");
    for (name, list) in stats.lists() {
        ensure!(
            list.len() == stats.width(),
            "{key}.{name}: expected {} values as in mean, found {}",
            stats.width(),
            list.len()
        );
    }
    Ok(stats)
}

fn numbers(key: &str, value: &Value) -> Result<Vec<f64>> {
    let Value::Array(values) = value else { bail!("{key}: expected a list of numbers, found {}", kind(value)) };
    let number = |(i, value): (usize, &Value)| match value {
        Value::String(s) if s == "NaN" => Ok(f64::NAN),
        Value::String(s) if s == "Infinity" => Ok(f64::INFINITY),
        Value::String(s) if s == "-Infinity" => Ok(f64::NEG_INFINITY),
        other => other.as_f64().with_context(|| format!("{key}[{i}]: expected a number, found {}", kind(other))),
    };
    values.iter().enumerate().map(number).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
#[path = "norm_stats_tests.rs"]
mod tests;
