//! Wall time, CPU time and peak memory of a child process, from /proc: no `unsafe`, no program to install.
//!
//! CPU time is exact to a clock tick: it is what the kernel adds to our own account of waited-for children (proc(5),
//! `cutime` and `cstime`). Peak memory is the child's `VmHWM`, a high-water mark, read every few milliseconds: what the
//! child touches for the first time in its last milliseconds is missed.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// Linux counts user-visible CPU time in hundredths of a second on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;
/// Fields of a stat file, counted from 1: user and system time of a process, and of the children that it waited for.
const OWN: usize = 14;
const CHILDREN: usize = 16;
/// How often the peak is read.
const POLL: Duration = Duration::from_millis(5);

/// What a process used.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(crate) struct Usage {
    /// Start to end.
    pub(crate) wall_s: f64,
    /// User and system time, of all threads and of waited-for children.
    pub(crate) cpu_s: f64,
    /// Peak resident memory.
    pub(crate) peak_bytes: u64,
}

impl fmt::Display for Usage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:.2} s wall {:.2} s CPU {} MiB", self.wall_s, self.cpu_s, self.peak_bytes >> 20)
    }
}

impl Usage {
    /// The median of each figure on its own; zero of nothing.
    pub(super) fn median(runs: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<f64> = runs.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            let (low, high) = (figures.len().saturating_sub(1) / 2, figures.len() / 2);
            figures.get(low).zip(figures.get(high)).map_or(0.0, |(low, high)| (low + high) / 2.0)
        };
        Self {
            wall_s: of(|run| run.wall_s),
            cpu_s: of(|run| run.cpu_s),
            peak_bytes: of(|run| run.peak_bytes as f64) as u64,
        }
    }
}

/// Runs a command that must succeed to its end. No other child may be waited for meanwhile.
///
/// # Errors
/// It does not start, fails, or there is no /proc.
pub(super) fn measure(command: &mut Command) -> Result<Usage> {
    let (status, usage) = watch(command)?;
    ensure!(status.success(), "{} failed: {status}", command.get_program().to_string_lossy());
    Ok(usage)
}

/// The same for a command whose exit code is an answer.
pub(crate) fn watch(command: &mut Command) -> Result<(ExitStatus, Usage)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let before = children_cpu_ticks()?;
    let begin = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let status_file = format!("/proc/{}/status", child.id());
    let (ended, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let (status, wall) = std::thread::scope(|scope| -> Result<(ExitStatus, Duration)> {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if let Some(bytes) = std::fs::read_to_string(&status_file).ok().as_deref().and_then(peak_bytes) {
                    peak.fetch_max(bytes, Ordering::Relaxed);
                }
                std::thread::sleep(POLL);
            }
        });
        let status = child.wait();
        let wall = begin.elapsed();
        ended.store(true, Ordering::Relaxed);
        Ok((status.with_context(|| format!("cannot wait for {name}"))?, wall))
    })?;
    let cpu_s = children_cpu_ticks()?.saturating_sub(before) as f64 / TICKS_PER_SECOND;
    Ok((status, Usage { wall_s: wall.as_secs_f64(), cpu_s, peak_bytes: peak.into_inner() }))
}

/// Runs a command until `enough`, which is asked again and again and told the child's CPU time so far in seconds; then
/// ends it by force. Gives its peak memory in bytes.
///
/// # Errors
/// It does not start, ends by itself, `enough` fails, or there is no /proc.
pub(super) fn follow(command: &mut Command, enough: &mut dyn FnMut(f64) -> Result<bool>) -> Result<u64> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let mut peak = 0;
    let answer = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {name}"))? {
            bail!("{name} ended before it was measured: {status}");
        }
        let read = |file| std::fs::read_to_string(process.join(file)).unwrap_or_default();
        peak = peak.max(peak_bytes(&read("status")).unwrap_or(0));
        let ticks = ticks(&read("stat"), OWN).unwrap_or(0);
        match enough(ticks as f64 / TICKS_PER_SECOND) {
            Ok(false) => std::thread::sleep(POLL),
            answer => break answer,
        }
    };
    child.kill().and_then(|()| child.wait()).with_context(|| format!("cannot end {name}"))?;
    answer?;
    ensure!(peak > 0, "measuring needs /proc, as Linux has it");
    Ok(peak)
}

/// `VmHWM:     1234 kB` of a status file, in bytes.
fn peak_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn children_cpu_ticks() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("measuring needs /proc, as Linux has it")?;
    ticks(&stat, CHILDREN).context("/proc/self/stat is not of its form")
}

/// A field of a stat file and the one after it, summed. Field 2 is a name in brackets that may hold anything; field 3
/// follows the last bracket.
fn ticks(stat: &str, field: usize) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(field - 3);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_and_ticks_are_read_whatever_the_program_is_called() {
        assert_eq!(peak_bytes("Name:\ta\nVmPeak:\t  99 kB\nVmHWM:\t    12 kB\n"), Some(12 * 1024));
        assert_eq!(peak_bytes("Name:\tVmHWM: 3 kB"), None);
        let stat = "7 (a) b 1 (c) R 1 2 3 4 5 6 7 8 9 10 11 12 130 40 20 0 1 0";
        assert_eq!(ticks(stat, CHILDREN), Some(170));
        assert_eq!(ticks(stat, OWN), Some(11 + 12));
        assert_eq!(ticks("7 (a) R 1", OWN), None);
    }

    #[test]
    fn the_median_is_taken_of_each_figure() {
        let run = |wall_s, cpu_s, peak_bytes| Usage { wall_s, cpu_s, peak_bytes };
        let runs = [run(3.0, 1.0, 10), run(1.0, 2.0, 30), run(2.0, 9.0, 20)];
        assert_eq!(Usage::median(&runs), run(2.0, 2.0, 20));
        assert_eq!(Usage::median(&runs[..2]), run(2.0, 1.5, 20));
        assert_eq!(Usage::median(&[]), run(0.0, 0.0, 0));
    }

    #[test]
    fn a_child_is_followed_until_enough_is_seen_of_it_and_then_ended() {
        if !std::path::Path::new("/proc/self/stat").exists() {
            println!("skipped: this system has no /proc");
            return;
        }
        let mut asked = 0;
        let begin = Instant::now();
        let peak = follow(Command::new("sleep").arg("60"), &mut |_| {
            asked += 1;
            Ok(asked == 3)
        });
        assert!(peak.unwrap() > 0 && asked == 3 && begin.elapsed() < Duration::from_secs(30));
        let error = follow(Command::new("sleep").arg("60"), &mut |_| bail!("unreadable")).unwrap_err();
        assert_eq!(error.to_string(), "unreadable");
        let error = follow(Command::new("sh").args(["-c", "exit 3"]), &mut |_| Ok(false)).unwrap_err();
        assert!(error.to_string().starts_with("sh ended before it was measured: "), "{error}");
    }

    #[test]
    fn a_child_is_measured_and_a_failing_one_refused() {
        if !std::path::Path::new("/proc/self/stat").exists() {
            println!("skipped: this system has no /proc");
            return;
        }
        let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 0.1";
        let usage = measure(Command::new("sh").args(["-c", busy])).unwrap();
        assert!(usage.wall_s >= 0.1 && usage.cpu_s > 0.0 && usage.peak_bytes > 0, "{usage}");
        let error = measure(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(error.to_string().starts_with("sh failed: "), "{error}");
        assert!(measure(&mut Command::new("no-such-program-here")).is_err());
    }
}
