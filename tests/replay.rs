//! `pi0 replay` against a server that speaks openpi's protocol: what was recorded is asked again and held against itself.
#![cfg(feature = "serve")]

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pi0_burn::cli::output::Mouth;
use pi0_burn::cli::replay::{Infer, replay, steps};
use pi0_burn::policy::array::Array;
use pi0_burn::serve::client::{Address, Client, Settings as ClientSettings};
use pi0_burn::serve::policy::{Policy, Refusal};
use pi0_burn::serve::recorder::{Recorder, Room};
use pi0_burn::serve::request::{Answer, Extensions, Request, observation as message};
use pi0_burn::serve::server::{Server, Settings, Stop};
use pi0_burn::serve::tree::Tree;
use pi0_burn::serve::wire::{Limits, decode, encode};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

/// Horizon steps and joints of the answers.
const CHUNK: [usize; 2] = [6, 3];

fn map<const N: usize>(members: [(&str, Tree); N]) -> Tree {
    Tree::Map(members.map(|(key, value)| (key.to_owned(), value)).to_vec())
}

/// A policy without a network: actions by the state, the seed, the step and the joint.
fn policy(request: &Request, drawn: u64) -> (u64, Tree) {
    let seed = request.extensions.as_ref().and_then(|extensions| extensions.seed).unwrap_or(drawn);
    let state = request.observation.array("state").expect("a state").values.to_f64()[0];
    let of = |i: usize| (state + seed as f64 * 0.01 + (i / CHUNK[1]) as f64 + (i % CHUNK[1]) as f64 * 0.1) as f32;
    let actions = Array::f32(CHUNK, (0..CHUNK[0] * CHUNK[1]).map(of).collect());
    let timing = map([("infer_ms", Tree::Float(7.5))]);
    (seed, map([("actions", Tree::Array(actions)), ("policy_timing", timing)]))
}

fn observation(n: u64) -> Request {
    let mut request = Request::default();
    request.observation.put_array("state", Array::f64([2], vec![n as f64, 0.0]));
    request.observation.put_array("images/cam_high", Array::u8([1, 2, 3], vec![n as u8; 6]));
    request.observation.put_text("prompt", "fold the towel");
    request
}

/// A folder as `pi0 serve --record` leaves it: each request with the seed that was drawn for it.
fn record(folder: &Path, count: u64) {
    let recorder = Recorder::open(folder, Room::default(), |event| panic!("{event:?}")).expect("a folder");
    for n in 0..count {
        let mut request = observation(n);
        let (seed, outputs) = policy(&request, 40 + n);
        request.extensions = Some(Extensions { seed: Some(seed), ..Extensions::default() });
        recorder.keep(&request, &outputs);
    }
    assert_eq!(recorder.close().written, count);
}

type Answering = dyn Fn(&Request) -> Result<Tree, String> + Send + Sync;

/// A server of openpi's protocol; gives its address. It ends with the test's process.
fn serve(answering: impl Fn(&Request) -> Result<Tree, String> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let answering: Arc<Answering> = Arc::new(answering);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answering = Arc::clone(&answering);
            std::thread::spawn(move || talk(stream, &*answering));
        }
    });
    address
}

/// As openpi's server: metadata, replies; a refusal is a text frame and the end with 1011.
fn talk(stream: TcpStream, answering: &Answering) {
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    let _ = socket.send(Message::Binary(encode(&map([("robot", Tree::Text("none".to_owned()))])).into()));
    while let Ok(message) = socket.read() {
        let Message::Binary(bytes) = message else { continue };
        let request = Request::parse(decode(&bytes, &Limits::default()).expect("a message")).expect("a request");
        match answering(&request) {
            Ok(reply) => drop(socket.send(Message::Binary(encode(&reply).into()))),
            Err(text) => {
                let _ = socket.send(Message::Text(text.into()));
                let reason = "Internal server error. Traceback included in previous frame.".into();
                let _ = socket.close(Some(CloseFrame { code: CloseCode::Error, reason }));
            }
        }
    }
}

fn honest() -> String {
    serve(|request| Ok(policy(request, 0).1))
}

/// Joint 1 is half a unit away from horizon step 3 on, in the second recording alone.
fn astray() -> String {
    serve(|request| {
        let (_, mut reply) = policy(request, 0);
        if request.observation.array("state").expect("a state").values.to_f64()[0] == 1.0
            && let Tree::Map(members) = &mut reply
            && let Some((_, Tree::Array(actions))) = members.first_mut()
            && let pi0_burn::policy::array::Values::F32(values) = &mut actions.values
        {
            values.chunks_mut(CHUNK[1]).skip(3).for_each(|step| step[1] += 0.5);
        }
        Ok(reply)
    })
}

