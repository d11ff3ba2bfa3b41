//! TensorBoard's event files: a log that other programs draw.
//!
//! Source: tensorflow/core/lib/io/record_writer.h (framing), core/util/event.proto and core/framework/{summary, tensor,
//! tensor_shape, types}.proto (fields); tensorboard/plugins/{image, text} (how pictures and texts are kept in tensors).
//!
//! ```text
//! record = length: u64, crc(length): u32, event, crc(event): u32        little-endian
//! crc(x) = rotate_right(crc32c(x), 15) + 0xa282ead8
//! ```
//!
//! Invariant: a record is written with one call; a file begins with its version and with a start, which tells TensorBoard
//! from which step on older files are void. A run that goes on begins a new file.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{JournalError, io, since_epoch};

/// How TensorBoard finds them; seconds since 1970, a place and a number follow.
const NAME: &str = "events.out.tfevents.";
/// What stands for the place: the same everywhere.
const PLACE: &str = "pi0";
const VERSION: &[u8] = b"brain.Event:2";
const MASK: u32 = 0xa282_ead8;

/// Fields of the messages, by number.
mod field {
    pub(super) const EVENT_WALL_TIME: u32 = 1;
    pub(super) const EVENT_STEP: u32 = 2;
    pub(super) const EVENT_FILE_VERSION: u32 = 3;
    pub(super) const EVENT_SUMMARY: u32 = 5;
    pub(super) const EVENT_SESSION_LOG: u32 = 7;
    pub(super) const SESSION_LOG_STATUS: u32 = 1;
    pub(super) const SUMMARY_VALUE: u32 = 1;
    pub(super) const VALUE_TAG: u32 = 1;
    pub(super) const VALUE_SIMPLE: u32 = 2;
    pub(super) const VALUE_TENSOR: u32 = 8;
    pub(super) const VALUE_METADATA: u32 = 9;
    pub(super) const METADATA_PLUGIN_DATA: u32 = 1;
    pub(super) const METADATA_DATA_CLASS: u32 = 4;
    pub(super) const PLUGIN_DATA_NAME: u32 = 1;
    pub(super) const TENSOR_DTYPE: u32 = 1;
    pub(super) const TENSOR_SHAPE: u32 = 2;
    pub(super) const TENSOR_STRING: u32 = 8;
    pub(super) const SHAPE_DIM: u32 = 2;
    pub(super) const DIM_SIZE: u32 = 1;
}
const START: u64 = 1;
const DT_STRING: u64 = 7;
const DATA_CLASS_TENSOR: u64 = 2;
const DATA_CLASS_BLOB_SEQUENCE: u64 = 3;

/// An event file, open for more.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file in `dir`, which sorts behind those that are there. `resume_at`: what older files say of later steps is
    /// void.
    pub(super) fn begin(dir: &Path, resume_at: Option<u64>, now: SystemTime) -> Result<Self, JournalError> {
        let (mut number, mut newest) = (0_u64, since_epoch(now).as_secs());
        for entry in fs::read_dir(dir).map_err(io(dir, "read"))? {
            let name = entry.map_err(io(dir, "read"))?.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(NAME)) else { continue };
            number += 1;
            newest = rest.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0).max(newest);
        }
        let (path, file) = loop {
            let path = dir.join(format!("{NAME}{newest:010}.{PLACE}.{number:04}"));
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                other => break (path.clone(), other.map_err(io(&path, "made"))?),
            }
        };
        let mut events = Events { path, file };
        events.write(event(0, now).bytes(field::EVENT_FILE_VERSION, VERSION))?;
        // TensorBoard takes a folder's first start for the run's; each later one voids what it has read from that step on.
        let start = Message::new().varint(field::SESSION_LOG_STATUS, START);
        let step = resume_at.map_or(0, |step| step.saturating_add(1));
        events.write(event(step, now).message(field::EVENT_SESSION_LOG, start))?;
        Ok(events)
    }

    /// Numbers of a step, each under its tag.
    pub(super) fn scalars(&mut self, step: u64, values: &[(&str, f32)], now: SystemTime) -> Result<(), JournalError> {
        let value = |(tag, value): &(&str, f32)| {
            Message::new().bytes(field::VALUE_TAG, tag.as_bytes()).float(field::VALUE_SIMPLE, *value)
        };
        self.summary(step, values.iter().map(value), now)
    }

    /// A text, in Markdown.
    pub(super) fn text(&mut self, step: u64, tag: &str, text: &str, now: SystemTime) -> Result<(), JournalError> {
        let value = strings_of(tag, "text", DATA_CLASS_TENSOR, Message::new(), &[text.as_bytes()]);
        self.summary(step, [value], now)
    }

    /// Pictures of one size under one tag, each a PNG.
    pub(super) fn images(
        &mut self,
        step: u64,
        tag: &str,
        [height, width]: [usize; 2],
        pngs: &[&[u8]],
        now: SystemTime,
    ) -> Result<(), JournalError> {
        let sides = [width, height].map(|side| side.to_string());
        let strings: Vec<&[u8]> = sides.iter().map(|side| side.as_bytes()).chain(pngs.iter().copied()).collect();
        let dim = Message::new().varint(field::DIM_SIZE, strings.len() as u64);
        let vector = Message::new().message(field::SHAPE_DIM, dim);
        self.summary(step, [strings_of(tag, "images", DATA_CLASS_BLOB_SEQUENCE, vector, &strings)], now)
    }

    fn summary(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = Message>,
        now: SystemTime,
    ) -> Result<(), JournalError> {
        let summary =
            values.into_iter().fold(Message::new(), |summary, value| summary.message(field::SUMMARY_VALUE, value));
        self.write(event(step, now).message(field::EVENT_SUMMARY, summary))
    }

    fn write(&mut self, event: Message) -> Result<(), JournalError> {
        self.file.write_all(&record(&event.0)).map_err(io(&self.path, "written"))
    }
}

