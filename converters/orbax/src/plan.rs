//! What a writer decides before it writes: chunk shapes, names, the text of `_METADATA`.
//!
//! Source: Orbax's chunk rule and metadata (<https://github.com/google/orbax>, `_src/arrays/subchunking.py`, `_src/metadata/tree.py`).
//! Invariant: everything here is a function of the arguments; all that can be refused is refused here, before a byte is written.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::metadata::{LeafDoc, MAX_PATH};
use crate::tree::{self, Key, path_name, stored_name};
use crate::writer::{NewArray, NewEmpty};
use crate::zarr::{self, product};

/// Orbax's target: a chunk is at most 2 GiB.
pub(crate) const TARGET_CHUNK_BYTES: u64 = 2 << 30;
/// OCDBT's limit on a key.
const MAX_KEY_BYTES: usize = 65_535;
/// The longest chunk key behind a name: 32 indices of up to 8 digits (2^24 chunks), their dots, a slash.
const CHUNK_KEY_BYTES: usize = 512;

/// An array with all decided.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) stored_name: String,
    pub(crate) chunk_shape: Vec<u64>,
    pub(crate) chunk_bytes: u64,
    pub(crate) grid: Vec<u64>,
    pub(crate) chunks: u64,
    pub(crate) document: String,
}

/// Checks the whole tree.
pub(crate) fn plan(arrays: &[NewArray], empty: &[NewEmpty], level: i32) -> Result<Vec<Planned>> {
    if arrays.is_empty() {
        return Err(Error::write("", "a checkpoint without arrays cannot be restored; nothing to write"));
    }
    let mut names: Vec<(String, String)> = Vec::new();
    let mut planned = Vec::new();
    let mut leaves = Vec::new();
    for array in arrays {
        let name = path_name(&array.path);
        let stored = stored_name(&array.path);
        planned.push(plan_one(array, &name, &stored, level)?);
        leaves.push(LeafDoc { path: array.path.clone(), value_type: String::new(), skip: false });
        names.push((stored, name));
    }
    let inner = leaves.len().saturating_add(empty.len());
    leaves.extend(empty.iter().map(|node| LeafDoc { path: node.path.clone(), value_type: String::new(), skip: true }));
    if tree::check(leaves)?.len() != inner {
        return Err(Error::write("", "a node is said to be empty and has leaves below it"));
    }
    names.sort();
    for pair in names.windows(2) {
        if let [(stored, a), (other, b)] = pair
            && stored == other
        {
            return Err(Error::write(a, format!("is stored as {stored:?}, and so is {b:?}; rename one of them")));
        }
    }
    Ok(planned)
}

fn plan_one(array: &NewArray, name: &str, stored: &str, level: i32) -> Result<Planned> {
    if array.path.len() > MAX_PATH {
        return Err(Error::write(name, format!("{} steps deep, at most {MAX_PATH} are written", array.path.len())));
    }
    if stored.len().saturating_add(CHUNK_KEY_BYTES) > MAX_KEY_BYTES {
        return Err(Error::write(name, "a name too long for a key of the database"));
    }
    if array.shape.contains(&0) {
        return Err(Error::write(
            name,
            format!("shape {:?} has no elements; Orbax cannot store such an array", array.shape),
        ));
    }
    if matches!(array.dtype, Dtype::U4 | Dtype::U2 | Dtype::I2) {
        return Err(Error::write(name, format!("TensorStore does not read {} arrays", array.dtype)));
    }
    let chunk_shape = match &array.chunk_shape {
        Some(chunk) => chunk.clone(),
        None => whole_or_parts(&array.shape, array.dtype),
    };
    let document = zarr::write_v2(&array.shape, &chunk_shape, array.dtype, level);
    // The reader's own checks: what is written can be read.
    let doc = zarr::parse_v2(name, document.as_bytes())?;
    Ok(Planned {
        stored_name: stored.to_owned(),
        chunk_bytes: doc.chunk_bytes(),
        grid: zarr::grid(&doc.shape, &doc.chunk_shape),
        chunks: doc.chunks(),
        chunk_shape,
        document,
    })
}

/// The whole array, its largest side divided by its smallest divisor until a chunk is at most [`TARGET_CHUNK_BYTES`].
fn whole_or_parts(shape: &[u64], dtype: Dtype) -> Vec<u64> {
    let mut chunk = shape.to_vec();
    let size = u64::try_from(dtype.size()).unwrap_or(u64::MAX);
    while product(&chunk).and_then(|n| n.checked_mul(size)).is_none_or(|bytes| bytes > TARGET_CHUNK_BYTES) {
        let Some(side) = chunk.iter_mut().max() else {
            break;
        };
        if *side <= 1 {
            break;
        }
        *side = side.checked_div(smallest_divisor(*side)).unwrap_or(1);
    }
    chunk
}

