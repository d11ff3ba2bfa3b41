//! The training step is openpi's: its loss, its gradients, and five steps of its optimizer with their moving average.

#![cfg(feature = "model")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use pi0_burn::device::{Precision, device};
use pi0_burn::model::Pi;
use pi0_burn::train::backward::{Input, Target, by_blocks, in_one_graph};
use pi0_burn::train::optimizer::{Memory, clipping, update};
use pi0_burn::train::settings::Optimizer;
use pi0_burn::train::state::{Rule, State};
use pi0_burn::verify::record::{observation, upload};
use pi0_burn::verify::set::Set;
use pi0_burn::weights::arrays::{Array, read_arrays};
use pi0_burn::weights::load::{Load, load};
use pi0_burn::weights::open::{Choice, Opened};
use serde_json::Value;

const CASES: [&str; 4] = ["pi0_f32", "pi05_f32", "pi0fast_f32", "pi0_lora_f32"];
/// A bias of SigLIP's keys adds the same to all logits of a query: its gradient is zero but for rounding, which Adam makes
/// as large as any other. The reference parts from itself by as much.
const NO_GRADIENT: &str = ".attn.k.bias";

struct Case {
    pi: Pi,
    set: Set,
    chance: BTreeMap<String, Array>,
    expect: BTreeMap<String, Array>,
    facts: Value,
    trained: Vec<String>,
}

fn golden() -> PathBuf {
    std::env::var("PI0_TEST_GOLDEN").map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"), PathBuf::from)
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = golden().join("train").join(name);
        let set = Set::open(&golden().join(name)).unwrap_or_else(|e| panic!("{e:#}"));
        let device = device(&std::env::var("PI0_TEST_DEVICE").unwrap_or_else(|_| "cpu".into())).expect("a device");
        let opened = Opened::open(&set.weights().expect("weights"), &Choice::default()).expect("a checkpoint");
        let how = Load {
            from: None,
            parameters: Precision::F32.parameters(),
            activations: Precision::F32.activations(),
            lora_scale: 1.0,
            threads: 2,
            pack: false,
            digest: false,
        };
        let pi = load(&opened, &how, &device, &()).unwrap_or_else(|e| panic!("{e:#}")).pi;
        let text = std::fs::read_to_string(folder.join("case.json")).expect("case.json");
        let facts: Value = serde_json::from_str(&text).expect("JSON");
        let trained =
            facts["trained"].as_array().expect("names").iter().map(|n| n.as_str().expect("a name").to_owned());
        let chance = folder.join("chance.safetensors");
        Case {
            pi,
            set,
            chance: if chance.is_file() { read_arrays(&chance).expect("chance") } else { BTreeMap::new() },
            expect: read_arrays(&folder.join("expect.safetensors")).expect("expected values"),
            trained: trained.collect(),
            facts,
        }
    }

    fn input(&self, at: &str) -> Input {
        let device = self.pi.device();
        let up = |name: &str, array: &Array| upload::<3>(name, array, &device).unwrap_or_else(|e| panic!("{e:#}"));
        let target = match self.chance.get(&format!("{at}/noise")) {
            None => Target::Tokens,
            Some(noise) => Target::Flow {
                actions: up("in/actions", self.set.input("in/actions").expect("actions")),
                noise: up("noise", noise),
                time: self.chance[&format!("{at}/time")].values.clone(),
                weights: None,
            },
        };
        let observation = observation(&self.pi, &self.set, "in").unwrap_or_else(|e| panic!("{e:#}"));
        Input { observation, target, share: 1.0 }
    }

    fn rows(&self, input: &Input, row: usize) -> Input {
        let mut part = input.clone();
        part.share = 0.5;
        part.observation = input.observation.row(row);
        if let Target::Flow { actions, noise, time, .. } = &mut part.target {
            *actions = actions.clone().narrow(0, row, 1);
            *noise = noise.clone().narrow(0, row, 1);
            *time = vec![time[row]];
        }
        part
    }

    fn rule(&self, recompute: bool) -> Rule {
        let optimizer = Optimizer::Adamw { b1: 0.9, b2: 0.95, eps: 1e-8, weight_decay: 1e-10, clip_gradient_norm: 1.0 };
        Rule { optimizer, ema_decay: Some(0.99), recompute }
    }

    fn number(&self, key: &str, step: usize) -> f64 {
        self.facts["per_step"][key][step].as_f64().expect("a figure")
    }

    /// Distance of what was found from what was recorded: of the samples and of the norm, as shares of the largest value
    /// and of the norm.
    fn distance(&self, name: &str, found: Tensor<1>) -> Distance {
        let found: Vec<f32> = found.into_data().iter::<f32>().collect();
        let expected = &self.expect[name].values;
        let facts = &self.facts["max_abs_and_norm"][name];
        let (most, norm) = (facts[0].as_f64().expect("a number"), facts[1].as_f64().expect("a number"));
        let last = (found.len() - 1) as f64;
        let at = |i: usize| match expected.len() {
            1 => 0,
            n => (i as f64 * (last / (n - 1) as f64)) as usize,
        };
        let off = expected.iter().enumerate().map(|(i, x)| f64::from((found[at(i)] - x).abs()));
        let own = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let off: Vec<f64> = off.collect();
        Distance {
            absolute: off.iter().copied().fold(0.0, f64::max),
            squares: off.iter().map(|x| x * x).sum(),
            values: off.len(),
            most,
            norm: (own - norm).abs(),
            of: norm,
        }
    }
}

