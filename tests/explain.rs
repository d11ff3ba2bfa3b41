//! `pi0 explain` tells a preset's chain, and what becomes of an observation, step by step.

#![cfg(feature = "robot")]

mod tool;

use std::path::Path;

use serde_json::{Value, json};
use tool::{done, refused};

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

/// An ALOHA observation with one picture, and statistics of mean 1 and deviation 2.
fn aloha(folder: &Path) -> (String, String) {
    let picture = vec![vec![vec![51; 6]; 4]; 3];
    let state: Vec<f64> = (0..14).map(|i| f64::from(i) / 14.0).collect();
    let floats: Vec<Vec<Vec<f64>>> =
        picture.iter().map(|p| p.iter().map(|r| r.iter().map(|x| f64::from(*x) / 255.0).collect()).collect()).collect();
    let observation = json!({"state": state, "images": {"cam_high": floats}, "prompt": "fold the towel"});
    let of = |n: usize| json!({"mean": vec![1.0; n], "std": vec![2.0; n]});
    let stats = json!({"norm_stats": {"state": of(14), "actions": of(14)}});
    let observation = write(folder, "obs.json", &observation.to_string());
    (observation, write(folder, "norm_stats.json", &stats.to_string()))
}

#[test]
fn every_preset_is_listed_and_told() {
    let list: Vec<Value> = serde_json::from_str(&done(&["explain", "--list", "--json"])).expect("JSON");
    assert_eq!(list.len(), 31);
    for preset in &list {
        let name = preset["name"].as_str().expect("a name");
        let told = done(&["explain", "--config", name]);
        assert!(told.starts_with(&format!("{name}: {}", preset["model"].as_str().expect("a model"))), "{told}");
        assert_eq!(told.contains("robot-vectors"), !preset["robot"].is_null(), "{told}");
    }
}

#[test]
fn a_chain_is_told_with_its_parameters_and_keys() {
    let told = done(&["explain", "--config", "pi0_aloha_towel"]);
    for words in [
        "chunks of 50 x 32, 48 tokens",
        "norm stats: trossen, not found in ./assets/pi0_aloha_towel/trossen",
        "1, 2, 8, 9 turned",
        "right_wrist_0_rgb = images/cam_right_wrist, or black and masked",
        "actions relative to state, on dimensions 0-5, 7-12 of 14",
        "prompt = \"fold the towel\" where there is none",
        "not run here",
        "reads state, actions; writes actions",
    ] {
        assert!(told.contains(words), "{words}\n{told}");
    }
    let told = done(&["explain", "--config", "pi0_fast_libero", "--as-dataset"]);
    for words in
        ["prompt-from-task", "observation/wrist_image = wrist_image", "tokenizer fast", "right_wrist_0_rgb = black;"]
    {
        assert!(told.contains(words), "{words}\n{told}");
    }
    assert!(!told.contains("pad-states-and-actions"), "{told}");
}

