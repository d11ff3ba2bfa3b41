//! A server holds: what openpi's protocol says comes in its order, whatever else clients, networks and policies do.

#![cfg(feature = "serve")]

#[path = "serving/harness.rs"]
mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{Heard, PATIENCE, Robot, connect, extended, get, http, map, serve};
use pi0_burn::serve::policy::{Kind, Tap};
use pi0_burn::serve::request::Request;
use pi0_burn::serve::server::event::{What, Why};
use pi0_burn::serve::server::{Key, Server, Settings};
use pi0_burn::serve::tree::Tree;
use tungstenite::Message;

const EVER: Duration = Duration::from_secs(600);

/// Reads until the server ends the connection; that it does is the test.
fn until_closed(stream: &mut TcpStream) {
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert_ne!(error.kind(), ErrorKind::WouldBlock, "the connection is still open");
    }
}

fn number(tree: &Tree, path: &str) -> Option<f64> {
    path.split('/').try_fold(tree, |tree, key| tree.get(key)).and_then(Tree::number)
}

fn keys(tree: &Tree) -> Vec<&str> {
    let Tree::Map(members) = tree else { panic!("{tree:?}") };
    members.iter().map(|(key, _)| key.as_str()).collect()
}

#[test]
fn answers_alternate_with_requests_and_carry_openpis_timings() {
    let server = serve(Settings::default());
    let mut robot = Robot::new(server.address);
    robot.ask(&[("name", "first")]);
    let first = robot.answer();
    assert_eq!(keys(&first), ["actions", "name", "policy_timing", "server_timing"]);
    assert_eq!(number(&first, "policy_timing/infer_ms"), Some(12.5));
    assert!(number(&first, "server_timing/infer_ms").is_some_and(|ms| ms > 0.0));
    assert_eq!(number(&first, "server_timing/prev_total_ms"), None);
    robot.ask(&[("name", "second")]);
    let second = robot.answer();
    assert!(number(&second, "server_timing/prev_total_ms").is_some_and(|ms| ms > 0.0));
    assert_eq!(second.get("name"), Some(&Tree::Text("second".to_owned())));
}

#[test]
fn what_openpi_does_not_have_is_told_to_those_who_ask() {
    let server = serve(Settings::default());
    let mut robot = Robot::new(server.address);
    robot.ask_for(extended(&[], &[("seed", Tree::Int(5))]));
    let first = robot.answer();
    assert_eq!(number(&first, "pi0/seed"), Some(5.0));
    assert_eq!(number(&first, "pi0/batch"), Some(1.0));
    assert_eq!(number(&first, "pi0/model_ms"), Some(12.5));
    assert!(number(&first, "pi0/queue_ms").is_some());
    assert_eq!(number(&first, "pi0/prev_model_ms"), None);
    robot.ask_for(extended(&[], &[]));
    assert_eq!(number(&robot.answer(), "pi0/prev_model_ms"), Some(12.5));
}

#[test]
fn an_error_ends_its_connection_and_the_next_one_works() {
    let server = serve(Settings::default());
    let mut robot = Robot::new(server.address);
    robot.ask(&[("act", "refuse")]);
    assert_eq!(robot.error(), "state: it is missing");
    let refusal = server.hears(|what| match what {
        What::Refused { refusal, .. } => Some(refusal.clone()),
        _ => None,
    });
    assert_eq!((refusal.kind, refusal.detail.as_str()), (Kind::Observation, "read in /a/secret/path"));
    let mut next = Robot::new(server.address);
    next.ask(&[]);
    next.answer();
    assert_eq!(server.metric("pi0_errors_total{kind=\"observation\"}"), 1.0);
}

#[test]
fn bytes_that_are_no_observation_are_refused_as_openpi_refuses() {
    let server = serve(Settings::default());
    for message in [
        Message::Binary(vec![0xc1].into()),
        Message::Binary(vec![].into()),
        Message::Binary(vec![0xdf, 0xff, 0xff, 0xff, 0xff].into()),
        Message::Binary(vec![0x93, 1, 2, 3].into()),
        Message::Text("an observation".into()),
    ] {
        let mut robot = Robot::new(server.address);
        robot.send(message.clone());
        assert!(!robot.error().is_empty(), "{message:?}");
    }
    assert_eq!(server.metric("pi0_errors_total{kind=\"malformed\"}"), 5.0);
}

