//! A request and its answer as a recording; a recording as the message that was sent.
//!
//! Source: openpi 15a9616, policies/policy.py, PolicyRecorder: the observation under `inputs/`, what the policy gave under
//! `outputs/`, both flattened with `/`. What is needed to run the request again exactly stands beside the observation,
//! under `inputs/pi0/` and the names that a request itself has for it (see [`request`](super::request)): `noise`, or the
//! `seed` that the server drew it from, and of real-time chunking `previous`, `delay`, `method`, `schedule`,
//! `max_guidance_weight`. Invariant: [`message`] of [`recording`] asks for the very same actions.

use super::EXTENSIONS;
use super::request::{Extensions, Request, observation, put};
use super::tree::Tree;
use crate::data::recording::Recording;
use crate::policy::array::Values;
use crate::policy::record::{Fault, Record, Value};

/// One request and what it was answered. `outputs` is what the policy gave, openpi's `policy_timing` among it.
///
/// The deadline of a request is not kept: what came in time may come again. What has no place in a record (`None`, lists
/// of texts) is left out of the outputs.
///
/// # Errors
/// A seed of more than 63 bits, which no message carries.
pub fn recording(request: &Request, outputs: &Tree) -> Result<Recording, Fault> {
    let mut inputs = request.observation.clone();
    if let Some(extensions) = &request.extensions {
        let kept = Extensions { deadline: None, ..extensions.clone() };
        put(&mut inputs, EXTENSIONS.to_owned(), kept.tree()?)?;
    }
    Ok(Recording { inputs, outputs: record(outputs) })
}

/// Was it kept what the actions began as? openpi's own recorder does not keep it.
pub fn noise_is_known(recording: &Recording) -> bool {
    ["noise", "seed"].iter().any(|name| recording.inputs.has(&format!("{EXTENSIONS}/{name}")))
}

/// What is sent to ask for the same actions again.
pub fn message(recording: &Recording) -> Tree {
    let prefix = format!("{EXTENSIONS}/");
    let (mut robots, mut own) = (Record::default(), vec![]);
    for (key, value) in &recording.inputs.values {
        match key.strip_prefix(&prefix) {
            Some(name) => own.push((name.to_owned(), plain(value))),
            None => robots.put(key.clone(), value.clone()),
        }
    }
    let mut message = observation(&robots);
    if let Tree::Map(members) = &mut message
        && !own.is_empty()
    {
        members.push((EXTENSIONS.to_owned(), Tree::Map(own)));
    }
    message
}

/// Python's own numbers where the recording holds such.
fn plain(value: &Value) -> Tree {
    let array = match value {
        Value::Text(text) => return Tree::Text(text.clone()),
        Value::Array(array) => array,
    };
    match (&array.values, array.shape.as_slice()) {
        (Values::Bool(x), []) if x.len() == 1 => Tree::Bool(x[0]),
        (Values::I64(x), []) if x.len() == 1 => Tree::Int(x[0]),
        (Values::F64(x), []) if x.len() == 1 => Tree::Float(x[0]),
        _ => Tree::Array(array.clone()),
    }
}

/// An answer as a record; what has no place in one is left out.
pub fn record(answer: &Tree) -> Record {
    let mut record = Record::default();
    if let Tree::Map(members) = answer {
        for (key, value) in members {
            // Half a dictionary is better than none.
            let _ = put(&mut record, key.clone(), value.clone());
        }
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::recording;
    use crate::policy::array::Array;
    use crate::serve::request::{Method, Previous, Schedule};

    fn request(extensions: Option<Extensions>) -> Request {
        let mut observation = Record::default();
        observation.put_array("state", Array::f64([2], vec![0.5, 1.5]));
        observation.put_array("images/cam_high", Array::u8([1, 1, 3], vec![1, 2, 3]));
        observation.put_array("images/cam_low", Array::u8([1, 1, 3], vec![4, 5, 6]));
        observation.put_array("observation/gripper", Array::f64([], vec![0.25]));
        observation.put_text("prompt", "go");
        Request { observation, extensions }
    }

    fn outputs() -> Tree {
        let map = |key: &str, value| Tree::Map(vec![(key.to_owned(), value)]);
        Tree::Map(vec![
            ("actions".to_owned(), Tree::Array(Array::f32([1, 2], vec![0.5, 1.0]))),
            ("more".to_owned(), map("a", Tree::List(vec![Tree::Int(1), Tree::Float(0.5)]))),
            ("none".to_owned(), Tree::Nil),
            ("names".to_owned(), Tree::List(vec![Tree::Text("x".to_owned())])),
            ("policy_timing".to_owned(), map("infer_ms", Tree::Float(61.25))),
        ])
    }

    /// Kept, written, read, sent and understood again.
    fn there_and_back(request: &Request) -> Request {
        let kept = recording(request, &outputs()).unwrap();
        let read = recording::parse(&recording::bytes(&kept).unwrap()).unwrap();
        assert_eq!(read, kept);
        Request::parse(message(&read)).unwrap()
    }

    #[test]
    fn a_kept_request_asks_for_the_same_again() {
        let previous =
            |method| Some(Previous { actions: Array::f32([2, 2], vec![1.0, 2.0, 3.0, 4.0]), delay: 2, method });
        let guided = Method::Guided { schedule: Schedule::Linear, max_guidance_weight: 2.5 };
        let noise = Some(Array::f32([1, 2], vec![0.1, -0.1]));
        let all = [
            Extensions { seed: Some(7), ..Extensions::default() },
            Extensions { noise, previous: previous(guided), ..Extensions::default() },
            Extensions { seed: Some(0), previous: previous(Method::Frozen), ..Extensions::default() },
        ];
        for extensions in all {
            let request = request(Some(extensions));
            assert_eq!(there_and_back(&request), request);
            assert!(noise_is_known(&recording(&request, &outputs()).unwrap()));
        }
        let plain = request(None);
        assert_eq!(there_and_back(&plain), plain);
        assert!(!noise_is_known(&recording(&plain, &outputs()).unwrap()));
    }

    #[test]
    fn a_deadline_is_not_kept_and_a_seed_beyond_the_wire_is_refused() {
        let deadline = Some(std::time::Duration::from_millis(5));
        let late = Extensions { seed: Some(1), deadline, ..Extensions::default() };
        let again = there_and_back(&request(Some(late)));
        assert_eq!(again.extensions, Some(Extensions { seed: Some(1), ..Extensions::default() }));
        let beyond = request(Some(Extensions { seed: Some(u64::MAX), ..Extensions::default() }));
        assert!(recording(&beyond, &outputs()).unwrap_err().to_string().contains("pi0/seed"));
    }

    #[test]
    fn what_the_policy_gave_is_flat() {
        let kept = recording(&request(None), &outputs()).unwrap();
        let keys: Vec<&str> = kept.outputs.values.keys().map(String::as_str).collect();
        assert_eq!(keys, ["actions", "more/a", "policy_timing/infer_ms"]);
        assert_eq!(kept.outputs.array("policy_timing/infer_ms").unwrap(), &Array::f64([], vec![61.25]));
        assert_eq!(kept.outputs.array("more/a").unwrap(), &Array::f64([2], vec![1.0, 0.5]));
    }
}
