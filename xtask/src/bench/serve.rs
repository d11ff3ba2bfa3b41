//! `cargo xtask bench serve`: what a policy server adds to its model, beside openpi's own Python server in the same run.
//!
//! One ALOHA asks over the loopback, again and again, with three pictures of 224² pixels; the model is a small one, so that
//! what is around it shows. The same client, of the standard library alone, asks `pi0 serve` and openpi's policy server
//! around openpi's policy with the same weights in f32 (`xtask/peers/serve_cpu.py`, in a Python that has it; without one only
//! ours is measured, and it says so). What a server adds is the time the client waits less the `server_timing.infer_ms`
//! that it is told: all that is neither the policy's steps nor its model. openpi's `policy_timing` is no measure of its
//! model: it is taken when the work has been handed to the device.
//!
//! `pi0 sample --repeat` on the same observation tells whether the model takes longer in a server than on its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::{Bar, SCRATCH, build_folder, release, remove};
use crate::soak::quantile;
use crate::wire::aloha::{self, Asked};
use crate::wire::message::Value;
use crate::wire::server::Server;
use crate::wire::{BINARY, Event, Socket, frame};

/// What a server may add to an answer at its 99th percentile.
const MAX_ADDED_MS: f64 = 2.0;
/// Different observations, asked in turn.
const SIGHTS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(120);

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Requests that count
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    requests: u32,
    /// Requests before them
    #[arg(long, default_value_t = 50)]
    warm_up: u32,
    /// Preset of an ALOHA
    #[arg(long, default_value = "pi0_aloha")]
    config: String,
    /// Checkpoint folder [default: the small pi0 in fixtures/]
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Euler steps of the model
    #[arg(long, default_value_t = 10)]
    num_steps: u32,
    /// Python with openpi and websockets; without it only ours is measured
    #[arg(long)]
    python: Option<PathBuf>,
    /// Program to measure in place of the released `pi0`
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
    /// More arguments for `pi0 serve`
    #[arg(last = true)]
    more: Vec<String>,
}

/// Percentiles, milliseconds.
#[derive(Debug, Clone, Copy, Serialize, PartialEq)]
struct Spread {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let [p50, p90, p99, max] = [0.50, 0.90, 0.99, 1.0].map(|q| quantile(&values, q));
        Self { p50, p90, p99, max }
    }
}

/// One server's figures.
#[derive(Debug, Serialize)]
struct Figures {
    who: String,
    /// From the question's first byte to the answer's last.
    latency_ms: Spread,
    /// The policy's steps and the model, as the answers tell.
    policy_ms: Spread,
    /// The model alone; `None` where what is told is no measure of it.
    model_ms: Option<Spread>,
    /// Latency less policy, request by request.
    added_ms: Spread,
    /// Latency less model, request by request.
    above_model_ms: Option<Spread>,
    resident_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    requests: u32,
    question_bytes: usize,
    servers: Vec<Figures>,
    /// The model in `pi0 sample`, on the first observation.
    sample_model_ms: Spread,
    bars: Vec<Bar>,
}

/// Measures; false if the bar is missed.
pub(super) fn run(root: &Path, arguments: &Arguments) -> Result<bool> {
    let build = build_folder()?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => release(root, &build)?,
    };
    let checkpoint = arguments.checkpoint.clone().unwrap_or_else(|| root.join("fixtures/checkpoints/policy/pi0"));
    let scratch = build.join(SCRATCH).join(format!("serve-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let report = measure(root, &program, &checkpoint, &scratch, arguments);
    remove(&scratch)?;
    let report = report?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table(&report));
    }
    Ok(report.bars.iter().all(|bar| bar.met))
}

