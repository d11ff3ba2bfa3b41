//! `pi0 fast-tokenizer --dataset`: the codec is made of what training would be given.
#![cfg(feature = "robot")]

mod tool;

use std::collections::BTreeMap;
use std::path::Path;

use pi0_burn::config::train;
use pi0_burn::data::lerobot::{Dataset, Deltas};
use pi0_burn::policy::chain::{Origin, Statistics, Widths, chain};
use pi0_burn::policy::norm_stats::read_any;
use pi0_burn::policy::step::Chain;
use serde_json::{Value as Json, json};
use tool::{done, pi0, refused};

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).display().to_string()
}

/// Preset, dataset and statistics.
const SETS: [(&str, &str, &str); 2] = [
    ("pi05_aloha_pen_uncap", "lerobot/aloha_png", "checkpoints/policy/pi05/assets/trossen/norm_stats.json"),
    (
        "pi0_fast_libero",
        "lerobot/libero_png",
        "checkpoints/policy/pi0_fast/assets/physical-intelligence/libero/norm_stats.json",
    ),
];

/// Every frame's normalised actions as the loader and the preset's own chain make them, as .npy.
fn by_the_loader(config: &str, data: &str, stats: &str, to: &Path) {
    let preset = train::named(config).expect("a preset");
    let dataset = Dataset::open(Path::new(data)).expect("a dataset");
    let stats = Statistics::Given(read_any(Path::new(stats)).expect("statistics"));
    let origin = Origin::Dataset { tasks: BTreeMap::new() };
    let widths = Widths { image: (224, 224), action_dim: None };
    let whole = chain(preset.data.as_ref().expect("data"), &origin, &stats, widths, None).expect("a chain");
    let vectors = ["repack", "robot-vectors", "delta-actions", "normalize"];
    let chain = Chain { steps: whole.steps.into_iter().filter(|step| vectors.contains(&step.name())).collect() };
    let fps = dataset.info().fps;
    let moments: Vec<f64> = (0..preset.model.action_horizon).map(|t| t as f64 / fps).collect();
    let deltas: Deltas = preset.source.action_sequence_keys.iter().map(|key| (key.clone(), moments.clone())).collect();
    let (mut values, mut shape) = (vec![], vec![dataset.frames()]);
    for index in 0..dataset.frames() {
        let mut record = dataset.frame_with(index, &deltas).expect("a frame");
        record.put_text("prompt", "");
        let record = chain.apply(record).expect("applied");
        let actions = record.array("actions").expect("actions");
        shape.truncate(1);
        shape.extend(&actions.shape);
        values.extend(actions.values.to_f64());
    }
    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({}), }}", axes.join(", "));
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    let padded = format!("{header:<width$}\n", width = 128 - 10 - 1);
    bytes.extend((padded.len() as u16).to_le_bytes());
    bytes.extend(padded.bytes());
    bytes.extend(values.iter().flat_map(|value: &f64| value.to_le_bytes()));
    std::fs::write(to, bytes).expect("written");
}

