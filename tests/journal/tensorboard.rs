//! A reader of TensorBoard's event files that shares nothing with what writes them but the checksum's polynomial.

use std::path::{Path, PathBuf};

/// An event, as far as ours have fields.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) wall_time: f64,
    pub(super) step: u64,
    pub(super) version: Option<String>,
    pub(super) restart: bool,
    pub(super) values: Vec<Value>,
}

/// A value of a summary.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Value {
    pub(super) tag: String,
    pub(super) scalar: Option<f32>,
    pub(super) plugin: String,
    pub(super) data_class: u64,
    pub(super) dims: Vec<u64>,
    pub(super) strings: Vec<Vec<u8>>,
}

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// The event files of a folder in the order in which TensorBoard reads them.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.to_str().unwrap().contains("tfevents")).collect();
    files.sort();
    files
}

/// All events of a file, each checksum held against its bytes.
pub(super) fn events(path: &Path) -> Vec<Event> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut events) = (&bytes[..], vec![]);
    while !rest.is_empty() {
        let (length, tail) = rest.split_at(8);
        let (sum, tail) = tail.split_at(4);
        assert_eq!(sum, checksum(length), "{}: the checksum of a length", path.display());
        let (event, tail) = tail.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let (sum, tail) = tail.split_at(4);
        assert_eq!(sum, checksum(event), "{}: the checksum of an event", path.display());
        events.push(self::event(event));
        rest = tail;
    }
    events
}

/// CRC-32C by its definition, bit by bit, and TensorFlow's mask.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

fn number(rest: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, tail) = rest.split_first().expect("a number ends");
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

fn fields(mut rest: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = vec![];
    while !rest.is_empty() {
        let key = number(&mut rest);
        let mut take = |length: usize| {
            let (bytes, tail) = rest.split_at(length);
            rest = tail;
            bytes
        };
        let field = match key & 7 {
            0 => Field::Number(number(&mut rest)),
            1 => Field::Double(f64::from_le_bytes(take(8).try_into().unwrap())),
            5 => Field::Float(f32::from_le_bytes(take(4).try_into().unwrap())),
            2 => {
                let length = number(&mut rest) as usize;
                let (bytes, tail) = rest.split_at(length);
                rest = tail;
                Field::Bytes(bytes)
            }
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn event(bytes: &[u8]) -> Event {
    let mut event = Event::default();
    for field in fields(bytes) {
        match field {
            (1, Field::Double(time)) => event.wall_time = time,
            (2, Field::Number(step)) => event.step = step,
            (3, Field::Bytes(version)) => event.version = Some(text(version)),
            (5, Field::Bytes(summary)) => {
                for field in fields(summary) {
                    let (1, Field::Bytes(inner)) = field else { panic!("a field of Summary: {}", field.0) };
                    event.values.push(value(inner));
                }
            }
            (7, Field::Bytes(log)) => event.restart = matches!(fields(log)[..], [(1, Field::Number(1))]),
            (other, _) => panic!("a field of Event: {other}"),
        }
    }
    event
}

fn value(bytes: &[u8]) -> Value {
    let mut value = Value::default();
    for field in fields(bytes) {
        match field {
            (1, Field::Bytes(tag)) => value.tag = text(tag),
            (2, Field::Float(scalar)) => value.scalar = Some(scalar),
            (8, Field::Bytes(inner)) => tensor(inner, &mut value),
            (9, Field::Bytes(inner)) => {
                for field in fields(inner) {
                    match field {
                        (1, Field::Bytes(data)) => {
                            let [(1, Field::Bytes(plugin))] = fields(data)[..] else { panic!("PluginData") };
                            value.plugin = text(plugin);
                        }
                        (4, Field::Number(class)) => value.data_class = class,
                        (other, _) => panic!("a field of SummaryMetadata: {other}"),
                    }
                }
            }
            (other, _) => panic!("a field of Value: {other}"),
        }
    }
    value
}

fn tensor(bytes: &[u8], value: &mut Value) {
    for field in fields(bytes) {
        match field {
            (1, Field::Number(dtype)) => assert_eq!(dtype, 7, "DT_STRING"),
            (2, Field::Bytes(shape)) => {
                for field in fields(shape) {
                    let (2, Field::Bytes(dim)) = field else { panic!("a field of TensorShape: {}", field.0) };
                    let [(1, Field::Number(size))] = fields(dim)[..] else { panic!("Dim") };
                    value.dims.push(size);
                }
            }
            (8, Field::Bytes(string)) => value.strings.push(string.to_vec()),
            (other, _) => panic!("a field of Tensor: {other}"),
        }
    }
}
