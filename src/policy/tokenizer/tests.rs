//! The tiny vocabulary against recordings of sentencepiece itself, the real one where its file is there, and files of
//! every kind that is none.

use std::path::PathBuf;

use serde_json::Value;

use super::*;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn tiny_file() -> Vec<u8> {
    std::fs::read(root().join("fixtures/tokenizer/tiny/tokenizer.model")).expect("fixture")
}

fn tiny() -> Tokenizer {
    Tokenizer::parse(&tiny_file()).expect("parses")
}

fn rows(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(root().join("golden/tokenizer").join(name)).expect("golden");
    text.lines().map(|line| serde_json::from_str(line).expect("row")).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("list").iter().map(|id| id.as_u64().expect("id") as u32).collect()
}

fn refusal(bytes: &[u8]) -> String {
    Tokenizer::parse(bytes).expect_err("refused").to_string()
}

#[test]
fn every_text_has_the_ids_that_sentencepiece_gives_it() {
    let tokenizer = tiny();
    assert_eq!((tokenizer.len(), tokenizer.kind()), (2152, Kind::Small));
    let rows = rows("tiny_sentencepiece.jsonl");
    for row in rows.iter().filter(|row| row["kind"] == "enc") {
        let text = row["text"].as_str().expect("text");
        assert_eq!(tokenizer.encode(text), ids(&row["ids"]), "{text:?}");
    }
    assert_eq!(rows.iter().filter(|row| row["kind"] == "enc").count(), 330);
}

#[test]
fn all_ids_have_the_text_that_sentencepiece_gives_them() {
    let tokenizer = tiny();
    let rows = rows("tiny_sentencepiece.jsonl");
    for row in rows.iter().filter(|row| row["kind"] == "dec") {
        assert_eq!(tokenizer.decode(&ids(&row["ids"])), row["text"].as_str().expect("text"), "{}", row["ids"]);
    }
    assert_eq!(rows.iter().filter(|row| row["kind"] == "dec").count(), 200);
}

#[test]
fn a_vocabulary_written_as_json_is_the_same_vocabulary() {
    let tokenizer = tiny();
    let json = tokenizer.to_json();
    let home = Tokenizer::parse(json.as_bytes()).expect("parses");
    assert_eq!(home.format(), Format::Json);
    assert!((0..2152).all(|id| home.piece(id) == tokenizer.piece(id)));
    let hugging_face: tokenizers::Tokenizer = json.parse().expect("Hugging Face reads it");
    for row in rows("tiny_sentencepiece.jsonl").iter().filter(|row| row["kind"] == "enc") {
        let text = row["text"].as_str().expect("text");
        assert_eq!(home.encode(text), ids(&row["ids"]), "{text:?}");
        let theirs = hugging_face.encode(text, false).expect("encodes");
        assert_eq!(theirs.get_ids(), ids(&row["ids"]), "{text:?}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_or_has_another_number_of_pieces() {
    let whole = tiny_file();
    for end in (0..whole.len()).step_by(97) {
        assert!(Tokenizer::parse(&whole[..end]).is_err(), "{end} bytes");
    }
}

#[test]
fn no_byte_that_is_changed_makes_it_panic() {
    let whole = tiny_file();
    for at in (0..whole.len()).step_by(31) {
        for value in [0x00, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(tokenizer) = Tokenizer::parse(&bytes) {
                tokenizer.decode(&tokenizer.encode("pick up the red_block \u{1F916}"));
            }
        }
    }
}

#[test]
fn a_length_beyond_the_file_is_told_with_its_place() {
    assert_eq!(
        refusal(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        "byte 6: a field of 4294967295 bytes, but 0 are left; expected a sentencepiece model"
    );
    let message = refusal(&[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]);
    assert!(message.contains("a number of more than 64 bits"), "{message}");
    assert!(refusal(b"").contains("empty"));
    assert!(refusal(b"hello").contains("expected a sentencepiece model"));
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, bytes.len() as u8];
    out.extend_from_slice(bytes);
    out
}

#[test]
fn the_vocabulary_of_another_model_is_refused_by_what_it_is() {
    let piece = field(1, &field(1, b"<pad>"));
    let unigram = [piece.clone(), field(2, &[3 << 3, 1])].concat();
    let message = refusal(&unigram);
    assert!(message.starts_with("model_type: expected BPE, found unigram; PaliGemma's is"), "{message}");
    let llama = [piece.clone(), field(2, &[3 << 3, 2, 0x98, 0x02, 1])].concat();
    assert!(refusal(&llama).starts_with("add_dummy_prefix: expected false, found true"));
    let plain = field(3, &[3 << 3, 0, 4 << 3, 0]);
    let short = [piece, field(2, &[3 << 3, 2, 0x98, 0x02, 1]), plain].concat();
    let message = refusal(&short);
    assert!(
        message.starts_with("pieces: expected 257152 that end with <seg127>, or Gemma's 256000, found 1"),
        "{message}"
    );
    let json = br#"{"model": {"type": "Unigram", "vocab": [["a", -1.0]]}, "normalizer": null}"#;
    assert!(refusal(json).starts_with("model.type: expected BPE, found Unigram"));
    let json = br#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
    assert!(refusal(json).starts_with("model.byte_fallback: expected true, found false"));
    let json = br#"{"model": {"byte_fallback": true, "vocab": {"a": 4294967295}},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}}"#;
    assert!(refusal(json).starts_with("piece 4294967295: an id or a text too large"));
}

#[test]
fn a_place_that_was_named_is_the_only_one() {
    let folder = tempfile::tempdir().expect("folder");
    let there = folder.path().join("cache.model");
    std::fs::write(&there, "x").expect("file");
    let missing = folder.path().join("missing.model");
    let places = Places { named: Some(&missing), checkpoint: None, cached: Some(&there) };
    let message = places.find().expect_err("none").to_string();
    assert!(message.contains("missing.model") && !message.contains("cache.model"), "{message}");
}

#[test]
fn a_tokenizer_is_looked_for_beside_the_checkpoint_then_in_the_cache() {
    let folder = tempfile::tempdir().expect("folder");
    let step = folder.path().join("run/7");
    std::fs::create_dir_all(step.join("assets")).expect("folders");
    let cached = folder.path().join("paligemma_tokenizer.model");
    let places = Places { named: None, checkpoint: Some(&step), cached: Some(&cached) };
    let message = places.find().expect_err("none").to_string();
    for part in
        ["run/7/tokenizer.model", "run/7/assets/tokenizer.json", "run/tokenizer.model", PUBLISHED_AT, "--tokenizer"]
    {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(message.contains(&cached.display().to_string()));
    std::fs::write(&cached, "x").expect("file");
    assert_eq!(places.find().expect("found"), cached);
    let near = step.join("assets/tokenizer.json");
    std::fs::write(&near, "x").expect("file");
    assert_eq!(places.find().expect("found"), near);
}
