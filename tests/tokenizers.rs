//! `pi0 tokenizer` and `pi0 fast-tokenizer` as people and scripts meet them.
#![cfg(feature = "robot")]

mod tool;

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tool::{pi0, refused};

fn fixture(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer").join(name);
    path.display().to_string()
}

fn json(arguments: &[&str]) -> Json {
    let out = pi0(&[arguments, &["--json"]].concat());
    assert!(out.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&out.stdout));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

#[test]
fn a_tokenizer_tells_what_it_is_and_goes_both_ways() {
    let tiny = fixture("tiny");
    let what = json(&["tokenizer", "--tokenizer", &tiny]);
    assert_eq!((&what["pieces"], &what["format"]), (&Json::from(2152), &Json::from("sentencepiece")));
    let ids = json(&["tokenizer", "--tokenizer", &tiny, "--encode", "put the red cube in the box"]);
    let spelt: Vec<String> = ids["ids"].as_array().expect("ids").iter().map(Json::to_string).collect();
    let text = json(&["tokenizer", "--tokenizer", &tiny, "--decode", &spelt.join(",")]);
    assert_eq!(text["text"], "put the red cube in the box");
    let message = refused(&["tokenizer", "--tokenizer", &tiny, "--decode", "5,2152"]);
    assert!(message.contains("2152: expected an id from 0 to 2151"), "{message}");
}

#[test]
fn a_vocabulary_becomes_a_tokenizer_json_which_is_not_replaced_unasked() {
    let folder = tempfile::tempdir().expect("folder");
    let to = folder.path().join("tokenizer.json").display().to_string();
    let convert = ["tokenizer", "--tokenizer", &fixture("tiny"), "--convert", &to];
    assert_eq!(json(&convert)["pieces"], 2152);
    assert!(refused(&convert).contains("replace it with --overwrite"));
    let inside = folder.path().display().to_string();
    assert_eq!(json(&["tokenizer", "--tokenizer", &inside])["format"], "tokenizer.json");
}

#[test]
fn where_no_tokenizer_is_every_place_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let message = refused(&["tokenizer", "--tokenizer", &folder.path().display().to_string()]);
    for part in ["paligemma_tokenizer.model", "tokenizer.model", "tokenizer.json", "gs://big_vision"] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn a_codec_is_fitted_checked_and_refused_what_it_cannot_spell() {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("fast").display().to_string();
    let chunks = fixture("fast_tiny/chunks.npy");
    let fit = ["fast-tokenizer", "fit", "--chunks", &chunks, "--output", &output, "--vocab-size", "384"];
    let made = json(&fit);
    assert_eq!((&made["tokens"], &made["count"], &made["lost"]), (&Json::from(315), &Json::from(120), &Json::from(0)));
    assert!(made["warnings"][1].as_str().or(made["warnings"][0].as_str()).expect("warning").contains("--every-byte"));
    let file = |folder: &str| -> Json {
        serde_json::from_slice(&std::fs::read(Path::new(folder).join("tokenizer.json")).expect("file")).expect("JSON")
    };
    assert_eq!(file(&output), file(&fixture("fast_tiny")), "what Python's fit made of the same chunks");
    assert!(refused(&fit).contains("replace it with --overwrite"));
    let check = json(&["fast-tokenizer", "check", "--codec", &output, "--chunks", &chunks]);
    assert_eq!(check["max_error"], made["max_error"]);

    // A codec of other data: its alphabet is too small for these.
    let little = folder.path().join("little").display().to_string();
    json(&[
        "fast-tokenizer",
        "fit",
        "--chunks",
        &chunks,
        "--max-chunks",
        "2",
        "--output",
        &little,
        "--vocab-size",
        "300",
    ]);
    let check = ["fast-tokenizer", "check", "--codec", &little, "--chunks", &chunks];
    let out = pi0(&check);
    assert_eq!(out.status.code(), Some(1), "the answer is no");
    assert!(String::from_utf8_lossy(&out.stdout).contains("chunks cannot be encoded"));
    assert!(json(&check)["lost"].as_u64().expect("count") > 0);
}
