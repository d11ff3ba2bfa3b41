//! With the real vocabulary: the ids that sentencepiece gives to strings of every kind, and the prompts, rows and actions
//! that openpi makes with it.
//!
//! Gemma's file is under terms of its own and is not in the tree. It is read from `PI0_TOKENIZER` or from
//! `fixtures/tokenizer/gemma`, where `cargo xtask tokenizer` puts it; where it is in neither, these tests say that they were
//! skipped.
#![cfg(feature = "robot")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use pi0_burn::policy::action_tokens::{ActionTokens, OnMalformed, TokenizeFast};
use pi0_burn::policy::array::{Array, Values};
use pi0_burn::policy::fast::{Codec, Grammar, Reading, Words};
use pi0_burn::policy::prompt::TokenizePrompt;
use pi0_burn::policy::record::Record;
use pi0_burn::policy::step::Step as _;
use pi0_burn::policy::tokenizer::{PALIGEMMA_PIECES, Tokenizer};
use serde_json::Value as Json;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The vocabulary, read once; `None`, with a word about it, where there is none.
fn gemma() -> Option<Arc<Tokenizer>> {
    static GEMMA: OnceLock<Option<Arc<Tokenizer>>> = OnceLock::new();
    let read = || {
        let named = std::env::var_os("PI0_TOKENIZER").map(PathBuf::from);
        let path = named.clone().unwrap_or_else(|| root().join("fixtures/tokenizer/gemma/tokenizer.model"));
        if named.is_none() && !path.exists() {
            return None;
        }
        Some(Arc::new(
            Tokenizer::open(&path).expect("PI0_TOKENIZER or fixtures/tokenizer/gemma is PaliGemma's tokenizer"),
        ))
    };
    let found = GEMMA.get_or_init(read).clone();
    if found.is_none() {
        println!("skipped: no fixtures/tokenizer/gemma/tokenizer.model; `cargo xtask tokenizer` fetches it");
    }
    found
}

fn rows(name: &str) -> Vec<Json> {
    let text = std::fs::read_to_string(root().join("golden/tokenizer").join(name)).expect("golden");
    text.lines().map(|line| serde_json::from_str(line).expect("row")).collect()
}

fn number(value: &Json) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().expect("a number").parse().expect("a number"))
}

fn numbers(value: &Json) -> Vec<f64> {
    value.as_array().expect("list").iter().map(number).collect()
}

fn array(shape: &[usize], values: &Json, dtype: &Json) -> Array {
    match dtype == "float32" {
        true => Array::f32(shape, numbers(values).iter().map(|x| *x as f32).collect::<Vec<_>>()),
        false => Array::f64(shape, numbers(values)),
    }
}

/// A recorded row whose padding was cut off.
fn padded(values: &Json, len: usize) -> Array {
    let mut ids: Vec<i32> = numbers(values).iter().map(|id| *id as i32).collect();
    ids.resize(len, 0);
    Array::new([len], Values::I32(ids))
}

fn bits(text: &Json) -> Vec<bool> {
    text.as_str().expect("bits").bytes().map(|bit| bit == b'1').collect()
}

