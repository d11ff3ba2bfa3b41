//! The programs that a run starts: built here, or brought along; watched, logged, ended when they take too long.
//!
//! Invariant: a child's output is in a file before anything is said about it, so a hang or a crash can be read about.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Lines of a failed child's errors that go into the report.
const LAST_LINES: usize = 6;
/// The programs of a run, as they are called in a folder that was prepared.
const PROGRAM: &str = "pi0";
const PARITY: &str = "parity";
const TRAINING: &str = "training";
const CHUNKING: &str = "chunking";

/// What is run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Programs {
    /// The tool.
    pub(super) pi0: PathBuf,
    /// `tests/parity.rs`, built.
    pub(super) parity: PathBuf,
    /// `tests/training.rs`, built.
    pub(super) training: PathBuf,
    /// `tests/chunking.rs`, built.
    pub(super) chunking: PathBuf,
}

impl Programs {
    /// Programs that were built elsewhere.
    pub(super) fn brought(folder: &Path) -> Result<Self> {
        let named = |name: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            let path = path.canonicalize().with_context(|| {
                format!("{} is not there: make the folder with `cargo xtask gpu --prepare FOLDER`", path.display())
            })?;
            Ok(path)
        };
        Ok(Self {
            pi0: named(PROGRAM)?,
            parity: named(PARITY)?,
            training: named(TRAINING)?,
            chunking: named(CHUNKING)?,
        })
    }

    /// Builds all in release, with the features that the device needs. Cargo's own messages go to standard error.
    pub(super) fn build(root: &Path, features: &[&str]) -> Result<Self> {
        Ok(Self {
            pi0: built(root, &["build", "--bin", PROGRAM], features, PROGRAM)?,
            parity: built(root, &["test", "--no-run", "--test", PARITY], features, PARITY)?,
            training: built(root, &["test", "--no-run", "--test", TRAINING], features, TRAINING)?,
            chunking: built(root, &["test", "--no-run", "--test", CHUNKING], features, CHUNKING)?,
        })
    }

    /// Puts them, and this program, into a folder to take along.
    pub(super) fn pack(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let own = std::env::current_exe().context("cannot find this program")?;
        let suites = [(&self.parity, PARITY), (&self.training, TRAINING), (&self.chunking, CHUNKING)];
        let own_names = [(&self.pi0, PROGRAM), (&own, "xtask")].into_iter().chain(suites);
        for (from, name) in own_names {
            let to = folder.join(name);
            std::fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
        Ok(())
    }
}

/// Runs cargo and gives the program named `name` that it made.
fn built(root: &Path, what: &[&str], features: &[&str], name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(&what[..1]).args(["--release", "--package", "pi0-burn", "--message-format=json-render-diagnostics"]);
    command.args(&what[1..]);
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    let output = command.current_dir(root).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "`{name}` does not build: cargo's reason is above");
    executable(&String::from_utf8_lossy(&output.stdout), name)
        .with_context(|| format!("cargo built no program `{name}`"))
}

/// The program of that name in cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut built = messages.filter(|message| message["target"]["name"] == name);
    built.find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
}

/// How a child ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// From start to end, loading and compiling kernels included.
    pub(super) wall_s: f64,
    /// What it wrote to standard output.
    pub(super) output: String,
    /// The last lines that it wrote to standard error.
    pub(super) last_words: String,
}

impl Ended {
    /// Standard output as JSON; `None` if it is none.
    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.output).ok()
    }
}

/// Where children run, and what they are told.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) root: &'a Path,
    /// Where `NAME.out` and `NAME.err` are written.
    pub(super) logs: &'a Path,
    pub(super) environment: &'a [(&'static str, OsString)],
    pub(super) limit: Duration,
}

