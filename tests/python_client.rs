//! Robots that today talk to openpi's Python server: the unmodified Python client (PyPI, openpi-client 0.1.2) asks `pi0 serve`,
//! and what it is answered is held by tests/python/*.py.
//!
//! Those tests pass against openpi's own server too, but for what only this one does (tests/python/README.md), so that it is
//! not our idea of the protocol that is tested. Without a Python that has the client they are skipped, loudly: `.ci/run` makes
//! one in target/python; PI0_PYTHON names another.
#![cfg(feature = "model")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

/// How long a server may take until it listens, on a machine with much else to do.
const STARTS: Duration = Duration::from_secs(240);
/// How long it may take to end.
const ENDS: Duration = Duration::from_secs(60);
/// ALOHA's, as its presets have it.
const RESET_POSE: &str = r#"{"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn checkpoint(model: &str) -> PathBuf {
    root().join("fixtures/checkpoints/policy").join(model)
}

/// A Python with the client. `None`, said once and past the test runner's capture, where there is none.
fn python() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PI0_PYTHON") {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "PI0_PYTHON names {}, which is no file", named.display());
        return Some(named);
    }
    let build = Path::new(env!("CARGO_BIN_EXE_pi0")).ancestors().nth(2).map(Path::to_owned);
    let places = build.into_iter().chain([root().join("target")]).map(|folder| folder.join("python/bin/python"));
    let found = places.into_iter().find(|path| path.is_file());
    if found.is_none() {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            let words = "SKIPPED: the tests with openpi's Python client: no target/python with openpi-client. `.ci/run` makes it, \
                         or: python3 -m venv target/python && target/python/bin/pip install --no-deps -r tests/python/requirements.txt";
            let _ = writeln!(std::io::stderr(), "\n{words}\n");
        });
    }
    found
}

/// What is served, and what its robot is.
struct Case<'a> {
    robot: &'a str,
    horizon: usize,
    metadata: &'a str,
    /// Of `pi0 serve`.
    serve: Vec<String>,
    /// Of `pi0 sample`, the same policy; empty where noise is not asked for.
    sample: Vec<String>,
    key: Option<&'a str>,
}

impl<'a> Case<'a> {
    fn of(robot: &'a str, horizon: usize, preset: &str, folder: &Path) -> Self {
        let policy = strings(&["--config", preset, "--checkpoint-dir", &folder.display().to_string()]);
        let sample = [strings(&[env!("CARGO_BIN_EXE_pi0"), "sample"]), policy.clone()].concat();
        let metadata = if robot == "aloha" { RESET_POSE } else { "{}" };
        Case { robot, horizon, metadata, serve: policy, sample, key: None }
    }

    /// The same for `serve` and for `sample`.
    fn with(mut self, more: &[&str]) -> Self {
        self.serve.extend(strings(more));
        self.sample.extend(strings(more));
        self
    }
}

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|one| (*one).to_owned()).collect()
}

/// A `pi0 serve` that listens; ended with the test.
struct Server {
    child: Child,
    port: u16,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(arguments: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let out = File::create(&log).unwrap();

        let child = Command::new(env!("CARGO_BIN_EXE_pi0"))
            .args(["serve", "--port", &port.to_string()])
            .args(arguments)
            .env_remove("PI0_API_KEY")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .expect("pi0 runs");
        let mut server = Server { child, port, log, _folder: folder };
        let begin = Instant::now();
        while !server.healthy() {
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!("pi0 serve {arguments:?} ended, {status}:\n{}", server.words());
            }
            assert!(begin.elapsed() < STARTS, "pi0 serve {arguments:?} does not listen:\n{}", server.words());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn healthy(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200") && answer.ends_with("OK\n"))
    }

    /// The end of what it said.
    fn words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Ended as a person or a supervisor ends it.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().unwrap().success());
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < ENDS, "pi0 serve goes on after SIGTERM:\n{}", self.words());
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}:\n{}", self.words());
        let log = std::fs::read_to_string(&self.log).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves a case and lets these Python tests ask.
