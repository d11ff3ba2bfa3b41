//! Tests of the look at databases and arrays: what Orbax stored, what it read back, and broken documents.

use std::collections::BTreeMap;
use std::fs;

use orbax::{Npz, read_array};

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/orbax").join(name)
}

fn look_at(path: &Path, array: Option<&str>) -> Result<Raw> {
    look(path, array, &RawOptions::new(2, std::env::temp_dir()))
}

fn array_at(path: &Path, array: Option<&str>) -> Array {
    match look_at(path, array).unwrap() {
        Raw::Array(array) => array,
        Raw::Database(_) => panic!("{}: a database", path.display()),
    }
}

fn database_at(path: &Path) -> Database {
    match look_at(path, None).unwrap() {
        Raw::Database(database) => database,
        Raw::Array(_) => panic!("{}: an array", path.display()),
    }
}

/// A zarr v2 array: its document and some chunks.
fn zarr2(document: &str, chunks: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".zarray"), document).unwrap();
    for (key, bytes) in chunks {
        fs::write(folder.path().join(key), bytes).unwrap();
    }
    folder
}

fn document(shape: &str, chunks: &str, dtype: &str, order: &str) -> String {
    format!(
        r#"{{"shape":{shape},"chunks":{chunks},"dtype":"{dtype}","order":"{order}","fill_value":7,"filters":null,"compressor":null,"dimension_separator":".","zarr_format":2}}"#
    )
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn sha(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[test]
fn every_array_has_the_bytes_that_orbax_read() {
    let mut arrays = 0;
    for name in [
        "orbax_pin/chunked_ocdbt_zarr2",
        "orbax_pin/chunked_plain_zarr3",
        "orbax_pin/shardchunk_ocdbt_zarr3",
        "orbax_new/shardchunk_plain_zarr2",
        "orbax_pin/fp8_ocdbt",
    ] {
        let expected = Npz::open(fixture(&format!("{name}.expect.npz"))).unwrap();
        let read = |id: &str| {
            let at = expected.arrays().iter().position(|a| a.name == id).unwrap_or_else(|| panic!("{name}: no {id}"));
            read_array(&expected, at).unwrap()
        };
        let meta: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&read("__meta__")).unwrap();
        for (array, about) in meta {
            // In memory, and through a file.
            for memory_bytes in [64 << 20, 0] {
                let options = RawOptions { memory_bytes, ..RawOptions::new(2, std::env::temp_dir()) };
                let Raw::Array(found) = look(&fixture(name), Some(&array), &options).unwrap() else {
                    panic!("{array}")
                };
                assert_eq!(found.sha256, sha(&read(about["id"].as_str().unwrap())), "{name} {array}");
                assert_eq!(serde_json::to_value(&found.shape).unwrap(), about["shape"], "{name} {array}");
                assert_eq!(found.dtype, about["dtype"], "{name} {array}");
                assert_eq!(found.absent, 0, "{name} {array}");
            }
            arrays += 1;
        }
    }
    assert!(arrays > 20, "{arrays}");
}

#[test]
fn a_database_is_listed_with_its_keys_their_places_its_versions_and_its_settings() {
    let path = fixture("orbax_pin/chunked_ocdbt_zarr2");
    let found = database_at(&path);
    assert_eq!(found.arrays, ["a", "b", "c", "d"]);
    assert!(found.keys.is_sorted_by(|a, b| a.key < b.key));
    assert!(found.keys.iter().any(|k| k.key == "a/.zarray"));
    assert_eq!(found.config.uuid.len(), 32);
    assert!(!found.versions.is_empty());
    assert!(found.versions.is_sorted_by(|a, b| a.generation < b.generation));
    let outside = found.keys.iter().filter_map(|k| Some((k, k.place.as_ref()?)));
    let mut seen = 0;
    for (key, place) in outside {
        let file = path.join(&place.file);
        let size = fs::metadata(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).len();
        assert!(place.offset + key.bytes <= size, "{key:?} in a file of {size}");
        seen += 1;
    }
    assert!(seen > 0 && seen < found.keys.len() + 1);
}

#[test]
fn the_tiny_database_has_six_versions_and_values_in_the_tree_and_in_the_files_of_two_processes() {
    let found = database_at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ocdbt/tiny"));
    assert_eq!((found.versions.len(), found.config.max_inline_value_bytes), (6, 8));
    assert!(found.arrays.is_empty());
    let key = |name: &str| found.keys.iter().find(|k| k.key == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!((key("net/l1/b").bytes, &key("net/l1/b").place), (4, &None));
    let place = |name: &str| key(name).place.as_ref().map(|p| (p.file.split('/').next().unwrap(), p.offset));
    assert_eq!((key("net/l2/w").bytes, place("net/l2/w")), (16, Some(("proc_0", 16))));
    assert_eq!(place("net/l3/w"), Some(("proc_1", 0)));
}

#[test]
fn a_part_database_of_one_process_is_looked_into_as_well() {
    let found = database_at(&fixture("orbax_pin/chunked_ocdbt_zarr2/ocdbt.process_0"));
    assert!(!found.keys.is_empty());
}

#[test]
fn statistics_count_what_is_no_finite_number_and_measure_the_rest() {
    let values = [1.0, f32::NAN, 3.0, f32::INFINITY, 5.0, f32::NEG_INFINITY];
    let folder = zarr2(
        &document("[6]", "[4]", "<f4", "C"),
        &[
            ("0", f32s(&values[..4])),
            // What lies behind the edge is not the array's.
            ("1", f32s(&[5.0, f32::NEG_INFINITY, 1e30, f32::NAN])),
        ],
    );
    let found = array_at(folder.path(), None);
    let expected =
        Statistics { min: Some(1.0), max: Some(5.0), mean: Some(3.0), std: Some((8f64 / 3.0).sqrt()), nan: 1, inf: 2 };
    assert_eq!(found.statistics, Some(expected));
    assert_eq!(found.first, ["1.0", "NaN", "3.0", "inf", "5.0", "-inf"]);
    assert_eq!(found.sha256, sha(&f32s(&values)));
    assert_eq!((found.chunks, found.absent, found.stored_bytes, found.bytes), (2, 0, 32, 24));
}

#[test]
fn chunks_in_fortran_order_and_across_the_last_axis_come_out_in_c_order() {
    // 3 x 5 in chunks of 2 x 3, first axis fastest; element (i, j) is 10 i + j.
    let chunk = |rows: u64, columns: u64| -> Vec<u8> {
        let values: Vec<f32> =
            (0..3).flat_map(|j| (0..2).map(move |i| (10 * (rows + i) + columns + j) as f32)).collect();
        f32s(&values)
    };
    let folder = zarr2(
        &document("[3,5]", "[2,3]", "<f4", "F"),
        &[("0.0", chunk(0, 0)), ("0.1", chunk(0, 3)), ("1.0", chunk(2, 0))],
    );
    let found = array_at(folder.path(), None);
    // Chunk 1.1 is absent: the fill value.
    let values: Vec<f32> =
        (0..3).flat_map(|i| (0..5).map(move |j| if i == 2 && j > 2 { 7.0 } else { (10 * i + j) as f32 })).collect();
    assert_eq!(found.sha256, sha(&f32s(&values)));
    assert_eq!((found.order, found.chunks, found.absent), ("F", 4, 1));
    assert_eq!(found.first.len(), FIRST);
}

#[test]
fn a_large_mean_does_not_hide_a_small_spread() {
    let mut moments = Moments::default();
    for _ in 0..100 {
        moments.add(&[1e9, 1e9 + 1.0]);
    }
    let found = moments.statistics(Dtype::F64).unwrap();
    assert_eq!((found.mean, found.std), (Some(1e9 + 0.5), Some(0.5)));
}

#[test]
fn scalars_empty_arrays_and_whole_absent_ones_have_a_report() {
    let scalar = zarr2(&document("[]", "[]", "<i8", "C"), &[("0", 42i64.to_le_bytes().to_vec())]);
    assert_eq!(array_at(scalar.path(), None).first, ["42"]);
    let empty = zarr2(&document("[0,4]", "[1,4]", "<f4", "C"), &[]);
    let found = array_at(empty.path(), None);
    assert_eq!((found.sha256, found.bytes), (sha(&[]), 0));
    assert_eq!(found.statistics, Some(Statistics::default()));
    let absent = zarr2(&document("[3]", "[2]", "|u1", "C"), &[]);
    let found = array_at(absent.path(), None);
    assert_eq!((found.sha256, found.absent, found.stored_bytes), (sha(&[7, 7, 7]), 2, 0));
}

#[test]
fn chunks_that_are_too_short_or_too_long_are_errors_that_name_the_array() {
    for length in [3 * 4, 5 * 4] {
        let folder = zarr2(&document("[4]", "[4]", "<f4", "C"), &[("0", vec![0; length])]);
        assert!(look_at(folder.path(), None).is_err(), "{length}");
    }
}

#[test]
fn forged_shapes_are_refused_before_anything_is_decoded() {
    for (shape, chunks) in [
        ("[1099511627776]", "[1099511627776]"),
        ("[4294967296,8]", "[4294967296,8]"),
        ("[9223372036854775807,9]", "[1,1]"),
        ("[4]", "[68719476736]"),
        ("[-1]", "[1]"),
        ("[1]", "[0]"),
    ] {
        let folder = zarr2(&document(shape, chunks, "<f4", "C"), &[]);
        assert!(look_at(folder.path(), None).is_err(), "{shape} {chunks}");
    }
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let nothing = tempfile::tempdir().unwrap();
    let error = look_at(nothing.path(), None).unwrap_err().to_string();
    assert!(error.contains("manifest.ocdbt") && error.contains(".zarray"), "{error}");
    let error = look_at(&fixture("orbax_pin/chunked_ocdbt_zarr2"), Some("e")).unwrap_err().to_string();
    assert!(error.contains("\"e\"") && error.contains("a, b, c, d"), "{error}");
}

#[test]
fn a_damaged_manifest_is_an_error_whichever_byte_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("orbax_pin/chunked_ocdbt_zarr2");
    for below in ["d", "ocdbt.process_0/d"] {
        fs::create_dir_all(folder.path().join(below)).unwrap();
        for entry in fs::read_dir(from.join(below)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(below).join(entry.file_name())).unwrap();
        }
    }
    let manifest = fs::read(from.join("manifest.ocdbt")).unwrap();
    let path = folder.path().join("manifest.ocdbt");
    fs::write(&path, &manifest).unwrap();
    assert_eq!(database_at(folder.path()).keys, database_at(&from).keys);
    for at in 0..manifest.len() {
        let mut broken = manifest.clone();
        broken[at] ^= 0x10;
        fs::write(&path, broken).unwrap();
        assert!(look_at(folder.path(), None).is_err(), "byte {at}");
    }
}

#[test]
fn keys_that_are_no_text_are_escaped() {
    assert_eq!(printable(b"a/.zarray"), "a/.zarray");
    assert_eq!(printable("uni_é".as_bytes()), "uni_é");
    assert_eq!(printable(b"a\xff\n"), "a\\xff\\n");
    assert_eq!(printable(b"\x1b[2J"), "\\x1b[2J");
}
