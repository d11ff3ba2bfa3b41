//! The codec against recordings of the published processor's algorithm, its files, its fit, and the grammar.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use super::*;
use crate::policy::tokenizer::Tokenizer;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer").join(name)
}

fn rows(name: &str) -> Vec<Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tokenizer").join(name);
    let text = std::fs::read_to_string(path).expect("golden");
    text.lines().map(|line| serde_json::from_str(line).expect("row")).collect()
}

fn numbers(value: &Json) -> Vec<f64> {
    value.as_array().expect("list").iter().map(|value| value.as_f64().expect("number")).collect()
}

fn ids(value: &Json) -> Vec<u32> {
    numbers(value).iter().map(|id| *id as u32).collect()
}

/// The chunks of `fast_tiny`, f32 `[120, 10, 7]` in a `.npy`.
fn tiny_chunks() -> Vec<Array> {
    let bytes = std::fs::read(fixture("fast_tiny/chunks.npy")).expect("fixture");
    let values: Vec<f32> = bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(values.len(), 120 * 70);
    values.chunks_exact(70).map(|chunk| Array::f32([10, 7], chunk.to_vec())).collect()
}

fn check_recording(codec: &Codec, row: &Json) {
    let (horizon, dim) = (row["H"].as_u64().expect("H") as usize, row["D"].as_u64().expect("D") as usize);
    if let Some(actions) = row.get("actions") {
        let chunk = match row["dtype"] == "float32" {
            true => Array::f32([horizon, dim], numbers(actions).iter().map(|x| *x as f32).collect::<Vec<_>>()),
            false => Array::f64([horizon, dim], numbers(actions)),
        };
        let expected: Vec<i64> = numbers(&row["dct_int"]).iter().map(|x| *x as i64).collect();
        assert_eq!(codec.coefficients(&chunk).expect("coefficients"), expected);
        let encoded = codec.encode(&chunk).expect("encodes");
        assert_eq!(encoded.ids, ids(&row["ids"]));
        assert_eq!(encoded.unseen.is_empty(), row["decode_error"].is_null(), "what is lost is told");
    }
    match codec.decode(&ids(&row["ids"]), horizon, dim) {
        Ok(chunk) => {
            let off = chunk.iter().zip(numbers(&row["decoded"])).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-13, "{off}");
        }
        Err(malformed) => assert!(row["decode_error"].is_string(), "{malformed}"),
    }
}

#[test]
fn chunks_have_the_coefficients_and_tokens_that_python_gives_them() {
    for version in ["v1024", "v2048"] {
        let codec = Codec::open(&fixture(&format!("fast_h50_d14_{version}"))).expect("opens");
        for row in rows(&format!("codec_{version}.jsonl")) {
            check_recording(&codec, &row);
        }
    }
}

#[test]
fn a_fit_gives_the_vocabulary_and_the_merges_of_python() {
    let chunks = tiny_chunks();
    let fitted = Fit { vocab_size: 384, ..Fit::default() }.run(&chunks, |_| {}).expect("fits");
    let python = Codec::open(&fixture("fast_tiny")).expect("opens");
    assert_eq!((fitted.codec.min_token, fitted.codec.len()), (python.min_token, python.len()));
    let json = |codec: &Codec| -> Json { serde_json::from_str(&codec.to_json().expect("json")).expect("json") };
    assert_eq!(json(&fitted.codec)["model"], json(&python)["model"]);
    assert!(!fitted.unspelt.is_empty(), "the trap of the original");
}

#[test]
fn with_every_byte_no_coefficient_is_lost() {
    let chunks = tiny_chunks();
    let fit = Fit { vocab_size: 512, every_byte: true, ..Fit::default() };
    let fitted = fit.run(&chunks[..100], |_| {}).expect("fits");
    assert!(fitted.unspelt.is_empty());
    let still = Array::f64([10, 7], vec![1.9; 70]);
    let encoded = fitted.codec.encode(&still).expect("encodes");
    assert_eq!((encoded.unseen.len(), encoded.clamped.len()), (0, 0));
    let told = round_trip(&fitted.codec, &chunks, |_| {}).expect("round trip");
    assert_eq!((told.chunks, told.lost, told.max.len()), (120, 0, 7));
    let worst = told.max.iter().copied().fold(0.0, f64::max);
    // Each of ten coefficients is at most 0.05 off, and the transform keeps lengths.
    assert!(worst > 0.0 && worst < 0.05 * 10f64.sqrt(), "{worst}");
    assert!(told.rms.iter().zip(&told.max).all(|(rms, max)| rms <= max && *rms < 0.05));
}

