//! MessagePack as openpi's client writes it and reads it, numpy's arrays in its dictionaries.
//!
//! Source: openpi 15a9616, packages/openpi-client, msgpack_numpy.py. Invariant: foreign bytes are borrowed, never copied,
//! and never followed deeper than [`MAX_DEPTH`].

use anyhow::{Context, Result, bail, ensure};

const MAX_DEPTH: usize = 16;

/// Bytes of a message that is being written.
#[derive(Debug, Default, Clone)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    /// So many keys with their values follow.
    pub(crate) fn map(&mut self, len: u8) -> &mut Self {
        debug_assert!(len < 16, "a small map");
        self.bytes.push(0x80 | len);
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes.push(0xD9);
        self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes.extend(text.bytes().take(usize::from(u8::MAX)));
        self
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.bytes.push(0xCF);
        self.bytes.extend(number.to_be_bytes());
        self
    }

    pub(crate) fn binary(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.push(0xC6);
        self.bytes.extend((bytes.len() as u32).to_be_bytes());
        self.bytes.extend(bytes);
        self
    }

    /// A numpy array. Whether the bytes are as many as the shape says is the writer's own matter.
    pub(crate) fn array(&mut self, dtype: &str, shape: &[u16], data: &[u8]) -> &mut Self {
        self.map(4).binary(b"__ndarray__").bytes.push(0xC3);
        self.binary(b"data").binary(data).binary(b"dtype").text(dtype).binary(b"shape");
        self.bytes.push(0x90 | shape.len() as u8);
        for n in shape {
            self.bytes.push(0xCD);
            self.bytes.extend(n.to_be_bytes());
        }
        self
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Nil,
    Bool(bool),
    Number(f64),
    Text(&'a str),
    Binary(&'a [u8]),
    List(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// A whole message.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut rest = bytes;
        let value = parse(&mut rest, 0)?;
        ensure!(rest.is_empty(), "{} bytes after the message", rest.len());
        Ok(value)
    }

    /// What stands under a key, be it text or bytes.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(members) = self else { return None };
        let is =
            |name: &Value| matches!(name, Value::Text(text) if *text == key) || *name == Value::Binary(key.as_bytes());
        members.iter().find(|(name, _)| is(name)).map(|(_, value)| value)
    }

    /// A number below several keys.
    pub(crate) fn number(&self, path: &[&str]) -> Option<f64> {
        match path.iter().try_fold(self, |value, key| value.get(key))? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The bytes of the array `actions`.
    pub(crate) fn actions(&self) -> Option<&'a [u8]> {
        match self.get("actions")?.get("data")? {
            Value::Binary(data) => Some(data),
            _ => None,
        }
    }
}

fn parse<'a>(rest: &mut &'a [u8], depth: usize) -> Result<Value<'a>> {
    ensure!(depth < MAX_DEPTH, "too deep");
    let first = take::<1>(rest)?[0];
    Ok(match first {
        0x00..=0x7F => Value::Number(f64::from(first)),
        0xE0..=0xFF => Value::Number(f64::from(first.cast_signed())),
        0x80..=0x8F => map(rest, usize::from(first & 0x0F), depth)?,
        0x90..=0x9F => list(rest, usize::from(first & 0x0F), depth)?,
        0xA0..=0xBF => Value::Text(text(rest, usize::from(first & 0x1F))?),
        0xC0 => Value::Nil,
        0xC2 | 0xC3 => Value::Bool(first == 0xC3),
        0xC4..=0xC6 => {
            let len = length(rest, first - 0xC4)?;
            Value::Binary(slice(rest, len)?)
        }
        0xCA => Value::Number(f64::from(f32::from_be_bytes(take(rest)?))),
        0xCB => Value::Number(f64::from_be_bytes(take(rest)?)),
        0xCC => Value::Number(f64::from(take::<1>(rest)?[0])),
        0xCD => Value::Number(f64::from(u16::from_be_bytes(take(rest)?))),
        0xCE => Value::Number(f64::from(u32::from_be_bytes(take(rest)?))),
        0xCF => Value::Number(u64::from_be_bytes(take(rest)?) as f64),
        0xD0 => Value::Number(f64::from(i8::from_be_bytes(take(rest)?))),
        0xD1 => Value::Number(f64::from(i16::from_be_bytes(take(rest)?))),
        0xD2 => Value::Number(f64::from(i32::from_be_bytes(take(rest)?))),
        0xD3 => Value::Number(i64::from_be_bytes(take(rest)?) as f64),
        0xD9..=0xDB => {
            let len = length(rest, first - 0xD9)?;
            Value::Text(text(rest, len)?)
        }
        0xDC | 0xDD => {
            let len = length(rest, first - 0xDB)?;
            list(rest, len, depth)?
        }
        0xDE | 0xDF => {
            let len = length(rest, first - 0xDD)?;
            map(rest, len, depth)?
        }
        other => bail!("a byte {other:02x} that openpi does not write"),
    })
}

