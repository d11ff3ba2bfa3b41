//! The wish that a server ends, from any thread.

use std::sync::Arc;

use tokio::sync::watch;

/// Ends a server: it takes nobody new, answers what waits, says goodbye, and returns from
/// [`run`](super::Server::run). Copies mean the same server; once wished, it stays wished.
#[derive(Debug, Clone)]
pub struct Stop {
    wish: Arc<watch::Sender<bool>>,
}

impl Stop {
    pub(super) fn new() -> Self {
        Stop { wish: Arc::new(watch::Sender::new(false)) }
    }

    /// Wishes it. Never waits; not for a signal handler itself, but for the thread that hears of the signal.
    pub fn stop(&self) {
        self.wish.send_replace(true);
    }

    /// Was it wished?
    pub fn wished(&self) -> bool {
        *self.wish.borrow()
    }

    /// Waits for it.
    pub(super) async fn wait(&self) {
        // An error would mean that the sender is gone, and `self` holds it.
        let _ = self.wish.subscribe().wait_for(|wished| *wished).await;
    }
}
