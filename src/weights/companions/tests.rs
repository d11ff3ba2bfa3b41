//! The companion files held against those that the peers write themselves (`fixtures/lerobot_reference`), and every
//! contradiction that a request can have.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::policy::norm_stats::Stats;
use crate::weights::anatomy::{Expert, Ranks, Tower};

const KINDS: [Kind; 3] = [Kind::Pi0, Kind::Pi05, Kind::Pi0Fast];

/// A model of published size.
fn published(kind: Kind) -> Anatomy {
    let expert = |variant: &str, width, mlp, adaptive| Expert {
        variant: variant.into(),
        width,
        depth: 18,
        mlp,
        heads: Some(8),
        kv_heads: Some(1),
        head_size: Some(256),
        adaptive,
        lora: None,
    };
    let mut experts = vec![expert("gemma_2b", 2048, 16384, false)];
    if kind != Kind::Pi0Fast {
        experts.push(expert("gemma_300m", 1024, 4096, kind == Kind::Pi05));
    }
    Anatomy {
        model: Some(kind.name().into()),
        parameters: 3_238_048_528,
        action_dim: (kind != Kind::Pi0Fast).then_some(32),
        vocabulary: Some(257_152),
        vision: Some(Tower {
            variant: "so400m".into(),
            width: 1152,
            depth: 27,
            mlp: 4304,
            heads: Some(16),
            patch: 14,
            tokens: 256,
        }),
        experts,
    }
}

fn stats(id: &str, width: usize) -> NormStats {
    let ramp = |from: f64| (0..width).map(|i| from + i as f64 / 7.0).collect::<Vec<_>>();
    let one = |from| Stats {
        mean: ramp(from),
        std: ramp(from + 1.0),
        q01: Some(ramp(from + 2.0)),
        q99: Some(ramp(from + 3.0)),
    };
    let keys = BTreeMap::from([("state".to_owned(), one(0.0)), ("actions".to_owned(), one(10.0))]);
    NormStats { asset_id: id.into(), text: format!("the file of {id}").into_bytes(), keys }
}

fn request<'a>(anatomy: &'a Anatomy, stats: &'a [NormStats]) -> Request<'a> {
    Request { anatomy, dtype: Dtype::F32, preset: None, action_horizon: None, stats, asset_id: None }
}

fn bytes<'a>(made: &'a Companions, name: &str) -> &'a [u8] {
    let found = made.files.iter().find(|(path, _)| path == Path::new(name));
    &found.unwrap_or_else(|| panic!("{name} is not among {:?}", names(made))).1
}

fn tree(made: &Companions, name: &str) -> Value {
    serde_json::from_slice(bytes(made, name)).expect("JSON")
}

fn names(made: &Companions) -> Vec<&str> {
    made.files.iter().filter_map(|(path, _)| path.to_str()).collect()
}

fn noted(made: &Companions, words: &str) -> bool {
    made.notes.iter().any(|note| note.contains(words))
}

fn refusal(scheme: &str, request: &Request<'_>) -> String {
    format!("{:#}", companions(scheme, request).expect_err("refused"))
}

fn reference(kind: Kind, name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lerobot_reference").join(kind.name());
    serde_json::from_slice(&std::fs::read(folder.join(name)).expect("fixture")).expect("JSON")
}

/// The statistics of the references: mean, deviation and quantiles of 32 values.
fn lerobot(kind: Kind) -> Companions {
    companions("lerobot", &request(&published(kind), &[stats("trossen", 32)])).expect("made")
}

#[test]
fn every_member_of_our_lerobot_config_is_as_lerobot_writes_it() {
    for kind in KINDS {
        let (ours, theirs) = (tree(&lerobot(kind), "config.json"), reference(kind, "config.json"));
        for (name, value) in ours.as_object().expect("object") {
            let expected = match (kind, name.as_str()) {
                (_, "push_to_hub") => json!(false),
                // openpi's pi0-FAST: its own cameras, its own horizon, quantiles.
                (Kind::Pi0Fast, "chunk_size" | "n_action_steps") => json!(32),
                (Kind::Pi0Fast, "normalization_mapping") => reference(Kind::Pi05, "config.json")[name].clone(),
                (Kind::Pi0Fast, "input_features") => fast_cameras(&theirs[name]),
                _ => theirs.get(name).cloned().unwrap_or_else(|| panic!("{name}: LeRobot has no such member")),
            };
            assert_eq!(*value, expected, "{} {name}", kind.name());
        }
    }
}

