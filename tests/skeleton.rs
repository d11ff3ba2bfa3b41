//! The model is the authority on what exists, the name map on what it is called: they agree on every parameter.

#![cfg(feature = "model")]

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::DType;
use pi0_burn::config::{model, parse};
use pi0_burn::device::device;
use pi0_burn::model::{Pi, Settings};
use remap::{Lora, Map, Options, Plan, Tensor};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Names and shapes of a model that takes no memory.
fn skeleton(settings: &Settings) -> BTreeMap<String, Vec<u64>> {
    let pi = Pi::init(settings, DType::F32, &device("cpu").expect("the CPU"));
    let shape = |s: Vec<usize>| s.into_iter().map(|n| n as u64).collect();
    pi.parameters().into_iter().map(|(name, s)| (name, shape(s))).collect()
}

/// Names and shapes that the map makes of a JAX tree.
fn mapped(leaves: &[Tensor], heads: BTreeMap<(String, char), u64>) -> BTreeMap<String, Vec<u64>> {
    let map = Map::pi0();
    let (jax, burn) = (map.scheme("jax").expect("jax"), map.scheme("burn").expect("burn"));
    let options = Options { lora: Lora::Keep, heads, ..Options::default() };
    let plan = Plan::new(&map, leaves, jax, burn, &options).unwrap_or_else(|e| panic!("{e}"));
    plan.outputs.into_iter().map(|o| (o.tensor.name, o.tensor.shape)).collect()
}

/// The recorded tree of a model, published or tiny.
fn tree(name: &str) -> Vec<Tensor> {
    let text = read(&format!("golden/procedural/{name}.json"));
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let leaf = |leaf: &serde_json::Value| Tensor {
        name: leaf["name"].as_str().expect("a name").to_owned(),
        shape: leaf["shape"].as_array().expect("a shape").iter().filter_map(serde_json::Value::as_u64).collect(),
        dtype: orbax::Dtype::F32,
    };
    document["leaves"].as_array().expect("leaves").iter().map(leaf).collect()
}

#[test]
fn every_parameter_has_one_row_and_every_row_its_parameter() {
    for name in ["pi0", "pi05", "pi0_fast", "tiny_pi0", "tiny_pi05", "tiny_pi0_fast"] {
        let configured = parse(&read(&format!("configs/model/{name}.toml"))).expect("a model");
        assert_eq!(skeleton(&configured.settings), mapped(&tree(name), BTreeMap::new()), "{name}");
    }
}

#[test]
fn low_rank_pairs_are_parameters_under_their_names() {
    for (plain, lora) in [("gemma_2b", "gemma_2b_lora"), ("gemma_300m", "gemma_300m_lora")] {
        let text = read("configs/model/pi0.toml").replace(&format!("\"{plain}\""), &format!("\"{lora}\""));
        let settings = parse(&text).expect("a model").settings;
        let (with, without) = (skeleton(&settings), skeleton(&model("pi0").expect("pi0").settings));
        let pairs: Vec<&String> = with.keys().filter(|name| !without.contains_key(*name)).collect();
        // 18 layers, seven weights, two factors.
        assert_eq!(pairs.len(), 18 * 7 * 2, "{lora}");
        let map = Map::pi0();
        for name in pairs {
            let (row, _) = map.find("burn", name).unwrap_or_else(|| panic!("{name} has no row"));
            assert_eq!(map.rows[row].kind, remap::Kind::Lora, "{name}");
        }
    }
}

#[test]
fn a_dummy_model_has_the_sizes_it_is_given() {
    let text = read("configs/model/tiny_pi0.toml").replace("tiny_language", "dummy").replace("tiny_action", "dummy");
    let settings = parse(&text).expect("a model").settings;
    let names = skeleton(&settings);
    assert_eq!(names["llm.blocks.3.experts.1.gate.weight"], [64, 128]);
    assert!(!names.contains_key("llm.blocks.4.experts.0.gate.weight"));
}
