//! What a fine-tune plans before it reads a weight, against openpi's own trees at their real size.
#![cfg(feature = "robot")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use orbax::Dtype;
use pi0_burn::train::freeze::Freeze;
use remap::{Lora, Map, Options, Plan, Tensor};

const TREES: [&str; 8] = [
    "pi0",
    "pi05",
    "pi0_fast",
    "pi0_lora",
    "pi05_lora",
    "pi0_fast_lora",
    "pi0_lora_expert_only",
    "pi0_lora_paligemma_only",
];

/// Canonical name of every parameter: its shape, and whether openpi freezes the leaf in which it lies.
fn tree(name: &str) -> BTreeMap<String, (Vec<u64>, bool)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/trees/{name}.tsv"));
    let text = std::fs::read_to_string(path).expect("a tree");
    let mut frozen = BTreeSet::new();
    let leaf = |line: &str| {
        let mut parts = line.split('\t');
        let (name, shape, fate) = (parts.next()?.to_owned(), parts.next()?, parts.next()?);
        let shape = shape.split(',').map(|n| n.parse()).collect::<Result<_, _>>().ok()?;
        Some((Tensor { name, shape, dtype: Dtype::F32 }, fate == "frozen"))
    };
    let leaves: Vec<Tensor> = text
        .lines()
        .map(|line| {
            let (tensor, cold) = leaf(line).expect("a leaf");
            frozen.extend(cold.then(|| tensor.name.clone()));
            tensor
        })
        .collect();
    let map = Map::pi0();
    let scheme = |name| map.scheme(name).expect("a scheme");
    let options = Options { lora: Lora::Keep, ..Options::default() };
    let plan = Plan::new(&map, &leaves, scheme("jax"), scheme("burn"), &options).expect("a whole model");
    let outputs = plan.outputs.iter().map(|o| {
        let leaf = pi0_burn::weights::names::jax(&o.tensor.name).expect("a leaf");
        assert!(leaves.iter().any(|l| l.name == leaf), "{leaf}");
        (o.tensor.name.clone(), (o.tensor.shape.clone(), frozen.contains(&leaf)))
    });
    outputs.collect()
}

#[test]
fn openpis_filter_freezes_the_same_parameters() {
    for name in TREES {
        let tree = tree(name);
        let names: Vec<&str> = tree.keys().map(String::as_str).collect();
        let rules: Freeze = if name.contains("lora") { "lora" } else { "none" }.parse().expect("a word");
        let ours = rules.frozen(&names).expect("names");
        let theirs: BTreeSet<&str> = tree.iter().filter(|(_, (_, cold))| *cold).map(|(n, _)| n.as_str()).collect();
        assert_eq!(ours, theirs, "{name}");
        assert_eq!(ours.is_empty(), !name.contains("lora"), "{name}");
    }
}

#[test]
fn openpis_own_expression_freezes_the_same_as_its_filter() {
    // `All(".*llm.*", Not(".*lora.*"))` as one expression over JAX paths; this engine has no look-ahead.
    let tree = tree("pi0_fast_lora");
    let names: Vec<&str> = tree.keys().map(String::as_str).collect();
    let pattern = "PaliGemma/llm/.*(scale|embedding|/w|gating_einsum|linear)".parse().expect("a pattern");
    let lora: Freeze = "lora".parse().expect("a word");
    assert_eq!(Freeze { rules: vec![pattern] }.frozen(&names), lora.frozen(&names));
}

#[test]
fn with_pairs_in_both_experts_as_many_values_are_trained_as_in_openpi() {
    let tree = tree("pi0_lora");
    let trained = tree.values().filter(|(_, cold)| !cold).map(|(shape, _)| shape.iter().product::<u64>());
    assert_eq!(trained.sum::<u64>(), 468_039_440);
}
