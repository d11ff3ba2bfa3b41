//! Datasets that are broken or lie: each is refused by name, none panics.

use std::path::Path;

use pi0_burn::data::lerobot::Dataset;

use super::{copy, ffmpeg, replace};

const TABLE: &str = "data/chunk-000/episode_000001.parquet";
const VIDEO: &str = "videos/chunk-000/observation.images.cam_high/episode_000001.mp4";

fn refused(dir: &Path) -> String {
    Dataset::open(dir).map(|_| ()).expect_err("it opens").to_string()
}

/// What is said when all numbers are read.
fn columns_refused(dir: &Path) -> String {
    let dataset = Dataset::open(dir).unwrap();
    dataset
        .columns(&["observation.state", "action", "timestamp"], &|_| ())
        .expect_err("its columns are read")
        .to_string()
}

/// What is said when a frame of the second episode is read.
fn frame_refused(dir: &Path, index: usize) -> String {
    Dataset::open(dir).unwrap().frame(index).map(|_| ()).expect_err("the frame is read").to_string()
}

#[test]
fn a_folder_that_is_no_dataset_says_what_one_has() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(dir.path()).contains("meta/info.json is missing; name the folder that holds meta/ and data/"));
    std::fs::create_dir(dir.path().join("meta_data")).unwrap();
    std::fs::write(dir.path().join("meta_data/info.json"), "{}").unwrap();
    let error = refused(dir.path());
    assert!(error.contains("LeRobot v1.x; expected v2.0, v2.1 or v3.0"), "{error}");
}

#[test]
fn a_version_of_the_future_is_refused_by_name() {
    let dir = copy("libero_v30_img");
    replace(dir.path(), "meta/info.json", "v3.0", "v4.2");
    let error = refused(dir.path());
    assert!(error.contains("info.json: LeRobot v4.2; expected v2.0, v2.1 or v3.0; a newer layout"), "{error}");
}

#[test]
fn documents_that_lie_are_refused_with_their_name() {
    for (file, from, to, said) in [
        ("meta/info.json", "\"fps\": 10", "\"fps\": 0", "fps: expected more than 0"),
        ("meta/info.json", "\"fps\": 10", "\"fps\": -1e300", "fps: expected more than 0"),
        ("meta/info.json", "\"chunks_size\": 1000", "\"chunks_size\": 0", "chunks_size: expected at least 1"),
        ("meta/info.json", "data/chunk-", "../data/chunk-", "leads out of the dataset"),
        ("meta/info.json", "data/chunk-", "/data/chunk-", "leads out of the dataset"),
        ("meta/info.json", "{episode_index:06d}", "{home}", "{home} is not known"),
        ("meta/info.json", "\"features\": {", "\"features\": {,", "it is not JSON"),
        ("meta/episodes.jsonl", "\"length\": 25", "\"length\": 0", "episode 1: a length of 0 frames"),
        ("meta/episodes.jsonl", "\"length\": 25", "\"length\": 18446744073709551615", "episode 1: a length"),
        ("meta/episodes.jsonl", "\"episode_index\": 1", "\"episode_index\": 2", "episode 2 occurs twice"),
        ("meta/episodes.jsonl", "\"length\"", "\"len\"", "line 1: missing field"),
        ("meta/tasks.jsonl", "\"task\"", "\"job\"", "line 1: missing field"),
    ] {
        let dir = copy("libero_v21_img");
        replace(dir.path(), file, from, to);
        let error = refused(dir.path());
        assert!(error.contains(said) && error.contains("meta/"), "{to}: {error}");
    }
}

#[test]
fn a_shape_that_no_frame_has_is_refused() {
    for axis in ["4294967296, 4294967296, 3", "0, 64, 3", "64, 64, 5"] {
        let dir = copy("libero_v21_img");
        let path = dir.path().join("meta/info.json");
        let mut info: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        info["features"]["observation.images.image"]["shape"] = serde_json::from_str(&format!("[{axis}]")).unwrap();
        std::fs::write(&path, info.to_string()).unwrap();
        let error = refused(dir.path());
        assert!(error.contains("features.observation.images.image"), "{axis}: {error}");
    }
}

#[test]
fn a_length_that_the_table_does_not_have_names_the_table() {
    for length in ["24", "1000000000000"] {
        let dir = copy("libero_v21_img");
        replace(dir.path(), "meta/episodes.jsonl", "\"length\": 25", &format!("\"length\": {length}"));
        let error = columns_refused(dir.path());
        assert!(error.contains(TABLE), "{error}");
        assert!(error.contains(&format!("expected {length} rows, as meta/ says, found 25")), "{error}");
        assert_eq!(frame_refused(dir.path(), 41), error);
    }
}

#[test]
fn a_table_that_is_missing_or_cut_off_is_named() {
    let dir = copy("libero_v21_img");
    let table = dir.path().join(TABLE);
    let bytes = std::fs::read(&table).unwrap();
    for kept in [0, 3, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&table, &bytes[..kept]).unwrap();
        let error = columns_refused(dir.path());
        assert!(error.contains(TABLE) && error.contains("no sound parquet"), "{kept}: {error}");
    }
    std::fs::remove_file(&table).unwrap();
    let error = columns_refused(dir.path());
    assert!(error.contains(TABLE) && error.contains("it is missing"), "{error}");
}