#[test]
fn a_round_trip_counts_what_is_lost() {
    let codec = Codec::open(&fixture("fast_tiny")).expect("opens");
    let mut chunks = tiny_chunks();
    chunks.push(Array::f64([10, 7], vec![40.0; 70]));
    let told = round_trip(&codec, &chunks, |_| {}).expect("round trip");
    assert_eq!((told.chunks, told.lost), (121, 1));
    assert_eq!(told.unseen, [1265]);
}

#[test]
fn a_codec_that_was_saved_is_the_same_codec() {
    let codec = Codec::open(&fixture("fast_tiny")).expect("opens");
    let folder = tempfile::tempdir().expect("folder");
    codec.save(folder.path()).expect("saves");
    let home = Codec::open(folder.path()).expect("opens");
    assert_eq!(home.to_json().expect("json"), codec.to_json().expect("json"));
    let config = |folder: &Path| -> Json {
        serde_json::from_slice(&std::fs::read(folder.join("processor_config.json")).expect("file")).expect("json")
    };
    assert_eq!(config(folder.path()), config(&fixture("fast_tiny")));
}

#[test]
fn files_that_are_no_codec_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    let refusal = || Codec::open(folder.path()).expect_err("refused").to_string();
    assert!(refusal().contains("processor_config.json"));
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("file");
    put("processor_config.json", r#"{"scale": 0, "min_token": -3}"#);
    assert!(refusal().contains("scale: expected a positive number, found 0"));
    put("processor_config.json", r#"{"scale": 10, "min_token": -3, "vocab_size": 8}"#);
    put("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#);
    assert!(refusal().contains("pre_tokenizer: expected ByteLevel, found none"));
    let wide = r#"{"model": {"type": "BPE", "vocab": {"a": 7}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"}}"#;
    put("tokenizer.json", wide);
    assert!(refusal().contains("model.vocab: expected the ids 0 to 0, found 7"));
}

#[test]
fn chunks_that_have_no_tokens_are_refused() {
    let codec = Codec::open(&fixture("fast_tiny")).expect("opens");
    let refusal = |chunk: Array| codec.encode(&chunk).expect_err("refused").to_string();
    assert!(refusal(Array::f64([2], vec![0.0; 2])).contains("expected [steps, dimensions], found float64[2]"));
    assert!(refusal(Array::f64([2, 1], vec![0.0, f64::NAN])).contains("step 1, dimension 0: expected a finite number"));
    // Character 0xD800 + 5 is half of one.
    let value = (0xD805 + codec.min_token) as f64 / 10.0;
    let message = refusal(Array::f64([1, 1], vec![value]));
    assert!(message.contains("would be character 55301, which there is not; are the actions normalised?"), "{message}");
    assert!(refusal(Array::f64([1, 1], vec![1e300])).contains("which there is not"));
}

#[test]
fn half_a_character_is_no_text() {
    let fit = Fit { vocab_size: 512, every_byte: true, ..Fit::default() };
    let codec = fit.run(&tiny_chunks(), |_| {}).expect("fits").codec;
    let lead = (0..codec.len() as u32).find(|id| codec.bytes(*id) == Some(&[0xC3])).expect("a byte of its own");
    assert_eq!(codec.code_points(&[lead]), Err(Malformed::NotText { at: 0, bytes: 1 }));
    assert_eq!(codec.decode(&[codec.len() as u32], 1, 1), Err(Malformed::Stray { at: 0, id: codec.len() as u32 }));
}

/// The tiny vocabulary with a codec.
fn words(codec: Codec) -> Words {
    let tokenizer = Tokenizer::open(&fixture("tiny/tokenizer.model")).expect("opens");
    Words::new(Arc::new(tokenizer), Arc::new(codec)).expect("room for all")
}

#[test]
fn a_codec_with_more_tokens_than_the_language_model_has_room_for_is_refused() {
    let tokenizer = Arc::new(Tokenizer::open(&fixture("tiny/tokenizer.model")).expect("opens"));
    let codec = Arc::new(Codec::open(&fixture("fast_h50_d14_v2048")).expect("opens"));
    let message = Words::new(tokenizer, codec).expect_err("refused").to_string();
    assert!(message.contains("at most 2020 tokens for this tokenizer, found 2048"), "{message}");
}

/// Any number, the next from the last: chance for tests.
fn next(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}

#[test]
fn every_sentence_of_the_grammar_is_a_chunk_whatever_is_chosen() {
    let fit = Fit { vocab_size: 512, every_byte: true, ..Fit::default() };
    let fitted = fit.run(&tiny_chunks(), |_| {}).expect("fits").codec;
    let mut seed = 1;
    for codec in [Codec::open(&fixture("fast_tiny")).expect("opens"), fitted] {
        let words = words(codec);
        for budget in [None, Some(30), Some(80)] {
            let grammar = Grammar::new(&words, 10, 7, budget).expect("a grammar");
            for _ in 0..40 {
                let mut place = grammar.start();
                let mut row = vec![];
                while !grammar.is_over(place) {
                    let allowed = grammar.allowed(place);
                    assert!(!allowed.is_empty(), "stuck after {row:?}");
                    let id = allowed[next(&mut seed) % allowed.len()];
                    place = grammar.step(place, id).expect("allowed");
                    row.push(id);
                }
                assert!(budget.is_none_or(|budget| row.len() <= budget), "{} tokens", row.len());
                let actions = words.read(&row, Reading::Exact).expect("actions");
                words.codec().decode(&actions, 10, 7).expect("a chunk");
                assert_eq!(grammar.allowed(place), [words.tokenizer().eos()], "nothing but the end follows the end");
            }
        }
    }
}

#[test]
fn the_grammar_allows_what_the_codec_writes_and_nothing_else() {
    let words = words(Codec::open(&fixture("fast_tiny")).expect("opens"));
    let grammar = Grammar::new(&words, 10, 7, None).expect("a grammar");
    for chunk in &tiny_chunks()[..20] {
        let row = words.sentence(&words.codec().encode(chunk).expect("encodes").ids);
        for at in 0..row.len() {
            let allowed = grammar.allowed_after(&row[..at]).expect("so far");
            assert!(allowed.contains(&row[at]), "token {at} of {row:?}");
        }
        let short = &row[..row.len() - 3];
        let bar = row[row.len() - 2];
        assert!(!grammar.allowed_after(short).expect("so far").contains(&bar), "an end before the end");
        assert_eq!(grammar.allowed_after(&[5]), Err(Stray { id: 5, number: 1 }));
    }
}

#[test]
fn a_budget_that_no_chunk_fits_in_is_refused_before_a_token_is_given() {
    let words = words(Codec::open(&fixture("fast_tiny")).expect("opens"));
    let error = Grammar::new(&words, 10, 7, Some(5)).expect_err("refused");
    assert!(matches!(error, NoSentence::Budget { budget: 5, .. }), "{error}");
    assert!(matches!(Grammar::new(&words, 0, 7, None), Err(NoSentence::Unspellable { .. })));
}

#[test]
fn the_grammar_reads_bytes_as_utf8_does() {
    let reads = |bytes: &[u8]| {
        let mut state = 0;
        let mut characters = 0;
        for byte in bytes {
            match grammar::read(state, *byte) {
                Some((to, completed)) => (state, characters) = (to, characters + usize::from(completed)),
                None => return None,
            }
        }
        (state == 0).then_some(characters)
    };
    let mut seed = 7;
    for _ in 0..200_000 {
        let len = 1 + next(&mut seed) % 4;
        // Mostly bytes that matter.
        let edges = [0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc1, 0xc2, 0xe0, 0xed, 0xef, 0xf0, 0xf3, 0xf4, 0xf5];
        let bytes: Vec<u8> = (0..len).map(|_| edges[next(&mut seed) % edges.len()]).collect();
        let expected = std::str::from_utf8(&bytes).ok().map(|text| text.chars().count());
        assert_eq!(reads(&bytes), expected, "{bytes:x?}");
    }
}
