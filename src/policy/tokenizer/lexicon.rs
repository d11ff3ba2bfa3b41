//! The texts of a vocabulary, end to end in one buffer, and the way from a text to its id.
//!
//! Invariant: the table is at most half full, so that every search ends; the hash is keyed by chance, so that no file can
//! choose texts that collide.

use std::hash::{BuildHasher as _, RandomState};

const EMPTY: u32 = u32::MAX;

/// Texts by id, and ids by text.
#[derive(Debug)]
pub(super) struct Lexicon {
    text: String,
    /// Where each text ends in `text`.
    ends: Vec<usize>,
    /// Ids of those that can be found, at the slot of their hash or behind it.
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Lexicon {
    /// Room for `pieces` texts of `bytes` bytes in all.
    pub(super) fn with_capacity(pieces: usize, bytes: usize) -> Self {
        let slots = vec![EMPTY; (pieces.max(1) * 2).next_power_of_two()];
        Self { text: String::with_capacity(bytes), ends: Vec::with_capacity(pieces), slots, hasher: RandomState::new() }
    }

    /// Adds a text under the next id. A text that is to be found and is there already is not added; its id is the answer.
    pub(super) fn push(&mut self, text: &str, findable: bool) -> Option<u32> {
        if findable {
            match self.slot(text) {
                Err(id) => return Some(id),
                Ok(slot) => self.slots[slot] = self.ends.len() as u32,
            }
        }
        self.text.push_str(text);
        self.ends.push(self.text.len());
        None
    }

    /// The text of an id.
    pub(super) fn get(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        self.text.get(start..end)
    }

    /// The id of a text that can be found.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        self.slot(text).err()
    }

    /// The slot that is free for a text, or the id that is there.
    fn slot(&self, text: &str) -> Result<usize, u32> {
        let mask = self.slots.len() - 1;
        let mut at = self.hasher.hash_one(text) as usize & mask;
        loop {
            match self.slots[at] {
                EMPTY => return Ok(at),
                id if self.get(id) == Some(text) => return Err(id),
                _ => at = (at + 1) & mask,
            }
        }
    }
}
