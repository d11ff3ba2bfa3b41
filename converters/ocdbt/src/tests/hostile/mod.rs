//! Databases made to hurt: each must end in an error that names the file and what is wrong there.

mod bytes;
mod files;
mod manifest;
mod tree;

use super::{Raw, location};
use crate::envelope::{self, Compression, Kind};
use crate::node::{LeafEntry, Node, Stored};

/// A leaf of inline values, relative keys as given.
fn leaf(keys: &[&[u8]]) -> Vec<u8> {
    let entry = |key: &&[u8]| LeafEntry { key: key.to_vec(), value: Stored::Inline(b"v".to_vec()) };
    Node::Leaf(keys.iter().map(entry).collect()).encode(Compression::None).unwrap()
}

/// The tail of a leaf body after the number of entries: one entry "k" with inline value "v".
fn one_entry(body: Raw) -> Raw {
    body.varints(&[1]).varints(&[1]).bytes(b"k").varints(&[1]).bytes(&[0]).bytes(b"v")
}

fn indirect(path: &str, offset: u64, length: u64) -> Vec<u8> {
    let value = Stored::Indirect(location(path, offset, length));
    Node::Leaf(vec![LeafEntry { key: b"k".to_vec(), value }]).encode(Compression::None).unwrap()
}

fn sealed_config(kind: u8, arity: u8, method: u64) -> Raw {
    Raw::default().bytes(&[7; 16]).bytes(&[kind]).varints(&[1024, 0]).bytes(&[arity]).varints(&[method])
}

/// The envelope of `body` with its version and compression replaced.
fn envelope_with(version: u8, compression: u8, body: &[u8]) -> Vec<u8> {
    let mut piece = envelope::seal(Kind::Manifest, body, Compression::None).unwrap();
    (piece[12], piece[13]) = (version, compression);
    let end = piece.len() - 4;
    let crc = crc32c::crc32c(&piece[..end]);
    piece[end..].copy_from_slice(&crc.to_le_bytes());
    piece
}
