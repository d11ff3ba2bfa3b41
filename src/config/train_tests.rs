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
        assert_eq!(train.training.freeze.has(&Rule::Lora), name.ends_with("low_mem_finetune"), "{name}");
        assert_eq!(train.finetune, Finetune::default(), "{name}");
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

#[test]
fn what_a_run_was_configured_with_starts_the_same_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    for name in names() {
        let train = named(name).expect("a preset");
        std::fs::write(&path, train.echo().expect("TOML")).expect("written");
        let again = file(&path).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(again, train);
        assert_eq!(again.name, name);
    }
}

#[test]
fn a_robot_beside_the_preset_is_found_from_the_runs_folder() {
    let (here, there) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let robot = include_str!("../../configs/robot/aloha.toml");
    std::fs::write(here.path().join("mine.toml"), robot).expect("written");
    let preset = TOWEL.replace("robot = \"aloha\"", "robot = \"mine.toml\"");
    std::fs::write(here.path().join("towel.toml"), preset).expect("written");
    let train = file(&here.path().join("towel.toml")).expect("a preset");
    let echo = there.path().join("config.toml");
    std::fs::write(&echo, train.echo().expect("TOML")).expect("written");
    assert_eq!(file(&echo).expect("a preset"), train);
}

#[test]
fn what_no_run_can_mean_is_refused() {
    let with = |old: &str, new: &str| {
        let text = TOWEL.replace(old, new);
        assert_ne!(text, TOWEL, "{old}");
        refusal(&text)
    };
    assert!(with("batch_size = 32", "batch_size = 0").contains("batch_size: expected at least 1, found 0"));
    assert!(with("ema_decay = 0.99", "ema_decay = 1.0").contains("ema_decay: expected at least 0 and less than 1"));
    assert!(with("b2 = 0.95", "b2 = nan").contains("optimizer.b2"));
    assert!(with("decay_steps = 30_000", "decay_steps = 1_000").contains("more than the 1000 of the warm-up"));
    assert!(with("overwrite = false\nresume = false", "overwrite = true\nresume = true").contains("not both"));
    let cut = format!("{TOWEL}\n[finetune]\ngradient_accumulation = 5\n");
    assert!(refusal(&cut).contains("a batch of 32 cannot be cut into 5 equal parts"));
    assert!(refusal(&format!("{TOWEL}\n[finetune]\naugmnet = \"off\"\n")).contains("augmnet"));
    assert!(refusal(&format!("{TOWEL}\n[finetune]\ntime = {{ alpha = 0.0 }}\n")).contains("more than 0"));
    assert!(with("freeze = \"none\"", "freeze = \"expert\"").contains("no such rule"));
    assert!(with("freeze = \"none\"", "freeze = 3").contains("expected a rule"));
}
