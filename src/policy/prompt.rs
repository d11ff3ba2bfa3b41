//! Prompts: what a model is told to do, as tokens; for pi0.5 and pi0-FAST with the state in words.
//!
//! Source: openpi 15a9616, models/tokenizer.py (`PaligemmaTokenizer.tokenize`) and transforms.py (`TokenizePrompt`).
//! Invariant: the same ids as openpi gives, padding and cutting included. The state is the normalised one, before it is
//! padded to the model's width.

use std::sync::Arc;

use super::array::{Array, Values};
use super::record::{Fault, Record, Value};
use super::step::Step;
use super::tokenizer::Tokenizer;

/// Where a step leaves a sentence for people: something was done that they may not have wanted.
pub const NOTICE: &str = "notice";
/// Bins of a discretised state, over -1 to 1.
const BINS: usize = 256;
/// Longest prompt that is looked at, in bytes.
const MAX_PROMPT_BYTES: usize = 1 << 20;

/// Adds a notice; there may be several, one a line.
pub fn notice(record: &mut Record, text: &str) {
    let all = match record.get(NOTICE) {
        Some(Value::Text(before)) => format!("{before}\n{text}"),
        _ => text.to_owned(),
    };
    record.put_text(NOTICE, all);
}

/// The bins of a normalised state: 0 to 255 for -1 up to 1, of equal width; -1 below -1, 255 from 1 on and for NaN.
pub fn discretise(state: &[f64]) -> Vec<i32> {
    // numpy.digitize over linspace(-1, 1, 257)[:-1]: as many as there are edges not above the value, less one.
    let bin = |value: f64| {
        let (mut low, mut high) = (0, BINS);
        while low < high {
            let middle = (low + high) / 2;
            let edge = middle as f64 / 128.0 - 1.0;
            if value < edge { high = middle } else { low = middle + 1 }
        }
        low as i32 - 1
    };
    state.iter().copied().map(bin).collect()
}

/// The bins as prompts have them: joined by spaces.
pub(super) fn state_words(state: &[f64]) -> String {
    let words: Vec<String> = discretise(state).iter().map(i32::to_string).collect();
    words.join(" ")
}

/// Python's `str.strip`: what Rust calls white space, and four separators more.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// The state of a record, one row.
pub(super) fn state_of(record: &Record) -> Result<Vec<f64>, Fault> {
    let state = record.array("state")?;
    match state.shape.len() {
        1 => Ok(state.values.to_f64()),
        _ => Err(Fault::Shape {
            key: "state".to_owned(),
            expected: "one row of numbers, [dimensions]".to_owned(),
            found: state.to_string(),
            hint_text: String::new(),
        }),
    }
}

/// The prompt of a record, taken out of it.
pub(super) fn take_prompt(record: &mut Record) -> Result<String, Fault> {
    let prompt = match record.text("prompt") {
        Ok(prompt) => prompt.to_owned(),
        Err(Fault::Missing { key, .. }) => {
            let keys: Vec<&str> = record.values.keys().map(String::as_str).collect();
            let what = format!(
                "it is missing, and the model is told by it what to do; say it with the observation, or let the policy \
                 have a default prompt, or take it from the dataset's task; there are {}",
                keys.join(", ")
            );
            return Err(Fault::Wrong { key, what });
        }
        Err(other) => return Err(other),
    };
    if prompt.len() > MAX_PROMPT_BYTES {
        let what = format!("expected at most {MAX_PROMPT_BYTES} bytes, found {}", prompt.len());
        return Err(Fault::Wrong { key: "prompt".to_owned(), what });
    }
    record.values.remove("prompt");
    Ok(prompt)
}

/// The ids of a prompt, `<bos>` first; with a state, that in words too.
pub fn prompt_tokens(tokenizer: &Tokenizer, prompt: &str, state: Option<&[f64]>) -> Vec<u32> {
    let cleaned = strip(prompt).replace(['_', '\n'], " ");
    let mut ids = vec![tokenizer.bos()];
    match state {
        Some(state) => {
            ids.extend(tokenizer.encode(&format!("Task: {cleaned}, State: {};\nAction: ", state_words(state))));
        }
        None => {
            ids.extend(tokenizer.encode(&cleaned));
            // What begins the answer, encoded on its own so that it never joins the text.
            ids.extend(tokenizer.encode("\n"));
        }
    }
    ids
}

/// `text` as the tokens of a prompt.
#[derive(Debug, Clone)]
pub struct TokenizePrompt {
    /// The language model's.
    pub tokenizer: Arc<Tokenizer>,
    /// Tokens to which every prompt is padded, and at which it is cut.
    pub max_token_len: usize,
    /// Whether the state stands in the prompt, in words (pi0.5), or goes to the model as numbers (pi0).
    pub discrete_state_input: bool,
}

impl Step for TokenizePrompt {
    fn name(&self) -> &'static str {
        "tokenize-prompt"
    }

    fn describe(&self) -> String {
        let what = if self.discrete_state_input { "prompt and state" } else { "prompt" };
        format!("{what} as {} tokens", self.max_token_len)
    }

    fn reads(&self) -> Vec<String> {
        let state = self.discrete_state_input.then(|| "state".to_owned());
        std::iter::once("prompt".to_owned()).chain(state).collect()
    }

    fn writes(&self) -> Vec<String> {
        ["tokenized_prompt", "tokenized_prompt_mask"].map(str::to_owned).to_vec()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        let state = match self.discrete_state_input {
            true => Some(state_of(record)?),
            false => None,
        };
        let prompt = take_prompt(record)?;
        let ids = prompt_tokens(&self.tokenizer, &prompt, state.as_deref());
        tell_if_cut(record, ids.len(), self.max_token_len);
        let mask = vec![true; ids.len()];
        record.put_array("tokenized_prompt", tokens(&ids, self.max_token_len));
        record.put_array("tokenized_prompt_mask", flags(mask, self.max_token_len));
        Ok(())
    }
}

/// Says that a prompt was cut, as openpi warns of it.
pub(super) fn tell_if_cut(record: &mut Record, found: usize, len: usize) {
    if found > len {
        let text = format!("the prompt has {found} tokens and was cut to {len}: shorten it, or raise max_token_len");
        notice(record, &text);
    }
}

/// `int32[len]`, padded with 0 or cut.
pub(super) fn tokens(ids: &[u32], len: usize) -> Array {
    let mut ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    ids.resize(len, 0);
    Array::new([len], Values::I32(ids))
}

/// `bool[len]`, padded with false or cut.
pub(super) fn flags(mut flags: Vec<bool>, len: usize) -> Array {
    flags.resize(len, false);
    Array::new([len], Values::Bool(flags))
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
