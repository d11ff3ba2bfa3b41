//! `pi0 dataset` and `pi0 prepare` as people call them.

use pi0_burn::data::lerobot::Dataset;
use pi0_burn::policy::image::ResizeImages;
use pi0_burn::policy::record::Record;
use pi0_burn::policy::step::Step;

use super::tool::{done, pi0, refused};
use super::{copy, ffmpeg, fixture, replace};

fn said(arguments: &[&str], code: i32) -> String {
    let output = pi0(arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_dataset_is_told_with_its_features_and_tasks() {
    let path = fixture("aloha_v30_av1");
    let text = done(&["dataset", path.to_str().unwrap()]);
    for part in [
        "LeRobot v3.0 · aloha",
        "3 episodes of 25 to 40 frames · 98 frames at 50 fps · 2.0 s",
        "video[480, 640, 3] av1",
        "float32[14]",
        "task: place the cube in the box",
        "its files are there and as long as they should be; --check looks inside",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let json = done(&["dataset", path.to_str().unwrap(), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["frames"], 98);
    assert_eq!(json["features"].as_array().unwrap().len(), 10);
    assert_eq!(json["findings"], serde_json::json!([]));
}

#[test]
fn recorded_datasets_have_no_fault() {
    for (set, _, video) in super::SETS {
        if video && ffmpeg(&format!("the videos of {set}")).is_none() {
            continue;
        }
        let text = said(&["dataset", fixture(set).to_str().unwrap(), "--check"], 0);
        assert!(!text.contains("fault"), "{set}: {text}");
    }
}

#[test]
fn faults_are_told_and_the_answer_is_no() {
    let dir = copy("libero_v21_img");
    let path = dir.path().to_str().unwrap();
    replace(dir.path(), "meta/info.json", "\"fps\": 10", "\"fps\": 11");
    replace(dir.path(), "meta/info.json", "\"total_frames\": 98", "\"total_frames\": 99");
    replace(dir.path(), "meta/tasks.jsonl", "place the cube in the box", "wave");
    let text = said(&["dataset", path, "--check"], 1);
    for part in [
        "fault  meta/info.json: total_frames is 99, but the episodes have 98",
        "fault  episode 1: its task \"place the cube in the box\" is not among the tasks of meta/",
        "fault  episode 0: the timestamp of frame 1 is 0.10000000149011612 s, expected 0.09090909090909091 s at 11 fps",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    std::fs::remove_file(dir.path().join("data/chunk-000/episode_000001.parquet")).unwrap();
    let text = said(&["dataset", path], 1);
    assert!(text.contains("episode_000001.parquet: it is missing"), "{text}");
}

#[test]
fn a_video_of_several_episodes_that_is_missing_is_a_fault() {
    let dir = copy("aloha_v30_av1");
    std::fs::remove_file(dir.path().join("videos/observation.images.cam_high/chunk-000/file-000.mp4")).unwrap();
    let text = said(&["dataset", dir.path().to_str().unwrap()], 1);
    assert!(text.contains("cam_high/chunk-000/file-000.mp4: the video is missing"), "{text}");
}

#[test]
fn a_folder_that_is_no_dataset_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for verb in ["dataset", "prepare"] {
        let words = refused(&[verb, dir.path().to_str().unwrap()]);
        assert!(words.contains("no LeRobot dataset"), "{words}");
    }
}

#[test]
fn prepare_makes_films_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (set, films) = (fixture("libero_v30_img"), dir.path().join("films"));
    let arguments = |episodes: &'static str| {
        let [set, films] = [&set, &films].map(|path| path.to_str().unwrap().to_owned());
        [
            "prepare".to_owned(),
            set,
            "--cache".to_owned(),
            films,
            "--size=64".to_owned(),
            format!("--episodes={episodes}"),
        ]
    };
    assert!(done(&arguments("1")).contains("1 episodes of 2 cameras"));
    let text = done(&arguments("0-1"));
    assert!(text.contains("2 written, 2 were there"), "{text}");
    let words = refused(&arguments("0-7"));
    assert!(
        words.contains("--episodes 0-7") && words.contains("episode 7: the dataset has 3 episodes, 0 to 2"),
        "{words}"
    );
}

#[test]
fn a_prepared_frame_is_what_the_policy_resizes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (set, films) = (fixture("aloha_png"), dir.path().join("films"));
    let [folder, cache] = [&set, &films].map(|path| path.to_str().unwrap());
    // One that is smaller and one that is larger than the pictures, which are wider than high.
    for size in [40, 224] {
        done(&["prepare", folder, "--cache", cache, "--episodes", "1", "--size", &size.to_string()]);
        let plain = Dataset::open(&set).unwrap();
        let prepared = Dataset::open(&set).unwrap().with_prepared(&films);
        let index = plain.episode(1).unwrap().frames.start + 7;
        let (plain, prepared) = (plain.frame(index).unwrap(), prepared.frame(index).unwrap());
        for camera in ["cam_high", "cam_left_wrist", "cam_right_wrist"] {
            let key = format!("observation.images.{camera}");
            let mut record = Record::default();
            record.put_array("image/a", plain.array(&key).unwrap().clone());
            ResizeImages { height: size, width: size }.apply(&mut record).unwrap();
            assert_eq!(record.array("image/a").unwrap(), prepared.array(&key).unwrap(), "{camera} {size}");
        }
    }
}

#[test]
fn without_ffmpeg_it_says_what_is_missing_and_how_to_get_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pi0"))
        .args(["prepare", fixture("aloha_v21_h264").to_str().unwrap(), "--cache", dir.path().to_str().unwrap()])
        .env("PI0_FFMPEG", dir.path().join("no-ffmpeg"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("apt-get install ffmpeg") && words.contains("PI0_FFMPEG"), "{words}");
}
