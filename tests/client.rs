//! `pi0 client` beside a server that speaks openpi's protocol: what it sends, what it measures, what it tells.
#![cfg(feature = "serve")]

mod tool;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pi0_burn::policy::array::Array;
use pi0_burn::serve::tree::Tree;
use pi0_burn::serve::wire::{Limits, decode, encode};
use tool::{done, pi0, refused};
use tungstenite::Message;

/// A server in this process; it holds what it was sent.
struct Server {
    port: String,
    seen: Arc<Mutex<Vec<Tree>>>,
}

fn map(members: Vec<(&str, Tree)>) -> Tree {
    Tree::Map(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Answers as openpi's server does; every request whose number, over all connections, is in `bad` is refused.
fn server(bad: &'static [usize]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port().to_string();
    let seen = Arc::new(Mutex::new(vec![]));
    let shared = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let seen = shared.clone();
            std::thread::spawn(move || {
                let mut socket = tungstenite::accept(stream.expect("a connection")).expect("a handshake");
                let metadata = map(vec![("reset_pose", Tree::List(vec![Tree::Float(-1.5)]))]);
                socket.send(Message::Binary(encode(&metadata).into())).expect("sent");
                let mut first = true;
                while let Ok(Message::Binary(bytes)) = socket.read() {
                    let number = {
                        let mut seen = seen.lock().expect("whole");
                        seen.push(decode(&bytes, &Limits::default()).expect("a message"));
                        seen.len() - 1
                    };
                    if bad.contains(&number) {
                        socket.send(Message::Text("state: it is missing".into())).expect("sent");
                        let _ = socket.close(None);
                        break;
                    }
                    let mut timing = vec![("infer_ms", Tree::Float(2.0))];
                    if !first {
                        timing.push(("prev_total_ms", Tree::Float(3.0)));
                    }
                    first = false;
                    let reply = map(vec![
                        ("actions", Tree::Array(Array::f32([2, 3], vec![0.125; 6]))),
                        ("policy_timing", map(vec![("infer_ms", Tree::Float(1.0))])),
                        ("server_timing", map(timing)),
                    ]);
                    socket.send(Message::Binary(encode(&reply).into())).expect("sent");
                }
                // Reading on lets the client's good-bye arrive before the socket is gone.
                while socket.read().is_ok() {}
            });
        }
    });
    Server { port, seen }
}

