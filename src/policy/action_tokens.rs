//! Actions as tokens: prompts of pi0-FAST, and action chunks of what it answers.
//!
//! Source: openpi 15a9616, models/tokenizer.py (`FASTTokenizer`, `BinningTokenizer`) and transforms.py
//! (`TokenizeFASTInputs`, `ExtractFASTActions`).
//! Invariant: the same ids and masks as openpi gives. A row of tokens that is no action chunk never becomes one without a
//! word: where openpi gives zeros, which after unnormalising are a movement to the middle of the range, [`OnMalformed`]
//! decides, and what was decided stands in the record's notice.

use std::sync::Arc;

use super::array::{Array, Values};
use super::fast::{Malformed, Reading, Words};
use super::prompt::{flags, notice, state_of, state_words, strip, take_prompt, tell_if_cut, tokens};
use super::record::{Fault, Record};
use super::step::Step;
use super::tokenizer::Tokenizer;

/// What the actions are written in.
#[derive(Debug, Clone)]
pub enum ActionTokens {
    /// FAST.
    Fast {
        /// The codec, and its tokens among the language model's.
        words: Words,
        /// How a model's answer is read.
        reading: Reading,
    },
    /// One token for each value, in bins over -1 to 1; openpi reads it and does not write it.
    Binning {
        /// The language model's tokenizer.
        tokenizer: Arc<Tokenizer>,
        /// Bins; 256 in openpi.
        bins: u32,
    },
    /// The quantising network of the RoboArena baselines, which is not read here: prompts only.
    Fsq {
        /// The language model's tokenizer.
        tokenizer: Arc<Tokenizer>,
    },
}

impl ActionTokens {
    fn tokenizer(&self) -> &Tokenizer {
        match self {
            ActionTokens::Fast { words, .. } => words.tokenizer(),
            ActionTokens::Binning { tokenizer, .. } | ActionTokens::Fsq { tokenizer } => tokenizer,
        }
    }
}

/// What becomes of an answer that is no action chunk.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum OnMalformed {
    /// The step fails.
    #[default]
    Fail,
    /// The robot is to stay where it is: every step of the chunk is this.
    Hold(Hold),
    /// Zeros of the normalised space, as openpi gives them: no rest, but the middle of the training data's range.
    Zeros,
}

/// "Stay where you are", in normalised actions: `offset[d] + factor[d] * state[d]`, with the normalised state. Made of the
/// statistics that normalise both, by [`Hold::relative`] and [`Hold::absolute`].
///
/// Where the robot's own maps of state and action differ, as for ALOHA's grippers, absolute dimensions stay near where
/// they are, not exactly there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hold {
    /// One for each action dimension.
    pub dimensions: Vec<HoldDimension>,
}

/// One dimension of a [`Hold`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HoldDimension {
    /// What is added.
    pub offset: f64,
    /// What the normalised state is multiplied by.
    pub factor: f64,
}

/// How one dimension is normalised: `normalised = (raw - shift) / scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normal {
    /// The mean, or the middle between the quantiles.
    pub shift: f64,
    /// The standard deviation, or half the distance of the quantiles.
    pub scale: f64,
}

impl Hold {
    /// A dimension whose actions are differences from the state, or velocities: the raw action 0.
    pub fn relative(action: Normal) -> HoldDimension {
        HoldDimension { offset: -action.shift / action.scale, factor: 0.0 }
    }

    /// A dimension whose actions are positions: the raw action that equals the raw state.
    pub fn absolute(action: Normal, state: Normal) -> HoldDimension {
        HoldDimension { offset: (state.shift - action.shift) / action.scale, factor: state.scale / action.scale }
    }

