//! Norm stats of real checkpoints and of every shape a file can be wrong in.

use super::*;

const GOOD: &str = r#"{"norm_stats": {
  "state": {"mean": [0.1, -2.5e-3, NaN], "std": [1, 2, Infinity], "q01": [-1, -1, -Infinity], "q99": [1, 1, 1]},
  "actions": {"mean": [0.25], "std": [0.5], "q01": null}
}}"#;

fn put(root: &Path, id: &str, text: &str) {
    let folder = root.join(id);
    std::fs::create_dir_all(&folder).expect("folder");
    std::fs::write(folder.join(FILE), text).expect("file");
}

fn refusal(text: &str) -> String {
    format!("{:#}", NormStats::parse("robot", text.into()).expect_err("refused"))
}

#[test]
fn asset_ids_are_the_folders_below_and_come_sorted() {
    let root = tempfile::tempdir().expect("folder");
    for id in ["trossen", "tiny/robot", "physical-intelligence/libero"] {
        put(root.path(), id, GOOD);
    }
    std::fs::write(root.path().join("notes.txt"), "x").expect("file");
    let all = read_all(root.path()).expect("reads");
    let ids: Vec<&str> = all.iter().map(|s| s.asset_id.as_str()).collect();
    assert_eq!(ids, ["physical-intelligence/libero", "tiny/robot", "trossen"]);
    assert!(all.iter().all(|s| s.text == GOOD.as_bytes()));
}

#[test]
fn the_stats_of_a_real_checkpoint_are_read() {
    let step = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/checkpoints/manager/pi0_noema/7/assets");
    let all = read_all(&step).expect("reads");
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].asset_id, "tiny/robot");
    assert_eq!(
        all[0].keys.iter().map(|(k, s)| (k.as_str(), s.width())).collect::<Vec<_>>(),
        [("actions", 8), ("state", 8)]
    );
    assert_eq!(all[0].keys["state"].mean[0].to_bits(), 0.125_730_221_093_393_3_f64.to_bits());
}

#[test]
fn numbers_that_are_none_are_read_as_python_writes_them() {
    let stats = NormStats::parse("robot", GOOD.into()).expect("parses");
    let state = &stats.keys["state"];
    assert!(state.mean[2].is_nan());
    assert_eq!(state.std[2], f64::INFINITY);
    assert_eq!(state.q01.as_ref().expect("there")[2], f64::NEG_INFINITY);
    let actions = &stats.keys["actions"];
    assert_eq!((&actions.q01, &actions.q99), (&None, &None));
}

