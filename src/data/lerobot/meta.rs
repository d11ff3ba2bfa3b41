//! Episodes and tasks: `episodes.jsonl` and `tasks.jsonl` (v2), `episodes/*/*.parquet` and `tasks.parquet` (v3).
//!
//! Source: LeRobot 0.3.3 and 0.4.4, datasets/utils.py. In v3 the task's text is the table's index, whose column has no
//! fixed name: it is the only column of texts.
//!
//! Invariant: episodes are sorted by their index, none occurs twice, each has at least one frame, and the frames of all
//! are counted from 0 without a gap: that is the dataset's global order.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::error::DataError;
use super::info::{Info, Kind, MAX_META_BYTES, Version, read_small};
use super::table::Table;

/// Episodes of one dataset, and tables of `meta/episodes/`.
const MAX_EPISODES: usize = 1 << 24;
/// Frames of one dataset.
const MAX_FRAMES: u64 = 1 << 40;

/// One episode.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    /// LeRobot's `episode_index`.
    pub index: u64,
    /// In the dataset's global frame order.
    pub frames: Range<usize>,
    /// What was to be done, as the episode says.
    pub tasks: Vec<String>,
    /// The table that its rows lie in.
    pub(super) table: PathBuf,
    /// Where they begin in it.
    pub(super) first_row: usize,
    /// Its videos, by camera.
    pub(super) videos: BTreeMap<String, VideoPlace>,
    /// What v3.0 says of its place in the global order; the reader counts for itself.
    pub(super) told: Option<(u64, u64)>,
}

/// Where an episode's video lies.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoPlace {
    /// The file.
    pub file: PathBuf,
    /// Seconds into it at which the episode begins.
    pub from_s: f64,
    /// Seconds into it at which the episode ends; none where it has the file to itself.
    pub to_s: Option<f64>,
}

impl Episode {
    /// Frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Is there none? Never: such an episode is refused.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Its videos, by camera.
    pub fn videos(&self) -> &BTreeMap<String, VideoPlace> {
        &self.videos
    }

    /// The table that its rows lie in.
    pub fn table(&self) -> &Path {
        &self.table
    }
}

/// Tasks by their index.
pub(super) type Tasks = BTreeMap<i64, String>;

/// Rows of each table, by the lengths of the episodes that lie in it.
pub(super) type RowsOf = BTreeMap<PathBuf, usize>;

/// Reads both.
pub(super) fn read(dir: &Path, info: &Info) -> Result<(Vec<Episode>, Tasks, RowsOf), DataError> {
    let (mut episodes, tasks) = match info.version {
        Version::V20 | Version::V21 => (lines(dir, info)?, task_lines(&dir.join("meta/tasks.jsonl"))?),
        Version::V30 => (tables(dir, info)?, task_table(&dir.join("meta/tasks.parquet"))?),
    };
    episodes.sort_by_key(|episode| episode.index);
    let told_in = match info.version {
        Version::V30 => dir.join("meta/episodes"),
        _ => dir.join("meta/episodes.jsonl"),
    };
    let mut frames = 0usize;
    let mut rows = RowsOf::new();
    let mut last = None;
    for episode in &mut episodes {
        if last.replace(episode.index) == Some(episode.index) {
            return Err(DataError::meta(&told_in, format!("episode {} occurs twice", episode.index)));
        }
        let length = episode.frames.len();
        episode.frames = frames..frames + length;
        frames += length;
        if frames as u64 > MAX_FRAMES {
            return Err(DataError::meta(&told_in, "more frames than a dataset can have"));
        }
        // In a table that several episodes share they lie one after the other, in the order of their index.
        let row = rows.entry(episode.table.clone()).or_default();
        episode.first_row = *row;
        *row += length;
    }
    Ok((episodes, tasks, rows))
}

/// An episode whose place in the dataset is still to be counted.
fn episode(told_in: &Path, index: u64, length: u64, tasks: Vec<String>, table: PathBuf) -> Result<Episode, DataError> {
    if length == 0 || length > MAX_FRAMES {
        return Err(DataError::meta(told_in, format!("episode {index}: a length of {length} frames")));
    }
    let (frames, videos) = (0..length as usize, BTreeMap::new());
    Ok(Episode { index, frames, tasks, table, first_row: 0, videos, told: None })
}

fn json_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>, DataError> {
    let bytes = read_small(path, MAX_META_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| DataError::meta(path, "it is not UTF-8"))?;
    let mut all = vec![];
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed = serde_json::from_str(line);
        all.push(parsed.map_err(|error| DataError::meta(path, format!("line {}: {error}", number + 1)))?);
    }
    Ok(all)
}

#[derive(Deserialize)]
struct EpisodeLine {
    episode_index: u64,
    #[serde(default)]
    tasks: Vec<String>,
    length: u64,
}

#[derive(Deserialize)]
struct TaskLine {
    task_index: i64,
    task: String,
}

fn task_lines(path: &Path) -> Result<Tasks, DataError> {
    Ok(json_lines::<TaskLine>(path)?.into_iter().map(|line| (line.task_index, line.task)).collect())
}

fn lines(dir: &Path, info: &Info) -> Result<Vec<Episode>, DataError> {
    let path = dir.join("meta/episodes.jsonl");
    let mut all = vec![];
    for line in json_lines::<EpisodeLine>(&path)? {
        let index = line.episode_index;
        let numbers = [("episode_chunk", index / info.chunks_size), ("episode_index", index)];
        let table = info.data_path.fill(dir, "", &numbers)?;
        let mut episode = episode(&path, index, line.length, line.tasks, table)?;
        for key in video_keys(info) {
            let file = video_path(dir, info)?.fill(dir, key, &numbers)?;
            episode.videos.insert(key.to_owned(), VideoPlace { file, from_s: 0.0, to_s: None });
        }
        all.push(episode);
    }
    Ok(all)
}

