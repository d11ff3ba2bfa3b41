//! A request and its answer as a recording; a recording as the message that was sent.
//!
//! Source: openpi 15a9616, policies/policy.py, PolicyRecorder: the observation under `inputs/`, what the policy gave under
//! `outputs/`, both flattened with `/`. What is needed to run the request again exactly stands beside the observation,
//! under `inputs/pi0/` and the names that a request itself has for it (see [`request`](super::request)): `noise`, or the
//! `seed` that the server drew it from, and of real-time chunking `previous`, `delay`, `method`, `schedule`,
//! `max_guidance_weight`. Invariant: [`message`] of [`recording`] asks for the very same actions.

use super::EXTENSIONS;
use super::request::{Answer, Method, Previous, Request, Schedule};
use super::tree::Tree;
use crate::data::recording::Recording;
use crate::policy::array::{Array, Values};
use crate::policy::record::{Record, Value};

/// What openpi's robots send flat, with the `/` in the key: `observation/state`. All others send dictionaries.
const FLAT: &str = "observation/";

/// One request and what it was answered.
pub fn recording(request: &Request, answer: &Answer) -> Recording {
    let mut inputs = request.observation.clone();
    let own = |name: &str| format!("{EXTENSIONS}/{name}");
    let extensions = request.extensions.as_ref();
    if let Some(noise) = extensions.and_then(|extensions| extensions.noise.as_ref()) {
        inputs.put_array(own("noise"), noise.clone());
    } else if let Some(seed) = answer.seed.or(extensions.and_then(|extensions| extensions.seed)) {
        match i64::try_from(seed) {
            Ok(seed) => inputs.put_array(own("seed"), Array::new([], Values::I64(vec![seed]))),
            // Beyond what a message carries; kept all the same, for people.
            Err(_) => inputs.put_text(own("seed"), seed.to_string()),
        }
    }
    if let Some(Previous { actions, delay, method }) = extensions.and_then(|extensions| extensions.previous.as_ref()) {
        inputs.put_array(own("previous"), actions.clone());
        inputs.put_array(own("delay"), Array::new([], Values::I64(vec![*delay as i64])));
        match method {
            Method::Frozen => inputs.put_text(own("method"), "frozen"),
            Method::Guided { schedule, max_guidance_weight } => {
                inputs.put_text(own("method"), "guided");
                inputs.put_text(own("schedule"), name(*schedule));
                inputs.put_array(own("max_guidance_weight"), Array::f64([], vec![f64::from(*max_guidance_weight)]));
            }
        }
    }
    let mut outputs = Record::default();
    for (key, value) in &answer.outputs {
        flatten(&mut outputs, key, value);
    }
    outputs.put_array("policy_timing/infer_ms", Array::f64([], vec![answer.infer_ms]));
    Recording { inputs, outputs }
}

fn name(schedule: Schedule) -> &'static str {
    match schedule {
        Schedule::Exp => "exp",
        Schedule::Linear => "linear",
        Schedule::Ones => "ones",
        Schedule::Zeros => "zeros",
    }
}

/// Was it kept what the actions began as? openpi's own recorder does not keep it.
pub fn noise_is_known(recording: &Recording) -> bool {
    ["noise", "seed"].iter().any(|name| recording.inputs.has(&format!("{EXTENSIONS}/{name}")))
}

/// What is sent to ask for the same actions again.
///
/// Keys become dictionaries again at each `/`, as openpi's ALOHA has them, but for those under `observation/`, which its
/// DROID and LIBERO send flat. A server of this project takes both.
pub fn message(recording: &Recording) -> Tree {
    let mut root = vec![];
    for (key, value) in &recording.inputs.values {
        let path: Vec<&str> = if key.starts_with(FLAT) { vec![key] } else { key.split('/').collect() };
        put(&mut root, &path, value);
    }
    Tree::Map(root)
}

fn put(members: &mut Vec<(String, Tree)>, path: &[&str], value: &Value) {
    let [name, rest @ ..] = path else { return };
    let leaf = || match value {
        Value::Text(text) => Tree::Text(text.clone()),
        Value::Array(array) => plain(array),
    };
    if !rest.is_empty() {
        let at = members.iter().position(|(known, inner)| known == name && matches!(inner, Tree::Map(_)));
        let at = at.unwrap_or_else(|| {
            members.push(((*name).to_owned(), Tree::Map(vec![])));
            members.len() - 1
        });
        match &mut members[at].1 {
            Tree::Map(inner) => return put(inner, rest, value),
            _ => return,
        }
    }
    members.push(((*name).to_owned(), leaf()));
}

/// Python's own numbers, as the recording holds them.
fn plain(array: &Array) -> Tree {
    match (&array.values, array.shape.as_slice()) {
        (Values::Bool(x), []) if x.len() == 1 => Tree::Bool(x[0]),
        (Values::I64(x), []) if x.len() == 1 => Tree::Int(x[0]),
        (Values::F64(x), []) if x.len() == 1 => Tree::Float(x[0]),
        _ => Tree::Array(array.clone()),
    }
}

/// An answer as a record. `None`, and lists that are no array, have no place in one and are left out.
pub fn record(answer: &Tree) -> Record {
    let mut record = Record::default();
    if let Tree::Map(members) = answer {
        for (key, value) in members {
            flatten(&mut record, key, value);
        }
    }
    record
}

