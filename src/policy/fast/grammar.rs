//! Constrained decoding: which tokens a model may give next, so that what it gives is always an action chunk.
//!
//! The only sentences: the tokens of `Action: `, then action tokens that spell exactly H · D characters, then `|` and
//! `<eos>`, then `<eos>` for ever. An action token is a run of bytes and may begin or end within a character, so a place in
//! a sentence is the state of a UTF-8 reader and the number of characters that are still to come.
//! Invariant: at every place that can be reached at least one token is allowed, and from there the end can be reached,
//! within the budget of tokens if there is one. For this the fewest tokens from every place to the end are counted once.

use super::{Codec, Words};

/// States of a UTF-8 reader: between characters, or what may follow within one.
const STATES: usize = 8;
const BETWEEN: usize = 0;
/// One, two or three bytes of 80..BF are to come.
const ONE: usize = 1;
const TWO: usize = 2;
const THREE: usize = 3;
/// After E0, ED, F0 and F4, whose second byte has a narrower range.
const AFTER_E0: usize = 4;
const AFTER_ED: usize = 5;
const AFTER_F0: usize = 6;
const AFTER_F4: usize = 7;
/// States by how many bytes of their character are still to come, fewest first. Without completing a character a reader
/// only ever moves towards the front of this list, or from [`BETWEEN`] into it.
const BY_BYTES_TO_COME: [usize; STATES] = [ONE, TWO, AFTER_E0, AFTER_ED, THREE, AFTER_F0, AFTER_F4, BETWEEN];
/// No way leads to the end.
const NEVER: u32 = u32::MAX;

/// One step of the reader: the next state, and whether a character was completed. `None` for a byte that cannot come.
pub(super) fn read(state: usize, byte: u8) -> Option<(usize, bool)> {
    let to = match (state, byte) {
        (BETWEEN, 0..=0x7F) => return Some((BETWEEN, true)),
        (ONE, 0x80..=0xBF) => return Some((BETWEEN, true)),
        (BETWEEN, 0xC2..=0xDF) => ONE,
        (BETWEEN, 0xE0) => AFTER_E0,
        (BETWEEN, 0xED) => AFTER_ED,
        (BETWEEN, 0xE1..=0xEF) => TWO,
        (BETWEEN, 0xF0) => AFTER_F0,
        (BETWEEN, 0xF4) => AFTER_F4,
        (BETWEEN, 0xF1..=0xF3) => THREE,
        (TWO, 0x80..=0xBF) | (AFTER_E0, 0xA0..=0xBF) | (AFTER_ED, 0x80..=0x9F) => ONE,
        (THREE, 0x80..=0xBF) | (AFTER_F0, 0x90..=0xBF) | (AFTER_F4, 0x80..=0x8F) => TWO,
        _ => return None,
    };
    Some((to, false))
}

/// What a token does to the reader in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Move {
    to: usize,
    /// Characters that it completes.
    completes: usize,
}

/// All sentences of one length. Made once, shared by all rows that are decoded.
#[derive(Debug, Clone)]
pub struct Grammar {
    /// `Action: `.
    before: Vec<u32>,
    /// `|` and `<eos>`.
    behind: Vec<u32>,
    /// The language model's id of each action token.
    model_ids: Vec<u32>,
    /// What each action token does in each state; `[token][state]`.
    moves: Vec<[Option<Move>; STATES]>,
    /// Fewest action tokens from a state with so many characters to come to the end of the actions; `[left][state]`.
    fewest: Vec<[u32; STATES]>,
    characters: usize,
    budget: Option<usize>,
}

/// A place in a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Tokens given so far.
    given: usize,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Before(usize),
    Actions { state: usize, left: usize },
    Behind(usize),
}

/// Why there is no sentence of that length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSentence {
    /// No row of tokens spells so many characters.
    #[error("no row of this vocabulary's {tokens} tokens spells {horizon} x {dim} coefficients")]
    Unspellable {
        /// Tokens of the vocabulary.
        tokens: usize,
        /// H.
        horizon: usize,
        /// D.
        dim: usize,
    },
    /// The shortest sentence is longer than the budget.
    #[error(
        "the shortest row for {horizon} x {dim} coefficients has {needed} tokens, more than the {budget} to decode"
    )]
    Budget {
        /// Tokens of the shortest sentence.
        needed: usize,
        /// Tokens that may be given.
        budget: usize,
        /// H.
        horizon: usize,
        /// D.
        dim: usize,
    },
}

/// A token that was not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("token {id} is not allowed as number {number} of an action sentence")]
pub struct Stray {
    /// The token.
    pub id: u32,
    /// Which of the sentence it would have been, from 1.
    pub number: usize,
}

impl Grammar {
    /// For chunks of `horizon` steps and `dim` dimensions. With a `budget`, sentences have at most so many tokens, `<eos>`
    /// included: a model that is stopped after 256 tokens then has always ended.
    ///
    /// # Errors
    /// There is no such sentence.
    pub fn new(words: &Words, horizon: usize, dim: usize, budget: Option<usize>) -> Result<Self, NoSentence> {
        let characters = horizon.saturating_mul(dim);
        let unspellable = NoSentence::Unspellable { tokens: words.codec().len(), horizon, dim };
        if characters == 0 || characters > super::MAX_VALUES {
            return Err(unspellable);
        }
        let mut model_ids = vec![];
        let mut moves = vec![];
        for id in 0..words.codec().len() as u32 {
            // A token that is none of the language model's cannot be given.
            let Some(model_id) = words.turn(id) else { break };
            model_ids.push(model_id);
            moves.push(moves_of(words.codec(), id));
        }
        let fewest = fewest(&moves, characters);
        let (before, behind) = (words.before(), words.behind());
        let grammar = Self { before, behind, model_ids, moves, fewest, characters, budget };
        let needed = match grammar.fewest.last().map(|row| row[BETWEEN]) {
            None | Some(NEVER) => return Err(unspellable),
            Some(actions) => grammar.before.len() + actions as usize + grammar.behind.len(),
        };
        match budget {
            Some(budget) if needed > budget => Err(NoSentence::Budget { needed, budget, horizon, dim }),
            _ => Ok(grammar),
        }
    }

