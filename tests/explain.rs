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
