//! A vocabulary made of a dataset's own chunks.
//!
//! Source: `UniversalActionProcessor.fit` of the published processor; the same chunks give the same vocabulary and merges.
//! Trap of the original, kept by default: its alphabet holds `chr(i)` for every coefficient between the least and the
//! greatest, but a byte-level BPE spells some of these characters otherwise; a coefficient that no chunk of the fit had is
//! then lost in encoding. With [`Fit::every_byte`] the vocabulary spells every coefficient.

use std::collections::{BTreeSet, HashSet};

use tokenizers::models::ModelWrapper;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::dct::Dct;
use super::store::char_of;
use super::{Codec, Error, MAX_HORIZON, MAX_VALUES, rounded};
use crate::policy::array::Array;

/// Longest token, in characters, as in the original.
const MAX_TOKEN_CHARACTERS: usize = 10_000;
/// How often two tokens must stand side by side to become one, as in the original.
const MIN_FREQUENCY: u64 = 2;
/// The original warns of a vocabulary with less room for merges than this.
const LITTLE_ROOM: usize = 100;

/// How a codec is fitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Coefficients are multiplied by it before they are rounded; 10 in the published one.
    pub scale: f64,
    /// Tokens; 1024 by default in the original, 2048 in the published one.
    pub vocab_size: usize,
    /// Puts all 256 bytes into the alphabet, so that no coefficient is ever lost. Python's `fit` does not.
    pub every_byte: bool,
}

impl Default for Fit {
    fn default() -> Self {
        Self { scale: 10.0, vocab_size: 1024, every_byte: false }
    }
}

/// A codec, and what is to know about its making.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// The codec.
    pub codec: Codec,
    /// The greatest coefficient; `min_token` is the least.
    pub max_token: i64,
    /// Coefficients between the least and the greatest that no chunk had and that the vocabulary cannot spell: an action
    /// with one of them will be lost in encoding.
    pub unspelt: Vec<i64>,
    /// What went well enough, but perhaps not as hoped.
    pub warnings: Vec<String>,
}

impl Fit {
    /// Fits a codec to normalised chunks `[H, D]`; `seen` is told how many have been transformed.
    ///
    /// # Errors
    /// No chunks; chunks of several shapes; values that are not finite; a vocabulary too small for the coefficients.
    pub fn run<'a>(&self, chunks: impl IntoIterator<Item = &'a Array>, seen: impl Fn(usize)) -> Result<Fitted, Error> {
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Err(Error::Fit(format!("scale: expected a positive number, found {}", self.scale)));
        }
        let coefficients = self.coefficients(chunks, seen)?;
        let all = || coefficients.iter().flatten().copied();
        let (Some(least), Some(greatest)) = (all().min(), all().max()) else {
            return Err(Error::Fit("expected action chunks, found none".to_owned()));
        };
        let range = greatest.abs_diff(least);
        if range > self.vocab_size as u64 {
            return Err(Error::Fit(format!(
                "the coefficients {least} to {greatest} are more than the {} tokens of the vocabulary; give more tokens or \
                 a smaller scale, and fit on normalised actions",
                self.vocab_size
            )));
        }
        let mut warnings = vec![];
        if range as usize + LITTLE_ROOM > self.vocab_size {
            warnings.push(format!(
                "the coefficients {least} to {greatest} leave less than {LITTLE_ROOM} of {} tokens for what repeats; a \
                 larger vocabulary makes shorter rows",
                self.vocab_size
            ));
        }
        let point = |value: i64| u32::try_from(value - least).ok().and_then(char::from_u32).unwrap_or_default();
        let mut alphabet: HashSet<char> = (least..=greatest).map(point).collect();
        if self.every_byte {
            alphabet.extend((0..=u8::MAX).map(char_of));
        }
        let texts: Vec<String> = coefficients.iter().map(|chunk| chunk.iter().copied().map(point).collect()).collect();
        let bpe = train(self.vocab_size, alphabet, &texts).map_err(|error| Error::Fit(error.to_string()))?;
        let codec = Codec::of(bpe, self.scale, least, self.vocab_size);
        let unspelt: Vec<i64> = (least..=greatest)
            .filter(|value| {
                let mut buffer = [0; 4];
                !point(*value).encode_utf8(&mut buffer).bytes().all(|byte| codec.spelt[usize::from(byte)])
            })
            .collect();
        if codec.len() > self.vocab_size {
            warnings.push(format!(
                "{} tokens asked for, {} needed for the alphabet alone",
                self.vocab_size,
                codec.len()
            ));
        }
        Ok(Fitted { codec, max_token: greatest, unspelt, warnings })
    }

    fn coefficients<'a>(
        &self,
        chunks: impl IntoIterator<Item = &'a Array>,
        seen: impl Fn(usize),
    ) -> Result<Vec<Vec<i64>>, Error> {
        let mut shapes: BTreeSet<Vec<usize>> = BTreeSet::new();
        let mut dct = None;
        let mut all = vec![];
        for (i, chunk) in chunks.into_iter().enumerate() {
            shapes.insert(chunk.shape.clone());
            if shapes.len() > 1 {
                return Err(Error::Fit(format!("expected chunks of one shape, found {shapes:?}")));
            }
            let &[horizon, dim] = &chunk.shape[..] else {
                return Err(Error::Fit(format!("expected chunks of [steps, dimensions], found {chunk}")));
            };
            if horizon == 0 || dim == 0 || horizon > MAX_HORIZON || horizon.saturating_mul(dim) > MAX_VALUES {
                return Err(Error::Fit(format!("a chunk of [{horizon}, {dim}] is none, or too large")));
            }
            let dct = dct.get_or_insert_with(|| Dct::new(horizon));
            let named = |error| Error::Fit(format!("chunk {i}: {error}"));
            all.push(rounded(dct, chunk, dim, self.scale).map_err(named)?);
            seen(i + 1);
        }
        Ok(all)
    }
}

fn train(vocab_size: usize, alphabet: HashSet<char>, texts: &[String]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut bpe = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    bpe.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    bpe.with_decoder(Some(ByteLevel::default()));
    bpe.with_post_processor(Some(ByteLevel::default().trim_offsets(false)));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(MIN_FREQUENCY)
        .show_progress(false)
        .initial_alphabet(alphabet.into_iter().collect())
        .max_token_length(Some(MAX_TOKEN_CHARACTERS))
        .build();
    bpe.train(&mut TrainerWrapper::BpeTrainer(trainer), texts.iter())?;
    Ok(bpe)
}
