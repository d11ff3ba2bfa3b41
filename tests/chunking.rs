//! Chunks that go on from the last one: what a plain JAX implementation makes of openpi's own networks, with the true
//! product with the Jacobian. Recorded by golden/record_rtc.py.
#![cfg(feature = "model")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use pi0_burn::device::{Precision, device};
use pi0_burn::model::flow::Context;
use pi0_burn::model::observation::Observation;
use pi0_burn::model::{Padding, Pi, Taps};
use pi0_burn::policy::chunking::{Schedule, weights};
use pi0_burn::sample::chunking::Continue;
use pi0_burn::sample::flow::Steps;
use pi0_burn::verify::record::{observation, upload};
use pi0_burn::verify::set::Set;
use pi0_burn::weights::arrays::{Array, read_arrays};
use pi0_burn::weights::load::{Load, load};
use pi0_burn::weights::open::{Choice, Opened};
use serde_json::Value;

/// As a share of the largest value.
const RELATIVE: f32 = 1e-5;
/// Of how far the reference in f32 is from itself in f64: two roads of f32 stray apart from each other, too.
const FLOORS: f32 = 4.0;
/// The same of ten steps, each of which magnifies what the ones before it strayed; measured: 4.3 at most.
const FLOORS_OF_CHUNKS: f32 = 8.0;

fn golden() -> PathBuf {
    std::env::var("PI0_TEST_GOLDEN").map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"), PathBuf::from)
}

/// A tiny network, its observation, and what was recorded of it.
struct Model {
    name: &'static str,
    pi: Pi,
    observation: Observation,
    recorded: BTreeMap<String, Array>,
    cases: BTreeMap<String, Value>,
}

/// One row of one case.
struct Row<'a> {
    model: &'a Model,
    case: &'a str,
    row: usize,
    context: Context,
    observation: Observation,
    steps: Steps,
    from: Option<Continue>,
}

fn schedule(name: &str) -> Schedule {
    match name {
        "exp" => Schedule::Exp,
        "linear" => Schedule::Linear,
        "ones" => Schedule::Ones,
        "zeros" => Schedule::Zeros,
        other => panic!("{other}: no schedule"),
    }
}

fn count(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a count")).expect("small")
}

impl Model {
    fn open(name: &'static str) -> Self {
        let set = Set::open(&golden().join(format!("{name}_f32"))).unwrap_or_else(|e| panic!("{e:#}"));
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
        let observation = observation(&pi, &set, "in").unwrap_or_else(|e| panic!("{e:#}"));
        let recorded = read_arrays(&golden().join("rtc").join(format!("{name}.safetensors"))).expect("recorded");
        let text = std::fs::read_to_string(golden().join("rtc/cases.json")).expect("cases.json");
        let cases: Value = serde_json::from_str(&text).expect("JSON");
        let cases = cases["cases"].as_object().expect("cases").clone().into_iter().collect();
        Model { name, pi, observation, recorded, cases }
    }

    fn rows<'a>(&'a self, case: &'a str) -> impl Iterator<Item = Row<'a>> {
        let facts = &self.cases[case];
        let of_set = facts["rows"].as_array().expect("rows");
        of_set.iter().enumerate().map(move |(row, of_set)| {
            let observation = self.observation.row(count(of_set));
            let prefix = self.pi.embed_prefix(&observation, Padding::Keep, &mut Taps::off());
            let context = self.pi.read_prefix(prefix, &mut Taps::off());
            let steps = Steps::new(&self.pi, count(&facts["num_steps"]));
            let mut row = Row { model: self, case, row, context, observation, steps, from: None };
            let (delay, left) = (count(&facts["delay"][row.row]), count(&facts["remaining"][row.row]));
            row.from = match facts["method"].as_str().expect("a method") {
                "guided" => Some(Continue::Guided {
                    previous: row.upload("previous", None),
                    weights: weights(schedule(facts["schedule"].as_str().expect("a name")), delay, left, 16),
                    max_guidance_weight: facts["max_guidance_weight"].as_f64().expect("a number") as f32,
                }),
                "frozen" => Some(Continue::Frozen { previous: row.upload("previous", None), delay }),
                _ => None,
            };
            row
        })
    }
}

impl Row<'_> {
    /// This row of a recorded array `[B, H, A]`, or of one step of `[steps, B, H, A]`.
    fn values(&self, name: &str, step: Option<usize>) -> Vec<f32> {
        let array = &self.model.recorded[&format!("{}/{name}", self.case)];
        let batch = array.shape[usize::from(step.is_some())];
        let size: usize = array.shape[array.shape.len() - 2..].iter().product();
        let first = (step.unwrap_or(0) * batch + self.row) * size;
        array.values[first..first + size].to_vec()
    }

    fn upload(&self, name: &str, step: Option<usize>) -> Tensor<3> {
        let values = self.values(name, step);
        let shape = vec![1, 16, values.len() / 16];
        upload::<3>(name, &Array::new(shape, values), &self.model.pi.device()).expect("three axes")
    }

    fn actions(&self) -> Tensor<3> {
        let (pi, state, noise) = (&self.model.pi, &self.observation.state, self.upload("noise", None));
        let off = &mut Taps::off();
        match &self.from {
            None => self.steps.denoise(pi, &self.context, state, noise, off),
            Some(from) => self.steps.denoise_on(pi, &self.context, state, noise, from, off),
        }
    }

    /// How far the reference strays from itself.
    fn floor(&self, of: &str) -> f32 {
        self.model.cases[self.case]["f32_floor"][self.model.name][of].as_f64().expect("a floor") as f32
    }

    fn whoami(&self) -> String {
        format!("{} {} row {}", self.model.name, self.case, self.row)
    }
}

