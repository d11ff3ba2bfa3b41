//! What is written is what is read, by this reader and by numpy.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::policy::array::{Array, Values};
use crate::policy::record::Value;

/// By key: dtype, shape and the values' bits, so that two NaN of the same bits are equal.
fn bits(recording: &Recording) -> BTreeMap<String, (String, Vec<usize>, Vec<u64>)> {
    let of = |value: &Value| match value {
        Value::Text(text) => ("text".to_owned(), vec![], text.bytes().map(u64::from).collect()),
        Value::Array(array) => {
            let bits = match &array.values {
                Values::U8(x) => x.iter().map(|x| u64::from(*x)).collect(),
                Values::Bool(x) => x.iter().map(|x| u64::from(*x)).collect(),
                Values::I32(x) => x.iter().map(|x| u64::from(x.cast_unsigned())).collect(),
                Values::I64(x) => x.iter().map(|x| x.cast_unsigned()).collect(),
                Values::F32(x) => x.iter().map(|x| u64::from(x.to_bits())).collect(),
                Values::F64(x) => x.iter().map(|x| x.to_bits()).collect(),
            };
            (array.values.dtype().to_owned(), array.shape.clone(), bits)
        }
    };
    let keys = |prefix: &'static str, record: &Record| -> Vec<_> {
        record.values.iter().map(|(key, value)| (format!("{prefix}/{key}"), of(value))).collect()
    };
    keys("inputs", &recording.inputs).into_iter().chain(keys("outputs", &recording.outputs)).collect()
}

