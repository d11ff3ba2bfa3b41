//! A B+tree node: a leaf with values, or an interior node with its children.
//!
//! Layout: height u8, data file table, number of entries varint32, then columns: shared key prefix, key suffix length, (interior) bytes
//! of the key that the whole subtree shares, suffixes; a leaf adds value length, value kind u8, references of the indirect ones, inline
//! bytes; an interior node adds references and three columns of statistics. Source: `btree.cc` in
//! <https://github.com/google/tensorstore/tree/bc4fbc11f/tensorstore/kvstore/ocdbt/format>.
//!
//! Invariant: keys of a decoded node strictly increase, are relative to the prefix its parent gives it, and are at most 65535 bytes.

use crate::cursor::{Cursor, Origin};
use crate::envelope::{self, Compression, Kind};
use crate::error::{Problem, Result, escape};
use crate::limits::{MAX_INLINE_VALUE_BYTES, MAX_KEY_BYTES, MAX_NODE_ENTRIES, MAX_NODE_KEY_BYTES};
use crate::table::{Location, Table, check_range, shared};
use crate::varint;

/// What a subtree holds, as its writer counted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Keys.
    pub keys: u64,
    /// Bytes of B+tree nodes, as stored.
    pub tree_bytes: u64,
    /// Bytes of values stored outside the tree.
    pub indirect_value_bytes: u64,
}

impl Statistics {
    pub(crate) fn decode_all(cursor: &mut Cursor<'_>, n: usize) -> Result<Vec<Self>> {
        let keys = cursor.column64(n, "number of keys")?;
        let tree_bytes = cursor.column64(n, "number of tree bytes")?;
        let indirect = cursor.column64(n, "number of indirect value bytes")?;
        Ok(keys
            .into_iter()
            .zip(tree_bytes)
            .zip(indirect)
            .map(|((keys, tree_bytes), indirect_value_bytes)| Self { keys, tree_bytes, indirect_value_bytes })
            .collect())
    }

    pub(crate) fn encode_all(all: impl Iterator<Item = Self> + Clone, out: &mut Vec<u8>) {
        varint::encode_all(all.clone().map(|s| s.keys), out);
        varint::encode_all(all.clone().map(|s| s.tree_bytes), out);
        varint::encode_all(all.map(|s| s.indirect_value_bytes), out);
    }

    pub(crate) fn add(self, other: Self) -> Self {
        Self {
            keys: self.keys.saturating_add(other.keys),
            tree_bytes: self.tree_bytes.saturating_add(other.tree_bytes),
            indirect_value_bytes: self.indirect_value_bytes.saturating_add(other.indirect_value_bytes),
        }
    }
}

/// A leaf's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    Inline(Vec<u8>),
    Indirect(Location),
}

/// A leaf's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeafEntry {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Stored,
}

/// An interior node's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Child {
    /// Not above the first key of the subtree.
    pub(crate) key: Vec<u8>,
    /// Bytes of `key` that every key of the subtree begins with and that its nodes leave out.
    pub(crate) shared: u16,
    pub(crate) location: Location,
    pub(crate) statistics: Statistics,
}

/// A B+tree node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Leaf(Vec<LeafEntry>),
    Interior { height: u8, children: Vec<Child> },
}

impl Node {
    pub(crate) fn height(&self) -> u8 {
        match self {
            Node::Leaf(_) => 0,
            Node::Interior { height, .. } => *height,
        }
    }

    /// First and last key, relative.
    pub(crate) fn bounds(&self) -> (&[u8], &[u8]) {
        let (first, last) = match self {
            Node::Leaf(entries) => (entries.first().map(|e| &e.key), entries.last().map(|e| &e.key)),
            Node::Interior { children, .. } => (children.first().map(|c| &c.key), children.last().map(|c| &c.key)),
        };
        (first.map_or(&[], Vec::as_slice), last.map_or(&[], Vec::as_slice))
    }

