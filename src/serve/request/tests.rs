//! What robots send is understood, what cannot be is refused by its key, and answers have openpi's order.

use std::path::Path;

use super::*;
use crate::serve::wire::{Limits, decode, encode};

fn map(members: Vec<(&str, Tree)>) -> Tree {
    Tree::Map(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn text(text: &str) -> Tree {
    Tree::Text(text.to_owned())
}

fn ints(values: &[i64]) -> Tree {
    Tree::List(values.iter().map(|value| Tree::Int(*value)).collect())
}

fn recorded(name: &str) -> Tree {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/protocol").join(name);
    decode(&std::fs::read(path).unwrap(), &Limits::default()).unwrap()
}

fn refused(members: Vec<(&str, Tree)>) -> String {
    let refusal = Request::parse(map(members)).unwrap_err();
    assert_eq!(refusal.kind, Kind::Observation);
    refusal.message
}

/// What is wrong with extensions.
fn unfit(members: Vec<(&str, Tree)>) -> String {
    refused(vec![("state", Tree::Int(0)), ("pi0", map(members))])
}

fn extensions(members: Vec<(&str, Tree)>) -> Extensions {
    Request::parse(map(vec![("pi0", map(members))])).unwrap().extensions.unwrap()
}

fn chunk() -> Tree {
    Tree::Array(Array::f32([3, 2], vec![0.0; 6]))
}

#[test]
fn what_openpis_clients_send_has_the_robots_own_keys() {
    let keys = |name| {
        let request = Request::parse(recorded(name)).unwrap();
        assert_eq!(request.extensions, None);
        request.observation.values.into_keys().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        keys("aloha.bin"),
        "images/cam_high images/cam_left_wrist images/cam_low images/cam_right_wrist prompt state"
    );
    assert_eq!(keys("libero.bin"), "observation/image observation/state observation/wrist_image prompt");
    let request = Request::parse(recorded("droid.bin")).unwrap();
    assert_eq!(request.observation.array("observation/joint_position").unwrap().shape, [7]);
    assert_eq!(request.observation.text("prompt"), Ok("do something"));
}

#[test]
fn an_observation_goes_out_as_it_came_in_but_for_the_order_of_its_keys() {
    for name in ["aloha.bin", "droid.bin", "libero.bin"] {
        let sent = Request::parse(recorded(name)).unwrap();
        let Tree::Map(members) = observation(&sent.observation) else { panic!("{name}") };
        let Tree::Map(recorded) = recorded(name) else { panic!("{name}") };
        assert_eq!(members.len(), recorded.len());
        for (key, value) in &recorded {
            let found = &members.iter().find(|(name, _)| name == key).unwrap().1;
            match (value, found) {
                (Tree::Map(inner), Tree::Map(found)) => {
                    assert!(inner.len() == found.len() && inner.iter().all(|member| found.contains(member)), "{key}");
                }
                _ => assert_eq!(value, found, "{key}"),
            }
        }
    }
}

#[test]
fn numbers_and_lists_become_numpys_arrays() {
    let scalar = |value: f32| Tree::Array(Array::f32([], vec![value]));
    let request = Request::parse(map(vec![
        ("state", Tree::List(vec![Tree::Int(1), Tree::Float(2.5)])),
        ("rows", Tree::List(vec![ints(&[1, 2, 3]), ints(&[4, 5, 6])])),
        ("gripper", Tree::Float(0.5)),
        ("step", Tree::Int(3)),
        ("done", Tree::Bool(false)),
        ("scalars", Tree::List(vec![scalar(1.0), scalar(2.0)])),
        ("raw", Tree::Bytes(vec![7])),
        ("nothing", Tree::Nil),
        ("empty", Tree::List(vec![])),
        ("deep", map(vec![("er", map(vec![("est", Tree::Int(1))]))])),
    ]))
    .unwrap();
    let array = |key| request.observation.array(key).unwrap().clone();
    assert_eq!(array("state"), Array::f64([2], vec![1.0, 2.5]));
    assert_eq!(array("rows"), Array::new([2, 3], Values::I64(vec![1, 2, 3, 4, 5, 6])));
    assert_eq!(array("gripper"), Array::f64([], vec![0.5]));
    assert_eq!(array("step"), Array::new([], Values::I64(vec![3])));
    assert_eq!(array("done"), Array::flag(false));
    assert_eq!(array("scalars"), Array::f32([2], vec![1.0, 2.0]));
    assert_eq!(array("raw"), Array::u8([1], vec![7]));
    assert_eq!(array("empty"), Array::f64([0], vec![]));
    assert_eq!(array("deep/er/est").shape, Vec::<usize>::new());
    assert!(!request.observation.has("nothing"));
}

#[test]
fn what_is_no_observation_is_refused_by_its_key() {
    let refusal = Request::parse(ints(&[1])).unwrap_err();
    assert_eq!(refusal.kind, Kind::Malformed);
    assert_eq!(refusal.message, "expected a dictionary as the observation, found a list of 1");
    let start = "images/top: expected an array, a number or lists of numbers, found";
    let list = |items| refused(vec![("images", map(vec![("top", Tree::List(items))]))]);
    assert_eq!(list(vec![text("a")]), format!("{start} the text \"a\" in a list"));
    assert_eq!(list(vec![ints(&[1]), ints(&[1, 2])]), format!("{start} lists of several lengths"));
    assert_eq!(list(vec![Tree::Int(1), ints(&[1])]), format!("{start} lists of several lengths"));
    assert_eq!(list(vec![Tree::Int(1), Tree::Bool(true)]), format!("{start} a list of several types"));
    assert_eq!(list(vec![chunk()]), format!("{start} float32[3, 2] in a list; stack them with numpy"));
    let twice = refused(vec![("a/b", Tree::Int(1)), ("a", map(vec![("b", Tree::Int(1))]))]);
    assert!(twice.starts_with("a/b: it is there twice"), "{twice}");
}

#[test]
fn extensions_come_back_from_their_dictionary() {
    let actions = Array::f32([3, 2], vec![0.5; 6]);
    let previous = |method| Some(Previous { actions: actions.clone(), delay: 2, method });
    let guided = |schedule| Method::Guided { schedule, max_guidance_weight: 2.5 };
    let of = |previous| Extensions { previous, deadline: Some(Duration::from_millis(1500)), ..Extensions::default() };
    let mut all = vec![
        Extensions::default(),
        Extensions { seed: Some(7), ..Extensions::default() },
        Extensions { noise: Some(actions.clone()), ..Extensions::default() },
        of(previous(Method::Frozen)),
    ];
    all.extend([Schedule::Exp, Schedule::Linear, Schedule::Ones, Schedule::Zeros].map(|s| of(previous(guided(s)))));
    for extensions in all {
        let message = extensions.beside(recorded("droid.bin")).unwrap();
        let sent = decode(&encode(&message), &Limits::default()).unwrap();
        let request = Request::parse(sent).unwrap();
        assert_eq!(request.extensions, Some(extensions));
        assert_eq!(request.observation.values.len(), 5);
    }
    let long = Extensions { seed: Some(u64::MAX), ..Extensions::default() };
    assert!(long.tree().unwrap_err().to_string().starts_with("pi0/seed: it has more than 63 bits"));
}

#[test]
fn what_is_not_said_has_its_default() {
    let previous = extensions(vec![("previous", chunk()), ("delay", Tree::Int(0))]).previous.unwrap();
    assert_eq!(previous.method, Method::DEFAULT);
    assert_eq!(extensions(vec![]), Extensions::default());
    // A loop's first request has no chunk before it.
    assert_eq!(extensions(vec![("previous", Tree::Nil), ("delay", Tree::Int(3))]), Extensions::default());
    let none = Request::parse(map(vec![("pi0", Tree::Nil)])).unwrap();
    assert_eq!(none.extensions, None);
}

#[test]
fn a_misspelt_or_contradictory_extension_is_refused() {
    assert_eq!(unfit(vec![("sede", Tree::Int(1))]), "pi0/sede: nothing knows it; the nearest is seed");
    assert!(refused(vec![("pi0", Tree::Int(1))]).starts_with("pi0: expected a dictionary of noise, seed"));
    assert_eq!(unfit(vec![("seed", Tree::Int(-1))]), "pi0/seed: expected a whole number from 0, found the number -1");
    assert!(unfit(vec![("seed", Tree::Int(1)), ("noise", chunk())]).contains("leave one out"));
    assert!(unfit(vec![("noise", ints(&[1]))]).contains("expected numbers [horizon, action dims], found a list of 1"));
    assert!(unfit(vec![("deadline_ms", Tree::Float(f64::NAN))]).contains("expected a number above 0"));
    assert!(unfit(vec![("deadline_ms", Tree::Float(1e300))]).contains("beyond any clock"));
    assert_eq!(unfit(vec![("delay", Tree::Int(1))]), "pi0/delay: it is about `previous`, which is missing");
    assert!(unfit(vec![("previous", chunk())]).starts_with("pi0/delay: it is missing"));
    let rtc =
        |more: Vec<(&'static str, Tree)>| unfit([vec![("previous", chunk()), ("delay", Tree::Int(1))], more].concat());
    assert_eq!(rtc(vec![("method", text("frosen"))]), r#"pi0/method: nothing knows "frosen"; the nearest is frozen"#);
    assert_eq!(rtc(vec![("schedule", text("ex"))]), r#"pi0/schedule: nothing knows "ex"; the nearest is exp"#);
    let frozen = ("method", text("frozen"));
    assert_eq!(rtc(vec![frozen.clone(), ("schedule", text("exp"))]), "pi0/schedule: `frozen` has none");
    assert!(rtc(vec![frozen, ("max_guidance_weight", Tree::Int(1))]).ends_with("`frozen` has none"));
    assert!(unfit(vec![("previous", chunk()), ("delay", Tree::Int(4))]).contains("expected at most 3"));
}

#[test]
fn answers_are_openpis_replies_and_more_only_for_who_asked() {
    let Tree::Map(reply) = recorded("reply_next.bin") else { panic!() };
    let outputs: Vec<_> = reply.iter().take(2).cloned().collect();
    let answer = Answer { outputs, infer_ms: 61.25, seed: Some(3) };
    let timing = Timing { infer_ms: 62.5, prev_total_ms: Some(70.125), queue_ms: 1.0, prev_model_ms: None, batch: 2 };
    assert_eq!(answer.clone().message(&timing, false), Tree::Map(reply.clone()));
    let Tree::Map(asked) = answer.clone().message(&timing, true) else { panic!() };
    assert_eq!(asked[..4], reply[..]);
    let keys = |tree: &Tree| match tree {
        Tree::Map(members) => members.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    };
    assert_eq!((asked[4].0.as_str(), keys(&asked[4].1)), ("pi0", "seed queue_ms model_ms batch".to_owned()));
    let later = Timing { prev_model_ms: Some(60.0), ..timing };
    let unseeded = Answer { seed: None, ..answer }.message(&later, true);
    assert_eq!(keys(unseeded.get("pi0").unwrap()), "queue_ms model_ms prev_model_ms batch");
}
