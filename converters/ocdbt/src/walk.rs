//! Walks over the two trees of a database: all keys of one version, and all versions.
//!
//! Source of the rules: `btree.cc` and `version_tree.cc` in <https://github.com/google/tensorstore/tree/bc4fbc11f/tensorstore/kvstore/ocdbt>.
//!
//! Invariant: a walk is iterative and ends: heights fall by one from parent to child, keys (or generations) strictly increase over the whole
//! walk, the nodes visited in a file never add up to more than the file, and a budget bounds everything that is held.

use std::collections::HashMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use crate::cursor::Origin;
use crate::database::{Entry, Value};
use crate::error::{Problem, Result, escape};
use crate::file::{Store, check};
use crate::limits::{
    MAX_KEY_BYTES, MAX_NODE_BYTES, MAX_VERSION_NODES, MAX_VERSIONS, MAX_WALK_DECODED_BYTES, MAX_WALK_KEY_BYTES,
    MAX_WALK_KEYS, MAX_WALK_NODES,
};
use crate::manifest::Config;
use crate::node::{Child, LeafEntry, Node, Stored};
use crate::table::Location;
use crate::version::{Version, VersionChild, VersionEntries, VersionNode};

/// What a walk may still use up.
struct Budget {
    nodes: u64,
    max_nodes: u64,
    decoded: u64,
    /// Bytes of nodes visited in each file.
    visited: HashMap<Arc<str>, u64>,
}

impl Budget {
    fn new(max_nodes: u64) -> Self {
        Self { nodes: 0, max_nodes, decoded: 0, visited: HashMap::new() }
    }

    /// Bytes one more node may decompress to.
    fn room(&self) -> u64 {
        MAX_WALK_DECODED_BYTES.saturating_sub(self.decoded)
    }

    fn visit(&mut self, origin: &Origin, length: u64, size: u64) -> Result<()> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > self.max_nodes {
            let problem = Problem::Limit { what: "nodes visited", limit: self.max_nodes };
            return Err(origin.fail(0, problem));
        }
        let visited = self.visited.entry(origin.file.clone()).or_default();
        *visited = visited.saturating_add(length);
        if *visited > size {
            return Err(origin.fail(0, Problem::Shared { length: *visited, size }));
        }
        Ok(())
    }

    fn decoded(&mut self, bytes: u64) {
        self.decoded = self.decoded.saturating_add(bytes);
    }
}

/// Reads a node's bytes, none of which are believed yet. `from` names the place of the reference, for errors about its path.
fn read_node(
    store: &Store,
    location: &Location,
    from: &Origin,
    budget: &mut Budget,
    cap: u64,
) -> Result<(Vec<u8>, Origin)> {
    let path = location.file.full();
    let path = check(&path).map_err(|problem| from.fail(0, problem))?;
    let blob = store.open(path)?;
    let origin = Origin { file: blob.name.clone(), start: location.offset };
    blob.require(location.offset, location.length)?;
    if location.length > cap {
        let problem = Problem::Limit { what: "bytes of one node", limit: cap };
        return Err(origin.fail(0, problem));
    }
    budget.visit(&origin, location.length, blob.size)?;
    Ok((blob.read(location.offset, location.length)?, origin))
}

/// A node still to be visited.
struct Pending {
    location: Location,
    height: u8,
    /// What its keys leave out.
    prefix: Vec<u8>,
    /// Its first key is not below this one (relative).
    lowest: Vec<u8>,
    /// Its last key is below this one (full).
    bound: Option<Arc<[u8]>>,
    /// The node that refers to it.
    from: Origin,
}

/// An interior node whose children are being visited.
struct Frame {
    prefix: Vec<u8>,
    height: u8,
    children: Peekable<IntoIter<Child>>,
    bound: Option<Arc<[u8]>>,
    origin: Origin,
}

