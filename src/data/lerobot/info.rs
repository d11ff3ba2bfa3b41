//! `meta/info.json`: version, frames per second, features, where the tables and the videos lie.
//!
//! Source: LeRobot 0.3.3 (v2.0, v2.1) and 0.4.4 (v3.0), datasets/utils.py. Keys that are not known here are ignored.
//!
//! Invariant: a path that a template makes stays inside the dataset's folder.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::error::DataError;

/// A real `info.json` has some kilobytes.
const MAX_INFO_BYTES: u64 = 16 << 20;
/// Other files of `meta/`: a million episodes of a hundred bytes each.
pub(super) const MAX_META_BYTES: u64 = 256 << 20;
/// Faster is no camera and no robot.
const MAX_FPS: f64 = 100_000.0;
/// Values of one feature in one frame; a picture of 8192 by 4096.
const MAX_WIDTH: u64 = 8192 * 4096 * 3;
/// Digits that a template may ask a number to be padded to.
const MAX_PAD: usize = 20;

/// Which layout a dataset has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// One table per episode, statistics of the whole dataset.
    V20,
    /// One table per episode, statistics of each.
    V21,
    /// Many episodes per table and per video.
    V30,
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Version::V20 => "v2.0",
            Version::V21 => "v2.1",
            Version::V30 => "v3.0",
        })
    }
}

/// What a feature is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Numbers, in numpy's name of the dtype: a column of the tables.
    Numbers(String),
    /// Pictures in the tables, encoded one by one.
    Image,
    /// Pictures in videos beside the tables.
    Video {
        /// As `info` names it: `av1`, `h264`, `hevc`; empty where it does not.
        codec: String,
    },
    /// A text in every frame.
    Text,
    /// Something that this reader leaves alone: depth maps, languages, whatever comes.
    Other(String),
}

/// One feature of every frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    /// What it is made of.
    pub kind: Kind,
    /// In one frame; `[h, w, 3]` for pictures.
    pub shape: Vec<usize>,
    /// Of the last axis's elements, where they have names.
    pub names: Vec<String>,
}

impl Feature {
    /// Is it a camera?
    pub fn is_camera(&self) -> bool {
        matches!(self.kind, Kind::Image | Kind::Video { .. })
    }

