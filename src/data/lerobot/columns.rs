//! Whole columns of all frames, read in parallel: what statistics and the doctor look at.
//!
//! A table's rows are read row group by row group, each column in one go: where no value is null and every row is as
//! wide as the feature says, the values that the decoder made are the result. Pictures and videos are not touched.
//!
//! Invariant: the order is the dataset's: episode by episode, frame by frame, whatever the threads do.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::error::DataError;
use super::info::Kind;
use super::table::{Levels, Rows, Table};
use super::{Dataset, Episode};
use crate::policy::array::Values;

/// Rows that one thread reads at a time, at least: below this the opening of the file counts.
const MIN_ROWS: usize = 4096;

/// One column of all frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    /// Values of a frame.
    pub width: usize,
    /// `[frames, width]`, dataset order, in the dtype that `info.json` names.
    pub values: Values,
}

/// Rows of one table that belong to episodes that follow each other.
struct Run {
    table: Arc<Table>,
    rows: Vec<Rows>,
    count: usize,
}

impl Dataset {
    /// Reads columns of numbers, all frames.
    ///
    /// `progress` is told how many frames are done; it is called from several threads, with growing numbers on each.
    ///
    /// # Errors
    /// A key that is no feature of numbers; a table that is missing, corrupt, or has other rows than `meta/` says.
    pub fn columns(&self, keys: &[&str], progress: &(dyn Fn(u64) + Sync)) -> Result<Vec<Columns>, DataError> {
        let mut wanted = vec![];
        for key in keys {
            let feature = self.feature(key)?;
            let Kind::Numbers(dtype) = &feature.kind else {
                let what = "expected a feature of numbers, found pictures or texts".to_owned();
                return Err(DataError::Feature { key: (*key).to_owned(), what });
            };
            wanted.push((*key, feature.width(), dtype.as_str()));
        }
        let runs = self.runs()?;
        let done = AtomicU64::new(0);
        let parts: Vec<Vec<Values>> = runs
            .par_iter()
            .map(|run| {
                let path = run.table.path();
                let file = Arc::new(File::open(path).map_err(DataError::io(path))?);
                let mut levels = Levels::default();
                let mut columns = Vec::with_capacity(wanted.len());
                for (key, width, dtype) in &wanted {
                    let values = run.table.values(&file, key, &run.rows, *width, &mut levels)?;
                    columns.push(as_declared(path, key, values, dtype)?);
                }
                progress(done.fetch_add(run.count as u64, Ordering::Relaxed) + run.count as u64);
                Ok(columns)
            })
            .collect::<Result<_, DataError>>()?;
        let mut columns: Vec<Vec<Values>> = wanted.iter().map(|_| Vec::with_capacity(parts.len())).collect();
        for part in parts {
            for (values, column) in part.into_iter().zip(&mut columns) {
                column.push(values);
            }
        }
        let columns = wanted.iter().zip(columns);
        Ok(columns.map(|((_, width, dtype), parts)| Columns { width: *width, values: join(parts, dtype) }).collect())
    }

    /// All rows of all tables in the dataset's order, in pieces for threads.
    fn runs(&self) -> Result<Vec<Run>, DataError> {
        let same = |a: &Episode, b: &Episode| a.table == b.table && b.first_row == a.first_row + a.len();
        let shared: Vec<&[Episode]> = self.episodes.chunk_by(same).collect();
        let runs: Vec<Vec<Run>> = shared
            .par_iter()
            .map(|episodes| {
                let (Some(first), Some(last)) = (episodes.first(), episodes.last()) else { return Ok(vec![]) };
                let table = self.table(&first.table)?;
                let mut runs: Vec<Run> = vec![];
                for rows in table.split(first.first_row..last.first_row + last.len()) {
                    match runs.last_mut().filter(|run| run.count < MIN_ROWS) {
                        Some(run) => {
                            run.count += rows.count();
                            run.rows.push(rows);
                        }
                        None => runs.push(Run { table: table.clone(), count: rows.count(), rows: vec![rows] }),
                    }
                }
                Ok(runs)
            })
            .collect::<Result<_, DataError>>()?;
        Ok(runs.into_iter().flatten().collect())
    }

