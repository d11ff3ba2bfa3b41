//! What openpi's own transforms made of a record, our steps make of it: golden/transforms, case by case, to the bit.

#![cfg(feature = "robot")]

#[path = "policy/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use golden::{Group, alike, folder, same};
use pi0_burn::config::{robot, train};
use pi0_burn::policy::array::{Array, Values};
use pi0_burn::policy::chain::{Origin, Statistics, Widths, chain};
use pi0_burn::policy::delta::{DeltaActions, Ways, make_bool_mask};
use pi0_burn::policy::image::parse;
use pi0_burn::policy::image::{ResizeImages, resize_with_pad, resize_with_pad_jax, resize_with_pad_jax_u8};
use pi0_burn::policy::norm_stats::NormStats;
use pi0_burn::policy::normalize::Normalize;
use pi0_burn::policy::pad::{PadStatesAndActions, SubsampleActions};
use pi0_burn::policy::record::{Fault, Record};
use pi0_burn::policy::repack::Repack;
use pi0_burn::policy::step::{Chain, Step};
use pi0_burn::policy::task::{InjectDefaultPrompt, PromptFromTask};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

/// By which numpy's arcsin (vectorised, where the processor has AVX-512) and the C library's differ, after the steps that
/// follow it; all other arithmetic is the same to the bit.
const ARCSINE: f64 = 1e-14;

fn dims(list: &Json) -> Vec<i64> {
    list.as_array().expect("a list").iter().filter_map(Json::as_i64).collect()
}

/// The step of a case of `basic`, and whether it is undone.
fn basic(name: &str, params: &Json) -> Option<(Box<dyn Step>, bool)> {
    let mask = || -> Vec<bool> { params["mask"].as_array().into_iter().flatten().filter_map(Json::as_bool).collect() };
    let number = |key: &str| params[key].as_u64().expect("a number") as usize;
    let delta = || Box::new(DeltaActions { mask: mask(), ways: Ways::Both });
    Some(match name.split('_').next().expect("a name") {
        "DeltaActions" => (delta(), false),
        "AbsoluteActions" => (delta(), true),
        "PadStatesAndActions" => {
            (Box::new(PadStatesAndActions { model_action_dim: number("model_action_dim") }), false)
        }
        "SubsampleActions" => {
            (Box::new(SubsampleActions { stride: NonZeroUsize::new(number("stride")).expect("not 0") }), false)
        }
        "RepackTransform" => {
            let mut keys = vec![];
            for (key, old) in params["structure"].as_object().expect("keys") {
                match old {
                    Json::Object(inner) => {
                        keys.extend(
                            inner.iter().map(|(k, old)| (format!("{key}/{k}"), old.as_str().unwrap().to_owned())),
                        );
                    }
                    old => keys.push((key.clone(), old.as_str().expect("a key").to_owned())),
                }
            }
            (Box::new(Repack { keys }), false)
        }
        "InjectDefaultPrompt" => {
            (Box::new(InjectDefaultPrompt { prompt: params["prompt"].as_str().map(str::to_owned) }), false)
        }
        "PromptFromLeRobotTask" => (Box::new(PromptFromTask { tasks: tasks(&params["tasks"]) }), false),
        _ => return None,
    })
}

fn tasks(object: &Json) -> BTreeMap<i64, String> {
    let tasks = object.as_object().expect("tasks").iter();
    tasks.map(|(index, task)| (index.parse().expect("a number"), task.as_str().expect("text").to_owned())).collect()
}

#[test]
fn every_basic_step_is_openpis() {
    let group = Group::open(&folder(), "basic");
    let mut replayed = 0;
    for (name, case) in group.cases() {
        if name.starts_with("make_bool_mask") {
            let expected = group.record(case, "out").array("mask").unwrap().clone();
            assert_eq!(Values::Bool(make_bool_mask(&dims(&case["params"]["dims"]))), expected.values, "{name}");
            replayed += 1;
        } else if let Some((step, undo)) = basic(name, &case["params"]) {
            let mut record = group.record(case, "in");
            let done = if undo { step.undo(&mut record) } else { step.apply(&mut record) };
            done.unwrap_or_else(|e| panic!("{name}: {e}"));
            same(name, &record, &group.record(case, "out"));
            replayed += 1;
        }
    }
    // Renaming by regular expressions is used by none of openpi's policies, and is not here.
    assert_eq!(replayed, group.cases().len() - 1);
}

