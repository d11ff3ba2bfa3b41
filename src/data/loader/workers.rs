//! The threads that make batches: each takes the next position of the order, and lays its example down under it.
//!
//! Invariants: batches come in order, and hold what one thread alone would have put there; no more than the batch asked
//! for and `prefetch` behind it are held; whatever happens to a thread, [`Loader::next`] answers, and a dropped loader
//! leaves no thread behind.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::order::{Cursor, Order, OrderError, Place};
use super::{Example, ExampleError, Source};

/// Threads; no machine has as many.
const MAX_WORKERS: usize = 1024;

/// How batches are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Of the order.
    pub seed: u64,
    /// In an order of chance, or in the datasets' own?
    pub shuffle: bool,
    /// Examples of a batch.
    pub batch_size: usize,
    /// Threads; with 0 examples are made in the thread that asks for them.
    pub num_workers: usize,
    /// Batches that are made before they are asked for.
    pub prefetch: usize,
    /// The step whose batch comes first.
    pub first_step: u64,
}

/// The examples of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Which step.
    pub step: u64,
    /// `batch_size` of them.
    pub examples: Vec<Example>,
    /// Where they are from: dataset, frame.
    pub indices: Vec<(usize, usize)>,
    /// How long the caller waited for it.
    pub waited: Duration,
}

/// Why there is no batch.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The datasets.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// A setting that no loader can have.
    #[error("{name}: {what}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A thread that could not be started.
    #[error("a thread to read data cannot be started: {0}")]
    Thread(std::io::Error),
    /// An example that could not be made.
    #[error("{dataset}: {which}, of step {step}: {why}")]
    Example {
        /// The dataset's name.
        dataset: String,
        /// `frame 64 (episode 1, frame 24 of it)`.
        which: String,
        /// The dataset, in the order in which they were named, and the frame.
        place: Place,
        /// The step whose batch it belongs to.
        step: u64,
        /// Why.
        why: Box<ExampleError>,
    },
    /// It has failed before.
    #[error("the loader has failed before; begin another at step {step}")]
    Ended {
        /// The step that it failed at.
        step: u64,
    },
}

/// Batches of a run from a step on, without end.
#[derive(Debug)]
pub struct Loader {
    sources: Arc<[Source]>,
    batch_size: u64,
    prefetch: u64,
    /// The next one.
    step: u64,
    failed: bool,
    supply: Supply,
}

/// Who makes examples.
#[derive(Debug)]
enum Supply {
    /// Whoever asks.
    Here(Box<Cursor>),
    /// Threads.
    Threads { shared: Arc<Shared>, threads: Vec<JoinHandle<()>> },
}

/// What the threads and the loader have in common.
#[derive(Debug)]
struct Shared {
    desk: Mutex<Desk>,
    /// There is a position to take, or nothing more to do.
    work: Condvar,
    /// There is an example to take.
    ready: Condvar,
}

#[derive(Debug)]
struct Desk {
    cursor: Cursor,
    /// The position that is taken next.
    next: u64,
    /// Positions before this one may be taken.
    end: u64,
    /// Made and not yet asked for, by position.
    made: BTreeMap<u64, Made>,
    closed: bool,
}

type Made = (Place, Result<Example, ExampleError>);

