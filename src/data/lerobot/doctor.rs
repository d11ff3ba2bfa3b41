//! What is wrong with a dataset, as far as a machine can tell: what breaks training, and what only looks odd.
//!
//! Cheap: `meta/` against itself and against the files that lie there. Thorough: every number of every table, and the
//! first and the last frame of every video, which is where a cut, another rate or another size shows.
//!
//! Invariant: a fault is something that makes a frame unreadable or wrong; an oddity is something to look at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::error::DataError;
use super::info::Kind;
use super::table::Table;
use super::{Columns, Dataset};
use crate::data::video::{TOLERANCE_S, VideoError};
use crate::policy::array::Values;

/// Findings of one kind; the rest are counted.
const MAX_ALIKE: usize = 10;
/// Share of values at a dimension's very smallest or largest from which one suspects that they were clipped.
const CLIPPED: f64 = 0.05;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Frames are missing, unreadable or wrong.
    Fault,
    /// Worth a look.
    Oddity,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// File, feature or episode, then what is wrong with it.
    pub what: String,
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    alike: BTreeMap<&'static str, usize>,
}

impl Findings {
    fn add(&mut self, kind: &'static str, severity: Severity, what: String) {
        let seen = self.alike.entry(kind).or_default();
        *seen += 1;
        if *seen <= MAX_ALIKE {
            self.all.push(Finding { severity, what });
        }
    }

    fn fault(&mut self, kind: &'static str, what: String) {
        self.add(kind, Severity::Fault, what);
    }

    fn oddity(&mut self, kind: &'static str, what: String) {
        self.add(kind, Severity::Oddity, what);
    }

    fn finish(mut self) -> Vec<Finding> {
        for (kind, count) in self.alike.into_iter().filter(|(_, count)| *count > MAX_ALIKE) {
            // It says no more than those that stand above it.
            let what = format!("{kind}: {} more like these", count - MAX_ALIKE);
            self.all.push(Finding { severity: Severity::Oddity, what });
        }
        self.all
    }
}

impl Dataset {
    /// Looks at what costs nothing: `meta/` against itself, and whether its files are there with as many rows.
    pub fn look(&self) -> Vec<Finding> {
        let mut found = Findings::default();
        self.look_at_meta(&mut found);
        let tables: Vec<&Path> = self.rows_of.keys().map(std::path::PathBuf::as_path).collect();
        let wrong: Vec<String> =
            tables.par_iter().filter_map(|path| self.table(path).err().map(|error| error.to_string())).collect();
        for what in wrong {
            found.fault("tables", what);
        }
        let videos: BTreeSet<&Path> = self
            .episodes
            .iter()
            .flat_map(|episode| episode.videos.values().map(|place| place.file.as_path()))
            .collect();
        for video in videos.into_iter().filter(|video| !video.is_file()) {
            found.fault("videos", VideoError::Missing { file: video.to_owned() }.to_string());
        }
        found.finish()
    }

    /// Looks at every number, and at both ends of every video. `progress` is told how many frames are done.
    pub fn look_closely(&self, progress: &(dyn Fn(u64) + Sync)) -> Vec<Finding> {
        let mut found = Findings::default();
        let mut keys = vec![];
        let first = self.episodes.first().and_then(|episode| Table::open(&episode.table).ok());
        for (key, feature) in self.info.features.iter().filter(|(_, feature)| matches!(feature.kind, Kind::Numbers(_)))
        {
            match &first {
                // One column that is missing must not hide the others.
                Some(table) if !table.has(key) => {
                    found.fault("columns", format!("{}: there is no column {key}", table.path().display()));
                }
                _ => keys.push((key.as_str(), feature)),
            }
        }
        let names: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
        match self.columns(&names, progress) {
            Err(error) => found.fault("columns", error.to_string()),
            Ok(columns) => {
                for ((key, feature), column) in keys.iter().zip(&columns) {
                    match *key {
                        "timestamp" => self.look_at_times(column, &mut found),
                        "frame_index" => self.look_at_count(key, column, &|_, at| at as i64, &mut found),
                        "episode_index" => {
                            self.look_at_count(
                                key,
                                column,
                                &|episode, _| self.episodes[episode].index as i64,
                                &mut found,
                            );
                        }
                        "index" => {
                            let global = |episode: usize, at| (self.episodes[episode].frames.start + at) as i64;
                            self.look_at_count(key, column, &global, &mut found);
                        }
                        "task_index" => self.look_at_tasks(column, &mut found),
                        _ => look_at_values(key, &feature.names, column, &mut found),
                    }
                }
            }
        }
        self.look_at_videos(&mut found);
        found.finish()
    }

