//! `pi0 norm-stats`: what openpi computed of the same frames, and whether statistics fit data.
#![cfg(feature = "robot")]

mod tool;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::data_type::{DataType, FloatType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use pi0_burn::policy::norm_stats::read_any;
use serde_json::{Value as Json, json};
use tool::{done, pi0, refused};

const LIBERO: &str = "physical-intelligence/libero";
/// Preset, dataset, checkpoint and asset id of what openpi recorded.
const RECORDED: [(&str, &str, &str, &str); 4] = [
    ("pi0_aloha_pen_uncap", "aloha_png", "pi0", "trossen"),
    ("pi05_aloha_pen_uncap", "aloha_png", "pi05", "trossen"),
    ("pi0_libero", "libero_png", "pi0", LIBERO),
    ("pi0_fast_libero", "libero_png", "pi0_fast", LIBERO),
];

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).display().to_string()
}

fn dataset(name: &str) -> String {
    fixture(&format!("lerobot/{name}"))
}

fn recorded(checkpoint: &str, asset_id: &str) -> PathBuf {
    PathBuf::from(fixture(&format!("checkpoints/policy/{checkpoint}/assets/{asset_id}/norm_stats.json")))
}

/// `pi0 norm-stats` into a folder of assets; the file.
fn computed(assets: &Path, config: &str, data: &str, asset_id: &str, more: &[&str]) -> PathBuf {
    let assets_dir = assets.display().to_string();
    let arguments = ["norm-stats", "--config", config, "--dataset", data, "--assets-dir", &assets_dir];
    done(&[&arguments[..], more].concat());
    assets.join(asset_id).join("norm_stats.json")
}

/// How far two lists lie apart at most.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn openpis_method_writes_openpis_files_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    for (config, data, checkpoint, asset_id) in RECORDED {
        let assets = folder.path().join(config);
        let file = computed(&assets, config, &dataset(data), asset_id, &["--method", "openpi"]);
        assert_eq!(
            fs::read_to_string(file).expect("written"),
            fs::read_to_string(recorded(checkpoint, asset_id)).expect("recorded"),
            "{config}"
        );
    }
    let words =
        refused(&["norm-stats", "--config", "pi05_libero", "--dataset", &dataset("libero_png"), "--method", "openpi"]);
    assert!(
        words.contains("52 frames: openpi computes in batches of 256") && words.contains("--method exact"),
        "{words}"
    );
}

#[test]
fn exact_statistics_lie_beside_openpis_and_count_every_frame() {
    let folder = tempfile::tempdir().expect("a folder");
    for (config, data, checkpoint, asset_id) in RECORDED {
        let exact =
            read_any(&computed(&folder.path().join(config), config, &dataset(data), asset_id, &[])).expect("file");
        let openpi = read_any(&recorded(checkpoint, asset_id)).expect("file");
        for (key, openpi) in &openpi.keys {
            let exact = &exact.keys[key];
            let (low, high) = (exact.q01.clone().expect("q01"), exact.q99.clone().expect("q99"));
            for d in 0..exact.width() {
                assert!(exact.std[d] > 0.0 && low[d] < exact.mean[d] && exact.mean[d] < high[d], "{config} {key}[{d}]");
                // openpi leaves out the frames that fill no batch: the last of 65, but 20 of 52.
                let share = if data == "aloha_png" { 0.1 } else { 1.0 };
                let near = |a: f64, b: f64, share: f64| (a - b).abs() < share * exact.std[d];
                let [mean, std, q01] = [openpi.mean[d], openpi.std[d], openpi.q01.as_ref().expect("q01")[d]];
                assert!(near(exact.mean[d], mean, share) && near(exact.std[d], std, share), "{config} {key}[{d}]");
                // Its percentiles are those of bins that have moved, and may lie far in so few frames.
                assert!(near(low[d], q01, 1.0), "{config} {key}[{d}]");
            }
        }
    }
}

#[test]
fn both_versions_of_the_same_data_give_the_same_statistics() {
    let folder = tempfile::tempdir().expect("a folder");
    for method in ["exact", "openpi"] {
        let of = |data: &str| {
            let assets = folder.path().join(format!("{data}-{method}"));
            let file = computed(&assets, "pi0_aloha_pen_uncap", &dataset(data), "trossen", &["--method", method]);
            fs::read(file).expect("written")
        };
        assert_eq!(of("aloha_v21_h264"), of("aloha_v30_av1"), "{method}");
    }
}

