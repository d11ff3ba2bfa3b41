//! A blocking client of a policy server, openpi's or ours.
//!
//! Source: openpi 15a9616, packages/openpi-client, websocket_client_policy.py (`WebsocketClientPolicy`). Invariants: one
//! request, one reply; while a reply is awaited, pings are answered; a connection on which a reply was missed is not used
//! again, so that no answer is taken for another's.
//!
//! - [`address`]: where a server is

pub mod address;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use tungstenite::client::{IntoClientRequest, client_with_config};
use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::http::{HeaderValue, header::AUTHORIZATION};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error as Socket, HandshakeError, Message, WebSocket};

use super::tree::Tree;
use super::wire::{Limits, WireError, decode, encode};
pub use address::Address;

/// How long openpi's client waits before it knocks again.
pub const RETRY: Duration = Duration::from_secs(5);
/// How long a host may take to answer a knock.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a good-bye may take.
const CLOSE: Duration = Duration::from_millis(500);

/// How to reach a server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is.
    pub address: Address,
    /// Sent as `Authorization: Api-Key …`.
    pub api_key: Option<String>,
    /// How long a server that is not up yet is waited for; `None` for not at all.
    pub wait: Option<Duration>,
    /// How long to wait between two knocks; openpi's is [`RETRY`].
    pub retry: Duration,
    /// How long a reply may take.
    pub timeout: Duration,
    /// What a reply may be at most.
    pub limits: Limits,
}

