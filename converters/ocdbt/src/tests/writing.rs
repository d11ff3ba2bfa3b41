//! What the writer writes, the reader reads.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::{Compression, Database, Error, Options, Value, Writer};

fn options(max_inline_value_bytes: u32) -> Options {
    Options {
        uuid: [9; 16],
        commit_time_ns: 1_234_567_890,
        max_inline_value_bytes,
    }
}

fn name(n: usize) -> String {
    format!("{n:032x}")
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Writes `map`, dealt out over `files` data files; every third value is streamed.
fn write(
    dir: &Path,
    map: &Map,
    files: usize,
    inline: u32,
    compression: Compression,
    limits: (u32, u32),
) {
    let writer = Writer::create(dir, options(inline))
        .unwrap()
        .compression(compression);
    let writer = writer.node_limits(limits.0, limits.1).unwrap();
    let files = (0..files)
        .map(|part| {
            let mut file = writer.data_file(&name(part)).unwrap();
            for (index, (key, value)) in map.iter().enumerate().skip(part).step_by(files) {
                if index % 3 == 0 {
                    let mut stream = file.value(key).unwrap();
                    value
                        .chunks(5)
                        .for_each(|piece| stream.write_all(piece).unwrap());
                    assert_eq!(stream.finish().unwrap(), value.len() as u64);
                } else {
                    file.put(key, value).unwrap();
                }
            }
            file
        })
        .collect();
    writer.finish(files).unwrap();
}

fn read(dir: &Path) -> (Database, Map) {
    let database = Database::open(dir).unwrap();
    let map = database
        .entries()
        .iter()
        .map(|entry| (entry.key.clone(), database.read(&entry.value).unwrap()))
        .collect();
    (database, map)
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    let long = (any::<u8>(), 65_000usize..=65_535).prop_map(|(byte, length)| vec![byte; length]);
    prop_oneof![
        8 => vec(any::<u8>(), 0..8),
        8 => vec(0u8..3, 0..30),
        4 => "params\\.[a-c]{1,3}\\.kernel/[0-9]\\.[0-9]".prop_map(String::into_bytes),
        1 => long,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_map_comes_home(
        map in btree_map(key(), vec(any::<u8>(), 0..300), 0..120),
        files in 1usize..4,
        inline in prop_oneof![Just(0u32), Just(100), Just(1024)],
        compression in prop_oneof![Just(Compression::None), Just(Compression::Zstd { level: 0 })],
        entries in prop_oneof![2u32..6, Just(1 << 20)],
        bytes in prop_oneof![Just(0u32), 200u32..2000],
    ) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &map, files, inline, compression, (entries, bytes));
        let (database, found) = read(dir.path());
        prop_assert_eq!(&found, &map);
        let statistics = database.version().statistics;
        prop_assert_eq!(statistics.keys, map.len() as u64);
        let indirect = database.entries().iter().filter(|entry| matches!(entry.value, Value::Indirect { .. }));
        prop_assert_eq!(statistics.indirect_value_bytes, indirect.map(|entry| entry.value.len()).sum::<u64>());
    }
}

#[test]
fn a_tree_of_many_levels_holds_every_key() {
    let dir = tempfile::tempdir().unwrap();
    let map: Map = (0..3000u32)
        .map(|n| {
            (
                format!("layer.{n:05}/0").into_bytes(),
                n.to_le_bytes().to_vec(),
            )
        })
        .collect();
    write(dir.path(), &map, 2, 1024, Compression::None, (2, 0));
    let (database, found) = read(dir.path());
    assert_eq!(found, map);
    assert!(
        database.version().height >= 11,
        "{}",
        database.version().height
    );
    let statistics = database.version().statistics;
    assert!(statistics.tree_bytes > 0 && statistics.keys == 3000);
}