#[test]
fn a_message_that_claims_to_be_huge_is_refused_before_it_is_sent() {
    let server = serve(Settings { max_message_bytes: 1000, ..Settings::default() });
    let mut robot = Robot::new(server.address);
    // A binary frame of 2^40 bytes, masked: its head alone.
    let mut head = vec![0x82, 0xff];
    head.extend((1_u64 << 40).to_be_bytes());
    head.extend([1, 2, 3, 4]);
    robot.socket.get_mut().write_all(&head).unwrap();
    assert_eq!(robot.error(), "the message has 1099511627776 bytes or more, expected at most 1000");
    // In pieces it is not longer either.
    let mut robot = Robot::new(server.address);
    robot.socket.get_mut().write_all(&[0x02, 0xfe, 0x03, 0x00, 0, 0, 0, 0]).unwrap();
    robot.socket.get_mut().write_all(&[0; 0x300]).unwrap();
    robot.socket.get_mut().write_all(&[0x80, 0xfe, 0x03, 0x00, 0, 0, 0, 0]).unwrap();
    robot.socket.get_mut().write_all(&[0; 0x300]).unwrap();
    assert!(robot.error().contains("expected at most 1000"));
}

#[test]
fn one_client_too_many_is_told_so_and_health_is_still_answered() {
    let server = serve(Settings { max_connections: 2, ..Settings::default() });
    let mut first = Robot::new(server.address);
    let _second = Robot::new(server.address);
    assert_eq!(Robot::with_key(server.address, None).err(), Some(503));
    assert!(get(server.address, "/healthz", "").starts_with("HTTP/1.1 200 "));
    first.socket.close(None).unwrap();
    server.hears(|what| matches!(what, What::Closed { why: Why::Left(_), .. }).then_some(()));
    // The place is free when its goodbye is over, a moment later.
    while let Err(status) = Robot::with_key(server.address, None) {
        assert_eq!(status, 503);
    }
}

