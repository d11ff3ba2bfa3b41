//! Text ⇄ tokens: PaliGemma's vocabulary, from sentencepiece's own `.model` or from a `tokenizer.json`.
//!
//! Source: sentencepiece's BPE (bpe_model.cc, normalizer.cc, sentencepiece_processor.cc) for the one setting that Gemma
//! uses: identity normaliser, spaces written as U+2581, bytes for what has no piece. PaliGemma adds 1 024 `<locNNNN>` and
//! 128 `<segNNN>` to Gemma's 256 000 pieces; big_vision (pp/ops_text.py, `_add_pieces`) does so when it loads the file.
//! Invariant: `encode` gives the ids that sentencepiece gives, for every string. What a file is, is judged by its pieces
//! and settings, never by its name or checksum; a file that is something else is refused.

mod bpe;
mod json;
mod lexicon;
mod locate;
mod model;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use lexicon::Lexicon;

pub use locate::{NAMES, PUBLISHED_AT, Places};

/// Pieces of Gemma 1 and 2.
pub const GEMMA_PIECES: usize = 256_000;
/// `<loc0000>` to `<loc1023>`.
pub const LOCATION_PIECES: usize = 1024;
/// `<seg000>` to `<seg127>`.
pub const SEGMENT_PIECES: usize = 128;
/// Pieces of PaliGemma: what openpi's models are trained on.
pub const PALIGEMMA_PIECES: usize = GEMMA_PIECES + LOCATION_PIECES + SEGMENT_PIECES;

/// The largest `.model` of the family has 5 MB, the largest `tokenizer.json` 35 MB.
const MAX_FILE_BYTES: u64 = 128 << 20;
/// Four times the largest vocabulary of the family.
const MAX_PIECES: usize = 1 << 20;
/// Pieces of real vocabularies have up to 100 bytes.
const MAX_PIECE_BYTES: usize = 4096;

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Made by merging.
    Normal,
    /// Taken whole wherever it stands in the text, the longest first.
    User,
    /// `<bos>` and the like: never made of text, and no text when decoded.
    Control,
    /// `<unk>`.
    Unknown,
    /// One byte of a character that has no piece.
    Byte(u8),
}

/// One entry of a vocabulary, as a file has it.
#[derive(Debug, Clone, PartialEq)]
struct Piece {
    text: String,
    /// Merges go from the highest to the lowest.
    score: f32,
    kind: PieceKind,
}

/// Which file a tokenizer was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// sentencepiece's protobuf.
    SentencePiece,
    /// Hugging Face's `tokenizer.json`.
    Json,
}

/// What a tokenizer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PaliGemma's file.
    PaliGemma,
    /// Gemma's file, with PaliGemma's 1 152 pieces added here.
    GemmaExtended,
    /// A vocabulary of another size, made the same way: a small one, for tests.
    Small,
}

/// Text ⇄ tokens.
#[derive(Debug)]
pub struct Tokenizer {
    lexicon: Lexicon,
    scores: Vec<f32>,
    kinds: Vec<PieceKind>,
    /// Lengths in bytes of the pieces of [`PieceKind::User`] by their first character, longest first, each once.
    user: HashMap<char, Vec<usize>>,
    /// Ids of the 256 bytes.
    bytes: Vec<u32>,
    kind: Kind,
    format: Format,
}

/// Why there is no tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be read.
    #[error("{}: cannot be read: {why}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: std::io::Error,
    },
    /// It has more bytes than any tokenizer.
    #[error("{}: expected at most {MAX_FILE_BYTES} bytes, found {found}; is this a tokenizer?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
    },
    /// A file of this kind cannot have these bytes.
    #[error("{what}")]
    Broken {
        /// Where, and what is wrong.
        what: String,
    },
    /// It is a tokenizer, but of other models.
    #[error("{what}: expected {expected}, found {found}; PaliGemma's is paligemma_tokenizer.model, 257152 pieces")]
    Foreign {
        /// What of it.
        what: &'static str,
        /// As PaliGemma has it.
        expected: String,
        /// As it is.
        found: String,
    },
    /// What is wrong with which file.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: Box<Error>,
    },
    /// None where one may be.
    #[error("PaliGemma's tokenizer: none found; looked at\n{}\n{hint}", locate::lines(looked))]
    NotFound {
        /// Every path that was looked at, in order.
        looked: Vec<PathBuf>,
        /// How to get one.
        hint: String,
    },
}

