//! LeRobot datasets v2.0, v2.1 and v3.0, read alike.
//!
//! In reading order:
//! - [`error`]: what can be wrong.
//! - [`info`]: `meta/info.json`: version, features, templates of paths.
//! - [`meta`]: episodes and tasks, from JSON lines or from parquet.
//! - `shelf`: what was read and may be asked for again.
//! - `table`: one parquet file, column by column, without arrow.
//! - [`columns`]: whole columns of all frames, in parallel.
//! - [`frames`]: frames as records, action chunks, pictures.
//! - [`prepared`]: frames decoded and resized once.
//! - [`doctor`]: what is wrong with a dataset.
//!
//! Source: LeRobot 0.3.3 and 0.4.4, datasets/{lerobot_dataset,utils}.py.
//!
//! Invariant: opening reads `meta/` alone; every table is held against it before its rows are used.

pub mod columns;
pub mod doctor;
pub mod error;
pub mod frames;
pub mod info;
pub mod meta;
pub mod prepared;
mod shelf;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use columns::Columns;
pub use error::DataError;
pub use frames::Deltas;
pub use info::{Feature, Info, Kind, Version};
pub use meta::Episode;

use super::video::Ffmpeg;
use crate::policy::record::nearest;
use shelf::Shelf;

/// Rows that are kept: of two million frames of a robot with two arms.
const MAX_ROWS_BYTES: usize = 512 << 20;
/// Footers that are kept.
const MAX_FOOTERS_BYTES: usize = 64 << 20;

/// A dataset whose `meta/` was read.
#[derive(Debug)]
pub struct Dataset {
    dir: PathBuf,
    info: Info,
    episodes: Vec<Episode>,
    tasks: BTreeMap<i64, String>,
    rows_of: BTreeMap<PathBuf, usize>,
    /// Where prepared frames are looked for.
    prepared: Option<PathBuf>,
    /// Rows of episodes that were asked for last, by `episode_index`: for frames one after the other, and in any order.
    rows: Shelf<u64, frames::Rows>,
    /// Footers of tables.
    tables: Shelf<PathBuf, table::Table>,
    /// Looked for when a video is first needed.
    ffmpeg: OnceLock<Ffmpeg>,
}

impl Dataset {
    /// Opens a dataset: reads `meta/`, no row and no frame.
    ///
    /// # Errors
    /// No dataset, a version that is not known, files of `meta/` that are missing or not as LeRobot writes them.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let info = Info::read(dir)?;
        let (episodes, tasks, rows_of) = meta::read(dir, &info)?;
        let (dir, prepared, ffmpeg) = (dir.to_owned(), None, OnceLock::new());
        let (rows, tables) = (Shelf::new(MAX_ROWS_BYTES), Shelf::new(MAX_FOOTERS_BYTES));
        Ok(Dataset { dir, info, episodes, tasks, rows_of, prepared, rows, tables, ffmpeg })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `meta/info.json` says.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// In the order of their index.
    pub fn episodes(&self) -> &[Episode] {
        &self.episodes
    }

    /// Texts of tasks by `task_index`.
    pub fn tasks(&self) -> &BTreeMap<i64, String> {
        &self.tasks
    }

    /// Frames of all episodes.
    pub fn frames(&self) -> usize {
        self.episodes.last().map_or(0, |episode| episode.frames.end)
    }

    /// Keys of the cameras.
    pub fn cameras(&self) -> impl Iterator<Item = &str> {
        self.info.features.iter().filter(|(_, feature)| feature.is_camera()).map(|(key, _)| key.as_str())
    }

    /// A feature by its key.
    ///
    /// # Errors
    /// There is none.
    pub fn feature(&self, key: &str) -> Result<&Feature, DataError> {
        self.info.features.get(key).ok_or_else(|| DataError::Feature {
            key: key.to_owned(),
            what: format!(
                "the dataset has no such feature; {}",
                nearest(key, self.info.features.keys().map(String::as_str))
            ),
        })
    }
}
