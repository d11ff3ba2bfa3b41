//! FAST: an action chunk ⇄ a few tokens.
//!
//! Source: the published processor `physical-intelligence/fast` (processing_action_tokenizer.py) and the files it is stored
//! in: `tokenizer.json`, `processor_config.json`. A chunk `[H, D]`, normalised, goes through a cosine transform over time,
//! times `scale`, rounded half to even; coefficients in C order (all dimensions of the lowest frequency first) become
//! characters by `chr(max(coefficient - min_token, 0))`; a byte-level BPE makes tokens of the text.
//! Invariant: what cannot be encoded without loss, or decoded at all, is told: a coefficient outside of the vocabulary is
//! counted where Python drops it without a word, a row of tokens that is no chunk is [`Malformed`] where Python gives zeros.

mod dct;
mod fit;
mod grammar;
mod round_trip;
mod store;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::path::PathBuf;

pub use fit::{Fit, Fitted};
pub use grammar::{Grammar, NoSentence, Place, Stray};
pub use round_trip::{RoundTrip, round_trip};
pub use store::MAX_FILE_BYTES;
pub use words::{Reading, Words};

use super::array::{Array, Values};
use dct::Dct;

/// Longest chunk that is encoded or decoded.
pub const MAX_HORIZON: usize = 4096;
/// Most values of one chunk.
pub const MAX_VALUES: usize = 1 << 20;

/// Action chunk ⇄ token ids. 0 is the first id of its own vocabulary, not of the language model's ([`Words`] maps those).
#[derive(Debug, Clone)]
pub struct Codec {
    /// Coefficients are multiplied by it before they are rounded.
    pub scale: f64,
    /// The coefficient that becomes character 0.
    pub min_token: i64,
    /// As the file says; [`Codec::len`] tokens are there.
    pub vocab_size: usize,
    /// H of every chunk, where the file fixes it.
    pub time_horizon: Option<usize>,
    /// D of every chunk, where the file fixes it.
    pub action_dim: Option<usize>,
    bpe: tokenizers::Tokenizer,
    /// The bytes that each token stands for.
    pieces: Vec<Vec<u8>>,
    /// Bytes that the vocabulary can spell.
    spelt: [bool; 256],
}

/// Why a codec cannot be read or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be read or written.
    #[error("{}: {why}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {what}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong, what was expected and found.
        what: String,
    },
    /// A chunk that has no tokens, or a codec that has too many.
    #[error("{0}")]
    Chunk(String),
    /// Chunks of which no vocabulary can be made.
    #[error("fit: {0}")]
    Fit(String),
}

/// Why tokens are no action chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The model never said that actions follow.
    #[error("the model's tokens hold no \"Action: \"")]
    NoAction,
    /// A token among the actions that is none of theirs.
    #[error("token {at} of the actions is {id}, which is no action token")]
    Stray {
        /// Which, from 0.
        at: usize,
        /// Its id.
        id: u32,
    },
    /// Bytes that are no text: pieces of characters in an order that gives none.
    #[error("the tokens spell no text: byte {at} of {bytes} begins no character")]
    NotText {
        /// Where it goes wrong.
        at: usize,
        /// How many there are.
        bytes: usize,
    },
    /// Too few or too many coefficients.
    #[error("expected {horizon} x {dim} = {} coefficients, found {found}", horizon * dim)]
    Length {
        /// H of the chunk.
        horizon: usize,
        /// D of the chunk.
        dim: usize,
        /// Coefficients that are there.
        found: usize,
    },
}

/// A chunk as tokens, and what was lost on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Ids of the codec's own vocabulary.
    pub ids: Vec<u32>,
    /// Coefficients for which the vocabulary has no character: left out, as in Python. A chunk with any of them has too few
    /// coefficients and cannot be decoded.
    pub unseen: Vec<i64>,
    /// Coefficients below `min_token`, raised to it, as in Python.
    pub clamped: Vec<i64>,
}