fn any_values(count: usize) -> impl Strategy<Value = Values> {
    use proptest::collection::vec;
    prop_oneof![
        vec(any::<u8>(), count).prop_map(Values::U8),
        vec(any::<bool>(), count).prop_map(Values::Bool),
        vec(any::<i32>(), count).prop_map(Values::I32),
        vec(any::<i64>(), count).prop_map(Values::I64),
        vec(any::<u32>().prop_map(f32::from_bits), count).prop_map(Values::F32),
        vec(any::<u64>().prop_map(f64::from_bits), count).prop_map(Values::F64),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    let shape = prop_oneof![
        3 => prop::collection::vec(0_usize..5, 0..4),
        1 => Just(vec![300, 1]),
        // No value, and axes that no byte holds.
        1 => Just(vec![0, 70_000, 5_000_000_000]),
    ];
    let array = shape.prop_flat_map(|shape| {
        any_values(shape.iter().product()).prop_map(move |values| Value::Array(Array::new(shape.clone(), values)))
    });
    let letter = prop_oneof![any::<char>(), Just('\0'), Just('🤖'), Just('/')];
    let text = prop::collection::vec(letter, 0..300).prop_map(|text| Value::Text(text.into_iter().collect()));
    prop_oneof![5 => array, 1 => text]
}

fn any_record(least: usize) -> impl Strategy<Value = Record> {
    let key = prop_oneof!["[a-z_]{1,6}(/[a-z0-9_]{0,4}){0,2}", any::<String>()];
    prop::collection::btree_map(key, any_value(), least..6).prop_map(|values| Record { values })
}

fn any_recording() -> impl Strategy<Value = Recording> {
    (any_record(1), any_record(0)).prop_map(|(inputs, outputs)| Recording { inputs, outputs })
}

/// One of every kind, with what is awkward about each.
fn one_of_each() -> Recording {
    let mut inputs = Record::default();
    inputs.put_array("state", Array::f64([3], vec![0.1, -0.0, f64::INFINITY]));
    inputs.put_array("images/cam_high", Array::u8([2, 3, 3], (0..18).map(|x| x * 15).collect()));
    inputs.put_array("observation/flags", Array::new([2], Values::Bool(vec![true, false])));
    inputs.put_array("observation/wide", Array::new([3], Values::I64(vec![i64::MIN, -1, i64::MAX])));
    inputs.put_array("observation/tokens", Array::new([1, 2], Values::I32(vec![i32::MIN, 7])));
    inputs.put_array("observation/empty", Array::f32([0, 7], vec![]));
    inputs.put_array("observation/single", Array::f32([], vec![0.1]));
    inputs.put_array("count", Array::new([], Values::I64(vec![1 << 40])));
    inputs.put_array("few", Array::new([], Values::I64(vec![200])));
    inputs.put_array("below", Array::new([], Values::I64(vec![-70_000])));
    inputs.put_array("on", Array::flag(true));
    inputs.put_text("prompt", "größe ✓ 🤖 \"x\"\n");
    let mut outputs = Record::default();
    outputs.put_array("actions", Array::f32([2, 2], vec![0.1, 1e-40, f32::MAX, -2.5]));
    outputs.put_array("policy_timing/infer_ms", Array::f64([], vec![61.25]));
    Recording { inputs, outputs }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_again_bit_for_bit(recording in any_recording()) {
        let written = bytes(&recording).unwrap();
        let again = parse(&written).unwrap();
        prop_assert_eq!(bits(&again), bits(&recording));
        prop_assert_eq!(bytes(&again).unwrap(), written);
    }

    #[test]
    fn what_is_written_and_then_changed_is_a_recording_or_an_error(
        recording in any_recording(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut written = bytes(&recording).unwrap();
        for (place, byte) in changes {
            let at = place.index(written.len());
            written[at] = byte;
        }
        if let Ok(found) = parse(&written) {
            for value in found.inputs.values.values().chain(found.outputs.values.values()) {
                if let Value::Array(array) = value {
                    prop_assert_eq!(array.shape.iter().product::<usize>(), array.values.len());
                }
            }
        }
    }
}

#[test]
fn what_the_real_recorder_wrote_is_the_same_when_it_is_written_again() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recordings");
    for name in ["aloha/step_0.npy", "odd/step_0.npy", "numpy2/step_0.npy", "protocols/protocol5_header1.npy"] {
        let path = fixtures.join(name);
        let recording = read(&path).unwrap();
        assert_eq!(parse(&bytes(&recording).unwrap()).unwrap(), recording, "{name}");
    }
}

#[test]
fn a_recording_that_we_wrote_is_refused_wherever_it_is_cut() {
    let whole = bytes(&one_of_each()).unwrap();
    for end in 0..whole.len() {
        assert!(parse(&whole[..end]).is_err(), "{end} of {}", whole.len());
    }
    let length = usize::from(u16::from_le_bytes([whole[8], whole[9]]));
    assert_eq!((10 + length) % 64, 0, "numpy aligns what follows the header");
}

#[test]
fn what_the_reader_would_refuse_is_not_written() {
    let refused = |inputs: &[(&str, Value)]| {
        let values = inputs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        bytes(&Recording { inputs: Record { values }, ..Recording::default() }).unwrap_err().to_string()
    };
    let array = |array| Value::Array(array);
    assert!(refused(&[]).contains("begin with inputs/"));
    let axes = refused(&[("a", array(Array::f32(vec![1; 33], vec![0.0])))]);
    assert!(axes.contains("inputs/a") && axes.contains("too many axes"), "{axes}");
    let beyond = Array { shape: vec![0, usize::MAX, 2], values: Values::F32(vec![]) };
    assert!(refused(&[("a", array(beyond))]).contains("beyond any memory"));
    let hole = Array { shape: vec![3], values: Values::F32(vec![0.0]) };
    assert!(refused(&[("a", array(hole))]).contains("1 values for the shape [3]"));
    let large = vec![0; MAX_BYTES as usize];
    assert!(refused(&[("a", array(Array::u8([large.len()], large)))]).contains("expected at most"));
    let many: BTreeMap<String, Value> = (0..20_000).map(|n| (n.to_string(), Value::Text(String::new()))).collect();
    let many = Recording { inputs: Record { values: many }, ..Recording::default() };
    assert!(bytes(&many).unwrap_err().to_string().contains("keys"));
}

#[test]
fn as_many_keys_as_may_be_written_are_read() {
    // Of the kind that takes the most opcodes: an array of as many axes as there may be.
    let array = Value::Array(Array::f32(vec![1; values::MAX_DEPTH], vec![1.0]));
    let values = (0..pickle::MAX_OPCODES / 80).map(|n| (n.to_string(), array.clone())).collect();
    let recording = Recording { inputs: Record { values }, ..Recording::default() };
    assert_eq!(parse(&bytes(&recording).unwrap()).unwrap(), recording);
}

#[test]
fn a_file_is_whole_or_not_there_and_none_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step_0.npy");
    write(&path, &one_of_each()).unwrap();
    let mut other = one_of_each();
    other.inputs.put_text("prompt", "another");
    let error = write(&path, &other).unwrap_err();
    assert!(matches!(error.fault, RecordingFault::Exists), "{error}");
    assert_eq!(read(&path).unwrap(), one_of_each());
    assert!(write(&folder.path().join("step_1.npy"), &Recording::default()).is_err());
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["step_0.npy"], "nothing else is left");
    let gone = write(&folder.path().join("none/step_0.npy"), &one_of_each()).unwrap_err().to_string();
    assert!(gone.contains("none/step_0.npy: cannot be written"), "{gone}");
    may_write(&folder.path().join("new")).unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
    let file = may_write(&path).unwrap_err().to_string();
    assert!(file.contains("cannot be written"), "{file}");
}

