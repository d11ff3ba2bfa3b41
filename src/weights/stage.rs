//! Output that appears at once or not at all.
//!
//! A folder is built under a hidden name beside its place and renamed into it. Invariant: under the final name there
//! is the old content, nothing, or all of the new content; a killed run leaves only the hidden folder, which the next
//! run clears.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A folder in the making.
#[derive(Debug)]
pub struct Stage {
    target: PathBuf,
    building: PathBuf,
    done: bool,
}

/// What a folder that this tool may replace holds, one of them at least.
const OURS: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "config.json",
    "params",
    "manifest.ocdbt",
    "_METADATA",
];

impl Stage {
    /// Starts a folder that will be `target`.
    ///
    /// # Errors
    /// `target` is there and may not be replaced.
    pub fn open(target: &Path, overwrite: bool) -> Result<Self> {
        if target.is_file() {
            bail!("{} is a file; a folder of that name cannot be made", target.display());
        }
        may_replace(target, overwrite)?;
        let building = hidden(target, "part")?;
        if building.exists() {
            fs::remove_dir_all(&building).with_context(|| format!("clearing {}", building.display()))?;
        }
        fs::create_dir_all(&building).with_context(|| format!("creating {}", building.display()))?;
        Ok(Stage { target: target.to_owned(), building, done: false })
    }

    /// Where to build.
    pub fn path(&self) -> &Path {
        &self.building
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn publish(mut self) -> Result<()> {
        sync_folders(&self.building)?;
        let old = hidden(&self.target, "old")?;
        if old.exists() {
            fs::remove_dir_all(&old).with_context(|| format!("clearing {}", old.display()))?;
        }
        let naming = || format!("renaming the finished folder to {}", self.target.display());
        if self.target.exists() {
            fs::rename(&self.target, &old).with_context(naming)?;
            if let Err(error) = fs::rename(&self.building, &self.target) {
                let _ = fs::rename(&old, &self.target);
                return Err(error).with_context(naming);
            }
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        } else {
            fs::rename(&self.building, &self.target).with_context(naming)?;
        }
        self.done = true;
        // A bare name has an empty parent: the folder we stand in.
        let parent = self.building.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
        if let Some(parent) = parent {
            fs::File::open(parent)
                .and_then(|f| f.sync_all())
                .with_context(|| format!("syncing {}", parent.display()))?;
        }
        Ok(())
    }
}

/// Names of files are content of their folder: they are on the disk before the folder has its name.
fn sync_folders(folder: &Path) -> Result<()> {
    let syncing = || format!("syncing {}", folder.display());
    for entry in fs::read_dir(folder).with_context(syncing)? {
        let entry = entry.with_context(syncing)?;
        if entry.file_type().with_context(syncing)?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    fs::File::open(folder).and_then(|f| f.sync_all()).with_context(syncing)
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.building);
        }
    }
}

/// May what stands under `target` be replaced?
///
/// # Errors
/// It is there and `overwrite` was not said, or it is a folder that no conversion made.
pub fn may_replace(target: &Path, overwrite: bool) -> Result<()> {
    if !target.exists() {
        return Ok(());
    }
    if !overwrite {
        bail!("{} exists; --overwrite replaces it", target.display());
    }
    if target.is_dir() {
        let ours = OURS.iter().any(|name| target.join(name).exists());
        let empty = fs::read_dir(target).is_ok_and(|mut d| d.next().is_none());
        if !(ours || empty) || target.join(".git").exists() {
            bail!(
                "{} is a folder that holds no converted model; --overwrite would remove all of it. Name another folder",
                target.display()
            );
        }
    }
    Ok(())
}

fn hidden(target: &Path, suffix: &str) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        bail!("{}: name a folder to be made, not one that stands", target.display());
    };
    Ok(target.with_file_name(format!(".{}.{suffix}", name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_stage_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let stage = Stage::open(&target, false).unwrap();
        fs::write(stage.path().join("half"), "x").unwrap();
        drop(stage);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_no_conversion_made_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("thesis");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("chapter1.tex"), "x").unwrap();
        assert!(Stage::open(&target, true).unwrap_err().to_string().contains("holds no converted model"));
        assert!(target.join("chapter1.tex").exists());
    }

    #[test]
    fn a_killed_run_does_not_stand_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::mem::forget(Stage::open(&target, false).unwrap());
        let stage = Stage::open(&target, false).unwrap();
        fs::write(stage.path().join("config.json"), "{}").unwrap();
        stage.publish().unwrap();
        assert!(target.join("config.json").exists());
    }
}
