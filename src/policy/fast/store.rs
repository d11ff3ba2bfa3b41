//! A codec's files: `tokenizer.json`, `processor_config.json`, `tokenizer_config.json`, as the published processor has them.
//!
//! Invariant: the files are a stranger's: sizes are bounded before they are read, and what is not a byte-level BPE is
//! refused before the crate `tokenizers` sees it. What is written here, Python's processor reads.

use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Codec, Error};

/// The published vocabulary has 200 kB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// The published vocabulary has 2 048.
const MAX_TOKENS: usize = 1 << 18;

const TOKENIZER: &str = "tokenizer.json";
const PROCESSOR: &str = "processor_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

#[derive(Serialize, Deserialize)]
struct Processor {
    #[serde(default)]
    action_dim: Option<usize>,
    #[serde(default = "auto_map")]
    auto_map: Value,
    min_token: i64,
    #[serde(default)]
    processor_class: String,
    scale: f64,
    #[serde(default)]
    time_horizon: Option<usize>,
    #[serde(default)]
    vocab_size: usize,
}

fn auto_map() -> Value {
    serde_json::json!({"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"})
}

impl Codec {
    /// Reads a folder.
    ///
    /// # Errors
    /// A file that is missing, broken or of another kind.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(PROCESSOR);
        let broken = |what: String| Error::Broken { path: folder.join(PROCESSOR), what };
        let processor: Processor = serde_json::from_slice(&read(&path)?)
            .map_err(|error| broken(format!("not a processor's settings: {error}")))?;
        if !(processor.scale.is_finite() && processor.scale > 0.0) {
            return Err(broken(format!("scale: expected a positive number, found {}", processor.scale)));
        }
        if i32::try_from(processor.min_token).is_err() {
            return Err(broken(format!("min_token: expected a number such as -354, found {}", processor.min_token)));
        }
        let path = folder.join(TOKENIZER);
        let bytes = read(&path)?;
        let bpe = bpe(&bytes).map_err(|what| Error::Broken { path, what })?;
        Ok(Self::of(bpe, processor.scale, processor.min_token, processor.vocab_size)
            .fixed(processor.time_horizon, processor.action_dim))
    }

    /// Writes a folder that [`Codec::open`] and Python's processor read. The folder is made; files in it are replaced.
    ///
    /// # Errors
    /// What cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |why| Error::Io { path, why }
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let processor = Processor {
            action_dim: self.action_dim,
            auto_map: auto_map(),
            min_token: self.min_token,
            processor_class: "UniversalActionProcessor".to_owned(),
            scale: self.scale,
            time_horizon: self.time_horizon,
            vocab_size: self.vocab_size,
        };
        let mut processor = serde_json::to_value(processor).unwrap_or_default();
        if self.scale.fract() == 0.0 && self.scale < 1e9 {
            processor["scale"] = Value::from(self.scale as i64);
        }
        let config = serde_json::json!({
            "added_tokens_decoder": {},
            "clean_up_tokenization_spaces": false,
            "extra_special_tokens": {},
            "model_max_length": 1_000_000_000_u64,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        let text = self.bpe.to_string(true).map_err(|error| Error::Fit(error.to_string()))?;
        let files =
            [(TOKENIZER, text), (PROCESSOR, format!("{processor:#}\n")), (TOKENIZER_CONFIG, format!("{config:#}\n"))];
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(io(&path))?;
        }
        Ok(())
    }

    /// Of its parts.
    pub(super) fn of(bpe: tokenizers::Tokenizer, scale: f64, min_token: i64, vocab_size: usize) -> Self {
        let pieces: Vec<Vec<u8>> = (0..bpe.get_vocab_size(true) as u32)
            .map(|id| bpe.id_to_token(id).map(|token| bytes_of(&token)).unwrap_or_default())
            .collect();
        let mut spelt = [false; 256];
        for (byte, spelt) in (0..=u8::MAX).zip(&mut spelt) {
            *spelt = bpe.token_to_id(&char_of(byte).to_string()).is_some();
        }
        Self { scale, min_token, vocab_size, time_horizon: None, action_dim: None, bpe, pieces, spelt }
    }

    /// With chunks of one shape only.
    fn fixed(mut self, time_horizon: Option<usize>, action_dim: Option<usize>) -> Self {
        (self.time_horizon, self.action_dim) = (time_horizon, action_dim);
        self
    }

    /// The text of a `tokenizer.json`: vocabulary and merges.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, Error> {
        self.bpe.to_string(false).map_err(|error| Error::Fit(error.to_string()))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let io = |why| Error::Io { path: path.to_owned(), why };
    let file = std::fs::File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(io(std::io::Error::other("it is not a file")));
    }
    let mut bytes = vec![];
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let what = format!("expected at most {MAX_FILE_BYTES} bytes; is this a FAST tokenizer?");
        return Err(Error::Broken { path: path.to_owned(), what });
    }
    Ok(bytes)
}

#[derive(Deserialize)]
struct Outline {
    model: Model,
    pre_tokenizer: Option<Typed>,
    decoder: Option<Typed>,
    normalizer: Option<Value>,
}

#[derive(Deserialize)]
struct Model {
    r#type: Option<String>,
    vocab: std::collections::HashMap<String, u32>,
}

#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

/// A byte-level BPE whose ids are 0, 1, 2, ….
fn bpe(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let outline: Outline =
        serde_json::from_slice(bytes).map_err(|error| format!("not a tokenizer.json of a byte-level BPE: {error}"))?;
    if outline.model.r#type.as_deref().unwrap_or("BPE") != "BPE" {
        return Err(format!("model.type: expected BPE, found {}", outline.model.r#type.unwrap_or_default()));
    }
    for (name, found) in [("pre_tokenizer", outline.pre_tokenizer), ("decoder", outline.decoder)] {
        let found = found.map_or_else(|| "none".to_owned(), |typed| typed.r#type);
        if found != "ByteLevel" {
            return Err(format!("{name}: expected ByteLevel, found {found}; is this a FAST tokenizer?"));
        }
    }
    if let Some(normalizer) = outline.normalizer {
        return Err(format!("normalizer: expected none, found {normalizer}"));
    }
    let count = outline.model.vocab.len();
    if count == 0 || count > MAX_TOKENS {
        return Err(format!("model.vocab: expected 1 to {MAX_TOKENS} tokens, found {count}"));
    }
    if let Some(largest) = outline.model.vocab.values().max().filter(|largest| **largest as usize >= count) {
        return Err(format!("model.vocab: expected the ids 0 to {}, found {largest}", count - 1));
    }
    tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())
}

/// The character by which a byte-level BPE writes a byte: itself where it can be seen, or else one behind U+0100.
pub(super) fn char_of(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        // In the order of the bytes that cannot be seen: 0 to 32, then 127 to 160, then 173.
        0..=32 => char::from_u32(0x100 + u32::from(byte)).unwrap_or_default(),
        127..=160 => char::from_u32(0x121 + u32::from(byte - 127)).unwrap_or_default(),
        173 => '\u{143}',
    }
}

/// The byte that such a character writes.
fn byte_of(character: char) -> Option<u8> {
    let byte = match u32::from(character) {
        point @ 0x100..=0x120 => (point - 0x100) as u8,
        point @ 0x121..=0x142 => (point - 0x121) as u8 + 127,
        0x143 => 173,
        point => u8::try_from(point).ok()?,
    };
    (char_of(byte) == character).then_some(byte)
}

/// The bytes of a token. One that holds a character that writes no byte stands for its own UTF-8, as the decoder of
/// `tokenizers` has it: such are the characters of the alphabet with which FAST is fitted.
fn bytes_of(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}
