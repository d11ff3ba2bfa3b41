//! LeRobot datasets: what the official loader returns, from every version, by one reader; and what is refused.
#![cfg(feature = "robot")]

#[path = "../tool/mod.rs"]
mod tool;

mod hostile;
mod prepared;
mod verb;

use std::path::{Path, PathBuf};

use pi0_burn::data::lerobot::{Dataset, Deltas, Version};
use pi0_burn::data::video::Ffmpeg;
use pi0_burn::policy::array::{Array, Values};
use pi0_burn::policy::record::Value;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Dataset, what is recorded of it, and whether its cameras are videos.
const SETS: [(&str, &str, bool); 4] = [
    ("aloha_v21_h264", "aloha_v21_h264.json", true),
    ("aloha_v30_av1", "aloha_v30_av1.json", true),
    ("libero_v21_img", "libero_img.json", false),
    ("libero_v30_img", "libero_img.json", false),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lerobot").join(name)
}

fn golden(name: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/lerobot").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A copy of a fixture that a test may spoil.
fn copy(name: &str) -> TempDir {
    fn walk(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), &to.join(entry.file_name())),
                // Written, not copied: a copy would keep a read-only mode.
                false => std::fs::write(to.join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap(),
            }
        }
    }
    let dir = TempDir::new().unwrap();
    walk(&fixture(name), dir.path());
    dir
}

