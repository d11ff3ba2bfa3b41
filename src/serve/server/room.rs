//! What the parts of a server share.

use std::any::Any;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use hyper::body::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::Settings;
use super::event::{Event, Listener, What};
use super::metrics::Metrics;
use super::queue::Queue;
use super::stop::Stop;
use crate::serve::policy::{Kind, Policy, Refusal, Tap};
use crate::serve::request::Request;
use crate::serve::tree::Tree;

/// How many answers wait to be kept before their clients wait too.
const KEPT_AHEAD: usize = 4;

/// What the parts of a server share.
pub(super) struct Room<P: Policy> {
    pub(super) policy: Arc<P>,
    pub(super) settings: Settings,
    pub(super) queue: Arc<Queue<P::Ready>>,
    pub(super) metrics: Metrics,
    pub(super) stop: Stop,
    /// What every client is told first, as it is sent.
    pub(super) metadata: Bytes,
    /// One for each client that there may be.
    pub(super) places: Arc<Semaphore>,
    /// Where answers go to be kept, if they are; nothing is the last.
    pub(super) kept: Option<mpsc::Sender<Option<Kept>>>,
    listener: Listener,
    clients: AtomicU64,
}

/// A request and its answer, for the tap.
pub(super) struct Kept {
    pub(super) inputs: Request,
    pub(super) outputs: Tree,
}

/// The tap, and where it hears from.
pub(super) struct Tapped {
    tap: Arc<dyn Tap>,
    kept: mpsc::Receiver<Option<Kept>>,
}

impl<P: Policy> Room<P> {
    pub(super) fn new(
        policy: Arc<P>,
        settings: Settings,
        listener: Listener,
        stop: Stop,
        metadata: Bytes,
    ) -> (Self, Option<Tapped>) {
        let (kept, tapped) = match settings.tap.clone() {
            Some(tap) => {
                let (sender, kept) = mpsc::channel(KEPT_AHEAD);
                (Some(sender), Some(Tapped { tap, kept }))
            }
            None => (None, None),
        };
        let room = Room {
            policy,
            queue: Arc::new(Queue::new(settings.queue)),
            metrics: Metrics::new(SystemTime::now()),
            stop,
            metadata,
            places: Arc::new(Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS))),
            kept,
            listener,
            clients: AtomicU64::new(0),
            settings,
        };
        (room, tapped)
    }

    /// The next client's number, from 1.
    pub(super) fn number(&self) -> u64 {
        self.clients.fetch_add(1, Relaxed) + 1
    }

    /// Tells the listener. A listener that panics is no reason to end.
    #[track_caller]
    pub(super) fn tell(&self, what: What) {
        let event = Event { at: SystemTime::now(), place: Location::caller(), what };
        let _ = catch_unwind(AssertUnwindSafe(|| (self.listener)(&event)));
    }

    /// Runs the policy's code. A panic is told, counted, and an error that is ours.
    #[track_caller]
    pub(super) fn caught<T>(&self, during: &'static str, code: impl FnOnce() -> T) -> Result<T, Refusal> {
        catch_unwind(AssertUnwindSafe(code)).map_err(|panic| {
            let message = said(&*panic);
            self.metrics.panicked();
            self.tell(What::Panicked { during, message: message.clone() });
            internal(format!("panic in {during}: {message}"))
        })
    }

    /// The tap has all; it may end.
    pub(super) fn keep_no_more(&self) {
        if let Some(kept) = &self.kept {
            // An error would mean that it has ended.
            let _ = kept.blocking_send(None);
        }
    }
}

impl Tapped {
    /// Keeps until there is nothing more.
    pub(super) fn keep_all<P: Policy>(mut self, room: &Room<P>) {
        while let Some(Some(Kept { inputs, outputs })) = self.kept.blocking_recv() {
            let result = room.caught("keep", || self.tap.keep(&inputs, &outputs));
            if let Ok(Err(why)) = result {
                room.tell(What::NotKept { why });
            }
        }
    }
}

/// What a client is told of our own faults: that they are ours.
pub(super) fn internal(detail: String) -> Refusal {
    Refusal::new(Kind::Internal, "internal error: the server could not answer this; its log says why").because(detail)
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}
