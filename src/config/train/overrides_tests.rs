//! Overrides: every field of openpi's, in every spelling, and what is wrong with one told.

use super::super::{
    Augment, Finetune, LrSchedule, Optimizer, Precision, Train, WeightLoader, find_with, named, names as presets,
};
use super::*;
use crate::policy::delta::make_bool_mask;
use crate::train::freeze::Rule;
use crate::weights::companions::Kind as Model;

fn with(config: &str, overrides: &[&str]) -> Result<(Train, Vec<String>)> {
    let pairs: Vec<_> = overrides.iter().map(|o| pair(o)).collect::<Result<_>>()?;
    find_with(config, &pairs)
}

fn done(config: &str, overrides: &[&str]) -> Train {
    with(config, overrides).unwrap_or_else(|e| panic!("{overrides:?}: {e:#}")).0
}

fn refusal(config: &str, one: &str) -> String {
    format!("{:#}", with(config, &[one]).map(|(train, _)| train).unwrap_err())
}

/// openpi's fields, but for `name`, which nobody overrides, and an example of each.
const EVERY: [&str; 39] = [
    "project_name=mine",
    "exp_name=try1",
    "model.pi05=False",
    "model.action_dim=16",
    "model.action_horizon=25",
    "model.max_token_len=64",
    "model.paligemma_variant=gemma_2b_lora",
    "model.action_expert_variant=gemma_300m_lora",
    "model.discrete_state_input=False",
    "model.dtype=float32",
    "weight_loader.params_path=./base/params",
    "pytorch_weight_path=./torch",
    "pytorch_training_precision=float32",
    "lr_schedule.warmup_steps=10",
    "lr_schedule.peak_lr=1e-4",
    "lr_schedule.decay_steps=1e5",
    "lr_schedule.decay_lr=1e-5",
    "optimizer.b1=0.8",
    "optimizer.b2=0.9",
    "optimizer.eps=1e-6",
    "optimizer.weight_decay=0.01",
    "optimizer.clip_gradient_norm=0.5",
    "ema_decay=None",
    "freeze_filter=freeze_vision",
    "data.repo_id=me/mine",
    "data.assets.asset_id=me",
    "data.assets.assets_dir=./stats",
    "data.use_delta_joint_actions=True",
    "data.default_prompt=fold it",
    "data.adapt_to_pi=False",
    "data.action_sequence_keys=action,other",
    "data.base_config.prompt_from_task=True",
    "assets_base_dir=./a",
    "checkpoint_base_dir=./c",
    "policy_metadata.reset_pose=[1, 2.5]",
    "fsdp_devices=1",
    "wandb_enabled=False",
    "keep_period=None",
    "batch_size=8",
];

#[test]
fn every_field_of_openpis_has_its_override() {
    let train = done("pi0_aloha_sim", &EVERY);
    let Train { model, source, data, training, finetune, .. } = train;
    let data = data.expect("a robot");
    assert_eq!((model.action_dim, model.action_horizon, model.max_token_len), (16, 25, 64));
    assert_eq!(model.paligemma_variant, "gemma_2b_lora");
    assert_eq!(model.action_expert_variant.as_deref(), Some("gemma_300m_lora"));
    assert_eq!(finetune, Finetune { dtype: Precision::Float32, ..Finetune::default() });
    assert_eq!(training.weight_loader, WeightLoader::Checkpoint { params_path: "./base/params".into() });
    let schedule = LrSchedule::CosineDecay { warmup_steps: 10, peak_lr: 1e-4, decay_steps: 100_000, decay_lr: 1e-5 };
    assert_eq!(training.lr_schedule, schedule);
    let adamw = Optimizer::Adamw { b1: 0.8, b2: 0.9, eps: 1e-6, weight_decay: 0.01, clip_gradient_norm: 0.5 };
    assert_eq!(training.optimizer, adamw);
    assert_eq!((training.ema_decay, training.keep_period, training.batch_size), (None, None, 8));
    assert!(training.freeze.has(&Rule::FreezeVision) && !training.wandb_enabled);
    assert_eq!(source.repo_id.as_deref(), Some("me/mine"));
    assert_eq!(source.asset_id.as_deref(), Some("me"));
    assert_eq!(source.assets_dir.as_deref(), Some("./stats"));
    assert_eq!(source.action_sequence_keys, ["action", "other"]);
    assert_eq!(data.delta.expect("relative actions").mask, make_bool_mask(&[6, -1, 6, -1]));
    assert_eq!(data.default_prompt.as_deref(), Some("fold it"));
    assert!(!data.adapt_to_pi && data.prompt_from_task);
    assert_eq!((training.project_name.as_str(), training.exp_name.as_deref()), ("mine", Some("try1")));
    assert_eq!((training.assets_base_dir.as_str(), training.checkpoint_base_dir.as_str()), ("./a", "./c"));
    let pose = training.policy_metadata.expect("metadata").remove("reset_pose").expect("a pose");
    assert_eq!(pose, Value::Array(vec![Value::Integer(1), Value::Float(2.5)]));
    let counts = ["num_workers=0", "num_train_steps=1_000", "log_interval=10", "save_interval=50", "seed=7"];
    let training = done("pi0_libero", &counts).training;
    let found = (training.num_workers, training.num_train_steps, training.log_interval, training.save_interval);
    assert_eq!((found, training.seed), ((0, 1000, 10, 50), 7));
    assert!(done("debug", &["overwrite=False", "resume=True"]).training.resume);
    assert!(done("pi05_libero", &["data.extra_delta_transform=True"]).data.expect("a robot").delta.is_some());
    assert!(done("pi0_libero", &["data.extra_delta_transform=False"]).data.expect("a robot").delta.is_none());
}

