//! Manifests and version trees made to hurt.

use super::super::{Raw, assert_contains, config, location, manifest, put, refused, version};
use super::{envelope_with, sealed_config};
use crate::database::Database;
use crate::envelope::{Compression, Kind};
use crate::manifest::{Content, Manifest};
use crate::version::{VersionChild, VersionEntries, VersionNode};

#[test]
fn a_damaged_manifest_is_refused_with_its_damage_named() {
    let good = manifest(version(1, 0, 0, None), Vec::new()).encode(Compression::None).unwrap();
    let edit = |at: usize, byte: u8| {
        let mut piece = good.clone();
        piece[at] ^= byte;
        piece
    };
    let frame = |body: &[u8]| zstd::bulk::compress(body, 3).unwrap();
    let body = &good[14..good.len() - 4];
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "byte 0: manifest: expected 16 more bytes, found 0"),
        (good[..good.len() - 1].to_vec(), "byte 4: length in the header"),
        ([good.as_slice(), b"\0"].concat(), "byte 4: length in the header"),
        (edit(0, 1), "byte 0: magic number: expected 0x0cdb3a2a"),
        (edit(5, 1), "byte 4: length in the header"),
        (edit(20, 1), "CRC-32C"),
        (edit(good.len() - 1, 1), "CRC-32C"),
        (envelope_with(1, 0, body), "format version: expected 0, found 1"),
        (envelope_with(0, 2, body), "compression: expected 0 (none) or 1 (zstd), found 2"),
        (sealed_config(2, 4, 0).seal(Kind::Manifest), "manifest kind"),
        (sealed_config(0, 0, 0).seal(Kind::Manifest), "version tree arity (log2): expected 1 to 16, found 0"),
        (sealed_config(0, 17, 0).seal(Kind::Manifest), "version tree arity (log2): expected 1 to 16, found 17"),
        (sealed_config(0, 4, 2).seal(Kind::Manifest), "compression method"),
        (Raw(body.to_vec()).bytes(&[0]).seal(Kind::Manifest), "1 bytes left over after the last field"),
        (envelope_with(0, 1, &[frame(body), frame(b"")].concat()), "left over after the zstd frame"),
        (envelope_with(0, 1, &frame(body)[..20]), "zstd: "),
        (envelope_with(0, 1, b"not zstd at all"), "zstd: "),
    ];
    for (bytes, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "manifest.ocdbt", &bytes);
        assert_contains(&refused(dir.path()), &["manifest.ocdbt: byte ", expected]);
    }
    // The same steps without damage give a database.
    for bytes in [good.clone(), envelope_with(0, 1, &frame(body))] {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "manifest.ocdbt", &bytes);
        assert!(Database::open(dir.path()).unwrap().entries().is_empty());
    }
}

#[test]
fn a_directory_without_a_manifest_is_not_an_empty_database() {
    let dir = tempfile::tempdir().unwrap();
    assert_contains(&refused(dir.path()), &["manifest.ocdbt: no such file"]);
    assert_contains(&refused(&dir.path().join("nowhere")), &["nowhere/manifest.ocdbt: no such file"]);
}

fn numbered(generation: u64) -> Vec<u8> {
    manifest(version(generation, 0, 0, None), Vec::new()).encode(Compression::None).unwrap()
}

#[test]
fn numbered_manifests_without_any_number_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let top = Manifest { config: config(), content: Content::Numbered }.encode(Compression::None).unwrap();
    put(dir.path(), "manifest.ocdbt", &top);
    // Not of the form TensorStore looks for.
    for name in [
        "manifest.0000000000000000",
        "manifest.f000000000000001",
        "manifest.1",
        "manifest.000000000000000g",
        "manifest.+000000000000001",
    ] {
        put(dir.path(), name, &numbered(1));
    }
    assert_contains(&refused(dir.path()), &["manifest.<number>: no such file"]);
    put(dir.path(), "manifest.0000000000000001", &numbered(1));
    assert_eq!(Database::open(dir.path()).unwrap().version().generation, 1);
}

