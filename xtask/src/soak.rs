//! `cargo xtask soak`: thousands of good and bad clients against a real `pi0 serve` of a small model.
//!
//! Good clients ask with noise from a seed and compare every byte of the actions with what they were answered when nobody
//! else asked. Bad ones send bytes that are no HTTP, no frame, no message or no observation, announce a terabyte, stay
//! silent, or die at any moment. Meanwhile the server's memory, threads and open files are read from /proc. It must lose
//! no good request, answer each right, refuse each bad one as it should, hold no more at the end than after its warm-up,
//! and end by itself when it is told to.
//!
//! Invariant: all of it on the loopback, bounded in requests and in time.
//!
//! - [`good`]: clients that ask as they should
//! - [`bad`]: clients that do what no client should
//! - [`watch`]: what the server holds meanwhile

mod bad;
mod good;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::bench::{Bar, build_folder, mib, release};
use crate::wire::server::{Server, Vitals};
use good::{Table, Tally, Truth};
use watch::Sample;

/// How long anything may take for one client.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// Between the medians after the warm-up and at the end: what a leak of 2 KiB a request would exceed.
const MAX_GROWTH_MIB: f64 = 16.0;
/// Connections that a moment's scheduling leaves.
const MAX_LEFT: f64 = 2.0;
const MAX_END_S: f64 = 30.0;
/// Of memory over time, in the report.
const POINTS: usize = 40;

/// How long, and against what.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Requests of all clients
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    requests: u64,
    /// Of 100 requests, how many are bad
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=90))]
    bad: u64,
    /// Good clients at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    good_clients: u64,
    /// Bad clients at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    bad_clients: u64,
    /// Preset of an ALOHA
    #[arg(long, default_value = "pi0_aloha")]
    config: String,
    /// Checkpoint folder [default: the small pi0 in fixtures/]
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Program to try in place of the released `pi0`
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
    /// More arguments for `pi0 serve`
    #[arg(last = true)]
    more: Vec<String>,
}

/// What became of them all.
#[derive(Debug, Serialize)]
struct Report {
    good: u64,
    bad: u64,
    wall_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Before the first client and after the last.
    before: Vitals,
    after: Vitals,
    /// Why good requests were lost.
    lost: Vec<String>,
    /// Kinds of bad clients that were not treated as they must be: how often, and one case.
    mistreated: BTreeMap<String, (u64, String)>,
    memory: Vec<Sample>,
    /// The server's own counts at the end.
    metrics: BTreeMap<String, f64>,
    ended: String,
    bars: Vec<Bar>,
}

/// Runs it; false if a bar is missed.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    let build = build_folder()?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => release(root, &build)?,
    };
    let checkpoint = arguments.checkpoint.clone().unwrap_or_else(|| root.join("fixtures/checkpoints/policy/pi0"));
    let log = build.join(format!("soak-{}.log", std::process::id()));
    let mut command = Command::new(&program);
    command.args(["serve", "--config", &arguments.config, "--checkpoint-dir"]).arg(&checkpoint).args(&arguments.more);
    let server = Server::start(&mut command, &log)?;
    let report = soak(server, arguments);
    if report.is_ok() {
        let _ = std::fs::remove_file(&log);
    } else {
        eprintln!("the server's log: {}", log.display());
    }
    let report = report?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table(&report));
    }
    Ok(report.bars.iter().all(|bar| bar.met))
}

