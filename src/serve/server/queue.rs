//! What waits for the model.
//!
//! Invariants: never more than the bound; each client has at most one request here, so first come, first served is fair
//! between clients; whoever has waited too long, or is gone, never reaches the model; whoever is let in hears of it exactly
//! once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::serve::policy::{Kind, Refusal};
use crate::serve::request::Answer;

/// Observations that wait for the model.
pub(super) struct Queue<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
    bound: usize,
}

struct State<R> {
    waiting: VecDeque<Job<R>>,
    /// How many clients there are: nobody waits for a batch larger than that.
    clients: usize,
    next: u64,
    closed: bool,
}

/// One of them.
pub(super) struct Job<R> {
    pub(super) ready: R,
    pub(super) queued: Instant,
    pub(super) reply: oneshot::Sender<Done>,
    patience: Patience,
    number: u64,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) answer: Result<Answer, Refusal>,
    /// How long it waited.
    pub(super) queue: Duration,
    /// How long the model's call was.
    pub(super) model: Duration,
    /// How many went through the model at once.
    pub(super) batch: usize,
}

/// How long a request may wait, and since when it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) since: Instant,
    pub(super) limit: Option<Duration>,
}

impl Patience {
    /// The shorter of two limits.
    pub(super) fn and(self, other: Option<Duration>) -> Self {
        let limit = match (self.limit, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Patience { limit, ..self }
    }

    /// When it ends; never for none, or for more than a clock can tell.
    pub(super) fn until(self) -> Option<Instant> {
        self.since.checked_add(self.limit?)
    }

    /// Is it over?
    pub(super) fn over(self, now: Instant) -> bool {
        self.until().is_some_and(|until| now >= until)
    }

    pub(super) fn refusal(self) -> Refusal {
        let limit = self.limit.unwrap_or_default().as_secs_f64() * 1e3;
        Refusal::new(
            Kind::Late,
            format!("deadline: the request waited longer than the {limit} ms that it may; the model is busy"),
        )
    }
}

pub(super) fn ending() -> Refusal {
    Refusal::new(Kind::Ending, "the server is ending; connect again when it is back")
}

/// A place in the queue; given up when dropped.
pub(super) struct Ticket<R> {
    queue: Arc<Queue<R>>,
    number: u64,
}

impl<R> Ticket<R> {
    /// Leaves the queue. False if it was not in it any more: the model has it, or it was answered.
    pub(super) fn withdraw(&self) -> bool {
        let mut state = self.queue.lock();
        let found = state.waiting.iter().position(|job| job.number == self.number);
        found.and_then(|place| state.waiting.remove(place)).is_some()
    }
}

impl<R> Drop for Ticket<R> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// How many go through the model at once, and how long the first waits for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batching {
    pub(super) most: usize,
    pub(super) wait: Duration,
}

impl<R> Queue<R> {
    pub(super) fn new(bound: usize) -> Self {
        let state = State { waiting: VecDeque::new(), clients: 0, next: 0, closed: false };
        Queue { state: Mutex::new(state), changed: Condvar::new(), bound: bound.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// One client more.
    pub(super) fn enter(&self) {
        self.lock().clients += 1;
    }

    /// One client fewer.
    pub(super) fn leave(&self) {
        self.lock().clients -= 1;
        self.changed.notify_one();
    }

    /// Waits for the model from now on.
    pub(super) fn push(
        self: &Arc<Self>,
        ready: R,
        patience: Patience,
    ) -> Result<(Ticket<R>, oneshot::Receiver<Done>), Refusal> {
        let mut state = self.lock();
        let now = Instant::now();
        if state.closed {
            return Err(ending());
        }
        if patience.over(now) {
            return Err(patience.refusal());
        }
        if state.waiting.len() >= self.bound {
            let bound = self.bound;
            return Err(Refusal::new(
                Kind::Busy,
                format!("the server is busy: {bound} requests wait for the model, as many as may; try again later"),
            ));
        }
        let (reply, done) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(Job { ready, queued: now, reply, patience, number });
        drop(state);
        self.changed.notify_one();
        Ok((Ticket { queue: Arc::clone(self), number }, done))
    }

    /// The next for the model: the first, and those that may go with it. Waits until there is one; `None` when the queue is
    /// closed and empty. Only ever called by one thread.
    pub(super) fn take(&self, batching: Batching, together: impl Fn(&R, &R) -> bool) -> Option<Vec<Job<R>>> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state.refuse_late(now);
            let Some(first) = state.waiting.front() else {
                if state.closed {
                    return None;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // What it waited while the model was busy counts: it does not wait twice.
            let until = first.queued + batching.wait;
            let batch = state.batch(batching.most, &together);
            let full = batch.len() >= batching.most;
            // Each client has one here at most: once all have, nobody is left to wait for.
            let all = state.waiting.len() >= state.clients;
            if full || all || state.closed || now >= until {
                return Some(state.remove(&batch));
            }
            let wake = state.waiting.iter().filter_map(|job| job.patience.until()).fold(until, Instant::min);
            let waited = self.changed.wait_timeout(state, wake.saturating_duration_since(now));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes nobody more; what waits is still served.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Takes nobody more, and what waits is refused.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_one();
        for job in waiting {
            job.refuse(ending());
        }
    }
}

impl<R> State<R> {
    fn refuse_late(&mut self, now: Instant) {
        let mut place = 0;
        while let Some(job) = self.waiting.get(place) {
            if !job.patience.over(now) {
                place += 1;
            } else if let Some(job) = self.waiting.remove(place) {
                let refusal = job.patience.refusal();
                job.refuse(refusal);
            }
        }
    }

    /// The first, and the places of those that may go with it.
    fn batch(&self, most: usize, together: &impl Fn(&R, &R) -> bool) -> Vec<usize> {
        let Some(first) = self.waiting.front() else { return Vec::new() };
        let others = (1..self.waiting.len()).filter(|place| together(&first.ready, &self.waiting[*place].ready));
        std::iter::once(0).chain(others.take(most.saturating_sub(1))).collect()
    }

    fn remove(&mut self, places: &[usize]) -> Vec<Job<R>> {
        let mut jobs: Vec<Job<R>> = places.iter().rev().filter_map(|place| self.waiting.remove(*place)).collect();
        jobs.reverse();
        jobs
    }
}

impl<R> Job<R> {
    fn refuse(self, refusal: Refusal) {
        // Nobody may be listening any more; then nobody has to be told.
        let _ = self.reply.send(Done {
            answer: Err(refusal),
            queue: self.queued.elapsed(),
            model: Duration::ZERO,
            batch: 0,
        });
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
