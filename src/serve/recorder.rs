//! Keeps requests and their answers as openpi's recorder does: `step_0.npy`, `step_1.npy`, … in one folder.
//!
//! Source: openpi 15a9616, policies/policy.py, PolicyRecorder, which writes inside the request and begins again at 0 over
//! what is there. Here a thread of its own writes; numbers go on after the highest that is there and have no gaps, since
//! openpi's notebook counts the files and then reads that many.
//!
//! Where the disk is slower than the robot: up to [`Room`] wait in memory. When it is full, [`Recorder::keep`] waits for
//! [`Room::patience`] once; if nothing was written in that time the recording is dropped and counted, and until the disk
//! moves again the next ones are dropped without waiting. Invariant: a robot's answer never waits for a disk longer than
//! that, and no file is ever replaced or half there.

use std::collections::{HashSet, VecDeque};
use std::io::ErrorKind;
use std::mem::Discriminant;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::request::Request;
use super::tree::Tree;
use super::{EXTENSIONS, recorded};
use crate::data::recording::{self, Recording, RecordingError, RecordingFault};

/// How much may wait for the disk, and how long a request may wait for room.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Recordings.
    pub recordings: usize,
    /// Bytes of them, about; one alone may always wait.
    pub bytes: usize,
    /// How long [`Recorder::keep`] waits before it drops.
    pub patience: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Room { recordings: 32, bytes: 256 << 20, patience: Duration::from_millis(20) }
    }
}

/// What the log should know.
#[derive(Debug)]
pub enum Event {
    /// The first after some that were kept: the disk does not keep up. `dropped` so far.
    Dropped {
        /// How many, from the beginning.
        dropped: u64,
    },
    /// A recording that could not be written; the first of its kind.
    Failed {
        /// Why.
        error: RecordingError,
    },
}

/// How many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files written.
    pub written: u64,
    /// Dropped since the disk did not keep up.
    pub dropped: u64,
    /// Refused by the disk, or no recording.
    pub failed: u64,
}

/// Where requests and answers are kept. Dropped, it first writes what waits.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    folder: PathBuf,
    room: Room,
}

struct Shared {
    state: Mutex<State>,
    /// Something waits, or the end is near.
    filled: Condvar,
    /// Something was taken.
    taken: Condvar,
    tell: Box<dyn Fn(Event) + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").field("counts", &self.state().counts).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(usize, Recording)>,
    bytes: usize,
    /// Nothing was taken since the last one was dropped.
    stuck: bool,
    closed: bool,
    counts: Counts,
    /// Kinds of failure that were told.
    told: HashSet<(Discriminant<RecordingFault>, Option<ErrorKind>)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts it; tells the first of its kind.
    fn failed(&self, error: RecordingError) {
        let kind = match &error.fault {
            RecordingFault::Io(error) | RecordingFault::Write(error) => Some(error.kind()),
            _ => None,
        };
        let mut state = self.state();
        state.counts.failed += 1;
        let first = state.told.insert((std::mem::discriminant(&error.fault), kind));
        drop(state);
        if first {
            (self.tell)(Event::Failed { error });
        }
    }
}

impl Recorder {
    /// Into this folder, which is made where it is missing. `tell` hears of what goes wrong, from any thread.
    ///
    /// # Errors
    /// The folder cannot be read or written: better known before the first robot comes.
    pub fn open(
        folder: &Path,
        room: Room,
        tell: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, RecordingError> {
        recording::may_write(folder)?;
        let next = next(folder)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            taken: Condvar::new(),
            tell: Box::new(tell),
        });
        let mut writer = Writer { folder: folder.to_owned(), next, shared: Arc::clone(&shared) };
        let started = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || writer.run());
        let started =
            started.map_err(|error| RecordingError { path: folder.to_owned(), fault: RecordingFault::Write(error) })?;
        Ok(Recorder { shared, writer: Some(started), folder: folder.to_owned(), room })
    }

    /// Keeps a request and what it was answered: what openpi's `Policy.infer` returns. Blocks for [`Room::patience`] at
    /// most: not for a thread that serves sockets. Where the server drew noise, the request has its seed.
    pub fn keep(&self, request: &Request, outputs: &Tree) {
        match recorded::recording(request, outputs) {
            Ok(recording) => self.wait_for_room(recording),
            Err(fault) => {
                let (key, what) = (EXTENSIONS.to_owned(), fault.to_string());
                let error = RecordingError { path: self.folder.clone(), fault: RecordingFault::Unfit { key, what } };
                self.shared.failed(error);
            }
        }
    }

    fn wait_for_room(&self, recording: Recording) {
        let bytes = recording::record_bytes(&recording.inputs) + recording::record_bytes(&recording.outputs);
        let full = |state: &State| {
            !state.waiting.is_empty()
                && (state.waiting.len() >= self.room.recordings || state.bytes + bytes > self.room.bytes)
        };
        let mut state = self.shared.state();
        if full(&state) && !state.stuck {
            let waited = self.shared.taken.wait_timeout_while(state, self.room.patience, |state| full(state));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if full(&state) {
            state.counts.dropped += 1;
            let (first, dropped) = (!state.stuck, state.counts.dropped);
            state.stuck = true;
            drop(state);
            if first {
                (self.shared.tell)(Event::Dropped { dropped });
            }
            return;
        }
        state.waiting.push_back((bytes, recording));
        state.bytes += bytes;
        drop(state);
        self.shared.filled.notify_one();
    }

    /// How many up to now.
    pub fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// Writes what waits, and ends.
    pub fn close(mut self) -> Counts {
        self.end();
        self.counts()
    }

    fn end(&mut self) {
        self.shared.state().closed = true;
        self.shared.filled.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so on its own.
            let _ = writer.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
    }
}

/// The number after the highest that is there.
fn next(folder: &Path) -> Result<u64, RecordingError> {
    match recording::steps(folder) {
        Ok(steps) => Ok(steps.last().map_or(0, |(number, _)| number.saturating_add(1))),
        Err(RecordingError { fault: RecordingFault::Empty, .. }) => Ok(0),
        Err(error) => Err(error),
    }
}

/// The thread that writes.
struct Writer {
    folder: PathBuf,
    next: u64,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(&mut self) {
        while let Some(recording) = self.take() {
            match self.write(&recording) {
                Ok(()) => self.shared.state().counts.written += 1,
                Err(error) => self.shared.failed(error),
            }
        }
    }

    /// The next one; `None` at the end.
    fn take(&self) -> Option<Recording> {
        let wait = |state: &mut State| state.waiting.is_empty() && !state.closed;
        let state = self.shared.filled.wait_while(self.shared.state(), wait);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let (bytes, recording) = state.waiting.pop_front()?;
        state.bytes -= bytes;
        state.stuck = false;
        drop(state);
        self.shared.taken.notify_all();
        Some(recording)
    }

    /// Under the next number. One that failed takes none, so that there is no gap.
    fn write(&mut self, recording: &Recording) -> Result<(), RecordingError> {
        let path = |number: u64| self.folder.join(format!("step_{number}.npy"));
        match recording::write(&path(self.next), recording) {
            // Someone else writes into this folder too.
            Err(RecordingError { fault: RecordingFault::Exists, .. }) => {
                let number = next(&self.folder)?;
                recording::write(&path(number), recording)?;
                self.next = number.saturating_add(1);
            }
            Err(error) => return Err(error),
            Ok(()) => self.next = self.next.saturating_add(1),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