#[test]
fn the_word_nan_inside_a_string_is_left_alone() {
    let text = r#"{"norm_stats": {"a \"NaN\\": {"mean": [1], "std": [1]}}}"#;
    let stats = NormStats::parse("robot", text.into()).expect("parses");
    assert_eq!(stats.keys.keys().next().map(String::as_str), Some(r#"a "NaN\"#));
}

#[test]
fn a_file_without_the_outer_name_is_read() {
    let text = r#"{"state": {"mean": [1, 2], "std": [1, 1], "max": [9, 9]}}"#;
    let stats = NormStats::parse("robot", text.into()).expect("parses");
    assert_eq!(stats.keys["state"].mean, [1.0, 2.0]);
}

#[test]
fn what_is_wrong_is_told_with_its_key() {
    let long = r#"{"norm_stats": {"state": {"mean": [1, 2], "std": [1, 2, 3]}}}"#;
    assert_eq!(refusal(long), "norm_stats.state.std: expected 2 values as in mean, found 3");
    let word = r#"{"norm_stats": {"state": {"mean": [1, "two"], "std": [1, 2]}}}"#;
    assert_eq!(refusal(word), "norm_stats.state.mean[1]: expected a number, found a string");
    let nothing = r#"{"norm_stats": {"state": {"mean": [1, null], "std": [1, 2]}}}"#;
    assert_eq!(refusal(nothing), "norm_stats.state.mean[1]: expected a number, found null");
    let missing = r#"{"norm_stats": {"actions": {"mean": [1]}}}"#;
    assert_eq!(refusal(missing), "norm_stats.actions.std: it is missing");
    let flat = r#"{"state": [1]}"#;
    assert_eq!(refusal(flat), "state: expected an object, found a list");
    assert_eq!(refusal(r#"{"norm_stats": {}}"#), "it has no statistics: expected keys such as state and actions");
    assert!(refusal("{").starts_with("it is not JSON"));
    assert!(refusal(&"[".repeat(100_000)).starts_with("it is not JSON"));
}

#[test]
fn a_broken_file_is_named() {
    let root = tempfile::tempdir().expect("folder");
    put(root.path(), "tiny/robot", "{}");
    let message = format!("{:#}", read_all(root.path()).expect_err("refused"));
    assert!(message.contains("tiny/robot/norm_stats.json: it has no statistics"), "{message}");
}

#[test]
fn a_link_out_of_the_folder_is_refused_and_one_inside_is_followed() {
    let root = tempfile::tempdir().expect("folder");
    let assets = root.path().join("assets");
    put(&assets, "real", GOOD);
    std::fs::create_dir(assets.join("link")).expect("folder");
    std::os::unix::fs::symlink("../real/norm_stats.json", assets.join("link").join(FILE)).expect("link");
    assert_eq!(read_all(&assets).expect("reads").len(), 2);

    put(root.path(), "outside", GOOD);
    std::fs::create_dir(assets.join("far")).expect("folder");
    std::os::unix::fs::symlink("../../outside/norm_stats.json", assets.join("far").join(FILE)).expect("link");
    let message = format!("{:#}", read_all(&assets).expect_err("refused"));
    assert!(message.contains("far/norm_stats.json: a link that leads out of"), "{message}");
}

#[test]
fn a_link_to_a_folder_is_not_entered() {
    let root = tempfile::tempdir().expect("folder");
    put(root.path(), "real", GOOD);
    std::os::unix::fs::symlink(".", root.path().join("again")).expect("link");
    assert_eq!(read_all(root.path()).expect("reads").len(), 1);
}

#[test]
fn a_file_too_large_to_be_one_is_refused() {
    let root = tempfile::tempdir().expect("folder");
    put(root.path(), "robot", &" ".repeat(MAX_FILE_BYTES as usize + 1));
    let message = format!("{:#}", read_all(root.path()).expect_err("refused"));
    assert!(message.ends_with("larger than 16777216 bytes"), "{message}");
}

#[test]
fn openpis_own_file_is_written_byte_for_byte() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/statistics/norm_stats_example.json");
    let bytes = std::fs::read(path).unwrap();
    let parsed = NormStats::parse("", bytes.clone()).unwrap();
    let written = text(&[("state", &parsed.keys["state"]), ("actions", &parsed.keys["actions"])]).unwrap();
    assert_eq!(written.as_bytes(), bytes.trim_ascii_end());
}

#[test]
fn the_files_of_other_tools_are_read_for_state_and_actions() {
    let lists = r#"{"mean": [1.0], "std": [2.0], "q01": [0.0], "q99": [3.0]}"#;
    let giga = format!(r#"{{"norm_stats": {{"observation.state": {lists}, "action": {lists}}}}}"#);
    let read = of_any_tool(giga.into_bytes()).unwrap();
    assert_eq!(read.keys.keys().collect::<Vec<_>>(), ["actions", "state"]);
    assert_eq!(read.keys["actions"].q99.as_deref(), Some(&[3.0][..]));

    let counted = r#"{"mean": [1.0], "std": [2.0], "q01": [0.0], "q99": [3.0], "count": [98]}"#;
    let picture = r#"{"mean": [[[0.5]]], "std": [[[0.1]]], "count": [98]}"#;
    let lerobot = format!(r#"{{"action": {counted}, "observation.images.top": {picture}}}"#);
    let read = of_any_tool(lerobot.into_bytes()).unwrap();
    assert_eq!((read.keys.len(), read.keys["actions"].q01.as_ref()), (1, None));

    let twice = format!(r#"{{"state": {lists}, "observation.state": {lists}}}"#);
    assert!(of_any_tool(twice.into_bytes()).unwrap_err().to_string().contains("two names"));
    let error = of_any_tool(b"{\"timestamp\": {}}".to_vec()).unwrap_err();
    assert!(error.to_string().contains("there are timestamp"), "{error}");
}
