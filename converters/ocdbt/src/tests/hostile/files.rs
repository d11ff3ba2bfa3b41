//! Files, paths and ranges made to hurt.
use std::fs;
use std::os::unix::fs::symlink;

use super::super::{Raw, assert_contains, location, put, put_manifest, refused, with_root};
use super::{indirect, leaf};
use crate::database::{Database, Value};
use crate::envelope::Kind;

/// The error that reading the value of "k" gives.
#[track_caller]
fn value_refused(dir: &std::path::Path) -> String {
    let database = Database::open(dir).unwrap();
    let value = database.get(b"k").unwrap();
    let streamed = database.reader(value, 0, value.len()).err().expect("the stream is refused too").to_string();
    let read = database.read(value).unwrap_err().to_string();
    assert_eq!(read, streamed);
    read
}

#[test]
fn a_range_outside_its_file_is_refused() {
    let node = leaf(&[b"k"]);
    let length = node.len() as u64;
    for (offset, length) in [(0, length + 1), (1, length), (1 << 62, 1), (0, 1 << 62), (length, length)] {
        let dir = with_root(0, &node);
        put_manifest(dir.path(), 0, 1, location("d/data", offset, length));
        assert_contains(&refused(dir.path()), &["d/data: byte", &format!("expected {length} bytes, but the file has")]);
    }
    let dir = with_root(0, &indirect("d/value", 1, 4));
    put(dir.path(), "d/value", b"1234");
    assert_contains(&value_refused(dir.path()), &["d/value: byte 1: expected 4 bytes, but the file has 4"]);
    put(dir.path(), "d/value", b"12345");
    let database = Database::open(dir.path()).unwrap();
    assert_eq!(database.read(database.get(b"k").unwrap()).unwrap(), b"2345");
}

#[test]
fn a_missing_data_file_is_refused_for_a_node_and_for_a_value() {
    let dir = with_root(0, &indirect("d/value", 0, 4));
    assert_contains(&value_refused(dir.path()), &["d/value: no such file"]);
    fs::remove_file(dir.path().join("d/data")).unwrap();
    assert_contains(&refused(dir.path()), &["d/data: no such file"]);
}

const BAD_PATHS: [&str; 14] =
    ["", ".", "..", "../x", "d/../../x", "/etc/passwd", "./d/x", "d//x", "d/", "/", "d/./x", "d/\0", "d\\x", "..\\x"];

#[test]
fn a_path_that_leaves_the_directory_is_refused_for_a_node_and_for_a_value() {
    for path in BAD_PATHS {
        let dir = with_root(0, &indirect(path, 0, 1));
        assert_contains(&refused(dir.path()), &["d/data: byte 0: data file path", "expected "]);
        put_manifest(dir.path(), 0, 1, location(path, 0, 16));
        assert_contains(&refused(dir.path()), &["manifest.ocdbt: byte 0: data file path", "expected "]);
        // A caller's own value is judged as well.
        let good = with_root(0, &leaf(&[b"k"]));
        let value = Value::Indirect { file: path.into(), offset: 0, length: 1 };
        let error = Database::open(good.path()).unwrap().read(&value).unwrap_err();
        assert_contains(&error.to_string(), &["data file path", "expected "]);
    }
}

#[test]
fn a_base_path_that_leaves_the_directory_is_refused() {
    let node = Raw::default().bytes(&[0]).varints(&[1, 5, 3]).bytes(b"../xy").varints(&[1, 1]).bytes(b"k");
    let node = node.varints(&[1]).bytes(&[1]).varints(&[0, 0]);
    assert_contains(&refused(with_root(0, &node.seal(Kind::Node)).path()), &["data file path \"../xy\""]);
}

#[test]
fn a_value_of_no_bytes_needs_no_file() {
    let dir = with_root(0, &indirect("", 0, 0));
    let database = Database::open(dir.path()).unwrap();
    let value = database.get(b"k").unwrap();
    assert!(value.is_empty());
    assert_eq!(database.read(value).unwrap(), b"");
}

#[test]
fn a_symlink_for_a_data_file_or_its_folder_is_refused() {
    let elsewhere = tempfile::tempdir().unwrap();
    put(elsewhere.path(), "secret", b"secret");
    for (link, path) in [("d/link", "d/link"), ("linked", "linked/secret")] {
        let dir = with_root(0, &indirect(path, 0, 6));
        let target = if link == path { elsewhere.path().join("secret") } else { elsewhere.path().into() };
        symlink(target, dir.path().join(link)).unwrap();
        assert_contains(&value_refused(dir.path()), &[link, "expected a regular file, found a symbolic link"]);
    }
    let dir = with_root(0, &leaf(&[b"k"]));
    fs::rename(dir.path().join("manifest.ocdbt"), dir.path().join("real")).unwrap();
    symlink("real", dir.path().join("manifest.ocdbt")).unwrap();
    assert_contains(&refused(dir.path()), &["manifest.ocdbt: expected a regular file, found a symbolic link"]);
}

#[test]
fn a_pipe_for_a_data_file_is_refused_at_once() {
    let dir = with_root(0, &indirect("d/pipe", 0, 6));
    let made = std::process::Command::new("mkfifo").arg(dir.path().join("d/pipe")).status().unwrap();
    assert!(made.success());
    assert_contains(&value_refused(dir.path()), &["d/pipe: expected a regular file, found a pipe"]);
}

#[test]
fn a_directory_for_a_data_file_is_refused() {
    let dir = with_root(0, &indirect("d/dir", 0, 6));
    fs::create_dir(dir.path().join("d/dir")).unwrap();
    assert_contains(&value_refused(dir.path()), &["d/dir: expected a regular file, found a directory"]);
}

#[test]
fn a_node_longer_than_its_limit_is_refused_before_it_is_read() {
    let dir = with_root(0, &leaf(&[b"k"]));
    fs::File::options().write(true).open(dir.path().join("d/data")).unwrap().set_len(1 << 40).unwrap();
    put_manifest(dir.path(), 0, 1, location("d/data", 0, 1 << 40));
    assert_contains(&refused(dir.path()), &["d/data: byte 0: bytes of one node: more than the limit of 204194304"]);
    put(dir.path(), "manifest.ocdbt", b"");
    fs::File::options().write(true).open(dir.path().join("manifest.ocdbt")).unwrap().set_len(1 << 40).unwrap();
    assert_contains(&refused(dir.path()), &["bytes of a manifest: more than the limit of 67108864"]);
}
