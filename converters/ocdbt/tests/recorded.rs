//! Every database of `fixtures/ocdbt`, every version of it, against what TensorStore itself read there (`raw_expect.json`).

use std::fmt::Write;
use std::io::Read;
use std::path::PathBuf;

use ocdbt::Database;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ocdbt")
}

fn expected() -> serde_json::Map<String, Json> {
    let text = std::fs::read_to_string(fixtures().join("raw_expect.json")).unwrap();
    match serde_json::from_str(&text).unwrap() {
        Json::Object(map) => map,
        other => panic!("{other}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn name(key: &[u8]) -> String {
    if key.len() <= 200 {
        hex(key)
    } else {
        format!("sha256:{}", hex(&Sha256::digest(key)))
    }
}

fn roll_up(database: &Database) -> String {
    let mut total = Sha256::new();
    for entry in database.entries() {
        total.update((entry.key.len() as u32).to_le_bytes());
        total.update(&entry.key);
        total.update(Sha256::digest(database.read(&entry.value).unwrap()));
    }
    hex(&total.finalize())
}

#[test]
fn every_key_and_value_is_what_tensorstore_read() {
    let mut keys = 0;
    for (path, record) in expected() {
        let database = Database::open(fixtures().join(&path)).unwrap();
        if let Some(expected) = record["keys"].as_array() {
            let found: Vec<Json> = database
                .entries()
                .iter()
                .map(|entry| {
                    let value = database.read(&entry.value).unwrap();
                    serde_json::json!([name(&entry.key), value.len(), hex(&Sha256::digest(&value))])
                })
                .collect();
            assert_eq!(&found, expected, "{path}");
        }
        let newest = record["generations"].as_array().unwrap().last().unwrap();
        assert_eq!(database.entries().len() as u64, newest[1], "{path}");
        assert_eq!(roll_up(&database), newest[2].as_str().unwrap(), "{path}");
        assert_eq!(database.version().statistics.keys, newest[1], "{path}");
        keys += database.entries().len();
    }
    assert!(keys > 50_000, "{keys}");
}

#[test]
fn every_older_version_is_what_tensorstore_read() {
    let mut versions = 0;
    for (path, record) in expected() {
        let dir = fixtures().join(&path);
        let listed: Vec<u64> = Database::open(&dir)
            .unwrap()
            .versions()
            .unwrap()
            .iter()
            .map(|version| version.generation)
            .collect();
        let recorded = record["generations"].as_array().unwrap();
        let generations: Vec<u64> = recorded
            .iter()
            .map(|one| one[0].as_u64().unwrap())
            .collect();
        assert_eq!(listed, generations, "{path}");
        for one in recorded {
            let database = Database::open_generation(&dir, one[0].as_u64().unwrap()).unwrap();
            assert_eq!(database.entries().len() as u64, one[1], "{path} {one}");
            assert_eq!(roll_up(&database), one[2].as_str().unwrap(), "{path} {one}");
            versions += 1;
        }
        let beyond = Database::open_generation(&dir, generations.last().unwrap() + 1).unwrap_err();
        assert!(
            beyond.to_string().contains("is not in the database"),
            "{beyond}"
        );
    }
    assert!(versions > 400, "{versions}");
}

#[test]
fn every_key_is_found_and_its_neighbours_are_not() {
    let database = Database::open(fixtures().join("raw_pin/deep_updates")).unwrap();
    for entry in database.entries() {
        assert_eq!(database.get(&entry.key), Some(&entry.value));
        assert_eq!(database.get(&[entry.key.as_slice(), b"\0"].concat()), None);
        let below: Vec<_> = database
            .entries()
            .iter()
            .filter(|other| other.key.starts_with(&entry.key))
            .collect();
        assert_eq!(
            database
                .entries_with_prefix(&entry.key)
                .iter()
                .collect::<Vec<_>>(),
            below
        );
    }
    assert_eq!(
        database.entries_with_prefix(b"").len(),
        database.entries().len()
    );
}

#[test]
fn parts_of_a_value_are_read_and_streamed_from_several_threads() {
    let database = Database::open(fixtures().join("raw_pin/inline_max")).unwrap();
    std::thread::scope(|scope| {
        for entry in database.entries() {
            let database = &database;
            scope.spawn(move || {
                let whole = database.read(&entry.value).unwrap();
                let length = entry.value.len();
                assert_eq!(whole.len() as u64, length);
                for (offset, part) in [
                    (0, length),
                    (length / 2, length / 3),
                    (length, 0),
                    (length.min(7), 0),
                ] {
                    let expected = &whole[offset as usize..(offset + part) as usize];
                    assert_eq!(
                        database.read_range(&entry.value, offset, part).unwrap(),
                        expected
                    );
                    let mut streamed = Vec::new();
                    database
                        .reader(&entry.value, offset, part)
                        .unwrap()
                        .read_to_end(&mut streamed)
                        .unwrap();
                    assert_eq!(streamed, expected);
                }
                for (offset, part) in [(0, length + 1), (length, 1), (u64::MAX, 2), (1, u64::MAX)] {
                    assert!(database.read_range(&entry.value, offset, part).is_err());
                    assert!(database.reader(&entry.value, offset, part).is_err());
                }
            });
        }
    });
}