/// Reads a folder as openpi's examples/policy_records.ipynb does, and tells what it found.
const NOTEBOOK: &str = r#"
import json, pathlib, sys, warnings
warnings.simplefilter("error")
import numpy as np
folder = pathlib.Path(sys.argv[1])
records = []
for i in range(len(list(folder.glob("step_*.npy")))):
    records.append(np.load(folder / f"step_{i}.npy", allow_pickle=True).item())
def told(x):
    if isinstance(x, np.ndarray):
        return [x.dtype.str, list(x.shape), x.tobytes().hex()]
    return [type(x).__name__, x]
print(json.dumps({"numpy": np.__version__, "records": [{k: told(v) for k, v in r.items()} for r in records]}))
"#;

#[test]
fn numpy_reads_what_is_written_as_the_notebook_does() {
    // The one that `.ci/run` makes has numpy; it stands beside the build.
    let beside = std::env::current_exe().ok().and_then(|test| Some(test.ancestors().nth(3)?.join("python/bin/python")));
    let beside = beside.filter(|path| path.is_file()).map(|path| path.display().to_string());
    let python = std::env::var("PI0_PYTHON").ok().or(beside).unwrap_or_else(|| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import numpy"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} has no numpy (PI0_PYTHON names another one)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let first = one_of_each();
    let mut second = first.clone();
    second.inputs.put_text("prompt", "");
    for (number, recording) in [&first, &second].into_iter().enumerate() {
        write(&folder.path().join(format!("step_{number}.npy")), recording).unwrap();
    }
    let output = Command::new(&python).args(["-c", NOTEBOOK]).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let records = told["records"].as_array().unwrap();
    assert_eq!(records.len(), 2);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let f32s = |x: &[f32]| hex(&x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    let expected = serde_json::json!({
        "inputs/state": ["<f8", [3], hex(&[0.1_f64, -0.0, f64::INFINITY].map(f64::to_le_bytes).concat())],
        "inputs/images/cam_high": ["|u1", [2, 3, 3], hex(&(0..18).map(|x| x * 15).collect::<Vec<u8>>())],
        "inputs/observation/flags": ["|b1", [2], "0100"],
        "inputs/observation/wide": ["<i8", [3], hex(&[i64::MIN, -1, i64::MAX].map(i64::to_le_bytes).concat())],
        "inputs/observation/tokens": ["<i4", [1, 2], hex(&[i32::MIN, 7].map(i32::to_le_bytes).concat())],
        "inputs/observation/empty": ["<f4", [0, 7], ""],
        "inputs/observation/single": ["<f4", [], f32s(&[0.1])],
        "inputs/count": ["int", 1_u64 << 40],
        "inputs/few": ["int", 200],
        "inputs/below": ["int", -70_000],
        "inputs/on": ["bool", true],
        "inputs/prompt": ["str", "größe ✓ 🤖 \"x\"\n"],
        "outputs/actions": ["<f4", [2, 2], f32s(&[0.1, 1e-40, f32::MAX, -2.5])],
        "outputs/policy_timing/infer_ms": ["float", 61.25],
    });
    assert_eq!(records[0], expected, "numpy {}", told["numpy"]);
    assert_eq!(records[1]["inputs/prompt"], serde_json::json!(["str", ""]));
}
