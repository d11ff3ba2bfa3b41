//! `pi0 sample` as people and scripts meet it: what JAX recorded comes out, however the observation comes in.

#![cfg(feature = "model")]

mod tool;

use std::io::Write;
use std::path::{Path, PathBuf};

use orbax::{Dtype, npy_bytes};
use serde_json::{Value, json};
use tool::{checkpoint, done, pi0, refused};

fn golden(case: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(case).join("io.safetensors").display().to_string()
}

fn command(model: &str, more: &[&str]) -> Vec<String> {
    let from = checkpoint("base").join(model).join("params").display().to_string();
    let all = ["sample", "--checkpoint", &from];
    all.iter().chain(more).map(|s| (*s).to_owned()).collect()
}

fn report(arguments: &[String]) -> Value {
    let mut arguments = arguments.to_vec();
    arguments.push("--json".into());
    serde_json::from_str(&done(&arguments)).unwrap()
}

fn floats(tensor: &tool::Tensor) -> Vec<f32> {
    assert_eq!(tensor.dtype, "F32");
    tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Samples into a file and reads it with somebody else's reader.
fn actions(mut arguments: Vec<String>) -> (Vec<usize>, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("actions.safetensors");
    arguments.extend(["--output".into(), out.display().to_string()]);
    done(&arguments);
    let tensor = &tool::tensors(&out)["actions"];
    (tensor.shape.clone(), floats(tensor))
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn a_checkpoint_alone_is_enough_to_see_that_its_weights_are_alive() {
    for model in ["pi0", "pi05"] {
        let told = report(&command(model, &["--random-observation", "--repeat", "3", "--batch", "2"]));
        assert_eq!(told["model"]["family"], model);
        assert_eq!((&told["precision"], &told["device"]), (&json!("f32"), &json!("cpu")));
        assert_eq!(told["shape"], json!([2, 50, 8]));
        let stages: Vec<&str> =
            told["first"]["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
        assert_eq!(stages, ["vision", "prefix", "steps"]);
        assert_eq!(told["statistics"]["dims"].as_array().unwrap().len(), 8);
        assert!(told["statistics"]["all"]["std"].as_f64().unwrap() > 0.1, "{told}");
        assert_eq!((told["runs"].as_array().unwrap().len(), &told["warm"]["runs"]), (3, &json!(2)));
        assert_eq!(told["chunk_ms"].as_array().unwrap().len(), 2);
        let noise = told["noise"].as_str().unwrap();
        assert_eq!(noise, format!("seed 0, horizon 50 from configs/model/{model}.toml"));
    }
    let told = report(&command("pi0fast", &["--random-observation", "--max-decoding-steps", "5"]));
    assert_eq!(told["tokens"][0].as_array().unwrap().len(), 5);
    assert_eq!(told["observation"]["prompt_length"], 250);
}

#[test]
fn what_people_read_names_model_precision_and_device() {
    let text = done(&command("pi0", &["--random-observation", "--dtype", "serve-bf16", "--action-horizon", "4"]));
    for words in
        ["model    pi0 · ", "precision serve-bf16 · cpu", "actions  1x4x8 · mean ", "load ", "vision ", "10 steps "]
    {
        assert!(text.contains(words), "{words}\n{text}");
    }
}

#[test]
fn a_recorded_observation_with_its_noise_gives_the_recorded_actions() {
    for (model, case) in [("pi0", "pi0_f32"), ("pi05", "pi05_f32")] {
        let io = golden(case);
        let recorded = tool::tensors(Path::new(&io));
        for (steps, tap) in [("10", "sample/actions"), ("5", "sample/actions_steps5"), ("1", "sample/actions_steps1")] {
            let (shape, found) = actions(command(model, &["--observation", &io, "--num-steps", steps]));
            assert_eq!(shape, [2, 6, 8]);
            let far = apart(&found, &floats(&recorded[tap]));
            assert!(far <= 5e-5, "{case} {tap}: {far}");
        }
        // Its noise from a file of its own, and none of it: other actions.
        let folder = tempfile::tempdir().unwrap();
        let noise = folder.path().join("noise.npy");
        let tensor = &recorded["sample/noise"];
        std::fs::write(&noise, npy_bytes(Dtype::F32, &[2, 6, 8], &tensor.bytes).unwrap()).unwrap();
        let own = actions(command(model, &["--observation", &io]));
        assert_eq!(actions(command(model, &["--observation", &io, "--noise", noise.to_str().unwrap()])), own);
        assert_eq!(actions(command(model, &["--observation", &io, "--noise", &io])), own);
        let other = actions(command(model, &["--observation", &io, "--seed", "0", "--action-horizon", "6"]));
        assert!(apart(&own.1, &other.1) > 0.1);
    }
}

#[test]
fn tokens_are_those_that_were_recorded() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for case in ["pi0fast_f32", "pi0fast_eos_f32"] {
        let set = std::fs::read_to_string(root.join(case).join("set.toml")).unwrap();
        let weights = set.lines().find_map(|l| l.strip_prefix("weights = \"")?.strip_suffix('"')).unwrap();
        let weights = root.join(case).join(weights);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("tokens.json");
        let io = golden(case);
        let run = ["sample", "--checkpoint", weights.to_str().unwrap(), "--observation", &io];
        let more = ["--max-decoding-steps", "24", "--output", out.to_str().unwrap()];
        done(&[&run[..], &more].concat());
        let found: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
        let recorded = &tool::tensors(Path::new(&io))["infer/tokens"];
        for (row, expected) in floats(recorded).chunks(24).enumerate() {
            let mut tokens: Vec<f64> =
                found["tokens"][row].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
            assert_eq!(found["ended"][row], json!(tokens.contains(&1.0)));
            tokens.resize(24, 0.0);
            assert_eq!(tokens, expected.iter().map(|t| f64::from(*t)).collect::<Vec<_>>(), "{case} row {row}");
        }
    }
}

#[test]
fn temperature_takes_other_tokens_and_the_same_ones_again() {
    let tokens = |more: &[&str]| {
        let all = [&["--random-observation", "--max-decoding-steps", "8", "--prompt-length", "12"], more].concat();
        report(&command("pi0fast", &all))["tokens"].clone()
    };
    let greedy = tokens(&[]);
    let warm = tokens(&["--temperature", "1.5"]);
    assert!(greedy != warm);
    assert_eq!(warm, tokens(&["--temperature", "1.5"]));
    assert_eq!(greedy, tokens(&["--temperature", "0", "--stop", "each-row", "--repeat", "2"]));
    // A row does not know how many others there are.
    assert_eq!(warm[0], tokens(&["--temperature", "1.5", "--batch", "2"])[0]);
}

/// One row of the recorded pi0 observation, its images as bytes.
struct Bytes {
    folder: tempfile::TempDir,
    state: Vec<f32>,
    tokens: Vec<i32>,
    mask: Vec<bool>,
    images: [(&'static str, Vec<u8>); 3],
}

const CAMERAS: [&str; 3] = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"];

impl Bytes {
    fn new() -> Self {
        let recorded = tool::tensors(Path::new(&golden("pi0_f32")));
        let image = |name: &str| -> Vec<u8> {
            let values = floats(&recorded[&format!("in/image/{name}")]);
            values[..56 * 56 * 3].iter().map(|x| ((x + 1.0) / 2.0 * 255.0).round() as u8).collect()
        };
        let tokens = &recorded["in/tokenized_prompt"].bytes;
        Bytes {
            folder: tempfile::tempdir().unwrap(),
            state: floats(&recorded["in/state"])[..8].to_vec(),
            tokens: tokens.chunks_exact(4).take(16).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            mask: recorded["in/tokenized_prompt_mask"].bytes[..16].iter().map(|b| *b == 1).collect(),
            images: CAMERAS.map(|name| (name, image(name))),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name).display().to_string()
    }

    fn png(&self, name: &str, side: u32, bytes: &[u8]) {
        let mut encoder = png::Encoder::new(std::fs::File::create(self.path(name)).unwrap(), side, side);
        encoder.set_color(png::ColorType::Rgb);
        encoder.write_header().unwrap().write_image_data(bytes).unwrap();
    }

    /// A document with a picture, bytes and floats beside it.
    fn document(&self) -> Value {
        let [base, left, right] = &self.images;
        self.png("base.png", 56, &base.1);
        self.write("left.npy", &npy_bytes(Dtype::U8, &[56, 56, 3], &left.1).unwrap());
        let floats: Vec<u8> = right.1.iter().flat_map(|x| (f32::from(*x) / 255.0 * 2.0 - 1.0).to_le_bytes()).collect();
        self.write("right.npy", &npy_bytes(Dtype::F32, &[56, 56, 3], &floats).unwrap());
        json!({
            "state": self.state, "tokenized_prompt": self.tokens, "tokenized_prompt_mask": self.mask,
            "image": {"base_0_rgb": "base.png", "left_wrist_0_rgb": "left.npy", "right_wrist_0_rgb": "right.npy"},
            "image_mask": {"base_0_rgb": true},
        })
    }

    fn json(&self, document: &Value) -> String {
        self.write("observation.json", document.to_string().as_bytes())
    }

    /// Every array as the bytes of its elements.
    fn arrays(&self, image: &str) -> Vec<(String, Dtype, Vec<u64>, Vec<u8>)> {
        let mut all = vec![
            ("state".into(), Dtype::F32, vec![1, 8], self.state.iter().flat_map(|x| x.to_le_bytes()).collect()),
            (
                "tokenized_prompt".into(),
                Dtype::I32,
                vec![1, 16],
                self.tokens.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
            (
                "tokenized_prompt_mask".into(),
                Dtype::Bool,
                vec![1, 16],
                self.mask.iter().map(|b| u8::from(*b)).collect(),
            ),
        ];
        for (name, bytes) in &self.images {
            all.push((format!("{image}/{name}"), Dtype::U8, vec![1, 56, 56, 3], bytes.clone()));
        }
        all
    }
}

#[test]
fn the_same_observation_from_every_kind_of_file_gives_the_same_actions() {
    let bytes = Bytes::new();
    let json = bytes.json(&bytes.document());
    let mut npz = zip::ZipWriter::new(std::fs::File::create(bytes.path("o.npz")).unwrap());
    for (name, dtype, shape, data) in bytes.arrays("image") {
        npz.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        npz.write_all(&npy_bytes(dtype, &shape, &data).unwrap()).unwrap();
    }
    npz.finish().unwrap();
    let tensors: Vec<(remap::Tensor, Vec<u8>)> = bytes
        .arrays("image_u8")
        .into_iter()
        .map(|(name, dtype, shape, data)| (remap::Tensor { name: format!("in/{name}"), shape, dtype }, data))
        .collect();
    let safetensors = bytes.write("o.safetensors", &remap::to_bytes(&tensors, &Default::default()));
    let npz = bytes.path("o.npz").display().to_string();
    let run = |file: &str, more: &[&str]| {
        actions(command("pi0", &[&["--observation", file, "--action-horizon", "6"], more].concat()))
    };
    let first = run(&json, &[]);
    assert_eq!(first.0, [1, 6, 8]);
    assert_eq!(run(&npz, &[]), first);
    assert_eq!(run(&safetensors, &[]), first);
    // A prompt padded further and a camera named on the command line are the same too.
    assert_eq!(run(&npz, &["--prompt-length", "20"]), first);
    let base = bytes.path("base.png").display().to_string();
    assert_eq!(run(&npz, &["--image", &format!("base_0_rgb={base}")]), first);
    assert!(run(&npz, &["--image", &format!("left_wrist_0_rgb={base}")]) != first);
    // Rows of pictures are a batch.
    let mut document = bytes.document();
    document["image"]["base_0_rgb"] = json!(["base.png", "base.png"]);
    document["image"]["left_wrist_0_rgb"] = json!(["left.npy", "left.npy"]);
    document["image"]["right_wrist_0_rgb"] = json!(["right.npy", "right.npy"]);
    document["image_mask"] = json!({});
    for key in ["state", "tokenized_prompt", "tokenized_prompt_mask"] {
        document[key] = json!([document[key], document[key]]);
    }
    let (shape, two) = run(&bytes.json(&document), &[]);
    assert_eq!(shape, [2, 6, 8]);
    assert!(apart(&two[..48], &first.1) <= 1e-5);
}

#[test]
fn a_masked_camera_needs_no_image() {
    let bytes = Bytes::new();
    let mut document = bytes.document();
    document["image_mask"] = json!({"right_wrist_0_rgb": false});
    let seed = ["--seed", "3", "--action-horizon", "6"];
    let with = actions(command("pi0", &[&["--observation", &bytes.json(&document)], &seed[..]].concat()));
    document["image"].as_object_mut().unwrap().remove("right_wrist_0_rgb");
    let without = actions(command("pi0", &[&["--observation", &bytes.json(&document)], &seed[..]].concat()));
    assert_eq!(with, without);
}

/// What was wrong, without the folder's name.
fn wrong(bytes: &Bytes, model: &str, document: &Value, more: &[&str]) -> String {
    let file = bytes.json(document);
    let words = refused(&command(model, &[&["--observation", &file], more].concat()));
    words.replace(&bytes.folder.path().display().to_string(), "FOLDER")
}

#[test]
fn everything_that_is_wrong_with_an_observation_is_told_at_once() {
    let bytes = Bytes::new();
    bytes.png("small.png", 28, &[0; 28 * 28 * 3]);
    bytes.write("hot.npy", &npy_bytes(Dtype::F32, &[56, 56, 3], &255f32.to_le_bytes().repeat(56 * 56 * 3)).unwrap());
    let mut document = bytes.document();
    document["state"] = json!([0.0, 1.0]);
    document["tokenized_prompt"][3] = json!(512);
    document["tokenized_prompt_mask"] = json!([true, true]);
    document["tokenised_prompt_mask"] = json!([true]);
    document["prompt"] = json!([1]);
    document["image"] = json!({"base_0_rgb": "small.png", "left_wrist_0_rgb": "hot.npy", "base_1_rgb": "base.png"});
    document["noise"] = json!([[0.0]]);
    insta::assert_snapshot!("everything_wrong", wrong(&bytes, "pi0", &document, &[]));
    // As JSON, a fault each.
    let run = pi0(&command("pi0", &["--observation", bytes.path("observation.json").to_str().unwrap(), "--json"]));
    let error: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((run.status.code(), error["faults"].as_array().unwrap().len()), (Some(2), 10), "{error:#}");
}

#[test]
fn each_other_fault_has_its_words() {
    let bytes = Bytes::new();
    bytes.write("nan.npy", &npy_bytes(Dtype::F32, &[8], &f32::NAN.to_le_bytes().repeat(8)).unwrap());
    let mut all = String::new();
    let mut tell = |change: &dyn Fn(&mut Value), model: &str, more: &[&str]| {
        let mut document = bytes.document();
        change(&mut document);
        all += &wrong(&bytes, model, &document, more);
    };
    tell(&|d| d["state"] = json!("nan.npy"), "pi0", &[]);
    tell(&|d| d["state"] = json!([[0.0], [0.0]]), "pi0", &[]);
    tell(&|d| d["image"] = json!({}), "pi0fast", &[]);
    tell(&|d| d["tokenized_prompt"] = json!([0.5]), "pi0", &[]);
    tell(&|d| d["tokenized_prompt"] = json!([]), "pi0", &[]);
    tell(&|d| d["state"] = json!([[0.0], [0.0, 1.0]]), "pi0", &[]);
    tell(&|d| d["image"]["base_0_rgb"] = json!("base.jpg"), "pi0", &[]);
    tell(&|d| d["image"]["base_0_rgb"] = json!("missing.png"), "pi0", &[]);
    tell(&|d| d["image_mask"]["base_0_rgb"] = json!(2), "pi0", &[]);
    tell(&|_| {}, "pi0", &["--prompt-length", "4"]);
    tell(&|d| d["noise"] = json!([[0, 0, 0, 0, 0, 0, 0, 0]]), "pi0", &["--action-horizon", "2"]);
    tell(&|d| d["noise"] = json!([[0, 0, 0, 0, 0, 0, 0, 0]]), "pi0", &["--batch", "2"]);
    tell(&|_| {}, "pi0", &["--noise", "noise.txt"]);
    insta::assert_snapshot!("each_fault", all);
}

#[test]
fn what_cannot_be_done_is_refused_before_a_weight_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there.npy");
    std::fs::write(&there, "precious").unwrap();
    let there = there.to_str().unwrap();
    for (model, more, words) in [
        ("pi0", &["--output", "actions.csv"][..], "actions are kept in a .json, a .npy or a .safetensors"),
        ("pi0", &["--plot", "actions.png"], "actions are drawn as a .svg"),
        ("pi0", &["--output", there], "exists; --overwrite replaces it"),
        ("pi0", &["--output", "nowhere/at/all.npy"], "is not there"),
        ("pi0", &["--temperature", "1", "--stop", "each-row"], "--temperature, --stop: of pi0-FAST alone"),
        ("pi0fast", &["--num-steps", "3"], "--num-steps: of pi0 and pi0.5 alone, and these tensors are a pi0_fast"),
        ("pi0fast", &["--plot", "a.svg"], "--plot: of pi0 and pi0.5 alone"),
        ("pi0", &["--device", "abacus"], "abacus"),
        ("pi0", &["--dtype", "f64"], "no such precision mode; there are f32, train-bf16, serve-bf16"),
        ("pi0", &["--num-steps", "0"], "0 is not in 1..=1000"),
        ("pi0", &["--image", "base.png"], "name the camera"),
        ("pi0", &["--observation", "x.json"], "cannot be used with"),
    ] {
        let said = refused(&command(model, &[&["--random-observation"], more].concat()));
        assert!(said.contains(words), "{more:?}: {said}");
    }
    assert!(refused(&command("pi0", &[])).contains("--observation"));
    assert_eq!(std::fs::read(there).unwrap(), b"precious");
}

#[test]
fn every_kind_of_file_holds_the_same_numbers_and_the_same_seed_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, seed: &str| {
        let out = folder.path().join(name);
        let more = ["--random-observation", "--seed", seed, "--batch", "2", "--action-horizon", "3", "--overwrite"];
        done(&command("pi05", &[&more[..], &["--output", out.to_str().unwrap()]].concat()));
        std::fs::read(out).unwrap()
    };
    let [json, npy, safetensors] = ["a.json", "a.npy", "a.safetensors"].map(|name| run(name, "7"));
    let value: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(value["shape"], json!([2, 3, 8]));
    let rows = |v: &Value| v.as_array().unwrap().clone();
    let json: Vec<f32> = rows(&value["actions"])
        .iter()
        .flat_map(rows)
        .flat_map(|step| rows(&step))
        .map(|x| x.to_string().parse().unwrap())
        .collect();
    let tensor = &tool::tensors(&folder.path().join("a.safetensors"))["actions"];
    assert_eq!(floats(tensor), json);
    assert!(npy.ends_with(&tensor.bytes) && npy.len() == 128 + tensor.bytes.len());
    assert_eq!(run("a.safetensors", "7"), safetensors);
    assert!(run("a.safetensors", "8") != safetensors);
    // A row does not know how many others there are, up to the order of sums.
    let one = actions(command("pi05", &["--random-observation", "--seed", "7", "--action-horizon", "3"]));
    assert!(apart(&one.1, &json[..24]) <= 1e-5);
    assert!(apart(&json[..24], &json[24..]) > 0.1);
}

#[test]
fn a_checkpoint_that_knows_its_horizon_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    for (out, by) in [("model", "config.json"), ("model.safetensors", "the file's metadata")] {
        let out = folder.path().join(out);
        tool::convert(&checkpoint("base/pi0/params"), &out, &["--action-horizon", "7"]);
        let told =
            report(&["sample", "--checkpoint-dir", out.to_str().unwrap(), "--random-observation"].map(str::to_owned));
        assert_eq!(told["shape"], json!([1, 7, 8]));
        assert!(told["noise"].as_str().unwrap().contains(by), "{}", told["noise"]);
    }
}

#[test]
fn actions_that_are_no_numbers_are_a_no() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    tool::convert(&checkpoint("base/pi0/params"), &file, &[]);
    let bytes = std::fs::read(&file).unwrap();
    let bias = tool::tensors(&file).remove("action_out_proj.bias").unwrap().bytes;
    let at = bytes.windows(bias.len()).position(|w| w == bias).unwrap();
    let mut broken = bytes;
    broken[at + 12..at + 16].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, broken).unwrap();
    let picture = folder.path().join("actions.svg");
    let run = pi0(&["sample", "--checkpoint", file.to_str().unwrap(), "--random-observation", "--num-steps", "1"]
        .into_iter()
        .chain(["--action-horizon", "5", "--plot", picture.to_str().unwrap()])
        .collect::<Vec<_>>());
    let text = String::from_utf8(run.stdout).unwrap();
    assert_eq!(run.status.code(), Some(1), "{text}");
    assert!(text.contains("NOT FINITE in action dims 3 (5 values)"), "{text}");
    let picture = std::fs::read_to_string(picture).unwrap();
    assert_eq!(picture.matches("<path").count(), 8);
}

#[test]
fn help_teaches_by_example() {
    let text = done(&["sample", "--help"]);
    for words in ["Examples:", "--random-observation", "--stop <STOP>", "each-row"] {
        assert!(text.contains(words), "{words}");
    }
}
