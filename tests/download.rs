//! Downloads into the cache, from a small server on this machine's own address that speaks as much of Google Cloud
//! Storage's XML interface as is asked of it. Nothing here contacts anybody else.
#![cfg(feature = "gcs")]

#[path = "download/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use pi0_burn::cache::{self, DownloadError, Found, Home, Options, Progress, Unfinished};
use tempfile::TempDir;

use self::server::{Server, hex};

const BUCKET: &str = "openpi-assets";
const URL: &str = "gs://openpi-assets/checkpoints/pi0_tiny";
const PREFIX: &str = "checkpoints/pi0_tiny";

fn key(path: &str) -> String {
    format!("{PREFIX}/{path}")
}

/// A home of its own for each test.
struct Place {
    folder: TempDir,
    home: Home,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(Some(folder.path().into()), None);
        Place { folder, home }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join(BUCKET).join(PREFIX)
    }

    fn partial(&self) -> PathBuf {
        self.target().with_extension("partial")
    }

    fn download(&self, server: &Server) -> Result<PathBuf, DownloadError> {
        cache::download(&self.home, URL, &(), &server.options())
    }

    /// The error of a download that must fail and leave nothing under the final name.
    fn fails(&self, server: &Server) -> DownloadError {
        let error = self.download(server).expect_err("this download must fail");
        assert!(!self.target().exists(), "{error}");
        error
    }

    fn is_untouched(&self) -> bool {
        fs::read_dir(self.folder.path()).unwrap().next().is_none()
    }
}

/// Every file below `folder`, by its path.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            all.insert(name, fs::read(&path).unwrap());
        }
    }
    all
}

fn tiny() -> BTreeMap<String, Vec<u8>> {
    [
        ("_METADATA", b"{}".to_vec()),
        ("assets/a b+c%2F.json", b"odd".to_vec()),
        ("params/d/0123", vec![7; 300_000]),
        ("params/empty", Vec::new()),
        ("params/manifest.ocdbt", b"manifest".to_vec()),
    ]
    .map(|(path, bytes)| (path.to_owned(), bytes))
    .into()
}

#[derive(Default)]
struct Count {
    files: AtomicU64,
    total: AtomicU64,
    done: AtomicU64,
    waits: AtomicUsize,
}

impl Progress for Count {
    fn waiting(&self, _: &Path) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }
    fn start(&self, files: u64, bytes: u64) {
        self.files.store(files, Ordering::Relaxed);
        self.total.store(bytes, Ordering::Relaxed);
    }
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[test]
fn a_folder_arrives_whole_under_openpis_name_and_is_found_there_without_asking_again() {
    let (server, place, count) = (Server::tiny(), Place::new(), Count::default());
    let path = cache::download(&place.home, URL, &count, &server.options()).unwrap();
    assert_eq!(path, place.target());
    assert_eq!(files(&path), tiny());
    assert!(!place.partial().exists());
    assert_eq!((count.files.into_inner(), count.total.into_inner()), (5, 300_013));
    assert_eq!(count.done.into_inner(), 300_013);
    let log = server.log();
    assert_eq!(log[0], format!("LIST {PREFIX}/"));
    assert_eq!(log.len(), 6, "{log:?}");
    assert_eq!(place.download(&server).unwrap(), path);
    assert_eq!(cache::locate(&place.home, URL).unwrap(), Found::Cached(path));
    assert_eq!(server.log(), Vec::<String>::new());
}

#[test]
fn a_plain_path_is_handed_back_without_asking_anybody() {
    let (server, place) = (Server::tiny(), Place::new());
    let path = cache::download(&place.home, "some/folder", &(), &server.options()).unwrap();
    assert_eq!(path, Path::new("some/folder"));
    assert!(server.log().is_empty() && place.is_untouched());
}

#[test]
fn a_listing_in_pages_is_read_to_its_end() {
    let (server, place) = (Server::tiny(), Place::new());
    server.script().page = 2;
    assert_eq!(files(&place.download(&server).unwrap()), tiny());
    assert_eq!(server.log().iter().filter(|line| line.starts_with("LIST")).count(), 4);
}