    /// Values in one frame.
    pub fn width(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What `info.json` says.
#[derive(Debug, Clone)]
pub struct Info {
    /// Which layout.
    pub version: Version,
    /// As the dataset names it; empty if it does not.
    pub robot: String,
    /// Frames per second.
    pub fps: f64,
    /// As the file says; the episodes are the authority.
    pub total_episodes: u64,
    /// As the file says; the episodes are the authority.
    pub total_frames: u64,
    /// Episodes per folder (v2).
    pub chunks_size: u64,
    /// Where tables lie.
    pub(super) data_path: Template,
    /// Where videos lie, if the dataset has any.
    pub(super) video_path: Option<Template>,
    /// By key.
    pub features: BTreeMap<String, Feature>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    robot_type: Option<String>,
    fps: f64,
    #[serde(default)]
    total_episodes: u64,
    #[serde(default)]
    total_frames: u64,
    #[serde(default)]
    chunks_size: Option<u64>,
    data_path: String,
    #[serde(default)]
    video_path: Option<String>,
    features: BTreeMap<String, RawFeature>,
}

#[derive(Deserialize)]
struct RawFeature {
    dtype: String,
    #[serde(default)]
    shape: Vec<u64>,
    #[serde(default)]
    names: Value,
    #[serde(default)]
    info: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    video_info: Option<BTreeMap<String, Value>>,
}

/// Reads a whole file that has at most `limit` bytes.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = vec![];
    let file = File::open(path).map_err(DataError::io(path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(DataError::io(path))?;
    if bytes.len() as u64 > limit {
        return Err(DataError::meta(path, format!("more than {limit} bytes")));
    }
    Ok(bytes)
}

impl Info {
    /// Reads `meta/info.json` of a dataset.
    ///
    /// # Errors
    /// It is missing, of another version, or says what cannot be.
    pub fn read(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join("meta/info.json");
        if !path.exists() {
            let old = dir.join("meta_data/info.json");
            if old.exists() {
                let hint = "LeRobot's own convert_dataset_v1_to_v2.py brings it to v2.0".to_owned();
                return Err(DataError::Version { file: old, found: "v1.x".to_owned(), hint });
            }
            let what = "meta/info.json is missing; name the folder that holds meta/ and data/".to_owned();
            return Err(DataError::NotADataset { dir: dir.to_owned(), what });
        }
        Self::parse(&path, &read_small(&path, MAX_INFO_BYTES)?)
    }

    /// Parses the file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// As [`Info::read`].
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, DataError> {
        let wrong = |what: String| DataError::meta(path, what);
        // The version first: another version may lack what is asked for below.
        let value: Value = serde_json::from_slice(text).map_err(|e| wrong(format!("it is not JSON: {e}")))?;
        let version = value.get("codebase_version").and_then(Value::as_str).unwrap_or_default();
        let version = match version.trim_start_matches('v') {
            "2.0" => Version::V20,
            "2.1" => Version::V21,
            "3.0" => Version::V30,
            "" => return Err(wrong("codebase_version is missing".to_owned())),
            other => {
                let hint = match other.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
                    Some(0 | 1) => "LeRobot's own convert_dataset_v1_to_v2.py brings it to v2.0",
                    _ => "a newer layout than this program knows",
                };
                let (found, hint) = (format!("v{other}"), hint.to_owned());
                return Err(DataError::Version { file: path.to_owned(), found, hint });
            }
        };
        let raw: Raw = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        if !(raw.fps > 0.0 && raw.fps <= MAX_FPS) {
            return Err(wrong(format!("fps: expected more than 0 and at most {MAX_FPS}, found {}", raw.fps)));
        }
        if raw.chunks_size == Some(0) {
            return Err(wrong("chunks_size: expected at least 1, found 0".to_owned()));
        }
        let mut features = BTreeMap::new();
        for (key, feature) in raw.features {
            let parsed = feature.parse().map_err(|what| wrong(format!("features.{key}: {what}")))?;
            features.insert(key, parsed);
        }
        let template =
            |key: &str, text: String| Template::parse(&text).map_err(|what| wrong(format!("{key} {text:?}: {what}")));
        Ok(Info {
            version,
            robot: raw.robot_type.unwrap_or_default(),
            fps: raw.fps,
            total_episodes: raw.total_episodes,
            total_frames: raw.total_frames,
            chunks_size: raw.chunks_size.unwrap_or(1000),
            data_path: template("data_path", raw.data_path)?,
            video_path: raw.video_path.map(|text| template("video_path", text)).transpose()?,
            features,
        })
    }
}

impl RawFeature {
    fn parse(self) -> Result<Feature, String> {
        let width = self.shape.iter().try_fold(1u64, |product, axis| product.checked_mul(*axis));
        let width = width.filter(|width| *width <= MAX_WIDTH);
        let shape: Vec<usize> = self.shape.iter().map(|axis| *axis as usize).collect();
        let info = self.info.or(self.video_info).unwrap_or_default();
        let depth = info.iter().any(|(key, value)| key.ends_with("is_depth_map") && value.as_bool() == Some(true));
        let codec = || info.get("video.codec").and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = match self.dtype.as_str() {
            "video" | "image" if depth => Kind::Other("depth map".to_owned()),
            "video" => Kind::Video { codec: codec() },
            "image" => Kind::Image,
            "string" => Kind::Text,
            "float32" | "float64" | "int8" | "int16" | "int32" | "int64" | "uint8" | "uint16" | "bool" => {
                Kind::Numbers(self.dtype)
            }
            _ => Kind::Other(self.dtype),
        };
        let mut feature = Feature { kind, shape, names: names(&self.names) };
        if matches!(feature.kind, Kind::Other(_) | Kind::Text) {
            return Ok(feature);
        }
        if width.is_none_or(|width| width == 0) {
            return Err(format!("shape {:?} is none that a frame can have", self.shape));
        }
        if feature.is_camera() {
            feature.shape = picture_shape(&feature)?;
        }
        Ok(feature)
    }
}

/// `[h, w, 3]`, however the feature orders its axes.
fn picture_shape(feature: &Feature) -> Result<Vec<usize>, String> {
    match (&feature.shape[..], feature.names.first().map(String::as_str)) {
        (&[3, h, w], Some("channels" | "channel")) => Ok(vec![h, w, 3]),
        (&[h, w, 3], _) => Ok(vec![h, w, 3]),
        (&[3, h, w], _) => Ok(vec![h, w, 3]),
        (other, _) => Err(format!("expected a picture [h, w, 3], found shape {other:?}")),
    }
}

/// LeRobot has seen lists, and maps from an axis to a list.
fn names(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        Value::Object(map) => map.values().flat_map(names).collect(),
        _ => vec![],
    }
}

/// A path with numbers to be filled in, in Python's format language: `episode_{episode_index:06d}.parquet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Number { name: String, pad: usize },
    Key,
}

