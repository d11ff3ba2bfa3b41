//! `pi0 verify` finds what is wrong, where it begins, and nothing where nothing is.

#![cfg(feature = "model")]

mod tool;

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tool::{checkpoint, done, pi0, refused};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The tiny pi0 in canonical names, as bytes.
fn converted(dir: &Path) -> PathBuf {
    let out = dir.join("model.safetensors");
    done(&["convert", "--checkpoint-dir", &text(&checkpoint("base/pi0/params")), "--output", &text(&out)]);
    out
}

/// The tiny pi0 with some of its tensors changed by `edit(name, values)`.
fn edited(dir: &Path, edit: impl Fn(&str, &mut Vec<f32>)) -> PathBuf {
    let bytes = std::fs::read(converted(dir)).expect("the conversion is there");
    let (_, head) = SafeTensors::read_metadata(&bytes).expect("a header");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut tensors = vec![];
    for (name, view) in file.iter() {
        let mut values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        edit(name, &mut values);
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((name.to_owned(), view.shape().to_vec(), data));
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name.clone(), view.expect("a view"))
    });
    let out = dir.join("edited.safetensors");
    safetensors::serialize_to_file(views, head.metadata().clone(), &out).expect("it can be written");
    out
}

/// Verifies an edited pi0; gives the report. It must have found a divergence.
fn departed(weights: &Path) -> serde_json::Value {
    let output = pi0(&["verify", "--checkpoint", &text(weights), "--golden", &text(&golden("pi0_f32")), "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn first(report: &serde_json::Value) -> (String, Option<String>) {
    let name = report["first_divergence"].as_str().expect("a divergence").to_owned();
    let lines = report["lines"].as_array().expect("lines");
    let line = lines.iter().find(|l| l["name"] == name.as_str()).expect("its line");
    (name, line["at"].as_str().map(str::to_owned))
}

#[test]
fn a_nudged_weight_is_found_where_it_is_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let weights = edited(dir.path(), |name, values| {
        if name == "img.blocks.1.mlp.up.weight" {
            values[7] += 0.05;
        }
    });
    assert_eq!(first(&departed(&weights)), ("siglip/base_0_rgb/block01/mlp".into(), None));
}

#[test]
fn swapped_norms_are_found_in_their_layer() {
    let (dir, own) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let bytes = std::fs::read(converted(own.path())).expect("the conversion is there");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let values = |name: &str| -> Vec<f32> {
        let view = file.tensor(name).expect("a norm");
        view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let (a, b) = ("llm.blocks.1.experts.0.norm1.scale", "llm.blocks.1.experts.0.norm2.scale");
    let (norm1, norm2) = (values(a), values(b));
    assert_ne!(norm1, norm2);
    let weights = edited(dir.path(), |name, values| match name {
        _ if name == a => values.clone_from(&norm2),
        _ if name == b => values.clone_from(&norm1),
        _ => {}
    });
    assert_eq!(first(&departed(&weights)), ("full/kv_k".into(), Some("layer 1".into())));
}

/// As a converter does that takes the other convention of rotary embeddings: pairs side by side.
#[test]
fn interleaved_rotary_weights_are_found_in_the_first_keys() {
    const HEAD: usize = 16;
    let dir = tempfile::tempdir().expect("a folder");
    let weights = edited(dir.path(), |name, values| {
        if name.starts_with("llm.blocks.") && (name.ends_with(".q.weight") || name.ends_with(".k.weight")) {
            for head in values.chunks_mut(HEAD) {
                let halves = head.to_vec();
                for i in 0..HEAD / 2 {
                    (head[2 * i], head[2 * i + 1]) = (halves[i], halves[HEAD / 2 + i]);
                }
            }
        }
    });
    assert_eq!(first(&departed(&weights)), ("full/kv_k".into(), Some("layer 0".into())));
}

#[test]
fn a_checkpoint_and_its_conversion_compute_the_same_bits() {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (checkpoint("base/pi0/params"), converted(dir.path()));
    let said = done(&["verify", "--checkpoint", &text(&a), "--against", &text(&b), "--tolerance", "0", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(report["weights_sha256"], report["against_sha256"]);
    assert!(report["lines"].as_array().expect("lines").len() > 20);
}

#[test]
fn a_certificate_says_what_was_compared_and_cannot_be_edited() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("parity.json");
    let (weights, set) = (text(&checkpoint("base/pi05/params")), text(&golden("pi05_f32")));
    done(&["verify", "--checkpoint", &weights, "--golden", &set, "--certificate", &text(&path)]);
    assert!(done(&["verify", "--check", &text(&path)]).starts_with("same: "));
    let edited = std::fs::read_to_string(&path).expect("it is there").replace("\"cpu\"", "\"cuda:0\"");
    std::fs::write(&path, edited).expect("it can be written");
    assert!(refused(&["verify", "--check", &text(&path)]).contains("changed after it was stamped"));
}

#[test]
fn what_cannot_be_verified_is_refused_by_name() {
    let pi05 = text(&checkpoint("base/pi05/params"));
    let set = text(&golden("pi0_f32"));
    let said = refused(&["verify", "--checkpoint", &pi05, "--golden", &set]);
    assert!(said.contains("recorded from a pi0, but the checkpoint is a pi05"), "{said}");
    let said = refused(&["verify", "--checkpoint", &pi05, "--golden", &set, "--device", "abacus:0"]);
    assert!(said.contains("abacus:0: no such device"), "{said}");
    let said = refused(&["verify", "--checkpoint", &pi05, "--golden", "no/such/set"]);
    assert!(said.contains("a golden set is a folder with set.toml and io.safetensors"), "{said}");
    let said = refused(&["verify", "--checkpoint", &pi05, "--golden", &set, "--dtype", "fp8"]);
    assert!(said.contains("f32, train-bf16, serve-bf16"), "{said}");
}

#[test]
fn every_scheme_computes_the_same_bits() {
    let dir = tempfile::tempdir().expect("a folder");
    // LeRobot's and PaliGemma's own files do not say how many heads these tiny models have.
    let all = ["burn", "jax", "openpi-torch", "giga"];
    for (model, schemes) in [("pi0", &all[..]), ("pi05", &all[2..3]), ("pi0fast", &all[1..2])] {
        let source = text(&checkpoint(&format!("base/{model}/params")));
        for scheme in schemes {
            let out = text(&dir.path().join(format!("{model}_{scheme}")));
            done(&["convert", "--checkpoint-dir", &source, "--to", scheme, "--output", &out]);
            let said = done(&["verify", "--checkpoint", &out, "--against", &source, "--tolerance", "0", "--json"]);
            let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
            assert_eq!(report["weights_sha256"], report["against_sha256"], "{model} {scheme}");
        }
    }
}
