//! What happens in a server, as values: the room itself prints nothing.

use std::net::SocketAddr;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::serve::policy::Refusal;

/// Who hears of what happens. Called on the server's own threads: it must not wait for long.
pub type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// Something happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// Where in the code, for logs in openpi's form.
    pub place: &'static Location<'static>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The server takes connections.
    Listening {
        /// Where.
        address: SocketAddr,
    },
    /// A client of the policy is there.
    Opened {
        /// Counted from 1.
        client: u64,
        /// From where.
        peer: SocketAddr,
    },
    /// It is gone.
    Closed {
        /// Which.
        client: u64,
        /// From where.
        peer: SocketAddr,
        /// Why.
        why: Why,
    },
    /// It has its actions.
    Answered {
        /// Which.
        client: u64,
        /// From where.
        peer: SocketAddr,
        /// How long it took.
        timing: Timing,
    },
    /// It was told that there are none, and why.
    Refused {
        /// Which.
        client: u64,
        /// From where.
        peer: SocketAddr,
        /// Why; its `detail` is for here alone.
        refusal: Refusal,
    },
    /// Somebody did not become a client: a wrong key, no place, no websocket.
    TurnedAway {
        /// From where.
        peer: SocketAddr,
        /// What it was answered, in HTTP's numbers.
        status: u16,
        /// Why.
        why: String,
    },
    /// The policy panicked; whoever asked was told that the error is ours, and the server goes on.
    Panicked {
        /// In `prepare`, `together`, `infer` or `keep`.
        during: &'static str,
        /// What it said.
        message: String,
    },
    /// An answer was given, but not kept.
    NotKept {
        /// Why.
        why: String,
    },
    /// A connection could not be taken: out of files, mostly. The server tries again.
    NotAccepted {
        /// Why.
        why: String,
    },
    /// The server takes nobody new and answers what waits.
    Stopping {
        /// How many wait.
        waiting: usize,
    },
    /// It is done.
    Stopped {
        /// How many requests had actions.
        answered: u64,
        /// How many had none.
        refused: u64,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The client said goodbye, with this code.
    Left(Option<u16>),
    /// The connection broke without a goodbye.
    Vanished(String),
    /// It did not answer a ping.
    Silent,
    /// It did not read what it was sent.
    Deaf,
    /// What it sent is no websocket frame.
    Protocol(String),
    /// A request of its had no actions; openpi's protocol ends the connection then.
    Refused,
    /// The server ends.
    Ending,
}

/// How long one answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timing {
    /// Reading the message and preparing the observation.
    pub prepare: Duration,
    /// Waiting for the model.
    pub queue: Duration,
    /// The call of the model; shared with the others of its batch.
    pub model: Duration,
    /// From the message's last byte to the answer's.
    pub total: Duration,
    /// How many requests went through the model with this one, itself among them.
    pub batch: usize,
    /// Of the message.
    pub received_bytes: usize,
    /// Of the answer.
    pub sent_bytes: usize,
}
