//! An observation as a robot's program sends it, from a JSON document with pictures and arrays beside it.
//!
//! Keys of objects are joined by `/`. Lists of numbers become float64, int64 or bool, as numpy makes them of Python's; a
//! string that ends in `.png` or `.npy` is a file beside the document, any other is a text. Invariant: nothing of it is held
//! against a robot here.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;

use super::array;
use crate::policy::record::{Record, Value};

/// Bytes of a JSON document: pictures stand beside it.
const MAX_JSON: u64 = 1 << 28;

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
            Value::Array(array::file(&folder.join(text)).with_context(|| key.clone())?)
        }
        Json::String(text) => Value::Text(text.clone()),
        value => Value::Array(array::json(value).with_context(|| key.clone())?),
    };
    record.put(key, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::array::{Array, Values};

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
