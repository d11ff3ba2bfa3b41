//! What a run writes about itself into its folder, so that people and programs can follow it.
//!
//! - [`mod@line`]: what is known at one step, as JSON and as a line for people
//! - `jsonl`: `metrics.jsonl`, all lines
//! - `events`: `events.out.tfevents.*`, the same for TensorBoard
//! - [`pictures`]: `first_batch/`, what the model saw first
//! - `report`, `curves`, `history`: `report.html`, all of it on one page
//!
//! Invariant: a run that goes on at step n has the journal of a run that never stopped, but for times: what an earlier
//! attempt wrote of later steps is gone or void, and nothing else is. Time is an argument.

mod curves;
mod events;
mod history;
mod jsonl;
pub mod line;
pub mod pictures;
mod report;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self as std_io, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use line::Line;
pub use pictures::{Example, Image};

use self::events::Events;
use self::history::History;
use self::jsonl::Metrics;
use self::pictures::Shown;
use self::report::{Page, State};
use crate::plot::count;

const METRICS: &str = "metrics.jsonl";
const REPORT: &str = "report.html";
/// The report is written anew at most so often.
const BETWEEN_REPORTS: Duration = Duration::from_secs(2);

/// What a run is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Header {
    /// The preset.
    pub config: String,
    /// The run's name.
    pub exp: String,
    /// The model: `pi0`, and its experts.
    pub model: String,
    /// What it is trained on.
    pub datasets: Vec<String>,
    /// Where it is computed.
    pub device: String,
    /// With which precision.
    pub precision: String,
    /// Parameters that are trained.
    pub trainable: u64,
    /// Parameters that are not.
    pub frozen: u64,
    /// Steps that are to be done.
    pub steps: u64,
    /// Samples of a step.
    pub batch_size: u64,
    /// All else that was set, by name.
    pub settings: Vec<(String, String)>,
}

/// Why the journal could not be kept.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum JournalError {
    #[error("{}: it cannot be {doing}: {source}", path.display())]
    Io { path: PathBuf, doing: &'static str, source: std_io::Error },
    #[error("{}: it is there already; resume that run, or give this one another name", path.display())]
    Exists { path: PathBuf },
    #[error("{}, line {line}: {why}; remove the line to go on", path.display())]
    NotALine { path: PathBuf, line: u64, why: String },
    #[error("{camera}: expected {} x {} pixels of 3 bytes, found {bytes} bytes: {why}", size[0], size[1])]
    Picture { camera: String, size: [usize; 2], bytes: usize, why: String },
    #[error("{}: {why}; remove the file to go on without these pictures", path.display())]
    Captions { path: PathBuf, why: String },
    #[error("{}: expected at most {most} bytes, found more", path.display())]
    TooLarge { path: PathBuf, most: u64 },
}

/// The journal of a run, open for more.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    header: Header,
    metrics: Metrics,
    events: Events,
    history: History,
    saved: Vec<u64>,
    /// Whether the first batch is shown, and how.
    shown: Option<String>,
    reported: Option<SystemTime>,
}

impl Journal {
    /// Begins a run's journal in `dir`; or, with `resume_at`, goes on with the one that is there from the checkpoint of
    /// that step, as if it had never gone further.
    ///
    /// # Errors
    /// A journal is there and is not to be gone on with; what is there is none; what the file system says.
    pub fn open(dir: &Path, header: Header, resume_at: Option<u64>, now: SystemTime) -> Result<Self, JournalError> {
        fs::create_dir_all(dir).map_err(io(dir, "made"))?;
        let mut history = History::new();
        let path = dir.join(METRICS);
        let metrics = match resume_at {
            None => Metrics::begin(&path)?,
            Some(step) => Metrics::resume(&path, step, |line| history.push(line))?,
        };
        let shown = if resume_at.is_some() { pictures::read(dir)? } else { vec![] };
        let mut events = Events::begin(dir, resume_at, now)?;
        events.text(resume_at.unwrap_or(0), "settings", &header.table(), now)?;
        let mut journal = Journal {
            dir: dir.to_owned(),
            header,
            metrics,
            events,
            history,
            saved: resume_at.map_or(Ok(vec![]), |step| saved(dir, step))?,
            shown: (!shown.is_empty()).then(|| report::examples(&shown)),
            reported: None,
        };
        journal.report(State::Running, now)?;
        Ok(journal)
    }

    /// Writes a line down, everywhere.
    ///
    /// # Errors
    /// What the file system says.
    pub fn line(&mut self, line: &Line, now: SystemTime) -> Result<(), JournalError> {
        self.metrics.line(line)?;
        let scalars = [
            ("loss", line.loss),
            ("grad_norm", line.grad_norm),
            ("param_norm", line.param_norm),
            ("learning_rate", line.learning_rate),
            ("samples_per_s", line.samples_per_s as f32),
            ("data_wait", line.data_wait as f32),
        ];
        self.events.scalars(line.step, &scalars, now)?;
        self.history.push(*line);
        let since = self.reported.map(|reported| now.duration_since(reported));
        // A clock that went back is no reason to wait.
        if matches!(since, Some(Ok(since)) if since < BETWEEN_REPORTS) {
            return Ok(());
        }
        self.report(State::Running, now)
    }

    /// Are the first batch's pictures still to be shown? Not after they were, before a resumption or since.
    pub fn wants_pictures(&self) -> bool {
        self.shown.is_none()
    }

