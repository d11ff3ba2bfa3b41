//! Fetches what a `gs://` address names into the cache, anonymously: one listing, then one request per object.
//!
//! Invariants: nothing stands under the final name before all of it is there and checked; what is there is moved by one
//! rename while the lock is held. All names of a listing are judged before the first byte is written. Who is contacted
//! is decided in `bucket` alone.

mod bucket;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use md5::{Digest, Md5};

use self::bucket::{Bucket, Item, Plan};
use super::{Error, Home, Remote, Slot, look_up, remote};

/// How often a lock that another process holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// A file on disk is read in pieces of this size to check it.
const PIECE: usize = 1 << 20;

/// How to download.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where buckets are asked for, without a slash at the end; Google Cloud Storage if none. `http://` only if given here.
    pub base_url: Option<String>,
    /// How many objects are on the way at once.
    pub parallel: NonZeroUsize,
    /// How often a request that failed for a passing reason is tried again.
    pub retries: usize,
    /// How long to wait for another process that downloads the same; for ever if none.
    pub lock_wait: Option<Duration>,
}

impl Default for Options {
    fn default() -> Options {
        Options { base_url: None, parallel: NonZeroUsize::MIN.saturating_add(7), retries: 10, lock_wait: None }
    }
}

/// Is told how a download goes. Every method may be left out; `&()` listens to nothing.
pub trait Progress {
    /// Another process holds this lock file and downloads the same; called once, before waiting.
    fn waiting(&self, lock: &Path) {
        let _ = lock;
    }
    /// The listing is known: so many files, with so many bytes together.
    fn start(&self, files: u64, bytes: u64) {
        let _ = (files, bytes);
    }
    /// So many more bytes are on disk, received or found there from an earlier attempt.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }
}

impl Progress for () {}