#[test]
fn overrides_change_nothing_else() {
    for name in presets() {
        let before = named(name).expect("a preset");
        let mut after = done(name, &["batch_size=2"]);
        assert_eq!(after.training.batch_size, 2, "{name}");
        after.training.batch_size = before.training.batch_size;
        assert_eq!((&after.model, &after.source, &after.data), (&before.model, &before.source, &before.data), "{name}");
        assert_eq!((&after.training, &after.finetune), (&before.training, &before.finetune), "{name}");
        assert_eq!(done(name, &[]), before);
    }
}

#[test]
fn what_is_overridden_is_echoed() {
    let train = done("pi0_aloha_sim", &EVERY);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    std::fs::write(&path, train.echo().expect("TOML")).expect("written");
    assert_eq!(super::super::file(&path).expect("a preset"), train);
}

#[test]
fn tyros_spellings_are_read() {
    let train = done("pi0_libero", &["--lr-schedule.peak-lr=1e-4"]);
    assert!(matches!(train.training.lr_schedule, LrSchedule::CosineDecay { peak_lr: 1e-4, .. }));
    let train = done("pi0_libero", &["num-train-steps=1_000", "train.seed=3", "finetune.augment=off", "seed=4"]);
    assert_eq!((train.training.num_train_steps, train.training.seed), (1000, 4));
    assert_eq!(train.finetune.augment, Augment::Off);
}

#[test]
fn a_kind_brings_openpis_defaults_and_keeps_what_is_of_it() {
    let rsqrt = LrSchedule::RsqrtDecay { warmup_steps: 1000, peak_lr: 5e-5, timescale: 500.0 };
    for word in ["rsqrt_decay", "RsqrtDecaySchedule", "rsqrt-decay-schedule"] {
        let train = done("pi0_libero", &["lr_schedule.timescale=500", &format!("lr_schedule={word}")]);
        assert_eq!(train.training.lr_schedule, rsqrt, "{word}");
    }
    let sgd = Optimizer::Sgd { lr: 5e-5, momentum: 0.9, nesterov: true };
    assert_eq!(done("debug", &["optimizer=sgd", "optimizer.nesterov=True"]).training.optimizer, sgd);
    let unchanged = done("pi05_libero", &["lr_schedule.kind=cosine_decay"]).training.lr_schedule;
    assert_eq!(unchanged, named("pi05_libero").expect("a preset").training.lr_schedule);
    assert_eq!(done("pi0_libero", &["weight_loader=paligemma"]).training.weight_loader, WeightLoader::Paligemma {});
    let loaded = done("debug", &["weight_loader.params_path=base"]).training.weight_loader;
    assert_eq!(loaded, WeightLoader::Checkpoint { params_path: "base".into() });
    let refused = refusal("pi0_libero", "lr_schedule.timescale=5");
    assert!(refused.contains("of lr_schedule=rsqrt_decay alone, and this preset's is cosine_decay"), "{refused}");
    assert!(refusal("pi0_libero", "optimizer=adam").contains("expected adamw or sgd, found adam"));
    assert!(refusal("debug", "weight_loader=checkpoint").contains("params_path"));
}

