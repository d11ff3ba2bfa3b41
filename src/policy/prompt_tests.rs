//! Prompts against recordings of openpi's tokenizer over the tiny vocabulary.

use std::path::PathBuf;

use serde_json::Value as Json;

use super::*;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn tiny() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::open(&root().join("fixtures/tokenizer/tiny/tokenizer.model")).expect("opens"))
}

fn number(value: &Json) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().expect("a number").parse().expect("a number"))
}

#[test]
fn prompts_have_the_tokens_that_openpi_gives_them() {
    let tokenizer = tiny();
    let text = std::fs::read_to_string(root().join("golden/tokenizer/tiny_prompts.jsonl")).expect("golden");
    for line in text.lines() {
        let row: Json = serde_json::from_str(line).expect("row");
        let mut record = Record::default();
        record.put_text("prompt", row["prompt"].as_str().expect("prompt"));
        if let Some(state) = row["state"].as_array() {
            let state: Vec<f64> = state.iter().map(number).collect();
            let array = match row["state_dtype"] == "float32" {
                true => Array::f32([state.len()], state.iter().map(|x| *x as f32).collect::<Vec<_>>()),
                false => Array::f64([state.len()], state),
            };
            record.put_array("state", array);
        }
        let max_token_len = row["max_len"].as_u64().expect("length") as usize;
        let discrete_state_input = row.get("state").is_some();
        let step = TokenizePrompt { tokenizer: tokenizer.clone(), max_token_len, discrete_state_input };
        step.apply(&mut record).expect("applies");
        let expected: Vec<u32> =
            row["tokens"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect();
        let mask: Vec<bool> = row["mask"].as_str().expect("mask").bytes().map(|bit| bit == b'1').collect();
        assert_eq!(record.array("tokenized_prompt"), Ok(&tokens(&expected, max_token_len)), "{line}");
        assert_eq!(record.array("tokenized_prompt_mask"), Ok(&flags(mask, max_token_len)), "{line}");
        assert!(!record.has("prompt"));
    }
    assert_eq!(text.lines().count(), 48);
}

#[test]
fn bins_are_those_of_numpy() {
    let edges = [-1.0, 1.0, 0.0, 0.9921875, -0.9921875, 0.992_187_4, -1.000_000_1, 3.0, -3.0, f64::NAN, -1e-20];
    assert_eq!(discretise(&edges), [0, 255, 128, 255, 1, 254, -1, 255, -1, 255, 127]);
}

#[test]
fn a_prompt_that_is_cut_is_told() {
    let step = TokenizePrompt { tokenizer: tiny(), max_token_len: 4, discrete_state_input: false };
    let mut record = Record::default();
    record.put_text("prompt", "pick up the red block and put it into the box");
    step.apply(&mut record).expect("applies");
    let told = record.text(NOTICE).expect("a notice");
    assert!(told.contains("was cut to 4: shorten it, or raise max_token_len"), "{told}");
}

#[test]
fn a_missing_prompt_says_where_one_comes_from() {
    let step = TokenizePrompt { tokenizer: tiny(), max_token_len: 48, discrete_state_input: false };
    let mut record = Record::default();
    record.put_text("prompts", "pick");
    let fault = step.apply(&mut record).expect_err("refused").to_string();
    assert!(fault.starts_with("prompt: it is missing, and the model is told by it what to do"), "{fault}");
    assert!(fault.ends_with("there are prompts"), "{fault}");
}

#[test]
fn a_state_of_two_rows_is_no_state_of_a_prompt() {
    let step = TokenizePrompt { tokenizer: tiny(), max_token_len: 48, discrete_state_input: true };
    let mut record = Record::default();
    record.put_text("prompt", "pick");
    record.put_array("state", Array::f32([2, 1], vec![0.0, 0.0]));
    let fault = step.apply(&mut record).expect_err("refused").to_string();
    assert_eq!(fault, "state: expected one row of numbers, [dimensions], found float32[2, 1]");
}
