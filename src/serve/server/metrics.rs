//! What a server counts, as Prometheus reads it: text format 0.0.4.
//!
//! Invariants: nothing here waits, so `/metrics` answers while the model runs; buckets are cumulative, every family has its
//! HELP and TYPE once and before its samples, and the names keep Prometheus's rules: base units, `_total` for what only grows.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::event::Timing;
use crate::serve::policy::Kind;

/// `Content-Type` of the text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds in nanoseconds: 1 ms to 60 s.
const TIMES: [u64; 15] = {
    const MS: u64 = 1_000_000;
    [
        MS,
        2 * MS,
        5 * MS,
        10 * MS,
        20 * MS,
        50 * MS,
        100 * MS,
        200 * MS,
        500 * MS,
        1000 * MS,
        2000 * MS,
        5000 * MS,
        10_000 * MS,
        30_000 * MS,
        60_000 * MS,
    ]
};

/// Upper bounds of how many go through the model at once.
const BATCHES: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// What a server counts.
pub(super) struct Metrics {
    began: SystemTime,
    answered: AtomicU64,
    errors: [AtomicU64; Kind::ALL.len()],
    panics: AtomicU64,
    turned_away: AtomicU64,
    connections: AtomicU64,
    connections_total: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// `u64::MAX` for: the device does not tell.
    device_memory_bytes: AtomicU64,
    request: Histogram<{ TIMES.len() }>,
    prepare: Histogram<{ TIMES.len() }>,
    queue: Histogram<{ TIMES.len() }>,
    model: Histogram<{ TIMES.len() }>,
    batch: Histogram<{ BATCHES.len() }>,
}

struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    /// How many were at most that, and more than the bound before.
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [u64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Histogram { bounds, counts, beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    fn observe(&self, value: u64) {
        let place = self.bounds.iter().position(|bound| value <= *bound);
        place.map_or(&self.beyond, |place| &self.counts[place]).fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    fn time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// With bounds and sum divided by `unit`.
    fn write(&self, out: &mut String, name: &str, help: &str, unit: f64) {
        family(out, name, "histogram", help);
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            total += count.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {total}", *bound as f64 / unit);
        }
        total += self.beyond.load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum {}", self.sum.load(Relaxed) as f64 / unit);
        // The same number as the last bucket's, as the format demands, whatever is counted meanwhile.
        let _ = writeln!(out, "{name}_count {total}");
    }
}

const NANOSECONDS: f64 = 1e9;

impl Metrics {
    pub(super) fn new(began: SystemTime) -> Self {
        Metrics {
            began,
            answered: AtomicU64::new(0),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            panics: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            connections_total: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            device_memory_bytes: AtomicU64::new(u64::MAX),
            request: Histogram::new(&TIMES),
            prepare: Histogram::new(&TIMES),
            queue: Histogram::new(&TIMES),
            model: Histogram::new(&TIMES),
            batch: Histogram::new(&BATCHES),
        }
    }

    pub(super) fn opened(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.connections_total.fetch_add(1, Relaxed);
    }

    pub(super) fn closed(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    pub(super) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Relaxed);
    }

    pub(super) fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn answered(&self, timing: &Timing) {
        self.answered.fetch_add(1, Relaxed);
        self.request.time(timing.total);
        self.prepare.time(timing.prepare);
        self.queue.time(timing.queue);
    }

    pub(super) fn refused(&self, kind: Kind) {
        if let Some(place) = Kind::ALL.iter().position(|other| *other == kind) {
            self.errors[place].fetch_add(1, Relaxed);
        }
    }

    /// The model ran once.
    pub(super) fn ran(&self, model: Duration, batch: usize, device_memory_bytes: Option<u64>) {
        self.model.time(model);
        self.batch.observe(batch as u64);
        self.device_memory(device_memory_bytes);
    }

    pub(super) fn device_memory(&self, bytes: Option<u64>) {
        self.device_memory_bytes.store(bytes.unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn totals(&self) -> (u64, u64) {
        (self.answered.load(Relaxed), self.errors.iter().map(|count| count.load(Relaxed)).sum())
    }

    /// The text.
    pub(super) fn text(&self, queue_length: usize) -> String {
        let mut out = String::with_capacity(8192);
        let (answered, refused) = self.totals();
        let counter = |out: &mut String, name: &str, help: &str, value: u64| {
            family(out, name, "counter", help);
            let _ = writeln!(out, "{name} {value}");
        };
        let gauge = |out: &mut String, name: &str, help: &str, value: f64| {
            family(out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        };
        counter(&mut out, "pi0_requests_total", "Requests that were answered or refused.", answered + refused);
        family(&mut out, "pi0_errors_total", "counter", "Requests that were refused, by whose fault it was.");
        for (kind, count) in Kind::ALL.iter().zip(&self.errors) {
            let _ = writeln!(out, "pi0_errors_total{{kind=\"{}\"}} {}", kind.name(), count.load(Relaxed));
        }
        counter(&mut out, "pi0_panics_total", "Panics of the policy that were survived.", self.panics.load(Relaxed));
        gauge(
            &mut out,
            "pi0_connections",
            "Clients of the policy that are connected.",
            self.connections.load(Relaxed) as f64,
        );
        let total = self.connections_total.load(Relaxed);
        counter(&mut out, "pi0_connections_total", "Clients of the policy that connected.", total);
        let away = self.turned_away.load(Relaxed);
        counter(
            &mut out,
            "pi0_turned_away_total",
            "Connections that did not become clients: no key, no place, no websocket.",
            away,
        );
        gauge(&mut out, "pi0_queue_length", "Requests that wait for the model.", queue_length as f64);
        self.batch.write(&mut out, "pi0_batch_size", "Requests that went through the model at once.", 1.0);
        for (histogram, name, help) in [
            (&self.request, "pi0_request_seconds", "From a request's last byte to its answer's, of those answered."),
            (
                &self.prepare,
                "pi0_prepare_seconds",
                "Reading a message and preparing its observation, of those answered.",
            ),
            (&self.queue, "pi0_queue_seconds", "Waiting for the model, of those answered."),
            (&self.model, "pi0_model_seconds", "One call of the model, whatever its batch."),
        ] {
            histogram.write(&mut out, name, help, NANOSECONDS);
        }
        let received = self.received_bytes.load(Relaxed);
        counter(&mut out, "pi0_received_bytes_total", "Bytes of the messages of clients.", received);
        counter(&mut out, "pi0_sent_bytes_total", "Bytes of the messages to clients.", self.sent_bytes.load(Relaxed));
        let device = self.device_memory_bytes.load(Relaxed);
        if device != u64::MAX {
            gauge(
                &mut out,
                "pi0_device_memory_bytes",
                "Memory of the device in use, when the model last ran.",
                device as f64,
            );
        }
        if let Some(resident) = resident_bytes() {
            gauge(
                &mut out,
                "process_resident_memory_bytes",
                "Memory of the process that is resident.",
                resident as f64,
            );
        }
        let began = self.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        gauge(&mut out, "process_start_time_seconds", "When the server began, in seconds since 1970.", began);
        family(&mut out, "pi0_build_info", "gauge", "The version that runs.");
        let _ = writeln!(out, "pi0_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        out
    }
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Where Linux tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
