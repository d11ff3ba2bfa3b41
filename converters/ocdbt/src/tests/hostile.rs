//! Databases made to hurt: each must end in an error that names the file and what is wrong there.

use std::fs;
use std::os::unix::fs::symlink;

use super::{Raw, assert_contains, config, location, manifest, put, put_manifest, refused, version, with_root};
use crate::database::{Database, Value};
use crate::envelope::{self, Compression, Kind};
use crate::manifest::{Content, Manifest};
use crate::node::{Child, LeafEntry, Node, Statistics, Stored};
use crate::version::{VersionChild, VersionEntries, VersionNode};

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

/// The error that reading the value of "k" gives.
#[track_caller]
fn value_refused(dir: &std::path::Path) -> String {
    let database = Database::open(dir).unwrap();
    let value = database.get(b"k").unwrap();
    let streamed = database.reader(value, 0, value.len()).err().expect("the stream is refused too").to_string();
    let read = database.read(value).unwrap_err().to_string();
    assert_eq!(read, streamed);
    read
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

#[test]
fn a_range_outside_its_file_is_refused() {
    let node = leaf(&[b"k"]);
    let length = node.len() as u64;
    for (offset, length) in [(0, length + 1), (1, length), (1 << 62, 1), (0, 1 << 62), (length, length)] {
        let dir = with_root(0, &node);
        put_manifest(dir.path(), 0, 1, location("d/data", offset, length));
        assert_contains(&refused(dir.path()), &["d/data: byte", &format!("expected {length} bytes, but the file has")]);
    }
    let dir = with_root(0, &indirect("d/value", 1, 4));
    put(dir.path(), "d/value", b"1234");
    assert_contains(&value_refused(dir.path()), &["d/value: byte 1: expected 4 bytes, but the file has 4"]);
    put(dir.path(), "d/value", b"12345");
    let database = Database::open(dir.path()).unwrap();
    assert_eq!(database.read(database.get(b"k").unwrap()).unwrap(), b"2345");
}

#[test]
fn an_offset_and_length_that_overflow_are_refused() {
    for (offset, length) in [(u64::MAX, 2), (1 << 63, 0), ((1 << 63) - 1, 1), (u64::MAX, u64::MAX)] {
        let body = Raw::default().bytes(&[0]).files(&[b"d/data"]).varints(&[1, 1]).bytes(b"k");
        let body = body.varints(&[length]).bytes(&[1]).varints(&[0, offset]);
        assert_contains(&refused(with_root(0, &body.seal(Kind::Node)).path()), &["d/data: byte", "is not below 2^63"]);
        if (offset, length) != (u64::MAX, u64::MAX) {
            let dir = with_root(0, &leaf(&[b"k"]));
            put_manifest(dir.path(), 0, 1, location("d/data", offset, length));
            assert_contains(&refused(dir.path()), &["manifest.ocdbt: byte", "is not below 2^63"]);
        }
    }
}

#[test]
fn a_missing_data_file_is_refused_for_a_node_and_for_a_value() {
    let dir = with_root(0, &indirect("d/value", 0, 4));
    assert_contains(&value_refused(dir.path()), &["d/value: no such file"]);
    fs::remove_file(dir.path().join("d/data")).unwrap();
    assert_contains(&refused(dir.path()), &["d/data: no such file"]);
}

#[test]
fn a_damaged_node_is_refused_with_its_damage_named() {
    let head = || Raw::default().bytes(&[0]).varints(&[0]);
    let two = |prefix: u64, lengths: [u64; 2], keys: &[u8]| {
        head().varints(&[2, prefix]).varints(&lengths).bytes(keys).varints(&[0, 0]).bytes(&[0, 0])
    };
    let one = |length: u64, kind: u8| head().varints(&[1, 1]).bytes(b"k").varints(&[length]).bytes(&[kind]);
    let cases: Vec<(Raw, &str)> = vec![
        (one_entry(Raw::default().bytes(&[1]).varints(&[0])), "subtree prefix length: expected at most the 1 bytes"),
        (head().varints(&[0]), "number of entries: expected 1 to 1048576, found 0"),
        (head().varints(&[1 << 20]).bytes(b"few"), "entries: expected 3145728 more bytes"),
        (head().varints(&[u64::from(u32::MAX)]), "number of entries: expected 1 to 1048576, found 4294967295"),
        (head().varints(&[1 << 32]), "varint does not fit 32 bits"),
        (two(0, [1, 1], b"ba"), "key number 1: out of order: \"a\" after \"b\""),
        (two(1, [1, 0], b"a"), "key number 1: out of order: \"a\" after \"a\""),
        (two(2, [1, 1], b"ab"), "key: shares 2 bytes with the previous one, which has 1"),
        (one(1, 2), "value kind: expected 0 (inline) or 1 (indirect), found 2"),
        (one(1 << 50, 0), "bytes of an inline value: expected at most 1048576"),
        (one(1, 1).varints(&[0, 0]), "data file index: expected below 0, found 0"),
        (one(5, 0).bytes(b"four"), "inline value: expected 5 more bytes, found 4"),
        (one_entry(head()).bytes(b"."), "1 bytes left over"),
    ];
    for (body, expected) in cases {
        for compression in [Compression::None, Compression::Zstd { level: 1 }] {
            let piece = envelope::seal(Kind::Node, &body.0, compression).unwrap();
            assert_contains(&refused(with_root(0, &piece).path()), &["d/data: byte ", expected]);
        }
    }
    assert_contains(&refused(with_root(1, &leaf(&[b"k"])).path()), &["height of the node: expected 1, found 0"]);
    assert_eq!(Database::open(with_root(0, &one_entry(head()).seal(Kind::Node)).path()).unwrap().entries().len(), 1);
}

#[test]
fn a_table_of_more_files_than_bytes_is_refused_before_anything_is_allocated() {
    for n in [1 << 60, u64::MAX, 1 << 40, 100] {
        let node = Raw::default().bytes(&[0]).varints(&[n]).bytes(&[0; 150]);
        assert_contains(
            &refused(with_root(0, &node.seal(Kind::Node)).path()),
            &["d/data: byte", "data file table: expected"],
        );
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "manifest.ocdbt", &sealed_config(0, 4, 0).varints(&[n]).bytes(&[0; 150]).seal(Kind::Manifest));
        assert_contains(&refused(dir.path()), &["manifest.ocdbt: byte", "data file table: expected"]);
    }
}

