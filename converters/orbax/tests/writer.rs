//! What is written is read back, is the same for every number of threads, and appears whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use orbax::{Checkpoint, CheckpointWriter, Dtype, Key, NewArray, Source, Value, WriteOptions, read_array};
use proptest::prelude::*;

fn options(data_files: usize) -> WriteOptions {
    WriteOptions { time_ns: 1_700_000_000_000_000_000, level: 1, data_files }
}

fn name(path: &str) -> Vec<Key> {
    path.split('/').map(|key| key.parse().map_or_else(|_| Key::Name(key.to_owned()), Key::Index)).collect()
}

fn array(path: &str, shape: &[u64], dtype: Dtype) -> NewArray {
    NewArray { path: name(path), shape: shape.to_vec(), dtype, chunk_shape: None }
}

/// Bytes of a chunk: different in every chunk, half compressible.
fn content(array: usize, chunk: u64, length: usize) -> Vec<u8> {
    let mut state = (array as u64 + 1) * 1_000_003 + chunk;
    (0..length)
        .map(|i| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if i % 2 == 0 { (state >> 33) as u8 } else { 7 }
        })
        .collect()
}

fn chunk_bytes(writer: &CheckpointWriter, index: usize, dtype: Dtype) -> usize {
    writer.chunk_shape(index).iter().product::<u64>() as usize * dtype.size()
}

fn chunks(shape: &[u64], chunk: &[u64]) -> u64 {
    shape.iter().zip(chunk).map(|(n, c)| n.div_ceil(*c)).product()
}

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                out.insert(path.strip_prefix(dir).unwrap().display().to_string(), fs::read(&path).unwrap());
            }
        }
    }
    out
}

/// Writes all chunks with `threads` threads, each taking every `threads`-th chunk of `order`, `piece` bytes at a time.
fn write(dir: &Path, arrays: &[NewArray], options: WriteOptions, threads: usize, backwards: bool, piece: usize) {
    let writer = CheckpointWriter::create(dir, arrays.to_vec(), options).unwrap();
    let mut all: Vec<(usize, u64)> = (0..arrays.len())
        .flat_map(|a| (0..chunks(&arrays[a].shape, writer.chunk_shape(a))).map(move |c| (a, c)))
        .collect();
    if backwards {
        all.reverse();
    }
    let (writer_ref, all) = (&writer, &all);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for &(a, c) in all.iter().skip(thread).step_by(threads) {
                    let mut chunk = writer_ref.chunk(a, c).unwrap();
                    for part in content(a, c, chunk_bytes(writer_ref, a, arrays[a].dtype)).chunks(piece) {
                        chunk.write_all(part).unwrap();
                    }
                    chunk.finish().unwrap();
                }
            });
        }
    });
    writer.finish().unwrap();
}

fn sample() -> Vec<NewArray> {
    let mut chunked = array("b/chunked", &[700, 1000], Dtype::F32);
    chunked.chunk_shape = Some(vec![100, 1000]);
    vec![
        array("a/value", &[], Dtype::I64),
        chunked,
        array("list/0", &[3, 5], Dtype::Bf16),
        array("list/1", &[4], Dtype::Bool),
        array("uni é/with space", &[2_000_000], Dtype::U8),
        array("z.dot/C", &[2, 2], Dtype::C128),
    ]
}

#[test]
fn what_was_written_is_read_back() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("new/params");
    let arrays = sample();
    write(&dir, &arrays, options(3), 2, false, 8192);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.layout(), "ocdbt, zarr2");
    assert!(checkpoint.warnings().is_empty());
    assert_eq!(checkpoint.leaves().len(), arrays.len());
    for leaf in checkpoint.leaves() {
        let Value::Array(index) = leaf.value else { panic!("{leaf:?}") };
        let given = arrays.iter().position(|array| array.path == leaf.path).unwrap();
        let info = &checkpoint.arrays()[index];
        assert_eq!((&info.shape, info.dtype), (&arrays[given].shape, arrays[given].dtype));
        let size: u64 = info.chunk_shape.iter().product::<u64>() * info.dtype.size() as u64;
        let expected: Vec<u8> =
            (0..chunks(&info.shape, &info.chunk_shape)).flat_map(|c| content(given, c, size as usize)).collect();
        assert!(read_array(&checkpoint, index).unwrap() == expected, "{}", info.name);
    }
    let left: Vec<_> = fs::read_dir(root.path().join("new")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["params"]);
}