#[test]
fn statistics_of_the_same_robot_fit_and_anothers_do_not() {
    let check = |more: &[&str]| {
        let data = dataset("aloha_png");
        let arguments = ["norm-stats", "--config", "pi0_aloha_pen_uncap", "--dataset", &data, "--check"];
        let output = pi0(&[&arguments[..], more].concat());
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let checkpoint = fixture("checkpoints/policy/pi0");
    let (code, text) = check(&["--checkpoint-dir", &checkpoint]);
    assert!(code == Some(0) && text.contains("they fit: nothing was found"), "{text}");
    assert!(text.contains("assets/trossen/norm_stats.json"), "{text}");
    let params = format!("{checkpoint}/params");
    assert_eq!(check(&["--checkpoint-dir", &params]).0, Some(0));
    let assets = format!("{checkpoint}/assets");
    for named in [assets.clone(), format!("{assets}/trossen"), format!("{assets}/trossen/norm_stats.json")] {
        assert_eq!(check(&["--norm-stats", &named]).0, Some(0), "{named}");
    }
    let (code, text) = check(&["--checkpoint-dir", &checkpoint, "--asset-id", LIBERO]);
    assert!(code == Some(1) && text.contains("they do NOT fit"), "{text}");
    let (code, text) = check(&["--norm-stats", &format!("{assets}/{LIBERO}/norm_stats.json"), "--json"]);
    let told: Json = serde_json::from_str(&text).expect("JSON");
    assert_eq!(code, Some(1));
    assert!(told["check"].as_array().is_some_and(|all| all.len() == 2), "{text}");
    let words = refused(&[
        "norm-stats",
        "--config",
        "pi0_aloha_pen_uncap",
        "--dataset",
        &dataset("aloha_png"),
        "--check",
        "--asset-id",
        "droid",
    ]);
    assert!(
        words.contains("norm stats of droid: there are none") && words.contains("./assets/pi0_aloha_pen_uncap/droid")
    );
}

#[test]
fn another_tools_file_is_held_against_the_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = dataset("libero_png");
    let ours = read_any(&computed(folder.path(), "pi0_libero", &data, LIBERO, &[])).expect("statistics");
    let of = |key: &str| json!({"mean": ours.keys[key].mean, "std": ours.keys[key].std, "count": [52]});
    let file = folder.path().join("stats.json");
    fs::write(&file, json!({"observation.state": of("state"), "action": of("actions")}).to_string()).expect("written");
    let file = file.display().to_string();
    let told = done(&["norm-stats", "--config", "pi0_libero", "--dataset", &data, "--check", "--norm-stats", &file]);
    assert!(told.contains("they fit") && told.contains(&file), "{told}");
}

#[test]
fn so_many_frames_are_taken_and_all_of_them_are_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = |name: &str, more: &[&str]| {
        let file = computed(&folder.path().join(name), "pi0_libero", &dataset("libero_png"), LIBERO, more);
        read_any(&file).expect("file").keys
    };
    let all = of("all", &[]);
    assert_eq!(of("as many", &["--max-frames", "52"]), all);
    let some = of("some", &["--max-frames", "20"]);
    assert!(apart(&some["state"].mean, &all["state"].mean) > 0.0, "other frames, other means");
    assert_eq!(of("share", &["--sample-rate", "0.4"]), some, "0.4 of 52 frames are 20");
    let data = dataset("libero_png");
    let arguments = ["norm-stats", "--config", "pi0_libero", "--dataset", &data, "--max-frames", "20", "--json"];
    let assets = folder.path().join("told").display().to_string();
    let told: Json = serde_json::from_str(&done(&[&arguments[..], &["--assets-dir", &assets]].concat())).expect("JSON");
    assert_eq!((&told["frames"], &told["counted_frames"]), (&json!(52), &json!(20)));
}

#[test]
fn what_stands_there_is_not_replaced_unasked() {
    let folder = tempfile::tempdir().expect("a folder");
    let assets = folder.path().display().to_string();
    let file = folder.path().join(LIBERO).join("norm_stats.json");
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    fs::write(&file, "precious").expect("written");
    let data = dataset("libero_png");
    let arguments = ["norm-stats", "--config", "pi0_libero", "--dataset", &data, "--assets-dir", &assets];
    let words = refused(&arguments);
    assert!(words.contains("it is there already; --overwrite replaces it"), "{words}");
    assert_eq!(fs::read(&file).expect("read"), b"precious");
    done(&[&arguments[..], &["--overwrite"]].concat());
    assert!(read_any(&file).is_ok());
}

#[test]
fn a_dataset_without_the_presets_keys_is_told_how_they_are_renamed() {
    let words = refused(&["norm-stats", "--config", "pi0_libero", "--dataset", &dataset("libero_v21_img")]);
    for part in ["state: pi0_libero reads its observation/state here", "[data.repack] of a preset of your own"] {
        assert!(words.contains(part), "{part}: {words}");
    }
}

