//! Every recorded checkpoint reads as TensorStore and Orbax read it: names, shapes, types and raw bytes.
//!
//! `X.expect.npz` lies beside the checkpoint `X`: per leaf its bytes, and `__meta__`, a JSON text {array name: {dtype, shape, id}}.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use orbax::{Checkpoint, Dtype, Key, Npz, Source, Value, locate, read_array};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn dotted(path: &[Key]) -> String {
    path.iter().map(Key::to_string).collect::<Vec<_>>().join(".")
}

/// Compares one checkpoint with its recording; gives the number of arrays and strings compared.
fn compare(checkpoint: &Path, expected: &Path) -> (usize, usize) {
    let opened = Checkpoint::open(checkpoint).unwrap_or_else(|e| panic!("{}: {e}", checkpoint.display()));
    assert!(opened.warnings().is_empty(), "{}: {:?}", checkpoint.display(), opened.warnings());
    let npz = Npz::open(expected).unwrap();
    let ids: BTreeMap<&str, usize> = npz.arrays().iter().enumerate().map(|(i, a)| (a.name.as_str(), i)).collect();
    let mut meta: BTreeMap<String, Json> = serde_json::from_slice(&read_array(&npz, ids["__meta__"]).unwrap()).unwrap();
    let (mut arrays, mut strings) = (0, 0);
    for leaf in opened.leaves() {
        let name = dotted(&leaf.path);
        match &leaf.value {
            Value::Array(array) => {
                let info = &opened.arrays()[*array];
                let expected = meta.remove(&name).unwrap_or_else(|| panic!("{name} was not recorded"));
                assert_eq!(info.name, leaf.path.iter().map(Key::to_string).collect::<Vec<_>>().join("/"));
                let shape: Vec<u64> =
                    expected["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
                assert_eq!(info.shape, shape, "{name}");
                let found = read_array(&opened, *array).unwrap_or_else(|e| panic!("{}: {e}", checkpoint.display()));
                let mut bytes = read_array(&npz, ids[expected["id"].as_str().unwrap()]).unwrap();
                let recorded = Dtype::from_name(expected["dtype"].as_str().unwrap()).unwrap();
                if checkpoint.ends_with("castsave") {
                    // Recorded before the save, which cast it.
                    assert_eq!(recorded, Dtype::F32);
                    let narrow = |b: &[u8]| {
                        let n = f32::from_le_bytes(b.try_into().unwrap());
                        match info.dtype {
                            Dtype::Bf16 => half::bf16::from_f32(n).to_le_bytes(),
                            Dtype::F16 => half::f16::from_f32(n).to_le_bytes(),
                            other => panic!("cast to {other}"),
                        }
                    };
                    bytes = bytes.chunks(4).flat_map(narrow).collect();
                } else {
                    assert_eq!(info.dtype, recorded, "{name}");
                }
                assert!(found == bytes, "{}: {name} differs", checkpoint.display());
                arrays += 1;
            }
            Value::String(text) => {
                assert_eq!(meta.remove(&name).unwrap()["string"].as_str(), Some(text.as_str()));
                strings += 1;
            }
            Value::Empty(_) => assert!(!meta.contains_key(&name)),
        }
    }
    assert!(meta.is_empty(), "{}: never read: {:?}", checkpoint.display(), meta.keys());
    (arrays, strings)
}

#[test]
fn every_sample_reads_as_recorded() {
    let (mut checkpoints, mut arrays, mut strings) = (0, 0, 0);
    for folder in fs::read_dir(fixtures().join("orbax")).unwrap() {
        for entry in fs::read_dir(folder.unwrap().path()).unwrap() {
            let expected = entry.unwrap().path();
            let Some(checkpoint) = expected.to_str().unwrap().strip_suffix(".expect.npz") else {
                continue;
            };
            let (a, s) = compare(Path::new(checkpoint), &expected);
            (checkpoints, arrays, strings) = (checkpoints + 1, arrays + a, strings + s);
        }
    }
    assert_eq!((checkpoints, arrays, strings), COMPARED);
}

/// Checkpoints, arrays and strings with a recording in `fixtures/orbax`.
const COMPARED: (usize, usize, usize) = (78, 3216, 14);

#[test]
fn layouts_are_told_apart() {
    let orbax = fixtures().join("orbax");
    for (name, layout) in [
        ("orbax_pin/mixed_ocdbt_zarr2", "ocdbt, zarr2"),
        ("orbax_new/mixed_ocdbt_zarr3", "ocdbt, zarr3"),
        ("orbax_mid/mixed_plain_zarr2", "plain, zarr2"),
        ("orbax_new/mixed_plain_zarr3", "plain, zarr3"),
        ("multiproc_new/ck_zarr2", "ocdbt, zarr2"),
    ] {
        assert_eq!(Checkpoint::open(orbax.join(name)).unwrap().layout(), layout);
    }
}

#[test]
fn chunked_and_sharded_arrays_show_their_chunks() {
    let checkpoint = Checkpoint::open(fixtures().join("orbax/orbax_pin/sharded_ocdbt_zarr2")).unwrap();
    let info = checkpoint.arrays().iter().find(|a| a.name == "xy").unwrap();
    assert!(info.chunk_shape < info.shape, "{info:?}");
    let stored: u64 = (0..2).map(|chunk| checkpoint.stored_len(0, chunk).unwrap_or(0)).sum();
    assert!(stored > 0);
}

#[test]
fn typed_prng_keys_say_their_implementation() {
    for version in ["managers_pin", "managers_new"] {
        let checkpoint = Checkpoint::open(fixtures().join("orbax").join(version).join("key")).unwrap();
        let key = checkpoint.arrays().iter().position(|a| a.name == "k").unwrap();
        assert_eq!(checkpoint.prng_impl(key), Some("threefry2x32"));
        assert_eq!(checkpoint.arrays()[key].dtype, Dtype::U32);
        let plain = checkpoint.arrays().iter().position(|a| a.name == "a").unwrap();
        assert_eq!(checkpoint.prng_impl(plain), None);
    }
}

#[test]
fn managers_of_every_kind_are_located_and_read_to_the_end() {
    let mut arrays = 0;
    for version in ["managers_pin", "managers_new"] {
        let root = fixtures().join("orbax").join(version);
        let v1 = if version == "managers_pin" { "pytree" } else { "state" };
        for (path, item, expected, step) in [
            ("manager", None, "manager/5/params".to_owned(), Some(5)),
            ("manager/5", Some("train_state"), "manager/5/train_state".to_owned(), Some(5)),
            ("mgr_default", None, "mgr_default/7/default".to_owned(), Some(7)),
            ("v1", None, format!("v1/{v1}"), None),
            ("standard", None, "standard".to_owned(), None),
            ("key", None, "key".to_owned(), None),
        ] {
            let location = locate(root.join(path), item).unwrap();
            assert_eq!((location.dir.as_path(), location.step), (root.join(expected).as_path(), step), "{path}");
            let checkpoint = Checkpoint::open(&location.dir).unwrap();
            for array in 0..checkpoint.arrays().len() {
                let bytes = read_array(&checkpoint, array).unwrap();
                let info = &checkpoint.arrays()[array];
                assert_eq!(bytes.len() as u64, info.shape.iter().product::<u64>() * info.dtype.size() as u64);
                arrays += 1;
            }
        }
    }
    assert_eq!(arrays, MANAGED);
}

/// Arrays of `fixtures/orbax/managers_*`.
const MANAGED: usize = 66;

#[test]
fn openpis_own_training_folders_are_located_with_their_assets() {
    for run in ["pi0_ema", "pi0_noema", "pi0_lora"] {
        let root = fixtures().join("checkpoints/manager").join(run);
        let location = locate(&root, None).unwrap();
        assert_eq!((location.step, location.item.as_deref()), (Some(7), Some("params")));
        assert_eq!(location.assets, Some(root.join("7/assets")));
        assert_eq!(location.taken, "the only step: 7, item params (of params, train_state)");
        let state = locate(&root, Some("train_state")).unwrap();
        Checkpoint::open(state.dir).unwrap();
    }
}

#[test]
fn nnx_leaves_end_in_value_and_stay_so() {
    let checkpoint = Checkpoint::open(fixtures().join("checkpoints/manager/pi0_ema/7/params")).unwrap();
    assert!(!checkpoint.leaves().is_empty());
    assert!(checkpoint.leaves().iter().all(|leaf| leaf.path.last() == Some(&Key::Name("value".into()))));
}

#[test]
fn raw_views_read_what_checkpoints_read() {
    let dir = fixtures().join("orbax/orbax_pin/mixed_ocdbt_zarr3");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let database = orbax::raw::Database::open(&dir).unwrap();
    assert!(database.keys().any(|(key, length)| key == b"np.f64/zarr.json" && length > 0));
    assert_eq!(database.array_names().unwrap().len(), checkpoint.arrays().len());
    let array = database.array("np.f64").unwrap();
    let index = checkpoint.arrays().iter().position(|a| a.name == "np/f64").unwrap();
    assert_eq!(read_array(&array, 0).unwrap(), read_array(&checkpoint, index).unwrap());

    let plain = orbax::raw::Array::open(fixtures().join("orbax/orbax_pin/mixed_plain_zarr2/np.f64")).unwrap();
    assert_eq!(read_array(&plain, 0).unwrap(), read_array(&checkpoint, index).unwrap());
    assert_eq!(plain.arrays()[0].name, "np.f64");
    assert!(orbax::raw::Array::open(&dir).is_err());
}

#[test]
fn the_tiny_models_hold_their_golden_parameters() {
    let text = fs::read(fixtures().join("checkpoints/expect.json")).unwrap();
    let expect: BTreeMap<String, BTreeMap<String, Recorded>> = serde_json::from_slice(&text).unwrap();
    let mut compared = 0;
    for (name, mut leaves) in expect {
        let checkpoint = Checkpoint::open(fixtures().join("checkpoints").join(&name).join("params")).unwrap();
        for (array, info) in checkpoint.arrays().iter().enumerate() {
            let leaf = info.name.strip_prefix("params/").unwrap();
            let leaf = leaf.strip_suffix("/value").unwrap_or(leaf);
            // Not listed: the golden run scaled this table after the checkpoint was written.
            if name == "base/pi0fast" && leaf == "PaliGemma/llm/embedder/input_embedding" {
                continue;
            }
            let (dtype, shape, sha256) = leaves.remove(leaf).unwrap_or_else(|| panic!("{name}: {leaf}"));
            assert_eq!((info.dtype.name(), &info.shape), (dtype.as_str(), &shape), "{name}: {leaf}");
            let bytes = read_array(&checkpoint, array).unwrap();
            let found: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(found, sha256, "{name}: {leaf}");
            compared += 1;
        }
        assert!(leaves.is_empty(), "{name}: never read: {:?}", leaves.keys());
    }
    assert_eq!(compared, GOLDEN);
}

/// dtype, shape, SHA-256.
type Recorded = (String, Vec<u64>, String);
/// Leaves listed in `fixtures/checkpoints/expect.json`.
const GOLDEN: usize = 232;
