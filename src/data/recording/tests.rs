//! Recordings of the real recorder come back value for value; bytes of any other kind are refused, and run nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::policy::array::Values;
use crate::policy::record::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recordings")
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap()
}

/// The dtype that a record holds for one of numpy's.
fn held(dtype: &str) -> &str {
    match dtype {
        "int8" | "int16" | "uint16" => "int32",
        "uint32" | "uint64" => "int64",
        "float16" => "float32",
        same => same,
    }
}

#[test]
fn what_the_real_recorder_wrote_is_read_value_for_value() {
    type Expected = BTreeMap<String, BTreeMap<String, Option<serde_json::Value>>>;
    let expected: Expected = serde_json::from_slice(&fixture("expected.json")).unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    assert_eq!(expected.len(), 4);
    for (file, keys) in &expected {
        let recording = read(&fixtures().join(file)).unwrap();
        let mut found = recording.inputs.values.len() + recording.outputs.values.len();
        for (key, expected) in keys {
            let (record, name) = match key.split_once('/').unwrap() {
                ("inputs", name) => (&recording.inputs, name),
                (_, name) => (&recording.outputs, name),
            };
            let Some(expected) = expected else {
                assert!(!record.has(name), "{file}: {key}");
                found += 1;
                continue;
            };
            match record.get(name).unwrap_or_else(|| panic!("{file}: {key} is missing")) {
                Value::Text(text) => assert_eq!(expected["text"], **text, "{file}: {key}"),
                Value::Array(array) => {
                    let dtype = expected["dtype"].as_str().unwrap();
                    kinds.insert(dtype.to_owned());
                    assert_eq!(array.values.dtype(), held(dtype), "{file}: {key}");
                    assert_eq!(serde_json::json!(array.shape), expected["shape"], "{file}: {key}");
                    let values = match &array.values {
                        Values::I64(x) => serde_json::json!(x),
                        Values::Bool(x) => serde_json::json!(x),
                        Values::I32(x) => serde_json::json!(x),
                        Values::U8(x) => serde_json::json!(x),
                        // Python prints a float32 as the float64 that it is.
                        floats => serde_json::json!(floats.to_f64()),
                    };
                    assert_eq!(values, expected["values"], "{file}: {key}");
                }
            }
        }
        assert_eq!(found, keys.len(), "{file}: keys that nobody recorded");
    }
    assert!(kinds.len() >= 12, "{kinds:?}");
}

#[test]
fn every_protocol_and_header_version_says_the_same() {
    let same = read(&fixtures().join("odd/step_0.npy")).unwrap();
    assert_eq!(same.inputs.text("prompt").unwrap(), "größe ✓ 🤖");
    for name in ["2_header1", "3_header1", "3_header2", "3_header3", "4_header1", "5_header1"] {
        let path = fixtures().join(format!("protocols/protocol{name}.npy"));
        assert_eq!(read(&path).unwrap(), same, "{name}");
    }
}

#[test]
fn steps_are_sorted_by_number_and_strangers_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["step_10.npy", "step_2.npy", "step_0.npy", "step_x.npy", "step_+1.npy", "step_.npy", "notes.txt"] {
        std::fs::write(folder.path().join(name), b"").unwrap();
    }
    let numbers: Vec<u64> = steps(folder.path()).unwrap().into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, [0, 2, 10]);
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(steps(empty.path()).unwrap_err().fault, RecordingFault::Empty));
    assert!(matches!(read(empty.path()).unwrap_err().fault, RecordingFault::NoFile));
}

/// A recording whose pickle is this.
fn file(pickle: &[u8]) -> Vec<u8> {
    let header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header);
    bytes.extend(pickle);
    bytes
}

fn refused(pickle: &[u8]) -> String {
    parse(&file(pickle)).unwrap_err().to_string()
}