fn checksum(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let value =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |value, byte| (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{value:016x}")
}

#[test]
fn a_thousand_strings_have_the_ids_that_sentencepiece_gives_them() {
    let Some(tokenizer) = gemma() else { return };
    assert_eq!(tokenizer.len(), PALIGEMMA_PIECES);
    let rows = rows("gemma_strings.jsonl");
    for row in &rows {
        let ids = tokenizer.encode(row["text"].as_str().expect("text"));
        assert_eq!(row["len"].as_u64(), Some(ids.len() as u64), "{row}: {ids:?}");
        assert_eq!(row["fnv"].as_str(), Some(checksum(&ids).as_str()), "{row}: {ids:?}");
    }
    assert_eq!(rows.len(), 1000);
}

#[test]
fn a_tokenizer_json_as_hugging_face_writes_it_is_read_as_sentencepiece_means_it() {
    let Some(tokenizer) = gemma() else { return };
    let mut file: Json = serde_json::from_str(&tokenizer.to_json()).expect("JSON");
    let listed = |token: &Json| {
        let text = token["content"].as_str().expect("text");
        !(["[toxicity=0]", "<unused99>"].contains(&text) || text.contains('\t'))
    };
    let tokens = file["added_tokens"].as_array_mut().expect("list");
    tokens.retain(listed);
    for (id, text) in ["<pad>", "<eos>", "<bos>", "<unk>"].iter().enumerate() {
        tokens.push(serde_json::json!({"id": id, "content": text, "special": true}));
    }
    let vocab = file["model"]["vocab"].as_object_mut().expect("vocabulary");
    let tab = vocab.remove("<0x09>").expect("a byte");
    vocab.insert("\t".to_owned(), tab);
    let home = Tokenizer::parse(file.to_string().as_bytes()).expect("parses");
    for row in rows("gemma_strings.jsonl") {
        let text = row["text"].as_str().expect("text");
        let ids = home.encode(text);
        assert_eq!(row["fnv"].as_str(), Some(checksum(&ids).as_str()), "{row}: {ids:?}");
        assert_eq!(home.decode(&ids), tokenizer.decode(&ids));
    }
}

#[test]
fn sequences_that_others_published_are_the_same_here() {
    let Some(tokenizer) = gemma() else { return };
    assert_eq!(tokenizer.encode("pick up the bowl\n"), [18075, 908, 573, 14581, 108]);
    assert_eq!(tokenizer.encode("pick up the red cube\n"), [18075, 908, 573, 3118, 28660, 108]);
    assert_eq!(tokenizer.encode("Action: "), [4022, 235_292, 235_248]);
    assert_eq!(tokenizer.encode("<loc0000><loc1023><seg127>"), [256_000, 257_023, 257_151]);
}

#[test]
fn prompts_are_those_of_openpi() {
    let Some(tokenizer) = gemma() else { return };
    let rows = rows("gemma_prompts.jsonl");
    for row in &rows {
        let max_token_len = row["max_len"].as_u64().expect("length") as usize;
        let mut record = Record::default();
        record.put_text("prompt", row["prompt"].as_str().expect("prompt"));
        let discrete_state_input = row.get("state").is_some();
        if let Some(state) = row["state"].as_array() {
            record.put_array("state", array(&[state.len()], &row["state"], &row["state_dtype"]));
        }
        let step = TokenizePrompt { tokenizer: tokenizer.clone(), max_token_len, discrete_state_input };
        step.apply(&mut record).expect("applies");
        assert_eq!(record.array("tokenized_prompt"), Ok(&padded(&row["tokens"], max_token_len)), "{}", row["prompt"]);
        let mask = Array::new([max_token_len], Values::Bool(bits(&row["mask"])));
        assert_eq!(record.array("tokenized_prompt_mask"), Ok(&mask), "{}", row["prompt"]);
    }
    assert_eq!(rows.len(), 440);
}

fn codec(name: &str) -> Arc<Codec> {
    Arc::new(Codec::open(Path::new(&root().join("fixtures/tokenizer").join(name))).expect("opens"))
}

#[test]
fn rows_of_actions_go_there_and_back_as_in_openpi() {
    let Some(tokenizer) = gemma() else { return };
    let mut lost_as_text = 0;
    for row in rows("gemma_fast.jsonl") {
        let len = row["max_len"].as_u64().expect("length") as usize;
        let (horizon, dim) = (row["H"].as_u64().expect("H") as usize, row["D"].as_u64().expect("D") as usize);
        let words = Words::new(tokenizer.clone(), codec(row["fast"].as_str().expect("codec"))).expect("room for all");
        let step = |reading| TokenizeFast {
            tokens: ActionTokens::Fast { words: words.clone(), reading },
            max_token_len: len,
            action_horizon: horizon,
            action_dim: dim,
            on_malformed: OnMalformed::Zeros,
        };
        let mut record = Record::default();
        record.put_text("prompt", row["prompt"].as_str().expect("prompt"));
        let state = numbers(&row["state"]).len();
        record.put_array("state", array(&[state], &row["state"], &row["state_dtype"]));
        record.put_array("actions", array(&[horizon, dim], &row["actions"], &row["actions_dtype"]));
        step(Reading::Exact).apply(&mut record).expect("applies");
        assert_eq!(record.array("tokenized_prompt"), Ok(&padded(&row["tokens"], len)), "{}", row["prompt"]);
        let flags = |key| Array::new([len], Values::Bool(bits(&row[key])));
        assert_eq!(record.array("tokenized_prompt_mask"), Ok(&flags("mask")));
        assert_eq!(record.array("token_loss_mask"), Ok(&flags("loss")));
        let ar = bits(&row["ar"]).into_iter().map(i32::from).collect();
        assert_eq!(record.array("token_ar_mask"), Ok(&Array::new([len], Values::I32(ar))));

        let fast_ids: Vec<u32> = numbers(&row["fast_ids"]).iter().map(|id| *id as u32).collect();
        let direct = words.codec().decode(&fast_ids, horizon, dim).expect("decodes");
        for reading in [Reading::Exact, Reading::Openpi] {
            let answer = numbers(&row["answer"]);
            record.put_array("actions", Array::f64([answer.len()], answer));
            step(reading).undo(&mut record).expect("undoes");
            let actions = record.array("actions").expect("actions").values.to_f64();
            let expected = match (reading, row.get("extracted")) {
                (Reading::Openpi, Some(extracted)) => {
                    lost_as_text += 1;
                    numbers(extracted)
                }
                _ => direct.clone(),
            };
            let off = actions.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-13, "{reading:?}: {off}");
        }
    }
    assert_eq!(lost_as_text, 1, "the row that openpi loses on its way over the text is among them");
}

#[test]
fn constrained_rows_of_the_published_size_end_within_the_budget() {
    let Some(tokenizer) = gemma() else { return };
    let words = Words::new(tokenizer, codec("fast_h50_d14_v2048")).expect("room for all");
    let grammar = Grammar::new(&words, 50, 14, Some(256)).expect("a grammar");
    let mut seed = 3_u64;
    for _ in 0..3 {
        let (mut place, mut row) = (grammar.start(), vec![]);
        while !grammar.is_over(place) {
            let allowed = grammar.allowed(place);
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = allowed[(seed >> 33) as usize % allowed.len()];
            place = grammar.step(place, id).expect("allowed");
            row.push(id);
        }
        assert!(row.len() <= 256);
        let actions = words.read(&row, Reading::Exact).expect("actions");
        words.codec().decode(&actions, 50, 14).expect("a chunk");
    }
}