    fn look_at_meta(&self, found: &mut Findings) {
        let info = "meta/info.json";
        if self.info.total_episodes != self.episodes.len() as u64 {
            let (said, there) = (self.info.total_episodes, self.episodes.len());
            found.fault("meta", format!("{info}: total_episodes is {said}, but {there} are listed"));
        }
        if self.info.total_frames != self.frames() as u64 {
            let (said, there) = (self.info.total_frames, self.frames());
            found.fault("meta", format!("{info}: total_frames is {said}, but the episodes have {there}"));
        }
        if self.episodes.is_empty() {
            found.fault("meta", "meta/: there are no episodes".to_owned());
        }
        for (expected, episode) in self.episodes.iter().enumerate() {
            let index = episode.index;
            if let Some((from, to)) = episode.told
                && (from, to) != (episode.frames.start as u64, episode.frames.end as u64)
            {
                let counted = &episode.frames;
                let what = format!(
                    "episode {index}: dataset_from_index {from} and dataset_to_index {to}, but by the lengths it is {} to {}",
                    counted.start, counted.end
                );
                found.fault("from and to", what);
            }
            if index != expected as u64
                && expected.checked_sub(1).is_none_or(|last| self.episodes[last].index + 1 != index)
            {
                found.oddity("gaps", format!("episode {index}: those before it are missing"));
            }
            if episode.tasks.is_empty() {
                found.oddity("tasks", format!("episode {index}: it has no task"));
            }
            for task in episode.tasks.iter().filter(|task| !self.tasks.values().any(|known| known == *task)) {
                found.fault("tasks", format!("episode {index}: its task {task:?} is not among the tasks of meta/"));
            }
        }
        for (index, task) in self.tasks.iter().filter(|(_, task)| task.trim().is_empty()) {
            found.oddity("tasks", format!("task {index}: its text is {task:?}"));
        }
    }

    fn look_at_times(&self, column: &Columns, found: &mut Findings) {
        let times = column.values.to_f64();
        for episode in &self.episodes {
            let times = times.get(episode.frames.clone()).unwrap_or_default();
            let late = |(at, time): &(usize, &f64)| {
                (**time - *at as f64 / self.info.fps).abs() > TOLERANCE_S || !time.is_finite()
            };
            let wrong = times.iter().enumerate().filter(late).count();
            if let Some((at, time)) = times.iter().enumerate().find(late) {
                let what = format!(
                    "episode {}: the timestamp of frame {at} is {time} s, expected {} s at {} fps; {wrong} of {} are further off than 0.1 ms",
                    episode.index,
                    at as f64 / self.info.fps,
                    self.info.fps,
                    times.len()
                );
                found.fault("timestamps", what);
            }
            if let Some(at) = times.windows(2).position(|pair| matches!(pair, [a, b] if b <= a)) {
                found.fault(
                    "order",
                    format!("episode {}: time does not grow from frame {at} to the next", episode.index),
                );
            }
        }
    }

    fn look_at_count(&self, key: &str, column: &Columns, expected: &dyn Fn(usize, usize) -> i64, found: &mut Findings) {
        let Values::I64(values) = &column.values else { return };
        for (place, episode) in self.episodes.iter().enumerate() {
            let values = values.get(episode.frames.clone()).unwrap_or_default();
            let stray = values.iter().enumerate().find(|(at, value)| **value != expected(place, *at));
            if let Some((at, value)) = stray {
                let what = format!(
                    "episode {}: {key} of frame {at} is {value}, expected {}",
                    episode.index,
                    expected(place, at)
                );
                // Nothing is read by `index`; the other two say whose a row is.
                match key {
                    "index" => found.oddity("index", what),
                    _ => found.fault("rows", what),
                }
            }
        }
    }

    fn look_at_tasks(&self, column: &Columns, found: &mut Findings) {
        let Values::I64(values) = &column.values else { return };
        let used: BTreeSet<i64> = values.iter().copied().collect();
        for task in used.iter().filter(|task| !self.tasks.contains_key(task)) {
            found.fault("tasks", format!("task {task}: frames name it, but it is not among the tasks of meta/"));
        }
        for (task, text) in self.tasks.iter().filter(|(task, _)| !used.contains(task)) {
            found.oddity("tasks", format!("task {task}: no frame has it ({text:?})"));
        }
    }