struct Distance {
    absolute: f64,
    squares: f64,
    values: usize,
    most: f64,
    norm: f64,
    of: f64,
}

impl Distance {
    /// The largest difference as a share of the largest value; a tensor of zeros must be zeros.
    fn relative(&self) -> f64 {
        let share = |x: f64, of: f64| if x == 0.0 { 0.0 } else { x / of };
        share(self.absolute, self.most).max(share(self.norm, self.of))
    }
}

#[test]
fn every_gradient_is_the_recorded_one() {
    for name in CASES {
        let case = Case::open(name);
        let input = case.input("grad");
        let trains = |name: &str| case.trained.iter().any(|n| n == name);
        for (how, slope) in [
            ("in one graph", in_one_graph(&case.pi, &input, &trains)),
            ("by blocks", by_blocks(&case.pi, &input, &trains)),
        ] {
            let loss = f64::from(slope.loss.into_scalar::<f32>());
            let expected = case.facts["grad_loss"].as_f64().expect("a loss");
            assert!((loss - expected).abs() <= 1e-5 * expected, "{name} {how}: loss {loss}, recorded {expected}");
            let mut worst = (0.0, String::new());
            for parameter in &case.trained {
                let key = format!("grad/{parameter}");
                let Some(found) = slope.gradients.get(parameter) else {
                    let most = case.facts["max_abs_and_norm"][&key][0].as_f64();
                    assert_eq!(most, Some(0.0), "{name} {how}: {parameter} has no gradient");
                    continue;
                };
                let d = case.distance(&key, found.clone());
                if parameter.ends_with(NO_GRADIENT) {
                    assert!(d.absolute < 1e-6, "{name} {how}: {parameter} is {} off zero", d.absolute);
                    continue;
                }
                if d.relative() > worst.0 {
                    worst = (d.relative(), parameter.clone());
                }
            }
            println!("{name} {how}: worst gradient {:.2e} of {}", worst.0, worst.1);
            assert!(worst.0 <= 1e-4, "{name} {how}: {worst:?}");
            let strangers: Vec<&str> = slope.gradients.names().filter(|n| !trains(n)).collect();
            assert!(strangers.is_empty(), "{name} {how}: gradients of {strangers:?}");
        }
    }
}

/// A rule by which names are trained.
type Trains = fn(&str) -> bool;