    /// Shows some examples of the first batch; nothing if that was done before.
    ///
    /// # Errors
    /// A picture of another size than it says; what the file system says.
    pub fn pictures(&mut self, examples: &[Example], now: SystemTime) -> Result<(), JournalError> {
        if !self.wants_pictures() || examples.is_empty() {
            return Ok(());
        }
        let shown = pictures::write(&self.dir, examples)?;
        self.camera_views(&shown, now)?;
        self.shown = Some(report::examples(&shown));
        self.report(State::Running, now)
    }

    /// A tag for each camera, with its pictures of one size.
    fn camera_views(&mut self, shown: &[Shown], now: SystemTime) -> Result<(), JournalError> {
        let pictures: Vec<_> = shown.iter().flat_map(|example| &example.pictures).collect();
        let step = self.history.last().map_or(0, |line| line.step);
        for (i, first) in pictures.iter().enumerate() {
            let alike = |other: &&&pictures::Picture| other.camera == first.camera && other.size == first.size;
            if pictures[..i].iter().any(|other| other.camera == first.camera) {
                continue;
            }
            let pngs: Vec<&[u8]> = pictures.iter().filter(alike).map(|picture| &picture.png[..]).collect();
            self.events.images(step, &format!("camera_views/{}", first.camera), first.size, &pngs, now)?;
        }
        Ok(())
    }

    /// Notes that the folder `step` has been written.
    ///
    /// # Errors
    /// What the file system says.
    pub fn checkpoint(&mut self, step: u64, now: SystemTime) -> Result<(), JournalError> {
        if !self.saved.contains(&step) {
            self.saved.push(step);
        }
        self.report(State::Running, now)
    }

    /// Ends the journal: done if the last step was written, else stopped.
    ///
    /// # Errors
    /// What the file system says.
    pub fn close(mut self, now: SystemTime) -> Result<(), JournalError> {
        self.report(State::Closed, now)
    }

    fn report(&mut self, state: State, now: SystemTime) -> Result<(), JournalError> {
        let there = |step: &u64| (*step, self.dir.join(step.to_string()).is_dir());
        let page = report::page(&Page {
            header: &self.header,
            lines: &self.history.lines(),
            saved: &self.saved.iter().map(there).collect::<Vec<_>>(),
            examples: self.shown.as_deref().unwrap_or_default(),
            state,
            now,
        });
        replace(&self.dir.join(REPORT), &mut page.as_bytes(), Durable::No)?;
        self.reported = Some(now);
        Ok(())
    }
}

impl Header {
    /// What it is, by name.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let datasets = if self.datasets.len() == 1 { "dataset" } else { "datasets" };
        vec![
            ("config", self.config.clone()),
            ("experiment", self.exp.clone()),
            ("model", self.model.clone()),
            (datasets, self.datasets.join(", ")),
            ("device", self.device.clone()),
            ("precision", self.precision.clone()),
            ("trainable parameters", count(self.trainable)),
            ("frozen parameters", count(self.frozen)),
            ("steps", count(self.steps)),
            ("batch size", count(self.batch_size)),
        ]
    }

    /// What one asks first.
    fn summary(&self) -> String {
        let (trainable, frozen) = (count(self.trainable), count(self.frozen));
        let datasets = self.datasets.join(", ");
        let parameters = format!("{trainable} parameters trainable, {frozen} frozen");
        let words = [&self.model, &datasets, &self.device, &self.precision, &parameters].map(String::as_str);
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" · ")
    }

    /// All of it as a table in Markdown.
    fn table(&self) -> String {
        let cell = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ");
        let mut t = "| setting | value |\n| --- | --- |\n".to_owned();
        let facts = self.facts();
        let facts = facts.iter().map(|(name, value)| (*name, &value[..]));
        for (name, value) in facts.chain(self.settings.iter().map(|(name, value)| (&name[..], &value[..]))) {
            t += &format!("| {} | {} |\n", cell(name), cell(value));
        }
        t
    }
}

/// Checkpoints in the folder up to a step, in order.
fn saved(dir: &Path, step: u64) -> Result<Vec<u64>, JournalError> {
    let mut steps = vec![];
    for entry in fs::read_dir(dir).map_err(io(dir, "read"))? {
        let entry = entry.map_err(io(dir, "read"))?;
        let name = entry.file_name();
        let saved = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(saved) = saved.and_then(|name| name.parse().ok()).filter(|saved| *saved <= step) {
            steps.push(saved);
        }
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Since 1970; before it, nothing.
fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Names the file and what was to be done with it.
fn io(path: &Path, doing: &'static str) -> impl Fn(std_io::Error) -> JournalError {
    move |source| JournalError::Io { path: path.to_owned(), doing, source }
}

/// Whether a file must outlive a loss of power; waiting for the disk takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durable {
    Yes,
    No,
}

/// Puts new content under a name, at once: under the name there is the old or the new, never a part.
fn replace(path: &Path, content: &mut impl Read, durable: Durable) -> Result<(), JournalError> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    let part = path.with_file_name(name);
    let mut file = File::create(&part).map_err(io(&part, "made"))?;
    std_io::copy(content, &mut file).map_err(io(&part, "written"))?;
    if durable == Durable::Yes {
        file.sync_all().map_err(io(&part, "written"))?;
    }
    fs::rename(&part, path).map_err(io(path, "put in place"))
}
