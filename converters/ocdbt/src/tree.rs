//! A B+tree built from all its entries at once, level by level from the leaves up.
//!
//! Invariant: a node leaves out the longest prefix its keys share, except the root, which leaves out nothing.

use crate::error::Result;
use crate::limits::MAX_NODE_BYTES;
use crate::node::{Child, LeafEntry, Node, Statistics, Stored};
use crate::table::{Location, shared};

/// Largest node made whatever the limits say, in estimated bytes: half of what a reader accepts.
const LARGEST_NODE_BYTES: u64 = MAX_NODE_BYTES / 2;

/// How large a node may get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Entries, at least 2.
    pub(crate) entries: u64,
    /// Estimated bytes of memory, 0 = no limit. A node may exceed it where it otherwise could not hold two entries.
    pub(crate) bytes: u32,
}

/// A tree that has been written.
pub(crate) struct Tree {
    pub(crate) height: u8,
    pub(crate) location: Location,
    pub(crate) statistics: Statistics,
}

/// A node that has been written, as its parent sees it.
struct Written {
    /// First full key of the subtree.
    key: Vec<u8>,
    /// Bytes of it that the nodes of the subtree leave out.
    shared: usize,
    location: Location,
    statistics: Statistics,
}

/// An upper estimate of what an entry takes in memory: columns, the longest data file name in use here, key and value.
fn estimate(key: &[u8], value: &[u8]) -> u64 {
    (key.len() as u64).saturating_add(value.len() as u64).saturating_add(56 + 34)
}

/// Splits `items` into runs that keep to the limits; every run but the last has two items at least.
fn runs<T>(items: Vec<T>, limits: &Limits, size: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let most = match limits.bytes {
        0 => LARGEST_NODE_BYTES,
        bytes => u64::from(bytes).min(LARGEST_NODE_BYTES),
    };
    let mut runs: Vec<Vec<T>> = Vec::new();
    let mut run: Vec<T> = Vec::new();
    let mut bytes = 0u64;
    for item in items {
        let more = bytes.saturating_add(size(&item));
        let full = run.len() as u64 >= limits.entries || (more > most && run.len() >= 2);
        if full {
            runs.push(std::mem::take(&mut run));
            bytes = 0;
        }
        bytes = bytes.saturating_add(size(&item));
        run.push(item);
    }
    runs.push(run);
    runs
}

/// Writes the tree over `entries` (sorted) by `put`, which stores one node; no entries, no tree.
pub(crate) fn build(
    entries: Vec<LeafEntry>,
    limits: &Limits,
    mut put: impl FnMut(&Node) -> Result<Location>,
) -> Result<Option<Tree>> {
    if entries.is_empty() {
        return Ok(None);
    }
    let leaves = runs(entries, limits, |entry| match &entry.value {
        Stored::Inline(bytes) => estimate(&entry.key, bytes),
        Stored::Indirect(_) => estimate(&entry.key, b""),
    });
    let is_root = leaves.len() == 1;
    let mut level = Vec::with_capacity(leaves.len());
    for leaf in leaves {
        level.push(put_leaf(leaf, is_root, &mut put)?);
    }
    let mut height = 0u8;
    while level.len() > 1 {
        height = height.saturating_add(1);
        let nodes = runs(level, limits, |child| estimate(&child.key, b""));
        let is_root = nodes.len() == 1;
        level = Vec::with_capacity(nodes.len());
        for node in nodes {
            level.push(put_interior(node, height, is_root, &mut put)?);
        }
    }
    // One node is left: every level is shorter than the one below it.
    Ok(level.pop().map(|Written { location, statistics, .. }| Tree { height, location, statistics }))
}

fn cut(key: &[u8], shared: usize) -> Vec<u8> {
    key.get(shared..).unwrap_or_default().to_vec()
}

fn put_leaf(
    mut entries: Vec<LeafEntry>,
    is_root: bool,
    put: &mut impl FnMut(&Node) -> Result<Location>,
) -> Result<Written> {
    let first = entries.first().map(|entry| entry.key.clone()).unwrap_or_default();
    let shared = match entries.last() {
        Some(last) if !is_root => shared(&first, &last.key),
        _ => 0,
    };
    let indirect = entries.iter().filter(|entry| matches!(entry.value, Stored::Indirect(_)));
    let indirect_value_bytes = indirect.fold(0u64, |sum, entry| sum.saturating_add(entry.value.len()));
    for entry in &mut entries {
        entry.key = cut(&entry.key, shared);
    }
    let keys = entries.len() as u64;
    let location = put(&Node::Leaf(entries))?;
    let statistics = Statistics { keys, tree_bytes: location.length, indirect_value_bytes };
    Ok(Written { key: first, shared, location, statistics })
}

fn put_interior(
    children: Vec<Written>,
    height: u8,
    is_root: bool,
    put: &mut impl FnMut(&Node) -> Result<Location>,
) -> Result<Written> {
    let first = children.first().map(|child| child.key.clone()).unwrap_or_default();
    let shared = match children.last() {
        // What all keys of the subtrees share: the first keys among each other, and no more than each subtree shares within itself.
        Some(last) if !is_root => children.iter().map(|child| child.shared).fold(shared(&first, &last.key), usize::min),
        _ => 0,
    };
    let statistics = children.iter().fold(Statistics::default(), |sum, child| sum.add(child.statistics));
    let entries = children
        .into_iter()
        .map(|child| Child {
            key: cut(&child.key, shared),
            // At most the key's 65535 bytes.
            shared: u16::try_from(child.shared.saturating_sub(shared)).unwrap_or(u16::MAX),
            location: child.location,
            statistics: child.statistics,
        })
        .collect();
    let location = put(&Node::Interior { height, children: entries })?;
    let statistics = statistics.add(Statistics { tree_bytes: location.length, ..Statistics::default() });
    Ok(Written { key: first, shared, location, statistics })
}