/// The statistics that a case of `normalize` came with.
fn statistics(group: &Group, case: &Json) -> NormStats {
    let mut keys: BTreeMap<String, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for (key, entry) in case["in"].as_object().expect("in") {
        if let Some((key, list)) = key.strip_prefix("stats/").and_then(|rest| rest.split_once('/')) {
            keys.entry(key.to_owned()).or_default().insert(list.to_owned(), group.array(entry).values.to_f64());
        }
    }
    NormStats::parse("robot", json!({"norm_stats": keys}).to_string().into()).expect("statistics")
}

#[test]
fn normalising_is_openpis_in_widths_and_bits() {
    let group = Group::open(&folder(), "normalize");
    let mut refused = 0;
    for (name, case) in group.cases() {
        let quantiles = case["params"]["use_quantiles"].as_bool().expect("a flag");
        let step = Normalize::new(&statistics(&group, case), quantiles).expect("statistics");
        let mut record = group.record(case, "in");
        let undo = name.starts_with("Unnormalize");
        let done = if undo { step.undo(&mut record) } else { step.apply(&mut record) };
        if case["params"]["error"].is_string() {
            let fault = done.expect_err(name);
            assert!(matches!(fault, Fault::Shape { .. }), "{name}: {fault}");
            refused += 1;
        } else {
            done.unwrap_or_else(|e| panic!("{name}: {e}"));
            same(name, &record, &group.record(case, "out"));
        }
    }
    assert_eq!((group.cases().len(), refused), (36, 12));
}

#[test]
fn a_key_with_statistics_may_be_missing_on_the_way_in_and_not_on_the_way_out() {
    let stats = json!({"actions": {"mean": [0.0], "std": [1.0]}, "state": {"mean": [0.0], "std": [1.0]}}).to_string();
    let stats = NormStats::parse("robot", stats.into()).expect("statistics");
    let step = Normalize::new(&stats, false).expect("z-score");
    let mut record = Record::default();
    record.put_array("state", Array::f32([1], vec![0.0]));
    step.apply(&mut record).expect("no actions when sampling");
    assert!(step.undo(&mut record).unwrap_err().to_string().starts_with("actions: it is missing"));
    let fault = Normalize::new(&stats, true).unwrap_err();
    assert!(fault.to_string().starts_with("actions: the statistics have no q01"), "{fault}");
}

#[test]
fn robots_are_openpis_policies() {
    let group = Group::open(&folder(), "policies");
    let mut replayed = 0;
    for (name, case) in group.cases() {
        let robot = robot::named(&name[..name.find(['I', 'O', '_']).expect("a name")].to_lowercase());
        let robot = robot.expect("a robot");
        let mut record = group.record(case, "in");
        let adapt = case["params"]["adapt_to_pi"].as_bool().unwrap_or(false);
        let vectors = robot.vectors(adapt).expect("vectors");
        if name.contains("Outputs") {
            vectors.undo(&mut record).unwrap_or_else(|e| panic!("{name}: {e}"));
        } else if name.contains("Inputs") {
            let layout =
                if case["params"]["model_type"] == "pi0_fast" && robot.name != "aloha" { "fast" } else { "pi0" };
            // DROID's own prompts are bytes; openpi reads them as text.
            if let Some(bare) = record.text("prompt").ok().and_then(|p| p.strip_prefix("b'")?.strip_suffix('\'')) {
                record.put_text("prompt", bare.to_owned());
            }
            vectors.apply(&mut record).unwrap_or_else(|e| panic!("{name}: {e}"));
            robot.cameras(layout).expect("a layout").apply(&mut record).unwrap_or_else(|e| panic!("{name}: {e}"));
        } else {
            let adapt = robot.adapt_to_pi.expect("a convention");
            let x = record.array("x").map(|x| x.values.to_f64()).unwrap_or_default().into_iter();
            let y = match name {
                "aloha_gripper_to_angular" => x.map(|x| adapt.state.ops.iter().fold(x, |x, op| op.apply(x))).collect(),
                "aloha_gripper_from_angular_inv" => {
                    x.map(|x| adapt.actions.ops.iter().fold(x, |x, op| op.apply(x))).collect()
                }
                "aloha_gripper_from_angular" => {
                    x.map(|x| adapt.actions.ops.iter().rev().fold(x, |x, op| op.undo(x))).collect()
                }
                _ => {
                    let mask = Values::I64(adapt.signs.iter().map(|sign| i64::from(*sign)).collect());
                    assert_eq!(group.record(case, "out").array("mask").unwrap().values, mask);
                    replayed += 1;
                    continue;
                }
            };
            record = Record::default();
            let y: Vec<f64> = y;
            record.put_array("y", Array::f64([y.len()], y));
        }
        let tolerance = if adapt || name == "aloha_gripper_to_angular" { ARCSINE } else { 0.0 };
        alike(name, &record, &group.record(case, "out"), tolerance);
        replayed += 1;
    }
    assert_eq!(replayed, 33);
}