impl Frame {
    fn next(&mut self) -> Option<Pending> {
        let child = self.children.next()?;
        let bound = match self.children.peek() {
            Some(next) => Some([self.prefix.as_slice(), &next.key].concat().into()),
            None => self.bound.clone(),
        };
        let (common, lowest) = child.key.split_at_checked(child.shared.into()).unwrap_or_default();
        Some(Pending {
            location: child.location,
            height: self.height.saturating_sub(1),
            prefix: [self.prefix.as_slice(), common].concat(),
            lowest: lowest.to_vec(),
            bound,
            from: self.origin.clone(),
        })
    }
}

/// All entries of a version, in key order.
pub(crate) fn entries(store: &Store, manifest: &str, config: &Config, version: &Version) -> Result<Vec<Entry>> {
    let Some(root) = &version.root else {
        return Ok(Vec::new());
    };
    let claimed = version.statistics.keys.saturating_mul(2).saturating_add(1024);
    let mut budget = Budget::new(claimed.min(MAX_WALK_NODES));
    let mut leaves = Leaves::default();
    let mut stack: Vec<Frame> = Vec::new();
    let mut next = Some(Pending {
        location: root.clone(),
        height: version.height,
        prefix: Vec::new(),
        lowest: Vec::new(),
        bound: None,
        from: Origin { file: store.name(manifest), start: 0 },
    });
    loop {
        let Some(pending) = next.take() else {
            match stack.last_mut() {
                None => return Ok(leaves.entries),
                Some(frame) => {
                    next = frame.next();
                    if next.is_none() {
                        stack.pop();
                    }
                    continue;
                }
            }
        };
        let cap = config.node_cap();
        let (bytes, origin) = read_node(store, &pending.location, &pending.from, &mut budget, cap)?;
        let cap = cap.min(budget.room());
        let (node, decoded) = Node::decode(&bytes, &origin, &pending.location.file.base, cap)?;
        budget.decoded(decoded);
        expect_place(&node, &pending, &origin)?;
        match node {
            Node::Leaf(values) => leaves.append(values, &pending.prefix, &origin)?,
            Node::Interior { height, children } => stack.push(Frame {
                prefix: pending.prefix,
                height,
                children: children.into_iter().peekable(),
                bound: pending.bound,
                origin,
            }),
        }
    }
}

/// Refuses a node that is not what its parent says: height, first key, last key.
fn expect_place(node: &Node, pending: &Pending, origin: &Origin) -> Result<()> {
    if node.height() != pending.height {
        let (expected, found) = (pending.height.to_string(), node.height().into());
        return Err(origin.fail(0, Problem::Value { what: "height of the node", expected, found }));
    }
    let (first, last) = node.bounds();
    if first < pending.lowest.as_slice() {
        let detail = format!("\"{}\" below its parent's \"{}\"", escape(first), escape(&pending.lowest));
        return Err(origin.fail(0, Problem::Order { what: "key", index: 0, detail }));
    }
    if let Some(bound) = &pending.bound {
        let last = [pending.prefix.as_slice(), last].concat();
        if last.as_slice() >= bound.as_ref() {
            let detail = format!("\"{}\" not below the next node's \"{}\"", escape(&last), escape(bound));
            return Err(origin.fail(0, Problem::Order { what: "last key", index: 0, detail }));
        }
    }
    Ok(())
}

/// The entries met so far.
#[derive(Default)]
struct Leaves {
    entries: Vec<Entry>,
    key_bytes: u64,
    /// Paths, so that entries share them.
    names: HashMap<Vec<u8>, Arc<str>>,
}