    fn look_at_videos(&self, found: &mut Findings) {
        let clips: Vec<_> =
            self.episodes.iter().flat_map(|episode| episode.videos.keys().map(move |key| (episode, key))).collect();
        let wrong: Vec<DataError> = clips
            .par_iter()
            .filter_map(|(episode, key)| {
                let last = episode.len() - 1;
                let ends = if last == 0 { vec![0] } else { vec![0, last] };
                ends.into_iter().find_map(|at| self.pictures(key, episode, at..at + 1, 1, &mut |_, _, _| Ok(())).err())
            })
            .collect();
        let mut said = false;
        for error in wrong {
            match error {
                DataError::Video(VideoError::NoFfmpeg { .. }) => {
                    if !said {
                        found.oddity("ffmpeg", format!("videos were not looked into: {error}"));
                    }
                    said = true;
                }
                // Already said by the look at what is there.
                DataError::Video(VideoError::Missing { .. }) => {}
                error => found.fault("videos", error.to_string()),
            }
        }
    }
}

/// NaN, infinities, dimensions that never change, values that stick to their ends.
fn look_at_values(key: &str, names: &[String], column: &Columns, found: &mut Findings) {
    if !matches!(column.values, Values::F32(_) | Values::F64(_)) || column.width == 0 {
        return;
    }
    let values = column.values.to_f64();
    let frames = values.len() / column.width;
    for dim in 0..column.width {
        let of_dim = || values.iter().skip(dim).step_by(column.width);
        let name = match names.get(dim) {
            Some(name) => format!("{key}[{dim}] ({name})"),
            None => format!("{key}[{dim}]"),
        };
        let broken = of_dim().filter(|value| !value.is_finite()).count();
        if broken > 0 {
            let first = of_dim().position(|value| !value.is_finite()).unwrap_or_default();
            found.fault("numbers", format!("{name}: {broken} values are NaN or infinite, the first in frame {first}"));
            continue;
        }
        let (low, high) =
            of_dim().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), value| (a.min(*value), b.max(*value)));
        if frames > 1 && low == high {
            found.oddity("constant", format!("{name}: it is {low} in every frame"));
            continue;
        }
        for (end, at) in [("smallest", low), ("largest", high)] {
            let share = of_dim().filter(|value| **value == at).count() as f64 / frames as f64;
            // Of few frames, each is a large share.
            if share > CLIPPED && share * frames as f64 > 10.0 {
                let what =
                    format!("{name}: {:.1} % of its values are exactly its {end}, {at}: clipped?", share * 100.0);
                found.oddity("clipped", what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(width: usize, values: Vec<f32>) -> Vec<Finding> {
        let mut found = Findings::default();
        let names = ["gripper".to_owned()];
        look_at_values("action", &names, &Columns { width, values: Values::F32(values) }, &mut found);
        found.finish()
    }

    #[test]
    fn numbers_that_are_none_are_a_fault() {
        let found = findings(2, vec![0.0, 1.0, f32::NAN, 2.0, 1.0, 3.0]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].severity, Severity::Fault);
        assert_eq!(found[0].what, "action[0] (gripper): 1 values are NaN or infinite, the first in frame 1");
    }

    #[test]
    fn a_dimension_that_never_changes_or_sticks_to_its_end_is_odd() {
        let found = findings(1, vec![0.5; 100]);
        assert!(found[0].what.contains("0.5 in every frame"), "{found:?}");
        let stuck = findings(1, (0..100).map(|at| (at as f32).min(80.0)).collect());
        assert_eq!(stuck.len(), 1, "{stuck:?}");
        assert!(stuck[0].what.contains("20.0 % of its values are exactly its largest, 80"), "{stuck:?}");
        assert_eq!(findings(1, (0..100).map(|at| at as f32).collect()), []);
    }

    #[test]
    fn many_findings_alike_are_counted() {
        let found = findings(30, vec![f32::NAN; 60]);
        assert_eq!(found.len(), MAX_ALIKE + 1);
        assert_eq!(found[MAX_ALIKE].what, "numbers: 20 more like these");
    }
}
