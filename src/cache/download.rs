//! Fetches what a `gs://` address names into the cache, anonymously, over Google Cloud Storage's XML interface
//! (<https://cloud.google.com/storage/docs/xml-api/overview>): one listing below the address, then one request per object.
//!
//! Invariants: nothing stands under the final name before all of it is there and checked; what is there is moved by one
//! rename while the lock is held. Nobody but the base address is contacted: no credentials are looked for, no redirect is
//! followed. All names of a listing are judged before the first byte is written.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use md5::{Digest, Md5};
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig, StaticCredentialProvider};

use super::{Error, Home, Remote, Slot, check_component, look_up, remote};

/// Google Cloud Storage itself.
const BASE_URL: &str = "https://storage.googleapis.com";
/// More objects than this below one address are refused; a checkpoint has some hundreds.
const MAX_OBJECTS: usize = 100_000;
/// A listing takes seconds; one that never ends is given up.
const LISTING: Duration = Duration::from_secs(600);
const CONNECT: Duration = Duration::from_secs(20);
/// How long a connection may stay silent. A whole object may take as long as it needs.
const SILENCE: Duration = Duration::from_secs(60);
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

/// One file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    key: Key,
    size: u64,
    /// The MD5 sum, where the listing gives one.
    md5: Option<[u8; 16]>,
}

/// What to fetch: paths relative to the final name, with `/`. A single object has the empty path.
type Plan = BTreeMap<String, Item>;

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
    progress.start(plan.len() as u64, plan.values().map(|item| item.size).sum());
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

/// One bucket at one base address, and the part of it that is wanted.
struct Bucket<'a> {
    store: GoogleCloudStorage,
    remote: &'a Remote,
    base_url: String,
}

/// Hands out the one client that we configured ourselves.
#[derive(Debug)]
struct Direct(reqwest::Client);

impl HttpConnector for Direct {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

impl<'a> Bucket<'a> {
    fn open(remote: &'a Remote, options: &Options) -> Result<Bucket<'a>, DownloadError> {
        let base_url = options.base_url.as_deref().unwrap_or(BASE_URL).trim_end_matches('/').to_owned();
        let refuse = |reason: String| DownloadError::BaseUrl { base_url: base_url.clone(), reason };
        let url = reqwest::Url::parse(&base_url).map_err(|error| refuse(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("it is not a plain http address".to_owned()));
        }
        let mut client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .https_only(url.scheme() == "https")
            .user_agent(concat!("pi0-burn/", env!("CARGO_PKG_VERSION")));
        if matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")) {
            // No proxy can reach this machine's own address for us.
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| refuse(chain(&error)))?;
        // An empty credential, never sent: without one the builder would go looking for the user's own.
        let nobody = Arc::new(StaticCredentialProvider::new(GcpCredential { bearer: String::new() }));
        let retry = RetryConfig { max_retries: options.retries, ..RetryConfig::default() };
        let store = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&remote.bucket)
            .with_base_url(&base_url)
            .with_credentials(nobody)
            .with_skip_signature(true)
            .with_retry(retry)
            .with_http_connector(Direct(client))
            .build()
            .map_err(|error| refuse(chain(&error)))?;
        Ok(Bucket { store, remote, base_url })
    }

    /// Lists what is below the address; if nothing is, asks for an object of that name.
    async fn plan(&self) -> Result<Plan, DownloadError> {
        let prefix = Key::parse(&self.remote.path).map_err(|error| self.refused_name(error))?;
        let listing = tokio::time::timeout(LISTING, self.list(&prefix)).await;
        let objects = listing.map_err(|_| self.endless(format!("it took more than {} s", LISTING.as_secs())))??;
        let plan = self.judge(objects)?;
        if !plan.is_empty() {
            return Ok(plan);
        }
        let object = self.store.head(&prefix).await.map_err(|error| self.store_error(&prefix, error))?;
        Ok(Plan::from([(String::new(), item(object))]))
    }

    async fn list(&self, prefix: &Key) -> Result<Vec<ObjectMeta>, DownloadError> {
        let mut listing = self.store.list(Some(prefix));
        let mut objects = Vec::new();
        while let Some(object) = listing.next().await {
            objects.push(object.map_err(|error| self.store_error(prefix, error))?);
            if objects.len() > MAX_OBJECTS {
                return Err(self.endless(format!("it has more than {MAX_OBJECTS} objects")));
            }
        }
        Ok(objects)
    }

