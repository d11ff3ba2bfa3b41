//! The JSON files around the arrays: `_METADATA`, `_strings.json`, `array_metadatas/`, `_CHECKPOINT_METADATA`.
//!
//! Source: Orbax 0.4 to 0.12 (<https://github.com/google/orbax>, `checkpoint/orbax/checkpoint/_src/metadata`).
//! Invariant: a leaf's path is read from its `key_metadata`, never from the member name (a Python repr), and leaves keep the order of the
//! document. Files that are only informative never make a checkpoint unreadable.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::Key;
use crate::error::{Error, Result};
use crate::store::read_document;
use crate::zarr::short;

/// Bytes of `_METADATA` and its like (a large model's is a few hundred KiB).
pub(crate) const MAX_METADATA: u64 = 64 << 20;
/// Steps from the root to a leaf.
pub(crate) const MAX_PATH: usize = 256;
/// Files of `array_metadatas/` that are looked at: one per process of the save.
const MAX_PROCESSES: usize = 1 << 14;

/// What `_METADATA` says of one leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeafDoc {
    pub(crate) path: Vec<Key>,
    pub(crate) value_type: String,
    /// Nothing is stored for it.
    pub(crate) skip: bool,
}

/// `_METADATA`.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) leaves: Vec<LeafDoc>,
    pub(crate) use_ocdbt: Option<bool>,
    pub(crate) use_zarr3: bool,
    pub(crate) every_chunk_stored: bool,
}

#[derive(Deserialize)]
struct MetadataDoc {
    tree_metadata: Members<TreeEntry>,
    #[serde(default)]
    use_ocdbt: Option<bool>,
    #[serde(default)]
    use_zarr3: Option<bool>,
    #[serde(default)]
    store_array_data_equal_to_fill_value: Option<bool>,
}

#[derive(Deserialize)]
struct TreeEntry {
    key_metadata: Vec<KeyDoc>,
    value_metadata: ValueDoc,
}

#[derive(Deserialize)]
struct KeyDoc {
    key: Value,
    key_type: Value,
}

#[derive(Deserialize)]
struct ValueDoc {
    value_type: String,
    #[serde(default)]
    skip_deserialize: Option<bool>,
}

/// The members of an object in their order, doubles and all.
struct Members<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Members<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<T>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::document(file, e.to_string()))
}

impl Metadata {
    /// Reads `_METADATA`; `None` where the folder has none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join("_METADATA").display().to_string();
        match read_document(dir, "_METADATA", MAX_METADATA)? {
            Some(bytes) => Self::parse(&file, &bytes).map(Some),
            None => Ok(None),
        }
    }

    fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let doc: MetadataDoc = parse(file, bytes)?;
        let leaves =
            doc.tree_metadata.0.into_iter().map(|(member, entry)| leaf(file, &member, entry)).collect::<Result<_>>()?;
        Ok(Metadata {
            leaves,
            use_ocdbt: doc.use_ocdbt,
            use_zarr3: doc.use_zarr3.unwrap_or(false),
            every_chunk_stored: doc.store_array_data_equal_to_fill_value.unwrap_or(false),
        })
    }
}

fn leaf(file: &str, member: &str, entry: TreeEntry) -> Result<LeafDoc> {
    let bad = |problem: String| Error::document(file, format!("leaf {member:?}: {problem}"));
    if entry.key_metadata.len() > MAX_PATH {
        return Err(bad(format!("{} steps deep, at most {MAX_PATH} are accepted", entry.key_metadata.len())));
    }
    let path = entry
        .key_metadata
        .into_iter()
        .map(|KeyDoc { key, key_type }| {
            let text = match &key {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                other => {
                    return Err(bad(format!("key: expected a string, found {}", short(other))));
                }
            };
            match key_type.as_u64() {
                Some(2) => Ok(Key::Name(text)),
                Some(1) => {
                    let index = text.parse().ok().filter(|n: &u64| n.to_string() == text);
                    index.map(Key::Index).ok_or_else(|| bad(format!("key {text:?} is not a sequence index")))
                }
                _ => Err(bad(format!("key_type: expected 1 (sequence) or 2 (dict), found {}", short(&key_type)))),
            }
        })
        .collect::<Result<_>>()?;
    let ValueDoc { value_type, skip_deserialize } = entry.value_metadata;
    Ok(LeafDoc { path, value_type, skip: skip_deserialize.unwrap_or(false) })
}

/// `_strings.json`: array name to string; empty where the file does not exist.
pub(crate) fn read_strings(dir: &Path) -> Result<BTreeMap<String, String>> {
    let file = dir.join("_strings.json").display().to_string();
    match read_document(dir, "_strings.json", MAX_METADATA)? {
        Some(bytes) => parse(&file, &bytes),
        None => Ok(BTreeMap::new()),
    }
}

#[derive(Deserialize)]
struct ArrayMetadatas {
    array_metadatas: Vec<ArrayMetadataEntry>,
}
#[derive(Deserialize)]
struct ArrayMetadataEntry {
    array_metadata: ArrayMetadata,
}
#[derive(Deserialize)]
struct ArrayMetadata {
    param_name: String,
    #[serde(default)]
    ext_metadata: Option<ExtMetadata>,
}
#[derive(Deserialize)]
struct ExtMetadata {
    #[serde(default)]
    random_key_impl: Option<String>,
}