    /// Opens a table and holds its rows against the episodes that lie in it.
    pub(super) fn table(&self, path: &Path) -> Result<Arc<Table>, DataError> {
        self.tables.get_or(&path.to_owned(), || self.open_table(path), Table::bytes)
    }

    fn open_table(&self, path: &Path) -> Result<Table, DataError> {
        let table = Table::open(path)?;
        let expected = self.rows_of.get(path).copied().unwrap_or_default();
        if table.rows() != expected {
            let (file, found) = (path.to_owned(), table.rows() as u64);
            return Err(DataError::Rows { file, expected: expected as u64, found });
        }
        Ok(table)
    }
}

/// Values in the dtype that `info.json` names, as LeRobot gives them whatever the table stores.
pub(super) fn as_declared(path: &Path, key: &str, values: Values, dtype: &str) -> Result<Values, DataError> {
    let whole = |values: Values| match values {
        Values::I64(values) => Ok(values),
        Values::I32(values) => Ok(values.into_iter().map(i64::from).collect()),
        other => {
            let what = format!("expected {dtype}, as info.json says, found {}", other.dtype());
            Err(DataError::column(path, key, what))
        }
    };
    Ok(match (dtype, values) {
        ("bool", values @ Values::Bool(_)) => values,
        ("float32", values @ Values::F32(_)) => values,
        ("float32", values) => Values::F32(values.to_f32()),
        ("float64", values) => Values::F64(values.to_f64()),
        ("int32", values @ Values::I32(_)) => values,
        ("uint8", values) => {
            let narrow: Result<Vec<u8>, _> = whole(values)?.into_iter().map(u8::try_from).collect();
            Values::U8(narrow.map_err(|_| DataError::column(path, key, "a value that is no uint8"))?)
        }
        (_, values) => Values::I64(whole(values)?),
    })
}

/// Parts of one column, end to end.
fn join(parts: Vec<Values>, dtype: &str) -> Values {
    macro_rules! end_to_end {
        ($($variant:ident),*) => {
            match parts.first() {
                $(Some(Values::$variant(_)) => {
                    let slices: Vec<&[_]> = parts.iter().filter_map(|part| match part {
                        Values::$variant(values) => Some(values.as_slice()),
                        _ => None,
                    }).collect();
                    Values::$variant(slices.concat())
                })*
                None if dtype == "float64" => Values::F64(vec![]),
                None if dtype == "float32" => Values::F32(vec![]),
                None => Values::I64(vec![]),
            }
        };
    }
    end_to_end!(U8, I32, I64, F32, F64, Bool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_in_the_dtype_that_the_dataset_declares() {
        let declared = |values, dtype| as_declared(Path::new("t.parquet"), "action", values, dtype);
        assert_eq!(declared(Values::F64(vec![0.1]), "float32").unwrap(), Values::F32(vec![0.1]));
        assert_eq!(declared(Values::F32(vec![0.1]), "float64").unwrap(), Values::F64(vec![f64::from(0.1f32)]));
        assert_eq!(declared(Values::I32(vec![7]), "int64").unwrap(), Values::I64(vec![7]));
        assert_eq!(declared(Values::I32(vec![7]), "uint8").unwrap(), Values::U8(vec![7]));
        for (values, dtype) in [(Values::F32(vec![0.5]), "int64"), (Values::I64(vec![256]), "uint8")] {
            let error = declared(values, dtype).unwrap_err().to_string();
            assert!(error.starts_with("t.parquet: column action"), "{error}");
        }
    }

    #[test]
    fn parts_of_a_column_are_put_end_to_end() {
        let parts = vec![Values::F64(vec![1.0, 2.0]), Values::F64(vec![3.0])];
        assert_eq!(join(parts, "float64"), Values::F64(vec![1.0, 2.0, 3.0]));
        assert_eq!(join(vec![], "float32"), Values::F32(vec![]));
    }
}