#[test]
fn a_damaged_newest_numbered_manifest_is_refused_and_no_older_one_taken() {
    let other = Manifest {
        config: crate::Config { uuid: [8; 16], ..config() },
        ..manifest(version(2, 0, 0, None), Vec::new())
    };
    let nested = Manifest { config: config(), content: Content::Numbered };
    let cases = [
        (b"damaged manifest".to_vec(), "magic number"),
        (numbered(3), "newest generation differs"),
        (other.encode(Compression::None).unwrap(), "configuration differs"),
        (nested.encode(Compression::None).unwrap(), "manifest kind differs"),
    ];
    for (newest, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "manifest.ocdbt", &nested.encode(Compression::None).unwrap());
        put(dir.path(), "manifest.0000000000000001", &numbered(1));
        put(dir.path(), "manifest.0000000000000002", &newest);
        assert_contains(&refused(dir.path()), &["manifest.0000000000000002: byte 0", expected]);
    }
}

/// A database of generation 33 whose older versions stand in `node`, which it says has this height and newest generation.
fn with_versions(node: &[u8], generation: u64, height: u8) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "d/old", node);
    let child = VersionChild {
        generation,
        location: location("d/old", 0, node.len() as u64),
        generations: 1,
        commit_time_ns: 1,
        height,
    };
    put(
        dir.path(),
        "manifest.ocdbt",
        &manifest(version(33, 0, 0, None), vec![child]).encode(Compression::None).unwrap(),
    );
    dir
}

#[test]
fn a_version_tree_that_is_not_what_it_is_said_to_be_is_refused() {
    let children = |list: &[u64]| {
        let place = location("d/old", 0, 100);
        let one = |generation: &u64| VersionChild {
            generation: *generation,
            location: place.clone(),
            generations: 16,
            commit_time_ns: 1,
            height: 0,
        };
        VersionEntries::Children(list.iter().map(one).collect())
    };
    let node =
        |arity_log2, height, entries| VersionNode { arity_log2, height, entries }.encode(Compression::None).unwrap();
    let leaf = VersionEntries::Versions(vec![version(32, 0, 0, None)]);
    for (piece, expected) in [
        (node(4, 0, leaf), "height of the version tree node: expected 1, found 0"),
        (node(5, 1, children(&[32])), "version tree arity (log2): expected 4, found 5"),
        (node(4, 1, children(&[16])), "newest generation of the version tree node: expected 32, found 16"),
        (node(4, 1, children(&[32, 33])), "generation of a version tree node: expected a multiple of 16, found 33"),
        (node(4, 1, children(&[32, 32])), "generation number 1: out of order"),
        (node(4, 1, children(&[])), "number of version tree nodes: expected 1 to 16, found 0"),
        (node(4, 0, VersionEntries::Versions(Vec::new())), "number of versions: expected 1 to 16, found 0"),
        (node(0, 0, VersionEntries::Versions(Vec::new())), "version tree arity (log2): expected 1 to 16, found 0"),
        (node(4, 15, children(&[32])), "height: expected at most 14, found 15"),
    ] {
        let dir = with_versions(&piece, 32, 1);
        assert_contains(&Database::open_generation(dir.path(), 5).unwrap_err().to_string(), &["d/old: byte", expected]);
        // The newest version does not need the tree.
        assert!(Database::open(dir.path()).unwrap().versions().is_err());
    }
    for (generation, height, expected) in [
        (33, 1, "expected 1 to 32 at height 1, found 33"),
        (32, 2, "expected none of this height, found 32"),
        (32, 0, "height: expected 1 to 14, found 0"),
        (32, 15, "height: expected 1 to 14, found 15"),
    ] {
        assert_contains(&refused(with_versions(b"", generation, height).path()), &["manifest.ocdbt: byte", expected]);
    }
}

#[test]
fn a_list_of_versions_out_of_place_is_refused() {
    let versions = |list: Vec<crate::Version>| {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::Single { versions: list, nodes: Vec::new() };
        put(dir.path(), "manifest.ocdbt", &Manifest { config: config(), content }.encode(Compression::None).unwrap());
        refused(dir.path())
    };
    let at = |generation| version(generation, 0, 0, None);
    assert_contains(&versions(Vec::new()), &["number of versions: expected 1 to 16, found 0"]);
    assert_contains(&versions((1..=17).map(at).collect()), &["number of versions: expected 1 to 16, found 17"]);
    assert_contains(&versions(vec![at(0)]), &["generation number 0: out of order: 0 after 0"]);
    assert_contains(&versions(vec![at(3), at(2)]), &["generation number 1: out of order: 2 after 3"]);
    assert_contains(&versions(vec![at(16), at(17)]), &["first generation of a list: expected at least 17, found 16"]);
    assert_contains(&versions(vec![version(1, 1, 0, None)]), &["version without a root"]);
    assert_contains(&versions(vec![version(1, 0, 1, None)]), &["version without a root"]);
}
