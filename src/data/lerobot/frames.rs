//! Frames as records, keyed as LeRobot names them: `observation.state`, `observation.images.cam_high`, `task`, …
//!
//! Source: LeRobot 0.4.4, datasets/lerobot_dataset.py (`__getitem__`, `_get_query_indices`) and datasets/utils.py
//! (`check_delta_timestamps`). One difference: a picture is u8 `[h, w, 3]`, as openpi's policies make it again of the
//! float `[3, h, w]` between 0 and 1 that LeRobot returns.
//!
//! Invariant: a frame's rows say themselves which episode and frame they are, and are believed only if they agree.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use super::columns::as_declared;
use super::error::DataError;
use super::info::Kind;
use super::table::Levels;
use super::{Dataset, Episode};
use crate::data::video::{Clip, Ffmpeg, TOLERANCE_S};
use crate::policy::array::{Array, Values};
use crate::policy::record::{Record, Value};

/// Pictures that are taken out of a table at a time.
const BATCH: usize = 64;
/// Steps of one chunk.
const MAX_HORIZON: usize = 100_000;

/// All rows of one episode but for its pictures.
#[derive(Debug)]
pub(super) struct Rows {
    columns: BTreeMap<String, Column>,
    first_row: usize,
}

#[derive(Debug)]
enum Column {
    Numbers { shape: Vec<usize>, width: usize, values: Values },
    Texts(Vec<String>),
}

/// Takes pictures, one after the other: the frame's place in its episode, height and width, pixels u8 `[h, w, 3]`.
pub type EachPicture<'a> = dyn FnMut(usize, (usize, usize), &[u8]) -> Result<(), DataError> + 'a;

/// Moments beside a frame, in seconds, by key: LeRobot's `delta_timestamps`.
pub type Deltas = BTreeMap<String, Vec<f64>>;

impl Dataset {
    /// The episode of this `episode_index`.
    ///
    /// # Errors
    /// There is none.
    pub fn episode(&self, index: u64) -> Result<&Episode, DataError> {
        let at = self.episodes.binary_search_by_key(&index, |episode| episode.index);
        at.ok().and_then(|at| self.episodes.get(at)).ok_or_else(|| {
            let there = match (self.episodes.first(), self.episodes.last()) {
                (Some(first), Some(last)) => {
                    format!("{} episodes, {} to {}", self.episodes.len(), first.index, last.index)
                }
                _ => "none at all".to_owned(),
            };
            DataError::Range { what: "episode", asked: index, there }
        })
    }

    /// The episode that a frame of the global order lies in, and its place there.
    ///
    /// # Errors
    /// There is no such frame.
    pub fn locate(&self, index: usize) -> Result<(&Episode, usize), DataError> {
        let at = self.episodes.partition_point(|episode| episode.frames.end <= index);
        let there =
            || DataError::Range { what: "frame", asked: index as u64, there: format!("{} frames", self.frames()) };
        let episode = self.episodes.get(at).ok_or_else(there)?;
        Ok((episode, index - episode.frames.start))
    }

    /// A frame of the global order, as a record.
    ///
    /// # Errors
    /// There is no such frame; its table or a video is missing, corrupt, or not as `meta/` says.
    pub fn frame(&self, index: usize) -> Result<Record, DataError> {
        self.frame_with(index, &Deltas::new())
    }

