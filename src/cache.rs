//! Where openpi keeps what it downloaded: `gs://bucket/path` lies at `<home>/bucket/path`, and `<home>` is
//! `OPENPI_DATA_HOME` or `~/.cache/openpi`.
//!
//! Source: the layout is that of `openpi.shared.download.maybe_download`
//! (<https://github.com/Physical-Intelligence/openpi>): beside the final name `pi0_base` stand `pi0_base.partial`, what an
//! unfinished download has so far, and `pi0_base.lock`, held with `flock` while a download runs and left behind after it.
//! As there, both take the place of the last extension: `tokenizer.model` has `tokenizer.partial`.
//!
//! Invariant: [`locate`] only reads, never contacts anybody, and every path that it returns for a `gs://` address lies
//! inside the home. What is under the final name was downloaded completely.

#[cfg(feature = "gcs")]
mod download;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

#[cfg(feature = "gcs")]
pub use download::{DownloadError, Options, Progress, download};

/// The environment variable that moves openpi's downloads elsewhere.
pub const DATA_HOME: &str = "OPENPI_DATA_HOME";
/// Where they lie without it, below the user's own folder.
const DEFAULT_HOME: &str = ".cache/openpi";

/// A checkpoint that was published anew, and when.
struct Renewal {
    /// What the path below the home begins with.
    prefix: &'static str,
    /// Midnight UTC of that day, in seconds since 1970. A copy from before is outdated.
    seconds: u64,
    day: &'static str,
}

/// openpi's own table; the first prefix that fits decides.
const RENEWALS: [Renewal; 3] = [
    Renewal { prefix: "openpi-assets/checkpoints/pi0_aloha_pen_uncap", seconds: 1_739_750_400, day: "2025-02-17" },
    Renewal { prefix: "openpi-assets/checkpoints/pi0_libero", seconds: 1_738_800_000, day: "2025-02-06" },
    Renewal { prefix: "openpi-assets/checkpoints/", seconds: 1_738_540_800, day: "2025-02-03" },
];

/// The folder below which openpi keeps its downloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: Option<PathBuf>,
    origin: Origin,
}

/// Who chose the home; said in messages, so that the reader knows what to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Variable,
    Default,
}

/// Where a checkpoint lies on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The argument was a plain path and is passed on as it is; whether it exists is for the reader of it to say.
    Local(PathBuf),
    /// The argument was a `gs://` address, and this is its copy inside the home. It exists.
    Cached(PathBuf),
}

impl Found {
    /// The path, wherever it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Found::Local(path) | Found::Cached(path) => path,
        }
    }

    /// The path, wherever it came from.
    #[must_use]
    pub fn into_path(self) -> PathBuf {
        match self {
            Found::Local(path) | Found::Cached(path) => path,
        }
    }
}

/// What is wrong with an address, or with what the home holds for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address has a scheme, and it is not `gs`.
    #[error(
        "{url}: the scheme `{scheme}` is not supported; expected a plain path or gs://bucket/path; \
         hint: download it yourself and give the folder"
    )]
    Scheme {
        /// The whole address.
        url: String,
        /// What stands before `://`.
        scheme: String,
    },
    /// The address is not `gs://bucket/path`, or its path could leave the cache.
    #[error("{url}: not an address of the form gs://bucket/path: {reason}")]
    Address {
        /// The whole address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither `OPENPI_DATA_HOME` nor the user's folder is known.
    #[error("{url}: no folder to look for it in; hint: set {DATA_HOME}, the user's home folder is not known")]
    NoHome {
        /// The whole address.
        url: String,
    },
    /// The home holds no complete copy.
    #[error("{url}: not in the cache; expected it at {}, {under}{}; hint: {hint}", expected.display(), Tail(unfinished.as_ref()))]
    NotCached {
        /// The whole address.
        url: String,
        /// Exactly where it was looked for.
        expected: PathBuf,
        /// Who chose the home.
        under: &'static str,
        /// What shows that a download was begun.
        unfinished: Option<Unfinished>,
        /// How to get it.
        hint: String,
    },
    /// The copy is older than the checkpoint's last publication; openpi would throw it away and download it again.
    #[error(
        "{url}: the copy at {} is outdated; expected one from after {day}, when it was published anew; \
         hint: remove that folder and download again, or give its path to read it as it is", folder.display()
    )]
    Outdated {
        /// The whole address.
        url: String,
        /// The copy.
        folder: PathBuf,
        /// The day of the publication, in UTC.
        day: &'static str,
    },
    /// The home could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why it could not be.
        source: io::Error,
    },
}