/// LeRobot's example uses the cameras of pi0 for all; openpi's pi0-FAST has others.
fn fast_cameras(features: &Value) -> Value {
    let renamed = [("left_wrist_0_rgb", "base_1_rgb"), ("right_wrist_0_rgb", "wrist_0_rgb")];
    let text = renamed.iter().fold(features.to_string(), |text, (from, to)| text.replace(from, to));
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn cameras_stand_in_the_order_of_their_tokens() {
    for (kind, cameras) in [
        (Kind::Pi05, ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]),
        (Kind::Pi0Fast, ["base_0_rgb", "base_1_rgb", "wrist_0_rgb"]),
    ] {
        let made = lerobot(kind);
        let text = std::str::from_utf8(bytes(&made, "config.json")).expect("UTF-8");
        let at = cameras.map(|camera| text.find(&format!("observation.images.{camera}")).expect("there"));
        assert!(at.is_sorted(), "{cameras:?} at {at:?}");
    }
}

#[test]
fn our_pipelines_are_lerobots_without_the_steps_that_older_releases_lack() {
    for kind in KINDS {
        let made = lerobot(kind);
        for name in ["policy_preprocessor", "policy_postprocessor"] {
            let file = format!("{name}.json");
            let mut theirs = reference(kind, &file);
            let steps = theirs["steps"].as_array_mut().expect("steps");
            steps.retain(|s| !["relative_actions_processor", "absolute_actions_processor"].contains(&step_name(s)));
            for (i, step) in steps.iter_mut().enumerate() {
                if step.get("state_file").is_some() {
                    step["state_file"] = json!(format!("{name}_step_{i}_{}.safetensors", step_name(step)));
                    assert!(names(&made).contains(&step["state_file"].as_str().expect("text")));
                }
            }
            let theirs = theirs.to_string();
            let theirs = match kind {
                Kind::Pi0Fast => {
                    fast_cameras(&serde_json::from_str(&theirs.replace("MEAN_STD", "QUANTILES")).expect("JSON"))
                }
                _ => serde_json::from_str(&theirs).expect("JSON"),
            };
            assert_eq!(tree(&made, &file), theirs, "{} {file}", kind.name());
        }
    }
}

fn step_name(step: &Value) -> &str {
    step["registry_name"].as_str().expect("a name")
}

#[test]
fn both_state_files_hold_the_statistics_as_an_independent_reader_finds_them() {
    for (kind, at) in [(Kind::Pi0, 5), (Kind::Pi05, 2), (Kind::Pi0Fast, 2)] {
        let robot = stats("droid", 8);
        let made = companions("lerobot", &request(&published(kind), std::slice::from_ref(&robot))).expect("made");
        let pre = format!("policy_preprocessor_step_{at}_normalizer_processor.safetensors");
        for name in [pre.as_str(), "policy_postprocessor_step_0_unnormalizer_processor.safetensors"] {
            let file = safetensors::SafeTensors::deserialize(bytes(&made, name)).expect("safetensors");
            assert_eq!(file.len(), 8);
            for (key, feature) in [("state", "observation.state"), ("actions", "action")] {
                for (list, values) in robot.keys[key].lists() {
                    let tensor = file.tensor(&format!("{feature}.{list}")).expect("there");
                    assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[8][..]));
                    let expected: Vec<u8> = values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
                    assert_eq!(tensor.data(), expected);
                }
            }
        }
        let config = tree(&made, "config.json");
        assert_eq!(config["input_features"]["observation.state"]["shape"], json!([8]));
        assert_eq!(config["output_features"]["action"]["shape"], json!([8]));
        assert_eq!((&config["max_state_dim"], &config["max_action_dim"]), (&json!(32), &json!(32)));
    }
}