fn event(step: u64, now: SystemTime) -> Message {
    Message::new().double(field::EVENT_WALL_TIME, since_epoch(now).as_secs_f64()).varint(field::EVENT_STEP, step)
}

/// A value that a plugin draws: strings, of a shape.
fn strings_of(tag: &str, plugin: &str, data_class: u64, shape: Message, strings: &[&[u8]]) -> Message {
    let tensor = Message::new().varint(field::TENSOR_DTYPE, DT_STRING).message(field::TENSOR_SHAPE, shape);
    let tensor = strings.iter().fold(tensor, |tensor, string| tensor.bytes(field::TENSOR_STRING, string));
    let plugin = Message::new().bytes(field::PLUGIN_DATA_NAME, plugin.as_bytes());
    let metadata =
        Message::new().message(field::METADATA_PLUGIN_DATA, plugin).varint(field::METADATA_DATA_CLASS, data_class);
    Message::new()
        .bytes(field::VALUE_TAG, tag.as_bytes())
        .message(field::VALUE_TENSOR, tensor)
        .message(field::VALUE_METADATA, metadata)
}

/// An event in its frame.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length, &masked(&length).to_le_bytes()[..], event, &masked(event).to_le_bytes()].concat()
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}

/// A protobuf message in the making.
struct Message(Vec<u8>);

impl Message {
    fn new() -> Self {
        Message(vec![])
    }

    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(mut self, field: u32, wire: u64) -> Self {
        self.raw(u64::from(field) << 3 | wire);
        self
    }

    fn varint(self, field: u32, value: u64) -> Self {
        let mut message = self.key(field, 0);
        message.raw(value);
        message
    }

    fn double(self, field: u32, value: f64) -> Self {
        let mut message = self.key(field, 1);
        message.0.extend(value.to_le_bytes());
        message
    }

    fn bytes(self, field: u32, bytes: &[u8]) -> Self {
        let mut message = self.key(field, 2);
        message.raw(bytes.len() as u64);
        message.0.extend(bytes);
        message
    }

    fn message(self, field: u32, inner: Message) -> Self {
        self.bytes(field, &inner.0)
    }

    fn float(self, field: u32, value: f32) -> Self {
        let mut message = self.key(field, 5);
        message.0.extend(value.to_le_bytes());
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masked_checksum_is_that_of_tensorflow() {
        // tensorflow/core/lib/hash/crc32c_test.cc: 32 zeros have 0x8a9136aa; the mask turns by 15 and adds.
        assert_eq!(masked(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(MASK));
        // The length of every file's first record, 24 bytes, as TensorFlow's own files have it.
        assert_eq!(record(&[0; 24])[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn messages_are_those_of_protobuf() {
        // protobuf's own guide: field 1, 150; field 2, "testing".
        assert_eq!(Message::new().varint(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::new().bytes(2, b"testing").0, b"\x12\x07testing");
        let inner = Message::new().varint(1, 150);
        assert_eq!(Message::new().message(3, inner).0, [0x1a, 0x03, 0x08, 0x96, 0x01]);
        assert_eq!(Message::new().float(2, 1.0).0, [0x15, 0, 0, 0x80, 0x3f]);
        assert_eq!(Message::new().double(1, 1.0).0, [0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
    }
}
