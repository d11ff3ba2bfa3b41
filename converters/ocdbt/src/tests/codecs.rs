//! Every format piece there and back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use crate::cursor::{Cursor, Origin};
use crate::envelope::{self, Compression, Kind};
use crate::manifest::{Config, Content, Manifest};
use crate::node::{Child, LeafEntry, Node, Statistics, Stored};
use crate::table::{FilePath, Location, Table};
use crate::version::{Version, VersionChild, VersionEntries, VersionNode};

fn origin() -> Origin {
    Origin {
        file: "memory".into(),
        start: 0,
    }
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::None),
        (-7..10).prop_map(|level| Compression::Zstd { level })
    ]
}

fn file_path() -> impl Strategy<Value = FilePath> {
    let base = prop_oneof![
        Just(Vec::new()),
        "(a|b|ab|ocdbt.process_[0-9]){1,3}/".prop_map(String::into_bytes)
    ];
    (base, vec(any::<u8>(), 0..40)).prop_map(|(base, relative)| FilePath { base, relative })
}

fn place() -> impl Strategy<Value = Location> {
    (file_path(), 0..1u64 << 62, 0..1u64 << 62).prop_map(|(file, offset, length)| Location {
        file: Arc::new(file),
        offset,
        length,
    })
}

fn statistics() -> impl Strategy<Value = Statistics> {
    any::<[u64; 3]>().prop_map(|[keys, tree_bytes, indirect_value_bytes]| Statistics {
        keys,
        tree_bytes,
        indirect_value_bytes,
    })
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..6),
        vec(0u8..2, 0..40),
        vec(any::<u8>(), 300..500)
    ]
}

fn stored() -> impl Strategy<Value = Stored> {
    prop_oneof![
        vec(any::<u8>(), 0..60).prop_map(Stored::Inline),
        place().prop_map(Stored::Indirect)
    ]
}

fn leaf() -> impl Strategy<Value = Node> {
    btree_map(key(), stored(), 1..40).prop_map(|map| {
        Node::Leaf(
            map.into_iter()
                .map(|(key, value)| LeafEntry { key, value })
                .collect(),
        )
    })
}

fn interior() -> impl Strategy<Value = Node> {
    let child = (place(), statistics(), any::<prop::sample::Index>());
    (1..=u8::MAX, btree_map(key(), child, 1..40)).prop_map(|(height, map)| {
        let children = map.into_iter().map(|(key, (location, statistics, cut))| {
            let shared = cut.index(key.len() + 1) as u16;
            Child {
                key,
                shared,
                location,
                statistics,
            }
        });
        Node::Interior {
            height,
            children: children.collect(),
        }
    })
}

/// Versions `first ..`, as one list may hold them.
fn versions(arity_log2: u8, block: u64) -> impl Strategy<Value = Vec<Version>> {
    let most = 1u64 << arity_log2;
    let one = (
        any::<u64>(),
        proptest::option::of((place(), any::<u8>(), statistics())),
    );
    btree_map(1..=most, one, 1..(most as usize + 1).min(12)).prop_map(
        move |map: BTreeMap<u64, _>| {
            map.into_iter()
                .map(|(number, (commit_time_ns, root))| {
                    let (root, height, statistics) = match root {
                        Some((root, height, statistics)) => (Some(root), height, statistics),
                        None => (None, 0, Statistics::default()),
                    };
                    Version {
                        generation: block * most + number,
                        commit_time_ns,
                        statistics,
                        height,
                        root,
                    }
                })
                .collect()
        },
    )
}

fn version_node() -> impl Strategy<Value = VersionNode> {
    let leaf = (1u8..=5, 0u64..1000).prop_flat_map(|(arity_log2, block)| {
        versions(arity_log2, block).prop_map(move |list| VersionNode {
            arity_log2,
            height: 0,
            entries: VersionEntries::Versions(list),
        })
    });
    let interior = (1u8..=5, 1u8..=3, 0u64..1000).prop_flat_map(|(arity_log2, height, block)| {
        let (most, span) = (1u64 << arity_log2, 1u64 << (arity_log2 * height));
        let child = (place(), 1..=span, any::<u64>());
        btree_map(1..=most, child, 1..(most as usize + 1).min(12)).prop_map(move |map| {
            let children =
                map.into_iter()
                    .map(
                        |(number, (location, generations, commit_time_ns))| VersionChild {
                            generation: (block * most + number) * span,
                            location,
                            generations,
                            commit_time_ns,
                            height: height - 1,
                        },
                    );
            VersionNode {
                arity_log2,
                height,
                entries: VersionEntries::Children(children.collect()),
            }
        })
    });
    prop_oneof![leaf, interior]
}

