//! What is measured of each request, and the file that keeps it.
//!
//! Source: openpi 15a9616, examples/simple_client/main.py (`TimingRecorder`): the same names, population deviation and
//! quantiles between neighbours, as numpy's `std` and `quantile` have them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use parquet::basic::Compression;
use parquet::data_type::DoubleType;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde::Serialize;

use crate::serve::tree::Tree;

/// What the client measures.
const CLIENT: &str = "client_infer_ms";
/// What replies tell: the column, and where it stands.
const TOLD: [(&str, [&str; 2]); 6] = [
    ("policy_infer_ms", ["policy_timing", "infer_ms"]),
    ("server_infer_ms", ["server_timing", "infer_ms"]),
    ("server_prev_total_ms", ["server_timing", "prev_total_ms"]),
    ("pi0_queue_ms", ["pi0", "queue_ms"]),
    ("pi0_model_ms", ["pi0", "model_ms"]),
    ("pi0_prev_model_ms", ["pi0", "prev_model_ms"]),
];

/// Milliseconds by name and request.
#[derive(Debug, Default)]
pub(super) struct Timings {
    /// NaN for what a reply did not tell.
    rows: Vec<[f64; TOLD.len() + 1]>,
}

/// One name's, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Statistics {
    pub(super) count: usize,
    pub(super) mean: f64,
    pub(super) std: f64,
    pub(super) min: f64,
    pub(super) p25: f64,
    pub(super) p50: f64,
    pub(super) p75: f64,
    pub(super) p90: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Timings {
    pub(super) fn add(&mut self, client_infer_ms: f64, reply: &Tree) {
        let told = |path: [&str; 2]| path.iter().try_fold(reply, |tree, key| tree.get(key)).and_then(Tree::number);
        let mut row = [client_infer_ms; TOLD.len() + 1];
        for (place, (_, path)) in row.iter_mut().skip(1).zip(TOLD) {
            *place = told(path).filter(|ms| ms.is_finite()).unwrap_or(f64::NAN);
        }
        self.rows.push(row);
    }

    /// How many requests.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Each name that a reply told, with its values by request.
    fn columns(&self) -> Vec<(&'static str, Vec<Option<f64>>)> {
        let names = std::iter::once(CLIENT).chain(TOLD.map(|(name, _)| name));
        let column = |at: usize| self.rows.iter().map(|row| Some(row[at]).filter(|ms| !ms.is_nan())).collect();
        let mut all: Vec<(_, Vec<_>)> = names.enumerate().map(|(at, name)| (name, column(at))).collect();
        all.retain(|(_, values)| values.iter().any(Option::is_some));
        all
    }

    /// Of each name.
    pub(super) fn statistics(&self) -> Vec<(&'static str, Statistics)> {
        let columns = self.columns().into_iter();
        columns.map(|(name, values)| (name, Statistics::of(values.into_iter().flatten().collect()))).collect()
    }
}

impl Statistics {
    /// Of at least one value.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count as f64).sqrt();
        let quantile = |q: f64| {
            let at = q * (count - 1) as f64;
            let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
            low + (high - low) * at.fract()
        };
        Statistics {
            count,
            mean,
            std,
            min: quantile(0.0),
            p25: quantile(0.25),
            p50: quantile(0.5),
            p75: quantile(0.75),
            p90: quantile(0.9),
            p95: quantile(0.95),
            p99: quantile(0.99),
            max: quantile(1.0),
        }
    }
}

/// Where times are written.
#[derive(Debug)]
pub(super) enum TimingFile {
    Parquet(PathBuf),
    Json(PathBuf),
}

impl TimingFile {
    /// By its ending.
    pub(super) fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("parquet") => Ok(TimingFile::Parquet(path.to_owned())),
            Some("json") => Ok(TimingFile::Json(path.to_owned())),
            _ => bail!("--timing-file {}: expected a file that ends in .parquet or .json", path.display()),
        }
    }

    /// Writes every request's.
    pub(super) fn write(&self, timings: &Timings) -> Result<()> {
        let (TimingFile::Parquet(path) | TimingFile::Json(path)) = self;
        let write = || -> Result<()> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let file = File::create(path)?;
            match self {
                TimingFile::Json(_) => {
                    let all: serde_json::Map<_, _> = (timings.columns().into_iter())
                        .map(|(name, values)| (name.to_owned(), serde_json::json!(values)))
                        .collect();
                    Ok(serde_json::to_writer(file, &all)?)
                }
                TimingFile::Parquet(_) => parquet(file, timings),
            }
        };
        write().with_context(|| format!("--timing-file {}", path.display()))
    }
}

fn parquet(file: File, timings: &Timings) -> Result<()> {
    let columns = timings.columns();
    let fields: String = columns.iter().map(|(name, _)| format!("optional double {name}; ")).collect();
    let schema = Arc::new(parse_message_type(&format!("message timing {{ {fields}}}"))?);
    let properties = Arc::new(WriterProperties::builder().set_compression(Compression::SNAPPY).build());
    let mut writer = SerializedFileWriter::new(file, schema, properties)?;
    let mut group = writer.next_row_group()?;
    for (_, values) in &columns {
        let mut column = group.next_column()?.context("a column of the schema")?;
        let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<f64> = values.iter().flatten().copied().collect();
        column.typed::<DoubleType>().write_batch(&values, Some(&levels), None)?;
        column.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_deviation_are_numpys() {
        // np.mean, np.std, np.quantile of [4, 1, 3, 2, 10].
        let found = Statistics::of(vec![4.0, 1.0, 3.0, 2.0, 10.0]);
        assert_eq!((found.count, found.mean, found.min, found.p25, found.p50), (5, 4.0, 1.0, 2.0, 3.0));
        assert_eq!((found.p75, found.max), (4.0, 10.0));
        assert!((found.std - 3.162_277_660_168_379_5).abs() < 1e-12);
        assert!((found.p90 - 7.6).abs() < 1e-9 && (found.p99 - 9.76).abs() < 1e-9, "{found:?}");
        assert_eq!(Statistics::of(vec![2.5]).p99, 2.5);
    }
}