fn size(array: &Array) -> (usize, usize) {
    (array.shape[0], array.shape[1])
}

#[test]
fn pictures_are_resized_as_pillow_and_as_jax() {
    let group = Group::open(&folder(), "resize");
    for (name, case) in group.cases() {
        let (input, expected) = (group.record(case, "in"), group.record(case, "out"));
        let number = |key: &str| case["params"][key].as_u64().unwrap_or_default() as usize;
        let to = (number("height"), number("width"));
        let resize = ResizeImages { height: to.0, width: to.1 };
        if name == "ResizeImages" {
            let mut record = input;
            resize.apply(&mut record).expect(name);
            same(name, &record, &expected);
            continue;
        }
        let (from, expected) = (input.array("image").unwrap(), expected.array("image").unwrap());
        match (&from.values, &expected.values) {
            (Values::F32(_), Values::U8(_)) => assert_eq!(&parse(name, from).unwrap(), expected),
            (Values::U8(_), Values::U8(_)) if name == "pil_u8_batched" => {
                let mut record = Record::default();
                record.put_array("image/a", from.clone());
                resize.apply(&mut record).expect(name);
                assert_eq!(record.array("image/a").unwrap(), expected, "{name}");
            }
            (Values::U8(x), Values::U8(y)) if name.starts_with("pil") => {
                assert_eq!(&resize_with_pad(x, size(from), to), y, "{name}: 0 differences from Pillow");
            }
            (Values::U8(x), Values::U8(y)) => {
                let found = resize_with_pad_jax_u8(x, size(from), to);
                let off = found.iter().zip(y).filter(|(a, b)| a != b).count();
                let most = found.iter().zip(y).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(most <= Some(1) && off * 500 <= y.len(), "{name}: {off} of {} differ, by {most:?}", y.len());
            }
            (Values::F32(x), Values::F32(y)) => {
                let found = resize_with_pad_jax(x, size(from), to);
                let most = found.iter().zip(y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(most <= 1e-5 && found.len() == y.len(), "{name}: {most:e}");
            }
            _ => panic!("{name}: what is it?"),
        }
    }
    assert_eq!(group.cases().len(), 15);
}

/// The record after a chain, with pictures of the model's size as their sha256.
fn hashed(record: &Record) -> (Record, BTreeMap<String, String>) {
    let (mut rest, mut pictures) = (record.clone(), BTreeMap::new());
    for key in record.values.keys().filter(|key| key.starts_with("image/")) {
        let Ok(Array { values: Values::U8(bytes), .. }) = record.array(key) else { panic!("{key}: bytes") };
        pictures.insert(key.clone(), Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect());
        rest.values.remove(key);
    }
    (rest, pictures)
}

fn preset_chain(preset: &str, dataset: Option<BTreeMap<i64, String>>, statistics: &Statistics) -> Chain {
    let train = train::named(preset).expect("a preset");
    let origin = dataset.map_or(Origin::Robot, |tasks| Origin::Dataset { tasks });
    let widths = Widths { image: (224, 224), action_dim: train.padded_to() };
    chain(&train.data.expect("a robot"), &origin, statistics, widths, None).expect("a chain")
}

#[test]
fn whole_chains_are_openpis_from_end_to_end() {
    // More seeds than are worth keeping: fixtures/recipes/record_chains.py.
    let folder = std::env::var_os("PI0_BURN_CHAINS").map_or_else(folder, Into::into);
    let group = Group::open(&folder, "chains");
    let all = tasks(&group.document["tasks"]);
    for (name, case) in group.cases() {
        let stats = NormStats::parse("robot", case["norm_stats"].to_string().into()).expect("statistics");
        let dataset = (case["origin"] == "dataset").then(|| all.clone());
        let chain = preset_chain(case["preset"].as_str().expect("a name"), dataset, &Statistics::Given(stats));
        let record = chain.apply(group.record(case, "in")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (rest, pictures) = hashed(&record);
        let mut expected = case.clone();
        let mid = expected["mid"].as_object_mut().expect("mid");
        for (key, sha) in &pictures {
            assert_eq!(mid.remove(key).expect("a picture")["sha256"], json!(sha), "{name}: {key}");
        }
        let tolerance = if name.contains("aloha") { ARCSINE } else { 0.0 };
        alike(name, &rest, &group.record(&expected, "mid"), tolerance);
        let out = chain.undo(group.record(case, "model")).unwrap_or_else(|e| panic!("{name}: {e}"));
        same(name, &out, &group.record(case, "out"));
    }
    assert!(group.cases().len() >= 16);
}

/// Statistics of mean 1 and deviation 2, between 0 and 4.
fn plain(state: usize, actions: usize) -> NormStats {
    let of = |n: usize| json!({"mean": vec![1.0; n], "std": vec![2.0; n], "q01": vec![0.0; n], "q99": vec![4.0; n]});
    let text = json!({"norm_stats": {"state": of(state), "actions": of(actions)}});
    NormStats::parse("robot", text.to_string().into()).expect("statistics")
}

#[test]
fn every_preset_builds_a_chain_in_openpis_order() {
    let order = [
        "prompt-from-task",
        "repack",
        "robot-vectors",
        "robot-cameras",
        "delta-actions",
        "normalize",
        "inject-default-prompt",
        "resize-images",
        "pad-states-and-actions",
    ];
    let mut built = 0;
    for name in train::names() {
        let Some(data) = train::named(name).expect("a preset").data else { continue };
        let stats = Statistics::Given(plain(data.robot.state_width(), data.robot.actions.width));
        for dataset in [None, Some(BTreeMap::from([(0, "x".to_owned())]))] {
            let names: Vec<&str> = preset_chain(name, dataset.clone(), &stats).steps.iter().map(|s| s.name()).collect();
            let places: Vec<usize> = names.iter().map(|n| order.iter().position(|o| o == n).expect("known")).collect();
            assert!(places.is_sorted() && places.windows(2).all(|w| w[0] != w[1]), "{name}: {names:?}");
            assert_eq!(names.contains(&"repack"), dataset.is_some() && data.repack.is_some(), "{name}");
            built += 1;
        }
    }
    assert_eq!(built, 2 * 28);
}

#[test]
fn what_goes_in_comes_home() {
    for name in train::names() {
        let train = train::named(name).expect("a preset");
        let Some(data) = train.data else { continue };
        // Where the data are relative already, what comes home is absolute, and that is no way back.
        if data.delta.as_ref().is_some_and(|delta| delta.ways == Ways::Out) {
            continue;
        }
        let (state, actions) = (data.robot.state_width(), data.robot.actions.width);
        let chain = preset_chain(name, None, &Statistics::Given(plain(state, actions)));
        let mut record = Record::default();
        for part in &data.robot.state {
            record.put_array(&part.key, Array::f64([part.width], vec![0.5; part.width]));
        }
        for key in chain.steps[1].reads() {
            record.put_array(key, Array::u8([3, 4, 6], vec![7; 72]));
        }
        let values: Vec<f64> = (0..5 * actions).map(|i| (i as f64 * 0.7).sin()).collect();
        record.put_array("actions", Array::f64([5, actions], values.clone()));
        let there = chain.apply(record).unwrap_or_else(|e| panic!("{name}: {e}"));
        let width = train.model.action_dim as usize;
        assert_eq!(there.array("actions").unwrap().shape, [5, width.max(actions)], "{name}");
        let mut model = Record::default();
        for key in ["state", "actions"] {
            model.put_array(key, there.array(key).unwrap().clone());
        }
        let home = chain.undo(model).unwrap_or_else(|e| panic!("{name}: {e}"));
        let home = home.array("actions").unwrap();
        assert_eq!(home.shape, [5, actions], "{name}");
        for (a, b) in home.values.to_f64().iter().zip(&values) {
            assert!((a - b).abs() < 1e-9, "{name}: {a} {b}");
        }
    }
}

#[test]
fn absent_statistics_say_where_they_were_looked_for() {
    let data = train::named("pi0_aloha").expect("a preset").data.expect("a robot");
    let widths = Widths { image: (224, 224), action_dim: Some(32) };
    let missing = Statistics::Missing { asset_id: "trossen".into(), looked: vec!["a/trossen".into(), "b".into()] };
    let error = chain(&data, &Origin::Robot, &missing, widths, None).unwrap_err().to_string();
    assert_eq!(error, "norm stats of trossen: there are none; looked in a/trossen, b");
    let skipped = chain(&data, &Origin::Robot, &Statistics::Skipped, widths, None).expect("a chain");
    assert!(skipped.steps.iter().all(|step| step.name() != "normalize"));
}

#[test]
fn a_fault_names_the_step_the_key_and_the_nearest() {
    let chain = preset_chain("pi0_aloha", None, &Statistics::Given(plain(14, 14)));
    let mut record = Record::default();
    record.put_array("state", Array::f32([14], vec![0.5; 14]));
    record.put_array("images/cam_hihg", Array::u8([3, 4, 6], vec![0; 72]));
    let error = chain.apply(record.clone()).unwrap_err().to_string();
    assert_eq!(error, "step 2 (robot-cameras): images/cam_hihg: nothing knows it; the nearest is images/cam_high");
    record.put_array("state", Array::f32([13], vec![0.5; 13]));
    let error = chain.apply(record).unwrap_err().to_string();
    assert_eq!(error, "step 1 (robot-vectors): state: expected [.., 14], what aloha has, found float32[13]");
}

#[test]
fn a_robot_of_ones_own_needs_a_file_and_no_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write(
        "pincer.toml",
        r#"
        name = "pincer"
        state = [{ key = "pose", width = 3 }]
        actions = { key = "command", width = 2 }
        [layouts]
        pi0 = [{ slot = "base_0_rgb", camera = "eye" }, { slot = "left_wrist_0_rgb" }, { slot = "right_wrist_0_rgb" }]
        "#,
    );
    let preset = include_str!("../configs/train/pi0_libero.toml");
    let (head, rest) = preset.split_once("[data]").expect("a preset");
    let training = rest.split_once("[train]").expect("a preset").1;
    let data = r#"
        robot = "pincer.toml"
        layout = "pi0"
        use_quantile_norm = false
        prompt_from_task = false
        action_sequence_keys = ["command"]
    "#;
    write("mine.toml", &format!("{head}[data]{data}[train]{training}"));
    let train = train::file(&folder.path().join("mine.toml")).expect("a preset");
    assert_eq!(train.name, "mine");
    let widths = Widths { image: (224, 224), action_dim: train.padded_to() };
    let stats = Statistics::Given(plain(3, 2));
    let chain = chain(&train.data.expect("a robot"), &Origin::Robot, &stats, widths, None).expect("a chain");
    let mut record = Record::default();
    record.put_array("pose", Array::f32([3], vec![3.0; 3]));
    record.put_array("eye", Array::u8([4, 6, 3], vec![0; 72]));
    let there = chain.apply(record).expect("seen");
    assert_eq!(there.array("state").unwrap().shape, [32]);
    assert!((there.array("state").unwrap().values.to_f64()[0] - 2.0 / 2.000001).abs() < 1e-12);
    let mut model = Record::default();
    model.put_array("state", there.array("state").unwrap().clone());
    model.put_array("actions", Array::f32([50, 32], vec![0.0; 1600]));
    let out = chain.undo(model).expect("home");
    assert_eq!(out.array("command").unwrap().shape, [50, 2]);
}
