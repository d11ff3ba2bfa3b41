//! safetensors files: what is wrong with a foreign one is told, and ours are the same whenever they are made.

use std::collections::BTreeMap;
use std::path::Path;

use orbax::{Dtype, Source};
use remap::{Safetensors, Sink, Tensor, Writer};

fn tensor(name: &str, shape: &[u64], dtype: Dtype) -> Tensor {
    Tensor { name: name.into(), shape: shape.to_vec(), dtype }
}

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Safetensors::open(&path).expect_err("refused").to_string()
}

#[test]
fn a_header_longer_than_the_file_is_refused_before_it_is_allocated() {
    assert!(refused(&u64::MAX.to_le_bytes()).contains("its header would have 18446744073709551615 bytes"));
    assert!(refused(&[1, 0]).contains("reading the header"));
}

#[test]
fn offsets_that_lie_are_refused() {
    let entry = |dtype: &str, shape: &str, a: u64, b: u64| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{a},{b}]}}}}"#)
    };
    assert!(refused(&file(&entry("F32", "[2]", 0, 8), 4)).contains("does not fit"), "past the end");
    assert!(refused(&file(&entry("F32", "[3]", 0, 8), 8)).contains("does not fit"), "shape");
    assert!(refused(&file(&entry("F32", "[2]", 8, 0), 8)).contains("does not fit"), "backwards");
    assert!(refused(&file(&entry("F32", "[4294967296,4294967296,4294967296]", 0, 8), 8)).contains("does not fit"));
    assert!(refused(&file(&entry("F32", "[1]", 0, 4), 8)).contains("end at byte 4 of 8"), "trailing bytes");
    assert!(refused(&file(&entry("F32", "[1]", 4, 8), 8)).contains("begins at byte 4"), "a gap");
    assert!(refused(&file(&entry("Q4_K", "[1]", 0, 4), 4)).contains("\"Q4_K\" is not supported"));
    let two =
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    assert!(refused(&file(two, 3)).contains("its neighbour ends at 2"), "an overlap");
}

#[test]
fn a_header_that_is_no_header_is_refused() {
    assert!(refused(&file("[]", 0)).contains("not JSON"));
    assert!(refused(&file("{\"w\":3}", 0)).contains("w: its entry is malformed"));
    assert!(refused(&file("{\"__metadata__\":{\"a\":1}}", 0)).contains("not a map of strings"));
    let deep = "[".repeat(100_000);
    assert!(refused(&file(&deep, 0)).contains("not JSON"));
}

#[test]
fn an_index_that_leaves_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    for shard in ["../x.safetensors", "/etc/passwd", ".hidden"] {
        std::fs::write(&path, format!(r#"{{"weight_map":{{"w":"{shard}"}}}}"#)).unwrap();
        assert!(Safetensors::open(&path).unwrap_err().to_string().contains("leaves the folder"), "{shard}");
    }
}

fn write(path: &Path, max: Option<u64>) -> Vec<std::path::PathBuf> {
    let tensors = vec![
        tensor("b", &[2, 3], Dtype::Bf16),
        tensor("Z", &[3], Dtype::F32),
        tensor("a", &[], Dtype::F32),
        tensor("empty", &[0, 3], Dtype::F32),
    ];
    let metadata = BTreeMap::from([("z".to_owned(), "1".to_owned()), ("a".to_owned(), "\"quoted\"".to_owned())]);
    let writer = Writer::create(path, tensors, &metadata, max).unwrap();
    writer.write(0, 4, &[5, 6, 7, 8, 9, 10, 11, 12]).unwrap();
    writer.write(0, 0, &[1, 2, 3, 4]).unwrap();
    writer.write(1, 0, &[1; 12]).unwrap();
    writer.write(2, 0, &[2; 4]).unwrap();
    assert!(!path.exists(), "nothing under the final name yet");
    writer.publish().unwrap()
}

#[test]
fn the_reference_reader_reads_what_is_written_and_the_bytes_are_always_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    write(&a, None);
    write(&b, None);
    let bytes = std::fs::read(&a).unwrap();
    assert_eq!(bytes, std::fs::read(&b).unwrap());
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.tensor("b").unwrap().data(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(read.tensor("a").unwrap().shape(), [0usize; 0]);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["a"], "\"quoted\"");
    let ours = Safetensors::open(&a).unwrap();
    assert_eq!(ours.arrays().len(), 4);
    assert_eq!(ours.metadata()["z"], "1");
}

#[test]
fn shards_and_their_index_are_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let files = write(&path, Some(12));
    let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names.last().unwrap(), "model.safetensors.index.json");
    assert_eq!(names[0], format!("model-00001-of-{:05}.safetensors", names.len() - 1));
    let read = Safetensors::open(folder.path()).unwrap();
    let mut found: Vec<&str> = read.arrays().iter().map(|a| a.name.as_str()).collect();
    found.sort_unstable();
    assert_eq!(found, ["Z", "a", "b", "empty"]);
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    drop(Writer::create(&path, vec![tensor("a", &[4], Dtype::F32)], &BTreeMap::new(), None).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
