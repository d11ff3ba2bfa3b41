//! Cases of golden/transforms: records as openpi's own code took and gave them.
#![allow(unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pi0_burn::policy::array::{Array, Values};
use pi0_burn::policy::record::{Record, Value};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

/// A folder's `<group>.json` and `<group>.safetensors`.
pub struct Group {
    pub document: Json,
    tensors: Vec<u8>,
}

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/transforms")
}

impl Group {
    pub fn open(folder: &Path, name: &str) -> Self {
        let read = |end: &str| {
            let path = folder.join(format!("{name}.{end}"));
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        Group { document: serde_json::from_slice(&read("json")).expect("JSON"), tensors: read("safetensors") }
    }

    /// Every case by name.
    pub fn cases(&self) -> BTreeMap<&str, &Json> {
        let cases = self.document["cases"].as_object().expect("cases");
        cases.iter().map(|(name, case)| (name.as_str(), case)).collect()
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.tensors).expect("tensors")
    }

    pub fn array(&self, entry: &Json) -> Array {
        let tensors = self.tensors();
        let view = tensors.tensor(entry["tensor"].as_str().expect("a tensor")).expect("it is there");
        let data = view.data();
        fn each<const N: usize, T>(data: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
            data.as_chunks::<N>().0.iter().map(|bytes| f(*bytes)).collect()
        }
        let values = match view.dtype() {
            Dtype::U8 => Values::U8(data.to_vec()),
            Dtype::BOOL => Values::Bool(data.iter().map(|b| *b != 0).collect()),
            Dtype::I32 => Values::I32(each(data, i32::from_le_bytes)),
            Dtype::I64 => Values::I64(each(data, i64::from_le_bytes)),
            Dtype::F32 => Values::F32(each(data, f32::from_le_bytes)),
            Dtype::F64 => Values::F64(each(data, f64::from_le_bytes)),
            other => panic!("{other:?}"),
        };
        // numpy's scalars were written with an axis.
        let shape = entry["shape"].as_array().expect("a shape").iter().filter_map(Json::as_u64);
        Array::new(shape.map(|n| n as usize).collect::<Vec<_>>(), values)
    }

    /// The part `in`, `out`, … of a case; statistics are no part of a record.
    pub fn record(&self, case: &Json, part: &str) -> Record {
        let mut record = Record::default();
        for (key, entry) in case[part].as_object().into_iter().flatten() {
            if key.starts_with("stats/") {
                continue;
            }
            match entry["str"].as_str() {
                Some(text) => record.put_text(key, text),
                None => record.put_array(key, self.array(entry)),
            }
        }
        record
    }
}

/// Equal to the bit, dtypes included.
pub fn same(name: &str, found: &Record, expected: &Record) {
    alike(name, found, expected, 0.0);
}

/// As [`same`], but for f64 values of `state`, which may stray by `tolerance` where numpy's arcsin and the C library's
/// round differently.
pub fn alike(name: &str, found: &Record, expected: &Record, tolerance: f64) {
    let keys = |record: &Record| record.values.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(found), keys(expected), "{name}");
    for (key, expected) in &expected.values {
        match (found.get(key).expect("as above"), expected) {
            (Value::Text(a), Value::Text(b)) => assert_eq!(a, b, "{name}: {key}"),
            (Value::Array(a), Value::Array(b)) => {
                assert_eq!(a.to_string(), b.to_string(), "{name}: {key}");
                let close = |i: usize| {
                    let (x, y) = (a.values.to_f64()[i], b.values.to_f64()[i]);
                    let loose = key == "state" || key == "y";
                    loose && matches!(a.values, Values::F64(_)) && (x - y).abs() <= tolerance * y.abs().max(1.0)
                };
                for (i, (x, y)) in bits(&a.values).iter().zip(bits(&b.values)).enumerate() {
                    let (found, expected) = (a.values.to_f64()[i], b.values.to_f64()[i]);
                    assert!(*x == y || close(i), "{name}: {key}[{i}] is {found}, not {expected}");
                }
            }
            (a, b) => panic!("{name}: {key} is {a:?}, not {b:?}"),
        }
    }
}

fn bits(values: &Values) -> Vec<u64> {
    match values {
        Values::F32(x) => x.iter().map(|x| x.to_bits().into()).collect(),
        Values::F64(x) => x.iter().map(|x| x.to_bits()).collect(),
        Values::U8(x) => x.iter().map(|x| (*x).into()).collect(),
        Values::I32(x) => x.iter().map(|x| *x as u64).collect(),
        Values::I64(x) => x.iter().map(|x| *x as u64).collect(),
        Values::Bool(x) => x.iter().map(|x| (*x).into()).collect(),
    }
}