impl Settings {
    /// No key, no wait, five minutes for a reply: openpi's own server compiles its model in the first.
    pub fn new(address: Address) -> Self {
        let (limits, timeout) = (Limits::default(), Duration::from_secs(300));
        Settings { address, api_key: None, wait: None, retry: RETRY, timeout, limits }
    }
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An address that is none.
    #[error("{address}: {what}")]
    Address {
        /// As it was said.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// An API key that no header carries.
    #[error("the API key has characters that an HTTP header cannot carry")]
    Key,
    /// Nobody is there.
    #[error("{address}: {error}; {}", reach(error))]
    Unreachable {
        /// Where.
        address: Address,
        /// What the system says.
        error: io::Error,
    },
    /// Somebody is there who speaks something else.
    #[error("{address}: {what}")]
    Handshake {
        /// Where.
        address: Address,
        /// What was answered, and what that may mean.
        what: String,
    },
    /// The server says what is wrong.
    #[error("the server says: {text}")]
    Server {
        /// Its text frame.
        text: String,
    },
    /// No reply in time.
    #[error("no {what} within {seconds} s; is the server busy, or compiling? A longer --timeout waits for it")]
    Late {
        /// What was awaited.
        what: &'static str,
        /// For how long.
        seconds: f64,
    },
    /// The connection is gone.
    #[error("the server closed the connection{}", because(reason))]
    Closed {
        /// Code and reason, as the server gave them; empty for none.
        reason: String,
    },
    /// A reply that is no message.
    #[error("the reply: {0}")]
    Wire(#[from] WireError),
    /// Anything else of the connection.
    #[error("the connection failed: {0}")]
    Socket(Box<Socket>),
}

fn reach(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "is the server up, and is this its port?",
        io::ErrorKind::TimedOut => "is the host up, and does a firewall stand before it?",
        _ => "is the host's name right?",
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

impl ClientError {
    /// May it be gone by itself, because the server is about to start?
    fn passes(&self) -> bool {
        matches!(self, ClientError::Unreachable { .. })
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    socket: WebSocket<TcpStream>,
    metadata: Tree,
    timeout: Duration,
    limits: Limits,
    /// Was every request answered, and in form?
    sound: bool,
}

impl Client {
    /// Connects, and waits for what the server says first. `told` hears of each knock that nobody answered.
    ///
    /// # Errors
    /// Nobody is there, or somebody who speaks another protocol; the server refuses, or says nothing in time.
    pub fn connect(settings: &Settings, mut told: impl FnMut(&ClientError)) -> Result<Self, ClientError> {
        let begun = Instant::now();
        loop {
            let error = match Self::knock(settings) {
                Err(error) if error.passes() => error,
                other => return other,
            };
            let left = settings.wait.and_then(|wait| wait.checked_sub(begun.elapsed())).filter(|left| !left.is_zero());
            let Some(left) = left else { return Err(error) };
            told(&error);
            std::thread::sleep(left.min(settings.retry));
        }
    }

    fn knock(settings: &Settings) -> Result<Self, ClientError> {
        let address = &settings.address;
        let mut request = address
            .to_string()
            .into_client_request()
            .map_err(|error| ClientError::Address { address: address.to_string(), what: error.to_string() })?;
        if let Some(key) = &settings.api_key {
            let value = HeaderValue::from_str(&format!("Api-Key {key}")).map_err(|_| ClientError::Key)?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let unreachable = |error| ClientError::Unreachable { address: address.clone(), error };
        let stream = open(address).map_err(unreachable)?;
        // A robot's requests are small beside its pictures, and none waits for a second one to fill a packet.
        stream.set_nodelay(true).map_err(unreachable)?;
        stream.set_read_timeout(Some(settings.timeout)).map_err(unreachable)?;
        stream.set_write_timeout(Some(settings.timeout)).map_err(unreachable)?;
        let bytes = Some(settings.limits.message_bytes);
        let config = WebSocketConfig::default().max_message_size(bytes).max_frame_size(bytes);
        let socket = match client_with_config(request, stream, Some(config)) {
            Ok((socket, _)) => socket,
            Err(HandshakeError::Interrupted(_)) => {
                return Err(ClientError::Late { what: "handshake", seconds: settings.timeout.as_secs_f64() });
            }
            Err(HandshakeError::Failure(error)) => {
                return Err(ClientError::Handshake { address: address.clone(), what: told_by(&error) });
            }
        };
        let (timeout, limits) = (settings.timeout, settings.limits);
        let mut client = Client { socket, metadata: Tree::Nil, timeout, limits, sound: true };
        client.metadata = client.receive("metadata")?;
        Ok(client)
    }

    /// What the server said first: openpi's `get_server_metadata`.
    pub fn metadata(&self) -> &Tree {
        &self.metadata
    }

    /// Can it be asked again? After a failure it cannot: connect anew.
    pub fn is_sound(&self) -> bool {
        self.sound
    }

    /// Sends an observation and waits for the reply.
    ///
    /// # Errors
    /// The server's own text, where it refuses; no reply in time, a connection that is gone, a reply that is no message.
    pub fn infer(&mut self, observation: &Tree) -> Result<Tree, ClientError> {
        if !self.sound {
            return Err(ClientError::Closed { reason: "an earlier request had no reply; connect anew".to_owned() });
        }
        self.sound = false;
        // A server that refuses closes what it has not read; its words are still there to be read.
        let sent = self.socket.send(Message::Binary(encode(observation).into()));
        let sent = sent.map_err(|error| self.fault(error, "room for the request"));
        let reply = match sent {
            Ok(()) => self.receive("reply"),
            Err(late @ ClientError::Late { .. }) => Err(late),
            Err(error) => Err(match self.receive("reply") {
                Err(said @ (ClientError::Server { .. } | ClientError::Closed { .. })) => said,
                _ => error,
            }),
        };
        self.sound = reply.is_ok();
        reply
    }

    /// Says good-bye, and waits a moment for the server's.
    pub fn close(mut self) {
        let _ = self.socket.get_ref().set_read_timeout(Some(CLOSE));
        let _ = self.socket.close(None);
        let begun = Instant::now();
        while begun.elapsed() < CLOSE && self.socket.read().is_ok() {}
    }

    /// The next message; pings are answered by the way.
    fn receive(&mut self, what: &'static str) -> Result<Tree, ClientError> {
        let begun = Instant::now();
        loop {
            let left = self.timeout.checked_sub(begun.elapsed()).filter(|left| !left.is_zero());
            let Some(left) = left else { return Err(self.late(what)) };
            // A server that pings on and on does not reply by that.
            let _ = self.socket.get_ref().set_read_timeout(Some(left));
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => return Ok(decode(&bytes, &self.limits)?),
                Ok(Message::Text(text)) => return Err(ClientError::Server { text: text.trim_end().to_owned() }),
                Ok(Message::Close(frame)) => {
                    let reason = frame.map(|frame| format!("{} {}", frame.code, frame.reason));
                    return Err(ClientError::Closed { reason: reason.unwrap_or_default().trim_end().to_owned() });
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    // The answer to a ping lies ready and goes out now, not with the next read.
                    self.socket.flush().map_err(|error| self.fault(error, what))?;
                }
                Err(error) => return Err(self.fault(error, what)),
            }
        }
    }

    fn late(&self, what: &'static str) -> ClientError {
        ClientError::Late { what, seconds: self.timeout.as_secs_f64() }
    }

    fn fault(&self, error: Socket, what: &'static str) -> ClientError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        match error {
            Socket::Io(error) if matches!(error.kind(), WouldBlock | TimedOut) => self.late(what),
            Socket::Io(error)
                if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof) =>
            {
                ClientError::Closed { reason: error.to_string() }
            }
            Socket::ConnectionClosed | Socket::AlreadyClosed => ClientError::Closed { reason: String::new() },
            Socket::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                ClientError::Closed { reason: "without a good-bye; did it crash?".to_owned() }
            }
            other => ClientError::Socket(Box::new(other)),
        }
    }
}

/// The first of a host's addresses at which somebody is.
fn open(address: &Address) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for place in (address.host.as_str(), address.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&place, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What is wrong with who answered, and what that may mean.
fn told_by(error: &Socket) -> String {
    match error {
        Socket::Http(response) => {
            let status = response.status();
            let hint = match status.as_u16() {
                401 | 403 => "is --api-key the server's?",
                429 | 503 => "the server is there and takes no more clients now",
                _ => "it is an HTTP server that is no policy server; is this the right port?",
            };
            format!("it answers HTTP {status}; {hint}")
        }
        Socket::Protocol(ProtocolError::HttparseError(_)) | Socket::Capacity(CapacityError::TooManyHeaders) => {
            "it answers in no HTTP; another kind of server has this port".to_owned()
        }
        Socket::Protocol(ProtocolError::HandshakeIncomplete) => {
            "it hung up before the handshake's end; another kind of server may have this port".to_owned()
        }
        other => format!("the handshake failed: {other}"),
    }
}