impl Server {
    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["client", "--port", &self.port], more].concat()
    }

    fn seen(&self) -> Vec<Tree> {
        std::mem::take(&mut *self.seen.lock().expect("whole"))
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn the_table_has_what_openpis_simple_client_measures() {
    let server = server(&[]);
    let text = done(&server.arguments(&["--num-steps", "5", "--env", "droid"]));
    for words in ["random, DROID", r#"{"reset_pose":[-1.5]}"#, "float32[2, 3]", "0 failed", "p99"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(server.seen().len(), 7, "two before the clock runs, then five");
    let report = json(&done(&server.arguments(&["--num-steps", "5", "--json"])));
    assert_eq!(report["requests"], 5);
    assert_eq!(report["observation"], "random, ALOHA_SIM");
    let timings = report["timings"].as_object().expect("an object");
    let names: Vec<&str> = timings.keys().map(String::as_str).collect();
    let mut expected = ["client_infer_ms", "policy_infer_ms", "server_infer_ms", "server_prev_total_ms"];
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(timings["server_prev_total_ms"]["p50"], 3.0);
    assert_eq!(timings["policy_infer_ms"]["count"], 5);
}

#[test]
fn requests_are_shared_among_clients_and_none_twice() {
    let server = server(&[]);
    let report = json(&done(&server.arguments(&["--clients", "4", "--num-steps", "21", "--env", "LIBERO", "--json"])));
    assert_eq!((&report["requests"], &report["failed"], &report["clients"]), (&21.into(), &0.into(), &4.into()));
    let mut states: Vec<String> =
        server.seen().iter().map(|tree| format!("{:?}", tree.get("observation/state"))).collect();
    assert_eq!(states.len(), 21 + 4 * 2);
    states.sort_unstable();
    states.dedup();
    // The warm-up sends the first two once more.
    assert_eq!(states.len(), 21);
}

#[test]
fn a_refused_request_is_told_of_and_the_next_goes_over_a_new_connection() {
    let server = server(&[3, 5]);
    let output = pi0(&server.arguments(&["--num-steps", "6", "--env", "LIBERO", "--json"]));
    assert_eq!(output.status.code(), Some(1));
    let report = json(&String::from_utf8(output.stdout).expect("text"));
    assert_eq!((&report["requests"], &report["failed"]), (&4.into(), &2.into()));
    assert_eq!(report["failures"]["the server says: state: it is missing"], 2);
}

#[test]
fn extensions_are_sent_only_where_they_are_said() {
    let server = server(&[]);
    done(&server.arguments(&["--num-steps", "1", "--env", "LIBERO"]));
    assert!(server.seen().iter().all(|tree| tree.get("pi0").is_none()));
    done(&server.arguments(&["--num-steps", "1", "--env", "LIBERO", "--seed", "7", "--deadline-ms", "500"]));
    let expected = map(vec![("seed", Tree::Int(7)), ("deadline_ms", Tree::Float(500.0))]);
    assert!(server.seen().iter().all(|tree| tree.get("pi0") == Some(&expected)));
    done(&server.arguments(&["--num-steps", "1", "--env", "LIBERO", "--ask"]));
    assert!(server.seen().iter().all(|tree| tree.get("pi0") == Some(&map(vec![]))));
}

#[test]
fn kept_observations_and_frames_of_datasets_have_the_robots_own_keys() {
    let server = server(&[]);
    let step = fixture("recordings/aloha/step_0.npy");
    let step = step.to_str().expect("text");
    done(&server.arguments(&["--num-steps", "1", "--observation", step, "--prompt", "wave", "--show-action-chunk"]));
    let seen = server.seen().pop().expect("a request");
    assert_eq!(
        seen.get("images").and_then(|images| images.get("cam_high")).map(Tree::kind).unwrap(),
        "uint8[3, 16, 24]"
    );
    assert_eq!(seen.get("prompt"), Some(&Tree::Text("wave".to_owned())));

    let data = fixture("lerobot/libero_png");
    let data = data.to_str().expect("text");
    let report = done(&server.arguments(&["--num-steps", "3", "--dataset", data, "--config", "pi05_libero", "--json"]));
    assert!(json(&report)["observation"].as_str().expect("text").contains("episode 0"), "{report}");
    let seen = server.seen();
    let last = seen.last().expect("a request");
    for key in ["observation/image", "observation/wrist_image", "observation/state"] {
        assert!(matches!(last.get(key), Some(Tree::Array(_))), "{key}: {last:?}");
    }
    assert!(matches!(last.get("prompt"), Some(Tree::Text(_))) && last.get("actions").is_none());
    assert_ne!(seen[2], seen[3], "frames in turn");
}

#[test]
fn times_are_written_for_each_request() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let server = server(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("deep/timing.parquet");
    done(&server.arguments(&["--num-steps", "4", "--env", "LIBERO", "--timing-file", path.to_str().expect("text")]));
    let reader = SerializedFileReader::new(std::fs::File::open(&path).expect("written")).expect("parquet");
    let metadata = reader.metadata().file_metadata();
    assert_eq!(metadata.num_rows(), 4);
    let names: Vec<&str> = metadata.schema().get_fields().iter().map(|field| field.name()).collect();
    assert_eq!(names, ["client_infer_ms", "policy_infer_ms", "server_infer_ms", "server_prev_total_ms"]);
    let path = folder.path().join("timing.json");
    done(&server.arguments(&["--num-steps", "4", "--env", "LIBERO", "--timing-file", path.to_str().expect("text")]));
    let all = json(&std::fs::read_to_string(&path).expect("written"));
    assert_eq!(all["policy_infer_ms"], serde_json::json!([1.0, 1.0, 1.0, 1.0]));
}

#[test]
fn what_cannot_be_is_refused_before_a_request_is_sent() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port().to_string();
    assert!(refused(&["client", "--port", &free]).contains("is the server up, and is this its port?"));
    assert!(refused(&["client", "--host", "wss://robot"]).contains("ssh -L"));
    assert!(refused(&["client", "--env", "ALOHA_SIMM"]).contains("the nearest is ALOHA_SIM"));
    assert!(refused(&["client", "--timing-file", "a.csv"]).contains(".parquet or .json"));
    assert!(refused(&["client", "--num-steps", "0"]).contains("1.."));
    assert!(refused(&["client", "--observation", "nowhere.json"]).contains("there is nothing under this path"));
}