    /// Turns a listing into a plan, or refuses it as a whole.
    fn judge(&self, objects: Vec<ObjectMeta>) -> Result<Plan, DownloadError> {
        let mut plan = Plan::new();
        for object in objects {
            let name = object.location.to_string();
            let refuse =
                |reason: String| DownloadError::Name { url: self.remote.url.clone(), name: name.clone(), reason };
            let Some(path) = name.strip_prefix(&self.remote.path) else {
                return Err(refuse("it is not below the address".to_owned()));
            };
            // The folder itself: tools that show folders leave an empty object in its place.
            if path.is_empty() {
                continue;
            }
            let Some(path) = path.strip_prefix('/') else {
                return Err(refuse("it is not below the address".to_owned()));
            };
            path.split('/').try_for_each(check_component).map_err(&refuse)?;
            if plan.insert(path.to_owned(), item(object)).is_some() {
                return Err(refuse("it is listed twice".to_owned()));
            }
        }
        let folders: Vec<String> = plan
            .keys()
            .flat_map(|path| path.match_indices('/').map(|(end, _)| path[..end].to_owned()))
            .filter(|folder| plan.contains_key(folder))
            .collect();
        for folder in folders {
            if plan.remove(&folder).is_some_and(|item| item.size > 0) {
                let reason = "other objects have it as their folder".to_owned();
                return Err(DownloadError::Name { url: self.remote.url.clone(), name: folder, reason });
            }
        }
        Ok(plan)
    }

    /// Makes sure that `file` is the object.
    async fn fetch(
        &self,
        file: PathBuf,
        item: &Item,
        by_size: bool,
        progress: &dyn Progress,
    ) -> Result<(), DownloadError> {
        if (by_size || item.md5.is_some()) && is_complete(&file, item)? {
            progress.advance(item.size);
            return Ok(());
        }
        let object = match self.store.get(&item.key).await {
            // An empty object whose name ends in a slash, as tools leave them for an empty folder: its name lost the slash.
            Err(object_store::Error::NotFound { .. }) if item.size == 0 => {
                return fs::create_dir_all(&file).map_err(failed(&file, "created"));
            }
            object => object.map_err(|error| self.store_error(&item.key, error))?,
        };
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).map_err(failed(parent, "created"))?;
        }
        let mut out = File::create(&file).map_err(failed(&file, "created"))?;
        let mut body = object.into_stream();
        let mut sum = Md5::new();
        let mut len = 0_u64;
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|error| self.store_error(&item.key, error))?;
            len = len.saturating_add(bytes.len() as u64);
            if len > item.size {
                break;
            }
            sum.update(&bytes);
            out.write_all(&bytes).map_err(failed(&file, "written"))?;
            progress.advance(bytes.len() as u64);
        }
        if len != item.size {
            let found = if len > item.size { "more".to_owned() } else { format!("{len} bytes") };
            return Err(self.differs(item, "its length", format!("{} bytes", item.size), found));
        }
        let sum: [u8; 16] = sum.finalize().into();
        if let Some(expected) = item.md5.filter(|expected| *expected != sum) {
            remove(&file, false)?;
            return Err(self.differs(item, "its MD5 sum", hex(&expected), hex(&sum)));
        }
        // The rename must not become durable before what it names.
        out.sync_all().map_err(failed(&file, "written"))
    }

    fn address(&self, key: &Key) -> String {
        format!("gs://{}/{key}", self.remote.bucket)
    }

    fn differs(&self, item: &Item, what: &'static str, expected: String, found: String) -> DownloadError {
        DownloadError::Content { object: self.address(&item.key), what, expected, found }
    }

    fn endless(&self, reason: String) -> DownloadError {
        DownloadError::Listing { url: self.remote.url.clone(), reason }
    }

    fn refused_name(&self, error: object_store::path::Error) -> DownloadError {
        use object_store::path::Error::{BadSegment, EmptySegment};
        let url = self.remote.url.clone();
        match error {
            EmptySegment { path } => {
                DownloadError::Name { url, name: path, reason: "it has an empty component".to_owned() }
            }
            BadSegment { path, source } => DownloadError::Name { url, name: path, reason: source.to_string() },
            other => DownloadError::Name { url, name: String::new(), reason: other.to_string() },
        }
    }

    fn store_error(&self, key: &Key, error: object_store::Error) -> DownloadError {
        let (url, base_url) = (self.address(key), self.base_url.clone());
        match error {
            object_store::Error::NotFound { .. } => DownloadError::Missing { url, base_url },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                DownloadError::Refused { url, base_url }
            }
            object_store::Error::InvalidPath { source } => self.refused_name(source),
            other => DownloadError::Transport { object: url, base_url, reason: chain(&other) },
        }
    }
}

fn item(object: ObjectMeta) -> Item {
    let md5 = object.e_tag.as_deref().and_then(md5_of);
    Item { key: object.location, size: object.size, md5 }
}

/// The MD5 sum in an entity tag. Google's tag is the sum in hexadecimal for an object that was uploaded in one piece;
/// a composed object has a tag of another form, and no sum.
fn md5_of(tag: &str) -> Option<[u8; 16]> {
    let digits = tag.trim_matches('"');
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
}

fn hex(sum: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*sum))
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

/// An error with its causes, each said once: some messages already hold their cause.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
