//! A server with a policy that does what the observation tells it, and a client that says what it likes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pi0_burn::policy::array::Array;
use pi0_burn::policy::record::Value;
use pi0_burn::serve::policy::{Kind, Policy, Refusal};
use pi0_burn::serve::request::{Answer, Request};
use pi0_burn::serve::server::event::What;
use pi0_burn::serve::server::{Error, Server, Settings, Stop};
use pi0_burn::serve::tree::Tree;
use pi0_burn::serve::wire;
use tungstenite::{Message, WebSocket};

/// How long a test waits for what must come. Only a test that fails waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A policy that does what the observation's `act` tells it: `hold` waits for [`Running::go`], `panic` and `panic early`
/// panic, `refuse` refuses, `few` answers too few. `name` says who asks, `group` who may go with whom.
pub(crate) struct Mock {
    began: Mutex<Sender<String>>,
    go: Mutex<Receiver<()>>,
    /// The names in each batch.
    pub(crate) computed: Mutex<Vec<Vec<String>>>,
}

pub(crate) struct Ready {
    name: String,
    act: String,
    group: String,
    seed: Option<u64>,
}

impl Policy for Mock {
    type Ready = Ready;

    fn metadata(&self) -> Tree {
        Tree::Map(vec![("who".to_owned(), Tree::Text("a mock".to_owned()))])
    }

    fn prepare(&self, request: Request) -> Result<Ready, Refusal> {
        let text = |key: &str| match request.observation.values.get(key) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let act = text("act");
        match act.as_str() {
            "panic early" => panic!("prepare, as told, in /a/secret/path"),
            "refuse" => Err(Refusal::new(Kind::Observation, "state: it is missing").because("read in /a/secret/path")),
            _ => {
                let seed = request.extensions.as_ref().map(|extensions| extensions.seed.unwrap_or(7));
                Ok(Ready { name: text("name"), act, group: text("group"), seed })
            }
        }
    }

    fn together(&self, first: &Ready, other: &Ready) -> bool {
        assert!(first.act != "panic together", "together, as told");
        first.group == other.group
    }

    fn infer(&self, batch: Vec<Ready>) -> Vec<Result<Answer, Refusal>> {
        self.computed.lock().unwrap().push(batch.iter().map(|ready| ready.name.clone()).collect());
        for ready in &batch {
            match ready.act.as_str() {
                "hold" => {
                    self.began.lock().unwrap().send(ready.name.clone()).unwrap();
                    // An error means that the test is over.
                    let _ = self.go.lock().unwrap().recv();
                }
                "panic" => panic!("infer, as told, in /a/secret/path"),
                "few" => return Vec::new(),
                _ => {}
            }
        }
        let answer = |ready: Ready| {
            let actions = Tree::Array(Array::f32([2, 1], vec![0.5, -1.0]));
            let outputs = vec![("actions".to_owned(), actions), ("name".to_owned(), Tree::Text(ready.name))];
            Ok(Answer { outputs, infer_ms: 12.5, seed: ready.seed })
        };
        batch.into_iter().map(answer).collect()
    }

    fn device_memory_bytes(&self) -> Option<u64> {
        Some(123_456)
    }
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) policy: Arc<Mock>,
    pub(crate) stop: Stop,
    go: Option<Sender<()>>,
    began: Receiver<String>,
    events: Receiver<What>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

pub(crate) fn serve(settings: Settings) -> Running {
    let server = Server::bind("127.0.0.1", 0, settings).unwrap();
    let (address, stop) = (server.address(), server.stop());
    let ((began_here, began), (go, wait), (event, events)) = (channel(), channel(), channel());
    let policy =
        Arc::new(Mock { began: Mutex::new(began_here), go: Mutex::new(wait), computed: Mutex::new(Vec::new()) });
    let event = Mutex::new(event);
    let thread = std::thread::spawn({
        let policy = Arc::clone(&policy);
        move || server.run(policy, Arc::new(move |what| drop(event.lock().unwrap().send(what.what.clone()))))
    });
    Running { address, policy, stop, go: Some(go), began, events, thread: Some(thread) }
}

impl Running {
    /// Waits until the model holds a request, and tells whose.
    pub(crate) fn held(&self) -> String {
        self.began.recv_timeout(PATIENCE).expect("the model holds a request")
    }

    /// Lets the model go on with one.
    pub(crate) fn go(&self) {
        self.go.as_ref().unwrap().send(()).unwrap();
    }

    /// Waits for something to happen, whatever else does meanwhile.
    pub(crate) fn hears<T>(&self, mut wanted: impl FnMut(&What) -> Option<T>) -> T {
        loop {
            let what = self.events.recv_timeout(PATIENCE).expect("it happens");
            if let Some(found) = wanted(&what) {
                return found;
            }
        }
    }