impl Leaves {
    fn append(&mut self, values: Vec<LeafEntry>, prefix: &[u8], origin: &Origin) -> Result<()> {
        for (index, LeafEntry { key, value }) in values.into_iter().enumerate() {
            let key = [prefix, key.as_slice()].concat();
            if key.len() > MAX_KEY_BYTES {
                let (expected, found) = ("at most 65535".into(), key.len() as u64);
                let problem = Problem::Value { what: "bytes of a full key", expected, found };
                return Err(origin.fail(0, problem));
            }
            if let Some(before) = self.entries.last().filter(|before| before.key >= key) {
                let detail = format!("\"{}\" after \"{}\"", escape(&key), escape(&before.key));
                return Err(origin.fail(0, Problem::Order { what: "key", index, detail }));
            }
            self.key_bytes = self.key_bytes.saturating_add(key.len() as u64);
            for (what, used, limit) in [
                ("keys of one version", (self.entries.len() as u64).saturating_add(1), MAX_WALK_KEYS),
                ("bytes of the keys of one version", self.key_bytes, MAX_WALK_KEY_BYTES),
            ] {
                if used > limit {
                    return Err(origin.fail(0, Problem::Limit { what, limit }));
                }
            }
            let value = self.value(value).map_err(|problem| origin.fail(0, problem))?;
            self.entries.push(Entry { key, value });
        }
        Ok(())
    }

    fn value(&mut self, stored: Stored) -> Result<Value, Problem> {
        let Location { file, offset, length } = match stored {
            Stored::Inline(bytes) => return Ok(Value::Inline(bytes)),
            Stored::Indirect(location) => location,
        };
        let path = file.full();
        let file = match self.names.get(&path) {
            Some(name) => name.clone(),
            // A value of no bytes is in no file; nothing is opened for it.
            None if path.is_empty() && length == 0 => Arc::from(""),
            None => {
                let name: Arc<str> = check(&path)?.into();
                self.names.insert(path, name.clone());
                name
            }
        };
        Ok(Value::Indirect { file, offset, length })
    }
}

/// A node of the version tree still to be visited.
struct PendingVersions {
    child: VersionChild,
    from: Origin,
}

/// All versions, oldest first.
pub(crate) fn versions(
    store: &Store,
    manifest: &str,
    config: &Config,
    nodes: &[VersionChild],
    newest: &[Version],
) -> Result<Vec<Version>> {
    let mut budget = Budget::new(MAX_VERSION_NODES);
    let mut versions: Vec<Version> = Vec::new();
    let from = Origin { file: store.name(manifest), start: 0 };
    // The next node to visit is the last of the stack.
    let pending = |child: &VersionChild, from: &Origin| PendingVersions { child: child.clone(), from: from.clone() };
    let mut stack: Vec<PendingVersions> = nodes.iter().rev().map(|child| pending(child, &from)).collect();
    while let Some(PendingVersions { child, from }) = stack.pop() {
        let (bytes, origin) = read_node(store, &child.location, &from, &mut budget, MAX_NODE_BYTES)?;
        let cap = MAX_NODE_BYTES.min(budget.room());
        let (node, decoded) = VersionNode::decode(&bytes, &origin, &child.location.file.base, cap)?;
        budget.decoded(decoded);
        for (what, expected, found) in [
            ("version tree arity (log2)", config.version_tree_arity_log2.into(), node.arity_log2.into()),
            ("height of the version tree node", child.height.into(), node.height.into()),
            ("newest generation of the version tree node", child.generation, node.last_generation()),
        ] {
            if expected != found {
                let expected = expected.to_string();
                return Err(origin.fail(0, Problem::Value { what, expected, found }));
            }
        }
        match node.entries {
            VersionEntries::Versions(list) => append(&mut versions, list, &origin)?,
            VersionEntries::Children(children) => {
                stack.extend(children.iter().rev().map(|child| pending(child, &origin)));
            }
        }
    }
    append(&mut versions, newest.to_vec(), &from)?;
    Ok(versions)
}

fn append(versions: &mut Vec<Version>, list: Vec<Version>, origin: &Origin) -> Result<()> {
    if let (Some(before), Some(after)) = (versions.last(), list.first())
        && before.generation >= after.generation
    {
        let detail = format!("{} after {}", after.generation, before.generation);
        return Err(origin.fail(0, Problem::Order { what: "generation", index: 0, detail }));
    }
    let total = (versions.len() as u64).saturating_add(list.len() as u64);
    if total > MAX_VERSIONS {
        return Err(origin.fail(0, Problem::Limit { what: "versions", limit: MAX_VERSIONS }));
    }
    versions.extend(list);
    Ok(())
}