#[test]
fn a_damaged_data_file_table_is_refused() {
    let table = |prefix: u64, lengths: [u64; 2], bases: [u64; 2], text: &[u8]| {
        one_entry(Raw::default().bytes(&[0]).varints(&[2, prefix]).varints(&lengths).varints(&bases).bytes(text))
    };
    for (body, expected) in [
        (table(4, [3, 1], [0, 0], b"d/ae"), "data file path: shares 4 bytes with the previous one, which has 3"),
        (table(0, [3, 3], [4, 0], b"d/ad/b"), "base path length: expected at most the 3 bytes of the path, found 4"),
        (table(2, [3, 1], [2, 1], b"d/ab"), "shares 2 bytes with the previous path across two different base paths"),
        (table(0, [3, 9], [0, 0], b"d/a"), "path suffixes: expected"),
        (table(0, [3, 1 << 16], [0, 0], b"d/a"), "path suffix length: varint does not fit 16 bits"),
    ] {
        assert_contains(&refused(with_root(0, &body.seal(Kind::Node)).path()), &["d/data: byte", expected]);
    }
}

#[test]
fn shared_prefixes_that_write_out_to_gigabytes_are_refused() {
    // 100 000 paths, and 100 000 keys, of 65 000 bytes each, in a few hundred kilobytes.
    const N: usize = 100_000;
    let long = vec![b'p'; 65_000];
    let prefixes = vec![65_000; N - 1];
    let suffixes = [vec![65_000], vec![0; N - 1]].concat();
    let node = Raw::default()
        .bytes(&[0])
        .varints(&[N as u64])
        .varints(&prefixes)
        .varints(&suffixes)
        .varints(&vec![0; N])
        .bytes(&long);
    assert_contains(
        &refused(with_root(0, &node.seal(Kind::Node)).path()),
        &["bytes of the paths of one table: more than the limit of 67108864"],
    );

    let keys: Vec<Vec<u8>> = (0..20_000u32).map(|n| [long.as_slice(), &n.to_be_bytes()].concat()).collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    assert_contains(
        &refused(with_root(0, &leaf(&keys)).path()),
        &["bytes of the keys of one node: more than the limit of 268435456"],
    );
}

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
    let cases: [(&[&[u8]], &[&[u8]], &str); 4] = [
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

const BAD_PATHS: [&str; 14] =
    ["", ".", "..", "../x", "d/../../x", "/etc/passwd", "./d/x", "d//x", "d/", "/", "d/./x", "d/\0", "d\\x", "..\\x"];

#[test]
fn a_path_that_leaves_the_directory_is_refused_for_a_node_and_for_a_value() {
    for path in BAD_PATHS {
        let dir = with_root(0, &indirect(path, 0, 1));
        assert_contains(&refused(dir.path()), &["d/data: byte 0: data file path", "expected "]);
        put_manifest(dir.path(), 0, 1, location(path, 0, 16));
        assert_contains(&refused(dir.path()), &["manifest.ocdbt: byte 0: data file path", "expected "]);
        // A caller's own value is judged as well.
        let good = with_root(0, &leaf(&[b"k"]));
        let value = Value::Indirect { file: path.into(), offset: 0, length: 1 };
        let error = Database::open(good.path()).unwrap().read(&value).unwrap_err();
        assert_contains(&error.to_string(), &["data file path", "expected "]);
    }
}

#[test]
fn a_base_path_that_leaves_the_directory_is_refused() {
    let node = Raw::default().bytes(&[0]).varints(&[1, 5, 3]).bytes(b"../xy").varints(&[1, 1]).bytes(b"k");
    let node = node.varints(&[1]).bytes(&[1]).varints(&[0, 0]);
    assert_contains(&refused(with_root(0, &node.seal(Kind::Node)).path()), &["data file path \"../xy\""]);
}

#[test]
fn a_value_of_no_bytes_needs_no_file() {
    let dir = with_root(0, &indirect("", 0, 0));
    let database = Database::open(dir.path()).unwrap();
    let value = database.get(b"k").unwrap();
    assert!(value.is_empty());
    assert_eq!(database.read(value).unwrap(), b"");
}

#[test]
fn a_symlink_for_a_data_file_or_its_folder_is_refused() {
    let elsewhere = tempfile::tempdir().unwrap();
    put(elsewhere.path(), "secret", b"secret");
    for (link, path) in [("d/link", "d/link"), ("linked", "linked/secret")] {
        let dir = with_root(0, &indirect(path, 0, 6));
        let target = if link == path { elsewhere.path().join("secret") } else { elsewhere.path().into() };
        symlink(target, dir.path().join(link)).unwrap();
        assert_contains(&value_refused(dir.path()), &[link, "expected a regular file, found a symbolic link"]);
    }
    let dir = with_root(0, &leaf(&[b"k"]));
    fs::rename(dir.path().join("manifest.ocdbt"), dir.path().join("real")).unwrap();
    symlink("real", dir.path().join("manifest.ocdbt")).unwrap();
    assert_contains(&refused(dir.path()), &["manifest.ocdbt: expected a regular file, found a symbolic link"]);
}

#[test]
fn a_pipe_for_a_data_file_is_refused_at_once() {
    let dir = with_root(0, &indirect("d/pipe", 0, 6));
    let made = std::process::Command::new("mkfifo").arg(dir.path().join("d/pipe")).status().unwrap();
    assert!(made.success());
    assert_contains(&value_refused(dir.path()), &["d/pipe: expected a regular file, found a pipe"]);
}

#[test]
fn a_directory_for_a_data_file_is_refused() {
    let dir = with_root(0, &indirect("d/dir", 0, 6));
    fs::create_dir(dir.path().join("d/dir")).unwrap();
    assert_contains(&value_refused(dir.path()), &["d/dir: expected a regular file, found a directory"]);
}

/// A zstd frame of `n` zeros; it says nothing of its size.
fn zeros(n: u64) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), n), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_zstd_bomb_is_stopped_at_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let bomb = envelope_with(0, 1, &zeros(256 << 20));
    assert!(bomb.len() < 100_000);
    put(dir.path(), "manifest.ocdbt", &bomb);
    assert_contains(
        &refused(dir.path()),
        &["manifest.ocdbt: byte", "decompressed body: more than the limit of 67108864"],
    );

    // A node's limit follows from the manifest's: twice 1 MiB and 4 MiB.
    let mut node = envelope_with(0, 1, &zeros(32 << 20));
    node[..4].copy_from_slice(&0x0cdb_20de_u32.to_be_bytes());
    let end = node.len() - 4;
    let crc = crc32c::crc32c(&node[..end]);
    node[end..].copy_from_slice(&crc.to_le_bytes());
    let dir = with_root(0, &node);
    let mut small = manifest(version(1, 0, 1, Some(location("d/data", 0, node.len() as u64))), Vec::new());
    small.config.max_decoded_node_bytes = 1 << 20;
    put(dir.path(), "manifest.ocdbt", &small.encode(Compression::None).unwrap());
    assert_contains(&refused(dir.path()), &["d/data: byte", "decompressed body: more than the limit of 6291456"]);
}

