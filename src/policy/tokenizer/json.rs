//! Hugging Face's `tokenizer.json` of the same vocabulary, read and written.
//!
//! Source: the format of the crate `tokenizers`; what its converter makes of Gemma. Its merges say nothing that the order
//! of the pieces does not: sentencepiece numbers pieces in the order in which it made them, so a score is `-id`.
//! Three things are written there otherwise than sentencepiece means them, and are read as sentencepiece means them:
//! the byte `<0x09>` bears the name "\t"; `<bos>`, `<eos>`, `<pad>`, `<unk>` are found in a text (they are plain text);
//! `[toxicity=0]`, `<unused99>` and runs of tabs are not added tokens (they are taken whole).

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, FIRST, MAX_PIECE_BYTES, MAX_PIECES, PALIGEMMA_PIECES, Piece, PieceKind, Tokenizer, model};

/// As much of a file as tells what it is.
#[derive(Deserialize)]
struct Outline {
    model: OutlineModel,
    normalizer: Option<Value>,
}

#[derive(Deserialize)]
struct OutlineModel {
    r#type: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// Taken whole by sentencepiece although the file may not list it.
fn is_unlisted(text: &str) -> bool {
    ["[toxicity=0]", "<unused99>"].contains(&text) || (text.len() > 1 && text.bytes().all(|byte| byte == b'\t'))
}

/// The pieces of a `tokenizer.json`.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Piece>, Error> {
    let broken = |error: serde_json::Error| Error::Broken { what: format!("not a tokenizer.json: {error}") };
    let outline: Outline = serde_json::from_slice(bytes).map_err(broken)?;
    refuse_strangers(&outline)?;
    let file: File = serde_json::from_slice(bytes).map_err(broken)?;
    let added: HashMap<&str, u32> = file.added_tokens.iter().map(|token| (token.content.as_str(), token.id)).collect();
    let mut texts: Vec<Option<&str>> = vec![];
    let named = file.model.vocab.iter().map(|(text, id)| (text.as_str(), *id));
    for (text, id) in named.chain(added.iter().map(|(text, id)| (*text, *id))) {
        let at = id as usize;
        if at >= MAX_PIECES || text.is_empty() || text.len() > MAX_PIECE_BYTES {
            return Err(Error::Broken { what: format!("piece {id}: an id or a text too large, or an empty text") });
        }
        if texts.len() <= at {
            texts.resize(at + 1, None);
        }
        match texts[at] {
            Some(other) if other != text => {
                return Err(Error::Broken { what: format!("piece {id}: it is {other:?} and {text:?}") });
            }
            _ => texts[at] = Some(text),
        }
    }
    // Behind PaliGemma's own pieces Hugging Face puts `<image>`, which no prompt has.
    if texts.len() > PALIGEMMA_PIECES && texts.get(PALIGEMMA_PIECES) == Some(&Some("<image>")) {
        texts.truncate(PALIGEMMA_PIECES);
    }
    let first_byte = file.model.vocab.get("<0x00>").copied();
    let of = |(id, text): (usize, Option<&str>)| {
        let Some(text) = text else { return Err(Error::Broken { what: format!("piece {id}: it has no text") }) };
        let kind = match FIRST.get(id) {
            Some((name, kind)) if *name == text => *kind,
            _ if text == "\t" && first_byte.is_some_and(|first| first as usize + 9 == id) => PieceKind::Byte(9),
            _ if added.contains_key(text) || is_unlisted(text) || is_own(text) => PieceKind::User,
            _ => model::byte(text).map_or(PieceKind::Normal, PieceKind::Byte),
        };
        Ok(Piece { text: text.to_owned(), score: -(id as f32), kind })
    };
    texts.into_iter().enumerate().map(of).collect()
}

/// `<loc0000>` or `<seg000>`.
fn is_own(text: &str) -> bool {
    let digits = |start: &str, len: usize| {
        let number = text.strip_prefix(start).and_then(|rest| rest.strip_suffix('>'));
        number.is_some_and(|number| number.len() == len && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    digits("<loc", 4) || digits("<seg", 3)
}

fn refuse_strangers(outline: &Outline) -> Result<(), Error> {
    let foreign =
        |what, expected: &str, found: String| Err(Error::Foreign { what, expected: expected.to_owned(), found });
    match outline.model.r#type.as_deref() {
        Some("BPE") | None => {}
        Some(other) => return foreign("model.type", "BPE", other.to_owned()),
    }
    if !outline.model.byte_fallback {
        return foreign("model.byte_fallback", "true", "false".to_owned());
    }
    let expected = serde_json::json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    match &outline.normalizer {
        Some(normalizer) if *normalizer == expected => Ok(()),
        other => foreign("normalizer", "spaces replaced by U+2581", serde_json::json!(other).to_string()),
    }
}

#[derive(Serialize)]
struct Written<'a> {
    version: &'a str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<WrittenToken<'a>>,
    normalizer: Value,
    pre_tokenizer: Option<()>,
    post_processor: Option<()>,
    decoder: Value,
    model: WrittenModel<'a>,
}

#[derive(Serialize)]
struct WrittenToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct WrittenModel<'a> {
    r#type: &'a str,
    dropout: Option<()>,
    unk_token: &'a str,
    continuing_subword_prefix: Option<()>,
    end_of_word_suffix: Option<()>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, u32>,
    merges: Vec<(&'a str, &'a str)>,
}

/// A `tokenizer.json` of the same pieces: every split of a normal piece into two normal ones is a merge, in the order of
/// their scores.
pub(super) fn write(tokenizer: &Tokenizer) -> String {
    let ids = 0..tokenizer.len() as u32;
    let pieces = || ids.clone().filter_map(|id| tokenizer.piece(id).map(|(text, kind)| (id, text, kind)));
    let score = |id: u32| tokenizer.scores.get(id as usize).copied().unwrap_or_default();
    let normal = |text: &str| {
        let id = tokenizer.lexicon.find(text);
        id.is_some_and(|id| tokenizer.kinds.get(id as usize) == Some(&PieceKind::Normal))
    };
    let mut merges: Vec<(u32, (&str, &str))> = vec![];
    for (id, text, _) in pieces().filter(|(.., kind)| *kind == PieceKind::Normal) {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if normal(left) && normal(right) {
                merges.push((id, (left, right)));
            }
        }
    }
    merges.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)));
    let added = |(id, content, _)| WrittenToken {
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: true,
        special: false,
    };
    let space = serde_json::json!({"String": "\u{2581}"});
    let file = Written {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: pieces().filter(|(.., kind)| *kind == PieceKind::User).map(added).collect(),
        normalizer: serde_json::json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}),
        pre_tokenizer: None,
        post_processor: None,
        decoder: serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": space, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}),
        model: WrittenModel {
            r#type: "BPE",
            dropout: None,
            unk_token: "<unk>",
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: pieces().map(|(id, text, _)| (text, id)).collect(),
            merges: merges.into_iter().map(|(_, merge)| merge).collect(),
        },
    };
    serde_json::to_string(&file).unwrap_or_default()
}
