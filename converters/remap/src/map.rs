//! The name map: a text in, rows that read and write names out.
//!
//! The language is told at the head of `pi0.map`. Invariant: a path read from a name and written back with the
//! same indices is that name again, in every column.

use std::collections::BTreeMap;

use crate::error::MapError;

/// An index that lives in names or in axes: `L`, `N`, `W`, ...
pub type Letter = char;

/// Values of the indices that stand in a name.
pub type Index = BTreeMap<Letter, u64>;

/// The pi0 family, as shipped in `pi0.map`.
pub const PI0: &str = include_str!("pi0.map");

/// A whole map: rows, and what else a scheme needs to be complete.
#[derive(Debug, Clone)]
pub struct Map {
    /// One per parameter family.
    pub rows: Vec<Row>,
    /// One per naming scheme.
    pub schemes: Vec<Scheme>,
    /// What makes a model whole.
    pub models: Vec<Model>,
    /// Letters whose size is the same all over a tower.
    pub same: Vec<Same>,
    /// Head counts by width, where shapes alone cannot tell.
    pub heads: Vec<Heads>,
    /// Second names of one tensor.
    pub tied: Vec<Tied>,
    /// Tensors that loaders want and nothing reads.
    pub zeros: Vec<Zeros>,
    /// Low-rank pairs beside a weight.
    pub lora: Vec<LoraRow>,
}

/// A family of parameters: its path and axes in each column that has it.
#[derive(Debug, Clone)]
pub struct Row {
    /// Where the family exists.
    pub kind: Kind,
    sides: BTreeMap<String, Side>,
}

/// In which models a family of parameters exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In every one.
    Always,
    /// Where an expert's norm has a learned scale.
    Plain,
    /// Where an expert's norm is modulated by time.
    Adaptive,
    /// Where a weight has a low-rank pair beside it.
    Lora,
}

/// One column of a row.
#[derive(Debug, Clone)]
pub struct Side {
    path: Vec<Piece>,
    /// The array's axes; each holds no letter (a unit axis), one, or several merged, slowest first.
    pub axes: Vec<Vec<Letter>>,
}

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Index { letter: Letter, spellings: Vec<String> },
}

/// A naming scheme: a column of the map, perhaps behind a prefix.
#[derive(Debug, Clone)]
pub struct Scheme {
    /// As on the command line.
    pub name: String,
    /// Which lines of the rows it reads.
    pub column: String,
    /// Before every name.
    pub prefix: String,
    /// What the column's names begin with and this scheme's do not.
    pub without: String,
}

/// What a complete model consists of.
#[derive(Debug, Clone)]
pub struct Model {
    /// `pi0`, `pi05`, `pi0_fast`.
    pub name: String,
    /// For each expert: is its norm adaptive?
    pub adaptive: Vec<bool>,
    /// Names of the projections beside the two towers.
    pub projections: Vec<String>,
}

/// In `zone`, these letters have one size each, or one for each value of `by`.
#[derive(Debug, Clone)]
pub struct Same {
    /// First component of the canonical name.
    pub zone: String,
    /// The index they depend on.
    pub by: Option<Letter>,
    /// The letters.
    pub letters: Vec<Letter>,
}

/// In `zone`, a width of `width` along `letter` means these head counts.
#[derive(Debug, Clone)]
pub struct Heads {
    /// First component of the canonical name: `img` or `llm`.
    pub zone: String,
    /// Letter that is known.
    pub letter: Letter,
    /// Its size.
    pub width: u64,
    /// What follows: letters and sizes.
    pub counts: Vec<(Letter, u64)>,
}

/// `name` in `column` is the tensor that is `canonical` in burn's column.
#[derive(Debug, Clone)]
pub struct Tied {
    /// Column of the alias.
    pub column: String,
    /// The alias.
    pub name: String,
    /// Canonical name of the tensor it repeats.
    pub canonical: String,
}

/// A tensor of zeros that strict loaders of a column want.
#[derive(Debug, Clone)]
pub struct Zeros {
    /// Column.
    pub column: String,
    /// Name.
    pub name: String,
    /// Its axes: a letter, and for letters that differ by expert which one.
    pub axes: Vec<(Letter, Option<u64>)>,
}

/// A LoRA pair: `<stem>.weight`, `<stem>.lora_a`, `<stem>.lora_b`, contracted over `R`.
#[derive(Debug, Clone)]
pub struct LoraRow {
    stem: Side,
    /// Multiplied by alpha / rank?
    pub scaled: bool,
    /// A letter over which `lora_b` is summed before the product.
    pub sum: Option<Letter>,
}

impl Map {
    /// The shipped map of the pi0 family.
    pub fn pi0() -> Self {
        Self::parse(PI0).unwrap_or_else(|error| unreachable!("the shipped map is tested to parse: {error}"))
    }

