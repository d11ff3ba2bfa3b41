//! A run's folder: who may write into it, which steps are whole, which go.
//!
//! Source: openpi 15a9616, training/checkpoints.py (`initialize_checkpoint_dir`) and Orbax 0.11.13's preservation policies.
//! Two things differ, since a user would expect them. openpi refuses an empty folder; here it is as good as none. openpi
//! does not go on from a folder whose only step is 0; here a step is a step.
//! Invariants: a step's name never stands over a half of it, not while it is removed either; two runs never write into one
//! folder.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{MODEL, OPTIMIZER, STATE, number};

/// Held while a run writes into its folder. It stays there, empty.
const LOCK: &str = ".lock";
/// What hidden folders of an unfinished save, replacement or removal end in.
const ASIDE: [&str; 3] = ["part", "old", "gone"];

/// What to do with a folder that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Begin {
    /// Refuse it, unless it is empty.
    #[default]
    Fresh,
    /// Remove all that is in it.
    Overwrite,
    /// Go on from its newest whole step; from the beginning where there is none.
    Resume,
}

/// Which steps stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest; `None` keeps all. openpi: 1.
    pub max_to_keep: Option<usize>,
    /// And for ever those whose number it divides. openpi: 5000.
    pub keep_period: Option<u64>,
}

