//! The plain store against a hostile file system.
use std::os::unix::fs::symlink;

use super::*;

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/0"), b"chunk").unwrap();
    dir
}

#[test]
fn a_file_below_the_root_is_read_in_parts() {
    let dir = folder();
    let store = PlainStore::open(dir.path());
    assert_eq!(store.value_len("a/b/0").unwrap(), Some(5));
    let mut part = String::new();
    store.reader("a/b/0", 1, 3).unwrap().read_to_string(&mut part).unwrap();
    assert_eq!(part, "hun");
    assert!(store.reader("a/b/0", 1, 5).is_err());
    assert!(store.reader("a/b/0", u64::MAX, 2).is_err());
}

#[test]
fn an_absent_key_is_none_and_a_file_is_no_folder() {
    let dir = folder();
    let store = PlainStore::open(dir.path());
    assert_eq!(store.value_len("a/c").unwrap(), None);
    assert_eq!(store.value_len("a/b/0/0").unwrap(), None);
    assert_eq!(store.value_len(&"x".repeat(300)).unwrap(), None);
}

#[test]
fn a_path_that_leaves_the_folder_is_refused() {
    let dir = folder();
    let store = PlainStore::open(&dir.path().join("a"));
    for key in ["../a/b/0", "/etc/passwd", "b//0", "./b/0", "b/../b/0", "", "b\\0", "b/\0"] {
        assert!(matches!(store.value_len(key), Err(Error::UnsafePath { .. })), "{key:?}");
    }
}

#[test]
fn a_symlink_is_refused_as_file_and_as_folder() {
    let dir = folder();
    symlink("b/0", dir.path().join("a/link")).unwrap();
    symlink("b", dir.path().join("a/folder")).unwrap();
    let store = PlainStore::open(dir.path());
    for key in ["a/link", "a/folder/0"] {
        let error = store.value_len(key).unwrap_err().to_string();
        assert!(error.contains("symlink"), "{error}");
    }
}

#[test]
fn a_fifo_does_not_hang_and_a_folder_is_no_file() {
    let dir = folder();
    let fifo = dir.path().join("a/fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let store = PlainStore::open(dir.path());
    for key in ["a/fifo", "a/b"] {
        let error = store.value_len(key).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

#[test]
fn arrays_are_found_by_their_documents_and_not_inside_v3_chunks() {
    let dir = folder();
    fs::write(dir.path().join("a/b/.zarray"), b"{}").unwrap();
    fs::create_dir_all(dir.path().join("v3/c/0")).unwrap();
    fs::write(dir.path().join("v3/zarr.json"), b"{}").unwrap();
    fs::write(dir.path().join("v3/c/0/zarr.json"), b"{}").unwrap();
    symlink(dir.path().join("a"), dir.path().join("again")).unwrap();
    let (names, warnings) = PlainStore::open(dir.path()).array_names().unwrap();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a/b", "v3"]);
    assert!(warnings.is_empty());
}