fn json_of(arguments: &[&str]) -> Json {
    let output = pi0(&[arguments, &["--json"]].concat());
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_codec_of_a_dataset_is_the_one_of_what_the_loader_gives() {
    let folder = tempfile::tempdir().expect("a folder");
    for (config, data, stats) in SETS {
        let (data, stats) = (fixture(data), fixture(stats));
        let path = |name: &str| folder.path().join(format!("{config}-{name}")).display().to_string();
        let (npy, ours, expected) = (path("chunks.npy"), path("ours"), path("expected"));
        by_the_loader(config, &data, &stats, Path::new(&npy));
        let fit = ["fast-tokenizer", "fit", "--vocab-size", "2048", "--output"];
        let told =
            json_of(&[&fit[..], &[&ours, "--dataset", &data, "--config", config, "--norm-stats", &stats]].concat());
        let known = json_of(&[&fit[..], &[&expected, "--chunks", &npy]].concat());
        for key in ["count", "horizon", "dim", "tokens", "min_token", "max_token", "max_error", "rms_error"] {
            assert_eq!(told[key], known[key], "{config}: {key}");
        }
        for file in ["tokenizer.json", "processor_config.json"] {
            let read = |folder: &str| std::fs::read(Path::new(folder).join(file)).expect("written");
            assert_eq!(read(&ours), read(&expected), "{config}: {file}");
        }
        assert!(known["units"].is_null() && told["units"]["norm_stats"] == json!(stats), "{told}");
        // The error before normalising: half the distance of the percentiles is the unit.
        let stats = read_any(Path::new(&stats)).expect("statistics").keys["actions"].clone();
        let (q01, q99) = (stats.q01.expect("q01"), stats.q99.expect("q99"));
        for d in 0..stats.mean.len() {
            let expected = told["max_error"][d].as_f64().expect("a number") * (q99[d] - q01[d] + 1e-6) / 2.0;
            let found = told["units"]["max_error"][d].as_f64().expect("a number");
            assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{config} {d}: {found} {expected}");
        }
    }
}

#[test]
fn without_statistics_they_are_computed_and_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, output) = (fixture("lerobot/libero_png"), folder.path().join("fast").display().to_string());
    let of = ["--dataset", &data, "--config", "pi0_fast_libero"];
    let told = done(&[&["fast-tokenizer", "fit", "--output", &output][..], &of].concat());
    for part in
        ["52 chunks of 10 steps and 7 dimensions", "computed from these datasets (exact)", "in the robot's units"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    // The same statistics from their file.
    let assets = folder.path().join("assets").display().to_string();
    done(&["norm-stats", "--config", "pi0_fast_libero", "--dataset", &data, "--assets-dir", &assets]);
    let check = [&["fast-tokenizer", "check", "--codec", &output][..], &of].concat();
    let (own, named) = (json_of(&check), json_of(&[&check[..], &["--norm-stats", &assets]].concat()));
    assert_eq!(own["max_error"], named["max_error"]);
    assert_eq!(own["lost"], 0);
    let twice = json_of(&[&check[..], &["--dataset", &data]].concat());
    assert_eq!(twice["count"], 104, "two datasets are one");
    // Shorter chunks have coefficients that the longer ones had not: the answer may be no.
    let short = json_of(&[&check[..], &["--horizon", "4", "--norm-stats", &assets]].concat());
    assert_eq!((&short["horizon"], &short["count"]), (&json!(4), &json!(52)));
}

#[test]
fn some_chunks_stand_at_even_distances_and_what_is_unseen_is_warned_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, data, stats) = SETS[0];
    let (data, stats) = (fixture(data), fixture(stats));
    let output = folder.path().join("fast").display().to_string();
    let of = ["--dataset", &data, "--config", config, "--norm-stats", &stats];
    let fit = ["fast-tokenizer", "fit", "--max-chunks", "2", "--vocab-size", "2048", "--output", &output];
    let told = done(&[&fit[..], &of].concat());
    assert!(told.contains("2 of 65 frames at even distances") && told.contains("2 chunks of 50 steps"), "{told}");
    let check = [&["fast-tokenizer", "check", "--codec", &output][..], &of].concat();
    let output = pi0(&check);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("chunks cannot be encoded: no token spells the coefficients"), "{text}");
    // Frames 0 and 32 are what was fitted to.
    let two: Json = json_of(&[&check[..], &["--max-chunks", "2"]].concat());
    assert_eq!(two["lost"], 0);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let data = fixture("lerobot/libero_png");
    let check = ["fast-tokenizer", "check", "--codec", "none"];
    let with = |more: &[&str]| refused(&[&check[..], more].concat());
    assert!(with(&[]).contains("--chunks"));
    assert!(with(&["--dataset", &data]).contains("--config"));
    assert!(with(&["--dataset", &data, "--config", "pi0_libero", "--chunks", "a.npy"]).contains("cannot be used with"));
    let fit = ["fast-tokenizer", "fit", "--output", "none", "--dataset", &data, "--config"];
    let words = refused(&[&fit[..], &["pi0_aloha_pen_uncap"]].concat());
    assert!(words.contains("observation.state: pi0_aloha_pen_uncap reads its state here"), "{words}");
    let assets = fixture("checkpoints/policy/pi0/assets");
    let words = refused(&[&fit[..], &["pi0_droid", "--norm-stats", &assets]].concat());
    assert!(words.contains("pi0_droid reads its"), "{words}");
    let words = refused(&[&fit[..], &["pi0_libero", "--norm-stats", &assets, "--max-chunks", "0"]].concat());
    assert!(words.contains("--max-chunks 0"), "{words}");
    let words = refused(&[&fit[..], &["debug"]].concat());
    assert!(words.contains("made up"), "{words}");
}
