//! pi0-FAST's rows and answers against recordings of openpi's tokenizer, over the tiny vocabulary and a codec fitted for it.

use std::path::PathBuf;

use serde_json::Value as Json;

use super::*;
use crate::policy::fast::Codec;
use crate::policy::prompt::NOTICE;

const H: usize = 10;
const D: usize = 7;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn words() -> Words {
    let tokenizer = Tokenizer::open(&root().join("fixtures/tokenizer/tiny/tokenizer.model")).expect("opens");
    let codec = Codec::open(&root().join("fixtures/tokenizer/fast_tiny")).expect("opens");
    Words::new(Arc::new(tokenizer), Arc::new(codec)).expect("room for all")
}

fn step(reading: Reading, max_token_len: usize) -> TokenizeFast {
    let tokens = ActionTokens::Fast { words: words(), reading };
    TokenizeFast { tokens, max_token_len, action_horizon: H, action_dim: D, on_malformed: OnMalformed::Fail }
}

fn rows() -> Vec<Json> {
    let text = std::fs::read_to_string(root().join("golden/tokenizer/tiny_fast.jsonl")).expect("golden");
    text.lines().map(|line| serde_json::from_str(line).expect("row")).collect()
}

fn numbers(value: &Json) -> Vec<f64> {
    value.as_array().expect("list").iter().map(|value| value.as_f64().expect("number")).collect()
}

fn answer(row: &Json) -> Array {
    let ids: Vec<f32> = numbers(&row["answer"]).iter().map(|id| *id as f32).collect();
    Array::f32([ids.len()], ids)
}