#[test]
fn threads_order_and_piece_sizes_do_not_change_a_byte() {
    let root = tempfile::tempdir().unwrap();
    let runs = [(1, false, usize::MAX), (4, false, 1000), (4, true, 65536), (7, true, 333)];
    for (i, (threads, backwards, piece)) in runs.into_iter().enumerate() {
        write(&root.path().join(i.to_string()), &sample(), options(3), threads, backwards, piece);
    }
    let first = files(&root.path().join("0"));
    assert_eq!(first.keys().filter(|name| name.starts_with("d/")).count(), 3);
    for i in 1..runs.len() {
        assert!(files(&root.path().join(i.to_string())) == first, "run {i}");
    }
    let other = WriteOptions { time_ns: 1, ..options(3) };
    write(&root.path().join("later"), &sample(), other, 1, false, 8192);
    assert!(files(&root.path().join("later")).keys().ne(first.keys()));
}

#[test]
fn metadata_lists_the_leaves_in_jaxs_order() {
    let root = tempfile::tempdir().unwrap();
    let arrays = [array("b", &[1], Dtype::F32), array("a/1", &[1], Dtype::F32), array("a/0", &[1], Dtype::F32)];
    write(&root.path().join("c"), &arrays, options(1), 1, false, 4);
    let text = fs::read_to_string(root.path().join("c/_METADATA")).unwrap();
    assert_eq!(
        text,
        r#"{"tree_metadata": {"('a', '0')": {"key_metadata": [{"key": "a", "key_type": 2}, {"key": "0", "key_type": 1}], "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": false}}, "('a', '1')": {"key_metadata": [{"key": "a", "key_type": 2}, {"key": "1", "key_type": 1}], "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": false}}, "('b',)": {"key_metadata": [{"key": "b", "key_type": 2}], "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": false}}}, "use_ocdbt": true, "use_zarr3": false, "store_array_data_equal_to_fill_value": true, "custom_metadata": null}"#
    );
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let writer = CheckpointWriter::create(root.path().join("c"), sample(), options(2)).unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    drop(writer);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn what_a_killed_run_left_blocks_nobody() {
    let root = tempfile::tempdir().unwrap();
    for n in 0..40 {
        let left = format!("c.orbax-checkpoint-tmp-{}-{n}", std::process::id());
        fs::create_dir(root.path().join(left)).unwrap();
    }
    write(&root.path().join("c"), &[array("a", &[2], Dtype::F32)], options(1), 1, false, 8);
    Checkpoint::open(root.path().join("c")).unwrap();
}

#[test]
fn a_folder_that_exists_is_not_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("c");
    let writer = CheckpointWriter::create(&dir, vec![array("a", &[1], Dtype::U8)], options(1)).unwrap();
    let mut chunk = writer.chunk(0, 0).unwrap();
    chunk.write_all(&[1]).unwrap();
    chunk.finish().unwrap();
    fs::create_dir(&dir).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("exists already"));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    assert!(CheckpointWriter::create(&dir, sample(), options(1)).is_err());
}

#[test]
fn chunks_of_the_wrong_length_or_number_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let writer =
        CheckpointWriter::create(root.path().join("c"), vec![array("a/b", &[2], Dtype::F32)], options(1)).unwrap();
    let mut chunk = writer.chunk(0, 0).unwrap();
    chunk.write_all(&[0; 7]).unwrap();
    assert!(chunk.write_all(&[0; 2]).unwrap_err().to_string().contains("array \"a.b\", chunk 0: too long"));
    assert!(writer.chunk(0, 0).unwrap_err().to_string().contains("being written"));
    let error = chunk.finish().unwrap_err().to_string();
    assert!(error.contains("array \"a.b\", chunk 0: too short: it takes 8 bytes, 7 were written"), "{error}");
    // It can be opened again, once.
    let mut chunk = writer.chunk(0, 0).unwrap();
    chunk.write_all(&[0; 8]).unwrap();
    chunk.finish().unwrap();
    assert!(writer.chunk(0, 0).unwrap_err().to_string().contains("is written already"));
    assert!(writer.chunk(0, 1).is_err() && writer.chunk(1, 0).is_err());
    writer.finish().unwrap();
}

