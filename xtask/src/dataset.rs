//! LeRobot datasets of any size, made up: tables without pictures, as v2.1 (one per episode) or v3.0 (one for all).
//!
//! State and action are 14 wide; the values are smooth, differ in every frame, and are the same on every machine.
//! Encoded as pyarrow does by default: snappy, dictionaries where they pay.
//!
//! Invariant: what `make` writes opens without a complaint of `pi0 dataset --check`.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde_json::json;

/// Joints of two arms.
pub(crate) const WIDTH: usize = 14;
/// Episodes per folder, LeRobot's default.
const CHUNK: usize = 1000;
const TASK: &str = "pick up the red cube";

/// Which layout to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Layout {
    /// A table per episode
    V21,
    /// One table, a row group per episode
    V30,
}

/// What to make.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder, made anew
    dir: std::path::PathBuf,
    /// Frames in all
    #[arg(long, default_value_t = 1_000_000)]
    frames: usize,
    /// Frames of an episode; the last has what is left
    #[arg(long, default_value_t = 500)]
    per_episode: usize,
    /// Frames per second
    #[arg(long, default_value_t = 50)]
    fps: usize,
    /// Which layout
    #[arg(long, value_enum, default_value_t = Layout::V21)]
    layout: Layout,
}

/// `cargo xtask dataset DIR`.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let Arguments { dir, frames, per_episode, fps, layout } = arguments;
    ensure!(!dir.exists(), "{} exists", dir.display());
    make(dir, *layout, *frames, *per_episode, *fps)?;
    Ok(true)
}

const SCHEMA: &str = "message schema {
    optional group observation.state (LIST) { repeated group list { optional float element; } }
    optional group action (LIST) { repeated group list { optional float element; } }
    optional float timestamp;
    optional int64 frame_index;
    optional int64 episode_index;
    optional int64 index;
    optional int64 task_index;
}";

const EPISODES: &str = "message schema {
    optional int64 episode_index;
    optional group tasks (LIST) { repeated group list { optional binary element (STRING); } }
    optional int64 length;
    optional int64 data/chunk_index;
    optional int64 data/file_index;
    optional int64 dataset_from_index;
    optional int64 dataset_to_index;
}";

const TASKS: &str = "message schema {
    optional int64 task_index;
    optional binary __index_level_0__ (STRING);
}";

