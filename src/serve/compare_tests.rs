//! What departs is named by step and joint; what cannot be compared is not, and says so.

use super::*;

fn answer(actions: Array) -> Record {
    let mut record = Record::default();
    record.put_array("actions", actions);
    record.put_array("policy_timing/infer_ms", Array::f64([], vec![1.0]));
    record
}

fn actions(values: &[f32]) -> Record {
    answer(Array::f32([values.len() / 2, 2], values.to_vec()))
}

fn held(tolerance: f64, recorded: &Record, replayed: &Record) -> (Held, Comparison) {
    let mut all = Comparison::new(tolerance);
    (all.hold(recorded, replayed, true), all)
}

#[test]
fn the_same_bits_are_equal_whatever_the_times() {
    let recorded = actions(&[0.1, 0.2, f32::NAN, 0.4]);
    let mut replayed = recorded.clone();
    replayed.put_array("policy_timing/infer_ms", Array::f64([], vec![99.0]));
    replayed.put_array("pi0/queue_ms", Array::f64([], vec![1.0]));
    let (found, all) = held(0.0, &recorded, &replayed);
    assert_eq!((found.verdict, found.first), (Verdict::Equal, None));
    assert_eq!((all.equal, all.departs(), all.joints.len(), all.steps.len()), (1, false, 2, 2));
    assert_eq!(all.joints[0].errors.max_abs, 0.0);
}

#[test]
fn the_first_step_and_joint_that_depart_are_named() {
    let recorded = actions(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let replayed = actions(&[1.0, 2.0, 3.0, 4.5, 7.0, 6.0]);
    let (found, all) = held(0.25, &recorded, &replayed);
    assert_eq!(found.verdict, Verdict::Outside);
    let first = Departure { step: 1, joint: 1, recorded: Some(4.0), replayed: Some(4.5) };
    assert_eq!(found.first, Some(first));
    assert_eq!(first.to_string(), "joint 1 at horizon step 1: recorded 4, replayed 4.5");
    let errors = found.actions.unwrap();
    assert_eq!((errors.values, errors.max_abs, errors.not_finite), (6, 2.0, 0));
    assert!((errors.mean_abs - 2.5 / 6.0).abs() < 1e-12);
    assert_eq!(all.steps.iter().map(|step| step.max_abs).collect::<Vec<_>>(), [0.0, 0.5, 2.0]);
    assert_eq!(all.joints.iter().map(|joint| joint.errors.max_abs).collect::<Vec<_>>(), [2.0, 0.5]);
    // Joint 0 was recorded from 1 to 5.
    assert_eq!(all.joints[0].of_range(2.0), Some(0.5));
}

#[test]
fn a_difference_of_the_tolerance_is_within() {
    let (recorded, replayed) = (actions(&[1.0, 2.0]), actions(&[1.5, 2.0]));
    assert_eq!(held(0.5, &recorded, &replayed).0.verdict, Verdict::Within);
    assert_eq!(held(0.49, &recorded, &replayed).0.verdict, Verdict::Outside);
    // Minus zero is not the same bits, and no distance.
    assert_eq!(held(0.0, &actions(&[0.0, 1.0]), &actions(&[-0.0, 1.0])).0.verdict, Verdict::Within);
}

#[test]
fn what_is_finite_no_more_departs_at_any_tolerance() {
    let recorded = actions(&[1.0, 2.0]);
    for odd in [f32::NAN, f32::INFINITY] {
        let (found, _) = held(f64::INFINITY, &recorded, &actions(&[1.0, odd]));
        assert_eq!(found.verdict, Verdict::Unlike);
        assert!(found.differences[0].contains("1 values that were finite"), "{:?}", found.differences);
        assert_eq!(found.actions.unwrap().not_finite, 1);
        assert_eq!(found.first.unwrap().replayed, None);
    }
    let same = actions(&[f32::INFINITY, f32::NAN]);
    assert_eq!(held(0.0, &same, &same).0.verdict, Verdict::Equal);
}

#[test]
fn shapes_dtypes_and_keys_that_differ_are_named() {
    let recorded = actions(&[1.0, 2.0]);
    let other = |replayed: Record| {
        let (found, all) = held(1e9, &recorded, &replayed);
        assert_eq!((found.verdict, all.unlike), (Verdict::Unlike, 1));
        found.differences.join("; ")
    };
    assert_eq!(
        other(answer(Array::f32([1, 3], vec![0.0; 3]))),
        "actions: recorded is float32[1, 2], replayed is float32[1, 3]"
    );
    assert!(other(answer(Array::f64([1, 2], vec![1.0, 2.0]))).contains("replayed is float64[1, 2]"));
    assert!(other(Record::default()).contains("actions: recorded is float32[1, 2], replayed is none"));
    let mut text = Record::default();
    text.put_text("actions", "none today");
    assert!(other(text).contains("the text \"none today\""));
    let (found, _) = held(0.0, &Record::default(), &recorded);
    assert_eq!(found.verdict, Verdict::Unlike);
    assert!(found.differences[0].contains("none were recorded"));
}

#[test]
fn other_outputs_are_held_against_each_other_too() {
    let with = |state: f64| {
        let mut record = actions(&[1.0, 2.0]);
        record.put_array("state", Array::f64([1], vec![state]));
        record
    };
    assert_eq!(held(0.0, &with(1.0), &with(1.0)).0.verdict, Verdict::Equal);
    assert_eq!(held(0.5, &with(1.0), &with(1.25)).0.verdict, Verdict::Within);
    let (found, _) = held(0.0, &with(1.0), &with(1.25));
    assert_eq!((found.verdict, found.first), (Verdict::Outside, None));
    assert_eq!(found.differences, ["state: up to 0.25 apart"]);
}

#[test]
fn where_the_noise_is_not_known_only_what_can_be_is_compared() {
    let mut all = Comparison::new(0.0);
    let found = all.hold(&actions(&[1.0, 2.0, 3.0, 2.0]), &actions(&[2.0, 2.0, 4.0, 2.0]), false);
    assert_eq!((found.verdict, found.actions, found.first), (Verdict::Unknown, None, None));
    assert!(!all.departs());
    let joint = all.joints[0];
    assert_eq!((joint.recorded.min, joint.recorded.max, joint.recorded.mean, joint.recorded.std), (1.0, 3.0, 2.0, 1.0));
    assert_eq!((joint.replayed.mean, joint.shift()), (3.0, Some(1.0)));
    assert_eq!((joint.errors.values, all.joints[1].shift()), (0, None));
    // A shape is a shape, whatever the noise.
    let found = all.hold(&actions(&[1.0, 2.0]), &answer(Array::f32([1, 3], vec![0.0; 3])), false);
    assert_eq!(found.verdict, Verdict::Unlike);
}

#[test]
fn actions_of_no_value_or_no_axis_are_compared_too() {
    let empty = answer(Array { shape: vec![0, usize::MAX], values: Values::F32(vec![]) });
    assert_eq!(held(0.0, &empty, &empty).0.verdict, Verdict::Equal);
    let one = answer(Array::f32([], vec![1.0]));
    let (found, all) = held(0.0, &one, &answer(Array::f32([], vec![2.0])));
    assert_eq!((found.verdict, all.joints.len(), all.steps.len()), (Verdict::Outside, 1, 1));
}
