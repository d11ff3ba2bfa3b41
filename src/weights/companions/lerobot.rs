//! LeRobot's directory apart from `model.safetensors`: the policy's configuration, its two processor pipelines and
//! their state.
//!
//! Source: LeRobot 0.6.1, policies/{pi0,pi05,pi0_fast} and processor. An unknown member of `config.json` is an error
//! there and a missing one takes its default, so only members that every release since 0.4.0 knows are written; the
//! steps for relative actions, which older releases lack, are left out (a pipeline is replayed as it is written).
//! Invariant: members and steps stand in LeRobot's own order; without statistics nothing claims to normalise.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use orbax::Dtype;
use remap::Tensor;

use super::json::Json;
use super::{Companions, Kind, Request};
use crate::policy::norm_stats::NormStats;

/// LeRobot's name for a state vector.
const STATE: &str = "observation.state";
/// Its name for an action vector.
const ACTION: &str = "action";
/// openpi's keys and LeRobot's names.
const FEATURES: [(&str, &str); 2] = [("state", STATE), ("actions", ACTION)];
/// Width to which LeRobot pads where no projection decides it.
const DEFAULT_DIM: u64 = 32;
/// Side of the square image, in pixels.
const IMAGE: u64 = 224;
const TOKENIZER: &str = "google/paligemma-3b-pt-224";
const ACTION_TOKENIZER: &str = "lerobot/fast-action-tokenizer";
const MAX_ACTION_TOKENS: u64 = 256;

/// What all the files are made of.
struct Policy<'a> {
    kind: Kind,
    dtype: &'static str,
    /// Steps of an action chunk.
    horizon: u64,
    /// Widths of the robot's vectors.
    state: u64,
    action: u64,
    /// Widths they are padded to.
    max_state: u64,
    max_action: u64,
    /// Tokens of a prompt.
    prompt: u64,
    stats: Option<&'a NormStats>,
}

pub(super) fn add(made: &mut Companions, request: &Request<'_>, kind: Kind) -> Result<()> {
    let policy = Policy::new(made, request, kind)?;
    let state = policy.state_file();
    let (pre, post) = (policy.pre_state_name(), "policy_postprocessor_step_0_unnormalizer_processor.safetensors");
    let stated = |name: &str| state.as_ref().map(|_| name.to_owned());
    let mut file = |name: &str, bytes: Vec<u8>| made.files.push((name.into(), bytes));
    file("config.json", policy.config().to_text(4));
    file("policy_preprocessor.json", policy.preprocessor(stated(&pre)).to_text(2));
    file("policy_postprocessor.json", policy.postprocessor(stated(post)).to_text(2));
    if let Some(bytes) = &state {
        file(&pre, bytes.clone());
        file(post, bytes.clone());
    }
    notes(made, request, &policy);
    Ok(())
}

impl<'a> Policy<'a> {
    fn new(made: &mut Companions, request: &Request<'a>, kind: Kind) -> Result<Self> {
        let dtype = match request.dtype {
            Dtype::F32 => "float32",
            Dtype::Bf16 => "bfloat16",
            other => bail!(
                "lerobot: its config.json knows float32 and bfloat16, these weights would be {}; use --precision bfloat16 or float32",
                other.name()
            ),
        };
        let stats = request.chosen()?;
        let width = |key: &str| stats.and_then(|s| s.keys.get(key)).map(|s| s.width() as u64);
        let inside = request.anatomy.action_dim;
        let told = request.action_dim().unwrap_or(DEFAULT_DIM);
        let (state, action) = (width("state").unwrap_or(told), width("actions").unwrap_or(told));
        if let Some(dim) = inside {
            // pi0.5 has no projection of the state: there it may be as long as it likes.
            let states = (kind == Kind::Pi0).then_some(("state", state));
            for (key, found) in states.into_iter().chain([("actions", action)]) {
                let id = stats.map_or("", |s| &s.asset_id);
                ensure!(found <= dim, "norm stats of {id}: {key} has {found} values, the model's vectors have {dim}");
            }
        }
        Ok(Policy {
            kind,
            dtype,
            horizon: request.horizon(kind, made),
            state,
            action,
            max_state: inside.unwrap_or(DEFAULT_DIM).max(state),
            max_action: inside.unwrap_or(DEFAULT_DIM).max(action),
            // openpi counts a pi0-FAST's action tokens in; LeRobot counts them apart.
            prompt: match (kind, request.preset) {
                (Kind::Pi0Fast, _) | (Kind::Pi05, None) => 200,
                (Kind::Pi0, None) => 48,
                (_, Some(preset)) => preset.max_token_len,
            },
            stats,
        })
    }

    fn cameras(&self) -> [&'static str; 3] {
        // The order is the order of the images' tokens.
        match self.kind {
            Kind::Pi0 | Kind::Pi05 => ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"],
            Kind::Pi0Fast => ["base_0_rgb", "base_1_rgb", "wrist_0_rgb"],
        }
    }