#[test]
fn a_pickle_that_would_run_something_is_refused_by_name() {
    // os.system("true"), by protocol 2 and by protocol 4.
    let old = refused(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.");
    assert!(old.contains("at byte 67: it wants posix.system"), "{old}");
    let new = refused(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.");
    assert!(new.contains("it wants posix.system") && new.contains("nothing was run"), "{new}");
    let long = refused(&[b"\x80\x04X\x10\x27\0\0", "m".repeat(10_000).as_bytes(), b"\x8c\x01n\x93."].concat());
    assert!(long.contains("mmm…, which") && long.len() < 400, "{long}");
    // What a global may be is not what may be called: numpy.ndarray(…).
    let called = refused(b"\x80\x02cnumpy\nndarray\n)R.");
    assert!(called.contains("a call that numpy does not write"), "{called}");
    // OBJ, INST, NEWOBJ, PERSID, EXT1, BUILD of an object, out-of-band buffers.
    for code in [b'o', b'i', 0x81, b'P', 0x82, 0x92, 0x97, b'Q', b'I', b'0'] {
        assert!(refused(&[0x80, 5, code, b'.']).contains("is none that numpy writes"), "{code:#x}");
    }
}

#[test]
fn plain_arrays_and_other_files_are_refused_by_what_they_are() {
    let plain = b"\x93NUMPY\x01\x00\x3b\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }  \n";
    let text = parse(plain).unwrap_err().to_string();
    assert!(text.contains("one object") && text.contains("'<f4'"), "{text}");
    assert!(parse(b"PK\x03\x04").unwrap_err().to_string().contains("no numpy file"));
    assert!(parse(b"\x93NUMPY\x09\x00\x00\x00").unwrap_err().to_string().contains("version 9.0"));
    assert!(matches!(parse(b"\x93NUMPY\x01\x00").unwrap_err(), RecordingFault::Cut { .. }));
    assert!(matches!(parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").unwrap_err(), RecordingFault::Cut { .. }));
    assert!(refused(b"\x80\x04N.").contains("found another object"));
    assert!(refused(b"\x80\x04}.").contains("begin with inputs/"));
    assert!(refused(b"\x80\x04}\x8c\x05stateK\x01s.").contains("state: expected inputs/"));
    assert!(refused(b"\x80\x04}N.\0").contains("bytes after the end"));
}

/// `{"inputs/a": …}`.
fn under_a_key(value: &[u8]) -> Vec<u8> {
    [b"\x80\x04}\x8c\x08inputs/a", value, b"s."].concat()
}

#[test]
fn what_no_record_holds_is_named_with_its_key() {
    assert!(refused(&under_a_key(b"]\x8c\x01xa")).contains("inputs/a: expected"));
    assert!(refused(&under_a_key(b"(](K\x01e](K\x01K\x02et")).contains("several lengths"));
    assert!(refused(&under_a_key(b"](K\x01\x88e")).contains("several types"));
    assert!(refused(&under_a_key(b"\x8a\x09\0\0\0\0\0\0\0\0\x01")).contains("more than 64 bits"));
    let complex = under_a_key(b"cnumpy\ndtype\n(\x8c\x03c16\x89\x88tR");
    assert!(refused(&complex).contains("dtype \"c16\""));
    // A shape that says more than its data: (2, 3) of f8 for 8 bytes.
    let dtype: &[u8] =
        b"cnumpy\ndtype\n\x8c\x02f8\x89\x88\x87R(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb";
    let array = |shape: &[u8], data: &[u8]| {
        let begin: &[u8] = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01";
        under_a_key(&[begin, shape, dtype, b"\x89", data, b"tb"].concat())
    };
    let short = refused(&array(b"K\x02K\x03\x86", b"C\x08\0\0\0\0\0\0\0\0"));
    assert!(short.contains("8 bytes of data for the shape [2, 3]"), "{short}");
    // Axes whose product overflows, with an empty one among them.
    let huge = b"(\x8a\x05\0\0\0\0\x7f\x8a\x05\0\0\0\0\x7fK\0t";
    assert!(refused(&array(huge, b"C\0")).contains("beyond any memory"));
    assert!(refused(&array(b"J\xff\xff\xff\xff\x85", b"C\0")).contains("no length"));
    let one = parse(&file(&array(b")", b"C\x08\0\0\0\0\0\0\xf0?"))).unwrap();
    assert_eq!(one.inputs.array("a").unwrap(), &crate::policy::array::Array::f64([], vec![1.0]));
}

#[test]
fn names_that_repeat_a_value_cannot_make_it_large() {
    // A list of itself, and pairs of pairs: each level four bytes more and twice as large.
    let itself = under_a_key(b"]\x94h\0a");
    assert!(refused(&itself).contains("too deep"), "{}", refused(&itself));
    let mut doubling = b"K\x07\x94".to_vec();
    for level in 0..30 {
        doubling.extend([b'h', level, 0x86, 0x94]);
    }
    let text = refused(&under_a_key(&doubling));
    assert!(text.contains("bytes of values"), "{text}");
    // A dictionary in itself, twice.
    let twice = b"\x80\x04}\x94(\x8c\x06inputsh\0\x8c\x07outputsh\0u.";
    let text = refused(twice);
    assert!(text.contains("bytes of values") || text.contains("too deep"), "{text}");
    // One picture under a thousand keys: 64 KiB each.
    let mut many = b"\x80\x04}(\x8c\x08inputs/0B\0\0\x01\0".to_vec();
    many.extend(vec![0; 1 << 16]);
    many.push(0x94);
    for n in 1..1000 {
        let key = format!("inputs/{n}");
        many.extend([0x8c, key.len() as u8]);
        many.extend(key.bytes());
        many.extend([b'h', 0]);
    }
    many.extend(b"u.");
    assert!(refused(&many).contains("bytes of values"));
    // A length that no file has.
    assert!(refused(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff").contains("found the end"));
}

#[test]
fn a_recording_that_was_cut_off_is_refused_wherever_it_ends() {
    let whole = fixture("aloha/step_0.npy");
    for end in 0..whole.len() {
        let fault = parse(&whole[..end]).unwrap_err();
        assert!(
            matches!(
                fault,
                RecordingFault::Cut { .. } | RecordingFault::Header { .. } | RecordingFault::Malformed { .. }
            ),
            "{end}: {fault}"
        );
    }
}

/// A real recording of any protocol, some bytes of it changed, some repeated, some left out.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let files = [
        "aloha/step_0.npy",
        "odd/step_0.npy",
        "numpy2/step_0.npy",
        "protocols/protocol2_header1.npy",
        "protocols/protocol5_header1.npy",
    ];
    let whole = prop::sample::select(files.map(fixture).to_vec());
    // Most of a picture's bytes mean nothing: half the changes go where the opcodes are.
    let place = prop_oneof![0_usize..1200, 0_usize..9000];
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(b"(.NKJMXCBcRbqhrjt)]}aesu\x80\x85\x86\x87\x88\x89\x8a\x8c\x8e\x93\x94\x95\x96".to_vec())
    ];
    let change = (place, 0_u8..4, byte, 1_usize..40);
    (whole, prop::collection::vec(change, 1..8)).prop_map(|(mut bytes, changes)| {
        for (place, kind, byte, count) in changes {
            let at = place % bytes.len().max(1);
            let end = (at + count).min(bytes.len());
            match kind {
                0 | 1 => bytes[at] = byte,
                2 => drop(bytes.drain(at..end)),
                _ => {
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
            }
            if bytes.is_empty() {
                bytes.push(byte);
            }
        }
        bytes
    })
}

/// Arrays have as many values as their shapes say, and no more of them than the file allows.
fn sound(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(recording) = parse(bytes) else { return Ok(()) };
    let mut held = 0;
    for value in recording.inputs.values.values().chain(recording.outputs.values.values()) {
        if let Value::Array(array) = value {
            prop_assert_eq!(array.shape.iter().product::<usize>(), array.values.len());
            held += array.values.len();
        }
    }
    prop_assert!(held <= bytes.len() * 16 + (1 << 16), "{held} values of {} bytes", bytes.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_are_a_recording_or_an_error(bytes in mutated()) {
        sound(&bytes)?;
    }

    #[test]
    fn any_opcodes_are_a_recording_or_an_error(pickle in prop::collection::vec(any::<u8>(), 0..200)) {
        sound(&file(&pickle))?;
    }
}
