//! `metrics.jsonl`: a line of JSON for each line of the journal, flushed as it is written.
//!
//! Invariant: a line counts once its newline is there. A run that goes on at step n finds the lines up to n and no other,
//! byte for byte; the file is replaced at once or not at all.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::line::Line;
use super::{Durable, JournalError, io, replace};

/// Bytes of a line at most; ours have about 200.
const MAX_LINE_BYTES: u64 = 1 << 16;

/// The file, open for more.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// A new file.
    pub(super) fn begin(path: &Path) -> Result<Self, JournalError> {
        let made = OpenOptions::new().append(true).create_new(true).open(path);
        let file = made.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => JournalError::Exists { path: path.to_owned() },
            _ => io(path, "made")(error),
        })?;
        Ok(Metrics { path: path.to_owned(), file })
    }

    /// The file with what it holds up to step `step`, each line handed to `seen`; a new one if there is none.
    pub(super) fn resume(path: &Path, step: u64, mut seen: impl FnMut(Line)) -> Result<Self, JournalError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Self::begin(path),
            other => other.map_err(io(path, "read"))?,
        };
        let length = file.metadata().map_err(io(path, "read"))?.len();
        let mut reader = BufReader::new(file);
        let (mut kept, mut number, mut text) = (0, 0, vec![]);
        loop {
            text.clear();
            let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text).map_err(io(path, "read"))?;
            number += 1;
            let odd = |why: String| JournalError::NotALine { path: path.to_owned(), line: number, why };
            if text.last() != Some(&b'\n') {
                if read as u64 == MAX_LINE_BYTES {
                    return Err(odd(format!("it is longer than {MAX_LINE_BYTES} bytes")));
                }
                // The end, or what a run was writing when it ended.
                break;
            }
            let line: Line = serde_json::from_slice(&text).map_err(|error| odd(error.to_string()))?;
            if line.step > step {
                break;
            }
            kept += read as u64;
            seen(line);
        }
        if kept < length {
            let mut file = reader.into_inner();
            file.seek(SeekFrom::Start(0)).map_err(io(path, "read"))?;
            replace(path, &mut file.take(kept), Durable::Yes)?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(io(path, "written"))?;
        Ok(Metrics { path: path.to_owned(), file })
    }

    /// Appends a line.
    pub(super) fn line(&mut self, line: &Line) -> Result<(), JournalError> {
        let mut text = serde_json::to_vec(line).map_err(|error| io(&self.path, "written")(error.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(io(&self.path, "written"))
    }
}
