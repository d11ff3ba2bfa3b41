//! sentencepiece's `.model`: the protobuf message `ModelProto`, as far as a BPE vocabulary needs it.
//!
//! Source: sentencepiece_model.proto. Settings that a file does not name have the proto's default.
//! Invariant: the bytes are a stranger's. Every length is checked before it is used, and what is kept is no larger than
//! the file.

use super::{Error, MAX_PIECE_BYTES, MAX_PIECES, Piece, PieceKind};

/// `TrainerSpec.ModelType.BPE`.
const BPE: u64 = 2;

/// What the file says of how it was trained and how it wants its text.
struct Settings {
    model_type: u64,
    byte_fallback: bool,
    whitespace_as_suffix: bool,
    charsmap_bytes: usize,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

/// The pieces of a `.model`.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Piece>, Error> {
    let mut settings = Settings {
        model_type: 1,
        byte_fallback: false,
        whitespace_as_suffix: false,
        charsmap_bytes: 0,
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
        escape_whitespaces: true,
    };
    let mut pieces = vec![];
    let mut message = Message { whole: bytes.len(), rest: bytes };
    while let Some((number, value)) = message.field()? {
        match (number, value) {
            (1, Field::Bytes(inner)) => {
                if pieces.len() == MAX_PIECES {
                    return Err(message.broken(format!("more than {MAX_PIECES} pieces")));
                }
                pieces.push(piece(message.inside(inner), pieces.len())?);
            }
            (2, Field::Bytes(inner)) => trainer(message.inside(inner), &mut settings)?,
            (3, Field::Bytes(inner)) => normalizer(message.inside(inner), &mut settings)?,
            _ => {}
        }
    }
    if pieces.is_empty() {
        return Err(Error::Broken { what: "it has no pieces: expected a sentencepiece model".to_owned() });
    }
    refuse_strangers(&settings)?;
    Ok(pieces)
}

fn refuse_strangers(settings: &Settings) -> Result<(), Error> {
    let model = match settings.model_type {
        1 => "unigram".to_owned(),
        3 => "word".to_owned(),
        4 => "char".to_owned(),
        other => other.to_string(),
    };
    let flag = |value: bool| value.to_string();
    let wanted = [
        (settings.model_type == BPE, "model_type", "BPE", model),
        (settings.byte_fallback, "byte_fallback", "true", flag(settings.byte_fallback)),
        (settings.charsmap_bytes == 0, "normalizer", "identity", "one with a character map".to_owned()),
        (!settings.add_dummy_prefix, "add_dummy_prefix", "false", flag(settings.add_dummy_prefix)),
        (
            !settings.remove_extra_whitespaces,
            "remove_extra_whitespaces",
            "false",
            flag(settings.remove_extra_whitespaces),
        ),
        (settings.escape_whitespaces, "escape_whitespaces", "true", flag(settings.escape_whitespaces)),
        (!settings.whitespace_as_suffix, "treat_whitespace_as_suffix", "false", flag(settings.whitespace_as_suffix)),
    ];
    match wanted.into_iter().find(|(fits, ..)| !fits) {
        Some((_, what, expected, found)) => Err(Error::Foreign { what, expected: expected.to_owned(), found }),
        None => Ok(()),
    }
}

fn piece(mut message: Message<'_>, id: usize) -> Result<Piece, Error> {
    let (mut text, mut score, mut kind) = ("", 0.0, 1);
    while let Some((number, value)) = message.field()? {
        match (number, value) {
            (1, Field::Bytes(bytes)) => {
                if bytes.len() > MAX_PIECE_BYTES {
                    return Err(message.broken(format!("piece {id} has more than {MAX_PIECE_BYTES} bytes")));
                }
                text = std::str::from_utf8(bytes).map_err(|_| message.broken(format!("piece {id} is not UTF-8")))?;
            }
            (2, Field::Fixed32(bytes)) => score = f32::from_le_bytes(bytes),
            (3, Field::Varint(value)) => kind = value,
            _ => {}
        }
    }
    if text.is_empty() || !score.is_finite() {
        return Err(message.broken(format!("piece {id}: expected a text and a finite score, found {text:?}, {score}")));
    }
    let kind = match kind {
        1 => PieceKind::Normal,
        2 => PieceKind::Unknown,
        3 => PieceKind::Control,
        4 => PieceKind::User,
        6 => match byte(text) {
            Some(byte) => PieceKind::Byte(byte),
            None => return Err(message.broken(format!("piece {id}: expected a byte such as <0x0A>, found {text:?}"))),
        },
        other => {
            return Err(Error::Foreign {
                what: "type of a piece",
                expected: "normal, unknown, control, user-defined or byte".to_owned(),
                found: if other == 5 { "unused".to_owned() } else { other.to_string() },
            });
        }
    };
    Ok(Piece { text: text.to_owned(), score, kind })
}

/// 10 of `<0x0A>`.
pub(super) fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || digits.contains('+') {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

fn trainer(mut message: Message<'_>, settings: &mut Settings) -> Result<(), Error> {
    while let Some((number, value)) = message.field()? {
        match (number, value) {
            (3, Field::Varint(value)) => settings.model_type = value,
            (24, Field::Varint(value)) => settings.whitespace_as_suffix = value != 0,
            (35, Field::Varint(value)) => settings.byte_fallback = value != 0,
            _ => {}
        }
    }
    Ok(())
}

fn normalizer(mut message: Message<'_>, settings: &mut Settings) -> Result<(), Error> {
    while let Some((number, value)) = message.field()? {
        match (number, value) {
            (2, Field::Bytes(bytes)) => settings.charsmap_bytes = bytes.len(),
            (3, Field::Varint(value)) => settings.add_dummy_prefix = value != 0,
            (4, Field::Varint(value)) => settings.remove_extra_whitespaces = value != 0,
            (5, Field::Varint(value)) => settings.escape_whitespaces = value != 0,
            _ => {}
        }
    }
    Ok(())
}

/// A protobuf message that is read from its front.
struct Message<'a> {
    /// Bytes of the file up to the end of this message.
    whole: usize,
    rest: &'a [u8],
}

enum Field<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

impl<'a> Message<'a> {
    /// The message in a field that was just read.
    fn inside(&self, inner: &'a [u8]) -> Message<'a> {
        Message { whole: self.whole - self.rest.len(), rest: inner }
    }

    fn broken(&self, what: String) -> Error {
        Error::Broken { what: format!("byte {}: {what}; expected a sentencepiece model", self.whole - self.rest.len()) }
    }

    /// The next field, or `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Field<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Fixed64
            }
            2 => {
                let len = self.varint()?;
                Field::Bytes(self.take(len)?)
            }
            5 => {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(self.take(4)?);
                Field::Fixed32(bytes)
            }
            other => return Err(self.broken(format!("wire type {other}"))),
        };
        Ok(Some((tag >> 3, field)))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Error> {
        let split = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let Some((taken, rest)) = split else {
            return Err(self.broken(format!("a field of {len} bytes, but {} are left", self.rest.len())));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.rest.split_first() else {
                return Err(self.broken("it ends within a number".to_owned()));
            };
            self.rest = rest;
            value |= u64::from(byte & 127) << shift;
            if *byte < 128 {
                return Ok(value);
            }
        }
        Err(self.broken("a number of more than 64 bits".to_owned()))
    }
}
