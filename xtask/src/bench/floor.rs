//! The floor: the least that this machine can do for a conversion, with everything taken away that a converter adds.
//!
//! The very same chunks go through zstd alone into a small buffer that is used again and again, and as many bytes as
//! the conversion wrote are written from it to the same disk, several threads at a time, and synced. No names, no
//! layout, no checks. Reads an OCDBT checkpoint in zarr v2, compressed by zstd or not.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use ocdbt::{Database, Value};
use serde::Deserialize;

use crate::parallel::side_by_side;

/// Written at a time.
const WRITE_BYTES: usize = 4 << 20;
/// The metadata document of a zarr v2 array; its chunks stand beside it.
const DOCUMENT: &[u8] = b"/.zarray";

/// What to decode and how much to write.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Checkpoint folder
    #[arg(long)]
    checkpoint: PathBuf,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    /// Bytes to write
    #[arg(long)]
    write_bytes: u64,
    /// Threads [default: one per core]
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Deserialize)]
struct Document {
    compressor: Option<Compressor>,
}

#[derive(Deserialize)]
struct Compressor {
    id: String,
}

/// Stored bytes of a chunk, and whether zstd must see them.
struct Job<'a> {
    value: &'a Value,
    compressed: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let threads =
        arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into)).max(1);
    let location = orbax::locate(&arguments.checkpoint, None)?;
    work(&location.dir, &arguments.out, arguments.write_bytes, threads)?;
    Ok(())
}

/// Decodes every chunk of the database in `dir` and writes `write_bytes` bytes; gives the bytes decoded.
fn work(dir: &Path, out: &Path, write_bytes: u64, threads: usize) -> Result<u64> {
    let database = Database::open(dir)?;
    let mut jobs = jobs(&database)?;
    jobs.sort_by_key(|job| std::cmp::Reverse(job.value.len()));
    let sink = Sink {
        file: File::create(out).with_context(|| format!("cannot create {}", out.display()))?,
        next: AtomicU64::new(0),
        end: write_bytes,
    };
    let decoded = AtomicU64::new(0);
    side_by_side(threads, &jobs, |job| {
        let mut stream = open(dir, job)?;
        let mut buffer = vec![0; WRITE_BYTES];
        loop {
            let len = fill(&mut *stream, &mut buffer)?;
            decoded.fetch_add(len as u64, Ordering::Relaxed);
            sink.write(&buffer[..len])?;
            if len < buffer.len() {
                return Ok(());
            }
        }
    })?;
    // An output larger than the checkpoint, or an empty checkpoint.
    let rest = vec![0; WRITE_BYTES];
    while sink.write(&rest)? {}
    sink.file.sync_all()?;
    Ok(decoded.into_inner())
}

fn jobs(database: &Database) -> Result<Vec<Job<'_>>> {
    let mut jobs = Vec::new();
    for entry in database.entries() {
        if entry.key.ends_with(DOCUMENT) {
            continue;
        }
        let key = String::from_utf8_lossy(&entry.key);
        let array = key.rsplit_once('/').map_or("", |(array, _)| array).as_bytes();
        let document = database.get(&[array, DOCUMENT].concat());
        let document =
            document.with_context(|| format!("{key}: the floor reads zarr v2 alone, and it has no .zarray"))?;
        let document: Document = serde_json::from_slice(&database.read(document)?)?;
        let compressed = match &document.compressor {
            None => false,
            Some(compressor) => {
                ensure!(compressor.id == "zstd", "{key}: the floor knows zstd, not {}", compressor.id);
                true
            }
        };
        jobs.push(Job { value: &entry.value, compressed });
    }
    Ok(jobs)
}

/// The chunk's bytes, straight from the file.
fn open<'a>(dir: &Path, job: &'a Job) -> Result<Box<dyn Read + 'a>> {
    let stored: Box<dyn Read + 'a> = match job.value {
        Value::Inline(bytes) => Box::new(bytes.as_slice()),
        Value::Indirect { file, offset, length } => {
            let mut source = File::open(dir.join(&**file)).with_context(|| format!("cannot open {file}"))?;
            source.seek(SeekFrom::Start(*offset))?;
            Box::new(source.take(*length))
        }
    };
    if !job.compressed {
        return Ok(stored);
    }
    let stored = BufReader::with_capacity(zstd::zstd_safe::DCtx::in_size(), stored);
    Ok(Box::new(zstd::stream::read::Decoder::with_buffer(stored)?.single_frame()))
}

/// Reads until the buffer is full or the stream has ended; gives the bytes read.
fn fill(stream: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match stream.read(&mut buffer[len..])? {
            0 => break,
            count => len += count,
        }
    }
    Ok(len)
}

/// A file filled from front to back by several threads, up to a fixed length.
struct Sink {
    file: File,
    next: AtomicU64,
    end: u64,
}

impl Sink {
    /// Writes what still fits; false if nothing does.
    fn write(&self, bytes: &[u8]) -> Result<bool> {
        let start = self.next.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let room = self.end.saturating_sub(start).min(bytes.len() as u64) as usize;
        self.file.write_all_at(&bytes[..room], start)?;
        Ok(room > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A database with one compressed chunk of 10 MB, one raw chunk of 3000 bytes and one of 5 in the tree.
    fn database(dir: &Path, compressor: &str) {
        let options = ocdbt::Options { uuid: [1; 16], commit_time_ns: 0, max_inline_value_bytes: 1024 };
        let writer = ocdbt::Writer::create(dir, options).unwrap();
        let mut file = writer.data_file(&"0a".repeat(16)).unwrap();
        let frame = zstd::encode_all(&vec![7; 10_000_000][..], 1).unwrap();
        for (key, compressor) in [("a", compressor), ("b", "null"), ("c", "null")] {
            let document = format!("{{\"compressor\":{compressor},\"zarr_format\":2}}");
            file.put(format!("{key}/.zarray").as_bytes(), document.as_bytes()).unwrap();
        }
        for (key, chunk) in [(b"a/0", frame), (b"b/0", vec![1; 3000])] {
            let mut value = file.value(key).unwrap();
            value.write_all(&chunk).unwrap();
            value.finish().unwrap();
        }
        file.put(b"c/0", &[1; 5]).unwrap();
        writer.finish(vec![file]).unwrap();
    }

    #[test]
    fn every_chunk_is_decoded_and_exactly_as_much_as_asked_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, out) = (folder.path().join("params"), folder.path().join("out"));
        database(&dir, "{\"id\":\"zstd\",\"level\":1}");
        for write_bytes in [0, 1, 5_000_000, 25_000_000, 10_003_005] {
            assert_eq!(work(&dir, &out, write_bytes, 2).unwrap(), 10_003_005);
            assert_eq!(std::fs::metadata(&out).unwrap().len(), write_bytes);
        }
        let written = std::fs::read(&out).unwrap();
        assert_eq!(written.iter().filter(|byte| **byte == 7).count(), 10_000_000);
    }

    #[test]
    fn a_compressor_that_the_floor_does_not_know_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        database(&folder.path().join("params"), "{\"id\":\"blosc\"}");
        let error = work(&folder.path().join("params"), &folder.path().join("out"), 0, 1).unwrap_err();
        assert!(error.to_string().contains("a/0") && error.to_string().contains("blosc"), "{error}");
    }
}