fn flatten(record: &mut Record, key: &str, value: &Tree) {
    let scalar = |values| Array::new([], values);
    match value {
        Tree::Nil => {}
        Tree::Bool(x) => record.put_array(key, scalar(Values::Bool(vec![*x]))),
        Tree::Int(x) => record.put_array(key, scalar(Values::I64(vec![*x]))),
        Tree::Float(x) => record.put_array(key, scalar(Values::F64(vec![*x]))),
        Tree::Text(text) => record.put_text(key, text.clone()),
        Tree::Bytes(bytes) => record.put_array(key, Array::u8([bytes.len()], bytes.clone())),
        Tree::Array(array) => record.put_array(key, array.clone()),
        Tree::List(items) => {
            let numbers: Option<Vec<f64>> = items.iter().map(Tree::number).collect();
            if let Some(numbers) = numbers {
                record.put_array(key, Array::f64([numbers.len()], numbers));
            }
        }
        Tree::Map(members) => members.iter().for_each(|(name, value)| flatten(record, &format!("{key}/{name}"), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::recording;
    use crate::serve::request::Extensions;

    fn request(extensions: Option<Extensions>) -> Request {
        let mut observation = Record::default();
        observation.put_array("state", Array::f64([2], vec![0.5, 1.5]));
        observation.put_array("images/cam_high", Array::u8([1, 1, 3], vec![1, 2, 3]));
        observation.put_array("images/cam_low", Array::u8([1, 1, 3], vec![4, 5, 6]));
        observation.put_array("observation/gripper", Array::f64([], vec![0.25]));
        observation.put_text("prompt", "go");
        Request { observation, extensions }
    }

    fn answer(seed: Option<u64>) -> Answer {
        let actions = Tree::Array(Array::f32([1, 2], vec![0.5, 1.0]));
        let inner = Tree::Map(vec![("a".to_owned(), Tree::List(vec![Tree::Int(1), Tree::Float(0.5)]))]);
        let outputs = vec![("actions".to_owned(), actions), ("more".to_owned(), inner), ("none".to_owned(), Tree::Nil)];
        Answer { outputs, infer_ms: 61.25, seed }
    }

    #[test]
    fn a_message_has_the_dictionaries_that_openpis_robots_send() {
        let kept = recording(&request(None), &answer(Some(7)));
        let message = message(&kept);
        let images = message.get("images").unwrap();
        assert_eq!(images.get("cam_high"), Some(&Tree::Array(Array::u8([1, 1, 3], vec![1, 2, 3]))));
        assert_eq!(images.get("cam_low"), Some(&Tree::Array(Array::u8([1, 1, 3], vec![4, 5, 6]))));
        assert_eq!(message.get("observation/gripper"), Some(&Tree::Float(0.25)));
        assert_eq!(message.get("prompt"), Some(&Tree::Text("go".to_owned())));
        assert_eq!(message.get(EXTENSIONS).unwrap().get("seed"), Some(&Tree::Int(7)));
    }

    #[test]
    fn a_key_that_is_a_value_and_a_dictionary_keeps_both() {
        let mut kept = Recording::default();
        kept.inputs.put_text("a", "x");
        kept.inputs.put_text("a/b", "y");
        let Tree::Map(members) = message(&kept) else { panic!("a dictionary") };
        assert_eq!(members.len(), 2);
    }

    #[test]
    fn what_the_policy_gave_is_flat_and_has_its_time() {
        let kept = recording(&request(None), &answer(None));
        assert!(!noise_is_known(&kept));
        let keys: Vec<&str> = kept.outputs.values.keys().map(String::as_str).collect();
        assert_eq!(keys, ["actions", "more/a", "policy_timing/infer_ms"]);
        assert_eq!(kept.outputs.array("policy_timing/infer_ms").unwrap(), &Array::f64([], vec![61.25]));
        assert_eq!(kept.outputs.array("more/a").unwrap(), &Array::f64([2], vec![1.0, 0.5]));
    }

    #[test]
    fn chance_and_the_chunk_before_stand_beside_the_observation() {
        let previous = Previous {
            actions: Array::f32([2, 2], vec![1.0, 2.0, 3.0, 4.0]),
            delay: 2,
            method: Method::Guided { schedule: Schedule::Linear, max_guidance_weight: 5.0 },
        };
        let noise = Array::f32([1, 2], vec![0.1, -0.1]);
        let extensions = Extensions { noise: Some(noise.clone()), previous: Some(previous), ..Extensions::default() };
        let kept = recording(&request(Some(extensions)), &answer(None));
        assert!(noise_is_known(&kept));
        let bytes = recording::bytes(&kept).unwrap();
        let again = recording::parse(&bytes).unwrap();
        assert_eq!(again, kept);
        let own = message(&again).get(EXTENSIONS).cloned().unwrap();
        assert_eq!(own.get("noise"), Some(&Tree::Array(noise)));
        assert_eq!(own.get("seed"), None);
        assert_eq!(own.get("delay"), Some(&Tree::Int(2)));
        assert_eq!(own.get("method"), Some(&Tree::Text("guided".to_owned())));
        assert_eq!(own.get("schedule"), Some(&Tree::Text("linear".to_owned())));
        assert_eq!(own.get("max_guidance_weight"), Some(&Tree::Float(5.0)));
    }

    #[test]
    fn the_seed_that_the_server_drew_is_kept_where_none_was_told() {
        let told = Extensions { seed: Some(3), ..Extensions::default() };
        let seed = |request: &Request, seed| recording(request, &answer(seed)).inputs.get("pi0/seed").cloned();
        let whole = |n| Some(Value::Array(Array::new([], Values::I64(vec![n]))));
        assert_eq!(seed(&request(None), Some(9)), whole(9));
        assert_eq!(seed(&request(Some(told.clone())), Some(3)), whole(3));
        assert_eq!(seed(&request(Some(told)), None), whole(3));
        assert_eq!(seed(&request(None), None), None);
        assert_eq!(seed(&request(None), Some(u64::MAX)), Some(Value::Text(u64::MAX.to_string())));
    }
}
