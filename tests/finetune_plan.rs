//! What a fine-tune plans before it reads a weight, against openpi's own trees at their real size.
#![cfg(feature = "robot")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use orbax::Dtype;
use pi0_burn::train::freeze::Freeze;
use pi0_burn::train::memory::{Counts, Expert, Memory, Sizes, Vision};
use pi0_burn::weights::companions::Kind;
use pi0_burn::weights::init::{Birth, Law};
use pi0_burn::weights::names;
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

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(path)
}

/// What a model of these JAX leaves is made of.
fn plan(leaves: &[Tensor]) -> Plan {
    let map = Map::pi0();
    let scheme = |name| map.scheme(name).expect("a scheme");
    let options = Options { lora: Lora::Keep, ..Options::default() };
    Plan::new(&map, leaves, scheme("jax"), scheme("burn"), &options).expect("a whole model")
}

/// Canonical name of every parameter: its shape, and whether openpi freezes the leaf in which it lies.
fn tree(name: &str) -> BTreeMap<String, (Vec<u64>, bool)> {
    let text = std::fs::read_to_string(golden(&format!("trees/{name}.tsv"))).expect("a tree");
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
    let plan = plan(&leaves);
    let outputs = plan.outputs.iter().map(|o| {
        let leaf = names::jax(&o.tensor.name).expect("a leaf");
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

fn birth(tree: &str, seed: u64) -> Birth {
    let model = match tree {
        _ if tree.starts_with("pi0_fast") => Kind::Pi0Fast,
        _ if tree.starts_with("pi05") => Kind::Pi05,
        _ => Kind::Pi0,
    };
    Birth { model, heads: 8, seed }
}

#[test]
fn every_parameter_has_its_law() {
    for name in TREES {
        for (parameter, (shape, _)) in tree(name) {
            let shape: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
            let law = birth(name, 0).law(&parameter, &shape).unwrap_or_else(|| panic!("{parameter}: no law"));
            if let Law::Normal { deviation: x } | Law::Truncated { deviation: x } | Law::Uniform { limit: x } = law {
                assert!(x > 0.0 && x < 1.0, "{parameter}: {law:?}");
            }
        }
    }
}

/// Statistics of one leaf over several seeds, as `golden/record_init.py` has them.
#[derive(Debug, Default, serde::Deserialize)]
struct Recorded {
    shape: Vec<u64>,
    count: usize,
    mean: f64,
    deviation: f64,
    kurtosis: f64,
    least: f64,
    greatest: f64,
}

impl Recorded {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let moment = |k: i32| values.iter().map(|x| (x - mean).powi(k)).sum::<f64>() / n;
        let deviation = moment(2).sqrt();
        Recorded {
            shape: vec![],
            count: values.len(),
            mean,
            deviation,
            kurtosis: if deviation > 0.0 { moment(4) / deviation.powi(4) } else { 0.0 },
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            greatest: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

#[test]
fn models_are_born_as_openpis() {
    for name in ["pi0", "pi05", "pi0_fast"] {
        let text = std::fs::read_to_string(golden(&format!("init/{name}.json"))).expect("statistics");
        let recorded: BTreeMap<String, Recorded> = serde_json::from_str(&text).expect("statistics");
        let leaves =
            recorded.iter().map(|(leaf, r)| Tensor { name: leaf.clone(), shape: r.shape.clone(), dtype: Dtype::F32 });
        let mut drawn: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for output in plan(&leaves.collect::<Vec<_>>()).outputs {
            let shape: Vec<usize> = output.tensor.shape.iter().map(|n| *n as usize).collect();
            let leaf = drawn.entry(names::jax(&output.tensor.name).expect("a leaf")).or_default();
            for seed in 0..4 {
                let values = birth(name, seed).values(&output.tensor.name, &shape).expect("a parameter");
                leaf.extend(values.into_iter().map(f64::from));
            }
        }
        assert_eq!(drawn.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
        for (leaf, theirs) in &recorded {
            let ours = Recorded::of(&drawn[leaf]);
            assert_eq!(ours.count, theirs.count, "{leaf}");
            // Two samples of one law: five deviations of the difference, and a little for small samples.
            let error = 5.0 * (2.0 / theirs.count as f64).sqrt();
            let apart = |a: f64, b: f64, unit: f64| (a - b).abs() / unit;
            if theirs.deviation == 0.0 {
                assert_eq!((ours.least, ours.greatest), (theirs.least, theirs.greatest), "{leaf}");
                continue;
            }
            let unit = theirs.deviation;
            assert!(apart(ours.mean, theirs.mean, unit) < error, "{leaf}: {ours:?} {theirs:?}");
            assert!(apart(ours.deviation, theirs.deviation, unit) < error, "{leaf}: {ours:?} {theirs:?}");
            assert!(apart(ours.kurtosis, theirs.kurtosis, 5.0) < error, "{leaf}: {ours:?} {theirs:?}");
            // Where it is cut, it is cut at the same place; where it is not, it goes about as far.
            let room = if theirs.kurtosis < 2.7 { 0.1 } else { 1.6 };
            assert!(apart(ours.greatest, theirs.greatest, unit) < room, "{leaf}: {ours:?} {theirs:?}");
            assert!(apart(ours.least, theirs.least, unit) < room, "{leaf}: {ours:?} {theirs:?}");
        }
    }
}

/// The plan of one of openpi's models at its real size, with AdamW and bf16.
fn memory(name: &str, ema: bool, batch: u64) -> Memory {
    let tree = tree(name);
    let frozen: BTreeSet<&str> = tree.iter().filter(|(_, (_, cold))| *cold).map(|(n, _)| n.as_str()).collect();
    let counts = Counts::of(tree.iter().map(|(n, (shape, _))| (n.as_str(), shape.iter().product())), &frozen);
    let gemma = |width, mlp, tokens| Expert { width, depth: 18, mlp, heads: 8, kv_heads: 1, head_size: 256, tokens };
    let (prompt, suffix, logits) = match name {
        _ if name.starts_with("pi0_fast") => (249, 0, (249, 257_152)),
        _ if name.starts_with("pi05") => (200, 50, (0, 0)),
        _ => (48, 51, (0, 0)),
    };
    let experts = [gemma(2048, 16_384, 768 + prompt), gemma(1024, 4096, suffix)];
    Sizes {
        vision: Vision { width: 1152, depth: 27, mlp: 4304, heads: 16, tokens: 256 },
        images: 3,
        experts: experts.into_iter().filter(|e| e.tokens > 0).collect(),
        logits,
        counts,
        batch,
        accumulated: false,
        bf16: true,
        moments: 2,
        ema,
    }
    .plan()
}

#[test]
fn trees_have_the_parameters_that_the_plan_counts() {
    for (name, count, trainable) in [
        ("pi0", 3_238_048_528, 3_238_048_528),
        ("pi05", 3_353_433_872, 3_353_433_872),
        ("pi0_fast", 2_923_335_408, 2_923_335_408),
        ("pi0_lora", 3_288_036_112, 468_039_440),
    ] {
        let tree = tree(name);
        let cold: BTreeSet<&str> = tree.iter().filter(|(_, (_, cold))| *cold).map(|(n, _)| n.as_str()).collect();
        let counts = Counts::of(tree.iter().map(|(n, (shape, _))| (n.as_str(), shape.iter().product())), &cold);
        assert_eq!((counts.all(), counts.trainable), (count, trainable), "{name}");
    }
}

#[test]
fn one_example_of_a_model_at_its_real_size_fits_where_it_is_meant_to() {
    let mut table = String::new();
    for (name, ema) in [
        ("pi0", true),
        ("pi05", true),
        ("pi0_fast", true),
        ("pi0_lora", false),
        ("pi05_lora", false),
        ("pi0_fast_lora", false),
    ] {
        let plan = memory(name, ema, 1);
        if name.ends_with("lora") {
            assert!(plan.fits(16_000_000_000).is_ok(), "{name}\n{plan}");
        }
        table += &format!("{name}\n{plan}\n\n");
    }
    insta::assert_snapshot!(table.trim_end());
}