/// The smallest divisor above 1; a side without a small one is not split evenly but taken apart element by element.
fn smallest_divisor(n: u64) -> u64 {
    (2..=1000).find(|&d| n.is_multiple_of(d)).unwrap_or(n)
}

/// The text of `_METADATA`: leaves in JAX's order (sorted by path, sequence indices ascending).
pub(crate) fn metadata_text(arrays: &[NewArray], empty: &[NewEmpty]) -> String {
    let stored = arrays.iter().map(|array| (array.path.as_slice(), "np.ndarray", false));
    let mut paths: Vec<(&[Key], &str, bool)> =
        stored.chain(empty.iter().map(|node| (node.path.as_slice(), node.kind.name(), true))).collect();
    paths.sort();
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let leaves: Vec<String> = paths
        .iter()
        .map(|(path, value_type, skip)| {
            let keys: Vec<String> = path
                .iter()
                .map(|key| {
                    let kind = if matches!(key, Key::Index(_)) { 1 } else { 2 };
                    format!(r#"{{"key": {}, "key_type": {kind}}}"#, quoted(&key.to_string()))
                })
                .collect();
            format!(
                r#"{}: {{"key_metadata": [{}], "value_metadata": {{"value_type": "{value_type}", "skip_deserialize": {skip}}}}}"#,
                quoted(&python_tuple(path)),
                keys.join(", ")
            )
        })
        .collect();
    format!(
        r#"{{"tree_metadata": {{{}}}, "use_ocdbt": true, "use_zarr3": false, "store_array_data_equal_to_fill_value": true, "custom_metadata": null}}"#,
        leaves.join(", ")
    )
}

/// The member name Orbax gives a leaf: how Python prints a tuple of strings.
fn python_tuple(path: &[Key]) -> String {
    let mut out = String::from("(");
    for (i, key) in path.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        let text = key.to_string();
        let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
        out.push(quote);
        for c in text.chars() {
            if c == quote || c == '\\' || c.is_control() {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        out.push(quote);
    }
    if path.len() == 1 {
        out.push(',');
    }
    out.push(')');
    out
}

/// The text of `_CHECKPOINT_METADATA`.
pub(crate) fn checkpoint_metadata_text(time_ns: u64) -> String {
    format!(
        r#"{{"item_handlers": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler", "metrics": {{}}, "performance_metrics": {{}}, "init_timestamp_nsecs": {time_ns}, "commit_timestamp_nsecs": {time_ns}, "custom_metadata": {{}}}}"#
    )
}

/// 128 bits for the database's identity and its file names: FNV-1a over the tree, the time and a number. Not secret, only different.
pub(crate) fn identity(metadata: &str, arrays: &[Planned], time_ns: u64, number: u64) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let documents = arrays.iter().flat_map(|array| array.document.bytes());
    let numbers = time_ns.to_le_bytes().into_iter().chain(number.to_le_bytes());
    metadata
        .bytes()
        .chain(documents)
        .chain(numbers)
        .fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_the_whole_array_halved_until_it_fits() {
        assert_eq!(whole_or_parts(&[257152, 2048], Dtype::F32), [257152, 2048]);
        // The two arrays of pi0 that Orbax splits: in 4 and in 2.
        assert_eq!(whole_or_parts(&[18, 2, 2048, 16384], Dtype::F32), [18, 2, 2048, 4096]);
        assert_eq!(whole_or_parts(&[18, 16384, 2048], Dtype::F32), [18, 8192, 2048]);
        assert!(whole_or_parts(&[], Dtype::F32).is_empty());
        assert_eq!(whole_or_parts(&[1_000_000_007, 3], Dtype::F32), [1, 3]);
    }

    #[test]
    fn member_names_are_pythons() {
        let name = |text: &str| Key::Name(text.into());
        assert_eq!(python_tuple(&[name("params"), Key::Index(0)]), "('params', '0')");
        assert_eq!(python_tuple(&[name("it's")]), "(\"it's\",)");
        assert_eq!(python_tuple(&[name("a\\'\"\n")]), "('a\\\\\\'\"\\n',)");
        assert_eq!(python_tuple(&[]), "()");
    }

    #[test]
    fn identities_differ_by_number_and_time() {
        let ids =
            [identity("m", &[], 1, 0), identity("m", &[], 1, 1), identity("m", &[], 2, 0), identity("n", &[], 1, 0)];
        for (i, a) in ids.iter().enumerate() {
            assert!(ids[..i].iter().all(|b| a != b));
        }
    }
}
