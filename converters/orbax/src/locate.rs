//! From what the user typed to the item folder that was meant.
//!
//! Source: the folders that Orbax's managers, its plain checkpointers and its v1 API write (<https://github.com/google/orbax>), and openpi's
//! `<step>/{params, train_state, assets}`.
//! Invariant: what is taken is a complete save: never a folder that Orbax was still writing. The choice is said in one sentence.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::{TEMPORARY, refuse_unfinished};
use crate::error::{Error, Result};

/// Items that are taken without being asked for, the first that exists.
const PREFERRED: [&str; 4] = ["params", "default", "pytree", "state"];
/// Folder entries named in a message.
const MAX_NAMED: usize = 8;

/// Where a checkpoint was found from what the user typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The item folder, to be given to [`Checkpoint::open`](crate::Checkpoint::open).
    pub dir: PathBuf,
    /// Item name (`params`), if the folder is an item of a step.
    pub item: Option<String>,
    /// Step number, if it is in a step folder.
    pub step: Option<u64>,
    /// The step's `assets` folder, where it exists.
    pub assets: Option<PathBuf>,
    /// One sentence: what was taken and why ("latest of 3 steps: 19999").
    pub taken: String,
}

/// Accepts an item folder (`ckpt/params`), a step (`ckpt/19999`), a folder with items, an experiment folder with numbered steps (the latest
/// complete one is taken); `item` chooses among a step's items.
///
/// # Errors
/// Nothing there, nothing complete, an item that does not exist or more than one to choose from: the message lists what was found.
pub fn locate(path: impl AsRef<Path>, item: Option<&str>) -> Result<Location> {
    let given = path.as_ref();
    let found = fs::metadata(given).map_err(|e| Error::io(given, e))?;
    if !found.is_dir() {
        return Err(nothing(given, "is a file; a checkpoint is a folder".to_owned()));
    }
    // `.` and `ckpt/params/..` have no name of their own; names decide about steps, items and unfinished saves.
    let dir = match given.file_name() {
        Some(_) => given.to_path_buf(),
        None => given.canonicalize().map_err(|e| Error::io(given, e))?,
    };
    refuse_unfinished(&dir)?;
    if let Some(wanted) = item {
        let plain = !wanted.is_empty() && wanted != "." && wanted != ".." && !wanted.contains(['/', '\\', '\0']);
        if !plain || wanted.contains(TEMPORARY) {
            return Err(nothing(&dir, format!("{wanted:?} is not the name of an item")));
        }
    }
    if is_item(&dir) {
        return item_itself(&dir, item);
    }
    let listing = Listing::read(&dir)?;
    if !listing.items.is_empty() {
        return choose(&dir, &listing, item, None);
    }
    if !listing.steps.is_empty() {
        return latest_step(&dir, &listing, item);
    }
    Err(nothing(&dir, listing.describe()))
}

fn nothing(dir: &Path, problem: String) -> Error {
    Error::NotACheckpoint { dir: dir.to_path_buf(), problem }
}

/// A folder that [`Checkpoint::open`](crate::Checkpoint::open) has something to say about.
fn is_item(dir: &Path) -> bool {
    ["_METADATA", "manifest.ocdbt", "checkpoint"].iter().any(|name| dir.join(name).is_file())
        || has_process_folders(dir)
}

fn has_process_folders(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("ocdbt.process_"))
}

/// An item whose save was finished.
fn is_complete(dir: &Path) -> bool {
    dir.join("_METADATA").is_file() && (dir.join("manifest.ocdbt").is_file() || !has_process_folders(dir))
}

