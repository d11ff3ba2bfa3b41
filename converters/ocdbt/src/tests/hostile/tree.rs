//! Trees whose shape is made to hurt.
use std::fs;

use super::super::{assert_contains, location, put_manifest, refused, with_root};
use super::leaf;
use crate::database::Database;
use crate::envelope::Compression;
use crate::node::{Child, Node, Statistics};

fn child(key: &[u8], shared: u16, offset: u64, length: u64) -> Child {
    let statistics = Statistics { keys: 1, ..Statistics::default() };
    Child { key: key.to_vec(), shared, location: location("d/data", offset, length), statistics }
}

fn interior(height: u8, children: Vec<Child>) -> Vec<u8> {
    Node::Interior { height, children }.encode(Compression::None).unwrap()
}

#[test]
fn a_node_that_is_its_own_child_is_refused() {
    let length = interior(1, vec![child(b"k", 0, 0, 100)]).len() as u64;
    let node = interior(1, vec![child(b"k", 0, 0, length)]);
    // Found by its height, or before that because a file cannot hold the same node twice.
    assert_contains(&refused(with_root(1, &node).path()), &["nodes are shared, so this is no tree"]);
    let dir = with_root(1, &[node, vec![0; 1000]].concat());
    put_manifest(dir.path(), 1, 1, location("d/data", 0, length));
    assert_contains(&refused(dir.path()), &["height of the node: expected 0, found 1"]);
}

/// A chain of levels, every node with `width` references to the one node below; gives the bytes and the place of the root.
fn shared_levels(levels: u8, width: u8) -> (Vec<u8>, u64, u64) {
    let mut file = leaf(&[b""]);
    let (mut offset, mut length) = (0, file.len() as u64);
    for height in 1..=levels {
        let children = (0..width).map(|n| child(&[n], 1, offset, length)).collect();
        let node = interior(height, children);
        (offset, length) = (file.len() as u64, node.len() as u64);
        file.extend_from_slice(&node);
    }
    (file, offset, length)
}

#[test]
fn nodes_shared_by_many_parents_are_not_walked_for_ever() {
    let (file, offset, length) = shared_levels(8, 24);
    let dir = with_root(8, &file);
    put_manifest(dir.path(), 8, 1 << 40, location("d/data", offset, length));
    assert_contains(&refused(dir.path()), &["nodes are shared, so this is no tree"]);

    // In a file large enough to hide it, the key count of the root limits the walk, and the absolute limit does.
    fs::File::options().write(true).open(dir.path().join("d/data")).unwrap().set_len(1 << 40).unwrap();
    put_manifest(dir.path(), 8, 100, location("d/data", offset, length));
    assert_contains(&refused(dir.path()), &["nodes visited: more than the limit of 1224"]);
}

#[test]
fn a_tree_of_255_levels_is_read() {
    let (file, offset, length) = shared_levels(255, 1);
    let dir = with_root(255, &file);
    put_manifest(dir.path(), 255, 1, location("d/data", offset, length));
    assert_eq!(Database::open(dir.path()).unwrap().entries()[0].key, [0; 255]);
}

#[test]
fn implicit_prefixes_that_add_up_beyond_the_longest_key_are_refused() {
    for (own, opens) in [(5535, true), (5536, false)] {
        let mut file = leaf(&[&vec![b'k'; own]]);
        let length = file.len() as u64;
        let root = interior(1, vec![child(&[b'p'; 60_000], 60_000, 0, length)]);
        file.extend_from_slice(&root);
        let dir = with_root(1, &file);
        put_manifest(dir.path(), 1, 1, location("d/data", length, root.len() as u64));
        if opens {
            assert_eq!(Database::open(dir.path()).unwrap().entries()[0].key.len(), 65_535);
        } else {
            assert_contains(
                &refused(dir.path()),
                &["d/data: byte 0", "bytes of a full key: expected at most 65535, found 65536"],
            );
        }
    }
}

#[test]
fn keys_outside_the_range_their_parent_gives_them_are_refused() {
    type Keys = &'static [&'static [u8]];
    let cases: [(Keys, Keys, &str); 4] = [
        (&[b"a", b"n"], &[b"m"], "last key number 0: out of order: \"n\" not below the next node's \"m\""),
        (&[b"a", b"m"], &[b"m"], "not below the next node's"),
        (&[b"a"], &[b"l"], "key number 0: out of order: \"l\" below its parent's \"m\""),
        (&[b"A"], &[b"m"], "\"A\" below its parent's \"a\""),
    ];
    let database = |first: &[&[u8]], second: &[&[u8]]| {
        let nodes = [leaf(first), leaf(second)];
        let [a, b] = [&nodes[0], &nodes[1]].map(|node| node.len() as u64);
        let root = interior(1, vec![child(b"a", 0, 0, a), child(b"m", 0, a, b)]);
        let dir = with_root(1, &[nodes.concat(), root.clone()].concat());
        put_manifest(dir.path(), 1, 3, location("d/data", a + b, root.len() as u64));
        dir
    };
    for (first, second, expected) in cases {
        assert_contains(&refused(database(first, second).path()), &["d/data: byte", expected]);
    }
    assert_eq!(Database::open(database(&[b"a", b"l"], &[b"m", b"z"]).path()).unwrap().entries().len(), 4);
}