#[test]
fn whatever_is_frozen_the_rest_has_the_gradients_of_one_graph() {
    let rules: [(&str, Trains); 9] = [
        ("vision is frozen", |n| !n.starts_with("img.")),
        ("the action expert alone", |n| !(n.starts_with("img.") || n.contains("experts.0") || n.contains("llm.embed"))),
        ("a block in the middle", |n| n.starts_with("llm.blocks.1.")),
        ("the last block's language", |n| n.starts_with("llm.blocks.2.experts.0.")),
        ("the first block's actions", |n| n.starts_with("llm.blocks.0.experts.1.")),
        ("word vectors", |n| n == "llm.embed.weight"),
        ("patches", |n| n.starts_with("img.patch.")),
        ("time and state", |n| n.starts_with("time_mlp_") || n.starts_with("state_proj.")),
        ("the end", |n| n.starts_with("action_out_proj.") || n.starts_with("llm.norms.")),
    ];
    for name in ["pi0_f32", "pi05_f32", "pi0fast_f32"] {
        let case = Case::open(name);
        let input = case.input("grad");
        for (what, trains) in rules {
            let wanted: Vec<&String> = case.trained.iter().filter(|n| trains(n)).collect();
            if wanted.is_empty() {
                continue;
            }
            let (one, blocks) = (in_one_graph(&case.pi, &input, &trains), by_blocks(&case.pi, &input, &trains));
            let losses = [one.loss, blocks.loss].map(|loss| loss.into_scalar::<f32>());
            assert!((losses[0] - losses[1]).abs() <= 1e-5 * losses[0].abs(), "{name}, {what}: {losses:?}");
            for parameter in wanted {
                let list = |g: Option<&Tensor<1>>| -> Vec<f32> {
                    g.map_or(vec![], |g| g.clone().into_data().iter::<f32>().collect())
                };
                let (a, b) = (list(one.gradients.get(parameter)), list(blocks.gradients.get(parameter)));
                let most = a.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                if b.is_empty() {
                    assert!(most == 0.0, "{name}, {what}: {parameter} has a gradient of up to {most}");
                    continue;
                }
                assert_eq!(a.len(), b.len(), "{name}, {what}: {parameter}");
                let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
                assert!(off <= 1e-4 * most + 1e-6, "{name}, {what}: {parameter} is {off} off, of {most}");
            }
            assert!(blocks.gradients.names().all(trains), "{name}, {what}: a gradient of what is frozen");
        }
    }
}

#[test]
fn equal_weights_are_the_mean_and_masked_values_do_not_count() {
    let case = Case::open("pi05_f32");
    let (plain, mut masked) = (case.input("grad"), case.input("grad"));
    let Target::Flow { actions, weights, .. } = &mut masked.target else { panic!("a flow") };
    let [b, h, a] = actions.dims();
    *weights = Some(Tensor::full([b, h, a], 1.0 / (b * h * a) as f32, &case.pi.device()));
    let trains = |_: &str| true;
    let loss = |input: &Input| by_blocks(&case.pi, input, &trains).loss.into_scalar::<f32>();
    assert!((loss(&plain) - loss(&masked)).abs() <= 1e-5 * loss(&plain));
    // The last dim counts nothing.
    let Target::Flow { weights, .. } = &mut masked.target else { panic!("a flow") };
    let seen = Tensor::cat(
        vec![
            Tensor::full([b, h, a - 1], 1.0 / (b * h * (a - 1)) as f32, &case.pi.device()),
            Tensor::zeros([b, h, 1], &case.pi.device()),
        ],
        2,
    );
    *weights = Some(seen);
    let before = in_one_graph(&case.pi, &masked, &trains).loss.into_scalar::<f32>();
    assert!((before - loss(&masked)).abs() <= 1e-5 * before, "both ways have the same loss");
    assert!((before - loss(&plain)).abs() > 1e-4 * before, "the last dim is left out");
}