fn video_keys(info: &Info) -> impl Iterator<Item = &str> {
    info.features.iter().filter(|(_, feature)| matches!(feature.kind, Kind::Video { .. })).map(|(key, _)| key.as_str())
}

fn video_path<'a>(dir: &Path, info: &'a Info) -> Result<&'a super::info::Template, DataError> {
    let path = dir.join("meta/info.json");
    info.video_path.as_ref().ok_or_else(|| DataError::meta(&path, "there are videos, but video_path is missing"))
}

fn open(path: &Path) -> Result<(Table, Arc<File>), DataError> {
    Ok((Table::open(path)?, Arc::new(File::open(path).map_err(DataError::io(path))?)))
}

fn task_table(path: &Path) -> Result<Tasks, DataError> {
    let (table, file) = open(path)?;
    let indices = table.whole(&file, "task_index")?;
    let texts: Vec<&str> = table.columns().into_iter().filter(|column| table.is_text(column)).collect();
    let column = match texts[..] {
        [one] => one,
        // Should a later version add texts of another kind, the index keeps its name.
        _ if texts.contains(&"__index_level_0__") => "__index_level_0__",
        _ if texts.contains(&"task") => "task",
        _ => return Err(DataError::meta(path, "expected one column of texts, the tasks")),
    };
    let texts = table.texts(&file, column, &table.split(0..table.rows()))?;
    let text = |row: Vec<String>| row.into_iter().next().unwrap_or_default();
    Ok(indices.into_iter().zip(texts.into_iter().map(text)).collect())
}

/// `meta/episodes/chunk-000/file-000.parquet` and its like, in order.
fn episode_tables(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    let list = |dir: &Path| -> Result<Vec<PathBuf>, DataError> {
        let mut all = vec![];
        for entry in std::fs::read_dir(dir).map_err(DataError::io(dir))? {
            all.push(entry.map_err(DataError::io(dir))?.path());
            if all.len() > MAX_EPISODES {
                return Err(DataError::meta(dir, "more files than a dataset can have"));
            }
        }
        all.sort();
        Ok(all)
    };
    let mut tables = vec![];
    for chunk in list(root)?.into_iter().filter(|path| path.is_dir()) {
        tables.extend(list(&chunk)?.into_iter().filter(|path| path.extension().is_some_and(|x| x == "parquet")));
    }
    if tables.is_empty() {
        return Err(DataError::Missing {
            file: root.join("chunk-000/file-000.parquet"),
            what: "it lists the episodes".into(),
        });
    }
    Ok(tables)
}

fn tables(dir: &Path, info: &Info) -> Result<Vec<Episode>, DataError> {
    let mut all = vec![];
    for path in episode_tables(&dir.join("meta/episodes"))? {
        let (table, file) = open(&path)?;
        if table.rows() + all.len() > MAX_EPISODES {
            return Err(DataError::meta(&path, "more episodes than a dataset can have"));
        }
        let column = |name: &str| -> Result<Vec<u64>, DataError> {
            let values = table.whole(&file, name)?;
            let natural: Result<Vec<u64>, _> = values.into_iter().map(u64::try_from).collect();
            natural.map_err(|_| DataError::column(&path, name, "a negative number"))
        };
        let (indices, lengths) = (column("episode_index")?, column("length")?);
        let (chunks, files) = (column("data/chunk_index")?, column("data/file_index")?);
        let told = match table.has("dataset_from_index") && table.has("dataset_to_index") {
            true => column("dataset_from_index")?.into_iter().zip(column("dataset_to_index")?).map(Some).collect(),
            false => vec![None; indices.len()],
        };
        let tasks = match table.has("tasks") {
            true => table.texts(&file, "tasks", &table.split(0..table.rows()))?,
            false => vec![vec![]; indices.len()],
        };
        let first = all.len();
        for (row, tasks) in tasks.into_iter().enumerate() {
            let numbers = [("chunk_index", chunks[row]), ("file_index", files[row])];
            let data = info.data_path.fill(dir, "", &numbers)?;
            all.push(Episode { told: told[row], ..episode(&path, indices[row], lengths[row], tasks, data)? });
        }
        for key in video_keys(info) {
            let template = video_path(dir, info)?;
            let (chunks, files) =
                (column(&format!("videos/{key}/chunk_index"))?, column(&format!("videos/{key}/file_index"))?);
            let from = table.real(&file, &format!("videos/{key}/from_timestamp"))?;
            let to = table.real(&file, &format!("videos/{key}/to_timestamp"))?;
            for (row, episode) in all.iter_mut().skip(first).enumerate() {
                if !(from[row] >= 0.0 && to[row] > from[row] && to[row].is_finite()) {
                    let what = format!("episode {}: from {} s to {} s", episode.index, from[row], to[row]);
                    return Err(DataError::column(&path, &format!("videos/{key}"), what));
                }
                let numbers = [("chunk_index", chunks[row]), ("file_index", files[row])];
                let file = template.fill(dir, key, &numbers)?;
                episode.videos.insert(key.to_owned(), VideoPlace { file, from_s: from[row], to_s: Some(to[row]) });
            }
        }
    }
    Ok(all)
}