impl Codec {
    /// Tokens of the vocabulary.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Has it none?
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The bytes of a token.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id as usize).map(Vec::as_slice)
    }

    /// Rounded coefficients of a chunk `[H, D]`, in C order.
    ///
    /// # Errors
    /// A shape that is none of a chunk; a value that is not finite.
    pub fn coefficients(&self, chunk: &Array) -> Result<Vec<i64>, Error> {
        let &[horizon, dim] = &chunk.shape[..] else {
            return Err(Error::Chunk(format!("expected [steps, dimensions], found {chunk}")));
        };
        self.fits(horizon, dim).map_err(Error::Chunk)?;
        rounded(&Dct::new(horizon), chunk, dim, self.scale)
    }

    /// Tokens of a chunk `[H, D]`.
    ///
    /// # Errors
    /// A shape that is none of a chunk; a value that is not finite; a coefficient that is no character.
    pub fn encode(&self, chunk: &Array) -> Result<Encoded, Error> {
        let coefficients = self.coefficients(chunk)?;
        let mut encoded = Encoded::default();
        let mut text = String::with_capacity(coefficients.len());
        for value in coefficients {
            let mut point = value.saturating_sub(self.min_token);
            if point < 0 {
                encoded.clamped.push(value);
                point = 0;
            }
            // Python's `chr` makes half a character of a surrogate, which its BPE then refuses.
            let character = u32::try_from(point).ok().and_then(char::from_u32).ok_or_else(|| {
                Error::Chunk(format!(
                    "coefficient {value} would be character {point}, which there is not; are the actions normalised?"
                ))
            })?;
            let mut buffer = [0; 4];
            if character.encode_utf8(&mut buffer).bytes().all(|byte| self.spelt[usize::from(byte)]) {
                text.push(character);
            } else {
                encoded.unseen.push(value);
            }
        }
        let tokens = self.bpe.encode_fast(text, false).map_err(|error| Error::Chunk(error.to_string()))?;
        encoded.ids = tokens.get_ids().to_vec();
        Ok(encoded)
    }

    /// The chunk `[horizon, dim]` that tokens stand for, in C order.
    ///
    /// # Errors
    /// Tokens that are none.
    pub fn decode(&self, ids: &[u32], horizon: usize, dim: usize) -> Result<Vec<f64>, Malformed> {
        let points = self.code_points(ids)?;
        let length = Malformed::Length { horizon, dim, found: points.len() };
        if horizon.checked_mul(dim) != Some(points.len()) || points.is_empty() || self.fits(horizon, dim).is_err() {
            return Err(length);
        }
        let values: Vec<f64> =
            points.iter().map(|point| (i64::from(*point) + self.min_token) as f64 / self.scale).collect();
        Ok(Dct::new(horizon).inverse(&values, dim))
    }

    /// The code points that tokens spell, one for each coefficient.
    ///
    /// # Errors
    /// An id that is no token; bytes that are no text.
    pub fn code_points(&self, ids: &[u32]) -> Result<Vec<u32>, Malformed> {
        let mut bytes = vec![];
        for (at, id) in ids.iter().enumerate() {
            bytes.extend_from_slice(self.bytes(*id).ok_or(Malformed::Stray { at, id: *id })?);
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.chars().map(u32::from).collect()),
            Err(error) => Err(Malformed::NotText { at: error.valid_up_to(), bytes: bytes.len() }),
        }
    }

    /// Whether chunks of this shape are encoded at all.
    fn fits(&self, horizon: usize, dim: usize) -> Result<(), String> {
        for (axis, fixed, found) in [("steps", self.time_horizon, horizon), ("dimensions", self.action_dim, dim)] {
            if let Some(fixed) = fixed.filter(|fixed| *fixed != found) {
                return Err(format!("expected {fixed} {axis} as processor_config.json says, found {found}"));
            }
        }
        let values = horizon.saturating_mul(dim);
        if horizon == 0 || dim == 0 || horizon > MAX_HORIZON || values > MAX_VALUES {
            return Err(format!(
                "expected 1 to {MAX_HORIZON} steps and at most {MAX_VALUES} values, found [{horizon}, {dim}]"
            ));
        }
        Ok(())
    }
}

/// Rounded coefficients, as scipy and numpy have them in the chunk's own dtype.
fn rounded(dct: &Dct, chunk: &Array, dim: usize, scale: f64) -> Result<Vec<i64>, Error> {
    let single = matches!(chunk.values, Values::F32(_));
    let x = chunk.values.to_f64();
    if let Some(at) = x.iter().position(|value| !value.is_finite()) {
        let (step, of) = (at / dim, at % dim);
        return Err(Error::Chunk(format!("step {step}, dimension {of}: expected a finite number, found {}", x[at])));
    }
    let round = |value: f64| match single {
        // The product is rounded to f32 before it is rounded to a whole number.
        true => f64::from((value as f32) * (scale as f32)).round_ties_even(),
        false => (value * scale).round_ties_even(),
    };
    Ok(dct.forward(&x, dim).into_iter().map(|value| round(value) as i64).collect())
}

impl fmt::Display for Codec {
    /// `1024 tokens, scale 10, coefficients from -71`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} tokens, scale {}, coefficients from {}", self.len(), self.scale, self.min_token)
    }
}