impl Template {
    /// Parses it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = vec![];
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            let (before, after) = (&rest[..at], &rest[at + 1..]);
            let end = after.find('}').ok_or("a { without its }")?;
            parts.push(Part::Text(before.to_owned()));
            let (name, format) = after[..end].split_once(':').unwrap_or((&after[..end], ""));
            let digits = format.strip_suffix('d').unwrap_or(format);
            let pad = if digits.is_empty() { Some(0) } else { digits.parse().ok().filter(|pad| *pad <= MAX_PAD) };
            match (name, pad) {
                ("video_key", _) => parts.push(Part::Key),
                ("episode_chunk" | "episode_index" | "chunk_index" | "file_index", Some(pad)) => {
                    parts.push(Part::Number { name: name.to_owned(), pad });
                }
                _ => return Err(format!("{{{}}} is not known", &after[..end])),
            }
            rest = &after[end + 1..];
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Template(parts))
    }

    /// Fills it in: a path inside `dir`.
    ///
    /// # Errors
    /// It would lead out of the folder, or names a number that there is none of.
    pub(super) fn fill(&self, dir: &Path, video_key: &str, numbers: &[(&str, u64)]) -> Result<PathBuf, DataError> {
        let wrong = |what: String| DataError::meta(&dir.join("meta/info.json"), what);
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text += part,
                Part::Key => text += video_key,
                Part::Number { name, pad } => {
                    let number = numbers.iter().find(|(known, _)| known == name);
                    let (_, number) =
                        number.ok_or_else(|| wrong(format!("{{{name}}} does not belong in this path")))?;
                    text += &format!("{number:0pad$}");
                }
            }
        }
        let inside = Path::new(&text).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside || text.is_empty() || text.contains(['\0', '\\']) {
            return Err(wrong(format!("the path {text:?} leads out of the dataset")));
        }
        Ok(dir.join(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_pads_its_numbers() {
        let template = Template::parse("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet").unwrap();
        let path = template.fill(Path::new("set"), "", &[("episode_chunk", 2), ("episode_index", 2041)]).unwrap();
        assert_eq!(path, Path::new("set/data/chunk-002/episode_002041.parquet"));
        let template = Template::parse("videos/{video_key}/file-{file_index:03d}.mp4").unwrap();
        let path = template.fill(Path::new("set"), "observation.images.top", &[("file_index", 1234)]).unwrap();
        assert_eq!(path, Path::new("set/videos/observation.images.top/file-1234.mp4"));
    }

    #[test]
    fn a_template_that_leads_out_of_the_folder_is_refused() {
        for text in ["../{episode_index}", "/etc/passwd", "a/../../b", "{video_key}/x", ""] {
            let template = Template::parse(text).unwrap();
            let error = template.fill(Path::new("set"), "..", &[("episode_index", 0)]).unwrap_err();
            assert!(error.to_string().contains("leads out of the dataset"), "{text}: {error}");
        }
    }

    #[test]
    fn a_template_that_no_reader_can_fill_in_is_refused() {
        for text in ["{episode_index", "{secret}", "{episode_index:099999999d}", "{episode_index:x}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
        let template = Template::parse("{file_index}").unwrap();
        assert!(template.fill(Path::new("set"), "", &[("episode_index", 0)]).is_err());
    }
}
