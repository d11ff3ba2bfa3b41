//! `pi0 serve` as a robot meets it: the answers that `pi0 sample` gives, recorded, replayed, verified; and what is no
//! observation is told by its key.
#![cfg(feature = "model")]

mod tool;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pi0_burn::policy::array::{Array, Values};
use pi0_burn::policy::chunking::{Method, Schedule};
use pi0_burn::serve::client::{Address, Client, ClientError, Settings};
use pi0_burn::serve::request::{Extensions, Previous};
use pi0_burn::serve::tree::Tree;
use serde_json::Value;
use tool::{done, pi0, refused};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn checkpoint(model: &str) -> String {
    root().join("fixtures/checkpoints/policy").join(model).display().to_string()
}

/// A server that is there, until it is dropped.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(config: &str, model: &str, more: &[&str]) -> Self {
        let from = checkpoint(model);
        let mut arguments = vec!["serve", "--json", "--port", "0", "--config", config, "--checkpoint-dir", &from];
        arguments.extend(more);
        let mut child = Command::new(env!("CARGO_BIN_EXE_pi0"))
            .args(&arguments)
            .env_remove("PI0_API_KEY")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("pi0 runs");
        // It says where it listens when it is warm.
        let mut text = String::new();
        for line in BufReader::new(child.stdout.take().expect("stdout")).lines() {
            text += &line.expect("text");
            if text.trim_end().ends_with('}') && serde_json::from_str::<Value>(&text).is_ok() {
                break;
            }
        }
        let about: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {text}"));
        Served { child, address: about["address"].as_str().expect("an address").to_owned() }
    }

    fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    fn client(&self) -> Client {
        self.try_client(None).expect("connected")
    }

    fn try_client(&self, key: Option<&str>) -> Result<Client, ClientError> {
        let mut settings = Settings::new(Address::parse(&self.url(), None).expect("an address"));
        settings.api_key = key.map(str::to_owned);
        Client::connect(&settings, |_| {})
    }

    /// As an operator ends it; gives the exit code.
    fn end(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let told = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().expect("sh");
        assert!(told.success());
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(tree: &str) -> Tree {
    Tree::Text(tree.to_owned())
}

fn map(members: Vec<(&str, Tree)>) -> Tree {
    Tree::Map(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// What a LIBERO robot sees, by a small formula.
fn libero(state: f64) -> Tree {
    let picture =
        |shift: usize| Tree::Array(Array::u8([64, 80, 3], (0..64 * 80 * 3).map(|i| (i * 7 + shift) as u8).collect()));
    map(vec![
        ("observation/state", Tree::Array(Array::f64([8], (0..8).map(|i| state + 0.01 * f64::from(i)).collect()))),
        ("observation/image", picture(0)),
        ("observation/wrist_image", picture(99)),
        ("prompt", text("put the bowl on the plate")),
    ])
}

fn with(message: Tree, extensions: &Extensions) -> Tree {
    extensions.beside(message).expect("sound extensions")
}

fn seeded(seed: u64) -> Extensions {
    Extensions { seed: Some(seed), ..Extensions::default() }
}

fn actions(answer: &Tree) -> &Array {
    let Some(Tree::Array(actions)) = answer.get("actions") else { panic!("no actions: {answer:?}") };
    actions
}

/// The same observation in files, as `pi0 sample` reads them.
fn document(folder: &Path, state: f64) -> PathBuf {
    let Tree::Map(members) = libero(state) else { unreachable!() };
    let mut document = serde_json::Map::new();
    for (key, value) in members {
        let value = match value {
            Tree::Text(text) => Value::from(text),
            Tree::Array(Array { values: Values::F64(x), .. }) => Value::from(x),
            Tree::Array(Array { shape, values: Values::U8(bytes) }) => {
                let name = format!("{}.npy", key.replace('/', "_"));
                let shape: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
                std::fs::write(folder.join(&name), orbax::npy_bytes(orbax::Dtype::U8, &shape, &bytes).unwrap())
                    .unwrap();
                Value::from(name)
            }
            other => panic!("{other:?}"),
        };
        document.insert(key, value);
    }
    let path = folder.join("observation.json");
    std::fs::write(&path, serde_json::to_vec(&document).unwrap()).unwrap();
    path
}

fn sampled(config: &str, model: &str, path: &Path, seed: u64, more: &[&str]) -> Vec<f64> {
    let (from, seed, path) = (checkpoint(model), seed.to_string(), path.display().to_string());
    let arguments = ["sample", "--json", "--config", config, "--checkpoint-dir", &from, "--observation", &path];
    let told = done(&[&arguments[..], &["--seed", &seed], more].concat());
    let told: Value = serde_json::from_str(&told).unwrap();
    let rows = told["inferred"][0]["actions"].as_array().unwrap().clone();
    rows.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn actions_over_the_wire_are_those_of_sample_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = document(folder.path(), 0.2);
    for (config, model) in [("pi0_libero", "pi0"), ("pi05_libero", "pi05"), ("pi0_fast_libero", "pi0_fast")] {
        let codec = root().join("fixtures/tokenizer/fast_tiny").display().to_string();
        let fast = ["--constrained", "--temperature", "0.5", "--fast-tokenizer", &codec];
        let more: &[&str] = if model == "pi0_fast" { &fast } else { &[] };
        let served = Served::start(config, model, more);
        let mut client = served.client();
        assert_eq!(client.metadata(), &map(vec![]));
        let answer = client.infer(&with(libero(0.2), &seeded(7))).unwrap_or_else(|e| panic!("{config}: {e}"));
        assert_eq!(actions(&answer).values.to_f64(), sampled(config, model, &path, 7, more), "{config}");
        let Some(Tree::Map(told)) = answer.get("pi0") else { panic!("{answer:?}") };
        assert!(told.iter().any(|(key, value)| key == "seed" && *value == Tree::Int(7)), "{told:?}");
        // Again, and between the two another client with another observation.
        served.client().infer(&libero(-0.4)).unwrap();
        let again = client.infer(&with(libero(0.2), &seeded(7))).unwrap();
        assert_eq!(actions(&again), actions(&answer), "{config}");
        // Who asks for nothing more is told nothing more, in openpi's order.
        let plain = client.infer(&libero(0.2)).unwrap();
        let Tree::Map(members) = &plain else { panic!("{plain:?}") };
        let keys: Vec<&str> = members.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["actions", "policy_timing", "server_timing"]);
        assert_eq!(served.end(), Some(0));
    }
}

#[test]
fn noise_over_the_wire_is_what_the_actions_begin_as() {
    let served = Served::start("pi0_libero", "pi0", &["--num-steps", "3"]);
    let mut client = served.client();
    let drawn = client.infer(&with(libero(0.1), &seeded(3))).unwrap();
    let horizon = actions(&drawn).shape[0];
    let dim = 32;
    let noise = pi0_burn::chance::Stream::new(3, "noise", 0).normals(horizon * dim);
    let noise = Extensions { noise: Some(Array::f32([horizon, dim], noise)), ..Extensions::default() };
    let given = client.infer(&with(libero(0.1), &noise)).unwrap();
    assert_eq!(actions(&given), actions(&drawn));
    assert!(given.get("pi0").is_some_and(|told| told.get("seed").is_none()));
    let zeros = Extensions { noise: Some(Array::f32([horizon, dim], vec![0.0; horizon * dim])), ..noise };
    assert_ne!(actions(&client.infer(&with(libero(0.1), &zeros)).unwrap()), actions(&drawn));
}

#[test]
fn a_chunk_goes_on_from_the_last_one() {
    let served = Served::start("pi0_libero", "pi0", &[]);
    let mut client = served.client();
    let first = actions(&client.infer(&with(libero(0.1), &seeded(1))).unwrap()).clone();
    let [horizon, width] = first.shape[..] else { panic!("{first}") };
    let left = horizon - 4;
    let values = first.values.to_f64()[4 * width..].to_vec();
    let ask = |client: &mut Client, method: Option<Method>, seed: u64| {
        let previous =
            method.map(|method| Previous { actions: Array::f64([left, width], values.clone()), delay: 2, method });
        let extensions = Extensions { previous, ..seeded(seed) };
        actions(&client.infer(&with(libero(0.11), &extensions)).unwrap()).values.to_f64()
    };
    let away = |chunk: &[f64]| {
        let both = chunk[..2 * width].iter().zip(&values);
        both.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    let plain = ask(&mut client, None, 2);
    let frozen = ask(&mut client, Some(Method::Frozen), 2);
    let guided = Method::Guided { schedule: Schedule::Exp, max_guidance_weight: 5.0 };
    let guided = ask(&mut client, Some(guided), 2);
    let (plain, frozen, guided) = (away(&plain), away(&frozen), away(&guided));
    assert!(frozen < 1e-5, "what is frozen comes back as it went: {frozen}");
    assert!(guided < plain / 2.0, "guided {guided}, plain {plain}");
    let none = Method::Guided { schedule: Schedule::Exp, max_guidance_weight: f32::MIN_POSITIVE };
    let none = away(&ask(&mut client, Some(none), 2));
    assert!((none - plain).abs() < 1e-3 * plain, "nothing pulls: {none}, {plain}");
}

#[test]
fn what_is_no_observation_is_told_by_its_key_and_the_next_one_is_served() {
    let served = Served::start("pi0_libero", "pi0", &["--num-steps", "2"]);
    let refusal = |message: Tree| match served.client().infer(&message) {
        Err(error) => error.to_string(),
        Ok(answer) => panic!("{answer:?}"),
    };
    let change = |key: &str, value: Option<Tree>| {
        let Tree::Map(members) = libero(0.1) else { unreachable!() };
        let kept = members.into_iter().filter(|(name, _)| name != key);
        Tree::Map(kept.chain(value.map(|value| (key.to_owned(), value))).collect())
    };
    let missing = refusal(change("observation/image", None));
    assert!(missing.contains("observation/image: it is missing"), "{missing}");
    let narrow = refusal(change("observation/state", Some(Tree::Array(Array::f64([3], vec![0.0; 3])))));
    assert!(narrow.contains("observation/state") && narrow.contains("float64[3]"), "{narrow}");
    let nan = refusal(change("observation/state", Some(Tree::Array(Array::f64([8], vec![f64::NAN; 8])))));
    assert!(nan.contains("observation/state") && nan.contains("NaN"), "{nan}");
    let flat = refusal(change("observation/wrist_image", Some(Tree::Array(Array::u8([12], vec![0; 12])))));
    assert!(flat.contains("observation/wrist_image"), "{flat}");
    let noise = Extensions { noise: Some(Array::f32([2, 8], vec![0.0; 16])), ..Extensions::default() };
    let noise = refusal(with(libero(0.1), &noise));
    assert!(noise.contains("pi0/noise"), "{noise}");
    for words in [missing, narrow, nan, flat, noise] {
        assert!(!words.contains(".rs") && !words.contains(env!("CARGO_MANIFEST_DIR")), "no trace, no path: {words}");
    }
    assert!(served.client().infer(&libero(0.1)).is_ok());
}

#[test]
fn observations_that_wait_go_through_the_model_together_and_answer_as_if_alone() {
    let served = Served::start("pi0_libero", "pi0", &["--max-batch", "4", "--max-wait-ms", "500"]);
    let alone: Vec<Array> = (0..4)
        .map(|i| {
            let message = with(libero(0.1 * f64::from(i)), &seeded(i as u64));
            actions(&served.client().infer(&message).unwrap()).clone()
        })
        .collect();
    let mut clients: Vec<Client> = (0..4).map(|_| served.client()).collect();
    let answers: Vec<Tree> = std::thread::scope(|scope| {
        let ask = |(i, client): (usize, &mut Client)| {
            let message = with(libero(0.1 * i as f64), &seeded(i as u64));
            client.infer(&message).unwrap()
        };
        let threads: Vec<_> = clients.iter_mut().enumerate().map(|each| scope.spawn(move || ask(each))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let batch = |answer: &Tree| answer.get("pi0").and_then(|told| told.get("batch")).and_then(Tree::number);
    assert!(answers.iter().any(|answer| batch(answer) > Some(1.0)), "{answers:?}");
    for (answer, alone) in answers.iter().zip(&alone) {
        let (found, expected) = (actions(answer).values.to_f64(), alone.values.to_f64());
        let most = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart <= 1e-5 * most, "{apart} of {most}");
    }
}

#[test]
fn what_is_recorded_is_replayed_to_the_bit_by_a_server_and_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("records").display().to_string();
    let served = Served::start("pi05_libero", "pi05", &["--record", &records]);
    let mut client = served.client();
    client.infer(&libero(0.3)).unwrap();
    client.infer(&with(libero(0.4), &seeded(11))).unwrap();
    let url = served.url();
    drop(client);
    // What was recorded is there at the latest when the server has ended.
    assert_eq!(served.end(), Some(0));
    let names: Vec<_> = std::fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let from = checkpoint("pi05");
    let own = ["replay", &records, "--json", "--config", "pi05_libero", "--checkpoint-dir", &from];
    done(&own);
    let served = Served::start("pi05_libero", "pi05", &[]);
    done(&["replay", &records, "--json", "--server", &served.url()]);
    // Other weights: the answer is no.
    let other = Served::start("pi0_libero", "pi0", &[]);
    let output = pi0(&["replay", &records, "--json", "--server", &other.url()]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(refused(&["replay", &records, "--server", &url]).contains(url.trim_start_matches("ws://")));
}

#[test]
fn a_server_is_verified_against_a_checkpoint() {
    let served = Served::start("pi0_libero", "pi0", &[]);
    let from = checkpoint("pi0");
    let url = served.url();
    let verify = |from: &str, config: &str| {
        let all = ["verify", "--json", "--server", &url, "--checkpoint", from, "--config", config];
        pi0(&[&all[..], &["--observations", "2"]].concat())
    };
    let same = verify(&from, "pi0_libero");
    assert_eq!(same.status.code(), Some(0), "{}", String::from_utf8_lossy(&same.stdout));
    let report: Value = serde_json::from_slice(&same.stdout).unwrap();
    assert_eq!(report["lines"].as_array().unwrap().len(), 2);
    assert!(report["lines"].as_array().unwrap().iter().all(|line| line["max_abs"] == 0.0), "{report:#}");
    // The same weights, run otherwise: the answer is no.
    let other = Served::start("pi0_libero", "pi0", &["--num-steps", "3"]);
    let all = ["verify", "--json", "--server", &other.url(), "--checkpoint", &from, "--config", "pi0_libero"];
    assert_eq!(pi0(&all).status.code(), Some(1));
    // Another model's noise has another shape, and the server says so.
    let output = verify(&checkpoint("pi05"), "pi05_libero");
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("pi0/noise"), "{told}");
    assert!(refused(&["verify", "--server", &url, "--checkpoint", &from]).contains("--config"));
}

#[test]
fn only_the_key_opens_a_server_that_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "a secret\n").unwrap();
    let served = Served::start("pi0_aloha", "pi0", &["--num-steps", "1", "--api-key-file", file.to_str().unwrap()]);
    assert!(served.try_client(None).is_err());
    assert!(served.try_client(Some("a secre")).is_err());
    let client = served.try_client(Some("a secret")).unwrap();
    // ALOHA's own metadata.
    let Some(Tree::List(pose)) = client.metadata().get("reset_pose") else { panic!("{:?}", client.metadata()) };
    assert_eq!(pose.len(), 6);
}

#[test]
fn what_cannot_be_served_is_refused_with_a_hint() {
    let from = checkpoint("pi0");
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    let taken = ["serve", "--config", "pi0_libero", "--checkpoint-dir", &from, "--num-steps", "1", "--port", &port];
    assert!(refused(&taken).contains(&format!("127.0.0.1:{port}")) || refused(&taken).contains(&port));
    assert!(refused(&["serve"]).contains("--env LIBERO"));
    assert!(refused(&["serve", "--config", "pi05_libero", "--checkpoint-dir", &from]).contains("pi05"));
    let help = done(&["serve", "--help"]);
    assert!(help.contains("--policy.config") && help.contains("Examples:"), "{help}");
}