    fn inputs(&self) -> Json {
        let camera = |name: &str| (format!("observation.images.{name}"), feature("VISUAL", vec![3, IMAGE, IMAGE]));
        let cameras = self.cameras().into_iter().map(camera);
        Json::Object(cameras.chain([(STATE.to_owned(), feature("STATE", vec![self.state]))]).collect())
    }

    fn outputs(&self) -> Json {
        Json::object([(ACTION, feature("ACTION", vec![self.action]))])
    }

    fn mapping(&self) -> Json {
        let mode = if self.kind.quantiles() { "QUANTILES" } else { "MEAN_STD" };
        Json::object([("VISUAL", "IDENTITY".into()), ("STATE", mode.into()), ("ACTION", mode.into())])
    }

    fn config(&self) -> Json {
        let config = Json::object([
            ("type", self.kind.name().into()),
            ("n_obs_steps", Json::Count(1)),
            ("input_features", self.inputs()),
            ("output_features", self.outputs()),
            // As the processors have it; LeRobot's programs set all three to theirs.
            ("device", "cpu".into()),
            ("use_amp", false.into()),
            ("push_to_hub", false.into()),
            ("paligemma_variant", "gemma_2b".into()),
            ("action_expert_variant", "gemma_300m".into()),
            ("dtype", self.dtype.into()),
            ("chunk_size", self.horizon.into()),
            ("n_action_steps", self.horizon.into()),
            ("max_state_dim", self.max_state.into()),
            ("max_action_dim", self.max_action.into()),
        ]);
        let config = match self.kind {
            Kind::Pi0 | Kind::Pi05 => config.with([
                ("num_inference_steps", Json::Count(10)),
                ("time_sampling_beta_alpha", 1.5.into()),
                ("time_sampling_beta_beta", 1.0.into()),
                ("time_sampling_scale", 0.999.into()),
                ("time_sampling_offset", 0.001.into()),
                ("min_period", 0.004.into()),
                ("max_period", 4.0.into()),
            ]),
            Kind::Pi0Fast => config.with([("max_action_tokens", MAX_ACTION_TOKENS.into())]),
        };
        let config = config.with([
            ("image_resolution", vec![IMAGE, IMAGE].into()),
            ("empty_cameras", Json::Count(0)),
            ("tokenizer_max_length", self.prompt.into()),
        ]);
        let config = match self.kind {
            Kind::Pi0 | Kind::Pi05 => config,
            Kind::Pi0Fast => config.with([
                ("text_tokenizer_name", TOKENIZER.into()),
                ("action_tokenizer_name", ACTION_TOKENIZER.into()),
                ("temperature", 0.0.into()),
                ("max_decoding_steps", MAX_ACTION_TOKENS.into()),
                ("fast_skip_tokens", Json::Count(128)),
                ("validate_action_token_prefix", true.into()),
                ("use_kv_cache", true.into()),
            ]),
        };
        config.with([("normalization_mapping", self.mapping())])
    }

    fn preprocessor(&self, state_file: Option<String>) -> Json {
        let tokenizer = step(
            "tokenizer_processor",
            Json::object([
                ("max_length", self.prompt.into()),
                ("task_key", "task".into()),
                ("padding_side", "right".into()),
                ("padding", "max_length".into()),
                ("truncation", true.into()),
                ("tokenizer_name", TOKENIZER.into()),
            ]),
        );
        let normalizer = self.normalizer("normalizer_processor", &[self.inputs(), self.outputs()], state_file);
        let nothing = || Json::object([]);
        let mut steps = vec![
            step("rename_observations_processor", Json::object([("rename_map", nothing())])),
            step("to_batch_processor", nothing()),
        ];
        match self.kind {
            Kind::Pi0 => {
                let newline = step("pi0_new_line_processor", nothing());
                steps.extend([newline, tokenizer, to_device(), normalizer]);
            }
            // The state is written into the prompt, so it has to be normalised first.
            Kind::Pi05 => {
                let prompt = step("pi05_prepare_state_tokenizer_processor_step", nothing());
                steps.extend([normalizer, prompt, tokenizer, to_device()]);
            }
            Kind::Pi0Fast => {
                let prompt = step("pi0_fast_prepare_state_tokenizer_processor_step", nothing());
                let actions = Json::object([
                    ("trust_remote_code", true.into()),
                    ("max_action_tokens", MAX_ACTION_TOKENS.into()),
                    ("action_tokenizer_name", ACTION_TOKENIZER.into()),
                ]);
                let actions = step("action_tokenizer_processor", actions);
                steps.extend([normalizer, prompt, tokenizer, actions, to_device()]);
            }
        }
        pipeline("policy_preprocessor", steps)
    }

