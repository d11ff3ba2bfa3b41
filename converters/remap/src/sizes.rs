//! The size of every letter, read from shapes and held to agree.
//!
//! A letter means one size all over a tower (`same llm L N K H V`) or all over an expert (`same llm by E W F M`).
//! Invariant: a size is recorded once; a second, different one is a [`Fault::Shape`] that names both tensors.

use std::collections::BTreeMap;

use crate::error::Fault;
use crate::map::{Index, Letter, Map, Row};

/// Where a letter has one size: a tower, or one expert of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    /// First component of the canonical name.
    pub zone: String,
    /// Which expert, where it matters.
    pub by: Option<u64>,
    /// The letter.
    pub letter: Letter,
}

/// All sizes of a set of tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes(BTreeMap<Scope, (u64, String)>);

impl Sizes {
    /// The scope of `letter` in a row, or `None` where the letter is the tensor's own.
    pub(crate) fn scope(map: &Map, row: &Row, at: &Index, letter: Letter) -> Option<Scope> {
        let zone = row.side("burn")?.zone(at);
        let same = map.same.iter().find(|s| (s.zone == zone || s.zone == "*") && s.letters.contains(&letter))?;
        // A row without the index (the embedding, say) belongs to the first expert.
        let by = same.by.map(|by| at.get(&by).copied().unwrap_or(0));
        Some(Scope { zone: zone.to_owned(), by, letter })
    }

    /// Records a size that `name` shows; a fault if another tensor showed another.
    pub(crate) fn record(&mut self, scope: Scope, size: u64, name: &str) -> Result<(), Fault> {
        let letter = scope.letter;
        let (known, first) = self.0.entry(scope).or_insert_with(|| (size, name.to_owned()));
        if *known == size {
            return Ok(());
        }
        Err(Fault::Shape {
            name: name.to_owned(),
            expected: format!("{letter} = {known}, as {first} has it"),
            found: format!("{letter} = {size}"),
        })
    }

    /// The size of `letter` in `zone`, for expert `by` where it differs by expert.
    pub fn get(&self, zone: &str, by: Option<u64>, letter: Letter) -> Option<u64> {
        self.0.get(&Scope { zone: zone.to_owned(), by, letter }).map(|(size, _)| *size)
    }

    pub(crate) fn of(&self, scope: &Scope) -> Option<u64> {
        self.0.get(scope).map(|(size, _)| *size)
    }

    /// The largest size of `letter` anywhere in `zone`.
    pub(crate) fn widths(&self, zone: &str, letter: Letter) -> impl Iterator<Item = u64> {
        self.0.iter().filter(move |(s, _)| s.zone == zone && s.letter == letter).map(|(_, (size, _))| *size)
    }
}