#[test]
fn without_statistics_no_state_file_is_named_and_it_is_told() {
    let made = companions("lerobot", &request(&published(Kind::Pi05), &[])).expect("made");
    assert_eq!(names(&made), ["config.json", "policy_preprocessor.json", "policy_postprocessor.json"]);
    assert!(made.files.iter().all(|(_, bytes)| !String::from_utf8_lossy(bytes).contains("state_file")));
    assert!(noted(&made, "observation.state through unnormalised") && noted(&made, "pass action through unnormalised"));
}

#[test]
fn missing_quantiles_of_a_model_that_needs_them_are_told() {
    let mut robot = stats("droid", 8);
    robot.keys.get_mut("state").expect("there").q99 = None;
    let robots = [robot];
    let told =
        |kind| noted(&companions("lerobot", &request(&published(kind), &robots)).expect("made"), "no q01 and q99");
    assert!(told(Kind::Pi05) && !told(Kind::Pi0));
}

#[test]
fn one_of_several_robots_has_to_be_chosen_for_lerobot_and_all_are_carried() {
    let anatomy = published(Kind::Pi0);
    let robots = [stats("droid", 8), stats("tiny/robot", 14)];
    let mut asked = request(&anatomy, &robots);
    let message = refusal("lerobot", &asked);
    assert!(message.contains("--asset-id") && message.contains("droid, tiny/robot"), "{message}");
    asked.asset_id = Some("trossen");
    assert_eq!(refusal("lerobot", &asked), "--asset-id trossen: there are droid, tiny/robot");
    asked.asset_id = Some("tiny/robot");
    let made = companions("lerobot", &asked).expect("made");
    assert_eq!(tree(&made, "config.json")["output_features"]["action"]["shape"], json!([14]));
    for scheme in ["lerobot", "giga", "openpi-torch", "burn", "jax"] {
        let made = companions(scheme, &asked).expect("made");
        assert_eq!(bytes(&made, "assets/droid/norm_stats.json"), b"the file of droid", "{scheme}");
        assert_eq!(bytes(&made, "assets/tiny/robot/norm_stats.json"), b"the file of tiny/robot", "{scheme}");
    }
}

#[test]
fn statistics_never_leave_the_folder() {
    for id in ["../up", "/etc", "a/../../b"] {
        let message = refusal("jax", &request(&published(Kind::Pi0), &[stats(id, 8)]));
        assert!(message.contains("outside of assets"), "{message}");
    }
}

#[test]
fn types_that_lerobots_config_cannot_name_are_refused() {
    let anatomy = published(Kind::Pi0);
    let mut asked = request(&anatomy, &[]);
    asked.dtype = Dtype::Bf16;
    assert_eq!(tree(&companions("lerobot", &asked).expect("made"), "config.json")["dtype"], "bfloat16");
    asked.dtype = Dtype::F16;
    assert!(refusal("lerobot", &asked).contains("float16; use --precision bfloat16 or float32"));
}

#[test]
fn statistics_wider_than_the_model_are_refused() {
    let message = refusal("lerobot", &request(&published(Kind::Pi0), &[stats("giant", 33)]));
    assert_eq!(message, "norm stats of giant: state has 33 values, the model's vectors have 32");
}

#[test]
fn sizes_that_a_reader_does_not_know_are_told() {
    let mut anatomy = published(Kind::Pi0);
    anatomy.experts[1].variant = "custom".into();
    anatomy.vocabulary = Some(512);
    for scheme in ["lerobot", "giga"] {
        let made = companions(scheme, &request(&anatomy, &[])).expect("made");
        assert!(
            noted(&made, "action expert custom, not gemma_300m; a vocabulary of 512, not 257,152"),
            "{:?}",
            made.notes
        );
        assert!(!noted(&companions(scheme, &request(&published(Kind::Pi0), &[])).expect("made"), "will not load"));
    }
}