#[test]
fn a_zstd_frame_that_claims_a_huge_size_or_window_is_refused() {
    // Magic number; descriptor: 8-byte content size, single segment; 2^40 bytes.
    let claims = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &(1u64 << 40).to_le_bytes(), &[1, 0, 0]].concat();
    // Magic number; descriptor: window follows; window of 2^31 and of 2^41 bytes; an empty last block.
    let window = |log2: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (log2 - 10) << 3, 1, 0, 0].to_vec();
    for frame in [claims, window(28), window(31), window(41)] {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "manifest.ocdbt", &envelope_with(0, 1, &frame));
        assert_contains(&refused(dir.path()), &["manifest.ocdbt: byte 14: zstd: "]);
    }
}

#[test]
fn a_node_longer_than_its_limit_is_refused_before_it_is_read() {
    let dir = with_root(0, &leaf(&[b"k"]));
    fs::File::options().write(true).open(dir.path().join("d/data")).unwrap().set_len(1 << 40).unwrap();
    put_manifest(dir.path(), 0, 1, location("d/data", 0, 1 << 40));
    assert_contains(&refused(dir.path()), &["d/data: byte 0: bytes of one node: more than the limit of 204194304"]);
    put(dir.path(), "manifest.ocdbt", b"");
    fs::File::options().write(true).open(dir.path().join("manifest.ocdbt")).unwrap().set_len(1 << 40).unwrap();
    assert_contains(&refused(dir.path()), &["bytes of a manifest: more than the limit of 67108864"]);
}

#[test]
fn padded_varints_are_accepted() {
    let body = Raw::default().bytes(&[0]).bytes(&[0x80, 0x80, 0]).bytes(&[0x81, 0]).bytes(&[0x81, 0x80, 0x80, 0x80, 0]);
    let body =
        body.bytes(b"k").bytes(&[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0]).bytes(&[0]).bytes(b"v");
    let database = with_root(0, &body.seal(Kind::Node));
    let database = Database::open(database.path()).unwrap();
    assert_eq!(database.get(b"k"), Some(&Value::Inline(b"v".to_vec())));
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
