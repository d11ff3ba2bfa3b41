//! Presets: every one of openpi's is read whole, and what is wrong with one of a user's own is told.

use super::*;

const TOWEL: &str = include_str!("../../configs/train/pi0_aloha_towel.toml");

fn refusal(text: &str) -> String {
    format!("{:#}", parse("mine", text, Path::new(".")).unwrap_err())
}

#[test]
fn every_preset_is_read_whole() {
    assert_eq!(names().count(), 31);
    for name in names() {
        let train = named(name).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let made_up = train.source.repo_id.as_deref() == Some("fake");
        assert_eq!(train.data.is_none(), made_up, "{name}");
        if let Some(data) = &train.data {
            assert_eq!(data.use_quantile_norm, train.model.model.quantiles(), "{name}");
            assert!(train.source.asset_id.is_some(), "{name}");
        }
        assert_eq!(train.training.freeze == Freeze::Lora, name.ends_with("low_mem_finetune"), "{name}");
        assert_eq!(train.training.ema_decay.is_none(), name.ends_with("low_mem_finetune"), "{name}");
    }
}

#[test]
fn the_list_is_the_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .expect("a folder")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
        .collect();
    files.sort();
    assert_eq!(files, names().collect::<Vec<_>>());
}

#[test]
fn values_are_openpis() {
    let train = named("pi05_libero").expect("a preset");
    assert_eq!(train.training.batch_size, 256);
    let schedule =
        LrSchedule::CosineDecay { warmup_steps: 10_000, peak_lr: 5e-5, decay_steps: 1_000_000, decay_lr: 5e-5 };
    assert_eq!(train.training.lr_schedule, schedule);
    assert!(!train.model.discrete_state_input);
    // Without an asset id of its own, statistics are the dataset's.
    assert_eq!(train.source.asset_id.as_deref(), Some("physical-intelligence/libero"));
    let towel = named("pi0_aloha_towel").expect("a preset");
    let data = towel.data.expect("a robot");
    assert_eq!(data.default_prompt.as_deref(), Some("fold the towel"));
    assert_eq!(data.delta.map(|delta| delta.mask), Some(make_bool_mask(&[6, -1, 6, -1])));
    assert_eq!(towel.model.action_horizon, 50);
    let pose = towel.training.policy_metadata.expect("metadata").remove("reset_pose").expect("a pose");
    assert_eq!(pose.as_array().map(Vec::len), Some(6));
}

#[test]
fn a_misspelt_preset_is_answered_with_the_nearest() {
    assert!(named("pi0_alhoa").unwrap_err().to_string().contains("the nearest is pi0_aloha"));
}

#[test]
fn what_is_wrong_with_a_preset_is_told() {
    assert!(parse("mine", TOWEL, Path::new(".")).is_ok());
    assert!(refusal(&TOWEL.replace("default_prompt", "defualt_prompt")).contains("defualt_prompt"));
    assert!(refusal(&TOWEL.replace("robot = \"aloha\"", "robot = \"alona\"")).contains("the nearest is aloha"));
    assert!(refusal(&TOWEL.replace("layout = \"pi0\"", "layout = \"fast\"")).contains("layout fast of aloha"));
    assert!(refusal(&TOWEL.replace("[6, -1, 6, -1]", "[6, -1, 6, -2]")).contains("15 dimensions, expected at most 14"));
    assert!(refusal(&TOWEL.replace("[6, -1, 6, -1]", "[-9000000000000000000]")).contains("at most 4096"));
    assert!(refusal(&TOWEL.replace("delta_ways = \"both\"\n", "")).contains("belong together"));
    assert!(refusal(&TOWEL.replace("freeze = \"none\"", "freeze = \"lora\"")).contains("low-rank pairs"));
    assert!(refusal(&TOWEL.replace("robot = \"aloha\"\n", "")).contains("data.robot: it is missing"));
    assert!(refusal(&TOWEL.replace("type = \"pi0\"", "type = \"pi1\"")).contains("pi1"));
    let libero = include_str!("../../configs/train/pi0_libero.toml");
    assert!(refusal(&libero.replace("layout", "adapt_to_pi = true\nlayout")).contains("no [adapt_to_pi]"));
}
