//! big_vision's `pt_224.npz`: the backbone that a fine-tune starts from, read like any other checkpoint.

mod tool;

use std::io::Write;

use pi0_burn::weights::open::{Choice, Opened};
use remap::{Lora, Map, Options, Plan};
use tool::{checkpoint, convert, done, tensors};
use zip::write::SimpleFileOptions;

/// numpy's `savez`: a stored zip of npy files.
fn savez(path: &std::path::Path, arrays: &std::collections::BTreeMap<String, tool::Tensor>) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, tensor) in arrays {
        zip.start_file(format!("{name}.npy"), options).unwrap();
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        let comma = if shape.len() == 1 { "," } else { "" };
        let mut header =
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}{comma}), }}", shape.join(", "));
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
        zip.write_all(&u16::try_from(header.len()).unwrap().to_le_bytes()).unwrap();
        zip.write_all(header.as_bytes()).unwrap();
        zip.write_all(&tensor.bytes).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn it_converts_and_is_told_for_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // PaliGemma has the parameters of a pi0-FAST; the tiny one, under PaliGemma's own names.
    let from = checkpoint("base/pi0fast/params");
    convert(&from, &path("names.safetensors"), &["--to", "big_vision"]);
    let arrays = tensors(&path("names.safetensors"));
    assert!(arrays.contains_key("params/llm/layers/attn/q_einsum/w"));
    savez(&path("pt_224.npz"), &arrays);
    convert(&path("pt_224.npz"), &path("a.safetensors"), &[]);
    convert(&from, &path("b.safetensors"), &[]);
    assert!(tensors(&path("a.safetensors")) == tensors(&path("b.safetensors")));
    let text = done(&["inspect", path("pt_224.npz").to_str().unwrap()]);
    assert!(text.contains("scheme       big_vision") && text.contains("pi0_fast"), "{text}");
    done(&["inspect", "--diff", path("pt_224.npz").to_str().unwrap(), from.to_str().unwrap()]);
}

/// Canonical names and shapes of what a checkpoint holds; a part of a model is enough.
fn parameters(path: &std::path::Path) -> (String, std::collections::BTreeMap<String, Vec<u64>>) {
    let opened = Opened::open(path, &Choice::default()).unwrap();
    let map = Map::pi0();
    let from = opened.scheme(&map, None).unwrap();
    let options = Options { lora: Lora::Keep, part: true, ..Options::default() };
    let plan = Plan::new(&map, &opened.tensors, from, map.scheme("burn").unwrap(), &options).unwrap();
    (from.name.clone(), plan.outputs.into_iter().map(|o| (o.tensor.name, o.tensor.shape)).collect())
}

#[test]
fn it_is_the_part_of_a_pi0_that_a_weight_loader_takes_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    convert(&checkpoint("base/pi0fast/params"), &path("names.safetensors"), &["--to", "big_vision"]);
    savez(&path("pt_224.npz"), &tensors(&path("names.safetensors")));
    let (scheme, paligemma) = parameters(&path("pt_224.npz"));
    assert_eq!(scheme, "big_vision");
    let (_, pi0) = parameters(&checkpoint("base/pi0/params"));
    for (name, shape) in &paligemma {
        assert_eq!(pi0.get(name), Some(shape), "{name}");
    }
    // What it lacks is the action expert's and the projections', all of which begin by chance.
    for name in pi0.keys().filter(|name| !paligemma.contains_key(*name)) {
        let expert = name.contains(".experts.1.") || name.starts_with("llm.norms.1.");
        assert!(expert || !name.starts_with("img.") && !name.starts_with("llm."), "{name}");
    }
}