#[test]
fn an_observation_is_followed_through_every_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let (observation, stats) = aloha(folder.path());
    let told =
        done(&["explain", "--config", "pi0_aloha", "--observation", &observation, "--norm-stats", &stats, "--json"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let changed = |step: &str, key: &str| {
        let steps = told["steps"].as_array().expect("steps");
        let step = steps.iter().find(|s| s["name"] == step).unwrap_or_else(|| panic!("{step}"));
        let entries = step["changed"].as_array().expect("it was run");
        entries.iter().find(|e| e["key"] == key).cloned().unwrap_or_default()
    };
    assert_eq!(told["norm_stats"]["from"], json!(stats));
    assert_eq!(changed("robot-cameras", "image/base_0_rgb")["max"], json!(51.0));
    assert_eq!(changed("resize-images", "image/base_0_rgb")["shape"], json!([224, 224, 3]));
    assert_eq!(changed("robot-vectors", "state")["dtype"], "float64");
    assert_eq!(changed("pad-states-and-actions", "state")["shape"], json!([32]));
    let raw = changed("robot-vectors", "state")["min"].as_f64().expect("a number");
    let normal = changed("normalize", "state")["min"].as_f64().expect("a number");
    assert!((normal - (raw - 1.0) / 2.000001).abs() < 1e-12);
    assert!(changed("normalize", "actions").is_null());
}

#[test]
fn what_does_not_fit_is_told_with_the_step_the_key_and_the_nearest() {
    let folder = tempfile::tempdir().expect("a folder");
    let (observation, stats) = aloha(folder.path());
    let told = refused(&["explain", "--config", "pi0_aloha", "--observation", &observation]);
    assert!(told.contains("norm stats of trossen: there are none; looked in ./assets/pi0_aloha/trossen"), "{told}");
    assert!(told.contains("--skip-norm-stats"), "{told}");
    done(&["explain", "--config", "pi0_aloha", "--observation", &observation, "--skip-norm-stats"]);
    let told = refused(&["explain", "--config", "pi0_droid", "--observation", &observation, "--norm-stats", &stats]);
    assert!(told.contains("step 1 (robot-vectors): observation/joint_position: it is missing; there are"), "{told}");
    let text = std::fs::read_to_string(&observation).expect("read").replace("cam_high", "cam_hihg");
    let misspelt = write(folder.path(), "misspelt.json", &text);
    let told = refused(&["explain", "--config", "pi0_aloha", "--observation", &misspelt, "--norm-stats", &stats]);
    assert!(told.contains("step 2 (robot-cameras): images/cam_hihg: nothing knows it; the nearest is"), "{told}");
    let told = refused(&["explain", "--config", "pi0_alhoa"]);
    assert!(told.contains("the nearest is pi0_aloha"), "{told}");
}

#[test]
fn a_robot_of_ones_own_takes_the_presets_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let ur5 = include_str!("../configs/robot/ur5.toml").replace("base_rgb", "eye").replace("\"ur5\"", "\"mine\"");
    let robot = write(folder.path(), "mine.toml", &ur5);
    let told = done(&["explain", "--config", "pi0_libero", "--robot", &robot]);
    assert!(told.starts_with("pi0_libero: pi0 on mine, layout pi0"), "{told}");
    assert!(told.contains("joints (6) + gripper (1)") && told.contains("base_0_rgb = eye"), "{told}");
}

#[test]
fn statistics_are_those_of_the_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, stats) = aloha(folder.path());
    let assets = folder.path().join("step/assets/trossen");
    std::fs::create_dir_all(&assets).expect("a folder");
    std::fs::rename(stats, assets.join("norm_stats.json")).expect("moved");
    let step = folder.path().join("step");
    for named in [step.clone(), step.join("params")] {
        let named = named.display().to_string();
        let told = done(&["explain", "--config", "pi0_aloha", "--checkpoint-dir", &named]);
        assert!(told.contains("minus mean, divided by standard deviation: actions (14), state (14)"), "{told}");
    }
    let step = step.display().to_string();
    let told = refused(&["explain", "--config", "pi0_droid", "--checkpoint-dir", &step]);
    assert!(told.contains("norm stats of droid: there are none; looked in") && told.contains("assets/droid"), "{told}");
    let told = refused(&["explain", "--config", "pi05_aloha", "--checkpoint-dir", &step]);
    assert!(told.contains("step normalize: actions: the statistics have no q01 and q99"), "{told}");
}

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).display().to_string()
}

#[test]
fn a_frame_of_a_dataset_takes_the_steps_of_training() {
    let (data, stats) = (fixture("lerobot/aloha_png"), fixture("checkpoints/policy/pi05/assets"));
    let tokenizer = fixture("tokenizer/tiny");
    let arguments = ["explain", "--config", "pi05_aloha_pen_uncap", "--dataset", &data, "--norm-stats", &stats];
    let told =
        done(&[&arguments[..], &["--episode", "1", "--frame", "3", "--tokenizer", &tokenizer, "--json"]].concat());
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["frame"]["episode"], 1);
    let entry = |entries: &Value, key: &str| {
        let entries = entries.as_array().expect("entries");
        entries.iter().find(|entry| entry["key"] == key).cloned().unwrap_or_else(|| panic!("{key}"))
    };
    let step = |name: &str| {
        let steps = told["steps"].as_array().expect("steps");
        steps.iter().find(|step| step["name"] == name).cloned().unwrap_or_else(|| panic!("{name}"))
    };
    assert_eq!(entry(&told["input"], "frame_index")["min"], 3.0);
    assert_eq!(entry(&told["input"], "episode_index")["min"], 1.0);
    assert_eq!(entry(&told["input"], "action")["shape"], json!([50, 14]), "the chunk beside the frame");
    assert_eq!(entry(&told["input"], "action_is_pad")["shape"], json!([50]));
    assert_eq!(entry(&told["input"], "observation.images.cam_high")["shape"], json!([3, 48, 64]), "as LeRobot has it");
    assert_eq!(entry(&step("repack")["changed"], "actions")["shape"], json!([50, 14]));
    assert_eq!(entry(&step("robot-cameras")["changed"], "image/base_0_rgb")["shape"], json!([48, 64, 3]));
    assert_eq!(entry(&step("inject-default-prompt")["changed"], "prompt")["text"], "uncap the pen");
    assert_eq!(entry(&step("pad-states-and-actions")["changed"], "actions")["shape"], json!([50, 32]));
    let tokens = &step("tokenize-prompt")["tokens"];
    let prompt = tokens["prompt"].as_str().expect("a prompt");
    let bins = prompt.strip_prefix("Task: uncap the pen, State: ").and_then(|rest| rest.strip_suffix(";\nAction: "));
    let bins: Vec<u8> =
        bins.expect("openpi's form").split(' ').map(|bin| bin.parse().expect("one of 256 bins")).collect();
    assert_eq!(bins.len(), 14);
    assert_eq!((&tokens["of"], tokens["count"].as_u64().is_some_and(|n| n > 14)), (&json!(200), true));
    let words = done(&[&arguments[..], &["--tokenizer", &tokenizer]].concat());
    assert!(
        words.contains("frame 0 of 40 of episode 0 of") && words.contains("tokens of 200; the prompt is"),
        "{words}"
    );
}