#[test]
fn the_horizon_is_the_users_then_the_presets_then_the_published_one() {
    let anatomy = published(Kind::Pi05);
    let mut asked = request(&anatomy, &[]);
    let steps = |asked: &Request<'_>| {
        let made = companions("lerobot", asked).expect("made");
        (tree(&made, "config.json")["chunk_size"].clone(), noted(&made, "no tensor tells"))
    };
    assert_eq!(steps(&asked), (json!(50), true));
    asked.preset = Some(Preset::named("pi05_droid").expect("named"));
    assert_eq!(steps(&asked), (json!(15), false));
    asked.action_horizon = Some(20);
    assert_eq!(steps(&asked), (json!(20), false));
    asked.action_horizon = Some(0);
    assert!(refusal("lerobot", &asked).contains("at least one step"));
}

#[test]
fn what_lerobot_does_otherwise_than_a_preset_is_told() {
    let made = |kind, preset| {
        let (anatomy, robots) = (published(kind), [stats("robot", 8)]);
        let preset = Some(Preset::named(preset).expect("named"));
        companions("lerobot", &Request { preset, ..request(&anatomy, &robots) }).expect("made")
    };
    assert!(noted(&made(Kind::Pi05, "pi05_libero"), "without the state in the prompt"));
    assert!(!noted(&made(Kind::Pi05, "pi05_droid"), "without the state in the prompt"));
    assert!(noted(&made(Kind::Pi0Fast, "paligemma_binning_droid"), "tokens of binning"));
    assert!(noted(&made(Kind::Pi0Fast, "pi0_fast_libero"), "decodes actions of 7 values, the norm stats have 8"));
    let prompt = |kind, preset| tree(&made(kind, preset), "config.json")["tokenizer_max_length"].clone();
    assert_eq!(prompt(Kind::Pi0, "pi0_droid_jointpos_polaris"), 100);
    assert_eq!(prompt(Kind::Pi0Fast, "pi0_fast_libero"), 200);
}

#[test]
fn gigas_config_is_as_diffusers_writes_it() {
    let made = companions("giga", &request(&published(Kind::Pi0), &[])).expect("made");
    let expected = "{\n  \"_class_name\": \"PI0Policy\",\n  \"_diffusers_version\": \"0.35.2\",\n  \"max_action_dim\": 32,\n  \
        \"max_state_dim\": 32,\n  \"n_action_steps\": 50,\n  \"num_steps\": 10,\n  \"pi05_enabled\": false,\n  \
        \"proj_width\": 1024,\n  \"use_cache\": true\n}\n";
    assert_eq!(std::str::from_utf8(bytes(&made, "config.json")), Ok(expected));
    let made = companions("giga", &request(&published(Kind::Pi05), &[])).expect("made");
    assert_eq!(tree(&made, "config.json")["pi05_enabled"], json!(true));
    let made = companions("giga", &request(&published(Kind::Pi0Fast), &[])).expect("made");
    assert!(made.files.is_empty() && noted(&made, "no pi0-FAST"));
}

#[test]
fn openpis_torch_config_has_its_five_members() {
    let anatomy = published(Kind::Pi05);
    let asked = Request { dtype: Dtype::Bf16, action_horizon: Some(15), ..request(&anatomy, &[]) };
    let made = companions("openpi-torch", &asked).expect("made");
    let expected = "{\n  \"action_dim\": 32,\n  \"action_horizon\": 15,\n  \"paligemma_variant\": \"gemma_2b\",\n  \
        \"action_expert_variant\": \"gemma_300m\",\n  \"precision\": \"bfloat16\"\n}";
    assert_eq!(std::str::from_utf8(bytes(&made, "config.json")), Ok(expected));
}

#[test]
fn our_own_config_tells_what_was_told_and_leaves_the_rest_open() {
    let anatomy = published(Kind::Pi05);
    let mut asked = request(&anatomy, &[]);
    let open = tree(&companions("burn", &asked).expect("made"), "config.json");
    assert_eq!((&open["action_horizon"], &open["prompt_length"]), (&Value::Null, &Value::Null));
    assert_eq!((&open["state"], &open["normalization"]), (&json!("prompt"), &json!("quantile")));
    let back: Anatomy = serde_json::from_value(open["anatomy"].clone()).expect("an anatomy");
    assert_eq!(back, anatomy);
    asked.preset = Some(Preset::named("pi05_libero").expect("named"));
    let told = tree(&companions("burn", &asked).expect("made"), "config.json");
    assert_eq!(
        (&told["action_horizon"], &told["prompt_length"], &told["state"]),
        (&json!(10), &json!(200), &json!("none"))
    );
    let pi0 = tree(&companions("burn", &request(&published(Kind::Pi0), &[])).expect("made"), "config.json");
    assert_eq!((&pi0["state"], &pi0["normalization"]), (&json!("token"), &json!("z_score")));
}