fn config(arity_log2: u8) -> impl Strategy<Value = Config> {
    (any::<[u8; 16]>(), any::<u32>(), any::<u32>(), compression()).prop_map(
        move |(uuid, max_inline_value_bytes, max_decoded_node_bytes, compression)| Config {
            uuid,
            max_inline_value_bytes,
            max_decoded_node_bytes,
            version_tree_arity_log2: arity_log2,
            compression,
        },
    )
}

proptest! {
    #[test]
    fn every_envelope_comes_home(body: Vec<u8>, compression in compression()) {
        let origin = origin();
        for kind in [Kind::Manifest, Kind::Node, Kind::VersionNode] {
            let piece = envelope::seal(kind, &body, compression).unwrap();
            let opened = envelope::open(&piece, &origin, kind, body.len() as u64).unwrap();
            prop_assert_eq!(opened.cursor().rest(), body.as_slice());
            if !body.is_empty() {
                prop_assert!(envelope::open(&piece, &origin, kind, body.len() as u64 - 1).is_err());
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_in_an_envelope_is_noticed(body: Vec<u8>, compression in compression(), at: prop::sample::Index, bit in 0u8..8) {
        let mut piece = envelope::seal(Kind::Node, &body, compression).unwrap();
        let at = at.index(piece.len());
        piece[at] ^= 1u8 << bit;
        prop_assert!(envelope::open(&piece, &origin(), Kind::Node, 1 << 20).is_err());
    }

    #[test]
    fn every_data_file_table_comes_home(files in btree_set(file_path(), 0..20), transitive in "([a-z]{1,3}/){0,2}") {
        let files: BTreeSet<FilePath> = files;
        let locations: Vec<Location> = files
            .iter()
            .map(|file| Location { file: Arc::new(file.clone()), offset: 0, length: 0 })
            .collect();
        let mut bytes = Vec::new();
        Table::of(locations.iter().map(Some)).encode(&mut bytes);
        let origin = origin();
        let mut cursor = Cursor::new(&bytes, &origin, Some(0));
        let table = Table::decode(&mut cursor, transitive.as_bytes()).unwrap();
        for (index, file) in files.iter().enumerate() {
            let found = table.file(&cursor, index as u64).unwrap();
            prop_assert_eq!(&found.base, &[transitive.as_bytes(), &file.base].concat());
            prop_assert_eq!(&found.relative, &file.relative);
        }
        prop_assert!(table.file(&cursor, files.len() as u64).is_err());
        cursor.finish().unwrap();
    }

    #[test]
    fn every_node_comes_home(node in prop_oneof![leaf(), interior()], compression in compression()) {
        let piece = node.encode(compression).unwrap();
        let (decoded, _) = Node::decode(&piece, &origin(), b"", 1 << 20).unwrap();
        prop_assert_eq!(decoded, node);
    }

    #[test]
    fn a_node_cut_off_anywhere_is_refused(node in prop_oneof![leaf(), interior()], at: prop::sample::Index) {
        let body = node.encode_body();
        let cut = &body[..at.index(body.len())];
        let piece = envelope::seal(Kind::Node, cut, Compression::None).unwrap();
        prop_assert!(Node::decode(&piece, &origin(), b"", 1 << 20).is_err());
    }

    #[test]
    fn every_version_tree_node_comes_home(node in version_node(), compression in compression()) {
        let piece = node.encode(compression).unwrap();
        let (decoded, _) = VersionNode::decode(&piece, &origin(), b"", 1 << 20).unwrap();
        prop_assert_eq!(decoded, node);
    }

    #[test]
    fn every_manifest_comes_home(
        (config, versions, child) in (1u8..=5, 1u64..100).prop_flat_map(|(arity, block)| (config(arity), versions(arity, block), place())),
        compression in compression(),
    ) {
        let arity = config.version_tree_arity_log2;
        let generation = (versions[0].generation - 1) >> arity << arity;
        let node = VersionChild { generation, location: child, generations: 1, commit_time_ns: 3, height: 1 };
        for content in [
            Content::Numbered,
            Content::Single { versions: versions.clone(), nodes: Vec::new() },
            Content::Single { versions, nodes: vec![node] },
        ] {
            let manifest = Manifest { config, content };
            let piece = manifest.encode(compression).unwrap();
            prop_assert_eq!(Manifest::decode(&piece, &origin()).unwrap(), manifest);
        }
    }

    #[test]
    fn bytes_of_no_meaning_are_refused_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Manifest::decode(&bytes, &origin());
        for kind in [Kind::Manifest, Kind::Node, Kind::VersionNode] {
            let piece = envelope::seal(kind, &bytes, Compression::None).unwrap();
            let _ = Manifest::decode(&piece, &origin());
            let _ = Node::decode(&piece, &origin(), b"a/", 1 << 20);
            let _ = VersionNode::decode(&piece, &origin(), b"a/", 1 << 20);
        }
    }
}