#[test]
fn a_single_object_arrives_as_a_file() {
    let (server, place) = (Server::new(&[("tokenizer.model", b"pieces")]), Place::new());
    let url = "gs://openpi-assets/tokenizer.model";
    let path = cache::download(&place.home, url, &(), &server.options()).unwrap();
    assert_eq!(path, place.folder.path().join("openpi-assets/tokenizer.model"));
    assert_eq!(fs::read(&path).unwrap(), b"pieces");
    assert_eq!(server.log(), ["LIST tokenizer.model/", "HEAD tokenizer.model", "GET tokenizer.model"]);
}

#[test]
fn a_broken_download_leaves_no_final_folder_and_the_next_one_fetches_only_what_is_missing() {
    let (server, place) = (Server::tiny(), Place::new());
    server.script().breaks.insert(key("params/d/0123"), 1);
    let one = Options { parallel: NonZeroUsize::MIN, ..server.options() };
    let error = cache::download(&place.home, URL, &(), &one).unwrap_err();
    assert!(matches!(&error, DownloadError::Transport { object, .. } if object.ends_with("params/d/0123")), "{error}");
    assert!(!place.target().exists());
    let kept = files(&place.partial());
    assert_eq!(kept["_METADATA"], b"{}");
    assert!(kept["params/d/0123"].len() < 300_000);
    let cache::Error::NotCached { unfinished, .. } = cache::locate(&place.home, URL).unwrap_err() else { panic!() };
    assert_eq!(unfinished, Some(Unfinished::Partial(place.partial())));
    server.log();
    let count = Count::default();
    let path = cache::download(&place.home, URL, &count, &one).unwrap();
    assert_eq!(files(&path), tiny());
    assert_eq!(count.done.into_inner(), 300_013);
    let fetched: Vec<String> = server.log().into_iter().filter(|line| line.starts_with("GET")).collect();
    assert_eq!(
        fetched,
        ["params/d/0123", "params/empty", "params/manifest.ocdbt"].map(|path| format!("GET {}", key(path)))
    );
}

#[test]
fn a_passing_failure_is_tried_again_within_one_download() {
    let (server, place) = (Server::tiny(), Place::new());
    server.script().breaks.insert(key("params/d/0123"), 2);
    let count = Count::default();
    let options = Options { retries: 3, ..server.options() };
    assert_eq!(files(&cache::download(&place.home, URL, &count, &options).unwrap()), tiny());
    assert_eq!(count.done.into_inner(), 300_013);
    assert_eq!(server.log().iter().filter(|line| line.ends_with("0123")).count(), 3);
}

#[test]
fn what_an_earlier_attempt_left_is_kept_only_if_its_sum_is_right_and_strangers_are_removed() {
    let (server, place) = (Server::tiny(), Place::new());
    let partial = place.partial();
    fs::create_dir_all(partial.join("params/d")).unwrap();
    fs::create_dir_all(partial.join("_METADATA/in the place of a file")).unwrap();
    fs::create_dir_all(partial.join("stranger")).unwrap();
    fs::write(partial.join("stranger/file"), "x").unwrap();
    fs::write(partial.join("params/manifest.ocdbt"), "manifesT").unwrap();
    fs::write(partial.join("params/d/0123"), vec![7; 300_000]).unwrap();
    fs::write(partial.join("assets"), "a file in the place of a folder").unwrap();
    assert_eq!(files(&place.download(&server).unwrap()), tiny());
    let log = server.log();
    assert!(log.contains(&format!("GET {}", key("params/manifest.ocdbt"))), "{log:?}");
    assert!(!log.contains(&format!("GET {}", key("params/d/0123"))), "{log:?}");
}

#[cfg(unix)]
#[test]
fn a_link_in_the_scratch_is_not_written_through() {
    let (server, place) = (Server::tiny(), Place::new());
    let outside = place.folder.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "mine").unwrap();
    fs::create_dir_all(place.partial().join("params")).unwrap();
    std::os::unix::fs::symlink(outside.join("precious"), place.partial().join("_METADATA")).unwrap();
    std::os::unix::fs::symlink(&outside, place.partial().join("params/d")).unwrap();
    let path = place.download(&server).unwrap();
    assert_eq!(files(&path), tiny());
    assert!(!path.join("_METADATA").is_symlink() && !path.join("params/d").is_symlink());
    assert_eq!(files(&outside), [("precious".to_owned(), b"mine".to_vec())].into());
}