#[test]
fn a_part_of_a_model_has_no_configuration() {
    let anatomy = Anatomy { model: None, ..published(Kind::Pi0) };
    for scheme in ["burn", "lerobot", "giga", "openpi-torch"] {
        let made = companions(scheme, &request(&anatomy, &[stats("droid", 8)])).expect("made");
        assert_eq!(names(&made), ["assets/droid/norm_stats.json"], "{scheme}");
        assert!(noted(&made, "part of a model"));
    }
}

#[test]
fn a_scheme_that_does_not_exist_is_refused() {
    assert!(refusal("onnx", &request(&published(Kind::Pi0), &[])).starts_with("onnx: no such scheme; there are jax"));
}

#[test]
fn every_preset_is_one_model_with_the_experts_it_has() {
    let all = Preset::all().expect("parses");
    assert_eq!(all.len(), 31);
    for preset in all {
        assert_eq!(preset.action_expert_variant.is_none(), preset.model == Kind::Pi0Fast, "{}", preset.name);
        assert_eq!(preset.action_tokenizer.is_some(), preset.model == Kind::Pi0Fast, "{}", preset.name);
        let variants = [Some(&preset.paligemma_variant), preset.action_expert_variant.as_ref()];
        for variant in variants.into_iter().flatten() {
            assert!(
                ["gemma_2b", "gemma_300m", "dummy"].contains(&variant.trim_end_matches("_lora")),
                "{}",
                preset.name
            );
        }
        if preset.name.starts_with("pi0") && !preset.name.contains("debug") {
            assert_eq!(preset.name.starts_with("pi05"), preset.model == Kind::Pi05, "{}", preset.name);
            assert_eq!(preset.name.contains("fast"), preset.model == Kind::Pi0Fast, "{}", preset.name);
        }
    }
}

#[test]
fn a_preset_that_does_not_exist_is_answered_with_its_neighbours() {
    let message = Preset::named("pi0_driod").expect_err("refused").to_string();
    assert!(message.starts_with("pi0_driod: ") && message.contains("the nearest are pi0_droid, "), "{message}");
}

#[test]
fn what_a_preset_and_the_tensors_say_against_each_other_is_told() {
    let check = |name: &str, anatomy: &Anatomy| Preset::named(name).expect("named").check(anatomy);
    let pi0 = published(Kind::Pi0);
    assert_eq!(check("pi0_droid", &pi0), Ok(()));
    assert_eq!(check("pi0_droid", &published(Kind::Pi05)), Err("pi0_droid is a pi0; these tensors are a pi05".into()));
    assert_eq!(check("pi0_fast_droid", &published(Kind::Pi0Fast)), Ok(()));
    let narrow = "paligemma_diffusion_droid has 8 values in an action; these tensors have 32";
    assert_eq!(check("paligemma_diffusion_droid", &pi0), Err(narrow.into()));
    let dummy = "the language model of debug is dummy; of these tensors it is gemma_2b; \
                 the action expert of debug is dummy; of these tensors it is gemma_300m";
    assert_eq!(check("debug", &pi0), Err(dummy.into()));

    let mut paired = pi0.clone();
    paired.experts[1].variant = "gemma_300m_lora".into();
    paired.experts[1].lora = Some(Ranks { attention: Some(32), feed_forward: Some(32) });
    let has = "the action expert of pi0_droid has no LoRA; of these tensors it has";
    assert_eq!(check("pi0_droid", &paired), Err(has.into()));
    assert_eq!(check("pi0_libero_low_mem_finetune", &paired), Ok(()));
    assert_eq!(check("pi0_libero_low_mem_finetune", &pi0), Ok(()), "its pairs may have been merged");
    assert_eq!(check("pi05_droid", &Anatomy { model: None, experts: vec![], ..pi0 }), Ok(()), "a part tells nothing");
}