    /// A frame, and beside it other moments of some features of numbers: under their key `[moments, …]`, and under
    /// `<key>_is_pad` which of them lie outside the episode and repeat its first or last frame.
    ///
    /// # Errors
    /// As [`Dataset::frame`]; a delta that is no whole number of frames, or of a camera.
    pub fn frame_with(&self, index: usize, deltas: &Deltas) -> Result<Record, DataError> {
        let (episode, frame) = self.locate(index)?;
        let rows = self.rows(episode)?;
        let mut record = Record::default();
        for (key, column) in &rows.columns {
            match column {
                Column::Numbers { shape, width, values } => {
                    let row = take(values, *width, [frame].into_iter());
                    record.put_array(key, Array::new(shape.clone(), row));
                }
                Column::Texts(texts) => record.put_text(key, texts.get(frame).cloned().unwrap_or_default()),
            }
        }
        for (key, moments) in deltas {
            let steps = steps(key, moments, self.info.fps)?;
            let (chunk, pad) = self.moments(&rows, key, episode, frame, &steps)?;
            record.put_array(key, chunk);
            record.put_array(format!("{key}_is_pad"), pad);
        }
        if let Some(Value::Array(Array { values: Values::I64(task), .. })) = record.get("task_index") {
            let task = task.first().copied().unwrap_or(-1);
            let text = self.tasks.get(&task).ok_or_else(|| {
                DataError::column(&episode.table, "task_index", format!("task {task} is not among the tasks of meta/"))
            })?;
            record.put_text("task", text.clone());
        }
        let cameras: Vec<String> = self.cameras().map(str::to_owned).collect();
        for key in cameras {
            let mut picture = None;
            self.pictures(&key, episode, frame..frame + 1, 0, &mut |_, size, pixels| {
                picture = Some(Array::u8([size.0, size.1, 3], pixels.to_vec()));
                Ok(())
            })?;
            if let Some(picture) = picture {
                record.put_array(key, picture);
            }
        }
        Ok(record)
    }

    /// `horizon` frames of one feature of numbers from this frame on: `[horizon, …]`, and which of them lie behind the
    /// episode's end, where its last is repeated: bool `[horizon]`.
    ///
    /// # Errors
    /// As [`Dataset::frame`].
    pub fn chunk(&self, key: &str, episode: u64, frame: usize, horizon: usize) -> Result<(Array, Array), DataError> {
        let episode = self.episode(episode)?;
        if frame >= episode.len() {
            let there = format!("episode {} has {} frames", episode.index, episode.len());
            return Err(DataError::Range { what: "frame", asked: frame as u64, there });
        }
        let steps: Vec<i64> = (0..horizon.min(MAX_HORIZON) as i64).collect();
        let rows = self.rows(episode)?;
        self.moments(&rows, key, episode, frame, &steps)
    }

    fn moments(
        &self,
        rows: &Rows,
        key: &str,
        episode: &Episode,
        frame: usize,
        steps: &[i64],
    ) -> Result<(Array, Array), DataError> {
        self.feature(key)?;
        let Some(Column::Numbers { shape, width, values }) = rows.columns.get(key) else {
            let what = "expected a feature of numbers, found pictures or texts".to_owned();
            return Err(DataError::Feature { key: key.to_owned(), what });
        };
        let last = episode.len() as i64 - 1;
        let at: Vec<i64> = steps.iter().map(|step| (frame as i64).saturating_add(*step)).collect();
        let pad: Vec<bool> = at.iter().map(|at| *at < 0 || *at > last).collect();
        let taken = take(values, *width, at.iter().map(|at| (*at).clamp(0, last) as usize));
        let mut axes = vec![steps.len()];
        axes.extend(shape);
        Ok((Array::new(axes, taken), Array::new([steps.len()], Values::Bool(pad))))
    }

    /// The episode's times as its table has them, in seconds.
    pub(super) fn times(&self, episode: &Episode) -> Result<Vec<f64>, DataError> {
        match self.rows(episode)?.columns.get("timestamp") {
            Some(Column::Numbers { values, .. }) => Ok(values.to_f64()),
            _ => Err(DataError::column(&episode.table, "timestamp", "the dataset has no such feature")),
        }
    }

    /// Reads an episode's rows, or finds that they were read.
    fn rows(&self, episode: &Episode) -> Result<Arc<Rows>, DataError> {
        self.rows.get_or(&episode.index, || self.read_rows(episode), Rows::bytes)
    }