#[test]
fn without_a_sum_a_size_decides_except_where_two_names_share_a_scratch() {
    let (server, place) = (Server::tiny(), Place::new());
    let composed = |key: String| (key, "\"-CKicn4fknssCEAE=\"".to_owned());
    server.script().tags.extend([composed(key("params/manifest.ocdbt"))]);
    fs::create_dir_all(place.partial().join("params")).unwrap();
    fs::write(place.partial().join("params/manifest.ocdbt"), "MANIFEST").unwrap();
    assert_eq!(fs::read(place.download(&server).unwrap().join("params/manifest.ocdbt")).unwrap(), b"MANIFEST");

    let server = Server::new(&[("models/v1.1/weights", b"one.one")]);
    server.script().tags.extend([composed("models/v1.1/weights".to_owned())]);
    let models = place.folder.path().join("openpi-assets/models");
    fs::create_dir_all(models.join("v1.partial")).unwrap();
    fs::write(models.join("v1.partial/weights"), "one.two").unwrap();
    let path = cache::download(&place.home, "gs://openpi-assets/models/v1.1", &(), &server.options()).unwrap();
    assert_eq!(fs::read(path.join("weights")).unwrap(), b"one.one");
}

#[test]
fn bytes_that_do_not_have_the_listed_sum_are_refused_and_not_kept() {
    let (server, place) = (Server::tiny(), Place::new());
    let sum = hex(b"another manifest");
    server.script().tags.insert(key("params/manifest.ocdbt"), format!("\"{sum}\""));
    let error = place.fails(&server);
    assert!(matches!(&error, DownloadError::Content { expected, .. } if *expected == sum), "{error}");
    assert!(error.to_string().contains(&hex(b"manifest")), "{error}");
    assert!(!place.partial().join("params/manifest.ocdbt").exists());
}

#[test]
fn an_object_longer_or_shorter_than_its_listing_is_refused() {
    for size in [7, 9, u64::MAX] {
        let (server, place) = (Server::tiny(), Place::new());
        server.script().sizes.insert(key("params/manifest.ocdbt"), size);
        let error = place.fails(&server);
        assert!(matches!(&error, DownloadError::Content { what: "its length", .. }), "{error}");
        let kept = fs::metadata(place.partial().join("params/manifest.ocdbt")).unwrap().len();
        assert!(kept <= size, "{kept} bytes were written of an object that is listed with {size}");
    }
}

#[test]
fn an_object_whose_name_would_leave_the_folder_is_refused_before_anything_is_written() {
    for hostile in [
        "checkpoints/pi0_tiny/../../../escaped",
        "checkpoints/pi0_tiny/params/..",
        "checkpoints/pi0_tiny/./x",
        "checkpoints/pi0_tiny//absolute",
        "checkpoints/pi0_tiny/..\\x",
        "checkpoints/pi0_tiny_other/params",
        "checkpoints",
        "/etc/passwd",
        "../x",
        "checkpoints/pi0_tiny/_METADATA",
        "checkpoints/pi0_tiny/_METADATA/below a file",
    ] {
        let (server, place) = (Server::tiny(), Place::new());
        server.script().objects.insert(format!("!{hostile}"), b"x".to_vec());
        let error = place.fails(&server);
        assert!(matches!(&error, DownloadError::Name { .. }), "{hostile}: {error}");
        assert!(place.is_untouched(), "{hostile}");
        assert_eq!(server.log().len(), 1, "{hostile}");
    }
}

#[test]
fn a_prefix_or_a_bucket_that_is_not_there_is_called_missing_and_leaves_nothing() {
    let (server, place) = (Server::tiny(), Place::new());
    for url in ["gs://openpi-assets/checkpoints/pi0_tin", "gs://no-such-bucket/checkpoints/pi0_tiny"] {
        let error = cache::download(&place.home, url, &(), &server.options()).unwrap_err();
        assert!(matches!(&error, DownloadError::Missing { url: named, .. } if named == url), "{error}");
        assert!(error.to_string().contains(&server.base_url), "{error}");
    }
    assert!(place.is_untouched());
}

#[test]
fn a_bucket_that_wants_an_account_is_said_to_do_so() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let (server, place) = (Server::tiny(), Place::new());
        server.script().always = Some(status.to_owned());
        let error = place.fails(&server);
        assert!(matches!(error, DownloadError::Refused { .. }), "{error}");
        assert!(place.is_untouched());
    }
}

