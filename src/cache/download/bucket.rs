//! One public bucket of Google Cloud Storage: what is below an address, and the bytes of one object.
//!
//! Source: the XML interface (<https://cloud.google.com/storage/docs/xml-api/overview>), spoken by `object_store`.
//! Invariant: nobody but the base address is contacted: no credentials are looked for, no redirect is followed; a proxy
//! that the environment names is used, except for this machine's own address. Every path in a [`Plan`] is one that may be
//! made below a folder, and none is the folder of another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use md5::{Digest, Md5};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig, StaticCredentialProvider};

use super::{DownloadError, Options, Progress, failed, is_complete, remove};
use crate::cache::{Remote, check_component};

/// Google Cloud Storage itself.
const BASE_URL: &str = "https://storage.googleapis.com";
/// More objects than this below one address are refused; a checkpoint has some hundreds.
const MAX_OBJECTS: usize = 100_000;
/// A listing takes seconds; one that never ends is given up.
const LISTING: Duration = Duration::from_secs(600);
const CONNECT: Duration = Duration::from_secs(20);
/// How long a connection may stay silent. A whole object may take as long as it needs.
const SILENCE: Duration = Duration::from_secs(60);

/// One file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: Key,
    pub(super) size: u64,
    /// The MD5 sum, where the listing gives one.
    pub(super) md5: Option<[u8; 16]>,
}

/// What to fetch: paths relative to the final name, with `/`. A single object has the empty path.
pub(super) type Plan = BTreeMap<String, Item>;

/// One bucket at one base address, and the part of it that is wanted.
pub(super) struct Bucket<'a> {
    store: GoogleCloudStorage,
    remote: &'a Remote,
    base_url: String,
    /// Of the last answer; only meaningful while nothing else is on the way.
    status: Arc<AtomicU16>,
}

/// The one client that we configured ourselves. It notes the status of the last answer: a failed listing is reported
/// without its status, and "no such bucket" must not read like a broken line.
#[derive(Debug, Clone)]
struct Direct {
    client: reqwest::Client,
    status: Arc<AtomicU16>,
}

impl HttpConnector for Direct {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Direct {
    // Written out as `async_trait` would, which the trait is declared with.
    fn call<'s, 'a>(&'s self, request: HttpRequest) -> Answer<'a>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let answer = HttpService::call(&self.client, request).await;
            self.status.store(answer.as_ref().map_or(0, |answer| answer.status().as_u16()), Ordering::Relaxed);
            answer
        })
    }
}

impl<'a> Bucket<'a> {
    pub(super) fn open(remote: &'a Remote, options: &Options) -> Result<Bucket<'a>, DownloadError> {
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
        let status = Arc::new(AtomicU16::new(0));
        // An empty credential, never sent: without one the builder would go looking for the user's own.
        let nobody = Arc::new(StaticCredentialProvider::new(GcpCredential { bearer: String::new() }));
        let retry = RetryConfig { max_retries: options.retries, ..RetryConfig::default() };
        let store = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&remote.bucket)
            .with_base_url(&base_url)
            .with_credentials(nobody)
            .with_skip_signature(true)
            .with_retry(retry)
            .with_http_connector(Direct { client, status: Arc::clone(&status) })
            .build()
            .map_err(|error| refuse(chain(&error)))?;
        Ok(Bucket { store, remote, base_url, status })
    }

    /// Lists what is below the address; if nothing is, asks for an object of that name.
    pub(super) async fn plan(&self) -> Result<Plan, DownloadError> {
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
            match (object, self.status.load(Ordering::Relaxed)) {
                (Ok(object), _) => objects.push(object),
                // Objects may be open to all although the list of them is not: the address may be one of those.
                (Err(_), 401 | 403) if objects.is_empty() => break,
                (Err(_), 404) => {
                    return Err(DownloadError::Missing {
                        url: self.remote.url.clone(),
                        base_url: self.base_url.clone(),
                    });
                }
                (Err(error), _) => return Err(self.store_error(prefix, error)),
            }
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
                return Err(DownloadError::Name {
                    url: self.remote.url.clone(),
                    name: format!("{}/{folder}", self.remote.path),
                    reason,
                });
            }
        }
        Ok(plan)
    }

    /// Makes sure that `file` is the object.
    pub(super) async fn fetch(
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