#[test]
fn frozen_is_what_the_rules_say() {
    let rules = |one: &str| done("pi0_libero_low_mem_finetune", &[one]).training.freeze.rules;
    assert_eq!(rules("freeze=['lora', 'img\\..*']"), [Rule::Lora, Rule::Pattern("img\\..*".into())]);
    assert_eq!(rules("freeze=None"), []);
    assert_eq!(rules("freeze-filter=PaliGemma/.*"), [Rule::Pattern("PaliGemma/.*".into())]);
    assert!(refusal("pi0_libero", "freeze=lora").contains("low-rank pairs"));
    assert!(refusal("pi0_libero", "freeze=loar").contains("the nearest is lora"));
}

#[test]
fn another_model_takes_its_normalisation_along() {
    let (train, notices) = with("pi0_libero", &["model.pi05=True"]).expect("a pi0.5");
    assert_eq!(train.model.model, Model::Pi05);
    assert!(train.data.expect("a robot").use_quantile_norm && !train.model.discrete_state_input);
    assert_eq!((train.model.max_token_len, notices.len()), (48, 1));
    assert!(!done("pi05_aloha", &["model.pi05=false"]).data.expect("a robot").use_quantile_norm);
    assert!(refusal("pi0_fast_libero", "model.pi05=True").contains("pi0_fast"));
}

#[test]
fn statistics_follow_the_dataset_unless_they_are_told() {
    let asset = |config: &str| done(config, &["data.repo_id=me/mine"]).source.asset_id;
    assert_eq!(asset("pi0_libero").as_deref(), Some("me/mine"));
    assert_eq!(asset("pi0_aloha_pen_uncap").as_deref(), Some("trossen"));
    assert_eq!(asset("pi05_full_droid_finetune").as_deref(), Some("droid"));
}

#[test]
fn data_of_ones_own_are_described_by_overrides() {
    let data = done("pi0_libero", &["data.repack.observation/image=camera", "data.default-prompt=None"]).data;
    let repack = data.expect("a robot").repack.expect("keys");
    assert!(repack.contains(&("observation/image".into(), "camera".into())));
    let velocity = done("pi05_full_droid_finetune", &["data.action_space=joint_velocity"]);
    assert!(velocity.data.expect("a robot").delta.is_none());
    assert!(refusal("pi0_libero", "data.action_space=joint_velocity").contains("RLDS"));
    assert!(refusal("pi0_libero", "data.use_delta_joint_actions=True").contains("of the robot aloha alone"));
    assert!(refusal("pi0_libero", "data.adapt_to_pi=True").contains("no [adapt_to_pi]"));
}

#[test]
fn what_means_nothing_here_is_said() {
    let notices = |one: &str| with("pi05_libero", &[one]).expect("a preset").1;
    for one in ["wandb_enabled=True", "fsdp_devices=4", "pytorch_weight_path=x", "pytorch_training_precision=float32"] {
        let [notice] = &notices(one)[..] else { panic!("{one}") };
        assert!(notice.starts_with(one.split('=').next().expect("a key")), "{notice}");
    }
    for one in ["wandb_enabled=False", "fsdp_devices=1", "batch_size=4"] {
        assert!(notices(one).is_empty(), "{one}");
    }
}

#[test]
fn what_is_wrong_with_an_override_is_told() {
    for (one, told) in [
        ("batchsize=4", "batchsize: no such field; the nearest is batch_size"),
        ("peak_lr=1", "peak_lr: no such field; it is lr_schedule.peak_lr"),
        ("lr_schedule.peaklr=1", "in lr_schedule the nearest is peak_lr"),
        ("optimizer.bananas=1", "in optimizer there are b1, b2, clip_gradient_norm, "),
        ("batch_size=many", "batch_size: expected a whole number, found many"),
        ("batch_size=None", "batch_size: there must be one; None is for ema_decay, "),
        ("model.dtype=float16", "model.dtype: expected bfloat16 or float32, found float16"),
        ("resume=yes", "resume: expected True or False, found yes"),
        ("name=mine", "name: it is the preset's"),
        ("data.repack.=x", "it ends where a name was expected"),
        ("batch_size", "expected key=value"),
        ("data.datasets=[]", "of presets on DROID in RLDS form alone"),
        ("seed=9223372036854775808", "seed: expected a whole number"),
    ] {
        let refused = refusal("pi0_libero", one);
        assert!(refused.contains(told), "{one}: {refused}");
    }
}

#[test]
fn every_name_is_known_by_itself() {
    let all = names();
    for name in &all {
        assert_eq!(canonical(name).expect("a name"), *name);
        assert_eq!(canonical(&format!("--{}", name.replace('_', "-"))).expect("a name"), *name);
    }
    assert!(all.windows(2).all(|two| two[0] < two[1]), "a name stands twice");
}