fn largest_error(array: &Array, expected: &[f64]) -> f64 {
    let found = array.values.to_f64();
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn rows_and_masks_are_those_of_openpi() {
    let mut seen = 0;
    for row in rows().iter().filter(|row| row.get("malformed").is_none()) {
        let len = row["max_len"].as_u64().expect("length") as usize;
        let mut record = Record::default();
        record.put_text("prompt", row["prompt"].as_str().expect("prompt"));
        record.put_array("state", Array::f64([8], numbers(&row["state"])));
        let actions = numbers(&row["actions"]);
        let single = row["actions_dtype"] == "float32";
        let actions = match single {
            true => Array::f32([H, D], actions.iter().map(|x| *x as f32).collect::<Vec<_>>()),
            false => Array::f64([H, D], actions),
        };
        record.put_array("actions", actions);
        step(Reading::Exact, len).apply(&mut record).expect("applies");
        let ids: Vec<u32> = numbers(&row["tokens"]).iter().map(|id| *id as u32).collect();
        let bits = |key: &str| -> Vec<u32> {
            row[key].as_str().expect("bits").bytes().map(|bit| u32::from(bit - b'0')).collect()
        };
        let mask = |key: &str| flags(bits(key).iter().map(|bit| *bit == 1).collect(), len);
        assert_eq!(record.array("tokenized_prompt"), Ok(&tokens(&ids, len)), "{}", row["prompt"]);
        assert_eq!(record.array("tokenized_prompt_mask"), Ok(&mask("mask")));
        assert_eq!(record.array("token_ar_mask"), Ok(&tokens(&bits("ar"), len)));
        assert_eq!(record.array("token_loss_mask"), Ok(&mask("loss")));
        seen += 1;
    }
    assert_eq!(seen, 16);
}

#[test]
fn both_ways_of_reading_give_the_actions_that_openpi_extracts() {
    for reading in [Reading::Exact, Reading::Openpi] {
        for row in rows().iter().filter(|row| row.get("malformed").is_none()) {
            let mut record = Record::default();
            record.put_array("actions", answer(row));
            step(reading, 180).undo(&mut record).expect("undoes");
            let off = largest_error(record.array("actions").expect("actions"), &numbers(&row["extracted"]));
            assert!(off < 1e-14, "{reading:?}: {off}");
        }
    }
}

#[test]
fn what_openpi_turns_into_zeros_is_refused_with_its_reason() {
    let reasons = [
        ("no_action_word", "hold no \"Action: \""),
        ("empty", "hold no \"Action: \""),
        ("cut", "expected 10 x 7 = 70 coefficients"),
    ];
    for (name, reason) in reasons {
        let rows = rows();
        let row = rows.iter().find(|row| row["malformed"] == name).expect("row");
        assert!(numbers(&row["extracted"]).iter().all(|value| *value == 0.0));
        for reading in [Reading::Exact, Reading::Openpi] {
            let mut record = Record::default();
            record.put_array("actions", answer(row));
            let fault = step(reading, 180).undo(&mut record).expect_err("refused").to_string();
            assert!(fault.contains(reason), "{name}: {fault}");
        }
    }
}

#[test]
fn a_word_among_the_actions_is_passed_over_by_openpi_and_refused_by_ids() {
    let rows = rows();
    let row = rows.iter().find(|row| row["malformed"] == "text").expect("row");
    let mut record = Record::default();
    record.put_array("actions", answer(row));
    let fault = step(Reading::Exact, 180).undo(&mut record).expect_err("refused").to_string();
    assert!(fault.contains("which is no action token"), "{fault}");
    step(Reading::Openpi, 180).undo(&mut record).expect("undoes");
    assert!(largest_error(record.array("actions").expect("actions"), &numbers(&row["extracted"])) < 1e-14);
}

#[test]
fn a_row_that_never_said_that_it_ends_is_read_to_its_end() {
    let rows = rows();
    let row = rows.iter().find(|row| row["malformed"] == "no_bar").expect("row");
    for reading in [Reading::Exact, Reading::Openpi] {
        let mut record = Record::default();
        record.put_array("actions", answer(row));
        step(reading, 180).undo(&mut record).expect("undoes");
        assert!(largest_error(record.array("actions").expect("actions"), &numbers(&row["extracted"])) < 1e-14);
    }
}

#[test]
fn a_malformed_answer_holds_the_robot_where_it_is_if_so_asked_and_says_so() {
    let (action, state) = (Normal { shift: 0.5, scale: 2.0 }, Normal { shift: -1.0, scale: 4.0 });
    let mut dimensions = vec![Hold::absolute(action, state); D];
    dimensions[0] = Hold::relative(action);
    let mut step = step(Reading::Exact, 180);
    step.on_malformed = OnMalformed::Hold(Hold { dimensions });
    let mut record = Record::default();
    let normalised = [0.25; 8];
    record.put_array("state", Array::f64([8], normalised.to_vec()));
    record.put_array("actions", Array::f32([2], vec![5.0, 7.0]));
    step.undo(&mut record).expect("undoes");
    let chunk = record.array("actions").expect("actions").values.to_f64();
    for row in chunk.chunks(D) {
        assert_eq!(row[0] * action.scale + action.shift, 0.0, "a difference of nothing");
        let raw_state = normalised[1] * state.scale + state.shift;
        assert!(row[1..].iter().all(|value| value * action.scale + action.shift == raw_state));
    }
    assert!(record.text(NOTICE).expect("notice").ends_with("the robot is to hold"));
    step.on_malformed = OnMalformed::Zeros;
    record.put_array("actions", Array::f32([2], vec![5.0, 7.0]));
    step.undo(&mut record).expect("undoes");
    assert_eq!(record.array("actions"), Ok(&Array::f64([H, D], vec![0.0; H * D])));
    assert!(record.text(NOTICE).expect("notice").contains("normalised zeros stand in its place"));
}

#[test]
fn actions_that_the_vocabulary_cannot_spell_are_told() {
    let mut record = Record::default();
    record.put_text("prompt", "pick");
    record.put_array("state", Array::f64([1], vec![0.0]));
    record.put_array("actions", Array::f64([H, D], vec![40.0; H * D]));
    step(Reading::Exact, 180).apply(&mut record).expect("applies");
    assert!(record.text(NOTICE).expect("notice").contains("cannot spell the coefficients [1265"), "{record:?}");
}

#[test]
fn bins_are_read_and_not_written_and_fsq_is_neither() {
    let tokenizer = words().tokenizer().clone();
    let mut step = step(Reading::Exact, 64);
    (step.action_horizon, step.action_dim) = (1, 3);
    step.tokens = ActionTokens::Binning { tokenizer: tokenizer.clone(), bins: 256 };
    let last = tokenizer.len() as u32 - 129;
    let mut row = tokenizer.encode("Action: ");
    row.extend([last, last - 128, last - 255]);
    row.extend(tokenizer.encode("|"));
    let mut record = Record::default();
    record.put_array("actions", Array::new([row.len()], Values::I32(row.iter().map(|id| *id as i32).collect())));
    step.undo(&mut record).expect("undoes");
    assert_eq!(record.array("actions"), Ok(&Array::f64([1, 3], vec![-1.0, 0.0, 255.0 / 128.0 - 1.0])));
    record.put_text("prompt", "pick");
    record.put_array("state", Array::f64([1], vec![0.0]));
    assert!(step.apply(&mut record).expect_err("refused").to_string().contains("only FAST writes actions"));
    step.tokens = ActionTokens::Fsq { tokenizer };
    record.put_array("actions", Array::f32([1], vec![1.0]));
    assert!(step.undo(&mut record).expect_err("refused").to_string().contains("a network of their own"));
}