fn soak(server: Server, arguments: &Arguments) -> Result<Report> {
    let bad_total = arguments.requests * arguments.bad / 100;
    let total = arguments.requests - bad_total;
    let truth = Truth::learn(server.address, PATIENCE).context("before anything bad was done")?;
    let before = server.vitals()?;
    let ground = bad::Ground::new(server.address, PATIENCE);
    let table = Table {
        address: server.address,
        patience: PATIENCE,
        truth: &truth,
        total,
        taken: AtomicU64::new(0),
        done: AtomicU64::new(0),
        tally: Mutex::default(),
    };
    let (bad_taken, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mistreated: Mutex<BTreeMap<String, (u64, String)>> = Mutex::default();
    let begin = Instant::now();
    let samples = std::thread::scope(|scope| -> Result<Vec<Sample>> {
        let good: Vec<_> = (0..arguments.good_clients)
            .map(|index| {
                scope.spawn({
                    let table = &table;
                    move || good::client(table, index as usize)
                })
            })
            .collect();
        for _ in 0..arguments.bad_clients {
            scope.spawn(|| {
                loop {
                    let turn = bad_taken.fetch_add(1, Ordering::Relaxed);
                    if turn >= bad_total {
                        break;
                    }
                    // Spread over the whole run.
                    while table.done.load(Ordering::Relaxed) * bad_total < turn * total && !over.load(Ordering::Relaxed)
                    {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    if let Err(error) = ground.be(turn) {
                        let mut all = mistreated.lock().unwrap_or_else(PoisonError::into_inner);
                        let one =
                            all.entry(error.to_string()).or_insert_with(|| (0, format!("{:#}", error.root_cause())));
                        one.0 += 1;
                    }
                }
            });
        }
        let mut samples = vec![];
        while !good.iter().all(|client| client.is_finished()) {
            let done = table.done.load(Ordering::Relaxed);
            let Ok(vitals) = server.vitals() else { break };
            samples.push(Sample { at_s: begin.elapsed().as_secs_f64(), done, vitals });
            std::thread::sleep(POLL);
        }
        over.store(true, Ordering::Relaxed);
        Ok(samples)
    })?;
    let wall_s = begin.elapsed().as_secs_f64();
    drop(ground);
    let after = settled(&server, &before)?;
    let metrics = counts(&server.metrics());
    let last_words = server.last_words();
    let (status, took) = server.stop(PATIENCE)?;
    let ended = status.map_or_else(|| "not by itself".to_owned(), |status| status.to_string());
    let clean = status.is_some_and(|status| status.success());
    if !clean {
        eprintln!("the server said:\n{last_words}");
    }
    let Tally { mut latencies_ms, wrong, lost, reasons } =
        table.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    latencies_ms.sort_by(f64::total_cmp);
    let mistreated = mistreated.into_inner().unwrap_or_else(PoisonError::into_inner);
    let [early, late] = watch::resident(&samples, total);
    let bars = vec![
        Bar::new("good ones lost", lost as f64 + (total - lost - latencies_ms.len() as u64) as f64, 0.0),
        Bar::new("wrong answers", wrong as f64, 0.0),
        Bar::new("bad ones let off", mistreated.values().map(|(count, _)| count).sum::<u64>() as f64, 0.0),
        Bar::new("growth, MiB", mib(late) - mib(early), MAX_GROWTH_MIB),
        Bar::new("files left open", after.files as f64 - before.files as f64, MAX_LEFT),
        Bar::new("threads left", after.threads as f64 - before.threads as f64, MAX_LEFT),
        Bar::new("end, s", if clean { took.as_secs_f64() } else { f64::INFINITY }, MAX_END_S),
    ];
    Ok(Report {
        good: total,
        bad: bad_total,
        wall_s,
        p50_ms: quantile(&latencies_ms, 0.50),
        p99_ms: quantile(&latencies_ms, 0.99),
        max_ms: quantile(&latencies_ms, 1.0),
        before,
        after,
        lost: reasons,
        mistreated,
        memory: watch::thinned(&samples, POINTS),
        metrics,
        ended,
        bars,
    })
}

/// What the server holds once it has noticed that all are gone, or when patience ends.
fn settled(server: &Server, before: &Vitals) -> Result<Vitals> {
    let begin = Instant::now();
    loop {
        let vitals = server.vitals()?;
        let calm = vitals.files <= before.files && vitals.threads <= before.threads;
        if calm || begin.elapsed() >= PATIENCE {
            return Ok(vitals);
        }
        std::thread::sleep(POLL);
    }
}

/// Prometheus' text as names and numbers; of histograms only sums and counts.
fn counts(metrics: &str) -> BTreeMap<String, f64> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

/// Of sorted values; zero of nothing.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * q).round() as usize).copied().unwrap_or(0.0)
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "{} good requests and {} bad ones in {:.0} s: {:.0} good ones a second, p50 {:.1} ms, p99 {:.1} ms, longest {:.0} ms\n\n",
        report.good,
        report.bad,
        report.wall_s,
        report.good as f64 / report.wall_s,
        report.p50_ms,
        report.p99_ms,
        report.max_ms
    );
    text += &format!("{:>8}{:>10}{:>10}{:>9}{:>7}\n", "at s", "answered", "RSS MiB", "threads", "files");
    let line = |at: &str, done: &str, vitals: &Vitals| {
        format!("{at:>8}{done:>10}{:>10.1}{:>9}{:>7}\n", mib(vitals.resident_bytes), vitals.threads, vitals.files)
    };
    text += &line("before", "0", &report.before);
    for sample in watch::thinned(&report.memory, 10) {
        text += &line(&format!("{:.0}", sample.at_s), &sample.done.to_string(), &sample.vitals);
    }
    text += &line("after", &report.good.to_string(), &report.after);
    text.push('\n');
    for reason in &report.lost {
        text += &format!("lost: {reason}\n");
    }
    for (kind, (count, case)) in &report.mistreated {
        text += &format!("{kind}: {count} times: {case}\n");
    }
    for (name, value) in report.metrics.iter().filter(|(name, _)| name.contains("_total")) {
        text += &format!("{name} {value}\n");
    }
    text += &format!("ended by SIGTERM: {}\n\n", report.ended);
    for bar in &report.bars {
        text += &format!("{bar}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_counts_are_read() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|q| quantile(&values, q)), [50.0, 99.0, 100.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
        let text = "# HELP a_total all\na_total{kind=\"x y\"} 3\nb_bucket{le=\"1\"} 9\nb_sum 1.5\n";
        let counts = counts(text);
        assert_eq!(
            counts.into_iter().collect::<Vec<_>>(),
            [("a_total{kind=\"x y\"}".to_owned(), 3.0), ("b_sum".to_owned(), 1.5)]
        );
    }
}