#[test]
fn data_that_are_relative_already_stay_as_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train/pi0_libero.toml"));
    let text = text.expect("a preset");
    let mask = "delta_action_mask = [6, -1]\ndelta_ways = ";
    assert!(text.contains(&format!("{mask}\"both\"")), "{text}");
    let of = |name: &str, from: &str, to: &str| {
        let file = folder.path().join(format!("{name}.toml"));
        fs::write(&file, text.replace(from, to)).expect("written");
        let file = file.display().to_string();
        read_any(&computed(&folder.path().join(name), &file, &dataset("libero_png"), LIBERO, &[])).expect("file").keys
    };
    let both = of("both", "", "");
    let out = of("out", &format!("{mask}\"both\""), &format!("{mask}\"out\""));
    let none = of("none", &format!("{mask}\"both\"\n"), "");
    assert_eq!(out, none);
    assert!(apart(&out["actions"].mean, &both["actions"].mean) > 0.0);
}

const SCHEMA: &str = "message schema {
    optional group state (LIST) { repeated group list { optional float element; } }
    optional group actions (LIST) { repeated group list { optional float element; } }
    optional float timestamp;
    optional int64 frame_index;
    optional int64 episode_index;
    optional int64 index;
    optional int64 task_index;
}";

fn column<T: DataType>(group: &mut SerializedRowGroupWriter<'_, File>, values: &[T::T], width: usize) {
    let mut column = group.next_column().expect("a column").expect("one more");
    let definition = vec![if width > 0 { 3 } else { 1 }; values.len()];
    let repetition: Option<Vec<i16>> =
        (width > 0).then(|| (0..values.len()).map(|at| i16::from(at % width != 0)).collect());
    column.typed::<T>().write_batch(values, Some(&definition), repetition.as_deref()).expect("written");
    column.close().expect("closed");
}

/// LIBERO's vectors in two episodes of five frames, with this state of frame 7.
fn spoiled(folder: &Path, element: usize, value: f32) {
    let vector = |width: usize| json!({"dtype": "float32", "shape": [width], "names": null});
    let whole = json!({"dtype": "int64", "shape": [1], "names": null});
    let info = json!({
        "codebase_version": "v2.1", "robot_type": "made_up", "fps": 10, "total_episodes": 2, "total_frames": 10,
        "total_tasks": 1, "chunks_size": 1000, "video_path": null,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "features": {
            "state": vector(8), "actions": vector(7), "timestamp": {"dtype": "float32", "shape": [1], "names": null},
            "frame_index": whole, "episode_index": whole, "index": whole, "task_index": whole,
        },
    });
    fs::create_dir_all(folder.join("meta")).expect("a folder");
    fs::create_dir_all(folder.join("data/chunk-000")).expect("a folder");
    fs::write(folder.join("meta/info.json"), info.to_string()).expect("written");
    fs::write(folder.join("meta/tasks.jsonl"), "{\"task_index\": 0, \"task\": \"go\"}\n").expect("written");
    let mut episodes = String::new();
    for episode in 0..2 {
        episodes += &format!("{}\n", json!({"episode_index": episode, "tasks": ["go"], "length": 5}));
        let file = File::create(folder.join(format!("data/chunk-000/episode_{episode:06}.parquet"))).expect("a file");
        let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
        let mut table =
            SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::default())).expect("a table");
        let mut group = table.next_row_group().expect("a group");
        let mut state: Vec<f32> = (0..40).map(|at| (at as f32).sin()).collect();
        if episode == 1 {
            state[2 * 8 + element] = value;
        }
        column::<FloatType>(&mut group, &state, 8);
        column::<FloatType>(&mut group, &(0..35).map(|at| (at as f32).cos()).collect::<Vec<_>>(), 7);
        column::<FloatType>(&mut group, &(0..5).map(|at| at as f32 / 10.0).collect::<Vec<_>>(), 0);
        for whole in [|_, at| at, |episode, _| episode, |episode, at| 5 * episode + at, |_, _| 0] {
            let values: Vec<i64> = (0..5).map(|at| whole(episode, at)).collect();
            column::<Int64Type>(&mut group, &values, 0);
        }
        group.close().expect("closed");
        table.close().expect("closed");
    }
    fs::write(folder.join("meta/episodes.jsonl"), episodes).expect("written");
}

#[test]
fn a_value_that_is_no_number_is_named_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let assets = folder.path().join("assets").display().to_string();
    let arguments = ["norm-stats", "--config", "pi0_libero", "--dataset", &data, "--assets-dir", &assets];
    spoiled(Path::new(&data), 3, 0.5);
    done(&arguments);
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        spoiled(Path::new(&data), 3, value);
        let words = refused(&[&arguments[..], &["--overwrite"]].concat());
        assert!(words.contains(&format!("state[3]: {name} at frame 7 (episode 1)")), "{words}");
        let words = refused(&[
            "fast-tokenizer",
            "fit",
            "--dataset",
            &data,
            "--config",
            "pi0_fast_libero",
            "--norm-stats",
            &recorded("pi0_fast", LIBERO).display().to_string(),
            "--output",
            &assets,
        ]);
        assert!(
            words.contains(&format!("state[3]: {name} at frame 7")) || words.contains("it is there already"),
            "{words}"
        );
    }
}