#[test]
fn whoever_takes_too_long_over_headers_is_dropped() {
    let server = serve(Settings { header_timeout: Duration::from_millis(50), ..Settings::default() });
    for begun in ["", "GET / HTTP/1.1\r\nHost: ro"] {
        let mut stream = connect(server.address);
        stream.write_all(begun.as_bytes()).unwrap();
        until_closed(&mut stream);
    }
    // Nor does anyone send headers without end.
    let mut stream = connect(server.address);
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    while stream.write_all(b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n").is_ok() {}
    until_closed(&mut stream);
    Robot::new(server.address);
}

#[test]
fn whoever_answers_no_ping_is_dropped() {
    let short = Duration::from_millis(20);
    let server = serve(Settings { ping_every: short, ping_timeout: short, ..Settings::default() });
    // It never reads, so it never answers.
    let silent = connect(server.address);
    let request = "GET / HTTP/1.1\r\nHost: robot\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    (&silent).write_all(request.as_bytes()).unwrap();
    let why = server.hears(|what| match what {
        What::Closed { why, .. } => Some(why.clone()),
        _ => None,
    });
    assert_eq!(why, Why::Silent);
}

#[test]
fn whoever_answers_pings_stays() {
    let server =
        serve(Settings { ping_every: Duration::from_millis(5), ping_timeout: PATIENCE, ..Settings::default() });
    let mut robot = Robot::new(server.address);
    for _ in 0..5 {
        assert_eq!(robot.hear(), Heard::Ping);
    }
    robot.ask(&[]);
    robot.answer();
}

#[test]
fn the_key_is_asked_for_where_there_is_one() {
    let server = serve(Settings { key: Some(Key::new("right")), ..Settings::default() });
    assert_eq!(Robot::with_key(server.address, None).err(), Some(401));
    assert_eq!(Robot::with_key(server.address, Some("wrong")).err(), Some(401));
    assert_eq!(Robot::with_key(server.address, Some("right ")).err(), None, "HTTP does not keep spaces at the end");
    let mut robot = Robot::with_key(server.address, Some("right")).unwrap();
    robot.ask(&[]);
    robot.answer();
    assert!(get(server.address, "/healthz", "").ends_with("\r\n\r\nOK\n"));
    assert!(get(server.address, "/metrics", "").starts_with("HTTP/1.1 401 "));
    assert!(get(server.address, "/metrics", "Authorization: Api-Key right\r\n").starts_with("HTTP/1.1 200 "));
}

#[test]
fn other_requests_of_http_are_answered_as_they_should_be() {
    let server = serve(Settings::default());
    for (request, answer) in [
        ("GET /healthz HTTP/1.1\r\nHost: r\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
        ("HEAD /healthz HTTP/1.1\r\nHost: r\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
        ("GET /metrics HTTP/1.1\r\nHost: r\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
        ("POST /healthz HTTP/1.1\r\nHost: r\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 405 Method Not Allowed\r\n"),
        ("GET / HTTP/1.1\r\nHost: r\r\n\r\n", "HTTP/1.1 426 Upgrade Required\r\n"),
        (
            "GET / HTTP/1.1\r\nHost: r\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\n",
        ),
        ("no HTTP at all\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"),
    ] {
        let found = http(server.address, request);
        assert!(found.starts_with(answer), "{request:?}: {found:?}");
    }
}

#[test]
fn others_are_served_while_the_model_runs() {
    let server = serve(Settings::default());
    let mut robot = Robot::new(server.address);
    robot.ask(&[("act", "hold")]);
    server.held();
    robot.send(Message::Ping(vec![1, 2, 3].into()));
    assert_eq!(robot.hear(), Heard::Pong(vec![1, 2, 3]));
    assert!(get(server.address, "/healthz", "").ends_with("\r\n\r\nOK\n"));
    assert!(get(server.address, "/metrics", "").contains("\npi0_device_memory_bytes 123456\n"));
    let mut other = Robot::new(server.address);
    other.ask(&[("act", "refuse")]);
    assert_eq!(other.error(), "state: it is missing");
    server.go();
    robot.answer();
}

#[test]
fn a_client_that_sends_ahead_does_not_starve_another() {
    let server = serve(Settings::default());
    let (mut greedy, mut modest) = (Robot::new(server.address), Robot::new(server.address));
    greedy.ask(&[("name", "greedy 0"), ("act", "hold")]);
    server.held();
    for number in 1..6 {
        greedy.ask(&[("name", &format!("greedy {number}"))]);
    }
    modest.ask(&[("name", "modest")]);
    server.queued(1);
    server.go();
    modest.answer();
    for number in 0..6 {
        assert_eq!(greedy.answer().get("name"), Some(&Tree::Text(format!("greedy {number}"))));
    }
    assert_eq!(server.computed().concat()[..3], ["greedy 0", "modest", "greedy 1"]);
}

#[test]
fn the_queue_has_a_bound() {
    let server = serve(Settings { queue: 1, ..Settings::default() });
    let [mut runs, mut waits, mut busy] = std::array::from_fn(|_| Robot::new(server.address));
    runs.ask(&[("act", "hold")]);
    server.held();
    waits.ask(&[]);
    server.queued(1);
    busy.ask(&[]);
    assert!(busy.error().starts_with("the server is busy: 1 requests wait"));
    server.go();
    runs.answer();
    waits.answer();
    assert_eq!(server.metric("pi0_errors_total{kind=\"busy\"}"), 1.0);
}

#[test]
fn whoever_waits_longer_than_it_may_is_refused_and_never_computed() {
    for deadline in [None, Some(EVER)] {
        let server = serve(Settings { deadline, ..Settings::default() });
        let [mut runs, mut late] = std::array::from_fn(|_| Robot::new(server.address));
        runs.ask(&[("name", "runs"), ("act", "hold")]);
        server.held();
        late.ask_for(extended(&[("name", "late")], &[("deadline_ms", Tree::Int(20))]));
        assert!(late.error().contains("longer than the 20 ms"));
        server.go();
        runs.answer();
        runs.ask(&[("name", "after")]);
        runs.answer();
        assert_eq!(server.computed().concat(), ["runs", "after"]);
        assert_eq!(server.metric("pi0_errors_total{kind=\"late\"}"), 1.0);
    }
}

#[test]
fn the_servers_own_limit_holds_where_a_request_has_none() {
    let server = serve(Settings { deadline: Some(Duration::ZERO), ..Settings::default() });
    let mut robot = Robot::new(server.address);
    robot.ask(&[]);
    assert!(robot.error().starts_with("deadline: "));
    assert!(server.computed().is_empty());
}

#[test]
fn those_that_wait_go_through_the_model_together_where_they_may() {
    let server = serve(Settings { max_batch: 4, max_wait: EVER, ..Settings::default() });
    let [mut one, mut two, mut three] = std::array::from_fn(|_| Robot::new(server.address));
    let ask = |robot: &mut Robot, group: &str| robot.ask_for(extended(&[("group", group)], &[]));
    ask(&mut one, "a");
    server.queued(1);
    ask(&mut two, "b");
    server.queued(2);
    ask(&mut three, "a");
    // With all clients in the queue nobody is waited for, however long one might be.
    assert_eq!(number(&one.answer(), "pi0/batch"), Some(2.0));
    assert_eq!(number(&three.answer(), "pi0/batch"), Some(2.0));
    // The one that is left waits for the others, until they ask too or are gone.
    drop((one, three));
    assert_eq!(number(&two.answer(), "pi0/batch"), Some(1.0));
    assert_eq!(server.metric("pi0_batch_size_sum"), 3.0);
    assert_eq!(server.metric("pi0_batch_size_count"), 2.0);
}

#[test]
fn a_policy_that_panics_costs_its_request_and_no_more() {
    let server = serve(Settings { max_batch: 2, max_wait: EVER, ..Settings::default() });
    for act in ["panic early", "panic", "few"] {
        let mut robot = Robot::new(server.address);
        robot.ask(&[("act", act)]);
        assert_eq!(robot.error(), "internal error: the server could not answer this; its log says why");
        let detail = server.hears(|what| match what {
            What::Refused { refusal, .. } => Some(refusal.detail.clone()),
            _ => None,
        });
        assert!(detail.contains("as told") || detail.contains("0 answers to 1"), "{detail}");
        server.hears(|what| matches!(what, What::Closed { .. }).then_some(()));
    }
    let [mut one, mut two] = std::array::from_fn(|_| Robot::new(server.address));
    one.ask(&[("act", "panic together")]);
    two.ask(&[("act", "panic together")]);
    drop((one, two));
    let mut robot = Robot::new(server.address);
    robot.ask(&[]);
    robot.answer();
    assert!(server.metric("pi0_panics_total") >= 2.0);
}

#[test]
fn whoever_goes_away_while_it_waits_is_not_computed() {
    let server = serve(Settings::default());
    let [mut runs, mut leaves, mut breaks] = std::array::from_fn(|_| Robot::new(server.address));
    runs.ask(&[("name", "runs"), ("act", "hold")]);
    server.held();
    leaves.ask(&[("name", "leaves")]);
    breaks.ask(&[("name", "breaks")]);
    server.queued(2);
    leaves.socket.close(None).unwrap();
    drop(breaks);
    server.queued(0);
    server.go();
    runs.answer();
    runs.ask(&[("name", "after")]);
    runs.answer();
    assert_eq!(server.computed().concat(), ["runs", "after"]);
}

#[test]
fn a_stop_answers_what_waits_and_says_goodbye() {
    let mut server = serve(Settings { grace: EVER, ..Settings::default() });
    let [mut runs, mut waits, mut idle] = std::array::from_fn(|_| Robot::new(server.address));
    runs.ask(&[("name", "runs"), ("act", "hold")]);
    server.held();
    waits.ask(&[("name", "waits")]);
    server.queued(1);
    server.stop.stop();
    assert_eq!(idle.hear(), Heard::Closed(1001, String::new()));
    assert_eq!(server.hears(|what| if let What::Stopping { waiting } = what { Some(*waiting) } else { None }), 1);
    assert!(TcpStream::connect(server.address).is_err(), "nobody new is let in");
    server.go();
    for robot in [&mut runs, &mut waits] {
        robot.answer();
        assert_eq!(robot.hear(), Heard::Closed(1001, String::new()));
    }
    server.end();
    let totals =
        |what: &What| if let What::Stopped { answered, refused } = what { Some((*answered, *refused)) } else { None };
    assert_eq!(server.hears(totals), (2, 0));
}

#[test]
fn a_stop_without_grace_refuses_what_waits_and_answers_what_runs() {
    let mut server = serve(Settings { grace: Duration::ZERO, ..Settings::default() });
    let [mut runs, mut waits] = std::array::from_fn(|_| Robot::new(server.address));
    runs.ask(&[("name", "runs"), ("act", "hold")]);
    server.held();
    waits.ask(&[("name", "waits")]);
    server.queued(1);
    server.stop.stop();
    assert!(waits.error().starts_with("the server is ending"));
    server.go();
    runs.answer();
    server.end();
    assert_eq!(server.computed().concat(), ["runs"]);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let server = serve(Settings::default());
    let error =
        Server::bind("127.0.0.1", server.address.port(), Settings::default()).err().map(|error| error.to_string());
    assert!(error.is_some_and(|text| text.contains(&server.address.to_string())));
}

struct Notebook(Mutex<Vec<(Request, Tree)>>);

impl Tap for Notebook {
    fn keep(&self, inputs: &Request, outputs: &Tree) -> Result<(), String> {
        self.0.lock().unwrap().push((inputs.clone(), outputs.clone()));
        if outputs.get("name") == Some(&Tree::Text("1".to_owned())) {
            Err("the disk is full".to_owned())
        } else {
            Ok(())
        }
    }
}

#[test]
fn what_was_answered_is_kept_in_its_order_with_the_seed_that_was_drawn() {
    let notebook = Arc::new(Notebook(Mutex::new(Vec::new())));
    let mut server = serve(Settings { tap: Some(notebook.clone()), ..Settings::default() });
    let mut robot = Robot::new(server.address);
    for number in 0..20 {
        let name = number.to_string();
        match number {
            3 => robot.ask_for(extended(&[("name", &name)], &[])),
            _ => robot.ask(&[("name", &name)]),
        }
        robot.answer();
    }
    robot.ask(&[("act", "refuse")]);
    robot.error();
    server.end();
    let why = server.hears(|what| if let What::NotKept { why } = what { Some(why.clone()) } else { None });
    assert_eq!(why, "the disk is full");
    let kept = notebook.0.lock().unwrap();
    assert_eq!(kept.len(), 20, "refused requests have nothing to keep");
    for (number, (inputs, outputs)) in kept.iter().enumerate() {
        assert_eq!(outputs.get("name"), Some(&Tree::Text(number.to_string())));
        assert_eq!(keys(outputs), ["actions", "name", "policy_timing"]);
        let seed = inputs.extensions.as_ref().and_then(|extensions| extensions.seed);
        assert_eq!(seed, (number == 3).then_some(7));
    }
}

/// Numbers that look random: the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        // Steele, Lea, Flood: SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn mutated(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        match self.below(4) {
            0 => bytes = (0..self.below(200)).map(|_| self.below(256) as u8).collect(),
            1 => bytes.truncate(self.below(bytes.len())),
            _ => {
                for _ in 0..=self.below(4) {
                    let place = self.below(bytes.len());
                    bytes[place] = self.below(256) as u8;
                }
            }
        }
        bytes
    }
}

#[test]
fn no_message_of_any_bytes_ends_the_server() {
    let server = serve(Settings::default());
    let picture = pi0_burn::policy::array::Array::f32([2, 3], vec![0.0; 6]);
    let mut good = extended(&[("name", "x"), ("prompt", "go")], &[("seed", Tree::Int(3))]);
    let Tree::Map(members) = &mut good else { unreachable!() };
    members.push(("observation".to_owned(), Tree::Map(vec![("image".to_owned(), Tree::Array(picture))])));
    let good = pi0_burn::serve::wire::encode(&good);
    let mut chance = Chance(1);
    let mut robot = Robot::new(server.address);
    for _ in 0..600 {
        let bytes = chance.mutated(&good);
        robot.send(Message::Binary(bytes.clone().into()));
        match robot.hear() {
            Heard::Answer(_) => {}
            Heard::Error(text) => {
                assert!(!text.is_empty() && !text.contains("internal error"), "{text}: {bytes:02x?}");
                robot = Robot::new(server.address);
            }
            other => panic!("{other:?} to {bytes:02x?}"),
        }
    }
    assert_eq!(server.metric("pi0_panics_total"), 0.0);
}

#[test]
fn no_frames_of_any_bytes_end_the_server() {
    let server = serve(Settings::default());
    let mut chance = Chance(2);
    for _ in 0..150 {
        let mut robot = Robot::new(server.address);
        let bytes: Vec<u8> = (0..1 + chance.below(60)).map(|_| chance.below(256) as u8).collect();
        // The server may have had enough before all is written.
        let _ = robot.socket.get_mut().write_all(&bytes);
        let _ = robot.socket.get_mut().shutdown(std::net::Shutdown::Write);
        until_closed(robot.socket.get_mut());
    }
    let mut robot = Robot::new(server.address);
    robot.ask_for(map(&[]));
    robot.answer();
    assert_eq!(server.metric("pi0_panics_total"), 0.0);
}