impl Tokenizer {
    /// Reads a `.model` or a `tokenizer.json`, told apart by its first byte.
    ///
    /// # Errors
    /// A file that cannot be read, is broken, or is the tokenizer of something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |why| Error::Io { path: path.to_owned(), why };
        let file = std::fs::File::open(path).map_err(io)?;
        let about = file.metadata().map_err(io)?;
        if !about.is_file() {
            return Err(io(std::io::Error::other("it is not a file")));
        }
        let mut bytes = vec![];
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::TooLarge { path: path.to_owned(), found: about.len() });
        }
        Self::parse(&bytes).map_err(|why| Error::File { path: path.to_owned(), why: Box::new(why) })
    }

    /// From the bytes of such a file.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let start = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
        // A `.model` begins with the tag of its first piece, 0x0a: a line feed, so that a brace may follow it. But then it
        // is the length of a piece of 123 bytes, which no first piece has.
        match start.and_then(|at| bytes.get(at)) {
            None => Err(Error::Broken { what: "it is empty".to_owned() }),
            Some(b'{') => Self::of(json::read(bytes)?, Format::Json),
            Some(_) => Self::of(model::read(bytes)?, Format::SentencePiece),
        }
    }

    /// The vocabulary as a `tokenizer.json` that Hugging Face's `tokenizers` reads, without `<bos>` and the like as words
    /// of the text: there, as in sentencepiece, they are text.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    fn of(mut pieces: Vec<Piece>, format: Format) -> Result<Self, Error> {
        let kind = check(&pieces)?;
        if kind == Kind::GemmaExtended {
            let user = |text| Piece { text, score: 0.0, kind: PieceKind::User };
            pieces.extend(added().map(user));
        }
        let mut lexicon = Lexicon::with_capacity(pieces.len(), pieces.iter().map(|piece| piece.text.len()).sum());
        let mut user: HashMap<char, Vec<usize>> = HashMap::new();
        let mut bytes = vec![None; 256];
        for (piece, id) in pieces.iter().zip(0u32..) {
            let found = match piece.kind {
                PieceKind::Normal | PieceKind::User => {
                    if piece.kind == PieceKind::User
                        && let Some(first) = piece.text.chars().next()
                    {
                        user.entry(first).or_default().push(piece.text.len());
                    }
                    lexicon.push(&piece.text, true)
                }
                PieceKind::Byte(byte) => {
                    bytes[usize::from(byte)] = Some(id);
                    lexicon.push(&piece.text, false)
                }
                PieceKind::Control | PieceKind::Unknown => lexicon.push(&piece.text, false),
            };
            if let Some(first) = found {
                return Err(Error::Broken { what: format!("piece {id}: {:?} is piece {first} already", piece.text) });
            }
        }
        for lengths in user.values_mut() {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        let bytes: Vec<u32> = bytes.into_iter().flatten().collect();
        if bytes.len() != 256 {
            return Err(Error::Foreign {
                what: "pieces of single bytes",
                expected: "256, <0x00> to <0xFF>".to_owned(),
                found: bytes.len().to_string(),
            });
        }
        let scores = pieces.iter().map(|piece| piece.score).collect();
        let kinds = pieces.iter().map(|piece| piece.kind).collect();
        Ok(Self { lexicon, scores, kinds, user, bytes, kind, format })
    }

    /// Pieces: openpi's `vocab_size`.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it was read from.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What pads: 0.
    pub fn pad(&self) -> u32 {
        0
    }

    /// What ends a text: 1.
    pub fn eos(&self) -> u32 {
        1
    }

    /// What begins a text: 2.
    pub fn bos(&self) -> u32 {
        2
    }

    /// The piece of an id, as the file writes it: a space is U+2581.
    pub fn piece(&self, id: u32) -> Option<(&str, PieceKind)> {
        Some((self.lexicon.get(id)?, *self.kinds.get(id as usize)?))
    }
}

/// PaliGemma's own pieces, in their order: that of their names.
fn added() -> impl Iterator<Item = String> {
    let locations = (0..LOCATION_PIECES).map(|i| format!("<loc{i:04}>"));
    locations.chain((0..SEGMENT_PIECES).map(|i| format!("<seg{i:03}>")))
}

/// What must stand where in every vocabulary of the family.
const FIRST: [(&str, PieceKind); 4] = [
    ("<pad>", PieceKind::Control),
    ("<eos>", PieceKind::Control),
    ("<bos>", PieceKind::Control),
    ("<unk>", PieceKind::Unknown),
];

/// What must stand where in one of Gemma's size.
const ANCHORS: [(usize, &str); 9] = [
    (108, "\n"),
    (139, "\u{2581}\u{2581}"),
    (573, "\u{2581}the"),
    (4022, "Action"),
    (18075, "pick"),
    (235_248, "\u{2581}"),
    (235_371, "|"),
    (255_968, "[toxicity=0]"),
    (255_999, "<unused99>"),
];

fn check(pieces: &[Piece]) -> Result<Kind, Error> {
    let own = LOCATION_PIECES + SEGMENT_PIECES;
    let extended = pieces.len().checked_sub(own).is_some_and(|base| {
        let tail = pieces.get(base..).unwrap_or(&[]);
        tail.iter().zip(added()).all(|(piece, name)| piece.text == name && piece.kind == PieceKind::User)
    });
    let kind = match (pieces.len(), extended) {
        (PALIGEMMA_PIECES, true) => Kind::PaliGemma,
        (GEMMA_PIECES, false) => Kind::GemmaExtended,
        (_, true) => Kind::Small,
        (found, false) => {
            return Err(Error::Foreign {
                what: "pieces",
                expected: format!("{PALIGEMMA_PIECES} that end with <seg127>, or Gemma's {GEMMA_PIECES}"),
                found: match pieces.last() {
                    Some(last) => format!("{found} that end with {:?}{}", last.text, guess(found)),
                    None => "none".to_owned(),
                },
            });
        }
    };
    let expect = |id: usize, text: &str, kind: Option<PieceKind>| {
        let wrong = |found| Err(Error::Foreign { what: "a piece", expected: format!("{text:?} as {id}"), found });
        match pieces.get(id) {
            Some(piece) if piece.text != text => wrong(format!("{:?}", piece.text)),
            Some(piece) if kind.is_some_and(|kind| kind != piece.kind) => {
                wrong(format!("it, but as {:?}", piece.kind).to_lowercase())
            }
            Some(_) => Ok(()),
            None => wrong("no such piece".to_owned()),
        }
    };
    for (id, (text, kind)) in FIRST.iter().enumerate() {
        expect(id, text, Some(*kind))?;
    }
    if kind != Kind::Small {
        for (id, text) in ANCHORS {
            expect(id, text, None)?;
        }
    }
    Ok(kind)
}

/// Whose vocabulary has that many pieces.
fn guess(pieces: usize) -> &'static str {
    match pieces {
        32_000 => " (Llama 2 has that many)",
        262_144 | 262_145 => " (Gemma 3 has that many)",
        _ => "",
    }
}