/// Replaces a text in a file of a dataset.
fn replace(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// Is there an ffmpeg? If not, says what is left out.
fn ffmpeg(left_out: &str) -> Option<Ffmpeg> {
    let found = Ffmpeg::find();
    if let Err(error) = &found {
        eprintln!("skipped: {left_out}: {error}");
    }
    found.ok()
}

fn numbers(array: &Array) -> serde_json::Value {
    match &array.values {
        Values::I64(values) if array.shape.is_empty() => json!(values[0]),
        Values::Bool(values) => json!(values),
        values if array.shape.is_empty() => json!(values.to_f64()[0]),
        values if array.shape.len() == 1 => json!(values.to_f64()),
        values => json!(values.to_f64().chunks(array.shape[1]).collect::<Vec<_>>()),
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn equals_the_official_loader(dataset: &Dataset, expected: &serde_json::Value) {
    let horizon = expected["horizon"].as_u64().unwrap() as usize;
    let deltas = Deltas::from([("action".to_owned(), (0..horizon).map(|t| t as f64 / dataset.info().fps).collect())]);
    assert_eq!(dataset.frames() as u64, expected["len"].as_u64().unwrap());
    for item in expected["items"].as_array().unwrap() {
        let index = item["index"].as_u64().unwrap();
        let record = dataset.frame_with(index as usize, &deltas).unwrap();
        let mut compared = 0;
        for (key, expected) in item.as_object().unwrap() {
            match record.get(key) {
                Some(Value::Text(text)) => assert_eq!(*expected, json!(text), "{index} {key}"),
                Some(Value::Array(picture)) if expected.get("sha256_u8_hwc").is_some() => {
                    let chw = [2, 0, 1].map(|axis| picture.shape[axis]);
                    assert_eq!(expected["shape_chw"], json!(chw), "{index} {key}");
                    let Values::U8(pixels) = &picture.values else { panic!("{key} is {picture}") };
                    assert_eq!(expected["sha256_u8_hwc"], json!(sha256(pixels)), "{index} {key}");
                }
                Some(Value::Array(array)) => assert_eq!(numbers(array), *expected, "{index} {key}"),
                None => panic!("{index}: no {key}"),
            }
            compared += 1;
        }
        // Nothing but `index` is in our record alone.
        assert_eq!(compared, record.values.len(), "{index}: {:?}", record.values.keys());
    }
}

#[test]
fn every_frame_is_what_the_official_loader_returns() {
    for (set, expected, video) in SETS {
        if video && ffmpeg(&format!("frames of {set}")).is_none() {
            continue;
        }
        equals_the_official_loader(&Dataset::open(&fixture(set)).unwrap(), &golden(expected));
    }
}

#[test]
fn columns_hold_what_the_official_loader_returns() {
    for (set, expected, _) in SETS {
        let dataset = Dataset::open(&fixture(set)).unwrap();
        let expected = golden(expected);
        let columns = dataset.columns(&["observation.state", "action", "timestamp", "task_index"], &|_| ()).unwrap();
        let width = columns[0].width;
        let [state, action, timestamp, task] = [0, 1, 2, 3].map(|at| columns[at].values.to_f64());
        assert_eq!(timestamp.len(), 98, "{set}");
        for item in expected["items"].as_array().unwrap() {
            let at = item["index"].as_u64().unwrap() as usize;
            let row = |values: &[f64]| json!(values[at * width..(at + 1) * width]);
            assert_eq!(row(&state), item["observation.state"], "{set} {at}");
            assert_eq!(row(&action), item["action"][0], "{set} {at}");
            assert_eq!(json!(timestamp[at]), item["timestamp"], "{set} {at}");
            assert_eq!(task[at], item["task_index"].as_f64().unwrap(), "{set} {at}");
        }
        let lengths: Vec<usize> = dataset.episodes().iter().map(|episode| episode.frames.len()).collect();
        assert_eq!(lengths, [40, 25, 33], "{set}");
    }
}

#[test]
fn a_chunk_repeats_the_last_action_and_says_so() {
    for (set, expected, _) in SETS {
        let dataset = Dataset::open(&fixture(set)).unwrap();
        for item in golden(expected)["items"].as_array().unwrap() {
            let (episode, frame) = (item["episode_index"].as_u64().unwrap(), item["frame_index"].as_u64().unwrap());
            let (actions, pad) = dataset.chunk("action", episode, frame as usize, 16).unwrap();
            assert_eq!(numbers(&actions), item["action"], "{set} {episode} {frame}");
            assert_eq!(numbers(&pad), item["action_is_pad"], "{set} {episode} {frame}");
        }
    }
}

#[test]
fn moments_before_an_episode_repeat_its_first_frame() {
    let dataset = Dataset::open(&fixture("libero_v30_img")).unwrap();
    let deltas = Deltas::from([("observation.state".to_owned(), vec![-0.1, 0.0])]);
    // Frame 40 is the first of the second episode: what lies before it is another's.
    let record = dataset.frame_with(40, &deltas).unwrap();
    let state = record.array("observation.state").unwrap();
    let width = state.shape[1];
    let values = state.values.to_f32();
    assert_eq!(values[..width], values[width..]);
    assert_eq!(record.array("observation.state_is_pad").unwrap().values, Values::Bool(vec![true, false]));
}

/// What a frame shows in a row of squares: eight bits of its number, two of its episode's and two of its camera's,
/// lowest first.
fn stamped(pixels: &[u8], (_, width): (usize, usize)) -> (usize, u64, u64) {
    let side = width / 16;
    let bit = |at: usize| {
        let (x, y) = (2 + at * side + side / 2, 2 + side / 2);
        u64::from(pixels[(y * width + x) * 3] > 127)
    };
    let number = |bits: std::ops::Range<usize>| bits.clone().map(|at| bit(at) << (at - bits.start)).sum::<u64>();
    (number(0..8) as usize, number(8..10), number(10..12))
}

#[test]
fn every_frame_of_every_episode_is_the_one_that_was_asked_for() {
    for (set, _, video) in SETS {
        if video && ffmpeg(&format!("frame numbers of {set}")).is_none() {
            continue;
        }
        let dataset = Dataset::open(&fixture(set)).unwrap();
        for episode in dataset.episodes() {
            // In the order of their names, which is the one they were recorded in.
            for (camera, key) in dataset.cameras().enumerate() {
                let mut seen = 0;
                let mut look = |frame: usize, size: (usize, usize), pixels: &[u8]| {
                    assert_eq!(stamped(pixels, size), (frame, episode.index, camera as u64), "{set} {key}");
                    seen += 1;
                    Ok(())
                };
                dataset.pictures(key, episode, 0..episode.len(), 0, &mut look).unwrap();
                // From the middle on, which is another way through a video.
                dataset.pictures(key, episode, 11..13, 0, &mut look).unwrap();
                assert_eq!(seen, episode.len() + 2, "{set} {key}");
            }
        }
    }
}

#[test]
fn a_v20_dataset_reads_as_its_v21_does() {
    let dir = copy("libero_v21_img");
    replace(dir.path(), "meta/info.json", "v2.1", "v2.0");
    std::fs::write(dir.path().join("meta/stats.json"), "{}").unwrap();
    let dataset = Dataset::open(dir.path()).unwrap();
    assert_eq!(dataset.info().version, Version::V20);
    equals_the_official_loader(&dataset, &golden("libero_img.json"));
}

#[test]
fn hevc_is_read_where_ffmpeg_can() {
    let Some(_) = ffmpeg("an HEVC video") else { return };
    let dir = copy("aloha_v21_h264");
    let video = dir.path().join("videos/chunk-000/observation.images.cam_left_wrist/episode_000000.mp4");
    let from = fixture("aloha_v21_h264").join("videos/chunk-000/observation.images.cam_left_wrist/episode_000000.mp4");
    let program = std::env::var_os("PI0_FFMPEG").unwrap_or_else(|| "ffmpeg".into());
    let mut encode = std::process::Command::new(program);
    encode.args(["-v", "error", "-y", "-i"]).arg(from).args(["-c:v", "libx265", "-x265-params", "log-level=none"]);
    if !encode.arg(&video).status().unwrap().success() {
        eprintln!("skipped: an HEVC video: this ffmpeg cannot write one");
        return;
    }
    let dataset = Dataset::open(dir.path()).unwrap();
    let episode = &dataset.episodes()[0];
    let mut seen = 0;
    let key = "observation.images.cam_left_wrist";
    dataset
        .pictures(key, episode, 0..episode.len(), 0, &mut |frame, size, pixels| {
            assert_eq!(stamped(pixels, size), (frame, 0, 1));
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 40);
}