#[test]
fn a_datasets_task_is_the_prompt_where_the_preset_says_so_and_actions_become_tokens() {
    let data = fixture("lerobot/libero_png");
    let (checkpoint, codec) = (fixture("checkpoints/policy/pi0_fast"), fixture("tokenizer/fast_tiny"));
    let arguments = ["explain", "--config", "pi0_fast_libero", "--dataset", &data, "--frame", "12", "--checkpoint-dir"];
    let arguments = [&arguments[..], &[&checkpoint]].concat();
    // The tokenizer lies beside the checkpoint.
    let told = done(&[&arguments[..], &["--fast-tokenizer", &codec]].concat());
    for part in [
        " 1 prompt-from-task",
        "put the bowl on the plate",
        "actions [10, 7] as FAST (315 tokens",
        "of them of the actions; the prompt is \"Task: put the bowl on the plate, State: ",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let words = refused(&[&arguments[..], &["--fast-tokenizer", "nowhere"]].concat());
    assert!(words.contains("nowhere"), "{words}");
    let pi0 = ["explain", "--config", "pi0_libero", "--dataset", &data, "--skip-norm-stats", "--tokenizer"];
    let words = refused(&[&pi0[..], &[&fixture("tokenizer/tiny"), "--fast-tokenizer", &codec]].concat());
    assert!(words.contains("--fast-tokenizer: of pi0-FAST alone"), "{words}");
    let told = done(&[&pi0[..], &[&fixture("tokenizer/tiny")]].concat());
    assert!(told.contains("the prompt is \"put the bowl on the plate\\n\""), "{told}");
}

#[test]
fn a_dataset_that_lacks_what_the_preset_reads_is_told_the_nearest_and_a_way() {
    let with = |config: &str, data: &str, more: &[&str]| {
        let data = fixture(&format!("lerobot/{data}"));
        refused(&[&["explain", "--config", config, "--dataset", &data, "--skip-norm-stats"][..], more].concat())
    };
    let words = with("pi0_libero", "libero_v21_img", &[]);
    for part in ["actions: pi0_libero reads its chunks of actions here", "the nearest is action", "[data.repack]"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let words = with("pi0_aloha_pen_uncap", "aloha_v21_h264", &[]);
    assert!(words.contains("the nearest is observation.images.cam_left_wrist"), "{words}");
    let words = with("pi0_libero", "libero_png", &["--frame", "999"]);
    assert!(words.contains("--frame 999: episode 0 of") && words.contains("frames, 0 to"), "{words}");
    let words = with("pi0_libero", "libero_png", &["--episode", "99"]);
    assert!(words.contains("episode 99: the dataset has"), "{words}");
    let words = with("pi0_libero", "libero_png", &["--observation", "obs.json"]);
    assert!(words.contains("cannot be used with"), "{words}");
    let words = with("debug", "libero_png", &[]);
    assert!(words.contains("made up"), "{words}");
    // A preset that hands a prompt on, of data that have none.
    let folder = tempfile::tempdir().expect("a folder");
    let preset =
        include_str!("../configs/train/pi0_libero.toml").replace("prompt_from_task = true", "prompt_from_task = false");
    let preset = write(folder.path(), "mine.toml", &preset);
    let words = with(&preset, "libero_png", &[]);
    assert!(
        words.contains("prompt: mine reads its prompt here") && words.contains("prompt_from_task = true"),
        "{words}"
    );
}
