//! Who sends, and when: one thread a connection, requests shared out one by one.
//!
//! Invariant: a request that failed is counted and the next one is sent, over a new connection; a server that is gone ends
//! the run, with all that was measured until then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::scene::Scene;
use super::timing::Timings;
use crate::cli::output::Mouth;
use crate::serve::client::{Client, Settings};
use crate::serve::request::Extensions;
use crate::serve::tree::Tree;

/// Requests with which each connection begins, not counted: openpi's two.
const WARM_UP: u64 = 2;
/// Different failures whose words are kept.
const KINDS: usize = 16;

/// What is to be done.
pub(super) struct Load<'a> {
    pub(super) settings: &'a Settings,
    pub(super) scene: &'a Scene,
    pub(super) extensions: Option<&'a Extensions>,
    /// In all.
    pub(super) requests: u64,
    /// Of each connection, per second.
    pub(super) rate: Option<f64>,
    /// Rows of each chunk that are printed.
    pub(super) rows: Option<usize>,
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) timings: Timings,
    pub(super) failures: Failures,
    /// From the first counted request to the end.
    pub(super) seconds: f64,
    /// What the last actions are: `float32[50, 14]`.
    pub(super) actions: Option<String>,
}

/// Requests without a reply, by their words.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) count: u64,
    pub(super) words: BTreeMap<String, u64>,
}

impl Failures {
    fn add(&mut self, words: String) {
        self.count += 1;
        if self.words.len() < KINDS || self.words.contains_key(&words) {
            *self.words.entry(words).or_default() += 1;
        } else {
            *self.words.entry("others".to_owned()).or_default() += 1;
        }
    }
}

impl Load<'_> {
    /// Does it.
    ///
    /// # Errors
    /// An observation that cannot be read.
    pub(super) fn run(&self, clients: Vec<Client>, mouth: &Mouth) -> Result<Outcome> {
        mouth.count("requests", self.requests);
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let start = Barrier::new(clients.len());
        let shared = Mutex::new(Outcome::default());
        let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Mutex::new(Instant::now());
        let one = |mut client: Client| -> Result<()> {
            let warm = (0..WARM_UP).try_for_each(|n| self.warm_up(&mut client, n));
            if start.wait().is_leader() {
                *begun.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
            if let Err(words) = warm {
                lock().failures.add(format!("warm-up: {words}"));
            }
            let mut due = Instant::now();
            loop {
                let request = next.fetch_add(1, Ordering::Relaxed);
                if request >= self.requests {
                    break;
                }
                let message = self.message(request)?;
                if let Some(rate) = self.rate {
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    due = due.max(Instant::now()) + Duration::from_secs_f64(1.0 / rate);
                }
                if !client.is_sound() {
                    match Client::connect(self.settings, |_| {}) {
                        Ok(anew) => client = anew,
                        Err(error) => {
                            lock().failures.add(error.to_string());
                            break;
                        }
                    }
                }
                let begun = Instant::now();
                let reply = client.infer(&message);
                let client_infer_ms = begun.elapsed().as_secs_f64() * 1000.0;
                match reply {
                    Ok(reply) => {
                        if let Some(rows) = self.rows {
                            mouth.note(&shown(&reply, rows));
                        }
                        let mut outcome = lock();
                        outcome.timings.add(client_infer_ms, &reply);
                        outcome.actions = reply.get("actions").map(Tree::kind);
                    }
                    Err(error) => lock().failures.add(error.to_string()),
                }
                use crate::weights::convert::Progress as _;
                mouth.at(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
            client.close();
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| one(client))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().ok().context("a client's thread failed")?)
        })?;
        let begun = *begun.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome.seconds = begun.elapsed().as_secs_f64();
        // Where all connections were lost, some requests were not even sent.
        let unsent = self.requests.saturating_sub(done.load(Ordering::Relaxed));
        if unsent > 0 {
            outcome.failures.count = outcome.failures.count.max(unsent);
            outcome.failures.words.insert("not sent, the server was gone".to_owned(), unsent);
        }
        Ok(outcome)
    }

    fn message(&self, request: u64) -> Result<Tree> {
        let message = self.scene.message(request)?;
        match self.extensions {
            None => Ok(message),
            Some(extensions) => Ok(extensions.beside(message)?),
        }
    }

    fn warm_up(&self, client: &mut Client, request: u64) -> Result<(), String> {
        let message = self.message(request).map_err(|error| format!("{error:#}"))?;
        client.infer(&message).map_err(|error| error.to_string()).map(drop)
    }
}

/// The first rows of a chunk.
fn shown(reply: &Tree, rows: usize) -> String {
    let Some(Tree::Array(actions)) = reply.get("actions") else { return "the reply has no actions".to_owned() };
    let width = actions.width().unwrap_or(1).max(1);
    let values = actions.values.to_f64();
    let row = |row: &[f64]| row.iter().map(|value| format!("{value:8.3}")).collect::<Vec<_>>().join(" ");
    let rows: Vec<String> = values.chunks(width).take(rows).map(row).collect();
    format!("actions {actions}\n{}", rows.join("\n"))
}
