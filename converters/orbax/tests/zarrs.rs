//! The `zarrs` crate reads the same bytes from the same keys: a second opinion on documents, codecs, shards and grids.
//!
//! zarrs lacks three things (0.23): the dtype strings `bfloat16`, `float8_*` and `int4` in v2 documents, v2 complex with a null fill value, and
//! v3 `float8_*` with a plain number as fill value. The first is rewritten to the unsigned type of the same size, the others are left out.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use orbax::{Checkpoint, Dtype, Source, Value, read_array};
use zarrs::array::{Array, ArrayBytes};
use zarrs::storage::store::MemoryStore;
use zarrs::storage::{StoreKey, WritableStorageTraits};

#[test]
fn zarrs_reads_the_same_bytes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/orbax");
    let mut compared: HashMap<&str, usize> = HashMap::new();
    for name in [
        "orbax_old/mixed_ocdbt_zarr2",
        "orbax_pin/mixed_ocdbt_zarr2",
        "orbax_pin/mixed_ocdbt_zarr3",
        "orbax_new/chunked_ocdbt_zarr3",
        "orbax_new/sharded_ocdbt_zarr2",
        "orbax_mid/shardchunk_ocdbt_zarr3",
        "multiproc_new/ck_zarr3",
        "multiproc_pin/ck_zarr2",
    ] {
        let dir = root.join(name);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let database = ocdbt::Database::open(&dir).unwrap();
        for leaf in checkpoint.leaves() {
            let Value::Array(index) = leaf.value else {
                continue;
            };
            let info = &checkpoint.arrays()[index];
            let stored = leaf.path.iter().map(ToString::to_string).collect::<Vec<_>>().join(".");
            if info.dtype == Dtype::C64 && name.ends_with("zarr2") {
                continue;
            }
            let store = Arc::new(MemoryStore::new());
            let prefix = format!("{stored}/");
            for entry in database.entries_with_prefix(prefix.as_bytes()) {
                let key = std::str::from_utf8(&entry.key).unwrap().strip_prefix(&prefix).unwrap();
                let mut bytes = database.read(&entry.value).unwrap();
                if key == ".zarray" {
                    bytes = String::from_utf8(bytes).unwrap().replace("\"bfloat16\"", "\"<u2\"").into_bytes();
                }
                store.set(&StoreKey::new(format!("a/{key}")).unwrap(), bytes.into()).unwrap();
            }
            let array = Array::open(store, "/a").unwrap_or_else(|e| panic!("{name}: {stored}: {e}"));
            let bytes: ArrayBytes<'_> = array.retrieve_array_subset(&array.subset_all()).unwrap();
            let found = bytes.into_fixed().unwrap();
            assert!(found.as_ref() == read_array(&checkpoint, index).unwrap(), "{name}: {stored}");
            *compared.entry(if name.ends_with("zarr3") { "v3" } else { "v2" }).or_default() += 1;
        }
    }
    assert!(compared["v2"] > 60 && compared["v3"] > 40, "{compared:?}");
}