    /// Reads a node from all its bytes, envelope included; also the bytes of its decompressed body, which must not pass `cap`.
    pub(crate) fn decode(piece: &[u8], origin: &Origin, transitive: &[u8], cap: u64) -> Result<(Self, u64)> {
        let body = envelope::open(piece, origin, Kind::Node, cap)?;
        let mut cursor = body.cursor();
        let height = cursor.u8("height")?;
        let table = Table::decode(&mut cursor, transitive)?;
        let n = u64::from(cursor.varint32("number of entries")?);
        if n == 0 || n > MAX_NODE_ENTRIES {
            return Err(cursor.unexpected("number of entries", "1 to 1048576", n));
        }
        // Every entry has at least a suffix length, a value length or an offset, and a value kind or a length.
        let n = cursor.expect_room(n, 3, "entries")?;
        let mut prefixes = vec![0];
        prefixes.extend(cursor.column16(n.saturating_sub(1), "shared key prefix")?);
        let suffixes = cursor.column16(n, "key suffix length")?;
        let commons = if height > 0 { cursor.column16(n, "subtree prefix length")? } else { Vec::new() };
        let keys = decode_keys(&mut cursor, &prefixes, &suffixes)?;
        let node = if height > 0 {
            let children = decode_children(&mut cursor, &table, keys, commons)?;
            Node::Interior { height, children }
        } else {
            Node::Leaf(decode_values(&mut cursor, &table, keys)?)
        };
        cursor.finish()?;
        Ok((node, body.len()))
    }

    /// Writes the node, envelope included.
    pub(crate) fn encode(&self, compression: Compression) -> std::io::Result<Vec<u8>> {
        envelope::seal(Kind::Node, &self.encode_body(), compression)
    }

    pub(crate) fn encode_body(&self) -> Vec<u8> {
        let mut out = vec![self.height()];
        match self {
            Node::Leaf(entries) => {
                let indirect = entries.iter().filter_map(|entry| match &entry.value {
                    Stored::Inline(_) => None,
                    Stored::Indirect(location) => Some(location),
                });
                let table = Table::of(indirect.clone().map(Some));
                table.encode(&mut out);
                varint::encode(entries.len() as u64, &mut out);
                encode_keys(entries.iter().map(|e| e.key.as_slice()), None, &mut out);
                varint::encode_all(entries.iter().map(|e| e.value.len()), &mut out);
                out.extend(entries.iter().map(|e| u8::from(matches!(e.value, Stored::Indirect(_)))));
                varint::encode_all(indirect.clone().map(|l| table.index(&l.file)), &mut out);
                varint::encode_all(indirect.map(|l| l.offset), &mut out);
                for entry in entries {
                    if let Stored::Inline(bytes) = &entry.value {
                        out.extend_from_slice(bytes);
                    }
                }
            }
            Node::Interior { children, .. } => {
                let locations = children.iter().map(|child| Some(&child.location));
                let table = Table::of(locations.clone());
                table.encode(&mut out);
                varint::encode(children.len() as u64, &mut out);
                let commons: Vec<u16> = children.iter().map(|child| child.shared).collect();
                encode_keys(children.iter().map(|c| c.key.as_slice()), Some(&commons), &mut out);
                table.encode_references(locations, &mut out);
                Statistics::encode_all(children.iter().map(|child| child.statistics), &mut out);
            }
        }
        out
    }
}

impl Stored {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Stored::Inline(bytes) => bytes.len() as u64,
            Stored::Indirect(location) => location.length,
        }
    }
}