/// Makes a dataset: `frames` in episodes of `per_episode`.
pub(crate) fn make(dir: &Path, layout: Layout, frames: usize, per_episode: usize, fps: usize) -> Result<()> {
    ensure!(frames > 0 && per_episode > 0 && fps > 0, "a dataset needs frames, episodes and a rate");
    let lengths: Vec<usize> = (0..frames).step_by(per_episode).map(|at| per_episode.min(frames - at)).collect();
    fs::create_dir_all(dir.join("meta"))?;
    let vector = json!({"dtype": "float32", "shape": [WIDTH], "names": null});
    let whole = json!({"dtype": "int64", "shape": [1], "names": null});
    let mut info = json!({
        "robot_type": "made_up", "fps": fps, "total_episodes": lengths.len(), "total_frames": frames, "total_tasks": 1,
        "chunks_size": CHUNK, "splits": {"train": format!("0:{}", lengths.len())}, "video_path": null,
        "features": {
            "observation.state": vector, "action": vector, "timestamp": {"dtype": "float32", "shape": [1], "names": null},
            "frame_index": whole, "episode_index": whole, "index": whole, "task_index": whole,
        },
    });
    let (version, data_path) = match layout {
        Layout::V21 => ("v2.1", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"),
        Layout::V30 => ("v3.0", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"),
    };
    info["codebase_version"] = version.into();
    info["data_path"] = data_path.into();
    fs::write(dir.join("meta/info.json"), serde_json::to_string_pretty(&info)?)?;
    match layout {
        Layout::V21 => {
            let mut lines = String::new();
            let mut first = 0;
            for (episode, length) in lengths.iter().enumerate() {
                lines += &format!("{}\n", json!({"episode_index": episode, "tasks": [TASK], "length": length}));
                let chunk = dir.join(format!("data/chunk-{:03}", episode / CHUNK));
                fs::create_dir_all(&chunk)?;
                let mut table = table(&chunk.join(format!("episode_{episode:06}.parquet")), SCHEMA)?;
                rows(&mut table, episode, first, *length, fps)?;
                table.close()?;
                first += length;
            }
            fs::write(dir.join("meta/episodes.jsonl"), lines)?;
            fs::write(dir.join("meta/tasks.jsonl"), format!("{}\n", json!({"task_index": 0, "task": TASK})))?;
        }
        Layout::V30 => {
            fs::create_dir_all(dir.join("data/chunk-000"))?;
            let mut data = table(&dir.join("data/chunk-000/file-000.parquet"), SCHEMA)?;
            let (mut from, mut to, mut first) = (vec![], vec![], 0);
            for (episode, length) in lengths.iter().enumerate() {
                rows(&mut data, episode, first, *length, fps)?;
                from.push(first as i64);
                first += length;
                to.push(first as i64);
            }
            data.close()?;
            fs::create_dir_all(dir.join("meta/episodes/chunk-000"))?;
            let mut episodes = table(&dir.join("meta/episodes/chunk-000/file-000.parquet"), EPISODES)?;
            let mut group = episodes.next_row_group()?;
            let zeros = vec![0; lengths.len()];
            let tasks = vec![ByteArray::from(TASK); lengths.len()];
            column::<Int64Type>(&mut group, &(0..lengths.len() as i64).collect::<Vec<_>>(), 0)?;
            column::<ByteArrayType>(&mut group, &tasks, 1)?;
            column::<Int64Type>(&mut group, &lengths.iter().map(|n| *n as i64).collect::<Vec<_>>(), 0)?;
            for values in [&zeros, &zeros, &from, &to] {
                column::<Int64Type>(&mut group, values, 0)?;
            }
            group.close()?;
            episodes.close()?;
            let mut tasks = table(&dir.join("meta/tasks.parquet"), TASKS)?;
            let mut group = tasks.next_row_group()?;
            column::<Int64Type>(&mut group, &[0], 0)?;
            column::<ByteArrayType>(&mut group, &[ByteArray::from(TASK)], 0)?;
            group.close()?;
            tasks.close()?;
        }
    }
    Ok(())
}

fn table(path: &Path, schema: &str) -> Result<SerializedFileWriter<File>> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    Ok(SerializedFileWriter::new(file, Arc::new(parse_message_type(schema)?), Arc::new(properties))?)
}

/// One row group: one episode.
fn rows(table: &mut SerializedFileWriter<File>, episode: usize, first: usize, length: usize, fps: usize) -> Result<()> {
    let vector = |shift: f32| -> Vec<f32> {
        let value = |at: usize| {
            let (frame, joint) = ((first + at / WIDTH) as f32, (at % WIDTH) as f32);
            (frame * 0.013 + joint * 0.7 + shift).sin() * (0.5 + 0.1 * joint)
        };
        (0..length * WIDTH).map(value).collect()
    };
    let whole = |value: &dyn Fn(usize) -> usize| -> Vec<i64> { (0..length).map(|at| value(at) as i64).collect() };
    let timestamps: Vec<f32> = (0..length).map(|at| (at as f64 / fps as f64) as f32).collect();
    let mut group = table.next_row_group()?;
    column::<FloatType>(&mut group, &vector(0.0), WIDTH)?;
    column::<FloatType>(&mut group, &vector(0.1), WIDTH)?;
    column::<FloatType>(&mut group, &timestamps, 0)?;
    column::<Int64Type>(&mut group, &whole(&|at| at), 0)?;
    column::<Int64Type>(&mut group, &whole(&|_| episode), 0)?;
    column::<Int64Type>(&mut group, &whole(&|at| first + at), 0)?;
    column::<Int64Type>(&mut group, &whole(&|_| 0), 0)?;
    group.close()?;
    Ok(())
}

/// A column without nulls: one value a row, or lists of `width`.
fn column<T: DataType>(group: &mut SerializedRowGroupWriter<'_, File>, values: &[T::T], width: usize) -> Result<()> {
    let mut column = group.next_column()?.context("a column more than the schema has")?;
    let (definition, repetition) = match width {
        0 => (vec![1; values.len()], None),
        _ => (vec![3; values.len()], Some((0..values.len()).map(|at| i16::from(at % width != 0)).collect::<Vec<_>>())),
    };
    column.typed::<T>().write_batch(values, Some(&definition), repetition.as_deref())?;
    column.close()?;
    Ok(())
}
