//! A policy server as a child: started on a free port, followed through /proc, ended as a supervisor ends it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::page;

/// How long one may take until it listens: JAX compiles first.
const STARTS: Duration = Duration::from_secs(300);
const ASKS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// A server that listens; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

/// What a process holds.
#[derive(Debug, Clone, Copy, Default, Serialize, PartialEq)]
pub(crate) struct Vitals {
    pub(crate) resident_bytes: u64,
    pub(crate) threads: u64,
    pub(crate) files: u64,
}

impl Server {
    /// Starts the command with `--port N` after its own arguments and waits until it is well. What it says goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr())?;
        let out = File::create(log).with_context(|| log.display().to_string())?;
        command.args(["--port", &address.port().to_string()]);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let mut server = Self { child, address, log: log.to_owned() };
        let begin = Instant::now();
        while page(address, "/healthz", ASKS).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{name} ended before it listened, {status}: {}", server.last_words());
            }
            ensure!(begin.elapsed() < STARTS, "{name} does not listen: {}", server.last_words());
            std::thread::sleep(POLL);
        }
        Ok(server)
    }

    /// What the process holds now.
    pub(crate) fn vitals(&self) -> Result<Vitals> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = std::fs::read_to_string(process.join("status")).context("the server is gone")?;
        let of = |name| field(&status, name).with_context(|| format!("/proc has no {name}"));
        let files = std::fs::read_dir(process.join("fd")).context("the server is gone")?.count() as u64;
        Ok(Vitals { resident_bytes: of("VmRSS:")? * 1024, threads: of("Threads:")?, files })
    }

    /// Its metrics, in Prometheus' text form; empty where it has none.
    pub(crate) fn metrics(&self) -> String {
        page(self.address, "/metrics", ASKS).unwrap_or_default()
    }

    /// Ends it with SIGTERM; how it ended, `None` if it did not within `patience`.
    pub(crate) fn stop(mut self, patience: Duration) -> Result<(Option<ExitStatus>, Duration)> {
        let begin = Instant::now();
        let told =
            Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().context("cannot run kill")?;
        ensure!(told.success(), "the server was gone already: {}", self.last_words());
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((Some(status), begin.elapsed()));
            }
            if begin.elapsed() >= patience {
                return Ok((None, begin.elapsed()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The end of what it said.
    pub(crate) fn last_words(&self) -> String {
        let text =
            std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number in a line of a status file: `Threads: 7`, `VmRSS: 12 kB`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vital_signs_are_read_and_an_early_end_is_told() {
        assert_eq!(field("Name:\tThreads: 3\nThreads:\t7\nVmRSS:\t   12 kB\n", "Threads:"), Some(7));
        assert_eq!(field("VmRSS:\t   12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(field("VmRSS:\t   12 kB\n", "Threads:"), None);
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut early = Command::new("sh");
        early.args(["-c", "echo no such preset >&2; exit 3"]);
        let error = Server::start(&mut early, &log).unwrap_err().to_string();
        assert!(error.contains("ended before it listened") && error.contains("no such preset"), "{error}");
    }
}