impl Shared {
    /// Nothing panics while it holds the desk; a lock that says so is taken all the same.
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, on: &Condvar, desk: MutexGuard<'a, Desk>) -> MutexGuard<'a, Desk> {
        on.wait(desk).unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn work(&self, sources: &[Source]) {
        let mut desk = self.desk();
        loop {
            while !desk.closed && desk.next >= desk.end {
                desk = self.wait(&self.work, desk);
            }
            if desk.closed {
                return;
            }
            let (position, place) = (desk.next, desk.cursor.advance());
            desk.next += 1;
            drop(desk);
            let made = make(sources, place);
            desk = self.desk();
            desk.made.insert(position, (place, made));
            self.ready.notify_one();
        }
    }

    /// The example of a position, when it is made.
    fn take(&self, position: u64) -> Made {
        let mut desk = self.desk();
        loop {
            match desk.made.remove(&position) {
                Some(made) => return made,
                None => desk = self.wait(&self.ready, desk),
            }
        }
    }

    /// Lets the threads go on to this position.
    fn until(&self, end: u64) {
        self.desk().end = end;
        self.work.notify_all();
    }
}

/// Makes an example; a panic is one more reason why there is none.
fn make(sources: &[Source], place: Place) -> Result<Example, ExampleError> {
    // Examples are read, never changed: nothing half-made is seen after a panic.
    catch_unwind(AssertUnwindSafe(|| sources[place.dataset].examples.example(place.frame)))
        .unwrap_or_else(|panic| Err(ExampleError::Panicked(words(panic.as_ref()))))
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a word").to_owned()
}

impl Loader {
    /// Begins at `first_step`. With threads, they begin to read.
    ///
    /// # Errors
    /// Datasets that cannot be drawn from; a batch of no example; a thread that cannot be started.
    pub fn new(sources: Vec<Source>, settings: &Settings) -> Result<Self, LoaderError> {
        let Settings { seed, shuffle, batch_size, num_workers, prefetch, first_step } = *settings;
        let wrong = |name, what: &str| Err(LoaderError::Setting { name, what: what.to_owned() });
        if batch_size == 0 {
            return wrong("batch_size", "0, expected one example at least");
        }
        if num_workers > MAX_WORKERS {
            return wrong("num_workers", &format!("{num_workers}, expected at most {MAX_WORKERS}"));
        }
        let datasets = sources.iter().map(|source| (source.examples.name(), source.examples.len(), source.weight));
        let order = Order::new(datasets, seed, shuffle)?;
        let (batch_size, prefetch) = (batch_size as u64, prefetch as u64);
        let Some(first) = first_step.checked_mul(batch_size).filter(|first| *first < u64::MAX / 2) else {
            return wrong("first_step", &format!("{first_step}, and no run is as long"));
        };
        let (sources, cursor) = (Arc::<[Source]>::from(sources), order.at(first));
        let supply = match num_workers {
            0 => Supply::Here(Box::new(cursor)),
            _ => {
                let end = first.saturating_add(prefetch.saturating_mul(batch_size));
                let desk = Desk { cursor, next: first, end, made: BTreeMap::new(), closed: false };
                let (work, ready) = (Condvar::new(), Condvar::new());
                Supply::Threads { shared: Arc::new(Shared { desk: Mutex::new(desk), work, ready }), threads: vec![] }
            }
        };
        let mut loader = Loader { sources, batch_size, prefetch, step: first_step, failed: false, supply };
        // Those that were started by then end with the loader.
        (0..num_workers).try_for_each(|worker| loader.start(worker))?;
        Ok(loader)
    }

    fn start(&mut self, worker: usize) -> Result<(), LoaderError> {
        let Supply::Threads { shared, threads } = &mut self.supply else { return Ok(()) };
        let (shared, sources) = (Arc::clone(shared), Arc::clone(&self.sources));
        let thread = std::thread::Builder::new().name(format!("loader-{worker}"));
        threads.push(thread.spawn(move || shared.work(&sources)).map_err(LoaderError::Thread)?);
        Ok(())
    }

    /// The step whose batch comes next.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The next batch.
    ///
    /// # Errors
    /// The first of its examples, in order, that could not be made: dataset, frame and why. After that the loader is at
    /// its end.
    #[expect(clippy::should_implement_trait, reason = "it has no end, and fails")]
    pub fn next(&mut self) -> Result<Batch, LoaderError> {
        let (began, step) = (Instant::now(), self.step);
        if self.failed {
            return Err(LoaderError::Ended { step });
        }
        let first = step.saturating_mul(self.batch_size);
        let end = first.saturating_add(self.batch_size);
        if let Supply::Threads { shared, .. } = &self.supply {
            shared.until(end.saturating_add(self.prefetch.saturating_mul(self.batch_size)));
        }
        let mut batch = Batch { step, examples: vec![], indices: vec![], waited: Duration::ZERO };
        for position in first..end {
            let (place, made) = match &mut self.supply {
                Supply::Here(cursor) => {
                    let place = cursor.advance();
                    (place, make(&self.sources, place))
                }
                Supply::Threads { shared, .. } => shared.take(position),
            };
            match made {
                Ok(example) => batch.examples.push(example),
                Err(why) => {
                    self.failed = true;
                    self.close();
                    let examples = &self.sources[place.dataset].examples;
                    let (dataset, which) = (examples.name().to_owned(), examples.which(place.frame));
                    return Err(LoaderError::Example { dataset, which, place, step, why: Box::new(why) });
                }
            }
            batch.indices.push((place.dataset, place.frame));
        }
        self.step += 1;
        batch.waited = began.elapsed();
        Ok(batch)
    }

    /// Ends the threads; each finishes the example that it is at.
    fn close(&mut self) {
        let Supply::Threads { shared, threads } = &mut self.supply else { return };
        shared.desk().closed = true;
        shared.work.notify_all();
        for thread in threads.drain(..) {
            // What panics in one was caught where it was made.
            let _ = thread.join();
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.close();
    }
}