fn ask(case: &Case, tests: &[&str]) {
    let Some(python) = python() else { return };
    let server = Server::start(&case.serve);
    let mut command = Command::new(python);
    command.args(["-B", "-m", "unittest", "--verbose"]).args(tests).current_dir(root().join("tests/python"));
    command.env("PYTHONWARNINGS", "ignore").env("PI0_PORT", server.port.to_string()).env("PI0_ROBOT", case.robot);
    command.env("PI0_HORIZON", case.horizon.to_string()).env("PI0_METADATA", case.metadata);
    command.env("PI0_SAMPLE", serde_json::to_string(&case.sample).unwrap());
    command.envs(case.sample.is_empty().then_some(("PI0_NO_NOISE", "1")));
    command.envs(case.key.map(|key| ("PI0_KEY", key))).env_remove("PI0_REFERENCE");
    let output = command.output().expect("Python runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}\nthe server said:\n{}", server.words());
    assert!(words.contains("\nRan ") && !words.contains("\nRan 0 tests"), "{words}");
    println!("{words}");
    server.stop();
}

/// `norm_stats.json` of a robot that no shipped checkpoint has statistics of.
fn statistics(folder: &Path, width: usize) -> String {
    let one = |value: f64| vec![value; width];
    let of = serde_json::json!({ "mean": one(0.5), "std": one(0.25), "q01": one(0.0), "q99": one(1.0) });
    let text = serde_json::json!({ "norm_stats": { "state": of, "actions": of } }).to_string();
    let path = folder.join("norm_stats.json");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn an_aloha_is_served_and_refused_as_by_openpi() {
    ask(&Case::of("aloha", 50, "pi0_aloha", &checkpoint("pi0")), &["test_actions", "test_refusals"]);
}

#[test]
fn a_droid_is_served_and_refused_as_by_openpi() {
    let folder = tempfile::tempdir().unwrap();
    let norm_stats = statistics(folder.path(), 8);
    let case = Case::of("droid", 15, "pi05_droid", &checkpoint("pi05")).with(&["--norm-stats", &norm_stats]);
    ask(&case, &["test_actions", "test_refusals"]);
}

#[test]
fn a_libero_is_served_and_refused_as_by_openpi() {
    ask(&Case::of("libero", 10, "pi05_libero", &checkpoint("pi05")), &["test_actions", "test_refusals"]);
}

#[test]
fn a_libero_is_served_by_pi0_fast() {
    let codec = root().join("fixtures/tokenizer/fast_tiny").display().to_string();
    let mut case = Case::of("libero", 10, "pi0_fast_libero", &checkpoint("pi0_fast"));
    // Left alone, random weights speak no FAST.
    case.serve.extend(strings(&["--fast-tokenizer", &codec, "--constrained"]));
    case.sample.clear();
    ask(&case, &["test_actions", "test_refusals"]);
}

#[test]
fn a_key_opens_and_no_other_does() {
    let mut case = Case::of("aloha", 50, "pi0_aloha", &checkpoint("pi0"));
    case.serve.extend(strings(&["--api-key", "correct horse"]));
    case.key = Some("correct horse");
    ask(&case, &["test_keys"]);
}

#[test]
fn a_long_inference_holds_up_neither_pings_nor_other_clients() {
    let case = Case::of("aloha", 50, "pi0_aloha", &checkpoint("pi0")).with(&["--num-steps", "1000"]);
    ask(&case, &["test_patience"]);
}

#[cfg(unix)]
#[test]
fn openpis_own_command_line_serves() {
    // A folder as openpi's training leaves it, with the preset's own asset id.
    let folder = tempfile::tempdir().unwrap();
    let assets = folder.path().join("assets/lerobot/aloha_sim_transfer_cube_human");
    std::fs::create_dir_all(&assets).unwrap();
    let from = checkpoint("pi0");
    for name in ["params", "paligemma_tokenizer.model"] {
        std::os::unix::fs::symlink(from.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::copy(from.join("assets/trossen/norm_stats.json"), assets.join("norm_stats.json")).unwrap();
    let mut case = Case::of("aloha", 50, "pi0_aloha_sim", folder.path());
    let dir = format!("--policy.dir={}", folder.path().display());
    case.metadata = "{}";
    case.serve = strings(&[
        "--env",
        "ALOHA_SIM",
        "--default_prompt",
        "wave",
        "policy:checkpoint",
        "--policy.config=pi0_aloha_sim",
        &dir,
    ]);
    ask(&case, &["test_actions.Actions", "test_actions.Noise"]);
}
