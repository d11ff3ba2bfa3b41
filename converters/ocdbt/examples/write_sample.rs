//! Writes databases of every shape this crate's writer makes, for `fixtures/ocdbt/check_written.py` to read with TensorStore:
//! `cargo run -p ocdbt --example write_sample -- DIRECTORY`.
//!
//! Every value is its key repeated to the length the key states after its last `=`, so the check needs no other list.

use std::io::Write;
use std::path::Path;

use ocdbt::{Compression, Options, Result, Writer};

/// What distinguishes one sample from another.
struct Sample {
    name: &'static str,
    compression: Compression,
    max_inline_value_bytes: u32,
    /// Entries and estimated bytes of one node.
    limits: Option<(u32, u32)>,
    data_files: usize,
    keys: usize,
}

const ZSTD: Compression = Compression::Zstd { level: 0 };

const SAMPLES: &[Sample] = &[
    Sample { name: "empty", compression: ZSTD, max_inline_value_bytes: 1024, limits: None, data_files: 0, keys: 0 },
    Sample { name: "one_key", compression: ZSTD, max_inline_value_bytes: 1024, limits: None, data_files: 1, keys: 1 },
    Sample {
        name: "leaf_zstd",
        compression: ZSTD,
        max_inline_value_bytes: 1024,
        limits: None,
        data_files: 1,
        keys: 300,
    },
    Sample {
        name: "leaf_raw",
        compression: Compression::None,
        max_inline_value_bytes: 1024,
        limits: None,
        data_files: 1,
        keys: 300,
    },
    Sample { name: "no_inline", compression: ZSTD, max_inline_value_bytes: 0, limits: None, data_files: 2, keys: 60 },
    Sample {
        name: "all_inline",
        compression: ZSTD,
        max_inline_value_bytes: 1 << 20,
        limits: None,
        data_files: 1,
        keys: 60,
    },
    Sample {
        name: "four_files",
        compression: ZSTD,
        max_inline_value_bytes: 100,
        limits: None,
        data_files: 4,
        keys: 500,
    },
    Sample {
        name: "binary_tree",
        compression: Compression::None,
        max_inline_value_bytes: 100,
        limits: Some((2, 0)),
        data_files: 3,
        keys: 700,
    },
    Sample {
        name: "levels_zstd",
        compression: ZSTD,
        max_inline_value_bytes: 100,
        limits: Some((7, 0)),
        data_files: 2,
        keys: 5000,
    },
    Sample {
        name: "levels_by_bytes",
        compression: ZSTD,
        max_inline_value_bytes: 1024,
        limits: Some((1 << 20, 4000)),
        data_files: 2,
        keys: 3000,
    },
];

/// The value that `key` states.
fn value(key: &[u8]) -> Vec<u8> {
    let digits = key.rsplit(|byte| *byte == b'=').next().unwrap_or_default();
    let length = String::from_utf8_lossy(digits).parse().unwrap_or(0);
    key.iter().copied().cycle().take(length).collect()
}

fn keys(n: usize) -> Vec<Vec<u8>> {
    const LENGTHS: [usize; 8] = [0, 1, 99, 100, 101, 1024, 1025, 3000];
    let mut keys: Vec<Vec<u8>> = (0..n)
        .map(|i| {
            let length = LENGTHS[i % LENGTHS.len()];
            match i % 5 {
                0 => format!("params.layers.{}.kernel/0.{}={length}", i / 50, i).into_bytes(),
                1 => format!("{i}={length}").into_bytes(),
                2 => [&[0xff, 0x00, (i % 251) as u8][..], format!("{i}={length}").as_bytes()].concat(),
                3 => [vec![b'k'; i % 400], format!("{i}={length}").into_bytes()].concat(),
                _ => format!("params.layers.{}.bias/{}={length}", i % 7, i).into_bytes(),
            }
        })
        .collect();
    if n > 50 {
        keys.push(Vec::new());
        keys.push([vec![b'z'; 65_530], b"=2000".to_vec()].concat());
    }
    keys
}

fn write(dir: &Path, sample: &Sample) -> Result<()> {
    let options = Options {
        uuid: *b"ocdbt sample db.",
        commit_time_ns: 1_700_000_000_000_000_000,
        max_inline_value_bytes: sample.max_inline_value_bytes,
    };
    let mut writer = Writer::create(dir.join(sample.name), options)?.compression(sample.compression);
    if let Some((entries, bytes)) = sample.limits {
        writer = writer.node_limits(entries, bytes)?;
    }
    let keys = keys(sample.keys);
    let files = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..sample.data_files)
            .map(|part| {
                let (writer, keys) = (&writer, &keys);
                scope.spawn(move || {
                    let mut file = writer.data_file(&format!("{:032x}", part + 1))?;
                    for key in keys.iter().skip(part).step_by(sample.data_files) {
                        if key.len() % 3 == 0 {
                            let mut stream = file.value(key)?;
                            for piece in value(key).chunks(777) {
                                stream.write_all(piece).expect("the disk takes it");
                            }
                            stream.finish()?;
                        } else {
                            file.put(key, &value(key))?;
                        }
                    }
                    Ok(file)
                })
            })
            .collect();
        tasks.into_iter().map(|task| task.join().expect("no panic")).collect::<Result<Vec<_>>>()
    })?;
    writer.finish(files)
}

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).expect("usage: write_sample DIRECTORY");
    for sample in SAMPLES {
        write(Path::new(&dir), sample)?;
        println!("{}", sample.name);
    }
    Ok(())
}