#[test]
fn spoiled_bytes_of_a_table_never_panic() {
    let dir = copy("libero_v21_img");
    let table = dir.path().join(TABLE);
    let sound = std::fs::read(&table).unwrap();
    let (mut refused, mut read) = (0, 0);
    // Every 101st byte, and all of the footer, which is what everything else hangs on.
    let footer = sound.len() - 8 - u32::from_le_bytes(sound[sound.len() - 8..][..4].try_into().unwrap()) as usize;
    for at in (0..footer).step_by(101).chain((footer..sound.len()).step_by(5)) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0xff;
        std::fs::write(&table, &bytes).unwrap();
        let dataset = Dataset::open(dir.path()).unwrap();
        let columns = dataset.columns(&["observation.state", "action", "timestamp"], &|_| ());
        match columns.map(|_| ()).and_then(|()| dataset.frame(41).map(|_| ())) {
            Ok(()) => read += 1,
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains(TABLE), "byte {at}: {error}");
            }
        }
    }
    assert!(refused > 50 && read > 50, "{refused} refused, {read} read");
}

#[test]
fn another_width_than_the_features_is_refused_by_name() {
    let dir = copy("libero_v21_img");
    let path = dir.path().join("meta/info.json");
    let mut info: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    info["features"]["action"]["shape"] = serde_json::json!([13]);
    std::fs::write(&path, info.to_string()).unwrap();
    let error = columns_refused(dir.path());
    assert!(error.contains("column action: expected 13 values a row, found"), "{error}");
}

#[test]
fn rows_of_another_episode_are_not_believed() {
    let dir = copy("libero_v21_img");
    // Two files changed places, and so did their lengths.
    let (one, two) = (dir.path().join(TABLE), dir.path().join("data/chunk-000/episode_000002.parquet"));
    let (a, b) = (std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    std::fs::write(&one, b).unwrap();
    std::fs::write(&two, a).unwrap();
    replace(dir.path(), "meta/episodes.jsonl", "\"length\": 25", "\"length\": x");
    replace(dir.path(), "meta/episodes.jsonl", "\"length\": 33", "\"length\": 25");
    replace(dir.path(), "meta/episodes.jsonl", "\"length\": x", "\"length\": 33");
    let error = frame_refused(dir.path(), 41);
    assert!(error.contains("column episode_index: row 0: expected 1, found 2"), "{error}");
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let dataset = Dataset::open(&super::fixture("libero_v30_img")).unwrap();
    let error = dataset.columns(&["observation.stat"], &|_| ()).unwrap_err().to_string();
    assert!(error.contains("the nearest is observation.state"), "{error}");
    let error = dataset.columns(&["observation.images.image"], &|_| ()).unwrap_err().to_string();
    assert!(error.contains("expected a feature of numbers, found pictures"), "{error}");
    assert!(dataset.frame(98).unwrap_err().to_string().contains("the dataset has 98 frames"));
    assert!(dataset.episode(3).unwrap_err().to_string().contains("3 episodes, 0 to 2"));
}

#[test]
fn a_video_that_is_missing_or_cut_off_is_named() {
    let Some(_) = ffmpeg("videos that are cut off") else { return };
    let dir = copy("aloha_v21_h264");
    let video = dir.path().join(VIDEO);
    let bytes = std::fs::read(&video).unwrap();
    std::fs::write(&video, &bytes[..bytes.len() / 2]).unwrap();
    let error = frame_refused(dir.path(), 41);
    assert!(error.contains(VIDEO) && error.contains("moov atom not found"), "{error}");
    std::fs::write(&video, b"#EXTM3U\nfile:///etc/passwd\n").unwrap();
    let error = frame_refused(dir.path(), 41);
    assert!(error.contains(VIDEO) && error.contains("ffmpeg cannot decode it"), "{error}");
    std::fs::remove_file(&video).unwrap();
    let error = frame_refused(dir.path(), 41);
    assert!(error.contains(VIDEO) && error.contains("the video is missing"), "{error}");
}

#[test]
fn a_video_shorter_than_its_episode_says_how_many_frames_it_has() {
    let Some(_) = ffmpeg("videos that are too short") else { return };
    let dir = copy("aloha_v21_h264");
    // The first episode has 40 frames, this video 25.
    let long = dir.path().join("videos/chunk-000/observation.images.cam_high/episode_000000.mp4");
    std::fs::copy(dir.path().join(VIDEO), &long).unwrap();
    let dataset = Dataset::open(dir.path()).unwrap();
    let episode = &dataset.episodes()[0];
    let key = "observation.images.cam_high";
    let error = dataset.pictures(key, episode, 0..40, 0, &mut |_, _, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("episode_000000.mp4: expected 40 frames from 0 s on, found 25"), "{error}");
}

#[test]
fn another_size_or_rate_than_the_datasets_is_refused_by_name() {
    let Some(_) = ffmpeg("videos of another size or rate") else { return };
    let dir = copy("aloha_v21_h264");
    let wrist = "videos/chunk-000/observation.images.cam_left_wrist/episode_000001.mp4";
    std::fs::copy(dir.path().join(wrist), dir.path().join(VIDEO)).unwrap();
    let error = frame_refused(dir.path(), 41);
    assert!(error.contains("expected pictures of 320x240, as info.json says, found 128x96"), "{error}");
    // Times in the table that no frame of the video has.
    let dir = copy("aloha_v21_h264");
    let program = std::env::var_os("PI0_FFMPEG").unwrap_or_else(|| "ffmpeg".into());
    let mut encode = std::process::Command::new(program);
    encode.args(["-v", "error", "-y", "-r", "25", "-i"]).arg(super::fixture("aloha_v21_h264").join(VIDEO));
    assert!(encode.args(["-c:v", "mpeg4"]).arg(dir.path().join(VIDEO)).status().unwrap().success());
    let error = frame_refused(dir.path(), 41);
    assert!(error.contains(VIDEO) && error.contains("expected 50 frames a second"), "{error}");
    assert!(error.contains("found 25"), "{error}");
}