fn measure(root: &Path, program: &Path, checkpoint: &Path, scratch: &Path, arguments: &Arguments) -> Result<Report> {
    let questions: Vec<_> = (0..SIGHTS).map(|sight| frame(BINARY, &aloha::message(sight, Asked::Plainly))).collect();
    let steps = arguments.num_steps.to_string();
    let policy = |command: &mut Command| {
        command.args(["--config", &arguments.config, "--num-steps", &steps]);
    };
    let mut command = Command::new(program);
    command.arg("serve").arg("--checkpoint-dir").arg(checkpoint).args(&arguments.more);
    policy(&mut command);
    let server = Server::start(&mut command, &scratch.join("ours.log"))?;
    let mut servers = vec![figures("pi0 serve", &server, &questions, true, arguments)?];
    drop(server);
    match &arguments.python {
        None => eprintln!("no --python: openpi's server is not measured (xtask/peers/README.md says what it needs)"),
        Some(python) => {
            let mut command = Command::new(python);
            command.arg(root.join("xtask/peers/serve_cpu.py")).arg("--checkpoint").arg(checkpoint);
            policy(&mut command);
            let server = Server::start(&mut command, &scratch.join("theirs.log"))?;
            servers.push(figures("openpi's server", &server, &questions, false, arguments)?);
        }
    }
    let mut command = Command::new(program);
    command.args(["sample", "--json", "--checkpoint-dir"]).arg(checkpoint);
    command.args(["--repeat", &(arguments.requests + arguments.warm_up).to_string()]);
    command.arg("--observation").arg(document(scratch)?);
    policy(&mut command);
    let sample_model_ms = sampled(&mut command, arguments.warm_up)?;
    let bars = vec![Bar::new("added at p99, ms", servers[0].added_ms.p99, MAX_ADDED_MS)];
    Ok(Report { requests: arguments.requests, question_bytes: questions[0].len(), servers, sample_model_ms, bars })
}

fn figures(who: &str, server: &Server, questions: &[Vec<u8>], model: bool, arguments: &Arguments) -> Result<Figures> {
    let all = ask(server.address, questions, arguments).with_context(|| format!("{who}: {}", server.last_words()))?;
    let spread = |of: fn(&Times) -> f64| Spread::of(all.iter().map(of).collect());
    let figures = Figures {
        who: who.to_owned(),
        latency_ms: spread(|t| t.latency),
        policy_ms: spread(|t| t.policy),
        model_ms: model.then(|| spread(|t| t.model)),
        added_ms: spread(|t| t.latency - t.policy),
        above_model_ms: model.then(|| spread(|t| t.latency - t.model)),
        resident_bytes: server.vitals()?.resident_bytes,
    };
    eprintln!("{who}: p50 {:.2} ms, p99 {:.2} ms", figures.latency_ms.p50, figures.latency_ms.p99);
    Ok(figures)
}

/// One request, milliseconds.
struct Times {
    latency: f64,
    policy: f64,
    model: f64,
}

/// One client, one question after another.
fn ask(address: SocketAddr, questions: &[Vec<u8>], arguments: &Arguments) -> Result<Vec<Times>> {
    let mut socket = Socket::open(address, PATIENCE)?;
    let mut all = vec![];
    for i in 0..arguments.warm_up + arguments.requests {
        let question = &questions[i as usize % questions.len()];
        let begin = Instant::now();
        socket.send(question)?;
        let event = socket.next()?;
        let latency = begin.elapsed().as_secs_f64() * 1e3;
        let Event::Binary(answer) = event else { bail!("{event:?} in place of an answer") };
        let answer = Value::parse(&answer)?;
        ensure!(answer.actions().is_some_and(|actions| !actions.is_empty()), "an answer without actions");
        let told = |timing| answer.number(&[timing, "infer_ms"]).with_context(|| format!("no {timing}"));
        let times = Times { latency, policy: told("server_timing")?, model: told("policy_timing")? };
        if i >= arguments.warm_up {
            all.push(times);
        }
    }
    socket.close()?;
    Ok(all)
}

/// The first observation as `pi0 sample` reads it.
fn document(folder: &Path) -> Result<PathBuf> {
    let mut document = serde_json::Map::new();
    document.insert("state".into(), json!(aloha::state(0)));
    document.insert("prompt".into(), json!(aloha::PROMPT));
    for (i, camera) in aloha::CAMERAS.iter().enumerate() {
        let name = format!("{camera}.npy");
        let shape = aloha::PICTURE.map(u64::from);
        std::fs::write(folder.join(&name), orbax::npy_bytes(orbax::Dtype::U8, &shape, &aloha::picture(0, i as u64))?)?;
        document.insert(format!("images/{camera}"), json!(name));
    }
    let path = folder.join("observation.json");
    std::fs::write(&path, Json::Object(document).to_string())?;
    Ok(path)
}

