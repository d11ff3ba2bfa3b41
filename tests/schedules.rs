//! openpi's learning-rate schedules, recorded, and ours at the same steps: equal bits.
#![cfg(feature = "robot")]

use std::path::Path;

use pi0_burn::train::schedule::LrSchedule;
use safetensors::SafeTensors;
use serde_json::Value;

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/schedules").join(name)).unwrap()
}

/// `CosineDecaySchedule(warmup_steps=2, peak_lr=0.001, …)` as ours.
fn schedule(config: &str) -> LrSchedule {
    let (name, fields) = config.trim_end_matches(')').split_once('(').unwrap();
    let field = |name: &str| -> f64 {
        let text = fields.split(", ").find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).expect(name);
        text.parse().unwrap()
    };
    let (warmup_steps, peak_lr) = (field("warmup_steps") as u64, field("peak_lr"));
    let schedule = match name {
        "CosineDecaySchedule" => LrSchedule::CosineDecay {
            warmup_steps,
            peak_lr,
            decay_steps: field("decay_steps") as u64,
            decay_lr: field("decay_lr"),
        },
        "RsqrtDecaySchedule" => LrSchedule::RsqrtDecay { warmup_steps, peak_lr, timescale: field("timescale") },
        other => panic!("{other}: not a schedule of openpi's"),
    };
    schedule.check().unwrap();
    schedule
}

#[test]
fn every_recorded_rate_of_both_schedules_has_the_same_bits() {
    let cases: Value = serde_json::from_slice(&golden("schedules.json")).unwrap();
    let bytes = golden("schedules.safetensors");
    let set = SafeTensors::deserialize(&bytes).unwrap();
    let four = |name: String| set.tensor(&name).unwrap().data().as_chunks::<4>().0.to_vec();
    let mut compared = 0;
    for (case, about) in cases["cases"].as_object().unwrap() {
        let schedule = schedule(about["params"]["config"].as_str().unwrap());
        let steps = four(format!("{case}/in/step"));
        let rates = four(format!("{case}/out/lr"));
        assert_eq!(steps.len(), rates.len());
        for (step, expected) in steps.into_iter().zip(rates) {
            let (step, expected) = (i32::from_le_bytes(step) as u64, f32::from_le_bytes(expected));
            let rate = schedule.rate(step);
            assert_eq!(
                rate.to_bits(),
                expected.to_bits(),
                "{case}, step {step}: expected {expected:e}, found {rate:e}"
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 6 * 113);
}

#[test]
fn the_rates_of_recorded_training_steps_have_the_same_bits() {
    let recorded: Value = serde_json::from_slice(&golden("training.json")).unwrap();
    let schedule = schedule(recorded["config"].as_str().unwrap());
    let rates = recorded["lr"].as_array().unwrap();
    assert_eq!(rates.len(), 5);
    for (step, expected) in rates.iter().enumerate() {
        assert_eq!(f64::from(schedule.rate(step as u64)), expected.as_f64().unwrap(), "step {step}");
    }
}