#[test]
fn a_missing_chunk_is_named_and_nothing_is_published() {
    let root = tempfile::tempdir().unwrap();
    let arrays =
        vec![array("a", &[1], Dtype::U8), NewArray { chunk_shape: Some(vec![2]), ..array("b", &[3], Dtype::U8) }];
    let writer = CheckpointWriter::create(root.path().join("c"), arrays, options(2)).unwrap();
    for (a, length) in [(0, 1), (1, 2)] {
        let mut chunk = writer.chunk(a, 0).unwrap();
        chunk.write_all(&vec![0; length]).unwrap();
        chunk.finish().unwrap();
    }
    let error = writer.finish().unwrap_err().to_string();
    assert_eq!(error, "array \"b\", chunk 1: was never written");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn trees_that_orbax_cannot_hold_are_refused_before_a_byte_is_written() {
    let root = tempfile::tempdir().unwrap();
    let one = || array("a", &[1], Dtype::F32);
    for (arrays, with) in [
        (vec![], "nothing to write"),
        (vec![array("a/b", &[3, 0], Dtype::F32)], "array \"a/b\": shape [3, 0] has no elements"),
        (vec![one(), one()], "listed twice"),
        (vec![one(), array("a/b", &[1], Dtype::F32)], "has leaves below it"),
        (vec![array("l/1", &[1], Dtype::F32)], "without element 0"),
        (vec![array("a.b", &[1], Dtype::F32), array("a/b", &[1], Dtype::F32)], "is stored as \"a.b\""),
        (vec![array("a", &[1], Dtype::U4)], "uint4"),
        (vec![array("a", &[u64::MAX, 8], Dtype::F32)], "a: "),
        (vec![NewArray { chunk_shape: Some(vec![0]), ..one() }], "side of 0"),
        (vec![NewArray { chunk_shape: Some(vec![1, 1]), ..one() }], "axes"),
        (vec![array(&"n".repeat(65_400), &[1], Dtype::F32)], "too long"),
    ] {
        let error = CheckpointWriter::create(root.path().join("c"), arrays, options(1)).unwrap_err().to_string();
        assert!(error.contains(with), "{error}");
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_array_in_any_chunks_comes_home(
        axes in prop::collection::vec((1u64..7, 1u64..8), 0..4),
        dtype in prop::sample::select(vec![Dtype::F32, Dtype::Bf16, Dtype::U8, Dtype::C128, Dtype::F8E5M2]),
        data_files in 1usize..5,
        backwards in any::<bool>(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let (shape, chunk): (Vec<u64>, Vec<u64>) = axes.into_iter().unzip();
        let dir = root.path().join("c");
        let new = NewArray { path: name("x/y"), shape: shape.clone(), dtype, chunk_shape: Some(chunk.clone()) };
        write(&dir, &[new], options(data_files), 2, backwards, 100);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let found = read_array(&checkpoint, 0).unwrap();
        // Element by element, from the chunk it lies in.
        let (size, rank) = (dtype.size(), shape.len());
        let grid: Vec<u64> = shape.iter().zip(&chunk).map(|(n, c)| n.div_ceil(*c)).collect();
        let of_chunk = chunk.iter().product::<u64>() as usize * size;
        for element in 0..shape.iter().product::<u64>() {
            let mut rest = element;
            let mut index = vec![0; rank];
            for axis in (0..rank).rev() {
                index[axis] = rest % shape[axis];
                rest /= shape[axis];
            }
            let number = (0..rank).fold(0, |all, axis| all * grid[axis] + index[axis] / chunk[axis]);
            let inside = (0..rank).fold(0, |all, axis| all * chunk[axis] + index[axis] % chunk[axis]) as usize;
            let expected = &content(0, number, of_chunk)[inside * size..][..size];
            prop_assert_eq!(&found[element as usize * size..][..size], expected);
        }
    }
}