/// The model's times of all runs but the first ones.
fn sampled(command: &mut Command, warm_up: u32) -> Result<Spread> {
    let out = command.output().context("cannot start pi0 sample")?;
    ensure!(out.status.success(), "pi0 sample failed: {}", String::from_utf8_lossy(&out.stdout));
    let report: Json = serde_json::from_slice(&out.stdout).context("pi0 sample did not answer in JSON")?;
    let runs = report["inferred"][0]["runs"].as_array().context("pi0 sample: no runs")?;
    Ok(Spread::of(runs.iter().skip(warm_up as usize).filter_map(|run| run["total_ms"].as_f64()).collect()))
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "one ALOHA on the loopback, 3 pictures of 224 x 224, {:.0} KB a question, {} requests; milliseconds\n\n{:<42}{:>8}{:>8}{:>8}{:>8}\n",
        report.question_bytes as f64 / 1e3,
        report.requests,
        "",
        "p50",
        "p90",
        "p99",
        "max"
    );
    let mut line = |name: String, Spread { p50, p90, p99, max }: &Spread| {
        text += &format!("{name:<42}{p50:>8.2}{p90:>8.2}{p99:>8.2}{max:>8.2}\n");
    };
    for one in &report.servers {
        line(format!("{}: the client waits", one.who), &one.latency_ms);
        line("  of it policy and model, as told".into(), &one.policy_ms);
        one.model_ms.iter().for_each(|model| line("  of it the model".into(), model));
        line("  what the server adds".into(), &one.added_ms);
        one.above_model_ms.iter().for_each(|above| line("  all that is not the model".into(), above));
    }
    line("pi0 sample: the model".into(), &report.sample_model_ms);
    text.push('\n');
    if let [ours, theirs] = &report.servers[..] {
        let ratios =
            [("the client waits", ours.latency_ms, theirs.latency_ms), ("added", ours.added_ms, theirs.added_ms)];
        for (name, ours, theirs) in ratios {
            let (p50, p99) = (theirs.p50 / ours.p50, theirs.p99 / ours.p99);
            text += &format!("openpi's over ours, {name}: p50 {p50:.2}, p99 {p99:.2}\n");
        }
        let [ours, theirs] = [ours, theirs].map(|one| super::mib(one.resident_bytes));
        text += &format!("resident: ours {ours:.0} MiB, openpi's {theirs:.0} MiB\n\n");
    }
    for bar in &report.bars {
        text += &format!("{bar}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_told_where_both_were_measured() {
        let figures = |who: &str, ms: f64| {
            let spread = Spread::of((1..=100).map(|i| ms * f64::from(i)).collect());
            Figures {
                who: who.into(),
                latency_ms: spread,
                policy_ms: spread,
                model_ms: Some(spread),
                added_ms: spread,
                above_model_ms: None,
                resident_bytes: 1 << 20,
            }
        };
        let sample_model_ms = Spread::of(vec![1.0]);
        let servers = vec![figures("ours", 0.1), figures("theirs", 0.2)];
        let bars = vec![Bar::new("added at p99, ms", 9.9, MAX_ADDED_MS)];
        let mut report = Report { requests: 100, question_bytes: 450_000, servers, sample_model_ms, bars };
        let text = table(&report);
        assert!(text.contains("openpi's over ours, added: p50 2.00, p99 2.00\n"), "{text}");
        assert!(
            text.contains("ours: the client waits                        5.10    9.00    9.90   10.00\n"),
            "{text}"
        );
        assert!(text.contains("MISSED"), "{text}");
        report.servers.pop();
        assert!(!table(&report).contains("openpi's over ours"));
    }

    #[test]
    fn the_same_observation_is_a_document_for_sample() {
        let folder = tempfile::tempdir().unwrap();
        let path = document(folder.path()).unwrap();
        let read: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!((read["state"].as_array().unwrap().len(), &read["prompt"]), (14, &json!(aloha::PROMPT)));
        let picture = std::fs::read(folder.path().join(read["images/cam_high"].as_str().unwrap())).unwrap();
        assert!(picture.ends_with(&aloha::picture(0, 0)));
    }
}