    /// A chunk of it.
    fn chunk(&self, state: &[f64], horizon: usize, dim: usize) -> Result<Vec<f64>, Fault> {
        let wrong = |what| Fault::Wrong { key: "actions".to_owned(), what };
        if self.dimensions.len() != dim {
            let found = self.dimensions.len();
            return Err(wrong(format!("to hold, expected a rule for each of {dim} dimensions, found {found}")));
        }
        let row: Result<Vec<f64>, Fault> = self
            .dimensions
            .iter()
            .enumerate()
            .map(|(d, rule)| match (rule.factor == 0.0, state.get(d)) {
                (true, _) => Ok(rule.offset),
                (false, Some(state)) => Ok(rule.offset + rule.factor * state),
                (false, None) => Err(wrong(format!("to hold dimension {d}, expected a state that has it"))),
            })
            .collect();
        Ok(row?.repeat(horizon))
    }
}

/// `prompt`, `state` and, in training, `actions` as tokens; a model's tokens as actions.
#[derive(Debug, Clone)]
pub struct TokenizeFast {
    /// What the actions are written in.
    pub tokens: ActionTokens,
    /// Tokens to which every row is padded, and at which it is cut.
    pub max_token_len: usize,
    /// Steps of a chunk, H.
    pub action_horizon: usize,
    /// Values of a step, D.
    pub action_dim: usize,
    /// What becomes of an answer that is no chunk.
    pub on_malformed: OnMalformed,
}

impl Step for TokenizeFast {
    fn name(&self) -> &'static str {
        "tokenize-fast"
    }

    fn describe(&self) -> String {
        let what = match &self.tokens {
            ActionTokens::Fast { words, .. } => format!("FAST ({})", words.codec()),
            ActionTokens::Binning { bins, .. } => format!("{bins} bins"),
            ActionTokens::Fsq { .. } => "FSQ".to_owned(),
        };
        let Self { max_token_len, action_horizon, action_dim, .. } = self;
        format!("prompt and state as {max_token_len} tokens; actions [{action_horizon}, {action_dim}] as {what}")
    }

    fn reads(&self) -> Vec<String> {
        ["prompt", "state", "actions"].map(str::to_owned).to_vec()
    }

    fn writes(&self) -> Vec<String> {
        ["tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask", "token_loss_mask"].map(str::to_owned).to_vec()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        let state = state_of(record)?;
        let answer = match record.has("actions") {
            true => self.answer(record)?,
            false => vec![],
        };
        let prompt = take_prompt(record)?;
        let tokenizer = self.tokens.tokenizer();
        let cleaned = strip(&prompt.to_lowercase()).replace('_', " ");
        let mut ids = vec![tokenizer.bos()];
        ids.extend(tokenizer.encode(&format!("Task: {cleaned}, State: {};\n", state_words(&state))));
        let prefix = ids.len();
        ids.extend(answer);
        let len = self.max_token_len;
        tell_if_cut(record, ids.len(), len);
        // The prompt sees itself whole; the answer sees the prompt and what it has said, and only it is learned.
        let answers: Vec<bool> = (0..ids.len()).map(|at| at >= prefix).collect();
        let causal: Vec<u32> = answers.iter().map(|answer| u32::from(*answer)).collect();
        record.put_array("tokenized_prompt", tokens(&ids, len));
        record.put_array("tokenized_prompt_mask", flags(vec![true; ids.len()], len));
        record.put_array("token_ar_mask", tokens(&causal, len));
        record.put_array("token_loss_mask", flags(answers, len));
        Ok(())
    }

    fn undo(&self, record: &mut Record) -> Result<(), Fault> {
        if !record.has("actions") {
            return Ok(());
        }
        let row = row_of(record.array("actions")?)?;
        let (horizon, dim) = (self.action_horizon, self.action_dim);
        let chunk = match self.read(&row)? {
            Ok(chunk) => chunk,
            Err(malformed) => {
                let (chunk, done) = match &self.on_malformed {
                    OnMalformed::Fail => {
                        let what = format!(
                            "{malformed}; the model's answer is no action chunk of {horizon} steps and {dim} dimensions"
                        );
                        return Err(Fault::Wrong { key: "actions".to_owned(), what });
                    }
                    OnMalformed::Hold(hold) => (hold.chunk(&state_of(record)?, horizon, dim)?, "the robot is to hold"),
                    OnMalformed::Zeros => (vec![0.0; horizon * dim], "normalised zeros stand in its place"),
                };
                notice(record, &format!("the model's answer is no action chunk: {malformed}; {done}"));
                chunk
            }
        };
        record.put_array("actions", Array::f64([horizon, dim], chunk));
        Ok(())
    }
}

