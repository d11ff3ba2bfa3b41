//! A frame of a dataset in, the robot's actions out: what openpi's own policies made of the same frames, with the same
//! weights, statistics and noise. Recorded by golden/record_policy.py.
#![cfg(feature = "model")]

mod tool;

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tool::pi0;

/// Preset, checkpoint, dataset, and its frames: index, episode, frame of it.
type Case = (&'static str, &'static str, &'static str, &'static [(usize, u64, usize)]);

const FLOW: [Case; 4] = [
    ("pi0_aloha_pen_uncap", "pi0", "aloha_png", &[(0, 0, 0), (12, 0, 12), (64, 1, 24)]),
    ("pi05_aloha_pen_uncap", "pi05", "aloha_png", &[(12, 0, 12)]),
    ("pi0_libero", "pi0", "libero_png", &[(12, 0, 12), (51, 1, 21)]),
    ("pi05_libero", "pi05", "libero_png", &[(12, 0, 12)]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn checkpoint(model: &str) -> PathBuf {
    root().join("fixtures/checkpoints/policy").join(model)
}

fn dataset(name: &str) -> PathBuf {
    root().join("fixtures/lerobot").join(name)
}

fn recorded(preset: &str) -> Vec<u8> {
    std::fs::read(root().join("golden/policy").join(preset).with_extension("safetensors")).unwrap()
}

/// As f64.
fn floats(set: &SafeTensors, name: &str) -> Vec<f64> {
    let view = set.tensor(name).unwrap();
    match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Dtype::F64 => view.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        other => panic!("{name}: {other:?}"),
    }
}

fn ids(set: &SafeTensors, name: &str) -> Vec<i64> {
    set.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
}

fn noise(set: &SafeTensors, frame: usize, folder: &Path) -> PathBuf {
    let view = set.tensor(&format!("{frame}/noise")).unwrap();
    let shape: Vec<u64> = view.shape().iter().map(|n| *n as u64).collect();
    let path = folder.join("noise.npy");
    std::fs::write(&path, orbax::npy_bytes(orbax::Dtype::F32, &shape, view.data()).unwrap()).unwrap();
    path
}

fn sample(arguments: &[&str], preset: &str, model: &str, data: &str) -> (Option<i32>, Value) {
    let (checkpoint, dataset) = (checkpoint(model), dataset(data));
    let mut all = vec!["sample", "--json", "--config", preset, "--checkpoint-dir"];
    all.extend([checkpoint.to_str().unwrap(), "--dataset", dataset.to_str().unwrap()]);
    all.extend(arguments);
    let out = pi0(&all);
    let text = String::from_utf8(out.stdout).unwrap();
    (out.status.code(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

fn actions(answer: &Value) -> Vec<f64> {
    let rows = answer["inferred"][0]["actions"].as_array().unwrap_or_else(|| panic!("{answer:#}"));
    rows.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn actions_are_those_of_openpis_own_policy() {
    let folder = tempfile::tempdir().unwrap();
    for (preset, model, data, frames) in FLOW {
        let bytes = recorded(preset);
        let set = SafeTensors::deserialize(&bytes).unwrap();
        for (index, episode, frame) in frames {
            let noise = noise(&set, *index, folder.path());
            let (episode, frame) = (episode.to_string(), frame.to_string());
            let arguments = ["--episode", &episode, "--frame", &frame, "--noise", noise.to_str().unwrap()];
            let (code, answer) = sample(&arguments, preset, model, data);
            assert_eq!(code, Some(0), "{preset} {index}: {answer:#}");
            let (found, expected) = (actions(&answer), floats(&set, &format!("{index}/reply/actions")));
            assert_eq!(found.len(), expected.len(), "{preset} {index}");
            let scale = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let by = (found - expected).abs();
                assert!(by <= 1e-5 * scale, "{preset} {index}, value {i}: {found} is not {expected}");
            }
            let mask = set.tensor(&format!("{index}/model/tokenized_prompt_mask")).unwrap();
            let tokens = mask.data().iter().filter(|bit| **bit == 1).count();
            assert_eq!(answer["inferred"][0]["prompt_tokens"], tokens, "{preset} {index}");
        }
    }
}

#[test]
fn pi0_fast_answers_with_the_tokens_that_openpi_gives() {
    let bytes = recorded("pi0_fast_libero");
    let set = SafeTensors::deserialize(&bytes).unwrap();
    let codec = root().join("fixtures/tokenizer/fast_tiny");
    let arguments = ["--frame", "12", "--fast-tokenizer", codec.to_str().unwrap(), "--on-malformed", "zeros"];
    let (code, answer) = sample(&arguments, "pi0_fast_libero", "pi0_fast", "libero_png");
    assert_eq!(code, Some(0), "{answer:#}");
    let found: Vec<i64> =
        answer["inferred"][0]["tokens"].as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect();
    let expected: Vec<i64> = floats(&set, "12/answer/actions").iter().map(|x| *x as i64).collect();
    assert_eq!(found, expected[..found.len()], "the tokens");
    assert!(expected[found.len()..].iter().all(|id| *id == 0), "openpi went on: {:?}", &expected[found.len()..]);
    let prompt = ids(&set, "12/model/tokenized_prompt_mask".replace("_mask", "").as_str());
    let told = answer["inferred"][0]["prompt_tokens"].as_u64().unwrap() as usize;
    assert!(prompt[told..].iter().all(|id| *id == 0) && prompt[told - 1] != 0);
    // A net of random weights speaks no FAST: what became of it is said.
    let notices = answer["inferred"][0]["notices"].to_string();
    assert!(notices.contains("no action chunk") && notices.contains("normalised zeros"), "{notices}");
}

#[test]
fn a_malformed_answer_fails_unless_told_otherwise_and_cannot_occur_when_constrained() {
    let codec = root().join("fixtures/tokenizer/fast_tiny");
    let with = |more: &[&str]| {
        let mut arguments = vec!["--frame", "12", "--fast-tokenizer", codec.to_str().unwrap()];
        arguments.extend(more);
        sample(&arguments, "pi0_fast_libero", "pi0_fast", "libero_png")
    };
    let (code, answer) = with(&[]);
    assert_eq!(code, Some(2), "{answer:#}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("no action chunk") && error.contains("--constrained"), "{error}");
    let (code, answer) = with(&["--on-malformed", "hold"]);
    assert_eq!(code, Some(0), "{answer:#}");
    let held = actions(&answer);
    assert!((1..10).all(|step| held[step * 7..step * 7 + 7] == held[..7]), "{held:?}");
    let (code, answer) = with(&["--constrained"]);
    assert_eq!(code, Some(0), "{answer:#}");
    assert_eq!((actions(&answer).len(), &answer["inferred"][0]["notices"]), (10 * 7, &Value::Null), "{answer:#}");
    assert_eq!(answer["inferred"][0]["tokens"].as_array().unwrap().last().unwrap(), 1);
}

#[test]
fn an_episode_is_drawn_beside_what_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let [plot, html, kept] = ["out.svg", "out.html", "out.npy"].map(|name| folder.path().join(name));
    let files =
        ["--plot", plot.to_str().unwrap(), "--html", html.to_str().unwrap(), "--output", kept.to_str().unwrap()];
    let mut arguments = vec!["--episode", "1", "--stride", "10"];
    arguments.extend(files);
    let (code, answer) = sample(&arguments, "pi0_aloha", "pi0", "aloha_png");
    assert_eq!(code, Some(0), "{answer:#}");
    let frames: Vec<u64> =
        answer["inferred"].as_array().unwrap().iter().map(|i| i["frame"].as_u64().unwrap()).collect();
    assert_eq!(frames, [0, 10, 20]);
    assert_eq!(answer["metrics"]["joints"].as_array().unwrap().len(), 14);
    assert_eq!(answer["metrics"]["joints"][0]["name"], "left_waist");
    assert_eq!(answer["metrics"]["compared"], 25 + 15 + 5);
    // pi0_aloha reads the simulator's name of the camera, which this dataset lacks.
    let notices = answer["policy"]["notices"].to_string();
    assert!(notices.contains("observation.images.top") && notices.contains("observation.images.cam_high"), "{notices}");
    assert_eq!(answer["inferred"][0]["prompt"], "place the cube in the box");
    let (svg, page) = (std::fs::read_to_string(&plot).unwrap(), std::fs::read_to_string(&html).unwrap());
    assert!(svg.starts_with("<svg") && svg.contains("left_waist"));
    assert!(page.contains("<svg") && page.contains("data:image/png;base64,"));
    // 128 bytes of header, 3 chunks of 50 steps of 14 values in f64.
    assert_eq!(std::fs::metadata(&kept).unwrap().len(), 128 + 3 * 50 * 14 * 8);
}

#[test]
fn a_prompt_on_the_command_line_goes_before_all_others() {
    for (preset, model, data) in [("pi0_libero", "pi0", "libero_png"), ("pi0_aloha_pen_uncap", "pi0", "aloha_png")] {
        let (code, answer) = sample(&["--prompt", "wave"], preset, model, data);
        assert_eq!((code, &answer["inferred"][0]["prompt"]), (Some(0), &Value::from("wave")), "{answer:#}");
    }
}

#[test]
fn what_a_robot_sent_gives_the_same_actions_from_a_recording_and_from_a_document() {
    let recording = root().join("fixtures/recordings/aloha");
    let checkpoint = checkpoint("pi0");
    let sample = |path: &Path| {
        let all = ["sample", "--json", "--config", "pi0_aloha", "--checkpoint-dir", checkpoint.to_str().unwrap()];
        let out = pi0(&[&all[..], &["--observation", path.to_str().unwrap()]].concat());
        let text = String::from_utf8(out.stdout).unwrap();
        serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    };
    let answer = sample(&recording);
    let all = answer["inferred"].as_array().unwrap_or_else(|| panic!("{answer:#}"));
    assert!(!all.is_empty() && all.iter().all(|i| i["actions"].as_array().unwrap().len() == 50));
    let kept = pi0_burn::data::recording::steps(&recording).unwrap();
    let inputs = pi0_burn::data::recording::read(&kept[0].1).unwrap().inputs;
    // The same as JSON.
    let folder = tempfile::tempdir().unwrap();
    let mut document = serde_json::Map::new();
    for (key, value) in &inputs.values {
        use pi0_burn::policy::array::Values;
        use pi0_burn::policy::record::Value as Held;
        let value = match value {
            Held::Text(text) => Value::from(text.clone()),
            Held::Array(array) if matches!(array.values, Values::U8(_)) => {
                let Values::U8(bytes) = &array.values else { unreachable!() };
                let name = format!("{}.npy", key.replace('/', "_"));
                let shape: Vec<u64> = array.shape.iter().map(|n| *n as u64).collect();
                let data = orbax::npy_bytes(orbax::Dtype::U8, &shape, bytes).unwrap();
                std::fs::write(folder.path().join(&name), data).unwrap();
                Value::from(name)
            }
            Held::Array(array) => Value::from(array.values.to_f64()),
        };
        document.insert(key.clone(), value);
    }
    let path = folder.path().join("obs.json");
    std::fs::write(&path, serde_json::to_vec(&document).unwrap()).unwrap();
    let told = sample(&path);
    assert_eq!(told["inferred"][0]["actions"], answer["inferred"][0]["actions"], "{told:#}");
}

#[test]
fn what_does_not_fit_is_told_before_a_weight_is_read() {
    let refusal = |arguments: &[&str], preset: &str, model: &str, data: &str| {
        let (code, answer) = sample(arguments, preset, model, data);
        assert_eq!(code, Some(2), "{answer:#}");
        answer["error"].as_str().unwrap().to_owned()
    };
    let error = refusal(&[], "pi05_libero", "pi0", "libero_png");
    assert!(error.contains("it is a pi05, and these tensors are a pi0"), "{error}");
    let error = refusal(&[], "pi0_libero", "pi0", "aloha_png");
    assert!(error.contains("reads image, state, wrist_image, which") && error.contains("observation/image"), "{error}");
    let error = refusal(&["--asset-id", "trosen"], "pi0_aloha", "pi0", "aloha_png");
    assert!(error.contains("trosen") && error.contains("assets"), "{error}");
    let error = refusal(&["--episode", "7"], "pi0_libero", "pi0", "libero_png");
    assert!(error.contains('7') && error.contains("2 episodes"), "{error}");
    let error = refusal(&["--frame", "30"], "pi0_libero", "pi0", "libero_png");
    assert!(error.contains("frames 0 to 29"), "{error}");
    let error = refusal(&["--tokenizer", "nowhere.model"], "pi0_libero", "pi0", "libero_png");
    assert!(error.contains("nowhere.model"), "{error}");
    let error = refusal(&["--on-malformed", "hold"], "pi0_libero", "pi0", "libero_png");
    assert!(error.contains("of pi0-FAST alone"), "{error}");
}
