//! LeRobot datasets: what the official loader returns, from every version, by one reader.
#![cfg(feature = "robot")]

use std::path::{Path, PathBuf};

use pi0_burn::data::lerobot::Dataset;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lerobot").join(name)
}

fn golden(name: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/lerobot").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

const SETS: [(&str, &str); 4] = [
    ("aloha_v21_h264", "aloha_v21_h264.json"),
    ("aloha_v30_av1", "aloha_v30_av1.json"),
    ("libero_v21_img", "libero_img.json"),
    ("libero_v30_img", "libero_img.json"),
];

#[test]
fn columns_hold_what_the_official_loader_returns() {
    for (set, expected) in SETS {
        let dataset = Dataset::open(&fixture(set)).unwrap();
        let expected = golden(expected);
        let columns = dataset.columns(&["observation.state", "action", "timestamp", "task_index"], &|_| ()).unwrap();
        let width = columns[0].width;
        let [state, action, timestamp, task] = [0, 1, 2, 3].map(|at| columns[at].values.to_f64());
        assert_eq!(timestamp.len(), 98, "{set}");
        for item in expected["items"].as_array().unwrap() {
            let at = item["index"].as_u64().unwrap() as usize;
            let row = |values: &[f64]| serde_json::json!(values[at * width..(at + 1) * width]);
            assert_eq!(row(&state), item["observation.state"], "{set} {at}");
            assert_eq!(row(&action), item["action"][0], "{set} {at}");
            assert_eq!(timestamp[at], item["timestamp"].as_f64().unwrap(), "{set} {at}");
            assert_eq!(task[at], item["task_index"].as_f64().unwrap(), "{set} {at}");
        }
        let lengths: Vec<usize> = dataset.episodes().iter().map(|episode| episode.frames.len()).collect();
        assert_eq!(lengths, [40, 25, 33], "{set}");
    }
}