/// In 1, 2 or 4 bytes.
fn length(rest: &mut &[u8], doublings: u8) -> Result<usize> {
    Ok(match doublings {
        0 => usize::from(take::<1>(rest)?[0]),
        1 => usize::from(u16::from_be_bytes(take(rest)?)),
        _ => u32::from_be_bytes(take(rest)?) as usize,
    })
}

fn slice<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len).context("the message ends too soon")?;
    *rest = after;
    Ok(taken)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    slice(rest, N)?.try_into().context("the message ends too soon")
}

fn text<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a str> {
    std::str::from_utf8(slice(rest, len)?).context("text that is no text")
}

fn list<'a>(rest: &mut &'a [u8], len: usize, depth: usize) -> Result<Value<'a>> {
    let mut items = vec![];
    for _ in 0..len {
        items.push(parse(rest, depth + 1)?);
    }
    Ok(Value::List(items))
}

fn map<'a>(rest: &mut &'a [u8], len: usize, depth: usize) -> Result<Value<'a>> {
    let mut members = vec![];
    for _ in 0..len {
        members.push((parse(rest, depth + 1)?, parse(rest, depth + 1)?));
    }
    Ok(Value::Map(members))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_openpis_server_is_read() {
        // {"actions": np.array([[1.0]], "<f4"), "server_timing": {"infer_ms": 2.5}}, packed by openpi's own packer.
        let bytes = b"\x82\xa7actions\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x04\x00\x00\x80?\xc4\x05dtype\xa3<f4\
                      \xc4\x05shape\x92\x01\x01\xadserver_timing\x81\xa8infer_ms\xcb@\x04\x00\x00\x00\x00\x00\x00";
        let value = Value::parse(bytes).unwrap();
        assert_eq!(value.actions(), Some(&b"\x00\x00\x80?"[..]));
        assert_eq!(value.number(&["server_timing", "infer_ms"]), Some(2.5));
        assert_eq!(value.number(&["server_timing", "prev_total_ms"]), None);
        for len in 0..bytes.len() {
            assert!(Value::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(Value::parse(&[0x91; 100]).unwrap_err().to_string().contains("too deep"));
        assert!(Value::parse(b"\xdf\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut writer = Writer::default();
        writer
            .map(3)
            .text("state")
            .array("<f8", &[2], &[1; 16])
            .text("prompt")
            .text("go")
            .text("pi0")
            .map(1)
            .text("seed")
            .number(9);
        let value = Value::parse(&writer.bytes).unwrap();
        assert_eq!(value.get("prompt"), Some(&Value::Text("go")));
        assert_eq!(value.number(&["pi0", "seed"]), Some(9.0));
        let state = value.get("state").unwrap();
        assert_eq!(state.get("data"), Some(&Value::Binary(&[1; 16])));
        assert_eq!(
            (state.get("dtype"), state.get("shape")),
            (Some(&Value::Text("<f8")), Some(&Value::List(vec![Value::Number(2.0)])))
        );
    }
}
