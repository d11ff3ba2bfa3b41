//! Robots: vectors on any leading axes, pictures into slots, and what does not fit.

use super::*;

fn arm(adapt: bool) -> Robot {
    let part = |key: &str, width| Part { key: key.to_owned(), width };
    let ops = vec![
        Op::Unnormalize { min: 0.02, max: 0.05 },
        Op::LinearToRadian { arm_length: 0.036, horn_radius: 0.022 },
        Op::Normalize { min: 0.5, max: 1.5 },
        Op::Subtract { value: 0.25 },
    ];
    let map = || Map { dims: vec![2], ops: ops.clone() };
    let slot = |slot: &str, camera: Option<&str>, optional, mask| Slot {
        slot: slot.to_owned(),
        camera: camera.map(str::to_owned),
        optional,
        mask,
    };
    Robot {
        name: "arm".to_owned(),
        state: vec![part("joints", 2), part("gripper", 1)],
        actions: part("actions", 3),
        adapt_to_pi: adapt.then(|| Adapt { signs: vec![1, -1, 1], state: map(), actions: map() }),
        images: Images { prefix: Some("images/".to_owned()), unused: vec!["images/low".to_owned()] },
        layouts: BTreeMap::from([(
            "pi0".to_owned(),
            vec![
                slot("base_0_rgb", Some("images/high"), false, false),
                slot("left_wrist_0_rgb", Some("images/wrist"), true, false),
                slot("right_wrist_0_rgb", None, false, true),
            ],
        )]),
    }
}

fn record(pairs: &[(&str, Array)]) -> Record {
    let mut record = Record::default();
    for (key, array) in pairs {
        record.put_array(*key, array.clone());
    }
    record
}

#[test]
fn a_state_is_joined_of_its_parts_in_numpys_dtype() {
    let step = arm(false).vectors(false).unwrap();
    let mut single = record(&[("joints", Array::f32([2], vec![1.0, 2.0])), ("gripper", Array::f32([], vec![3.0]))]);
    step.apply(&mut single).unwrap();
    assert_eq!(single, record(&[("state", Array::f32([3], vec![1.0, 2.0, 3.0]))]));
    let mut double = record(&[("joints", Array::f32([2], vec![1.0, 2.0])), ("gripper", Array::f64([1], vec![3.0]))]);
    step.apply(&mut double).unwrap();
    assert_eq!(double.array("state").unwrap().values.dtype(), "float64");
}

#[test]
fn columns_of_a_whole_dataset_pass_without_a_picture() {
    let step = arm(true).vectors(true).unwrap();
    let columns = record(&[
        ("joints", Array::f32([2, 2], vec![1.0, 2.0, 3.0, 4.0])),
        ("gripper", Array::f32([2], vec![0.5, 0.75])),
        ("actions", Array::f32([2, 1, 3], vec![1.0, 2.0, 0.5, 3.0, 4.0, 0.75])),
    ]);
    let whole = step.columns(columns).unwrap();
    let rows = |x: f64, y: f64, gripper: f32| {
        let one = record(&[
            ("joints", Array::f32([2], vec![x as f32, y as f32])),
            ("gripper", Array::f32([1], vec![gripper])),
        ]);
        step.columns(one).unwrap().array("state").unwrap().values.to_f64()
    };
    let state = whole.array("state").unwrap();
    assert_eq!(state.shape, [2, 3]);
    assert_eq!(state.values.to_f64(), [rows(1.0, 2.0, 0.5), rows(3.0, 4.0, 0.75)].concat());
    assert_eq!(state.values.to_f64()[1], -2.0);
    assert_eq!(whole.array("actions").unwrap().shape, [2, 1, 3]);
}

#[test]
fn actions_come_home_through_every_operation() {
    let step = arm(true).vectors(true).unwrap();
    let actions: Vec<f64> = (0..30).map(|i| f64::from(i) / 29.0).collect();
    let mut there = record(&[
        ("joints", Array::f64([2], vec![0.0; 2])),
        ("gripper", Array::f64([1], vec![0.5])),
        ("actions", Array::f64([10, 3], actions.clone())),
    ]);
    step.apply(&mut there).unwrap();
    assert_ne!(there.array("actions").unwrap().values.to_f64(), actions);
    step.undo(&mut there).unwrap();
    assert_eq!(there.values.keys().collect::<Vec<_>>(), ["actions"]);
    for (a, b) in there.array("actions").unwrap().values.to_f64().iter().zip(&actions) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }
}

#[test]
fn a_wrong_width_is_named_with_what_the_robot_has() {
    let step = arm(false).vectors(false).unwrap();
    let mut narrow = record(&[("joints", Array::f32([3], vec![0.0; 3])), ("gripper", Array::f32([1], vec![0.0]))]);
    let fault = step.apply(&mut narrow).unwrap_err().to_string();
    assert_eq!(fault, "joints: expected [.., 2], what arm has, found float32[3]");
    let mut missing = record(&[("joint", Array::f32([2], vec![0.0; 2])), ("gripper", Array::f32([1], vec![0.0]))]);
    let fault = step.apply(&mut missing).unwrap_err().to_string();
    assert_eq!(fault, "joints: it is missing; the nearest is joint");
    let mut out = record(&[("actions", Array::f32([5, 2], vec![0.0; 10]))]);
    assert!(step.undo(&mut out).unwrap_err().to_string().contains("found float32[5, 2]"));
}

#[test]
fn pictures_go_into_slots_and_black_ones_are_as_large_as_the_first() {
    let step = arm(false).cameras("pi0").unwrap();
    let mut seen = record(&[
        ("images/high", Array::u8([2, 1, 3], vec![9; 6])),
        ("images/low", Array::u8([2, 1, 3], vec![1; 6])),
        ("state", Array::f32([1], vec![0.0])),
        ("noise", Array::f32([1], vec![0.0])),
    ]);
    step.apply(&mut seen).unwrap();
    let expected = record(&[
        ("image/base_0_rgb", Array::u8([2, 1, 3], vec![9; 6])),
        ("image/left_wrist_0_rgb", Array::u8([2, 1, 3], vec![0; 6])),
        ("image/right_wrist_0_rgb", Array::u8([2, 1, 3], vec![0; 6])),
        ("image_mask/base_0_rgb", Array::flag(true)),
        ("image_mask/left_wrist_0_rgb", Array::flag(false)),
        ("image_mask/right_wrist_0_rgb", Array::flag(true)),
        ("state", Array::f32([1], vec![0.0])),
    ]);
    assert_eq!(seen, expected);
}

#[test]
fn a_missing_camera_is_named_with_its_nearest() {
    let step = arm(false).cameras("pi0").unwrap();
    let picture = || Array::u8([1, 1, 3], vec![0; 3]);
    let fault = step.apply(&mut record(&[("image/high", picture())])).unwrap_err().to_string();
    assert_eq!(fault, "images/high: it is missing; the nearest is image/high");
    let fault = step.apply(&mut record(&[("images/high", picture()), ("images/wirst", picture())])).unwrap_err();
    assert_eq!(fault.to_string(), "images/wirst: nothing knows it; the nearest is images/wrist");
    assert!(arm(false).cameras("pi1").unwrap_err().to_string().contains("the nearest is pi0"));
}
