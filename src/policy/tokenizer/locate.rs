//! Where a tokenizer is looked for.
//!
//! Invariant: this only looks. A place that the user named is the only one; of the others the first that holds a file
//! decides, and if none does, the error lists every path in the order of looking.

use std::path::{Path, PathBuf};

use super::Error;

/// Names that the file has beside a checkpoint, in the order in which they are looked for.
pub const NAMES: [&str; 3] = ["paligemma_tokenizer.model", "tokenizer.model", "tokenizer.json"];
/// Where openpi downloads it from.
pub const PUBLISHED_AT: &str = "gs://big_vision/paligemma_tokenizer.model";

/// Where one may be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places<'a> {
    /// A file or folder that the user named.
    pub named: Option<&'a Path>,
    /// The folder of the checkpoint, or a file in it.
    pub checkpoint: Option<&'a Path>,
    /// Where openpi's cache has what lies at [`PUBLISHED_AT`].
    pub cached: Option<&'a Path>,
}

impl Places<'_> {
    /// The first file that is there. In a folder, [`NAMES`] are looked for; beside a checkpoint also in its `assets`, and
    /// one folder up, where a step folder or a `params` folder has its neighbours.
    ///
    /// # Errors
    /// None is there: every path that was looked at, and how to get one.
    pub fn find(&self) -> Result<PathBuf, Error> {
        let mut looked = vec![];
        match self.named {
            Some(named) if named.is_dir() => inside(named, &mut looked),
            Some(named) => looked.push(named.to_owned()),
            None => {
                if let Some(checkpoint) = self.checkpoint {
                    beside(checkpoint, &mut looked);
                }
                looked.extend(self.cached.map(Path::to_owned));
            }
        }
        match looked.iter().find(|path| path.is_file()) {
            Some(found) => Ok(found.clone()),
            None => Err(Error::NotFound { hint: hint(self.named.is_some()), looked }),
        }
    }
}

fn inside(folder: &Path, looked: &mut Vec<PathBuf>) {
    looked.extend(NAMES.iter().map(|name| folder.join(name)));
}

fn beside(checkpoint: &Path, looked: &mut Vec<PathBuf>) {
    let parent = || checkpoint.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folders = match checkpoint.is_file() {
        true => vec![parent().unwrap_or(Path::new("."))],
        false => std::iter::once(checkpoint).chain(parent()).collect(),
    };
    for folder in folders {
        inside(folder, looked);
        inside(&folder.join("assets"), looked);
    }
}

fn hint(named: bool) -> String {
    let get = format!(
        "to get it: `gsutil cp {PUBLISHED_AT} .`, or a build with the cargo feature gcs and --download; Gemma's own \
         tokenizer.model does as well (PyPI: maxtext==0.2.5, maxtext/assets/tokenizers/tokenizer.gemma)"
    );
    if named { get } else { format!("{get}; then give its path with --tokenizer") }
}

/// One path a line.
pub(super) fn lines(paths: &[PathBuf]) -> String {
    let lines: Vec<String> = paths.iter().map(|path| format!("  {}", path.display())).collect();
    lines.join("\n")
}