    /// Parses a map's text. Errors name the line.
    pub fn parse(text: &str) -> Result<Self, MapError> {
        let mut map = Map {
            rows: vec![],
            schemes: vec![],
            models: vec![],
            same: vec![],
            heads: vec![],
            tied: vec![],
            zeros: vec![],
            lora: vec![],
        };
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim_end();
            let wrong = |what: &str| MapError { line: number, what: format!("{what}: {line:?}") };
            if line.trim().is_empty() {
                continue;
            }
            if line.starts_with(' ') {
                let row = map.rows.last_mut().ok_or_else(|| wrong("a column before the first row"))?;
                let (path, axes) = line.split_once('|').ok_or_else(|| wrong("no | between path and axes"))?;
                let (column, path) = path.trim().split_once(' ').ok_or_else(|| wrong("no column name"))?;
                let side = Side::parse(path.trim(), axes).ok_or_else(|| wrong("malformed path or axes"))?;
                row.sides.insert(column.to_owned(), side);
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["row"] => map.rows.push(Row::new(Kind::Always)),
                ["row", "plain"] => map.rows.push(Row::new(Kind::Plain)),
                ["row", "adaptive"] => map.rows.push(Row::new(Kind::Adaptive)),
                ["row", "lora"] => map.rows.push(Row::new(Kind::Lora)),
                ["scheme", name, "column", column, ref rest @ ..] => {
                    let after = |key: &str| {
                        rest.iter().skip_while(|w| **w != key).nth(1).map(|w| (*w).to_owned()).unwrap_or_default()
                    };
                    map.schemes.push(Scheme {
                        name: name.into(),
                        column: column.into(),
                        prefix: after("prefix"),
                        without: after("without"),
                    });
                }
                ["same", zone, "by", by, ref letters @ ..] => map.same.push(Same {
                    zone: zone.into(),
                    by: letter_of(by),
                    letters: letters.iter().filter_map(|w| letter_of(w)).collect(),
                }),
                ["same", zone, ref letters @ ..] => map.same.push(Same {
                    zone: zone.into(),
                    by: None,
                    letters: letters.iter().filter_map(|w| letter_of(w)).collect(),
                }),
                ["model", name, "experts", ..] => {
                    let mut parts = words[3..].split(|w| *w == "projections");
                    let experts = parts.next().unwrap_or_default();
                    let projections = parts.next().ok_or_else(|| wrong("no projections"))?;
                    map.models.push(Model {
                        name: name.into(),
                        adaptive: experts.iter().map(|e| *e == "adaptive").collect(),
                        projections: projections.iter().map(|p| (*p).to_owned()).collect(),
                    });
                }
                ["heads", zone, letter, width, "is", ..] => {
                    let number = |w: &str| w.parse::<u64>().map_err(|_| wrong("not a number"));
                    let counts = words[5..].chunks(2).map(|pair| match pair {
                        [l, n] => Ok((letter_of(l).ok_or_else(|| wrong("not a letter"))?, number(n)?)),
                        _ => Err(wrong("a letter without its count")),
                    });
                    map.heads.push(Heads {
                        zone: zone.into(),
                        letter: letter_of(letter).ok_or_else(|| wrong("not a letter"))?,
                        width: number(width)?,
                        counts: counts.collect::<Result<_, _>>()?,
                    });
                }
                ["tied", column, name, "is", canonical] => {
                    map.tied.push(Tied { column: column.into(), name: name.into(), canonical: canonical.into() })
                }
                ["zeros", column, name, "is", ..] => {
                    let axes = words[4..].iter().map(|w| {
                        let letter = w.chars().next().ok_or_else(|| wrong("an empty axis"))?;
                        Ok((letter, w[letter.len_utf8()..].parse().ok()))
                    });
                    let axes = axes.collect::<Result<_, MapError>>()?;
                    map.zeros.push(Zeros { column: column.into(), name: name.into(), axes });
                }
                ["lora", stem, ref rest @ ..] => map.lora.push(LoraRow {
                    stem: Side::parse(stem, "").ok_or_else(|| wrong("malformed path"))?,
                    scaled: rest.contains(&"scaled"),
                    sum: rest.iter().skip_while(|w| **w != "sum").nth(1).and_then(|w| letter_of(w)),
                }),
                _ => return Err(wrong("not a line of this language")),
            }
        }
        Ok(map)
    }

    /// The scheme called `name`.
    pub fn scheme(&self, name: &str) -> Option<&Scheme> {
        self.schemes.iter().find(|s| s.name == name)
    }

    /// The row of a name in `column`, and the indices that stand in it.
    pub fn find(&self, column: &str, name: &str) -> Option<(usize, Index)> {
        self.rows.iter().enumerate().find_map(|(r, row)| Some((r, row.side(column)?.read(name)?)))
    }

    /// The LoRA row whose stem is `stem` (a canonical name without `.weight`).
    pub fn lora_of(&self, stem: &str) -> Option<&LoraRow> {
        self.lora.iter().find(|row| row.stem.read(stem).is_some())
    }
}

impl Scheme {
    /// A name of this scheme as the column has it.
    pub fn strip(&self, name: &str) -> Option<String> {
        Some(format!("{}{}", self.without, name.strip_prefix(self.prefix.as_str())?))
    }