#[test]
fn an_object_that_may_be_read_but_not_listed_is_fetched() {
    let (server, place) = (Server::new(&[("tokenizer.model", b"pieces")]), Place::new());
    server.script().unlistable = true;
    let path = cache::download(&place.home, "gs://openpi-assets/tokenizer.model", &(), &server.options()).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"pieces");
}

#[test]
fn a_redirect_to_another_server_is_not_followed() {
    let (server, other, place) = (Server::tiny(), Server::tiny(), Place::new());
    server.script().always = Some(format!("302 Found\r\nLocation: {}/{BUCKET}?list-type=2", other.base_url));
    let error = place.fails(&server);
    assert!(matches!(error, DownloadError::Transport { .. }), "{error}");
    assert_eq!(other.log(), Vec::<String>::new());
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let place = Place::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let base_url = format!("http://{free}");
    let options = Options { base_url: Some(base_url.clone()), retries: 0, ..Options::default() };
    let error = cache::download(&place.home, URL, &(), &options).unwrap_err();
    assert!(matches!(error, DownloadError::Transport { .. }) && error.to_string().contains(&base_url), "{error}");
    for base_url in ["", "nonsense", "ftp://127.0.0.1", "file:///x", "http://127.0.0.1/?a=b"] {
        let options = Options { base_url: Some(base_url.to_owned()), ..options.clone() };
        let error = cache::download(&place.home, URL, &(), &options).unwrap_err();
        assert!(matches!(error, DownloadError::BaseUrl { .. }), "{base_url}: {error}");
    }
}

#[test]
fn an_empty_object_that_stands_for_an_empty_folder_becomes_one() {
    let (server, place) = (Server::tiny(), Place::new());
    server.script().objects.insert(key("train_state/"), Vec::new());
    server.script().unfetchable.push(key("train_state"));
    let path = place.download(&server).unwrap();
    assert!(path.join("train_state").is_dir());
    assert_eq!(files(&path), tiny());
}

#[test]
fn a_second_process_waits_for_the_first_and_takes_what_it_brought() {
    let (server, place, count) = (Server::tiny(), Place::new(), Count::default());
    let lock = place.target().with_extension("lock");
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let first = fs::File::create(&lock).unwrap();
    first.lock().unwrap();
    let options = Options { lock_wait: Some(Duration::ZERO), ..server.options() };
    let error = cache::download(&place.home, URL, &(), &options).unwrap_err();
    assert!(matches!(&error, DownloadError::Locked { lock: named, .. } if *named == lock), "{error}");
    server.log();
    let path = std::thread::scope(|scope| {
        let second = scope.spawn(|| cache::download(&place.home, URL, &count, &server.options()));
        while count.waits.load(Ordering::Relaxed) == 0 {
            assert!(!second.is_finished(), "it must wait for the lock");
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::create_dir(place.target()).unwrap();
        fs::write(place.target().join("brought"), "by the first").unwrap();
        first.unlock().unwrap();
        second.join().unwrap().unwrap()
    });
    assert_eq!(files(&path).into_keys().collect::<Vec<_>>(), ["brought"]);
    assert_eq!(count.waits.into_inner(), 1);
    assert_eq!(server.log(), [format!("LIST {PREFIX}/")]);
}

#[test]
fn several_downloads_of_the_same_at_once_fetch_it_once() {
    let (server, place) = (Server::tiny(), Place::new());
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| place.download(&server))).collect();
        for one in all {
            assert_eq!(files(&one.join().unwrap().unwrap()), tiny());
        }
    });
    assert_eq!(server.log().iter().filter(|line| line.starts_with("GET")).count(), 5);
}

#[test]
fn an_outdated_copy_is_neither_used_nor_touched() {
    let (server, place) = (Server::tiny(), Place::new());
    fs::create_dir_all(place.target()).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    fs::File::open(place.target()).unwrap().set_modified(old).unwrap();
    let error = place.download(&server).unwrap_err();
    assert!(matches!(error, DownloadError::Cache(cache::Error::Outdated { .. })), "{error}");
    assert!(place.target().is_dir() && server.log().is_empty());
}