fn pi0(folder: &Path, server: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pi0"));
    command.arg("replay").arg(folder).args(["--server", server]).args(more).output().expect("pi0")
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_server_that_answers_as_it_did_is_equal_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    record(folder.path(), 12);
    let output = pi0(folder.path(), &honest(), &[]);
    let text = words(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("12 equal bit for bit (tolerance 0)"), "{text}");
    assert!(text.contains("step_11.npy") && !text.contains("departs"), "{text}");
}

#[test]
fn the_recording_the_step_and_the_joint_that_depart_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    record(folder.path(), 3);
    let server = astray();
    let output = pi0(folder.path(), &server, &[]);
    let text = words(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("2 equal bit for bit, 1 outside the tolerance"), "{text}");
    assert!(text.contains("The first that departs is step_1.npy: joint 1 at horizon step 3: recorded"), "{text}");

    let output = pi0(folder.path(), &server, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["holds"], false);
    assert_eq!(report["recordings"][1]["held"]["verdict"], "outside");
    assert_eq!(report["recordings"][1]["held"]["first"]["step"], 3);
    assert_eq!(report["recordings"][1]["replayed_ms"], 7.5);
    assert_eq!(report["comparison"]["joints"][1]["errors"]["max_abs"], 0.5);
    assert_eq!(report["comparison"]["steps"][2]["max_abs"], 0.0);

    let output = pi0(folder.path(), &server, &["--tolerance", "0.6"]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    assert!(words(&output).contains("1 within the tolerance"));
    let output = pi0(folder.path(), &server, &["--limit", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    assert!(words(&output).starts_with("recording") && words(&output).contains("1 replayed"));
    let output = pi0(&folder.path().join("step_1.npy"), &server, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
}

#[test]
fn what_openpis_own_recorder_kept_is_compared_as_far_as_it_can_be() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recordings/aloha");
    let answer = |dims: usize| {
        let counter = AtomicU64::new(0);
        move |request: &Request| {
            assert!(request.extensions.is_none(), "nothing is asked that openpi does not know");
            let n = counter.fetch_add(1, Ordering::Relaxed) as f32;
            let actions = Array::f32([50, dims], (0..50 * dims).map(|i| (i as f32 * 0.37 + n).sin()).collect());
            let state = request.observation.array("state").expect("a state").clone();
            Ok(map([("actions", Tree::Array(actions)), ("state", Tree::Array(state))]))
        }
    };
    let output = pi0(&fixtures, &serve(answer(14)), &[]);
    let text = words(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("2 of unknown noise and otherwise alike"), "{text}");
    assert!(text.contains("openpi's recorder does not keep it") && text.contains("shift/std"), "{text}");
    // A shape is no matter of chance.
    let output = pi0(&fixtures, &serve(answer(7)), &[]);
    let text = words(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("actions: recorded is float32[50, 14], replayed is float32[50, 7]"), "{text}");
}

#[test]
fn a_refusal_is_a_line_and_the_next_is_asked_on_a_new_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    record(folder.path(), 3);
    std::fs::write(folder.path().join("step_3.npy"), b"half").expect("written");
    let server = serve(|request| match request.observation.array("state").expect("a state").values.to_f64()[0] {
        0.0 => Err("state: expected float32[14], found float64[2]".to_owned()),
        _ => Ok(policy(request, 0).1),
    });
    let output = pi0(folder.path(), &server, &[]);
    let text = words(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("state: expected float32[14], found float64[2]"), "{text}");
    assert!(text.contains("2 equal bit for bit, 2 without an answer"), "{text}");
    assert!(text.contains("no numpy file"), "{text}");
}

#[test]
fn recorded_and_replayed_actions_are_drawn() {
    let folder = tempfile::tempdir().expect("a folder");
    record(folder.path(), 3);
    let server = astray();
    let path = folder.path().join("out.svg");
    let plot = path.to_str().expect("a name");
    let output = pi0(folder.path(), &server, &["--plot", plot]);
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(words(&output).contains("written: "));
    let svg = std::fs::read_to_string(&path).expect("a picture");
    assert_eq!(svg.matches("<path class=\"replayed\" d=\"M").count(), 1 + CHUNK[1], "the legend and the joints");
    assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
    let output = pi0(folder.path(), &server, &["--plot", plot]);
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output).contains("--overwrite replaces it"), "{}", words(&output));
    let output = pi0(folder.path(), &server, &["--plot", "out.png"]);
    assert!(words(&output).contains("drawn as a .svg"), "{}", words(&output));
}

