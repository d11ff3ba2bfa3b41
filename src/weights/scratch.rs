//! Room for outputs while they are looked at: memory where they are small, a file without a name where they are not.
//!
//! Invariant: nothing is left behind. The file is unlinked before its first byte is written.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use remap::{Error, Result, Sink};

/// Outputs, each with its own room or none: what is written to those without one is dropped.
pub(crate) enum Scratch {
    /// One buffer an output.
    Memory(Vec<Option<RwLock<Vec<u8>>>>),
    /// One file, and where each output begins in it.
    File { file: File, folder: PathBuf, places: Vec<Option<u64>> },
}

/// Makes names that no other run of this program uses.
static NUMBER: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
}

impl Scratch {
    /// Room for outputs of these sizes in bytes; in memory if all together take at most `memory_bytes`.
    ///
    /// # Errors
    /// A folder in which no file can be made.
    pub(crate) fn new(sizes: &[Option<u64>], memory_bytes: u64, folder: &Path) -> Result<Self> {
        let total = sizes.iter().flatten().try_fold(0u64, |all, n| all.checked_add(*n)).unwrap_or(u64::MAX);
        if total <= memory_bytes {
            let room = |size: &Option<u64>| size.map(|n| RwLock::new(vec![0; n as usize]));
            return Ok(Scratch::Memory(sizes.iter().map(room).collect()));
        }
        let name = format!(".pi0-scratch-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(name);
        let failed = |action| {
            let path = path.clone();
            move |error| Error::File { path, action, error }
        };
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed("making a scratch file"))?;
        std::fs::remove_file(&path).map_err(failed("unlinking the scratch file"))?;
        file.set_len(total).map_err(failed("making room in the scratch file"))?;
        let mut at = 0;
        let mut place = |size: &Option<u64>| {
            let start = at;
            at += (*size)?;
            Some(start)
        };
        Ok(Scratch::File { file, folder: folder.to_owned(), places: sizes.iter().map(&mut place).collect() })
    }

    /// Shows `length` bytes of an output from `offset`. They were written before.
    ///
    /// # Errors
    /// What reading the file says.
    pub(crate) fn with<T>(
        &self,
        output: usize,
        offset: u64,
        length: usize,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        match self {
            Scratch::Memory(rooms) => {
                let Some(Some(room)) = rooms.get(output) else { return Ok(look(&[])) };
                let bytes = room.read().unwrap_or_else(PoisonError::into_inner);
                Ok(look(&bytes[offset as usize..offset as usize + length]))
            }
            Scratch::File { file, folder, places } => {
                let Some(Some(start)) = places.get(output) else { return Ok(look(&[])) };
                BUFFER.with_borrow_mut(|buffer| {
                    buffer.resize(length, 0);
                    file.read_exact_at(buffer, start + offset).map_err(|error| Error::File {
                        path: folder.clone(),
                        action: "reading a scratch file in it",
                        error,
                    })?;
                    Ok(look(buffer))
                })
            }
        }
    }
}

impl Sink for Scratch {
    fn write(&self, output: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Scratch::Memory(rooms) => {
                if let Some(Some(room)) = rooms.get(output) {
                    let mut room = room.write().unwrap_or_else(PoisonError::into_inner);
                    room[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
                }
                Ok(())
            }
            Scratch::File { file, folder, places } => {
                let Some(Some(start)) = places.get(output) else { return Ok(()) };
                file.write_all_at(bytes, start + offset).map_err(|error| Error::File {
                    path: folder.clone(),
                    action: "writing a scratch file in it",
                    error,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_file_hold_the_same_and_the_file_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        for memory_bytes in [0, 100] {
            let scratch = Scratch::new(&[Some(3), None, Some(5)], memory_bytes, folder.path()).unwrap();
            assert_eq!(matches!(scratch, Scratch::Memory(_)), memory_bytes == 100);
            scratch.write(0, 1, b"bc").unwrap();
            scratch.write(0, 0, b"a").unwrap();
            scratch.write(1, 7, b"dropped").unwrap();
            scratch.write(2, 0, b"defgh").unwrap();
            assert_eq!(scratch.with(0, 0, 3, <[u8]>::to_vec).unwrap(), b"abc");
            assert_eq!(scratch.with(2, 2, 3, <[u8]>::to_vec).unwrap(), b"fgh");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_scratch_folder_that_is_not_there_is_an_error_that_names_it() {
        let error = Scratch::new(&[Some(1)], 0, Path::new("/nowhere/at/all")).err().unwrap().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