/// Why a download did not come to its end. What it has is kept for the next attempt, unless the message says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The address, or what the cache already holds for it.
    #[error(transparent)]
    Cache(#[from] Error),
    /// The base address is not one.
    #[error("{base_url}: not a base address: {reason}; expected https://host or http://host")]
    BaseUrl {
        /// As it was given.
        base_url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a folder nor an object has this address, or the bucket does not exist.
    #[error("{url}: nothing there at {base_url}; hint: the address must name a folder or an object of a public bucket")]
    Missing {
        /// The address.
        url: String,
        /// Who was asked.
        base_url: String,
    },
    /// The bucket answers only to those with an account.
    #[error(
        "{url}: {base_url} refuses to show it without an account; hint: fetch it with `gsutil` and give its folder"
    )]
    Refused {
        /// The address.
        url: String,
        /// Who was asked.
        base_url: String,
    },
    /// The listing has a name that must not become a file name here. Nothing was written.
    #[error("{url}: the listing has the object {name:?}, which is refused: {reason}")]
    Name {
        /// The address.
        url: String,
        /// The object, as the listing has it.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The listing is longer than any checkpoint's, or does not end. Nothing was written.
    #[error("{url}: the listing is too long: {reason}; hint: name a folder further down")]
    Listing {
        /// The address.
        url: String,
        /// What was exceeded.
        reason: String,
    },
    /// An object is not what its listing says. It is fetched anew the next time.
    #[error("{object}: {what}: expected {expected}, found {found}; hint: download again")]
    Content {
        /// The object's address.
        object: String,
        /// What differs.
        what: &'static str,
        /// As the listing has it.
        expected: String,
        /// As it came.
        found: String,
    },
    /// The connection or the server failed, after all retries.
    #[error("{object}: {base_url} failed: {reason}; hint: run it again, what is complete is not fetched twice")]
    Transport {
        /// The address of the object, or of the folder if its listing failed.
        object: String,
        /// Who was asked.
        base_url: String,
        /// What the client says.
        reason: String,
    },
    /// Another process holds the lock longer than [`Options::lock_wait`].
    #[error("{url}: another process is downloading it (it holds {}); hint: wait until it has ended", lock.display())]
    Locked {
        /// The address.
        url: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// The cache could not be written.
    #[error("{}: cannot be {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Brings what `place` names into the cache and returns where it lies. A plain path, and what the cache already holds, is
/// returned without contacting anybody. Blocks; not to be called from inside an asynchronous runtime.
///
/// Objects are collected under the `.partial` name. A file there that is complete, by its size and by its MD5 sum where
/// the listing gives one, is not fetched again; what the listing does not have is removed from there.
///
/// # Errors
/// See [`DownloadError`]. Except after success, nothing stands under the final name.
pub fn download(
    home: &Home,
    place: &str,
    progress: &dyn Progress,
    options: &Options,
) -> Result<PathBuf, DownloadError> {
    let Some(remote) = remote(place.as_ref())? else { return Ok(PathBuf::from(place)) };
    if let Some(copy) = cached(home, &remote)? {
        return Ok(copy);
    }
    let slot = home.slot(&remote)?;
    let bucket = Bucket::open(&remote, options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed(&slot.target, "downloaded"))?;
    let plan = runtime.block_on(bucket.plan())?;
    let parent = slot.target.parent().unwrap_or(&slot.target);
    fs::create_dir_all(parent).map_err(failed(parent, "created"))?;
    let _lock = lock(&remote, &slot, progress, options)?;
    // Whoever held the lock before may have brought it.
    if let Some(copy) = cached(home, &remote)? {
        return Ok(copy);
    }
    clear(&slot.partial, &plan)?;
    progress.start(plan.len() as u64, plan.values().fold(0, |sum: u64, item| sum.saturating_add(item.size)));
    // Names with an extension share their scratch with others (`v1.0` and `v1.1` both have `v1.partial`): there, a size
    // alone does not show that a file is ours.
    let by_size = slot.target.extension().is_none();
    runtime.block_on(async {
        stream::iter(&plan)
            .map(|(path, item)| bucket.fetch(below(&slot.partial, path), item, by_size, progress))
            .buffer_unordered(options.parallel.get())
            .try_collect::<()>()
            .await
    })?;
    fs::rename(&slot.partial, &slot.target).map_err(failed(&slot.target, "put in place"))?;
    Ok(slot.target)
}

fn cached(home: &Home, remote: &Remote) -> Result<Option<PathBuf>, Error> {
    match look_up(home, remote) {
        Ok(path) => Ok(Some(path)),
        Err(Error::NotCached { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the lock, waiting for whoever holds it. It is given back when the file is dropped, also by a process that dies.
/// The file stays, as openpi's does: removing it would let a third process lock a file of the same name at the same time.
fn lock(remote: &Remote, slot: &Slot, progress: &dyn Progress, options: &Options) -> Result<File, DownloadError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&slot.lock);
    let file = file.map_err(failed(&slot.lock, "opened"))?;
    let start = Instant::now();
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failed(&slot.lock, "locked")(error)),
        }
        if options.lock_wait.is_some_and(|limit| start.elapsed() >= limit) {
            return Err(DownloadError::Locked { url: remote.url.clone(), lock: slot.lock.clone() });
        }
        if !told {
            progress.waiting(&slot.lock);
            told = true;
        }
        std::thread::sleep(LOCK_POLL);
    }
}

/// Removes from the scratch what is not in the plan: left by an older state of the bucket, or by another name's download.
fn clear(partial: &Path, plan: &Plan) -> Result<(), DownloadError> {
    let Ok(metadata) = partial.symlink_metadata() else { return Ok(()) };
    let single = plan.contains_key("");
    if metadata.is_dir() && !single {
        return clear_folder(partial, "", plan);
    }
    if metadata.is_file() && single { Ok(()) } else { remove(partial, metadata.is_dir()) }
}

fn clear_folder(folder: &Path, prefix: &str, plan: &Plan) -> Result<(), DownloadError> {
    for entry in fs::read_dir(folder).map_err(failed(folder, "read"))? {
        let entry = entry.map_err(failed(folder, "read"))?;
        let kind = entry.file_type().map_err(failed(&entry.path(), "read"))?;
        let path = entry.file_name().to_str().map(|name| format!("{prefix}{name}"));
        let inside = path.as_ref().map(|path| format!("{path}/"));
        let is_ancestor =
            |inside: &String| plan.range(inside.clone()..).next().is_some_and(|(p, _)| p.starts_with(inside));
        match (path, inside.filter(is_ancestor)) {
            (_, Some(inside)) if kind.is_dir() => clear_folder(&entry.path(), &inside, plan)?,
            (Some(path), _) if kind.is_file() && plan.contains_key(&path) => {}
            _ => remove(&entry.path(), kind.is_dir())?,
        }
    }
    Ok(())
}

fn remove(path: &Path, is_dir: bool) -> Result<(), DownloadError> {
    let done = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    done.map_err(failed(path, "removed"))
}

fn below(root: &Path, path: &str) -> PathBuf {
    let mut whole = root.to_owned();
    whole.extend(path.split('/').filter(|component| !component.is_empty()));
    whole
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DownloadError + use<> {
    let path = path.to_owned();
    move |source| DownloadError::Io { path, action, source }
}

/// Whether an earlier attempt has left the whole object in `file`.
fn is_complete(file: &Path, item: &Item) -> Result<bool, DownloadError> {
    match file.symlink_metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() == item.size => {}
        _ => return Ok(false),
    }
    let Some(expected) = item.md5 else { return Ok(true) };
    let mut reader = File::open(file).map_err(failed(file, "read"))?;
    let mut sum = Md5::new();
    let mut piece = vec![0; PIECE];
    loop {
        match reader.read(&mut piece).map_err(failed(file, "read"))? {
            0 => return Ok(<[u8; 16]>::from(sum.finalize()) == expected),
            len => sum.update(&piece[..len]),
        }
    }
}