    fn read_rows(&self, episode: &Episode) -> Result<Rows, DataError> {
        let table = self.table(&episode.table)?;
        let file = Arc::new(File::open(&episode.table).map_err(DataError::io(&episode.table))?);
        let range = table.split(episode.first_row..episode.first_row + episode.len());
        let mut columns = BTreeMap::new();
        let mut levels = Levels::default();
        for (key, feature) in &self.info.features {
            let column = match &feature.kind {
                Kind::Numbers(dtype) => {
                    let width = feature.width();
                    let values = table.values(&file, key, &range, width, &mut levels)?;
                    let values = as_declared(&episode.table, key, values, dtype)?;
                    // As LeRobot has it: a feature of shape [1] is a scalar.
                    let shape = if feature.shape == [1] { vec![] } else { feature.shape.clone() };
                    Column::Numbers { shape, width, values }
                }
                Kind::Text => {
                    let texts = table.texts(&file, key, &range)?;
                    Column::Texts(texts.into_iter().map(|row| row.join("\n")).collect())
                }
                Kind::Image | Kind::Video { .. } | Kind::Other(_) => continue,
            };
            columns.insert(key.clone(), column);
        }
        let rows = Rows { columns, first_row: episode.first_row };
        rows.belong_to(episode)?;
        Ok(rows)
    }

    /// Decodes pictures of one camera: `each` is given the frame's place in the episode, height and width, and the
    /// pixels, u8 `[h, w, 3]`. `threads` is the video decoder's; 0 for as many as it likes.
    ///
    /// # Errors
    /// As [`Dataset::frame`]; no such camera; whatever `each` returns.
    pub fn pictures(
        &self,
        key: &str,
        episode: &Episode,
        frames: Range<usize>,
        threads: usize,
        each: &mut EachPicture,
    ) -> Result<(), DataError> {
        if let Some(cached) = self.cached(key, episode)? {
            return cached.pictures(frames, each);
        }
        let feature = self.feature(key)?;
        let (true, &[height, width, _]) = (feature.is_camera(), &feature.shape[..]) else {
            let what = "expected a camera, found numbers or texts".to_owned();
            return Err(DataError::Feature { key: key.to_owned(), what });
        };
        let size = (height, width);
        let Some(place) = episode.videos.get(key) else { return self.stills(key, episode, frames, size, each) };
        let times: Vec<f64> = self.times(episode)?.iter().map(|time| place.from_s + time).collect();
        let Some(times) = times.get(frames.clone()) else {
            let there = format!("episode {} has {} frames", episode.index, episode.len());
            return Err(DataError::Range { what: "frame", asked: frames.end as u64, there });
        };
        let clip = Clip { file: &place.file, size, fps: self.info.fps, times, threads };
        self.ffmpeg()?.decode(&clip, &mut |at, pixels| each(frames.start + at, size, pixels))
    }

    fn ffmpeg(&self) -> Result<&Ffmpeg, DataError> {
        if self.ffmpeg.get().is_none() {
            // Two threads may both find it; they find the same.
            let _ = self.ffmpeg.set(Ffmpeg::find()?);
        }
        self.ffmpeg.get().ok_or_else(|| DataError::meta(&self.dir, "ffmpeg was found and lost"))
    }

    /// Pictures that lie in the table.
    fn stills(
        &self,
        key: &str,
        episode: &Episode,
        frames: Range<usize>,
        size: (usize, usize),
        each: &mut EachPicture,
    ) -> Result<(), DataError> {
        let rows = self.rows(episode)?;
        let table = self.table(&episode.table)?;
        let file = Arc::new(File::open(&episode.table).map_err(DataError::io(&episode.table))?);
        let mut frame = frames.start;
        while frame < frames.end {
            let end = frames.end.min(frame + BATCH);
            for part in table.split(rows.first_row + frame..rows.first_row + end) {
                for blob in table.blobs(&file, key, Some("bytes"), part)? {
                    let row = (rows.first_row + frame) as u64;
                    let wrong = |what: String| {
                        let (file, key) = (episode.table.clone(), key.to_owned());
                        DataError::Image { file, key, row, what }
                    };
                    let blob = blob.ok_or_else(|| {
                        wrong(
                            "the picture is not in the table, only its path; LeRobot embeds it when it saves"
                                .to_owned(),
                        )
                    })?;
                    each(frame, size, &decode_png(blob.data(), size).map_err(wrong)?)?;
                    frame += 1;
                }
            }
        }
        Ok(())
    }
}