/// Near enough, where two roads may stray apart by `stray`? Gives the largest difference.
fn near(what: &str, found: Tensor<3>, expected: &[f32], stray: f32) -> f32 {
    let found = found.into_data().try_to_vec::<f32>().expect("f32");
    assert_eq!(found.len(), expected.len(), "{what}");
    let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let allowed = (RELATIVE * most).max(stray);
    println!("{what}: {apart:.1e} of {most:.1e}, {allowed:.1e} allowed");
    assert!(apart <= allowed, "{what}: {apart:.2e} apart, {allowed:.2e} allowed, largest {most:.2e}");
    apart
}

#[test]
fn every_step_is_the_references_from_the_same_noisy_actions() {
    for name in ["pi0", "pi05"] {
        let model = Model::open(name);
        for case in model.cases.keys().filter(|case| *case != "plain") {
            for row in model.rows(case) {
                let from = row.from.as_ref().expect("it goes on from a chunk");
                for step in 0..row.steps.times().len() {
                    let x_t = row.upload("x_t", Some(step));
                    let (pi, state) = (&model.pi, &row.observation.state);
                    let v = row.steps.velocity_on(step, pi, &row.context, state, x_t, from, &mut Taps::off());
                    let what = format!("{} step {step}", row.whoami());
                    near(&what, v, &row.values("v_t", Some(step)), FLOORS * row.floor("v_t"));
                }
            }
        }
    }
}

#[test]
fn the_correction_is_the_true_product_with_the_jacobian() {
    for name in ["pi0", "pi05"] {
        let model = Model::open(name);
        for case in model.cases.keys().filter(|case| case.starts_with("guided")) {
            for row in model.rows(case) {
                let from = row.from.as_ref().expect("it goes on from a chunk");
                let Continue::Guided { max_guidance_weight: most, .. } = *from else { panic!("{}", row.whoami()) };
                if most == 0.0 {
                    continue;
                }
                let mut heard: BTreeMap<String, Vec<f32>> = BTreeMap::new();
                let mut hear = |name: &str, data: burn::tensor::TensorData| {
                    heard.insert(name.to_owned(), data.iter::<f32>().collect());
                };
                let (pi, state, x_t) = (&model.pi, &row.observation.state, row.upload("x_t", Some(3)));
                row.steps.velocity_on(3, pi, &row.context, state, x_t, from, &mut Taps::on(&mut hear));
                for tap in ["step/error", "step/correction"] {
                    let found = &heard[tap];
                    let found = Array::new(vec![1, 16, found.len() / 16], found.clone());
                    let found = upload::<3>(tap, &found, &model.pi.device()).expect("three axes");
                    // A step's floor is that of its correction, times what the correction is multiplied by.
                    let stray = FLOORS * row.floor("v_t") / most;
                    near(&format!("{} {tap}", row.whoami()), found, &row.values(tap, None), stray);
                }
            }
        }
    }
}

#[test]
fn whole_chunks_are_the_references_as_nearly_as_it_is_its_own_in_f64() {
    for name in ["pi0", "pi05"] {
        let model = Model::open(name);
        for case in model.cases.keys() {
            for row in model.rows(case) {
                let apart = near(
                    &row.whoami(),
                    row.actions(),
                    &row.values("actions", None),
                    FLOORS_OF_CHUNKS * row.floor("actions"),
                );
                // Far from what comes out without the Jacobian.
                if let Some(without) = model.cases[case]["without_jacobian"][name].as_f64().filter(|x| *x > 0.0) {
                    assert!(f64::from(apart) < without / 100.0, "{}: {apart:.2e}, {without:.2e}", row.whoami());
                }
            }
        }
    }
}

#[test]
fn with_nothing_to_go_on_from_it_is_plain_sampling_and_what_is_frozen_stays() {
    for name in ["pi0", "pi05"] {
        let model = Model::open(name);
        let bits = |x: Tensor<3>| x.into_data().try_to_vec::<f32>().expect("f32");
        for row in model.rows("frozen_delay_0") {
            let noise = row.upload("noise", None);
            let state = &row.observation.state;
            let plain = row.steps.denoise(&model.pi, &row.context, state, noise, &mut Taps::off());
            assert_eq!(bits(row.actions()), bits(plain), "{}", row.whoami());
        }
        for row in model.rows("frozen") {
            let (found, previous) = (bits(row.actions()), row.values("previous", None));
            let kept = 3 * previous.len() / 16;
            assert_eq!(found[..kept], previous[..kept], "{}", row.whoami());
            assert_ne!(found[kept..], previous[kept..], "{}", row.whoami());
        }
    }
}

#[test]
fn weights_are_those_of_the_authors() {
    let text = std::fs::read_to_string(golden().join("rtc/rules.json")).expect("rules.json");
    let rules: Value = serde_json::from_str(&text).expect("JSON");
    let all = rules["prefix_weights"].as_array().expect("weights");
    assert!(all.len() >= 4);
    for rule in all {
        let name = rule["schedule"].as_str().expect("a name");
        let found = weights(schedule(name), count(&rule["start"]), count(&rule["end"]), count(&rule["total"]));
        let expected = rule["weights"].as_array().expect("numbers");
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected.as_f64().expect("a number")).abs() < 1e-6, "{rule}");
        }
    }
}