#[test]
fn the_same_arguments_give_the_same_bytes() {
    let map: Map = (0..500u32)
        .map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; n as usize]))
        .collect();
    let bytes: Vec<_> = (0..2)
        .map(|_| {
            let dir = tempfile::tempdir().unwrap();
            write(
                dir.path(),
                &map,
                3,
                100,
                Compression::Zstd { level: 0 },
                (50, 0),
            );
            [
                "manifest.ocdbt".into(),
                format!("d/{}", name(0)),
                format!("d/{}", name(1)),
                format!("d/{}", name(2)),
            ]
            .map(|path: String| std::fs::read(dir.path().join(path)).unwrap())
        })
        .collect();
    assert_eq!(bytes[0], bytes[1]);
}

#[test]
fn a_database_without_keys_is_a_database() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), options(1024)).unwrap();
    let file = writer.data_file(&name(1)).unwrap();
    writer.finish(vec![file]).unwrap();
    let (database, found) = read(dir.path());
    assert!(found.is_empty());
    assert_eq!(database.version().generation, 1);
    assert_eq!(
        std::fs::read_dir(dir.path().join("d")).unwrap().count(),
        0,
        "an empty data file is left behind"
    );
}

#[test]
fn a_value_that_is_not_finished_does_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), options(1024)).unwrap();
    let mut file = writer.data_file(&name(1)).unwrap();
    file.value(b"given up")
        .unwrap()
        .write_all(b"half of")
        .unwrap();
    let mut kept = file.value(b"kept").unwrap();
    kept.write_all(b"all of it").unwrap();
    kept.finish().unwrap();
    writer.finish(vec![file]).unwrap();
    let (_, found) = read(dir.path());
    assert_eq!(
        found,
        Map::from([(b"kept".to_vec(), b"all of it".to_vec())])
    );
}

#[test]
fn the_longest_key_is_written_and_a_longer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), options(1024)).unwrap();
    let mut file = writer.data_file(&name(1)).unwrap();
    file.put(&[b'k'; 65_535], b"v").unwrap();
    assert!(matches!(
        file.put(&[b'k'; 65_536], b"v"),
        Err(Error::KeyLength { length: 65_536, .. })
    ));
    assert!(matches!(
        file.value(&[b'k'; 65_536]),
        Err(Error::KeyLength { .. })
    ));
    writer.finish(vec![file]).unwrap();
    assert_eq!(read(dir.path()).1.len(), 1);
}

#[test]
fn a_key_written_twice_is_refused_and_leaves_no_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), options(1024)).unwrap();
    let files = [1, 2].map(|n| {
        let mut file = writer.data_file(&name(n)).unwrap();
        file.put(b"same", b"value").unwrap();
        file
    });
    assert!(
        matches!(writer.finish(files.into()), Err(Error::DuplicateKey { key }) if key == "same")
    );
    assert!(!dir.path().join("manifest.ocdbt").exists());
}

#[test]
fn a_directory_in_use_a_bad_name_and_a_forgotten_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x"), "").unwrap();
    assert!(
        matches!(Writer::create(dir.path(), options(0)), Err(Error::NotEmpty { found, .. }) if found == "x")
    );
    let new = dir.path().join("new");
    assert!(matches!(
        Writer::create(&new, options(u32::MAX)),
        Err(Error::Setting { .. })
    ));
    let writer = Writer::create(&new, options(0)).unwrap();
    for bad in ["", "../../x", &"A".repeat(32), &"0".repeat(31)] {
        assert!(
            matches!(writer.data_file(bad), Err(Error::DataFileName { .. })),
            "{bad}"
        );
    }
    let file = writer.data_file(&name(1)).unwrap();
    assert!(matches!(writer.data_file(&name(1)), Err(Error::Io { .. })));
    drop(file);
    assert!(matches!(
        writer.finish(Vec::new()),
        Err(Error::DataFiles { made: 1, given: 0 })
    ));
    assert!(
        Writer::create(dir.path().join("y"), options(0))
            .unwrap()
            .node_limits(1, 0)
            .is_err()
    );
}