impl Rows {
    /// What they take of memory, but for small change.
    fn bytes(&self) -> usize {
        let column = |column: &Column| match column {
            Column::Numbers { values, .. } => values.bytes(),
            Column::Texts(texts) => texts.iter().map(|text| size_of::<String>() + text.len()).sum(),
        };
        self.columns.values().map(column).sum()
    }

    /// Do the rows say that they are this episode's, frame after frame?
    fn belong_to(&self, episode: &Episode) -> Result<(), DataError> {
        let told = |key: &str| match self.columns.get(key) {
            Some(Column::Numbers { values: Values::I64(values), .. }) => Some(values),
            _ => None,
        };
        let wrong = |column: &str, at: usize, expected: i64, found: i64| {
            let what = format!("row {}: expected {expected}, found {found}", self.first_row + at);
            Err(DataError::column(&episode.table, column, what))
        };
        let expected = i64::try_from(episode.index).unwrap_or(-1);
        let stray =
            told("episode_index").and_then(|told| told.iter().enumerate().find(|(_, found)| **found != expected));
        if let Some((at, found)) = stray {
            return wrong("episode_index", at, expected, *found);
        }
        let stray =
            told("frame_index").and_then(|told| told.iter().enumerate().find(|(at, found)| **found != *at as i64));
        if let Some((at, found)) = stray {
            return wrong("frame_index", at, at as i64, *found);
        }
        Ok(())
    }
}

/// Deltas in seconds as whole frames.
///
/// # Errors
/// One that is further than the tolerance from a whole number of frames.
pub fn steps(key: &str, deltas: &[f64], fps: f64) -> Result<Vec<i64>, DataError> {
    let whole = |delta: &f64| {
        // Python rounds halves to even; halves are refused anyway at any rate below 5000 a second.
        let frames = (delta * fps).round_ties_even();
        if (delta * fps - frames).abs() / fps <= TOLERANCE_S {
            return Ok(frames as i64);
        }
        Err(DataError::Delta { key: key.to_owned(), delta: *delta, fps, nearest: frames / fps })
    };
    deltas.iter().map(whole).collect()
}

/// Rows of a column.
fn take(values: &Values, width: usize, rows: impl Iterator<Item = usize>) -> Values {
    macro_rules! rows_of {
        ($($variant:ident),*) => {
            match values {
                $(Values::$variant(values) => {
                    Values::$variant(rows.flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect())
                })*
            }
        };
    }
    rows_of!(U8, I32, I64, F32, F64, Bool)
}

/// A picture as u8 `[h, w, 3]`.
fn decode_png(bytes: &[u8], (height, width): (usize, usize)) -> Result<Vec<u8>, String> {
    if !bytes.starts_with(b"\x89PNG") {
        let kind = if bytes.starts_with(b"\xff\xd8") { "a JPEG" } else { "something else" };
        return Err(format!("expected a PNG, as LeRobot writes, found {kind}"));
    }
    // What the dataset says is the size; a file that is larger is refused before it is decoded.
    let limits = png::Limits { bytes: height * width * 8 + (1 << 20) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let (w, h) = reader.info().size();
    if (h as usize, w as usize) != (height, width) {
        return Err(format!("expected {width}x{height}, as info.json says, found {w}x{h}"));
    }
    let (color, _) = reader.output_color_type();
    if color != png::ColorType::Rgb {
        return Err(format!("expected RGB, found {color:?}"));
    }
    let mut pixels = vec![0; height * width * 3];
    if reader.output_buffer_size() != Some(pixels.len()) {
        return Err("its rows do not have the size of its picture".to_owned());
    }
    reader.next_frame(&mut pixels).map_err(|error| error.to_string())?;
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_is_a_whole_number_of_frames_within_a_tenth_of_a_millisecond() {
        assert_eq!(steps("action", &[0.0, 0.02, -0.04, 0.06009], 50.0).unwrap(), [0, 1, -2, 3]);
        let error = steps("action", &[0.0, 0.03], 50.0).unwrap_err().to_string();
        assert!(error.starts_with("action: a delta of 0.03 s") && error.contains("0.04 s"), "{error}");
        assert!(steps("action", &[f64::NAN], 50.0).is_err());
        assert!(steps("action", &[f64::INFINITY], 50.0).is_err());
    }
}
