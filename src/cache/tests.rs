//! The layout of the cache, on folders made for each test. Nothing here reads the environment or the network.

use std::fs;

use super::*;

const BASE: &str = "gs://openpi-assets/checkpoints/pi0_base";

fn home(folder: &Path) -> Home {
    Home::new(Some(folder.into()), None)
}

fn error(home: &Home, place: &str) -> Error {
    locate(home, place).expect_err("this address must be refused")
}

#[test]
fn the_variable_comes_before_the_users_folder() {
    let user = || Some(PathBuf::from("/u/me"));
    let root = |value: Option<&str>| Home::new(value.map(OsString::from), user()).root().map(Path::to_path_buf);
    assert_eq!(root(None), Some("/u/me/.cache/openpi".into()));
    assert_eq!(root(Some("")), Some("/u/me/.cache/openpi".into()));
    assert_eq!(root(Some("/data/pi")), Some("/data/pi".into()));
    assert_eq!(root(Some("~/pi")), Some("/u/me/pi".into()));
    assert_eq!(root(Some("~")), Some("/u/me".into()));
    assert_eq!(root(Some("~other/pi")), Some("~other/pi".into()));
}

#[test]
fn without_any_home_a_plain_path_still_passes_and_an_address_says_what_to_set() {
    let nowhere = Home::new(None, None);
    assert_eq!(locate(&nowhere, "some/folder").unwrap(), Found::Local("some/folder".into()));
    let error = error(&nowhere, BASE);
    assert!(matches!(error, Error::NoHome { .. }), "{error}");
    assert!(error.to_string().contains("OPENPI_DATA_HOME"), "{error}");
}

#[test]
fn whatever_has_no_scheme_passes_through_unread() {
    let folder = tempfile::tempdir().unwrap();
    for plain in ["/absolute/absent", "../up", "a b", "C:\\pi0", "gs:/one/slash", "://x", "1a://x", "", "a/b://c"] {
        assert_eq!(locate(&home(folder.path()), plain).unwrap(), Found::Local(plain.into()), "{plain}");
    }
}

#[test]
fn other_schemes_are_named_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (place, expected) in [
        ("http://host/x", "http"),
        ("s3://bucket/x", "s3"),
        ("hf://lerobot/pi0", "hf"),
        ("file:///x", "file"),
        ("svn+ssh://h/x", "svn+ssh"),
    ] {
        let error = error(&home(folder.path()), place);
        assert!(matches!(&error, Error::Scheme { scheme, .. } if scheme == expected), "{error}");
        let message = error.to_string();
        assert!(message.starts_with(place) && message.contains("gs://bucket/path"), "{message}");
    }
}

#[test]
fn a_finished_download_is_found_where_openpi_puts_it() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("openpi-assets/checkpoints/pi0_base");
    fs::create_dir_all(copy.join("params")).unwrap();
    fs::write(copy.with_extension("lock"), "").unwrap();
    let home = home(folder.path());
    assert_eq!(locate(&home, BASE).unwrap(), Found::Cached(copy.clone()));
    assert_eq!(locate(&home, format!("{BASE}/")).unwrap().into_path(), copy);
    assert_eq!(locate(&home, BASE.replace("gs", "GS")).unwrap().path(), copy);
    assert_eq!(locate(&home, format!("{BASE}/params")).unwrap(), Found::Cached(copy.join("params")));
}

#[test]
fn a_missing_copy_says_where_it_was_looked_for_and_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let error = error(&home(folder.path()), BASE);
    let expected = folder.path().join("openpi-assets").join("checkpoints").join("pi0_base");
    assert!(matches!(&error, Error::NotCached { expected: e, unfinished: None, .. } if *e == expected), "{error:?}");
    let message = error.to_string();
    for part in [BASE, expected.to_str().unwrap(), "OPENPI_DATA_HOME", "--download"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    let gsutil = format!("gsutil -m cp -r {BASE} {}", expected.parent().unwrap().display());
    assert_eq!(message.contains(&gsutil), cfg!(not(feature = "gcs")), "{message}");
    assert_eq!(message.contains("--features gcs"), cfg!(not(feature = "gcs")), "{message}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "looking must not make folders");
}

#[test]
fn a_file_in_the_place_of_a_folder_means_that_nothing_is_cached() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("openpi-assets"), "not a folder").unwrap();
    assert!(matches!(error(&home(folder.path()), BASE), Error::NotCached { unfinished: None, .. }));
}

