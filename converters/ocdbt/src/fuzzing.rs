//! Entry points of the fuzz targets and of the test that replays their corpus. Not part of the public surface.
//!
//! A checksum would stop a fuzzer at the door, so each piece is tried as it is and once more as a body put into a correct envelope.
//! Invariant: whatever decodes, encodes to something that decodes to the same.

use std::collections::BTreeMap;

use crate::Database;
use crate::cursor::Origin;
use crate::envelope::{self, Compression, Kind};
use crate::file::Store;
use crate::manifest::Manifest;
use crate::node::Node;
use crate::version::VersionNode;

const CAP: u64 = 16 << 20;

fn origin() -> Origin {
    Origin {
        file: "fuzz".into(),
        start: 0,
    }
}

fn both_ways(bytes: &[u8], kind: Kind, check: impl Fn(&[u8])) {
    check(bytes);
    if let Ok(piece) = envelope::seal(kind, bytes, Compression::None) {
        check(&piece);
    }
}

/// A manifest.
pub fn manifest(bytes: &[u8]) {
    both_ways(bytes, Kind::Manifest, |piece| {
        let Ok(manifest) = Manifest::decode(piece, &origin()) else {
            return;
        };
        let again = manifest.encode(Compression::None).ok();
        let again = again.and_then(|piece| Manifest::decode(&piece, &origin()).ok());
        assert_eq!(again.as_ref(), Some(&manifest));
    });
}

/// A B+tree node.
pub fn node(bytes: &[u8]) {
    both_ways(bytes, Kind::Node, |piece| {
        let Ok((node, _)) = Node::decode(piece, &origin(), b"", CAP) else {
            return;
        };
        let again = node.encode(Compression::None).ok();
        let again = again.and_then(|piece| Node::decode(&piece, &origin(), b"", CAP).ok());
        assert_eq!(again.map(|(node, _)| node).as_ref(), Some(&node));
    });
}

/// A version tree node.
pub fn version_node(bytes: &[u8]) {
    both_ways(bytes, Kind::VersionNode, |piece| {
        let Ok((node, _)) = VersionNode::decode(piece, &origin(), b"", CAP) else {
            return;
        };
        let again = node.encode(Compression::None).ok();
        let again = again.and_then(|piece| VersionNode::decode(&piece, &origin(), b"", CAP).ok());
        assert_eq!(again.map(|(node, _)| node).as_ref(), Some(&node));
    });
}

/// A whole database, as an archive of its files in memory.
///
/// The archive is a row of records: kind u8, path length u8, length u16 little-endian, path, bytes. Kind 0 appends the bytes to the file of that
/// path; 1, 2 and 3 append a manifest, B+tree node or version tree node with these bytes as its body.
pub fn database(archive: &[u8]) {
    let Some(newest) = opened(archive, None) else {
        return;
    };
    let Ok(versions) = newest.versions() else {
        return;
    };
    for version in versions.iter().take(4) {
        // An older version may be damaged where the newest is not: any answer will do.
        let _ = opened(archive, Some(version.generation));
    }
}

fn opened(archive: &[u8], generation: Option<u64>) -> Option<Database> {
    let database = Database::open_store(Store::Memory(unpack(archive)), generation).ok()?;
    for entry in database.entries().iter().take(100) {
        if let Ok(bytes) = database.read(&entry.value) {
            assert_eq!(bytes.len() as u64, entry.value.len());
        }
        assert_eq!(database.get(&entry.key), Some(&entry.value));
    }
    Some(database)
}

fn unpack(mut archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some((&[kind, path, low, high], rest)) = archive.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high]));
        let (path, rest) = rest.split_at_checked(path.into()).unwrap_or((rest, &[]));
        let (bytes, rest) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        archive = rest;
        let file = files
            .entry(String::from_utf8_lossy(path).into_owned())
            .or_default();
        let kind = match kind {
            1 => Kind::Manifest,
            2 => Kind::Node,
            3 => Kind::VersionNode,
            _ => {
                file.extend_from_slice(bytes);
                continue;
            }
        };
        file.extend(envelope::seal(kind, bytes, Compression::None).unwrap_or_default());
    }
    files
}
