//! Nodes, data file tables and zstd frames made to hurt.

use super::super::{Raw, assert_contains, location, manifest, put, put_manifest, refused, version, with_root};
use super::{envelope_with, leaf, one_entry, sealed_config};
use crate::database::{Database, Value};
use crate::envelope::{self, Compression, Kind};

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
fn padded_varints_are_accepted() {
    let body = Raw::default().bytes(&[0]).bytes(&[0x80, 0x80, 0]).bytes(&[0x81, 0]).bytes(&[0x81, 0x80, 0x80, 0x80, 0]);
    let body =
        body.bytes(b"k").bytes(&[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0]).bytes(&[0]).bytes(b"v");
    let database = with_root(0, &body.seal(Kind::Node));
    let database = Database::open(database.path()).unwrap();
    assert_eq!(database.get(b"k"), Some(&Value::Inline(b"v".to_vec())));
}