#[test]
fn an_unfinished_download_is_not_taken_for_a_copy_and_is_told_apart_by_what_it_left() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("openpi-assets/checkpoints/pi0_base");
    let (partial, lock) = (copy.with_extension("partial"), copy.with_extension("lock"));
    let sign = || match error(&home(folder.path()), BASE) {
        Error::NotCached { unfinished, hint, .. } => (unfinished, hint),
        other => panic!("{other}"),
    };
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    fs::write(&lock, "").unwrap();
    assert_eq!(sign().0, Some(Unfinished::Begun(lock.clone())));
    fs::create_dir(&partial).unwrap();
    assert_eq!(sign().0, Some(Unfinished::Partial(partial.clone())));
    let holder = File::open(&lock).unwrap();
    holder.lock().unwrap();
    assert_eq!(sign(), (Some(Unfinished::Running(lock)), "wait until that process has ended".to_owned()));
    drop(holder);
    assert_eq!(sign().0, Some(Unfinished::Partial(partial.clone())));
    let message = error(&home(folder.path()), BASE).to_string();
    assert!(message.contains(partial.to_str().unwrap()), "{message}");
}

#[test]
fn the_neighbours_of_a_name_with_an_extension_take_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = folder.path().join("big_vision");
    fs::create_dir_all(&bucket).unwrap();
    fs::write(bucket.join("paligemma_tokenizer.partial"), "").unwrap();
    let error = error(&home(folder.path()), "gs://big_vision/paligemma_tokenizer.model");
    let Error::NotCached { unfinished: Some(Unfinished::Partial(partial)), .. } = error else { panic!("{error}") };
    assert_eq!(partial, bucket.join("paligemma_tokenizer.partial"));
}

#[test]
fn an_address_that_could_leave_the_cache_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for place in [
        "gs://",
        "gs:///",
        "gs://bucket",
        "gs://bucket/",
        "gs:///etc/passwd",
        "gs://../x",
        "gs://./x",
        "gs://bucket/../x",
        "gs://bucket/a/..",
        "gs://bucket/./a",
        "gs://bucket//a",
        "gs://bucket/a//",
        "gs://bucket/a//b",
        "gs://bucket/a\\..\\b",
        "gs://bucket/a\0b",
        "gs://bucket/a\nb",
        "gs://bucket/a?b=c",
        "gs://bucket/a#b",
    ] {
        let error = error(&home(folder.path()), place);
        assert!(matches!(error, Error::Address { .. }), "{place:?}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn bytes_that_are_not_text_pass_as_a_path_and_are_refused_as_an_address() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let plain = OsStr::from_bytes(b"folder-\xff");
    assert_eq!(locate(&home(folder.path()), plain).unwrap(), Found::Local(plain.into()));
    let error = locate(&home(folder.path()), OsStr::from_bytes(b"gs://bucket/\xff")).unwrap_err();
    assert!(matches!(&error, Error::Address { reason, .. } if reason.contains("UTF-8")), "{error}");
}

#[test]
fn a_copy_from_before_the_last_publication_is_refused_by_its_date() {
    let folder = tempfile::tempdir().unwrap();
    let home = home(folder.path());
    let place = |name: &str| format!("gs://openpi-assets/checkpoints/{name}");
    // The instants that `date -u -d 2025-02-DD +%s` prints, as openpi lists them.
    for (name, seconds) in
        [("pi0_base", 1_738_540_800), ("pi0_libero", 1_738_800_000), ("pi0_aloha_pen_uncap/params", 1_739_750_400)]
    {
        let copy = folder.path().join("openpi-assets/checkpoints").join(name);
        fs::create_dir_all(&copy).unwrap();
        let set = |seconds| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::open(&copy).unwrap().set_modified(time).unwrap();
        };
        set(seconds);
        let error = error(&home, &place(name));
        assert!(matches!(error, Error::Outdated { .. }), "{error}");
        set(seconds + 1);
        assert_eq!(locate(&home, place(name)).unwrap(), Found::Cached(copy.clone()));
    }
}

#[test]
fn the_command_in_the_hint_survives_a_shell() {
    assert_eq!(quote("/data/pi-0.5_x"), "/data/pi-0.5_x");
    assert_eq!(quote("/my data/$x"), "'/my data/$x'");
    assert_eq!(quote("it's"), r"'it'\''s'");
}
