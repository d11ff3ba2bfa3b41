//! Who comes in: connections, their HTTP, and which of them become clients of the policy.
//!
//! Invariant: whoever is not a client is gone soon. Headers, and the answer to them, have a time; one request a connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tungstenite::error::{Error as Websocket, ProtocolError};
use tungstenite::handshake::server::create_response_with_body;

use super::event::What;
use super::line::Line;
use super::metrics;
use super::room::Room;
use super::session::{Client, converse};
use crate::serve::policy::Policy;

/// Connections beyond those of clients: health checks, scrapes, and whoever is told that the server is full.
const SPARE: usize = 64;
/// What one connection's headers may take.
const HEADER_BYTES: usize = 16 << 10;
/// How long a connection may take over HTTP beyond its headers.
const ANSWER: Duration = Duration::from_secs(20);
/// How long the server waits when it cannot accept.
const PAUSE: Duration = Duration::from_millis(200);

/// Everybody who is in.
pub(super) struct Inside {
    sockets: Arc<Semaphore>,
    most: u32,
}

impl Inside {
    /// Waits until nobody is.
    pub(super) async fn all_gone(&self) {
        let _ = self.sockets.acquire_many(self.most).await;
    }
}

/// Lets people in until the server is stopped.
pub(super) async fn admit<P: Policy>(room: &Arc<Room<P>>, listener: TcpListener) -> Inside {
    let most = u32::try_from(room.settings.max_connections.saturating_add(SPARE).min(Semaphore::MAX_PERMITS));
    let most = most.unwrap_or(u32::MAX);
    let sockets = Arc::new(Semaphore::new(most as usize));
    let stop = room.stop.wait();
    tokio::pin!(stop);
    loop {
        let taken = async {
            // Nobody closes this semaphore.
            let socket = Arc::clone(&sockets).acquire_owned().await.ok();
            (listener.accept().await, socket)
        };
        let (accepted, socket) = tokio::select! {
            biased;
            () = &mut stop => return Inside { sockets, most },
            taken = taken => taken,
        };
        match accepted {
            Ok((stream, peer)) => {
                let room = Arc::clone(room);
                tokio::spawn(async move {
                    tokio::select! {
                        () = room.stop.wait() => {}
                        () = visit(Arc::clone(&room), stream, peer, Arc::new(socket)) => {}
                    }
                });
            }
            Err(error) => {
                room.tell(What::NotAccepted { why: error.to_string() });
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Held by whoever uses the socket.
type Socket = Arc<Option<OwnedSemaphorePermit>>;

async fn visit<P: Policy>(room: Arc<Room<P>>, stream: TcpStream, peer: SocketAddr, socket: Socket) {
    // Small frames are not held back for larger ones.
    let _ = stream.set_nodelay(true);
    let header_timeout = room.settings.header_timeout;
    let service = service_fn(move |request| {
        let answer = answer(&room, request, peer, &socket);
        async { Ok::<_, Infallible>(answer) }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // What is wrong with a stranger's HTTP is the stranger's business.
    let _ = timeout(header_timeout.saturating_add(ANSWER), http).await;
}

fn answer<P: Policy>(room: &Arc<Room<P>>, request: Request<Incoming>, peer: SocketAddr, socket: &Socket) -> Answer {
    let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let allowed = room.settings.key.as_ref().is_none_or(|key| key.opens(shown));
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    let answer = match request.uri().path() {
        "/healthz" if get => return text(StatusCode::OK, "OK\n"),
        "/metrics" if get && allowed => {
            let answer = text(StatusCode::OK, room.metrics.text(room.queue.len()));
            return with(answer, CONTENT_TYPE, metrics::CONTENT_TYPE);
        }
        "/healthz" | "/metrics" if !get => {
            with(text(StatusCode::METHOD_NOT_ALLOWED, "this address is for GET\n"), ALLOW, "GET, HEAD")
        }
        _ if !allowed => {
            let missing = text(StatusCode::UNAUTHORIZED, "the key is missing or wrong: `Authorization: Api-Key KEY`\n");
            with(missing, WWW_AUTHENTICATE, "Api-Key")
        }
        _ => become_client(room, request, peer, socket),
    };
    let status = answer.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return answer;
    }
    room.metrics.turned_away();
    room.tell(What::TurnedAway { peer, status: status.as_u16(), why: reason(status).to_owned() });
    answer
}

/// The upgrade's answer, or why there is none; the conversation begins when it is sent.
fn become_client<P: Policy>(
    room: &Arc<Room<P>>,
    request: Request<Incoming>,
    peer: SocketAddr,
    socket: &Socket,
) -> Answer {
    let welcome = match create_response_with_body(&request, Full::<Bytes>::default) {
        Ok(welcome) => welcome,
        Err(error) => return no_websocket(&error),
    };
    let Ok(place) = Arc::clone(&room.places).try_acquire_owned() else {
        let most = room.settings.max_connections;
        let full = format!("the server has {most} clients, as many as it takes; try again later\n");
        return with(text(StatusCode::SERVICE_UNAVAILABLE, full), RETRY_AFTER, "1");
    };
    let (room, socket) = (Arc::clone(room), Arc::clone(socket));
    tokio::spawn(async move {
        let _held = (place, socket);
        // An error means that the connection was lost before the answer was sent.
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let settings = &room.settings;
            let (every, patience) = (settings.ping_every, settings.ping_timeout);
            let line = Line::new(TokioIo::new(upgraded), settings.max_message_bytes, every, patience).await;
            converse(&room, line, Client { number: room.number(), peer }).await;
        }
    });
    welcome
}

/// As Python's websockets answers: 426 to what asks for no upgrade, 400 to one that is wrong.
fn no_websocket(error: &Websocket) -> Answer {
    match error {
        Websocket::Protocol(
            ProtocolError::MissingConnectionUpgradeHeader | ProtocolError::MissingUpgradeWebSocketHeader,
        ) => {
            let words = "this address speaks websocket: openpi's policy protocol; /healthz and /metrics are for HTTP\n";
            with(text(StatusCode::UPGRADE_REQUIRED, words), UPGRADE, "websocket")
        }
        other => text(StatusCode::BAD_REQUEST, format!("no websocket: {other}\n")),
    }
}

fn reason(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "the key is missing or wrong",
        StatusCode::SERVICE_UNAVAILABLE => "the server is full",
        StatusCode::UPGRADE_REQUIRED => "no websocket was asked for",
        StatusCode::METHOD_NOT_ALLOWED => "the address is for GET",
        _ => "the handshake is wrong",
    }
}

type Answer = Response<Full<Bytes>>;

fn text(status: StatusCode, words: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(words.into()));
    *answer.status_mut() = status;
    // hyper's own switch for this would also be in the upgrade's answer.
    let answer = with(answer, CONNECTION, "close");
    with(answer, CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn with(mut answer: Answer, name: HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}