impl Ground<'_> {
    /// Runs a program to its end.
    ///
    /// # Errors
    /// It does not start, or it outlasts the limit and is ended.
    pub(super) fn run(&self, name: &str, program: &Path, arguments: &[OsString]) -> Result<Ended> {
        let log = |end: &str| -> Result<(PathBuf, File)> {
            let path = self.logs.join(format!("{name}.{end}"));
            let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            Ok((path, file))
        };
        let ((out_path, out), (err_path, err)) = (log("out")?, log("err")?);
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.root).env("CARGO_MANIFEST_DIR", self.root);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let status = loop {
            if let Some(status) = child.try_wait().context("cannot wait for a child")? {
                break status;
            }
            if started.elapsed() > self.limit {
                // It may just have ended by itself: then there is nothing to end.
                let _ = child.kill();
                let _ = child.wait();
                let limit = self.limit.as_secs();
                bail!("did not end within {limit} s and was ended (--limit-s); it wrote {}", err_path.display());
            }
            std::thread::sleep(POLL);
        };
        let text = |path: &Path| -> Result<String> {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let errors = text(&err_path)?;
        let lines: Vec<&str> = errors.lines().filter(|line| !line.trim().is_empty()).collect();
        let last_words = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        Ok(Ended { status, wall_s: started.elapsed().as_secs_f64(), output: text(&out_path)?, last_words })
    }
}

/// A program that is this shell script. Another process writes it: a file that this one has open for writing, in whatever
/// thread, could not be started (ETXTBSY).
#[cfg(test)]
pub(super) fn script(path: PathBuf, text: &str) -> PathBuf {
    let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod +x \"$1\"";
    let status = Command::new("sh").args(["-c", write, "sh"]).arg(&path).arg(text).status().unwrap();
    assert!(status.success());
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> (Result<Ended>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let told = [("PI0_TOLD", OsString::from("told"))];
        let ground = Ground { root: folder.path(), logs: folder.path(), environment: &told, limit };
        (ground.run("a", Path::new("sh"), &["-c".into(), script.into()]), folder)
    }

    #[test]
    fn a_child_is_told_its_environment_and_its_words_are_kept() {
        let script = "echo \"[\\\"$PI0_TOLD\\\"]\"; for i in 1 2 3 4 5 6 7 8; do echo e$i >&2; done; exit 1";
        let (ended, folder) = run(script, Duration::from_secs(60));
        let ended = ended.unwrap();
        assert_eq!(ended.status.code(), Some(1));
        assert_eq!(ended.json(), Some(serde_json::json!(["told"])));
        assert_eq!(ended.last_words, "e3\ne4\ne5\ne6\ne7\ne8");
        assert!(std::fs::read_to_string(folder.path().join("a.err")).unwrap().starts_with("e1\n"));
    }

    #[test]
    fn a_child_that_hangs_is_ended_and_what_it_said_stays() {
        let (ended, folder) = run("echo first; exec sleep 600", Duration::from_millis(300));
        assert!(ended.unwrap_err().to_string().starts_with("did not end within 0 s"));
        assert_eq!(std::fs::read_to_string(folder.path().join("a.out")).unwrap(), "first\n");
    }

    #[test]
    fn the_program_is_read_from_cargos_messages() {
        let messages = "{\"target\":{\"name\":\"pi0\"},\"executable\":null}\nnoise\n\
                        {\"target\":{\"name\":\"other\"},\"executable\":\"/x\"}\n\
                        {\"target\":{\"name\":\"pi0\"},\"executable\":\"/t/release/pi0\"}\n";
        assert_eq!(executable(messages, "pi0"), Some(PathBuf::from("/t/release/pi0")));
        assert_eq!(executable(messages, "parity"), None);
    }

    #[test]
    fn programs_brought_along_must_all_be_there() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in [PROGRAM, PARITY, TRAINING, CHUNKING] {
            std::fs::write(from.path().join(name), name).unwrap();
        }
        let programs = Programs::brought(from.path()).unwrap();
        programs.pack(to.path()).unwrap();
        assert_eq!(std::fs::read_to_string(to.path().join(PARITY)).unwrap(), PARITY);
        assert!(to.path().join("xtask").exists());
        std::fs::remove_file(to.path().join(PARITY)).unwrap();
        let missing = format!("{:#}", Programs::brought(to.path()).unwrap_err());
        assert!(missing.contains("--prepare FOLDER"), "{missing}");
    }
}