/// `array_metadatas/process_*`: array name to PRNG implementation, for typed key arrays. Informative: what cannot be read is a warning.
pub(crate) fn read_prng_impls(dir: &Path, warnings: &mut Vec<String>) -> HashMap<String, String> {
    let mut impls = HashMap::new();
    let Ok(entries) = std::fs::read_dir(dir.join("array_metadatas")) else {
        return impls;
    };
    let mut files: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("process_"))
        .take(MAX_PROCESSES)
        .collect();
    files.sort();
    for name in files {
        let name = format!("array_metadatas/{name}");
        let document = read_document(dir, &name, MAX_METADATA).and_then(|bytes| match bytes {
            Some(bytes) => parse::<ArrayMetadatas>(&name, &bytes),
            None => Ok(ArrayMetadatas { array_metadatas: Vec::new() }),
        });
        match document {
            Ok(document) => {
                for ArrayMetadataEntry { array_metadata: array } in document.array_metadatas {
                    if let Some(name) = array.ext_metadata.and_then(|ext| ext.random_key_impl) {
                        impls.insert(array.param_name, name);
                    }
                }
            }
            Err(e) => warnings.push(format!("PRNG key types are unknown: {e}")),
        }
    }
    impls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(leaf: &str) -> String {
        format!(r#"{{"tree_metadata": {{"x": {leaf}}}}}"#)
    }

    #[test]
    fn leaves_keep_their_order_and_their_key_types() {
        let text = r#"{"tree_metadata": {
            "z": {"key_metadata": [{"key":"z","key_type":2},{"key":"10","key_type":1}], "value_metadata": {"value_type":"jax.Array","skip_deserialize":false}},
            "a": {"key_metadata": [{"key":0,"key_type":2}], "value_metadata": {"value_type":"None","skip_deserialize":true}}},
            "use_zarr3": true, "store_array_data_equal_to_fill_value": true, "custom_metadata": null}"#;
        let metadata = Metadata::parse("_METADATA", text.as_bytes()).unwrap();
        assert_eq!(metadata.leaves[0].path, [Key::Name("z".into()), Key::Index(10)]);
        assert_eq!(metadata.leaves[1].path, [Key::Name("0".into())]);
        assert!(metadata.leaves[1].skip && !metadata.leaves[0].skip);
        assert_eq!((metadata.use_ocdbt, metadata.use_zarr3, metadata.every_chunk_stored), (None, true, true));
    }

    #[test]
    fn members_absent_in_old_versions_have_their_old_meaning() {
        let metadata = Metadata::parse("_METADATA", br#"{"tree_metadata": {}}"#).unwrap();
        assert_eq!((metadata.use_ocdbt, metadata.use_zarr3, metadata.every_chunk_stored), (None, false, false));
    }

    #[test]
    fn forged_documents_are_refused_by_name() {
        let deep = format!(
            r#"{{"key_metadata":[{}],"value_metadata":{{"value_type":"None"}}}}"#,
            vec![r#"{"key":"a","key_type":2}"#; MAX_PATH + 1].join(",")
        );
        for (text, expected) in [
            ("not json".to_owned(), "expected"),
            ("{}".to_owned(), "tree_metadata"),
            (r#"{"tree_metadata": []}"#.to_owned(), "an object"),
            (one("1"), "invalid type"),
            (one(r#"{"key_metadata":[{"key":"a","key_type":3}],"value_metadata":{"value_type":"None"}}"#), "key_type"),
            (
                one(r#"{"key_metadata":[{"key":"a","key_type":"2"}],"value_metadata":{"value_type":"None"}}"#),
                "key_type",
            ),
            (
                one(r#"{"key_metadata":[{"key":"01","key_type":1}],"value_metadata":{"value_type":"None"}}"#),
                "sequence index",
            ),
            (
                one(r#"{"key_metadata":[{"key":null,"key_type":2}],"value_metadata":{"value_type":"None"}}"#),
                "expected a string",
            ),
            (one(r#"{"key_metadata":[],"value_metadata":{}}"#), "value_type"),
            (one(&deep), "steps deep"),
            (format!(r#"{{"tree_metadata": {{}}, "custom_metadata": {}1"#, "[".repeat(200_000)), "EOF"),
        ] {
            let error = Metadata::parse("_METADATA", text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("_METADATA: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_broken_informative_file_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("array_metadatas")).unwrap();
        std::fs::write(dir.path().join("array_metadatas/process_0"), "x").unwrap();
        std::fs::write(
            dir.path().join("array_metadatas/process_1"),
            r#"{"array_metadatas":[{"array_metadata":{"param_name":"k","ext_metadata":{"random_key_impl":"rbg"}}},{"array_metadata":{"param_name":"a","ext_metadata":null}}]}"#,
        )
        .unwrap();
        let mut warnings = Vec::new();
        let impls = read_prng_impls(dir.path(), &mut warnings);
        assert_eq!(impls, HashMap::from([("k".to_owned(), "rbg".to_owned())]));
        assert_eq!(warnings.len(), 1);
    }
}
