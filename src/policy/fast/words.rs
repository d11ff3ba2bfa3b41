//! Action tokens among the language model's: `Action: ` tokens `|` end.
//!
//! Source: openpi 15a9616, models/tokenizer.py (`FASTTokenizer`). Action token `t` is the language model's
//! `vocabulary - 1 - 128 - t`: the 128 segment pieces are passed over, then it is counted downwards. From t = 1024 on these
//! are ordinary pieces of text.
//! Two ways lead back: openpi makes text of all tokens, cuts it at `Action: ` and `|`, and makes tokens of it again, which
//! loses some of them where they are ordinary text; ours takes the ids as they are.

use std::sync::Arc;

use super::{Codec, Error, Malformed};
use crate::policy::prompt::strip;
use crate::policy::tokenizer::Tokenizer;

/// What stands before the actions.
const BEFORE: &str = "Action: ";
/// What stands behind them.
const BEHIND: &str = "|";
/// The last pieces of the vocabulary, which stand for no action: `<segNNN>`.
const PASSED_OVER: u32 = 128;

/// How tokens that a model gave are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reading {
    /// By their ids: every row that the codec wrote comes home.
    #[default]
    Exact,
    /// As openpi does it: to text, and from text to tokens again.
    Openpi,
}

/// A codec's tokens as tokens of the language model.
#[derive(Debug, Clone)]
pub struct Words {
    tokenizer: Arc<Tokenizer>,
    codec: Arc<Codec>,
}

impl Words {
    /// # Errors
    /// The codec has more tokens than the language model has room for.
    pub fn new(tokenizer: Arc<Tokenizer>, codec: Arc<Codec>) -> Result<Self, Error> {
        // The ids 0 to 3 are `<pad>`, `<eos>`, `<bos>`, `<unk>`: an action must be none of them.
        let room = tokenizer.len().saturating_sub(PASSED_OVER as usize + 4);
        if codec.len() > room {
            let what =
                format!("expected a FAST codec of at most {room} tokens for this tokenizer, found {}", codec.len());
            return Err(Error::Chunk(what));
        }
        Ok(Self { tokenizer, codec })
    }

    /// The language model's.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The actions'.
    pub fn codec(&self) -> &Arc<Codec> {
        &self.codec
    }

    /// The language model's id of action token `t`, or the other way round: the map is its own inverse. `None` where
    /// there is none.
    pub fn turn(&self, id: u32) -> Option<u32> {
        (self.tokenizer.len() as u32).checked_sub(1 + PASSED_OVER)?.checked_sub(id)
    }

    /// The row that a model learns: `Action: `, the actions, `|`, `<eos>`.
    pub fn sentence(&self, actions: &[u32]) -> Vec<u32> {
        let mut row = self.before();
        row.extend(actions.iter().filter_map(|id| self.turn(*id)));
        row.extend(self.behind());
        row
    }

    /// `Action: `.
    pub(super) fn before(&self) -> Vec<u32> {
        self.tokenizer.encode(BEFORE)
    }

    /// `|` and `<eos>`.
    pub(super) fn behind(&self) -> Vec<u32> {
        let mut row = self.tokenizer.encode(BEHIND);
        row.push(self.tokenizer.eos());
        row
    }

    /// The action tokens in a row that a model gave; what follows `|` or `<eos>` is nobody's.
    ///
    /// # Errors
    /// No `Action: `; a token that is none of an action.
    pub fn read(&self, row: &[u32], reading: Reading) -> Result<Vec<u32>, Malformed> {
        match reading {
            Reading::Exact => self.read_exactly(row),
            Reading::Openpi => self.read_as_text(row),
        }
    }

    fn read_exactly(&self, row: &[u32]) -> Result<Vec<u32>, Malformed> {
        let before = self.before();
        let start = row.windows(before.len()).position(|window| window == before).ok_or(Malformed::NoAction)?;
        let bar = self.tokenizer.encode(BEHIND);
        let rest = row.get(start + before.len()..).unwrap_or_default();
        let ends = |id: &u32| bar.first() == Some(id) || [self.tokenizer.eos(), self.tokenizer.pad()].contains(id);
        let actions = rest.split(ends).next().unwrap_or_default();
        let of = |(at, id): (usize, &u32)| {
            let action = self.turn(*id).filter(|action| (*action as usize) < self.codec.len());
            action.ok_or(Malformed::Stray { at, id: *id })
        };
        actions.iter().enumerate().map(of).collect()
    }

    fn read_as_text(&self, row: &[u32]) -> Result<Vec<u32>, Malformed> {
        let text = self.tokenizer.decode(row);
        let actions = text.split(BEFORE).nth(1).ok_or(Malformed::NoAction)?;
        let ids = self.tokenizer.encode(strip(actions.split(BEHIND).next().unwrap_or_default()));
        let mut found = vec![];
        for (at, id) in ids.into_iter().enumerate() {
            // A number below zero is an error in Python; one that is no token is passed over.
            let action = self.turn(id).ok_or(Malformed::Stray { at, id })?;
            if (action as usize) < self.codec.len() {
                found.push(action);
            }
        }
        Ok(found)
    }
}