    /// Waits until as many requests wait for the model.
    pub(crate) fn queued(&self, count: usize) {
        let line = format!("pi0_queue_length {count}");
        let began = std::time::Instant::now();
        while !get(self.address, "/metrics", "").contains(&line) {
            assert!(began.elapsed() < PATIENCE, "{count} requests never waited");
            std::thread::yield_now();
        }
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = get(self.address, "/metrics", "");
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.trim().parse().unwrap()
    }

    pub(crate) fn computed(&self) -> Vec<Vec<String>> {
        self.policy.computed.lock().unwrap().clone()
    }

    /// Stops it and waits for its end.
    pub(crate) fn end(&mut self) {
        self.stop.stop();
        self.go = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// A robot's program.
pub(crate) struct Robot {
    pub(crate) socket: WebSocket<TcpStream>,
}

/// What a robot hears.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Answer(Tree),
    Error(String),
    Closed(u16, String),
    Ping,
    Pong(Vec<u8>),
    Gone,
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Robot {
    /// Connects, and has the metadata.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::with_key(address, None).unwrap()
    }

    /// The HTTP status, if the server does not want it.
    pub(crate) fn with_key(address: SocketAddr, key: Option<&str>) -> Result<Self, u16> {
        let mut request =
            tungstenite::client::IntoClientRequest::into_client_request(format!("ws://{address}")).unwrap();
        if let Some(key) = key {
            request.headers_mut().insert("Authorization", format!("Api-Key {key}").parse().unwrap());
        }
        match tungstenite::client(request, connect(address)) {
            Ok((socket, _)) => {
                let mut robot = Robot { socket };
                let metadata = robot.hear();
                assert_eq!(metadata, Heard::Answer(map(&[("who", "a mock")])), "metadata comes first");
                Ok(robot)
            }
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
                Err(answer.status().as_u16())
            }
            Err(other) => panic!("{other}"),
        }
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.socket.send(message).unwrap();
    }

    /// Asks for actions: texts by key.
    pub(crate) fn ask(&mut self, observation: &[(&str, &str)]) {
        self.ask_for(map(observation));
    }

    pub(crate) fn ask_for(&mut self, observation: Tree) {
        self.send(Message::Binary(wire::encode(&observation).into()));
    }

    /// The next frame.
    pub(crate) fn hear(&mut self) -> Heard {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => Heard::Answer(wire::decode(&bytes, &wire::Limits::default()).unwrap()),
            Ok(Message::Text(text)) => Heard::Error(text.to_string()),
            Ok(Message::Close(Some(frame))) => Heard::Closed(frame.code.into(), frame.reason.to_string()),
            Ok(Message::Ping(_)) => Heard::Ping,
            Ok(Message::Pong(bytes)) => Heard::Pong(bytes.to_vec()),
            Ok(_) => Heard::Gone,
            Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("nothing came for {PATIENCE:?}")
            }
            Err(_) => Heard::Gone,
        }
    }

    /// The next frame that is no ping: on a slow machine there may be some.
    fn told(&mut self) -> Heard {
        loop {
            match self.hear() {
                Heard::Ping => {}
                heard => return heard,
            }
        }
    }

    pub(crate) fn answer(&mut self) -> Tree {
        match self.told() {
            Heard::Answer(tree) => tree,
            other => panic!("{other:?}"),
        }
    }

    /// The error's text; the close frame behind it is openpi's.
    pub(crate) fn error(&mut self) -> String {
        let Heard::Error(text) = self.told() else { panic!("no error") };
        let reason = "Internal server error. Traceback included in previous frame.".to_owned();
        assert_eq!(self.hear(), Heard::Closed(1011, reason));
        text
    }
}

pub(crate) fn map(members: &[(&str, &str)]) -> Tree {
    Tree::Map(members.iter().map(|(key, text)| ((*key).to_owned(), Tree::Text((*text).to_owned()))).collect())
}

/// The observation with what openpi's protocol does not have.
pub(crate) fn extended(observation: &[(&str, &str)], extensions: &[(&str, Tree)]) -> Tree {
    let Tree::Map(mut members) = map(observation) else { unreachable!() };
    let extensions = extensions.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    members.push(("pi0".to_owned(), Tree::Map(extensions)));
    Tree::Map(members)
}

/// One HTTP request, and all that came back.
pub(crate) fn http(address: SocketAddr, request: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// `headers` end with a line break, each.
pub(crate) fn get(address: SocketAddr, path: &str, headers: &str) -> String {
    http(address, &format!("GET {path} HTTP/1.1\r\nHost: robot\r\n{headers}\r\n"))
}
