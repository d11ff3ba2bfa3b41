//! Damaged and forged checkpoints: each a named error, none a panic, a hang or a large allocation.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use orbax::{Checkpoint, Chunk, Source, read_array};
use serde_json::{Value as Json, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// A plain checkpoint of one array `w`, 2 x 4 bytes in two chunks, which the tests then damage.
struct Sample(tempfile::TempDir);

impl Sample {
    fn new() -> Self {
        let sample = Sample(tempfile::tempdir().unwrap());
        fs::create_dir(sample.path("w")).unwrap();
        sample.document("w/.zarray", &json!({"chunks":[1,4],"compressor":{"id":"zstd","level":1},"dtype":"|u1","fill_value":5,"filters":null,"order":"C","shape":[2,4],"zarr_format":2}));
        sample.file("w/0.0", &zstd::encode_all([1, 2, 3, 4].as_slice(), 1).unwrap());
        sample.file("w/1.0", &zstd::encode_all([5, 6, 7, 8].as_slice(), 1).unwrap());
        sample.metadata(json!({"w": leaf(&[("w", 2)], "jax.Array", false)}), true);
        sample
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn file(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }
    fn document(&self, name: &str, document: &Json) {
        self.file(name, document.to_string().as_bytes());
    }
    fn metadata(&self, leaves: Json, strict: bool) {
        self.document("_METADATA", &json!({"tree_metadata": leaves, "store_array_data_equal_to_fill_value": strict}));
    }
    fn open(&self) -> orbax::Result<Checkpoint> {
        Checkpoint::open(self.0.path())
    }
    fn refused(&self, with: &str) {
        let error = self.open().unwrap_err().to_string();
        assert!(error.contains(with), "{error}");
    }
    fn unreadable(&self, with: &str) {
        let error = read_array(&self.open().unwrap(), 0).unwrap_err().to_string();
        assert!(error.contains("array \"w\", chunk") && error.contains(with), "{error}");
    }
}

fn leaf(path: &[(&str, u64)], value_type: &str, skip: bool) -> Json {
    let keys: Vec<Json> = path.iter().map(|(key, kind)| json!({"key": key, "key_type": kind})).collect();
    json!({"key_metadata": keys, "value_metadata": {"value_type": value_type, "skip_deserialize": skip}})
}

#[test]
fn the_sample_itself_is_sound() {
    assert_eq!(read_array(&Sample::new().open().unwrap(), 0).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_missing_chunk_is_an_error_where_all_are_stored_and_the_fill_value_elsewhere() {
    let sample = Sample::new();
    fs::remove_file(sample.path("w/1.0")).unwrap();
    sample.unreadable("chunk 1.0: missing");
    sample.metadata(json!({"w": leaf(&[("w", 2)], "jax.Array", false)}), false);
    let checkpoint = sample.open().unwrap();
    assert_eq!(read_array(&checkpoint, 0).unwrap(), [1, 2, 3, 4, 5, 5, 5, 5]);
    assert!(matches!(checkpoint.chunk(0, 1).unwrap(), Chunk::Fill(element) if element == [5]));
    assert_eq!(checkpoint.stored_len(0, 1).unwrap(), 0);
}

#[test]
fn a_damaged_chunk_is_named() {
    let sample = Sample::new();
    let two = zstd::encode_all([5, 6, 7, 8].as_slice(), 1).unwrap();
    for (bytes, with) in [
        (vec![], "1.0: "),
        (b"garbage".to_vec(), "1.0: "),
        (zstd::encode_all([5, 6, 7].as_slice(), 1).unwrap(), "1.0: too short"),
        (zstd::encode_all([5, 6, 7, 8, 9].as_slice(), 1).unwrap(), "1.0: too long"),
        ([two.clone(), vec![0]].concat(), "behind the end"),
        ([two.clone(), two].concat(), "behind the end"),
        (zstd::encode_all(vec![0; 100 << 20].as_slice(), 1).unwrap(), "1.0: too long"),
    ] {
        sample.file("w/1.0", &bytes);
        sample.unreadable(with);
    }
}

#[test]
fn a_huge_shape_over_a_small_chunk_is_refused_before_memory_is_taken() {
    let sample = Sample::new();
    sample.document("w/.zarray", &json!({"chunks":[1u64 << 32],"compressor":{"id":"zstd"},"dtype":"|u1","fill_value":0,"filters":null,"order":"C","shape":[1u64 << 33],"zarr_format":2}));
    fs::rename(sample.path("w/0.0"), sample.path("w/0")).unwrap();
    sample.unreadable("stored bytes cannot hold");
    sample.document("w/.zarray", &json!({"chunks":[1u64 << 37],"compressor":{"id":"zstd"},"dtype":"|u1","fill_value":0,"filters":null,"order":"C","shape":[1u64 << 38],"zarr_format":2}));
    let error = read_array(&sample.open().unwrap(), 0).unwrap_err().to_string();
    assert!(error.contains("w: ") && error.contains("at most"), "{error}");
}

#[test]
fn a_huge_array_of_absent_chunks_is_refused_before_memory_is_taken() {
    let sample = Sample::new();
    sample.metadata(json!({"w": leaf(&[("w", 2)], "jax.Array", false)}), false);
    sample.document("w/.zarray", &json!({"chunks":[1u64 << 30, 1],"compressor":null,"dtype":"|u1","fill_value":0,"filters":null,"order":"C","shape":[1u64 << 30, 15],"zarr_format":2}));
    for chunk in ["w/0.0", "w/1.0"] {
        fs::remove_file(sample.path(chunk)).unwrap();
    }
    let error = read_array(&sample.open().unwrap(), 0).unwrap_err().to_string();
    assert!(error.contains("w: 16106127360 bytes"), "{error}");
}

#[test]
fn a_zarr_document_beyond_the_cap_is_refused() {
    let sample = Sample::new();
    sample.file("w/.zarray", &vec![b' '; (1 << 20) + 1]);
    sample.refused("w/.zarray: 1048577 bytes, at most 1048576");
}

#[test]
fn metadata_that_is_missing_or_not_json_is_refused() {
    let sample = Sample::new();
    sample.file("_METADATA", b"{");
    sample.refused("_METADATA: ");
    fs::remove_file(sample.path("_METADATA")).unwrap();
    sample.refused("no _METADATA in it");
    sample.file("checkpoint", b"\x80");
    sample.refused("Orbax < 0.4");
}

#[test]
fn a_leaf_without_an_array_is_refused_and_an_array_without_a_leaf_is_a_warning() {
    let sample = Sample::new();
    sample.metadata(
        json!({"w": leaf(&[("w", 2)], "jax.Array", false), "v": leaf(&[("a", 2), ("v", 2)], "jax.Array", false)}),
        true,
    );
    sample.refused("leaf \"a/v\": no array \"a.v\" is stored");
    sample.metadata(json!({}), true);
    let checkpoint = sample.open().unwrap();
    assert_eq!(checkpoint.warnings(), ["array \"w\" is stored, but _METADATA lists no leaf for it; it was left out"]);
    assert_eq!(checkpoint.layout(), "plain, no arrays");
}

#[test]
fn trees_that_are_none_are_refused() {
    let sample = Sample::new();
    let w = || leaf(&[("w", 2)], "jax.Array", false);
    for (leaves, with) in [
        (json!({"1": w(), "2": w()}), "leaf \"w\": listed twice"),
        (json!({"w": w(), "x": leaf(&[("l", 2), ("1", 1)], "None", true)}), "leaf \"l\": a sequence without element 0"),
        (json!({"w": leaf(&[("w", 7)], "jax.Array", false)}), "key_type"),
        (json!({"w": leaf(&[("w", 2)], "torch.Tensor", false)}), "leaf \"w\": unknown value_type \"torch.Tensor\""),
        (json!({"w": leaf(&[("w", 2)], "None", false)}), "unknown value_type"),
        (json!({"w": leaf(&[("w", 2)], "string", false)}), "_strings.json has no \"w\""),
        (
            json!({"1": leaf(&[("w.x", 2)], "jax.Array", false), "2": leaf(&[("w", 2), ("x", 2)], "jax.Array", false)}),
            "no array \"w.x\"",
        ),
    ] {
        sample.metadata(leaves, true);
        sample.refused(with);
    }
}

#[test]
fn two_leaves_of_one_stored_name_are_refused() {
    let sample = Sample::new();
    fs::rename(sample.path("w"), sample.path("w.x")).unwrap();
    sample.metadata(
        json!({"1": leaf(&[("w.x", 2)], "jax.Array", false), "2": leaf(&[("w", 2), ("x", 2)], "jax.Array", false)}),
        true,
    );
    sample.refused("shares the array \"w.x\"");
}

#[test]
fn a_name_that_leads_outside_is_refused() {
    let sample = Sample::new();
    for name in ["../w", "/etc", "a//b"] {
        sample.metadata(json!({"w": leaf(&[(name, 2)], "jax.Array", false)}), true);
        sample.refused("not a path below the checkpoint");
    }
}

#[test]
fn links_are_not_followed() {
    let sample = Sample::new();
    fs::rename(sample.path("w/1.0"), sample.path("elsewhere")).unwrap();
    symlink("../elsewhere", sample.path("w/1.0")).unwrap();
    let error = read_array(&sample.open().unwrap(), 0).unwrap_err().to_string();
    assert!(error.contains("w/1.0: a symlink"), "{error}");
    fs::rename(sample.path("_METADATA"), sample.path("m")).unwrap();
    symlink("m", sample.path("_METADATA")).unwrap();
    sample.refused("_METADATA: a symlink");
}

#[test]
fn unfinished_saves_are_named() {
    let root = tempfile::tempdir().unwrap();
    let process = root.path().join("ckpt/ocdbt.process_0");
    fs::create_dir_all(&process).unwrap();
    fs::write(process.join("manifest.ocdbt"), "x").unwrap();
    fs::write(root.path().join("ckpt/_METADATA"), r#"{"tree_metadata": {}}"#).unwrap();
    let error = Checkpoint::open(root.path().join("ckpt")).unwrap_err().to_string();
    assert!(error.contains("an unfinished save: ocdbt.process_0 without a merged manifest.ocdbt"), "{error}");
    let temporary = root.path().join("5.orbax-checkpoint-tmp-17");
    fs::create_dir(&temporary).unwrap();
    assert!(Checkpoint::open(temporary).unwrap_err().to_string().contains("an unfinished save"));
}

#[test]
fn a_copy_without_its_manifest_is_named() {
    let sample = Sample::new();
    sample.document("_METADATA", &json!({"tree_metadata": {}, "use_ocdbt": true}));
    sample.refused("manifest.ocdbt is missing");
}

/// A v3 array `w` of 4 bytes in one shard of two chunks; `shard` is the file.
fn sharded(start: bool) -> (Sample, Vec<u8>) {
    let sample = Sample::new();
    fs::remove_dir_all(sample.path("w")).unwrap();
    fs::create_dir_all(sample.path("w/c")).unwrap();
    let location = if start { "start" } else { "end" };
    sample.document("w/zarr.json", &json!({"chunk_grid":{"configuration":{"chunk_shape":[4]},"name":"regular"},"chunk_key_encoding":{"name":"default"},
        "codecs":[{"configuration":{"chunk_shape":[2],"codecs":[{"name":"bytes"}],"index_codecs":[{"name":"bytes"},{"name":"crc32c"}],"index_location":location},"name":"sharding_indexed"}],
        "data_type":"uint8","fill_value":9,"node_type":"array","shape":[4],"zarr_format":3}));
    let data = if start { 36 } else { 0 };
    let shard = shard(start, [(data, 2), (data + 2, 2)]);
    sample.file("w/c/0", &shard);
    (sample, shard)
}

fn shard(start: bool, entries: [(u64, u64); 2]) -> Vec<u8> {
    let mut index: Vec<u8> = entries.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()].concat()).collect();
    index.extend_from_slice(&crc32c::crc32c(&index).to_le_bytes());
    if start { [index, vec![1, 2, 3, 4]].concat() } else { [vec![1, 2, 3, 4], index].concat() }
}

#[test]
fn shards_of_several_chunks_are_read_with_the_index_at_either_end() {
    for start in [false, true] {
        let (sample, _) = sharded(start);
        let checkpoint = sample.open().unwrap();
        assert_eq!(checkpoint.arrays()[0].chunk_shape, [2]);
        assert_eq!(read_array(&checkpoint, 0).unwrap(), [1, 2, 3, 4]);
        assert_eq!(checkpoint.stored_len(0, 1).unwrap(), 2);
    }
}

#[test]
fn forged_shards_are_refused() {
    for start in [false, true] {
        let (sample, good) = sharded(start);
        let data = if start { 36 } else { 0 };
        for (bytes, with) in [
            (good[..20].to_vec(), "shorter than the shard index"),
            (shard(start, [(data, 2), (data + 2, 3)]), "lie outside the data of its shard"),
            (shard(start, [(data, 2), (u64::MAX - 1, 2)]), "lie outside"),
            (shard(start, [(data, 2), (u64::MAX, 2)]), "lie outside"),
            (shard(start, [(data, 2), (if start { 34 } else { 4 }, 2)]), "lie outside"),
            (shard(start, [(data, 2), (data + 2, 1)]), "too short"),
            (shard(start, [(data, 2), (data + 1, 3)]), "too long"),
        ] {
            sample.file("w/c/0", &bytes);
            sample.unreadable(with);
        }
        let mut flipped = good.clone();
        flipped[if start { 3 } else { 10 }] ^= 1;
        sample.file("w/c/0", &flipped);
        sample.unreadable("CRC-32C");
    }
}

#[test]
fn an_absent_sub_chunk_follows_the_rule_of_missing_chunks() {
    let (sample, _) = sharded(false);
    sample.file("w/c/0", &shard(false, [(0, 2), (u64::MAX, u64::MAX)]));
    sample.unreadable("chunk 1: missing");
    sample.metadata(json!({"w": leaf(&[("w", 2)], "jax.Array", false)}), false);
    assert_eq!(read_array(&sample.open().unwrap(), 0).unwrap(), [1, 2, 9, 9]);
}

#[test]
fn order_f_big_endian_and_edge_chunks_are_read() {
    let sample = Sample::new();
    sample.document("w/.zarray", &json!({"chunks":[2,2],"compressor":null,"dtype":">u2","fill_value":null,"filters":null,"order":"F","shape":[2,3],"zarr_format":2}));
    let stored = |words: [u16; 4]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
    sample.file("w/0.0", &stored([1, 4, 2, 5]));
    sample.file("w/0.1", &stored([3, 6, 99, 99]));
    let words: Vec<u16> =
        read_array(&sample.open().unwrap(), 0).unwrap().chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    assert_eq!(words, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn every_cut_of_a_real_checkpoint_is_an_error_and_never_a_panic() {
    let from = fixtures().join("orbax/orbax_pin/mixed_plain_zarr3");
    for (array, document) in [("np.f64", "zarr.json"), ("c64", "c/0")] {
        let whole = fs::read(from.join(array).join(document)).unwrap();
        for cut in 0..whole.len() {
            let copy = tempfile::tempdir().unwrap();
            let folder = copy.path().join(array);
            fs::create_dir_all(folder.join("c")).unwrap();
            for name in ["zarr.json", "c/0"] {
                fs::copy(from.join(array).join(name), folder.join(name)).unwrap();
            }
            fs::write(folder.join(document), &whole[..cut]).unwrap();
            let read = orbax::raw::Array::open(&folder).and_then(|source| read_array(&source, 0));
            assert!(read.is_err(), "{array}/{document} cut to {cut}");
        }
    }
}

#[test]
fn many_threads_read_one_checkpoint_at_once() {
    let checkpoint = Checkpoint::open(fixtures().join("orbax/orbax_pin/sharded_ocdbt_zarr3")).unwrap();
    let expected: Vec<_> = (0..checkpoint.arrays().len()).map(|i| read_array(&checkpoint, i).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for (i, bytes) in expected.iter().enumerate() {
                    assert!(&read_array(&checkpoint, i).unwrap() == bytes);
                }
            });
        }
    });
}