    /// The beginning of every sentence.
    pub fn start(&self) -> Place {
        Place { given: 0, part: self.settled(Part::Before(0)) }
    }

    /// The tokens that may come next, in no order; never none.
    pub fn allowed(&self, place: Place) -> Vec<u32> {
        match place.part {
            Part::Before(at) => self.before.get(at).copied().into_iter().collect(),
            Part::Behind(at) => self.behind.get(at).or(self.behind.last()).copied().into_iter().collect(),
            Part::Actions { state, left } => {
                let open = |(moves, id): (&[Option<Move>; STATES], &u32)| {
                    self.leads_on(place.given, moves[state]?, left).then_some(*id)
                };
                self.moves.iter().zip(&self.model_ids).filter_map(open).collect()
            }
        }
    }

    /// The place behind one more token.
    ///
    /// # Errors
    /// The token is not allowed there.
    pub fn step(&self, place: Place, id: u32) -> Result<Place, Stray> {
        let stray = Stray { id, number: place.given + 1 };
        let part = match place.part {
            Part::Before(at) if self.before.get(at) == Some(&id) => Part::Before(at + 1),
            Part::Behind(at) if self.behind.get(at).or(self.behind.last()) == Some(&id) => {
                Part::Behind((at + 1).min(self.behind.len()))
            }
            Part::Actions { state, left } => {
                // Ids go down by one from token to token.
                let token = self.model_ids.first().and_then(|first| first.checked_sub(id)).ok_or(stray)?;
                let moves = self.moves.get(token as usize).ok_or(stray)?;
                let next = moves[state].filter(|next| self.leads_on(place.given, *next, left)).ok_or(stray)?;
                Part::Actions { state: next.to, left: left - next.completes }
            }
            _ => return Err(stray),
        };
        Ok(Place { given: place.given + 1, part: self.settled(part) })
    }

    /// The tokens that may follow a row; for a caller that keeps no [`Place`].
    ///
    /// # Errors
    /// The row itself is not allowed.
    pub fn allowed_after(&self, row: &[u32]) -> Result<Vec<u32>, Stray> {
        let mut place = self.start();
        for id in row {
            place = self.step(place, *id)?;
        }
        Ok(self.allowed(place))
    }

    /// Has the sentence ended, `<eos>` included?
    pub fn is_over(&self, place: Place) -> bool {
        place.part == Part::Behind(self.behind.len())
    }

    /// Whether the end can be reached, in time, after an action token.
    fn leads_on(&self, given: usize, next: Move, left: usize) -> bool {
        let Some(left) = left.checked_sub(next.completes) else { return false };
        let fewest = self.fewest.get(left).map_or(NEVER, |row| row[next.to]);
        fewest != NEVER && self.budget.is_none_or(|budget| given + 1 + fewest as usize + self.behind.len() <= budget)
    }

    /// Passes from a part that is complete to the next.
    fn settled(&self, part: Part) -> Part {
        match part {
            Part::Before(at) if at == self.before.len() => Part::Actions { state: BETWEEN, left: self.characters },
            Part::Actions { state: BETWEEN, left: 0 } => Part::Behind(0),
            other => other,
        }
    }
}

fn moves_of(codec: &Codec, id: u32) -> [Option<Move>; STATES] {
    let bytes = codec.bytes(id).unwrap_or_default();
    std::array::from_fn(|state| {
        // A token of no bytes could be given for ever.
        if bytes.is_empty() {
            return None;
        }
        let mut result = Move { to: state, completes: 0 };
        for byte in bytes {
            let (to, completed) = read(result.to, *byte)?;
            result = Move { to, completes: result.completes + usize::from(completed) };
        }
        Some(result)
    })
}

/// Fewest tokens from every place to the end of the actions.
fn fewest(moves: &[[Option<Move>; STATES]], characters: usize) -> Vec<[u32; STATES]> {
    // Many tokens do the same: only what they do counts.
    let distinct: [Vec<Move>; STATES] = std::array::from_fn(|state| {
        let mut distinct: Vec<Move> = moves.iter().filter_map(|moves| moves[state]).collect();
        distinct.sort_unstable();
        distinct.dedup();
        distinct
    });
    let mut table: Vec<[u32; STATES]> = Vec::with_capacity(characters + 1);
    for left in 0..=characters {
        table.push([NEVER; STATES]);
        if left == 0 {
            table[0][BETWEEN] = 0;
            continue;
        }
        // A token that completes no character leads to a state nearer the front of the list: already counted.
        for state in BY_BYTES_TO_COME {
            let after = |next: &Move| Some(table[left.checked_sub(next.completes)?][next.to]);
            let best = distinct[state].iter().filter_map(after).min().unwrap_or(NEVER);
            table[left][state] = best.saturating_add(1);
        }
    }
    table
}
