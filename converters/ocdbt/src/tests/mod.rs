//! Tests that need the encoders: hostile databases, and every codec there and back.

mod codecs;
mod hostile;
mod writing;

use std::path::Path;
use std::sync::Arc;

use crate::envelope::{self, Compression, Kind};
use crate::manifest::{Config, Content, Manifest};
use crate::node::Statistics;
use crate::table::{FilePath, Location};
use crate::version::{Version, VersionChild};
use crate::{Database, varint};

/// A body written field by field, so that it can be wrong.
#[derive(Default, Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn varints(mut self, values: &[u64]) -> Self {
        varint::encode_all(values.iter().copied(), &mut self.0);
        self
    }

    /// A data file table of whole paths without base paths.
    fn files(self, paths: &[&[u8]]) -> Self {
        let n = paths.len() as u64;
        let lengths: Vec<u64> = paths.iter().map(|path| path.len() as u64).collect();
        let zeros = vec![0; paths.len()];
        self.varints(&[n])
            .varints(zeros.get(1..).unwrap_or_default())
            .varints(&lengths)
            .varints(&zeros)
            .bytes(&paths.concat())
    }

    fn seal(&self, kind: Kind) -> Vec<u8> {
        envelope::seal(kind, &self.0, Compression::None).unwrap()
    }
}

fn config() -> Config {
    Config {
        uuid: [7; 16],
        max_inline_value_bytes: 1024,
        max_decoded_node_bytes: 100_000_000,
        version_tree_arity_log2: 4,
        compression: Compression::None,
    }
}

fn location(path: &str, offset: u64, length: u64) -> Location {
    let file = Arc::new(FilePath {
        base: Vec::new(),
        relative: path.into(),
    });
    Location {
        file,
        offset,
        length,
    }
}

fn version(generation: u64, height: u8, keys: u64, root: Option<Location>) -> Version {
    let statistics = Statistics {
        keys,
        ..Statistics::default()
    };
    Version {
        generation,
        commit_time_ns: 1,
        statistics,
        height,
        root,
    }
}

fn manifest(version: Version, nodes: Vec<VersionChild>) -> Manifest {
    Manifest {
        config: config(),
        content: Content::Single {
            versions: vec![version],
            nodes,
        },
    }
}

/// Writes a file, with its folders.
fn put(dir: &Path, path: &str, bytes: &[u8]) {
    let path = dir.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Writes the manifest of a database with one version.
fn put_manifest(dir: &Path, height: u8, keys: u64, root: Location) {
    let manifest = manifest(version(1, height, keys, Some(root)), Vec::new());
    put(
        dir,
        "manifest.ocdbt",
        &manifest.encode(Compression::None).unwrap(),
    );
}

/// A database whose one node is `node`, at the start of the data file `d/data`.
fn with_root(height: u8, node: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "d/data", node);
    put_manifest(
        dir.path(),
        height,
        1,
        location("d/data", 0, node.len() as u64),
    );
    dir
}

/// The error that opening the database gives.
#[track_caller]
fn refused(dir: &Path) -> String {
    match Database::open(dir) {
        Ok(database) => panic!("opened, with {} keys", database.entries().len()),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "expected {part:?} in {text:?}");
    }
}