    /// LeRobot's own name: with the number of the step.
    fn pre_state_name(&self) -> String {
        let at = if self.kind == Kind::Pi0 { 5 } else { 2 };
        format!("policy_preprocessor_step_{at}_normalizer_processor.safetensors")
    }

    fn postprocessor(&self, state_file: Option<String>) -> Json {
        let unnormalizer = self.normalizer("unnormalizer_processor", &[self.outputs()], state_file);
        pipeline("policy_postprocessor", vec![unnormalizer, to_device()])
    }

    fn normalizer(&self, name: &str, features: &[Json], state_file: Option<String>) -> Json {
        let all =
            features.iter().filter_map(|f| if let Json::Object(members) = f { Some(members.clone()) } else { None });
        let config = Json::object([
            ("eps", 1e-8.into()),
            ("features", Json::Object(all.flatten().collect())),
            ("norm_map", self.mapping()),
        ]);
        match state_file {
            Some(file) => step(name, config).with([("state_file", Json::Text(file))]),
            None => step(name, config),
        }
    }

    /// The statistics as LeRobot's tensors `<feature>.<statistic>`, f32 `[D]`; both processors hold all of them.
    fn state_file(&self) -> Option<Vec<u8>> {
        let mut tensors = vec![];
        for (key, feature) in FEATURES {
            for (name, list) in self.stats.and_then(|s| s.keys.get(key)).into_iter().flat_map(|s| s.lists()) {
                let name = format!("{feature}.{name}");
                let bytes = list.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
                tensors.push((Tensor { name, shape: vec![list.len() as u64], dtype: Dtype::F32 }, bytes));
            }
        }
        (!tensors.is_empty()).then(|| remap::to_bytes(&tensors, &BTreeMap::new()))
    }
}

fn feature(kind: &str, shape: Vec<u64>) -> Json {
    Json::object([("type", kind.into()), ("shape", shape.into())])
}

fn step(name: &str, config: Json) -> Json {
    Json::object([("registry_name", name.into()), ("config", config)])
}

fn to_device() -> Json {
    step("device_processor", Json::object([("device", "cpu".into()), ("float_dtype", Json::Null)]))
}

fn pipeline(name: &str, steps: Vec<Json>) -> Json {
    Json::object([("name", name.into()), ("steps", Json::List(steps))])
}

/// What the files cannot say.
fn notes(made: &mut Companions, request: &Request<'_>, policy: &Policy<'_>) {
    let mut note = |text: String| made.notes.push(text);
    let odd = request.unusual();
    if !odd.is_empty() {
        note(format!(
            "LeRobot knows only the published sizes and will not load this model ({}); the tensors are right all the same",
            odd.join("; ")
        ));
    }
    let mut carried = 0;
    for (key, feature) in FEATURES {
        let Some(stats) = policy.stats.and_then(|s| s.keys.get(key)) else {
            note(format!("no norm stats for {key}: LeRobot will pass {feature} through unnormalised"));
            continue;
        };
        carried += 1;
        if policy.kind.quantiles() && (stats.q01.is_none() || stats.q99.is_none()) {
            note(format!(
                "the norm stats for {key} have no q01 and q99, which a {} is normalised with: LeRobot will refuse to run it",
                policy.kind.name()
            ));
        }
        if stats.lists().flat_map(|(_, list)| list).any(|x| !(*x as f32).is_finite()) {
            note(format!("the norm stats for {key} have values that are no finite f32; they are carried as they are"));
        }
    }
    if carried > 0 {
        note(
            "norm stats are copied as they are; LeRobot does not add openpi's 1e-6 to the deviation or the range, \
             so results differ by about that part of the range"
                .into(),
        );
    }
    if let Some(stats) = policy.stats {
        let others: Vec<&str> =
            stats.keys.keys().map(String::as_str).filter(|k| FEATURES.iter().all(|f| f.0 != *k)).collect();
        if !others.is_empty() {
            note(format!("LeRobot has no place for the norm stats of {}; they are in assets alone", others.join(", ")));
        }
    }
    note(
        "delta actions are not carried: a policy trained on them (openpi's use_delta_joint_actions) gives differences \
         to the state, which have to be added to it outside"
            .into(),
    );
    let Some(preset) = request.preset else { return };
    if policy.kind == Kind::Pi05 && !preset.discrete_state_input {
        note(format!(
            "{} was trained without the state in the prompt; LeRobot's pi05 always writes it there",
            preset.name
        ));
    }
    if let Some(other) = preset.action_tokenizer.as_deref().filter(|t| *t != "fast") {
        note(format!(
            "{} speaks in tokens of {other}; LeRobot will read them as those of {ACTION_TOKENIZER}",
            preset.name
        ));
    }
    if policy.kind == Kind::Pi0Fast && preset.action_dim != policy.action {
        note(format!(
            "{} decodes actions of {} values, the norm stats have {}: LeRobot decodes as the norm stats have it",
            preset.name, preset.action_dim, policy.action
        ));
    }
}
