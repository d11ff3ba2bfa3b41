//! What we make of the tiny checkpoints is what openpi's own converter makes of them, tensor by tensor.

mod tool;

use std::path::Path;

use sha2::{Digest, Sha256};

#[test]
fn openpi_torch_equals_openpis_own_slices() {
    for (model, count) in [("pi0", 122), ("pi05", 127)] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        let more = ["--to", "openpi-torch", "--tied", "own", "--unused-head", "omit"];
        tool::convert(&tool::checkpoint(&format!("base/{model}/params")), &file, &more);
        let found = tool::tensors(&file);
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/convert/{model}.json"));
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
        let golden = golden.as_object().unwrap();
        assert_eq!(golden.len(), count);
        assert_eq!(found.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>());
        for (name, tensor) in &found {
            let hash: String = Sha256::digest(&tensor.bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(serde_json::json!(tensor.shape), golden[name]["shape"], "{model}: {name}");
            assert_eq!(hash, golden[name]["sha256"], "{model}: {name}");
        }
    }
}