/// The folder of a run that is going on. Locked until it is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes or takes the folder, and clears what killed runs left in it.
    ///
    /// # Errors
    /// It is there and `begin` does not say what to do with it; what is to be overwritten is no run; another run writes into it.
    pub fn open(path: &Path, begin: Begin) -> Result<Self> {
        ensure!(!path.is_file(), "{}: it is a file; name a folder for the run", path.display());
        let gone = aside(path, "gone")?;
        remove(&gone)?;
        if begin == Begin::Fresh && !is_empty(path)? {
            bail!(
                "{}: a run is there already; --resume goes on with it, --overwrite removes it, another --exp-name leaves it",
                path.display()
            );
        }
        if begin == Begin::Overwrite && path.exists() && !is_empty(path)? {
            ensure!(
                is_run(path)?,
                "{}: no run made this folder, and --overwrite would remove all of it; name another",
                path.display()
            );
            let held = lock(path)?;
            fs::rename(path, &gone).with_context(|| format!("moving {} aside", path.display()))?;
            drop(held);
        }
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        let lock = lock(path)?;
        remove(&gone)?;
        for name in entries(path)? {
            if left_over(&name) {
                remove(&path.join(name))?;
            }
        }
        Ok(Folder { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a step.
    pub fn step(&self, step: u64) -> PathBuf {
        self.path.join(step.to_string())
    }

    /// Its whole steps, oldest first.
    ///
    /// # Errors
    /// What the file system says.
    pub fn steps(&self) -> Result<Vec<u64>> {
        steps(&self.path)
    }

    /// The newest of them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn latest(&self) -> Result<Option<u64>> {
        latest(&self.path)
    }

    /// Removes the steps that are not to be kept, after a save. Gives their numbers.
    ///
    /// # Errors
    /// What the file system says.
    pub fn tidy(&self, keep: Keep) -> Result<Vec<u64>> {
        let condemned = condemned(&self.steps()?, keep);
        for step in &condemned {
            discard(&self.step(*step))?;
        }
        Ok(condemned)
    }
}

/// Whole steps of a run's folder, oldest first; none where there is no such folder.
///
/// # Errors
/// What the file system says.
pub fn steps(run: &Path) -> Result<Vec<u64>> {
    let mut steps: Vec<u64> = entries(run)?
        .iter()
        .map(|name| run.join(name))
        .filter(|path| path.is_dir() && is_complete(path))
        .filter_map(|path| number(&path))
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The newest whole step of a run's folder.
///
/// # Errors
/// What the file system says.
pub fn latest(run: &Path) -> Result<Option<u64>> {
    Ok(steps(run)?.last().copied())
}

/// Which of `steps`, oldest first, are not kept: Orbax's LatestN or EveryNSteps.
pub fn condemned(steps: &[u64], keep: Keep) -> Vec<u64> {
    let newest = keep.max_to_keep.unwrap_or(usize::MAX);
    let old = steps.len().saturating_sub(newest);
    let for_ever = |step: u64| keep.keep_period.is_some_and(|period| period > 0 && step.is_multiple_of(period));
    steps.iter().take(old).copied().filter(|step| !for_ever(*step)).collect()
}

/// A step from which a run can go on.
pub(super) fn is_complete(step: &Path) -> bool {
    let ours = [MODEL, OPTIMIZER, STATE].iter().all(|file| step.join(file).is_file());
    let item = |name| orbax::locate(step, Some(name)).is_ok();
    ours || (item("params") && item("train_state"))
}

/// Takes a folder away: its name first, so that there is never a half of it under its name.
pub(super) fn discard(path: &Path) -> Result<()> {
    let gone = aside(path, "gone")?;
    remove(&gone)?;
    fs::rename(path, &gone).with_context(|| format!("moving {} aside", path.display()))?;
    remove(&gone)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn aside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name = path.file_name().with_context(|| format!("{}: name a folder to be made", path.display()))?;
    Ok(path.with_file_name(format!(".{}.{suffix}", name.to_string_lossy())))
}

/// `.7.part`: a step's folder that was on its way in or out.
fn left_over(name: &str) -> bool {
    let middle = name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.'));
    middle.is_some_and(|(step, suffix)| number(Path::new(step)).is_some() && ASIDE.contains(&suffix))
}

/// Names in a folder; none where there is none.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let reading = || format!("reading {}", folder.display());
    let all = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        all => all.with_context(reading)?,
    };
    let mut names = vec![];
    for entry in all {
        names.push(entry.with_context(reading)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(entries(folder)?.is_empty())
}

/// A run's folder has our lock in it, or steps.
fn is_run(folder: &Path) -> Result<bool> {
    let names = entries(folder)?;
    let step = |name: &String| number(Path::new(name)).is_some() && folder.join(name).join("params").is_dir();
    Ok(!folder.join(".git").exists() && names.iter().any(|name| name == LOCK || step(name)))
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let naming = || path.display().to_string();
    let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(naming)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => bail!("{}: another run writes into this folder", folder.display()),
        // A file system without locks is no reason not to train.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_every_nth_for_ever() {
        let steps = [0, 1000, 4000, 5000, 9000, 10000, 11000];
        let kept = |max_to_keep, keep_period| condemned(&steps, Keep { max_to_keep, keep_period });
        assert_eq!(kept(Some(1), Some(5000)), [1000, 4000, 9000]);
        assert_eq!(kept(Some(2), None), [0, 1000, 4000, 5000, 9000]);
        assert_eq!(kept(Some(9), None), [] as [u64; 0]);
        assert_eq!(kept(None, Some(5000)), [] as [u64; 0]);
        assert_eq!(kept(Some(1), Some(0)), [0, 1000, 4000, 5000, 9000, 10000]);
    }

    #[test]
    fn only_hidden_folders_of_steps_are_leftovers() {
        for name in [".7.part", ".0.old", ".19999.gone"] {
            assert!(left_over(name), "{name}");
        }
        for name in ["7", ".7", "7.part", ".07.part", ".x.part", ".7.txt", ".lock", ".7.8.part", ".-1.part"] {
            assert!(!left_over(name), "{name}");
        }
    }

    #[test]
    fn a_folder_is_refused_taken_up_or_overwritten_as_it_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("try1");
        drop(Folder::open(&run, Begin::Fresh).unwrap());
        // A run that was killed before its first save has left something: a user says what becomes of it.
        let error = Folder::open(&run, Begin::Fresh).unwrap_err().to_string();
        assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");
        assert_eq!(Folder::open(&run, Begin::Resume).unwrap().latest().unwrap(), None);
        fs::write(run.join("metrics.jsonl"), "x").unwrap();
        drop(Folder::open(&run, Begin::Overwrite).unwrap());
        assert!(!run.join("metrics.jsonl").exists());
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        Folder::open(&empty, Begin::Fresh).unwrap();
    }

    #[test]
    fn what_no_run_made_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let thesis = dir.path().join("thesis");
        fs::create_dir_all(thesis.join("2024")).unwrap();
        let error = Folder::open(&thesis, Begin::Overwrite).unwrap_err().to_string();
        assert!(error.contains("no run made this folder"), "{error}");
        assert!(thesis.join("2024").exists());
    }

    #[test]
    fn two_runs_do_not_write_into_one_folder() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("try1");
        let first = Folder::open(&run, Begin::Fresh).unwrap();
        for begin in [Begin::Resume, Begin::Overwrite] {
            let error = Folder::open(&run, begin).unwrap_err().to_string();
            assert!(error.contains("another run"), "{error}");
        }
        drop(first);
        Folder::open(&run, Begin::Resume).unwrap();
    }

    #[test]
    fn leftovers_of_killed_runs_are_cleared_at_the_next_start_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("try1");
        for name in [".7.part/params", ".6.gone/params", ".mine/params", "8/params"] {
            fs::create_dir_all(run.join(name)).unwrap();
        }
        fs::create_dir_all(dir.path().join(".try1.gone/1")).unwrap();
        let folder = Folder::open(&run, Begin::Resume).unwrap();
        let mut left = entries(folder.path()).unwrap();
        left.sort();
        assert_eq!(left, [".lock", ".mine", "8"]);
        assert_eq!(entries(dir.path()).unwrap(), ["try1"]);
    }
}
