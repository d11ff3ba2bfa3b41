//! Every shipped checkpoint, into every scheme and back into an Orbax folder, is itself again, bit for bit.

mod tool;

use tool::{CHECKPOINTS, checkpoint, convert, tensors};

const SCHEMES: [&str; 6] = ["burn", "openpi-torch", "lerobot", "giga", "big_vision", "jax"];

#[test]
fn through_every_scheme() {
    let mut ways = 0;
    for name in CHECKPOINTS {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // The names and bytes as they are, by our reader and somebody else's file format.
        let home = path("home.safetensors");
        convert(&checkpoint(name), &home, &["--to", "jax"]);
        let home = tensors(&home);
        let lora = home.keys().any(|n| n.contains("lora"));
        for scheme in SCHEMES {
            // PyTorch's schemes have no names for low-rank pairs, and PaliGemma's none for an action expert.
            let names_lora = matches!(scheme, "burn" | "jax");
            if (lora && !names_lora) || (scheme == "big_vision" && !name.contains("fast")) {
                continue;
            }
            let there = path(&format!("there-{scheme}"));
            convert(&checkpoint(name), &there, &["--to", scheme]);
            let heads = ["--heads", "8", "--kv-heads", "1", "--vision-heads", "4"];
            let back = path(&format!("back-{scheme}"));
            let mut more = vec!["--to", "jax"];
            if scheme == "lerobot" || scheme == "big_vision" {
                // What a stranger's file does not say, the user does.
                more.extend(heads);
            }
            convert(&there, &back, &more);
            let again = path(&format!("again-{scheme}.safetensors"));
            convert(&back, &again, &["--to", "jax"]);
            assert!(tensors(&again) == home, "{name} through {scheme}");
            ways += 1;
        }
    }
    assert_eq!(ways, 8 * 5 + 1 - 3);
}

#[test]
fn stacked_layers_of_two_types_widen_and_nothing_else_changes() {
    // A LoRA checkpoint mixes bf16 and f32; each tensor keeps its own type on the way.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lora.safetensors");
    convert(&checkpoint("manager/pi0_lora/7/params"), &file, &[]);
    let all = tensors(&file);
    let count = |dtype: &str| all.values().filter(|t| t.dtype == dtype).count();
    assert_eq!((count("BF16"), count("F32")), (57, 149));
}

/// A tree comes with or without the outer `params`, with or without `value` at every end.
#[test]
fn all_four_wrappings_are_one_model() {
    use std::io::Write;

    use orbax::{CheckpointWriter, Dtype, Key, NewArray, WriteOptions};
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    convert(&checkpoint("base/pi05/params"), &path("home.safetensors"), &["--to", "jax"]);
    let home = tensors(&path("home.safetensors"));
    for (params, value) in [(false, false), (false, true), (true, false), (true, true)] {
        let dir = path(&format!("ckpt-{params}-{value}"));
        let arrays = home.iter().map(|(name, tensor)| {
            let steps = params.then_some("params").into_iter().chain(name.split('/')).chain(value.then_some("value"));
            NewArray {
                path: steps.map(|s| Key::Name(s.to_owned())).collect(),
                shape: tensor.shape.iter().map(|n| *n as u64).collect(),
                dtype: Dtype::F32,
                chunk_shape: None,
            }
        });
        let options = WriteOptions { time_ns: 1, level: 1, data_files: 1 };
        let writer = CheckpointWriter::create(&dir, arrays.collect(), options).unwrap();
        for (i, tensor) in home.values().enumerate() {
            let mut chunk = writer.chunk(i, 0).unwrap();
            chunk.write_all(&tensor.bytes).unwrap();
            chunk.finish().unwrap();
        }
        writer.finish().unwrap();
        let again = path(&format!("again-{params}-{value}.safetensors"));
        convert(&dir, &again, &["--to", "jax"]);
        assert!(tensors(&again) == home, "params {params}, value {value}");
    }
}