#[test]
fn where_nothing_can_be_compared_the_exit_code_is_two() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = pi0(folder.path(), "localhost:1", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output).contains("expected recordings step_N.npy"), "{}", words(&output));
    record(folder.path(), 1);
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let output = pi0(folder.path(), &free.to_string(), &[]);
    assert_eq!(output.status.code(), Some(2), "{}", words(&output));
    assert!(words(&output).contains("is the server up"), "{}", words(&output));
    let output = pi0(folder.path(), "localhost:1", &["--tolerance=-1"]);
    assert!(words(&output).contains("expected a distance"), "{}", words(&output));
}

/// The policy behind the real server. Its noise is drawn from a seed that no two requests share.
struct Seeded(AtomicU64);

impl Policy for Seeded {
    type Ready = Request;

    fn metadata(&self) -> Tree {
        map([])
    }

    fn prepare(&self, request: Request) -> Result<Request, Refusal> {
        Ok(request)
    }

    fn infer(&self, batch: Vec<Request>) -> Vec<Result<Answer, Refusal>> {
        let one = |request: &Request| {
            let (seed, outputs) = policy(request, self.0.fetch_add(1, Ordering::Relaxed));
            let Tree::Map(mut outputs) = outputs else { panic!("a dictionary") };
            outputs.retain(|(key, _)| key == "actions");
            Ok(Answer { outputs, infer_ms: 7.5, seed: Some(seed) })
        };
        batch.iter().map(one).collect()
    }
}

fn start(first_seed: u64, tap: Option<Arc<Recorder>>) -> (String, Stop, std::thread::JoinHandle<()>) {
    let mut settings = Settings::default();
    if let Some(tap) = tap {
        settings.tap = Some(tap);
    }
    let server = Server::bind("127.0.0.1", 0, settings).expect("a port");
    let (address, stop) = (server.address().to_string(), server.stop());
    let run = move || server.run(Arc::new(Seeded(AtomicU64::new(first_seed))), Arc::new(|_| {})).expect("served");
    (address, stop, std::thread::spawn(run))
}

#[test]
fn what_the_server_kept_of_a_robot_that_knows_no_seeds_is_replayed_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let recorder = Recorder::open(folder.path(), Room::default(), |event| panic!("{event:?}")).expect("a folder");
    let recorder = Arc::new(recorder);
    let (address, stop, serving) = start(1000, Some(Arc::clone(&recorder)));
    let settings = ClientSettings::new(Address::parse(&address, None).expect("an address"));
    let mut robot = Client::connect(&settings, |_| {}).expect("a server");
    for n in 0..5 {
        robot.infer(&message(&observation(n).observation)).expect("actions");
    }
    robot.close();
    stop.stop();
    serving.join().expect("an end");
    let counts = Arc::into_inner(recorder).expect("the server has let go of it").close();
    assert_eq!(counts.written, 5);

    // Another server would draw other seeds.
    let (address, stop, serving) = start(5, None);
    let output = pi0(folder.path(), &address, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    assert!(words(&output).contains("5 equal bit for bit"), "{}", words(&output));
    stop.stop();
    serving.join().expect("an end");
}

/// Without a socket: what a policy in this process would be.
struct Here {
    asked: Vec<f64>,
    left: usize,
}

impl Infer for Here {
    fn infer(&mut self, message: &Tree) -> anyhow::Result<Result<Tree, String>> {
        anyhow::ensure!(self.left > 0, "the device is gone");
        self.left -= 1;
        let request = Request::parse(message.clone())?;
        self.asked.push(request.observation.array("state")?.values.to_f64()[0]);
        Ok(Ok(policy(&request, 0).1))
    }

    fn name(&self) -> String {
        "here".to_owned()
    }
}

#[test]
fn recordings_are_asked_in_the_order_of_their_numbers_by_whoever_is_behind_the_trait() {
    let folder = tempfile::tempdir().expect("a folder");
    record(folder.path(), 11);
    let found: Vec<(u64, PathBuf)> = steps(folder.path(), None).expect("recordings");
    let mouth = Mouth::new(false);
    let mut here = Here { asked: vec![], left: 100 };
    let report = replay(&found, &mut here, 0.0, None, &mouth).expect("a report");
    assert_eq!(here.asked, (0..11).map(f64::from).collect::<Vec<_>>());
    assert!(report.holds && report.comparison.equal == 11, "{report}");
    let mut gone = Here { asked: vec![], left: 2 };
    let error = format!("{:#}", replay(&found, &mut gone, 0.0, None, &mouth).expect_err("an end"));
    assert!(error.contains("step_2.npy") && error.contains("the device is gone"), "{error}");
}
