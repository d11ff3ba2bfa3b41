//! An observation as a robot's program sends it, from a JSON document with pictures and arrays beside it.
//!
//! Keys of objects are joined by `/`. Lists of numbers become float64, int64 or bool, as numpy makes them of Python's; a
//! string that ends in `.png` or `.npy` is a file beside the document, any other is a text. Invariant: nothing of it is held
//! against a robot here.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use orbax::{Dtype, Npy, Source, read_array};
use serde_json::Value as Json;

use super::array;
use crate::policy::array::{Array, Values};
use crate::policy::record::{Record, Value};

/// Bytes of a JSON document: pictures stand beside it.
const MAX_JSON: u64 = 1 << 28;
/// Bytes of an array's file.
const MAX_BYTES: u64 = 1 << 29;
/// Lists in lists; a batch of pictures has four.
const MAX_AXES: usize = 8;

/// Reads it.
///
/// # Errors
/// The key whose value is no number, text or file.
pub(super) fn read(path: &Path) -> Result<Record> {
    let shown = || path.display().to_string();
    let size = std::fs::metadata(path).with_context(shown)?.len();
    ensure!(size <= MAX_JSON, "{}: {size} bytes, at most {MAX_JSON}: name pictures and arrays by their files", shown());
    let document: Json = serde_json::from_slice(&std::fs::read(path).with_context(shown)?)
        .with_context(|| format!("{}: not a JSON document", shown()))?;
    let Json::Object(members) = document else { bail!("{}: expected an object: {{\"state\": …}}", shown()) };
    let mut record = Record::default();
    let folder = path.parent().unwrap_or(Path::new("."));
    for (key, value) in members {
        put(&mut record, key, &value, folder).with_context(shown)?;
    }
    Ok(record)
}

fn put(record: &mut Record, key: String, value: &Json, folder: &Path) -> Result<()> {
    let value = match value {
        Json::Object(inner) => {
            return inner.iter().try_for_each(|(name, value)| put(record, format!("{key}/{name}"), value, folder));
        }
        Json::String(text) if text.ends_with(".png") || text.ends_with(".npy") => {
            Value::Array(file(&folder.join(text)).with_context(|| key.clone())?)
        }
        Json::String(text) => Value::Text(text.clone()),
        value => Value::Array(numbers(value).with_context(|| key.clone())?),
    };
    record.put(key, value);
    Ok(())
}

/// A picture as `uint8[h, w, 3]`, an array in its own dtype.
fn file(path: &Path) -> Result<Array> {
    if path.extension().is_some_and(|extension| extension == "npy") {
        return npy(path).with_context(|| path.display().to_string());
    }
    let picture = array::Array::file(path)?;
    let array::Values::Byte(bytes) = picture.values else { bail!("{}: not a picture of bytes", path.display()) };
    Ok(Array::u8(picture.shape, bytes))
}

fn npy(path: &Path) -> Result<Array> {
    let source = Npy::open(path)?;
    let info = source.arrays().first().context("it has no array")?;
    let size = info.dtype.size() as u64;
    let bytes = info.shape.iter().try_fold(size, |n, d| n.checked_mul(*d)).unwrap_or(u64::MAX);
    ensure!(bytes <= MAX_BYTES, "{bytes} bytes, at most {MAX_BYTES} are accepted");
    let data = read_array(&source, 0)?;
    fn each<const N: usize, T>(data: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        data.as_chunks::<N>().0.iter().map(|bytes| f(*bytes)).collect()
    }
    let values = match info.dtype {
        Dtype::U8 => Values::U8(data),
        Dtype::I32 => Values::I32(each(&data, i32::from_le_bytes)),
        Dtype::I64 => Values::I64(each(&data, i64::from_le_bytes)),
        Dtype::F32 => Values::F32(each(&data, f32::from_le_bytes)),
        Dtype::F64 => Values::F64(each(&data, f64::from_le_bytes)),
        Dtype::Bool => Values::Bool(data.iter().map(|b| *b != 0).collect()),
        other => bail!("{other}: expected uint8, int32, int64, float32, float64 or bool"),
    };
    Ok(Array::new(info.shape.iter().map(|n| *n as usize).collect::<Vec<_>>(), values))
}

fn numbers(value: &Json) -> Result<Array> {
    let (mut shape, mut leaves) = (vec![], vec![]);
    flatten(value, 0, &mut shape, &mut leaves)?;
    let values = if !leaves.is_empty() && leaves.iter().all(|v| v.is_i64()) {
        Values::I64(leaves.iter().filter_map(|v| v.as_i64()).collect())
    } else if !leaves.is_empty() && leaves.iter().all(|v| v.is_boolean()) {
        Values::Bool(leaves.iter().filter_map(|v| v.as_bool()).collect())
    } else if let Some(odd) = leaves.iter().find(|v| !v.is_number()) {
        bail!("found {odd}, expected numbers, or nothing but true and false");
    } else {
        Values::F64(leaves.iter().filter_map(|v| v.as_f64()).collect())
    };
    Ok(Array::new(shape, values))
}

fn flatten<'a>(value: &'a Json, depth: usize, shape: &mut Vec<usize>, leaves: &mut Vec<&'a Json>) -> Result<()> {
    let rectangle = "found lists of different lengths or depths, expected a rectangle";
    match value {
        Json::Array(list) => {
            ensure!(depth < MAX_AXES, "more than {MAX_AXES} lists in each other");
            if depth == shape.len() && leaves.is_empty() {
                shape.push(list.len());
            }
            ensure!(shape.get(depth) == Some(&list.len()), rectangle);
            list.iter().try_for_each(|inner| flatten(inner, depth + 1, shape, leaves))
        }
        leaf => {
            ensure!(depth == shape.len(), rectangle);
            leaves.push(leaf);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Record> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        std::fs::write(&path, text).expect("written");
        read(&path)
    }

    #[test]
    fn lists_become_numpys_arrays_and_objects_become_keys() {
        let record =
            parse(r#"{"state": [1, 2.5], "images": {"top": [[1], [2]]}, "on": true, "prompt": "go"}"#).unwrap();
        assert_eq!(record.array("state").unwrap(), &Array::f64([2], vec![1.0, 2.5]));
        assert_eq!(record.array("images/top").unwrap(), &Array::new([2, 1], Values::I64(vec![1, 2])));
        assert_eq!(record.array("on").unwrap(), &Array::flag(true));
        assert_eq!(record.text("prompt").unwrap(), "go");
    }

    #[test]
    fn what_is_no_array_is_named_with_its_key() {
        let refusal = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(refusal(r#"{"a": {"b": [[1], [1, 2]]}}"#).contains("a/b: found lists"));
        assert!(refusal(r#"{"a": [1, null]}"#).contains("found null"));
        assert!(refusal(r#"{"a": "gone.png"}"#).contains("gone.png"));
        assert!(refusal("[1]").contains("expected an object"));
    }
}