#[test]
fn five_steps_are_the_recorded_ones() {
    for name in CASES {
        for (how, parts) in [("whole batch", 1), ("row by row", 2)] {
            let case = Case::open(name);
            let trained = case.trained.clone();
            let mut state = State::new(case.pi.clone(), case.rule(true), None, &|n| trained.iter().any(|t| t == n));
            for step in 0..5 {
                let input = case.input(&format!("step{}", step + 1));
                let rate = case.number("lr", step) as f32;
                let rows = (0..parts).map(|row| if parts == 1 { input.clone() } else { case.rows(&input, row) });
                let outcome = state.learn(rows, rate).expect("finite");
                let loss = case.number("loss", step);
                let norm = case.number("grad_norm", step);
                let off = (f64::from(outcome.loss) - loss).abs() / loss;
                let norm_off = (outcome.grad_norm - norm).abs() / norm;
                let param_off = (state.param_norm() - case.number("param_norm", step)).abs() / state.param_norm();
                println!(
                    "{name} {how} step {step}: loss {off:.1e} grad norm {norm_off:.1e} param norm {param_off:.1e}"
                );
                // The first step is as near as the forward pass. Then Adam divides each gradient by its own size, small and
                // rounded ones too: what this program and itself, summing in another order, are apart, grows as fast.
                let (loss_bound, norm_bound) = if step == 0 { (1e-5, 2e-5) } else { (2e-3, 2e-2) };
                assert!(off <= loss_bound, "{name} {how} step {step}: loss is {off} off");
                assert!(norm_off <= norm_bound, "{name} {how} step {step}: gradient norm is {norm_off} off");
                assert!(param_off <= 1e-6, "{name} {how} step {step}: parameter norm is {param_off} off");
            }
            assert_eq!(state.step(), 5);
            // Five steps move a weight by up to 3.8e-3.
            let (mut worst, mut squares, mut values) = ([0.0f64; 2], [0.0f64; 2], 0);
            for (parameter, _) in case.pi.parameters().iter().filter(|(name, _)| !name.ends_with(NO_GRADIENT)) {
                let weight = weight(state.pi(), parameter);
                let average = state.average(parameter).cloned().unwrap_or(weight.clone());
                for (i, (kind, found)) in [("params", weight), ("ema", average)].into_iter().enumerate() {
                    let d = case.distance(&format!("{kind}/{parameter}"), found);
                    worst[i] = worst[i].max(d.absolute);
                    squares[i] += d.squares;
                    values += d.values;
                }
            }
            let rms = squares.map(|sum| (sum / (values / 2) as f64).sqrt());
            println!(
                "{name} {how}: weights off at most {:.1e}, rms {:.1e}; averages {:.1e}, {:.1e}",
                worst[0], rms[0], worst[1], rms[1]
            );
            assert!(worst[0] <= 8e-4 && rms[0] <= 5e-5, "{name} {how}: weights {worst:?} {rms:?}");
            assert!(worst[1] <= 2e-5 && rms[1] <= 1e-6, "{name} {how}: averages {worst:?} {rms:?}");
        }
    }
}

#[test]
fn the_optimizers_are_optaxes() {
    let text = std::fs::read_to_string(golden().join("optimizer.json")).expect("optimizer.json");
    let recorded: Value = serde_json::from_str(&text).expect("JSON");
    let list = |value: &Value| -> Vec<f32> {
        value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
    };
    let adamw = |weight_decay| Optimizer::Adamw { b1: 0.9, b2: 0.95, eps: 1e-8, weight_decay, clip_gradient_norm: 1.0 };
    let sgd = |nesterov| Optimizer::Sgd { lr: 5e-5, momentum: 0.9, nesterov };
    let device = device("cpu").expect("the CPU");
    let up = |values: Vec<f32>| Tensor::<1>::from_data(values.as_slice(), &device);
    let mut clipped = 0;
    for (name, optimizer) in
        [("adamw", adamw(1e-10)), ("adamw_decay", adamw(0.1)), ("sgd", sgd(false)), ("sgd_nesterov", sgd(true))]
    {
        let mut weights = ["a", "b"].map(|k| up(list(&recorded["start"][k])));
        let mut memories = [0, 1].map(|i| Memory::new(&optimizer, &weights[i]));
        for (step, recorded_step) in recorded[name].as_array().expect("steps").iter().enumerate() {
            let clip = clipping(&optimizer, recorded_step["norm"].as_f64().expect("a norm"));
            clipped += usize::from(clip.is_some());
            let rate = recorded["rates"][step].as_f64().expect("a rate") as f32;
            for (i, key) in ["a", "b"].into_iter().enumerate() {
                let gradient = up(list(&recorded_step["gradient"][key]));
                let gradient = clip.map_or(gradient.clone(), |(norm, most)| gradient.div_scalar(norm).mul_scalar(most));
                let next = update(&optimizer, &mut memories[i], weights[i].clone(), gradient, step as u64 + 1, rate);
                let found: Vec<f32> = next.clone().into_data().iter::<f32>().collect();
                for (found, expected) in found.iter().zip(list(&recorded_step["after"][key])) {
                    // Of a step of at most 1e-3, six digits; of a weight, its last bit.
                    let bound = 1e-9 + f64::from(expected.abs()) * 1.2e-7;
                    let off = f64::from((found - expected).abs());
                    assert!(off <= bound, "{name} step {step} {key}: {found}, recorded {expected}");
                }
                weights[i] = next;
            }
        }
    }
    assert!((1..10).contains(&clipped), "the recording is to have steps with and without clipping: {clipped}");
}

fn weight(pi: &Pi, name: &str) -> Tensor<1> {
    pi0_burn::train::state::parameter(pi, name).unwrap_or_else(|| panic!("{name}: no such parameter"))
}
