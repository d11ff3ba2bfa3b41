//! The saved tree: paths, their spellings, and what makes a set of leaves a tree.
//!
//! Source: Orbax's `tree_metadata` (<https://github.com/google/orbax>, `_src/metadata/tree.py` and `_src/tree/utils.py`).
//! Invariant: after [`check`] every path occurs once, no leaf stands above another, a node's children are all names or all indices,
//! and indices run from 0 without a hole.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Error, Result};
use crate::metadata::LeafDoc;

/// One step of a leaf's path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Dict key or attribute.
    Name(String),
    /// Sequence index.
    Index(u64),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Name(name) => f.write_str(name),
            Key::Index(index) => write!(f, "{index}"),
        }
    }
}

/// A leaf of the saved tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// From the root.
    pub path: Vec<Key>,
    /// What it holds.
    pub value: Value,
}

/// What a leaf holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Index into `Source::arrays`.
    Array(usize),
    /// A string of `_strings.json`.
    String(String),
    /// `None`, `Dict`, `List`, `Tuple`, `NamedTuple`: a node without content.
    Empty(String),
}

/// The name this crate gives a leaf: its path joined by "/".
pub fn path_name(path: &[Key]) -> String {
    join(path, "/")
}

/// The name the array has in the store: its path joined by ".". Nothing is escaped, so this is a one-way street.
pub(crate) fn stored_name(path: &[Key]) -> String {
    join(path, ".")
}

fn join(path: &[Key], separator: &str) -> String {
    path.iter().map(Key::to_string).collect::<Vec<_>>().join(separator)
}

/// Drops empty leaves that have descendants (Orbax 0.12's partial saves list both) and refuses what is not a tree.
pub(crate) fn check(leaves: Vec<LeafDoc>) -> Result<Vec<LeafDoc>> {
    /// How a node's children are numbered or named.
    #[derive(Default)]
    struct Node {
        names: bool,
        indices: BTreeMap<u64, ()>,
    }
    let mut inner: HashMap<&[Key], Node> = HashMap::new();
    let mut seen: HashMap<&[Key], bool> = HashMap::new();
    for leaf in &leaves {
        if seen.insert(&leaf.path, leaf.skip).is_some() {
            return Err(Error::leaf(path_name(&leaf.path), "listed twice in _METADATA"));
        }
        let mut parent: &[Key] = &leaf.path;
        while let Some((last, above)) = parent.split_last() {
            let known = inner.contains_key(above);
            let node = inner.entry(above).or_default();
            match last {
                Key::Name(_) => node.names = true,
                Key::Index(index) => {
                    node.indices.insert(*index, ());
                }
            }
            if known {
                break;
            }
            parent = above;
        }
    }
    for leaf in &leaves {
        if !leaf.skip && inner.contains_key(leaf.path.as_slice()) {
            return Err(Error::leaf(path_name(&leaf.path), "is a leaf and has leaves below it"));
        }
    }
    let mut nodes: Vec<_> = inner.iter().collect();
    nodes.sort_by(|a, b| a.0.cmp(b.0));
    for (path, node) in nodes {
        if node.names && !node.indices.is_empty() {
            return Err(Error::leaf(path_name(path), "has both dict keys and sequence indices below it"));
        }
        for (expected, found) in (0u64..).zip(node.indices.keys()) {
            if expected != *found {
                return Err(Error::leaf(
                    path_name(path),
                    format!("a sequence without element {expected} (the next one is {found})"),
                ));
            }
        }
    }
    let keep: Vec<bool> = leaves.iter().map(|leaf| !(leaf.skip && inner.contains_key(leaf.path.as_slice()))).collect();
    drop((inner, seen));
    Ok(leaves.into_iter().zip(keep).filter_map(|(leaf, keep)| keep.then_some(leaf)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(path: &str, skip: bool) -> LeafDoc {
        let path = path
            .split('/')
            .filter(|key| !key.is_empty())
            .map(|key| key.parse().map_or_else(|_| Key::Name(key.to_owned()), Key::Index))
            .collect();
        LeafDoc { path, value_type: "x".into(), skip }
    }

    fn refused(paths: &[(&str, bool)], with: &str) {
        let leaves = paths.iter().map(|(path, skip)| leaf(path, *skip)).collect();
        let error = check(leaves).unwrap_err().to_string();
        assert!(error.contains(with), "{error}");
    }

    #[test]
    fn a_tree_passes_in_its_order() {
        let leaves: Vec<_> = ["b/1", "b/0/x", "a"].iter().map(|path| leaf(path, false)).collect();
        assert_eq!(check(leaves.clone()).unwrap(), leaves);
        assert_eq!(check(vec![leaf("", false)]).unwrap().len(), 1);
    }

    #[test]
    fn a_double_path_is_refused() {
        refused(&[("a/b", false), ("a/b", true)], "leaf \"a/b\": listed twice");
    }

    #[test]
    fn a_hole_in_a_sequence_is_refused() {
        refused(&[("a/0", false), ("a/2/x", false)], "leaf \"a\": a sequence without element 1");
        refused(&[("1", false)], "without element 0");
    }

    #[test]
    fn names_and_indices_under_one_node_are_refused() {
        refused(&[("a/0", false), ("a/x", false)], "both dict keys and sequence indices");
    }

    #[test]
    fn a_leaf_above_a_leaf_is_refused_and_an_empty_one_is_dropped() {
        refused(&[("a", false), ("a/b/c", false)], "leaf \"a\": is a leaf and has leaves below it");
        let kept = check(vec![leaf("a", true), leaf("a/b/c", false), leaf("d", true)]).unwrap();
        assert_eq!(kept, [leaf("a/b/c", false), leaf("d", true)]);
    }

    #[test]
    fn paths_are_spelled_with_slashes_and_stored_with_dots() {
        let path = leaf("opt/1/mu", false).path;
        assert_eq!((path_name(&path), stored_name(&path)), ("opt/1/mu".to_owned(), "opt.1.mu".to_owned()));
    }
}
