//! `pi0 inspect --raw`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::Answer;
use super::convert::default_threads;
use super::output::{Mouth, shape, size};
use crate::weights::raw::{Array, Database, Raw, RawOptions, look};

/// Looks at a database or an array on its own.
pub(super) fn run(dir: &Path, array: Option<&str>, mouth: &Mouth) -> Result<Answer> {
    let found = look(dir, array, &RawOptions::new(default_threads(), std::env::temp_dir()))?;
    mouth.say(&found, || match &found {
        Raw::Database(database) => of_database(database),
        Raw::Array(array) => of_array(array),
    })?;
    Ok(Answer::Yes)
}

fn of_database(d: &Database) -> String {
    let mut t = String::new();
    let _ = writeln!(t, "{} · OCDBT database {}", d.path.display(), d.config.uuid);
    let _ = writeln!(
        t,
        "inline up to {} bytes · nodes up to {} · compression {} · {} versions, newest generation {}",
        d.config.max_inline_value_bytes,
        size(d.config.max_decoded_node_bytes.into()),
        d.config.compression,
        d.versions.len(),
        d.versions.last().map_or(0, |v| v.generation)
    );
    let _ = writeln!(t);
    for key in &d.keys {
        let place = match &key.place {
            Some(place) => format!("{} @ {}", place.file, place.offset),
            None => "inline".into(),
        };
        let _ = writeln!(t, "  {}  {} bytes  {place}", key.key, key.bytes);
    }
    let _ = writeln!(t, "{} keys · {} arrays", d.keys.len(), d.arrays.len());
    t
}

fn of_array(a: &Array) -> String {
    let mut t = String::new();
    let _ = writeln!(
        t,
        "{} · {} {} · chunks {} ({} of {} absent) · order {}",
        a.name,
        a.dtype,
        shape(&a.shape),
        shape(&a.chunk_shape),
        a.absent,
        a.chunks,
        a.order
    );
    let _ = writeln!(t, "{} bytes, {} stored · SHA-256 {}", a.bytes, a.stored_bytes, a.sha256);
    if let Some(s) = &a.statistics {
        let number = |n: Option<f64>| n.map_or("-".to_owned(), |n| format!("{n:.6e}"));
        let _ = writeln!(
            t,
            "min {} · max {} · mean {} · std {} · {} NaN · {} infinite",
            number(s.min),
            number(s.max),
            number(s.mean),
            number(s.std),
            s.nan,
            s.inf
        );
    }
    let _ = writeln!(t, "first: {}", a.first.join(" "));
    t
}