fn decode_keys(cursor: &mut Cursor<'_>, prefixes: &[u16], suffixes: &[u16]) -> Result<Vec<Vec<u8>>> {
    let mut keys: Vec<Vec<u8>> = Vec::with_capacity(suffixes.len());
    let mut written_out = 0u64;
    for (index, (&prefix, &suffix)) in prefixes.iter().zip(suffixes).enumerate() {
        let previous = keys.last().map(Vec::as_slice);
        let Some(start) = previous.unwrap_or_default().get(..usize::from(prefix)) else {
            let (prefix, previous) = (prefix.into(), previous.unwrap_or_default().len() as u64);
            return Err(cursor.fail(Problem::Prefix { what: "key", prefix, previous }));
        };
        let key = [start, cursor.take(suffix.into(), "key suffixes")?].concat();
        if key.len() > MAX_KEY_BYTES {
            return Err(cursor.unexpected("bytes of a key", "at most 65535", key.len() as u64));
        }
        written_out = written_out.saturating_add(key.len() as u64);
        if written_out > MAX_NODE_KEY_BYTES {
            let limit = MAX_NODE_KEY_BYTES;
            return Err(cursor.fail(Problem::Limit { what: "bytes of the keys of one node", limit }));
        }
        if let Some(previous) = previous
            && previous >= key.as_slice()
        {
            let detail = format!("\"{}\" after \"{}\"", escape(&key), escape(previous));
            return Err(cursor.fail(Problem::Order { what: "key", index, detail }));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn encode_keys<'a>(keys: impl Iterator<Item = &'a [u8]> + Clone, commons: Option<&[u16]>, out: &mut Vec<u8>) {
    let prefixes: Vec<usize> = keys.clone().zip(keys.clone().skip(1)).map(|(a, b)| shared(a, b)).collect();
    let suffixes: Vec<&[u8]> = keys
        .zip(std::iter::once(&0).chain(&prefixes))
        .map(|(key, &prefix)| key.get(prefix..).unwrap_or_default())
        .collect();
    varint::encode_all(prefixes.iter().map(|prefix| *prefix as u64), out);
    varint::encode_all(suffixes.iter().map(|suffix| suffix.len() as u64), out);
    varint::encode_all(commons.into_iter().flatten().map(|common| u64::from(*common)), out);
    for suffix in suffixes {
        out.extend_from_slice(suffix);
    }
}

fn decode_children(
    cursor: &mut Cursor<'_>,
    table: &Table,
    keys: Vec<Vec<u8>>,
    commons: Vec<u16>,
) -> Result<Vec<Child>> {
    let n = keys.len();
    for (key, &common) in keys.iter().zip(&commons) {
        if usize::from(common) > key.len() {
            let expected = format!("at most the {} bytes of the key", key.len());
            return Err(cursor.unexpected("subtree prefix length", expected, common.into()));
        }
    }
    let locations = table.decode_locations(cursor, n, "child node")?;
    let statistics = Statistics::decode_all(cursor, n)?;
    Ok(keys
        .into_iter()
        .zip(commons)
        .zip(locations.into_iter().zip(statistics))
        .map(|((key, shared), (location, statistics))| Child { key, shared, location, statistics })
        .collect())
}

fn decode_values(cursor: &mut Cursor<'_>, table: &Table, keys: Vec<Vec<u8>>) -> Result<Vec<LeafEntry>> {
    let n = keys.len();
    let lengths = cursor.column64(n, "value length")?;
    let kinds = cursor.take(n as u64, "value kinds")?;
    if let Some(kind) = kinds.iter().find(|kind| **kind > 1) {
        return Err(cursor.unexpected("value kind", "0 (inline) or 1 (indirect)", (*kind).into()));
    }
    let indirect = kinds.iter().filter(|kind| **kind == 1).count();
    let indices = cursor.column64(indirect, "data file index")?;
    let offsets = cursor.column64(indirect, "value offset")?;
    let mut references = indices.into_iter().zip(offsets);
    let mut entries = Vec::with_capacity(n);
    for ((key, length), kind) in keys.into_iter().zip(lengths).zip(kinds) {
        let reference = if *kind == 1 { references.next() } else { None };
        let value = if let Some((index, offset)) = reference {
            let file = table.file(cursor, index)?;
            check_range(cursor, offset, length, "value")?;
            Stored::Indirect(Location { file, offset, length })
        } else {
            if length > u64::from(MAX_INLINE_VALUE_BYTES) {
                return Err(cursor.unexpected("bytes of an inline value", "at most 1048576", length));
            }
            Stored::Inline(cursor.take(length, "inline value")?.to_vec())
        };
        entries.push(LeafEntry { key, value });
    }
    Ok(entries)
}
