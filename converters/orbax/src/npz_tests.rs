//! Containers as numpy writes them, and forged ones.
use std::io::Write;

use super::*;
use crate::{Dtype, Order, read_array};

fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let literal = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00".as_slice(), &(literal.len() as u16).to_le_bytes(), literal.as_bytes(), data].concat()
}

fn container(members: &[(&str, Vec<u8>)], method: zip::CompressionMethod, large: bool) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = zip::ZipWriter::new(&mut file);
    for (name, bytes) in members {
        let options = zip::write::SimpleFileOptions::default().compression_method(method).large_file(large);
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap();
    file
}

fn refused(members: &[(&str, Vec<u8>)], with: &str) {
    let file = container(members, zip::CompressionMethod::Deflated, false);
    let error = Npz::open(file.path()).unwrap_err().to_string();
    assert!(error.contains(with), "{error}");
}

#[test]
fn stored_deflated_and_zip64_members_are_read() {
    let members = [
        ("a.npy", npy("<f4", false, "(2,)", &[1, 2, 3, 4, 5, 6, 7, 8])),
        ("params/img/w.npy", npy("|V2", false, "()", &[0x80, 0x3f])),
        ("be.npy", npy(">i2", false, "(2,)", &[0, 1, 0, 2])),
        ("empty.npy", npy("<f4", false, "(0, 3)", &[])),
        ("f.npy", npy("|u1", true, "(2, 3)", &[0, 3, 1, 4, 2, 5])),
    ];
    for (method, large) in [
        (zip::CompressionMethod::Stored, false),
        (zip::CompressionMethod::Deflated, false),
        (zip::CompressionMethod::Stored, true),
    ] {
        let file = container(&members, method, large);
        let npz = Npz::open(file.path()).unwrap();
        let names: Vec<_> = npz.arrays().iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, ["a", "params/img/w", "be", "empty", "f"]);
        assert_eq!(npz.arrays()[1].dtype, Dtype::Bf16);
        assert_eq!(npz.arrays()[4].order, Order::F);
        assert_eq!(read_array(&npz, 0).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(read_array(&npz, 1).unwrap(), [0x80, 0x3f]);
        assert_eq!(read_array(&npz, 2).unwrap(), [1, 0, 2, 0]);
        assert!(read_array(&npz, 3).unwrap().is_empty());
        assert_eq!(read_array(&npz, 4).unwrap(), [0, 1, 2, 3, 4, 5]);
        assert!(npz.chunk(3, 0).is_err() && npz.chunk(0, 1).is_err() && npz.chunk(5, 0).is_err());
        assert!(npz.stored_len(0, 0).unwrap() > 0);
    }
}

#[test]
fn sizes_that_contradict_the_container_are_refused() {
    refused(&[("a.npy", npy("<f4", false, "(3,)", &[0; 8]))], "the container says");
    refused(&[("a.npy", npy("<f4", false, "(1,)", &[0; 8]))], "the container says");
    refused(&[("a.npy", npy("<f8", false, "(4611686018427387904, 8)", &[0; 8]))], "too large");
}

#[test]
fn what_is_no_array_is_refused_by_name() {
    refused(&[("readme.txt", b"hello".to_vec())], "member \"readme.txt\": not an array");
    refused(&[("a.npy", b"hello".to_vec())], "member \"a.npy\": no npy header");
    refused(&[("a.npy", npy("|O", false, "(1,)", b"pickle"))], "pickled");
}

#[test]
fn a_file_that_is_no_container_is_refused() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"not a zip file at all").unwrap();
    assert!(Npz::open(file.path()).unwrap_err().to_string().contains("not a zip container"));
    assert!(Npz::open("/").is_err());
}

#[test]
fn a_changed_byte_is_seen_by_the_checksum() {
    let file = container(&[("a.npy", npy("|u1", false, "(64,)", &[7; 64]))], zip::CompressionMethod::Stored, false);
    let mut bytes = std::fs::read(file.path()).unwrap();
    let at = bytes.windows(64).position(|window| window == [7; 64]).unwrap();
    bytes[at + 10] ^= 1;
    std::fs::write(file.path(), bytes).unwrap();
    let npz = Npz::open(file.path()).unwrap();
    let error = read_array(&npz, 0).unwrap_err().to_string();
    assert!(error.contains("CRC-32"), "{error}");
}