/// What shows that a download was begun and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfinished {
    /// Another process holds this lock file: it is downloading now.
    Running(PathBuf),
    /// Nobody is downloading; this is what an earlier attempt left.
    Partial(PathBuf),
    /// Nobody is downloading; an earlier attempt left nothing but its lock file.
    Begun(PathBuf),
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfinished::Running(lock) => {
                write!(f, "another process is downloading it now (it holds {})", lock.display())
            }
            Unfinished::Partial(partial) => write!(f, "an unfinished download lies at {}", partial.display()),
            Unfinished::Begun(lock) => write!(f, "a download was begun and left only {}", lock.display()),
        }
    }
}

/// A clause that is there only if something is.
struct Tail<'a>(Option<&'a Unfinished>);

impl fmt::Display for Tail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |unfinished| write!(f, "; {unfinished}"))
    }
}

impl Home {
    /// The home that this process's environment names.
    #[must_use]
    pub fn from_env() -> Home {
        let mut home = Home::new(std::env::var_os(DATA_HOME), std::env::home_dir());
        // Without a current folder a relative home stays relative, and reading below it says why it fails.
        home.root = home.root.map(|root| std::path::absolute(&root).unwrap_or(root));
        home
    }

    /// The home for these values of `OPENPI_DATA_HOME` and of the user's own folder. An empty value counts as none; a
    /// leading `~` stands for the user's folder.
    #[must_use]
    pub fn new(data_home: Option<OsString>, user_home: Option<PathBuf>) -> Home {
        let user_home = user_home.filter(|path| !path.as_os_str().is_empty());
        match data_home.filter(|value| !value.is_empty()).map(PathBuf::from) {
            Some(value) => {
                let root = match value.strip_prefix("~") {
                    Ok(rest) => user_home.map(|user| user.join(rest)),
                    Err(_) => Some(value),
                };
                Home { root, origin: Origin::Variable }
            }
            None => Home { root: user_home.map(|user| user.join(DEFAULT_HOME)), origin: Origin::Default },
        }
    }

    /// The folder itself, if the environment named one.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    fn slot(&self, remote: &Remote) -> Result<Slot, Error> {
        let root = self.root().ok_or_else(|| Error::NoHome { url: remote.url.clone() })?;
        let mut target = root.join(&remote.bucket);
        target.extend(remote.path.split('/'));
        Ok(Slot { partial: target.with_extension("partial"), lock: target.with_extension("lock"), target })
    }
}

/// A parsed `gs://bucket/path`: no component is empty, `.` or `..`, or holds what a file name must not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remote {
    /// As it was given, without slashes at the end.
    url: String,
    bucket: String,
    path: String,
}

/// The three neighbours in the cache that belong to one address.
#[derive(Debug)]
struct Slot {
    target: PathBuf,
    partial: PathBuf,
    lock: PathBuf,
}

/// Looks for `place` on this machine: a plain path is passed on, a `gs://` address is looked up in `home`.
///
/// # Errors
/// Another scheme than `gs`; an address that is malformed or could leave the cache; a copy that is missing, unfinished or
/// outdated; a home that cannot be read.
pub fn locate(home: &Home, place: impl AsRef<OsStr>) -> Result<Found, Error> {
    let place = place.as_ref();
    match remote(place)? {
        None => Ok(Found::Local(PathBuf::from(place))),
        Some(remote) => look_up(home, &remote).map(Found::Cached),
    }
}

