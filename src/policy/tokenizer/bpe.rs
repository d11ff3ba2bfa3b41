//! Text to ids and back, as sentencepiece does it.
//!
//! Source: sentencepiece's bpe_model.cc (`SampleEncode` without sampling) and sentencepiece_processor.cc (`Decode`).
//! Invariant: of all neighbours that make a piece, those with the highest score are joined first, and of equal ones the
//! leftmost.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{PieceKind, Tokenizer};

/// How the vocabulary writes a space.
pub(super) const SPACE: char = '\u{2581}';
/// How sentencepiece decodes `<unk>`.
const UNKNOWN: &str = " \u{2047} ";
const NONE: usize = usize::MAX;

/// A run of the text that is one piece so far.
struct Symbol {
    start: usize,
    /// 0 once it was joined to its left neighbour.
    len: usize,
    previous: usize,
    next: usize,
    /// A piece of [`PieceKind::User`]: never joined.
    frozen: bool,
}

/// Two neighbours that together are a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both; another number when it is taken means that one of them has changed.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Tokenizer {
    /// The ids of a text, without `<bos>` or `<eos>`.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let text = text.replace(' ', "\u{2581}");
        let mut symbols = self.symbols(&text);
        self.join(&text, &mut symbols);
        let mut ids = vec![];
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.lexicon.find(piece) {
                Some(id) => ids.push(id),
                None => ids.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
        ids
    }

    /// Single characters, and the pieces that are taken whole.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = vec![];
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let lengths = self.user.get(&first).map_or(&[][..], Vec::as_slice);
            let whole = lengths.iter().find(|len| rest.get(..**len).is_some_and(|text| self.is_user(text)));
            let len = whole.copied().unwrap_or(first.len_utf8());
            let at = symbols.len();
            symbols.push(Symbol {
                start: text.len() - rest.len(),
                len,
                previous: at.wrapping_sub(1),
                next: at + 1,
                frozen: whole.is_some(),
            });
            rest = &rest[len..];
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        symbols
    }

    fn is_user(&self, text: &str) -> bool {
        self.lexicon.find(text).is_some_and(|id| self.kinds[id as usize] == PieceKind::User)
    }

    fn join(&self, text: &str, symbols: &mut [Symbol]) {
        let mut agenda = BinaryHeap::new();
        for right in 1..symbols.len() {
            agenda.extend(self.pair(text, symbols, right - 1, right));
        }
        while let Some(pair) = agenda.pop() {
            let (left_len, right_len) = (symbols[pair.left].len, symbols[pair.right].len);
            if left_len == 0 || right_len == 0 || left_len + right_len != pair.len {
                continue;
            }
            let next = symbols[pair.right].next;
            symbols[pair.right].len = 0;
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = next;
            if next != NONE {
                symbols[next].previous = pair.left;
            }
            agenda.extend(self.pair(text, symbols, symbols[pair.left].previous, pair.left));
            agenda.extend(self.pair(text, symbols, pair.left, next));
        }
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let (a, b) = (symbols.get(left)?, symbols.get(right)?);
        if a.frozen || b.frozen {
            return None;
        }
        let len = a.len + b.len;
        let id = self.lexicon.find(&text[a.start..a.start + len])?;
        Some(Pair { score: self.scores[id as usize], left, right, len })
    }

    /// The text of ids. `<pad>`, `<eos>`, `<bos>` have none; `<unk>`, and an id that is none, is ` ⁇ `; bytes that are no
    /// UTF-8 are U+FFFD, one each.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut out = String::new();
        let mut bytes = vec![];
        for id in ids {
            let piece = self.piece(*id);
            if let Some((_, PieceKind::Byte(byte))) = piece {
                bytes.push(byte);
                continue;
            }
            flush(&mut bytes, &mut out);
            match piece {
                Some((_, PieceKind::Control)) => {}
                Some((_, PieceKind::Unknown)) | None => out.push_str(UNKNOWN),
                Some((text, _)) => out.extend(text.chars().map(|c| if c == SPACE { ' ' } else { c })),
            }
        }
        flush(&mut bytes, &mut out);
        out
    }
}

fn flush(bytes: &mut Vec<u8>, out: &mut String) {
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                break;
            }
            Err(error) => {
                let (good, bad) = rest.split_at(error.valid_up_to());
                out.push_str(std::str::from_utf8(good).unwrap_or_default());
                out.push(char::REPLACEMENT_CHARACTER);
                rest = bad.get(1..).unwrap_or_default();
            }
        }
    }
    bytes.clear();
}
