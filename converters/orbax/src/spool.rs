//! A chunk's compressed bytes on their way into a data file: in memory while few, in a short-lived file when many.
//!
//! Invariant: at most [`MEMORY`] bytes of an open chunk and [`WAITING`] bytes of a finished, waiting one are in memory; the file is removed on drop.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// Bytes held in memory while a chunk is being written.
const MEMORY: usize = 1 << 20;
/// Bytes held in memory of a chunk that waits for its turn.
const WAITING: usize = 4 << 10;
/// Bytes copied at once.
const PIECE: usize = 256 << 10;

pub(crate) struct Spool {
    memory: Vec<u8>,
    file: Option<File>,
    path: PathBuf,
}

impl Spool {
    /// `path` is used only when the bytes become many.
    pub(crate) fn new(path: PathBuf) -> Self {
        Spool { memory: Vec::new(), file: None, path }
    }

    /// What there is, if it never grew beyond memory.
    pub(crate) fn small(&self) -> Option<&[u8]> {
        self.file.is_none().then_some(self.memory.as_slice())
    }

    /// Gives its memory back unless it is very little.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        if self.memory.len() > WAITING { self.spill().map(drop) } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new().read(true).write(true).create_new(true).open(&self.path)?,
        };
        let file = self.file.insert(file);
        file.write_all(&self.memory)?;
        self.memory = Vec::new();
        Ok(file)
    }

    /// Copies everything into `target`.
    pub(crate) fn copy_to(&mut self, target: &mut dyn Write) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return target.write_all(&self.memory);
        };
        file.seek(SeekFrom::Start(0))?;
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(n) => target.write_all(piece.get(..n).unwrap_or_default())?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Write for Spool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.file.is_none() && self.memory.len().saturating_add(buf.len()) <= MEMORY {
            self.memory.extend_from_slice(buf);
            return Ok(buf.len());
        }
        self.spill()?.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Nothing to be done about a failure here: the folder around it is removed as well.
            let _ = fs::remove_file(&self.path);
        }
    }
}