/// The address in `place`; none if it is a plain path.
fn remote(place: &OsStr) -> Result<Option<Remote>, Error> {
    let lossy = place.to_string_lossy();
    let Some((scheme, rest)) = lossy.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return Ok(None);
    };
    if !scheme.eq_ignore_ascii_case("gs") {
        let scheme = scheme.to_owned();
        return Err(Error::Scheme { url: lossy.clone().into_owned(), scheme });
    }
    let refuse = |reason: String| Error::Address { url: lossy.clone().into_owned(), reason };
    if place.to_str().is_none() {
        return Err(refuse("it is not valid UTF-8".to_owned()));
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (bucket, path) = rest.split_once('/').ok_or_else(|| refuse("no path follows the bucket".to_owned()))?;
    for component in std::iter::once(bucket).chain(path.split('/')) {
        check_component(component).map_err(&refuse)?;
        if component.contains(['?', '#']) {
            return Err(refuse(format!("the component {component:?} holds a `?` or `#`, which openpi would cut off")));
        }
    }
    let (bucket, path) = (bucket.to_owned(), path.to_owned());
    Ok(Some(Remote { url: format!("gs://{bucket}/{path}"), bucket, path }))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// Refuses what would not be the name of one file or folder directly inside its parent, on any system.
fn check_component(component: &str) -> Result<(), String> {
    match component {
        "" => Err("it has an empty component".to_owned()),
        "." | ".." => Err(format!("the component `{component}` could leave its folder")),
        _ if component.contains(['\\', '/']) || component.contains(char::is_control) => {
            Err(format!("the component {component:?} holds a character that a file name must not"))
        }
        _ => Ok(()),
    }
}

fn look_up(home: &Home, remote: &Remote) -> Result<PathBuf, Error> {
    let slot = home.slot(remote)?;
    let Some(modified) = modified(&slot.target)? else {
        let under = match home.origin {
            Origin::Variable => "as OPENPI_DATA_HOME says",
            Origin::Default => "below openpi's default home, as OPENPI_DATA_HOME is not set",
        };
        let unfinished = unfinished(&slot)?;
        let hint = hint(remote, &slot, unfinished.as_ref());
        return Err(Error::NotCached { url: remote.url.clone(), expected: slot.target, under, unfinished, hint });
    };
    if let Some(day) = outdated(remote, modified) {
        return Err(Error::Outdated { url: remote.url.clone(), folder: slot.target, day });
    }
    Ok(slot.target)
}

/// When `path` was last modified; none if nothing is there. Symbolic links are followed: a home may be made of them.
fn modified(path: &Path) -> Result<Option<SystemTime>, Error> {
    match path.metadata().and_then(|metadata| metadata.modified()) {
        Ok(time) => Ok(Some(time)),
        // "Not a directory": an ancestor is a file, so nothing can be there.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// The day of the publication that a copy from `modified` has missed.
fn outdated(remote: &Remote, modified: SystemTime) -> Option<&'static str> {
    let below_home = format!("{}/{}", remote.bucket, remote.path);
    let renewal = RENEWALS.iter().find(|renewal| below_home.starts_with(renewal.prefix))?;
    (modified <= SystemTime::UNIX_EPOCH + Duration::from_secs(renewal.seconds)).then_some(renewal.day)
}

fn unfinished(slot: &Slot) -> Result<Option<Unfinished>, Error> {
    let lock = modified(&slot.lock)?.is_some();
    if lock && is_held(&slot.lock) {
        return Ok(Some(Unfinished::Running(slot.lock.clone())));
    }
    if modified(&slot.partial)?.is_some() {
        return Ok(Some(Unfinished::Partial(slot.partial.clone())));
    }
    Ok(lock.then(|| Unfinished::Begun(slot.lock.clone())))
}

/// Whether another process holds the lock. A lock file that cannot be opened or tried tells nothing.
fn is_held(lock: &Path) -> bool {
    File::open(lock).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn hint(remote: &Remote, slot: &Slot, unfinished: Option<&Unfinished>) -> String {
    if matches!(unfinished, Some(Unfinished::Running(_))) {
        return "wait until that process has ended".to_owned();
    }
    if cfg!(feature = "gcs") {
        return "pass --download to fetch it".to_owned();
    }
    let parent = slot.target.parent().unwrap_or(&slot.target).display().to_string();
    let (url, parent) = (quote(&remote.url), quote(&parent));
    format!(
        "build with `--features gcs` and pass --download to fetch it, or run \
         `mkdir -p {parent} && gsutil -m cp -r {url} {parent}`"
    )
}

/// The text as one word of a POSIX shell.
fn quote(text: &str) -> String {
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/:._-+@%".contains(c)) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