    /// A name of the column as this scheme has it.
    pub fn dress(&self, name: &str) -> Option<String> {
        Some(format!("{}{}", self.prefix, name.strip_prefix(self.without.as_str())?))
    }
}

impl Row {
    fn new(kind: Kind) -> Self {
        Row { kind, sides: BTreeMap::new() }
    }

    /// How many values `letter` has, where some column spells them out.
    pub fn spelled(&self, letter: Letter) -> Option<u64> {
        self.sides.values().flat_map(Side::named).find_map(|(l, n)| n.filter(|_| l == letter))
    }

    /// Path and axes in `column`, where the family exists there.
    pub fn side(&self, column: &str) -> Option<&Side> {
        self.sides.get(column)
    }
}

impl Side {
    fn parse(path: &str, axes: &str) -> Option<Side> {
        let mut pieces = vec![];
        for (i, part) in path.split(['{', '}']).enumerate() {
            if i % 2 == 0 {
                if !part.is_empty() {
                    pieces.push(Piece::Text(part.into()));
                }
                continue;
            }
            let letter = part.chars().next()?;
            let spellings = part.split_once(':').map(|(_, s)| s.split(',').map(String::from).collect());
            pieces.push(Piece::Index { letter, spellings: spellings.unwrap_or_default() });
        }
        let (mut groups, mut open) = (vec![], false);
        for c in axes.chars() {
            match c {
                ' ' => {}
                '(' if !open => {
                    groups.push(vec![]);
                    open = true;
                }
                ')' if open => open = false,
                '1' if !open => groups.push(vec![]),
                letter if letter.is_ascii_uppercase() && open => groups.last_mut()?.push(letter),
                letter if letter.is_ascii_uppercase() => groups.push(vec![letter]),
                _ => return None,
            }
        }
        Some(Side { path: pieces, axes: groups })
    }

    /// The name with these indices; `None` where one is missing or has no spelling.
    pub fn write(&self, at: &Index) -> Option<String> {
        let mut name = String::new();
        for piece in &self.path {
            match piece {
                Piece::Text(text) => name.push_str(text),
                Piece::Index { letter, spellings } if spellings.is_empty() => name += &at.get(letter)?.to_string(),
                Piece::Index { letter, spellings } => {
                    name += spellings.get(usize::try_from(*at.get(letter)?).ok()?)?;
                }
            }
        }
        Some(name)
    }

    /// The indices that stand in `name`; `None` if it is not of this family.
    pub fn read(&self, name: &str) -> Option<Index> {
        read(&self.path, name, Index::new())
    }

    /// Letters that stand in the path, and how many values each has where they are spelled out.
    pub fn named(&self) -> impl Iterator<Item = (Letter, Option<u64>)> + '_ {
        self.path.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Index { letter, spellings } => {
                Some((*letter, (!spellings.is_empty()).then_some(spellings.len() as u64)))
            }
        })
    }

    /// All letters of the axes, slowest first.
    pub fn letters(&self) -> impl Iterator<Item = Letter> + '_ {
        self.axes.iter().flatten().copied()
    }

    /// The first component of the canonical name: the tower, or the projection, that a parameter belongs to.
    pub fn zone(&self, at: &Index) -> &str {
        match self.path.first() {
            Some(Piece::Text(text)) => text.split('.').next().unwrap_or_default(),
            Some(Piece::Index { letter, .. }) => {
                at.get(letter).and_then(|value| self.spelling(*letter, *value)).unwrap_or_default()
            }
            None => "",
        }
    }

    /// The spelling of index `letter` at `value`, where it is spelled out.
    pub fn spelling(&self, letter: Letter, value: u64) -> Option<&str> {
        self.path.iter().find_map(|piece| match piece {
            Piece::Index { letter: l, spellings } if *l == letter => {
                spellings.get(usize::try_from(value).ok()?).map(String::as_str)
            }
            _ => None,
        })
    }
}

fn read(path: &[Piece], rest: &str, at: Index) -> Option<Index> {
    let Some((head, tail)) = path.split_first() else { return rest.is_empty().then_some(at) };
    match head {
        Piece::Text(text) => read(tail, rest.strip_prefix(text.as_str())?, at),
        Piece::Index { letter, spellings } if spellings.is_empty() => {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, rest) = rest.split_at(digits);
            // One number, one spelling: "01" would come home as "1".
            if number.len() > 1 && number.starts_with('0') {
                return None;
            }
            read(tail, rest, bind(at, *letter, number.parse().ok()?)?)
        }
        Piece::Index { letter, spellings } => (0..).zip(spellings).find_map(|(value, spelling)| {
            read(tail, rest.strip_prefix(spelling.as_str())?, bind(at.clone(), *letter, value)?)
        }),
    }
}

fn bind(mut at: Index, letter: Letter, value: u64) -> Option<Index> {
    (*at.entry(letter).or_insert(value) == value).then_some(at)
}

fn letter_of(word: &str) -> Option<Letter> {
    let mut chars = word.chars();
    chars.next().filter(|c| c.is_ascii_uppercase() && chars.next().is_none())
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
