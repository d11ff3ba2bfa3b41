//! Where a preset's norm stats are: named by the user, in a checkpoint, or where openpi's training would look.
//!
//! Source: openpi 15a9616, policies/policy_config.py (a checkpoint's assets go first) and training/config.py
//! (`_load_norm_stats`). Invariant: what is named must be there; what is only looked for may be missing, and is then told
//! with every place.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::{self, Home};
use crate::config::train::Train;
use crate::policy::chain::Statistics;
use crate::policy::norm_stats::{FILE, NormStats, read_all, read_any};

/// Where a user said they are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told<'a> {
    /// `--norm-stats`: a file, or a folder of assets.
    pub(super) norm_stats: Option<&'a Path>,
    /// `--checkpoint-dir`: a step's folder, or its `params`.
    pub(super) checkpoint_dir: Option<&'a Path>,
}

/// The statistics, and the file they are from.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) statistics: Statistics,
    pub(super) from: Option<PathBuf>,
}

/// Looks for them.
///
/// # Errors
/// A file that is none; a named place that has none.
pub(super) fn find(train: &Train, told: Told<'_>) -> Result<Found> {
    let asset_id = train.source.asset_id.clone().unwrap_or_default();
    if let Some(path) = told.norm_stats.filter(|path| path.is_file()) {
        let stats = NormStats { asset_id, ..read_any(path)? };
        return Ok(Found { statistics: Statistics::Given(stats), from: Some(path.to_owned()) });
    }
    let mut looked = vec![];
    let mut at = |folder: PathBuf| -> Result<Option<Found>> {
        looked.push(folder.display().to_string());
        if !folder.join(FILE).exists() {
            return Ok(None);
        }
        let own = read_all(&folder)?.into_iter().find(|stats| stats.asset_id.is_empty());
        let found = own.map(|stats| Found {
            statistics: Statistics::Given(NormStats { asset_id: asset_id.clone(), ..stats }),
            from: Some(folder.join(FILE)),
        });
        Ok(found)
    };
    let mut places = vec![];
    if let Some(folder) = told.norm_stats {
        places.extend([folder.join(&asset_id), folder.to_owned()]);
    } else if let Some(folder) = told.checkpoint_dir {
        let step = if folder.ends_with("params") { folder.parent().unwrap_or(folder) } else { folder };
        places.push(step.join("assets").join(&asset_id));
    } else if !asset_id.is_empty() {
        match &train.source.assets_dir {
            Some(dir) => match cache::locate(&Home::from_env(), Path::new(dir.trim_end_matches('/')).join(&asset_id)) {
                Ok(found) => places.push(found.into_path()),
                Err(_) => {
                    looked_in_vain(&mut at, &format!("{}/{asset_id} (openpi's cache)", dir.trim_end_matches('/')))?
                }
            },
            None => places.push(Path::new(&train.training.assets_base_dir).join(&train.name).join(&asset_id)),
        }
    }
    for place in places {
        if let Some(found) = at(place)? {
            return Ok(found);
        }
    }
    Ok(Found { statistics: Statistics::Missing { asset_id, looked }, from: None })
}

/// Notes a place that cannot be looked into.
fn looked_in_vain(at: &mut impl FnMut(PathBuf) -> Result<Option<Found>>, place: &str) -> Result<()> {
    at(PathBuf::from(place)).map(|_| ())
}