fn name_of(dir: &Path) -> String {
    dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A step folder is named by its number, with the manager's prefix before an underscore where it was given one.
fn step_number(name: &str) -> Option<u64> {
    let digits = name.rsplit_once('_').map_or(name, |(_, digits)| digits);
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

fn assets_of(step: &Path) -> Option<PathBuf> {
    Some(step.join("assets")).filter(|assets| assets.is_dir())
}

fn item_itself(dir: &Path, item: Option<&str>) -> Result<Location> {
    let name = name_of(dir);
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let of_step = step_number(&name_of(parent));
    // A bare save may be named anything; it is an item of its parent where the parent is a step or the name is a usual one.
    let known = of_step.is_some() || PREFERRED.contains(&name.as_str()) || name == "train_state";
    if let Some(wanted) = item
        && wanted != name
    {
        let beside = parent.join(wanted);
        let hint = if is_item(&beside) { format!("; there is {}", beside.display()) } else { String::new() };
        return Err(nothing(dir, format!("is itself an item, {name:?}, and not {wanted:?}{hint}")));
    }
    Ok(Location {
        dir: dir.to_path_buf(),
        step: if known { of_step } else { step_number(&name) },
        assets: assets_of(if known { parent } else { dir }),
        taken: format!("{} as given", if known { format!("item {name}") } else { "the folder".to_owned() }),
        item: known.then_some(name),
    })
}

/// What a folder holds.
#[derive(Default)]
struct Listing {
    items: Vec<String>,
    steps: Vec<(u64, String)>,
    unfinished: Vec<String>,
    others: Vec<String>,
}

impl Listing {
    fn read(dir: &Path) -> Result<Self> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let entry = entry.map_err(|e| Error::io(dir, e))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let path = entry.path();
            if !path.is_dir() {
                listing.others.push(name);
            } else if name.contains(TEMPORARY) {
                listing.unfinished.push(name);
            } else if let Some(step) = step_number(&name) {
                listing.steps.push((step, name));
            } else if is_item(&path) {
                listing.items.push(name);
            } else {
                listing.others.push(name);
            }
        }
        listing.items.sort();
        listing.unfinished.sort();
        listing.others.sort();
        listing.steps.sort();
        Ok(listing)
    }

    fn describe(&self) -> String {
        let mut parts = vec!["no checkpoint in it".to_owned()];
        if !self.unfinished.is_empty() {
            parts.push(format!("only unfinished saves: {}", some(&self.unfinished)));
        }
        if !self.others.is_empty() {
            parts.push(format!("found {}", some(&self.others)));
        }
        parts.push("give a folder with _METADATA, a step, or an experiment folder with numbered steps".to_owned());
        parts.join("; ")
    }
}

fn some(names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Takes an item of a folder that has items.
fn choose(dir: &Path, listing: &Listing, item: Option<&str>, latest: Option<String>) -> Result<Location> {
    let (name, why) = match (item, listing.items.as_slice()) {
        (Some(wanted), items) => match items.iter().find(|name| *name == wanted) {
            Some(name) => (name, "as asked for".to_owned()),
            None => {
                return Err(nothing(dir, format!("no item {wanted:?}; found {}", some(items))));
            }
        },
        (None, [only]) => (only, "the only item".to_owned()),
        (None, items) => match PREFERRED.iter().find_map(|wanted| items.iter().find(|name| name == wanted)) {
            Some(name) => (name, format!("of {}", some(items))),
            None => {
                return Err(nothing(dir, format!("several items, choose one: {}", some(items))));
            }
        },
    };
    let chosen = dir.join(name);
    if !is_complete(&chosen) && !chosen.join("checkpoint").is_file() && !chosen.join("manifest.ocdbt").is_file() {
        return Err(Error::Unfinished {
            dir: chosen,
            problem: "no _METADATA or no merged manifest.ocdbt in it".to_owned(),
        });
    }
    let taken = match latest {
        Some(latest) => format!("{latest}, item {name} ({why})"),
        None => format!("item {name} ({why})"),
    };
    Ok(Location {
        dir: chosen,
        item: Some(name.clone()),
        step: step_number(&name_of(dir)),
        assets: assets_of(dir),
        taken,
    })
}

/// Takes the numerically largest step that is complete.
fn latest_step(dir: &Path, listing: &Listing, item: Option<&str>) -> Result<Location> {
    let total = listing.steps.len();
    let mut skipped = Vec::new();
    for (step, name) in listing.steps.iter().rev() {
        let path = dir.join(name);
        let count = if total == 1 { "the only step".to_owned() } else { format!("latest of {total} steps") };
        let note = if skipped.is_empty() { String::new() } else { format!(", skipping unfinished {}", some(&skipped)) };
        let latest = format!("{count}: {name}{note}");
        if is_item(&path) {
            if is_complete(&path) {
                if let Some(wanted) = item {
                    return Err(nothing(&path, format!("is itself an item; it has no item {wanted:?}")));
                }
                return Ok(Location {
                    assets: assets_of(&path),
                    dir: path,
                    item: None,
                    step: Some(*step),
                    taken: latest,
                });
            }
        } else {
            let inner = Listing::read(&path)?;
            if inner.unfinished.is_empty() && inner.items.iter().any(|item| is_complete(&path.join(item))) {
                return choose(&path, &inner, item, Some(latest));
            }
        }
        skipped.push(name.clone());
    }
    let steps: Vec<String> = listing.steps.iter().map(|(_, name)| name.clone()).collect();
    Err(nothing(dir, format!("none of its steps is a complete save: {}", some(&steps))))
}

#[cfg(test)]
#[path = "locate_tests.rs"]
mod tests;
