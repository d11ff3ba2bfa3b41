//! A server of any [`Policy`]: openpi's protocol, and around it what keeps a server up.
//!
//! Source: openpi 15a9616, serving/websocket_policy_server.py, whose frames it sends and whose event loop it does not block.
//! Invariants: the model has a thread of its own, so pings, other clients, `/healthz` and `/metrics` are answered while it
//! runs. Everything foreign has a bound: connections, headers and the time they take, messages, what a client sends ahead,
//! the queue, a request's wait. A policy that panics costs its request, not the server. What goes wrong is told the client in
//! one sentence, and the [`Listener`] in full.
//!
//! The way of a request: `door` lets its client in · `line` reads its frame · `session` has it decoded and prepared on one
//! of a few threads · `queue` holds it · `engine` runs the model on it · `session` sends the answer.
//!
//! Routes: `GET /healthz` says `OK`, to anyone; `GET /metrics` is Prometheus's text, with the key where there is one, for how
//! often robots ask is not everybody's business; a websocket on any other path is a client of the policy.

mod door;
mod engine;
pub mod event;
mod key;
mod line;
mod metrics;
mod queue;
mod room;
mod session;
mod stop;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;

use super::policy::{Policy, Tap};
use super::wire;
use event::{Listener, What};
pub use key::Key;
use queue::Queue;
use room::Room;
pub use stop::Stop;

/// How long connections may take to end once the model is done.
const GOODBYE: Duration = Duration::from_secs(10);

/// How a server serves.
#[derive(Clone)]
pub struct Settings {
    /// What clients must show; none for nothing.
    pub key: Option<Key>,
    /// Clients at once; one more is told so (HTTP 503).
    pub max_connections: usize,
    /// The longest message.
    pub max_message_bytes: usize,
    /// How many requests wait for the model; one more is refused as busy.
    pub queue: usize,
    /// How many go through the model at once, where [`Policy::together`] lets them.
    pub max_batch: usize,
    /// How long a request waits for others to go with it; never longer than until every client has one there.
    pub max_wait: Duration,
    /// How long a request may wait in all; a request may ask for less.
    pub deadline: Option<Duration>,
    /// A client that was silent for that long is pinged.
    pub ping_every: Duration,
    /// And dropped if it is silent for that long after it. Also: how long a client may take to read what it is sent.
    pub ping_timeout: Duration,
    /// How long a connection may take over its HTTP headers.
    pub header_timeout: Duration,
    /// Threads that decode and prepare.
    pub workers: usize,
    /// On a stop: how long what waits is still served.
    pub grace: Duration,
    /// Who keeps what was asked and answered.
    pub tap: Option<Arc<dyn Tap>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            key: None,
            max_connections: 1000,
            max_message_bytes: 64 << 20,
            queue: 64,
            max_batch: 1,
            max_wait: Duration::from_millis(2),
            deadline: None,
            ping_every: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(20),
            header_timeout: Duration::from_secs(10),
            workers: std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8)),
            grace: Duration::from_secs(10),
            tap: None,
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not ours.
    #[error("{address}: cannot listen there: {source}")]
    Bind {
        /// Which.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// No threads, no files.
    #[error("the server cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// A server that has its port.
///
/// Bind it when the model is warm: from then on clients connect, and wait until [`run`](Self::run).
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    stop: Stop,
}

impl Server {
    /// Takes a port; port 0 takes any that is free.
    ///
    /// # Errors
    /// It is taken, the address is not this machine's, or it is none.
    pub fn bind(host: &str, port: u16, settings: Settings) -> Result<Self, Error> {
        let bound = TcpListener::bind((host, port)).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (local, listener) = bound.map_err(|source| Error::Bind { address: format!("{host}:{port}"), source })?;
        Ok(Server { listener, address: local, settings, stop: Stop::new() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves until it is stopped. The model runs on the thread that calls this, the network on one of its own.
    ///
    /// A stop lets a call of the model that has begun end, however long it takes; what waits is served for the
    /// [grace time](Settings::grace) and then refused.
    ///
    /// # Errors
    /// The system gives no thread or no socket.
    pub fn run<P: Policy>(self, policy: Arc<P>, listener: Listener) -> Result<(), Error> {
        let Server { listener: socket, address, settings, stop } = self;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .thread_name("pi0-prepare")
            .max_blocking_threads(settings.workers.max(1))
            .build()?;
        socket.set_nonblocking(true)?;
        let socket = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(socket)?
        };
        let metadata = Bytes::from(wire::encode(&policy.metadata()));
        let (room, tapped) = Room::new(policy, settings, listener, stop, metadata);
        let room = Arc::new(room);
        let keeper = tapped
            .map(|tapped| {
                let room = Arc::clone(&room);
                std::thread::Builder::new().name("pi0-keep".to_owned()).spawn(move || tapped.keep_all(&room))
            })
            .transpose()?;
        let (done, model_done) = watch::channel(false);
        let network = std::thread::Builder::new().name("pi0-network".to_owned()).spawn({
            let room = Arc::clone(&room);
            move || {
                // However this thread ends, the model's does too.
                let _ends = Ends(Arc::clone(&room.queue));
                runtime.block_on(serve(room, socket, model_done));
                // A policy that hangs in `prepare` does not keep the server from ending.
                runtime.shutdown_timeout(Duration::from_secs(1));
            }
        })?;
        room.tell(What::Listening { address });
        engine::run(&room);
        done.send_replace(true);
        // Its tasks catch their own panics.
        let _ = network.join();
        if let Some(keeper) = keeper {
            room.keep_no_more();
            let _ = keeper.join();
        }
        let (answered, refused) = room.metrics.totals();
        room.tell(What::Stopped { answered, refused });
        Ok(())
    }
}

struct Ends<R>(Arc<Queue<R>>);

impl<R> Drop for Ends<R> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// The network's part: until the stop, and then until all have gone.
async fn serve<P: Policy>(room: Arc<Room<P>>, socket: tokio::net::TcpListener, mut model_done: watch::Receiver<bool>) {
    let inside = door::admit(&room, socket).await;
    room.queue.close();
    room.tell(What::Stopping { waiting: room.queue.len() });
    if timeout(room.settings.grace, model_done.wait_for(|done| *done)).await.is_err() {
        room.queue.clear();
        let _ = model_done.wait_for(|done| *done).await;
    }
    let _ = timeout(GOODBYE, inside.all_gone()).await;
}