impl TokenizeFast {
    /// The tokens that a model is to learn.
    fn answer(&self, record: &mut Record) -> Result<Vec<u32>, Fault> {
        let wrong = |what: String| Fault::Wrong { key: "actions".to_owned(), what };
        let ActionTokens::Fast { words, .. } = &self.tokens else {
            return Err(wrong("only FAST writes actions as tokens; the others, in openpi too, only read".to_owned()));
        };
        let encoded = words.codec().encode(record.array("actions")?).map_err(|error| wrong(error.to_string()))?;
        if !encoded.unseen.is_empty() {
            let text = format!(
                "the FAST vocabulary cannot spell the coefficients {:?} of these actions: they are left out, and what is \
                 learned is no chunk; fit a codec on these data",
                encoded.unseen
            );
            notice(record, &text);
        }
        Ok(words.sentence(&encoded.ids))
    }

    /// The chunk in a model's answer, in C order.
    fn read(&self, row: &[u32]) -> Result<Result<Vec<f64>, Malformed>, Fault> {
        let (horizon, dim) = (self.action_horizon, self.action_dim);
        match &self.tokens {
            ActionTokens::Fast { words, reading } => {
                Ok(words.read(row, *reading).and_then(|ids| words.codec().decode(&ids, horizon, dim)))
            }
            ActionTokens::Binning { tokenizer, bins } => Ok(binned(tokenizer, *bins, row, horizon * dim)
                .map_err(|found| Malformed::Length { horizon, dim, found: found.unwrap_or_default() })),
            ActionTokens::Fsq { .. } => Err(Fault::Wrong {
                key: "actions".to_owned(),
                what: "FSQ tokens are read by a network of their own, which this program does not have; use a preset with \
                       FAST or binning"
                    .to_owned(),
            }),
        }
    }
}

/// Actions of one token each, by openpi's way over the text; or how many there are, if too few.
fn binned(tokenizer: &Tokenizer, bins: u32, row: &[u32], values: usize) -> Result<Vec<f64>, Option<usize>> {
    let text = tokenizer.decode(row);
    let actions = text.split("Action: ").nth(1).ok_or(None)?;
    let ids = tokenizer.encode(strip(actions.split('|').next().unwrap_or_default()));
    if ids.len() < values {
        return Err(Some(ids.len()));
    }
    let first = tokenizer.len() as f64 - 1.0 - 128.0;
    Ok(ids[..values].iter().map(|id| (first - f64::from(*id)) / f64::from(bins) * 2.0 - 1.0).collect())
}

/// A model's answer: one row of token ids, in whatever dtype it comes.
fn row_of(array: &Array) -> Result<Vec<u32>, Fault> {
    let expected = |found: String| Fault::Shape {
        key: "actions".to_owned(),
        expected: "a row of token ids, [tokens]".to_owned(),
        found,
        hint_text: String::new(),
    };
    if array.shape.len() != 1 || matches!(array.values, Values::Bool(_)) {
        return Err(expected(array.to_string()));
    }
    let id = |value: &f64| {
        let whole = value.trunc() == *value && (0.0..f64::from(u32::MAX)).contains(value);
        whole.then_some(*value as u32).ok_or_else(|| expected(format!("{array} with {value}")))
    };
    array.values.to_f64().iter().map(id).collect()
}

#[cfg(test)]
#[path = "action_tokens_tests.rs"]
mod tests;
