//! A parquet file read column by column, without arrow: numbers, lists of numbers, texts, lists of texts, bytes.
//!
//! A vector is a `FixedSizeList` or a `List` (nested or not) of one leaf; both store the same levels, so both are read
//! the same way: no value is null, and a row begins every `width` values. Columns that nobody asks for are not touched.
//!
//! Invariant: what the file claims is held against limits and against what its episodes need before it is decoded, and
//! no fault of the file's panics: the parquet crate is called only inside [`Table::guard`]. One thing is left to the
//! crate: it makes room for a page by what the page's header claims, at most 2 GiB, before it decodes it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Type as Physical;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result as Decoded};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::SerializedPageReader;

use super::error::DataError;
use crate::policy::array::Values;

/// The footer of a table; one of a thousand row groups of twenty columns has some megabytes.
const MAX_FOOTER_BYTES: u32 = 256 << 20;
/// Rows of a table: 15 days at 50 frames a second.
const MAX_ROWS: i64 = 1 << 26;
/// Values that are decoded from one column of one row group; 2 GiB of doubles.
const MAX_VALUES: u64 = 1 << 28;
/// Values that room is made for before they are decoded; beyond this it grows with what is there.
const MAX_RESERVED: usize = 1 << 18;
/// Texts and pictures that are copied out of one column by one call.
const MAX_BLOB_BYTES: usize = 1 << 30;

/// A parquet file whose footer was read.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    meta: ParquetMetaData,
}

/// Rows of one row group: the next `take` after `skip`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    group: usize,
    skip: usize,
    take: usize,
}

impl Rows {
    /// How many.
    pub(super) fn count(&self) -> usize {
        self.take
    }
}

/// Levels of a column, kept between calls so that they are allocated once.
#[derive(Debug, Default)]
pub(super) struct Levels {
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

impl Table {
    /// Reads the footer.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let mut file = File::open(path).map_err(DataError::io(path))?;
        let mut tail = [0; 8];
        file.seek(SeekFrom::End(-8))
            .and_then(|_| file.read_exact(&mut tail))
            .map_err(|_| DataError::parquet(path, "it has not even a footer"))?;
        let [a, b, c, d, magic @ ..] = tail;
        if magic != *b"PAR1" {
            return Err(DataError::parquet(path, "it does not end in PAR1: cut off, or no parquet at all"));
        }
        let footer_bytes = u32::from_le_bytes([a, b, c, d]);
        if footer_bytes > MAX_FOOTER_BYTES {
            return Err(DataError::parquet(path, format!("a footer of {footer_bytes} bytes")));
        }
        let meta = Self::guard(path, || ParquetMetaDataReader::new().parse_and_finish(&file))?;
        let rows = meta.row_groups().iter().try_fold(0i64, |sum, group| {
            let rows = group.num_rows();
            if rows < 0 { None } else { sum.checked_add(rows) }
        });
        if rows != Some(meta.file_metadata().num_rows()) || rows > Some(MAX_ROWS) {
            return Err(DataError::parquet(path, "the rows of its row groups do not add up"));
        }
        Ok(Table { path: path.to_owned(), meta })
    }

    /// Calls the parquet crate. A file is foreign bytes, and the crate does not promise never to panic on one: what
    /// panics in it is reported as a fault of the file, here and nowhere else. Its values are dropped on a panic, so
    /// nothing half-made is seen.
    fn guard<T>(path: &Path, call: impl FnOnce() -> Decoded<T>) -> Result<T, DataError> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(DataError::parquet(path, error.to_string())),
            Err(_) => Err(DataError::parquet(path, "the decoder gave up on it")),
        }
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the footer takes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.meta.memory_size()
    }

    /// Rows in all.
    pub(super) fn rows(&self) -> usize {
        self.meta.file_metadata().num_rows() as usize
    }

    /// Top-level columns in their order.
    pub(super) fn columns(&self) -> Vec<&str> {
        let schema = self.meta.file_metadata().schema();
        schema.get_fields().iter().map(|field| field.name()).collect()
    }

    /// Is there a column of this name?
    pub(super) fn has(&self, column: &str) -> bool {
        self.columns().contains(&column)
    }

    /// Is it a column of texts?
    pub(super) fn is_text(&self, column: &str) -> bool {
        let leaves = self.meta.file_metadata().schema_descr();
        self.leaf(column, None).is_ok_and(|leaf| leaves.column(leaf).physical_type() == Physical::BYTE_ARRAY)
    }

    /// The one leaf of a column, or the leaf of a struct by its name.
    fn leaf(&self, column: &str, part: Option<&str>) -> Result<usize, DataError> {
        let leaves = self.meta.file_metadata().schema_descr();
        let mut found = (0..leaves.num_columns()).filter(|leaf| {
            let descriptor = leaves.column(*leaf);
            let parts = descriptor.path().parts();
            parts.first().is_some_and(|name| name == column)
                && part.is_none_or(|part| parts.last().is_some_and(|name| name == part))
        });
        match (found.next(), found.next()) {
            (Some(leaf), None) => Ok(leaf),
            (Some(_), Some(_)) => Err(DataError::column(&self.path, column, "it is a struct, not one value")),
            (None, _) => {
                let there = crate::policy::record::nearest(column, self.columns());
                Err(DataError::column(&self.path, column, format!("the table has none; {there}")))
            }
        }
    }

    /// The rows of a range, row group by row group.
    pub(super) fn split(&self, rows: Range<usize>) -> Vec<Rows> {
        let mut start = 0;
        let mut all = vec![];
        for (group, meta) in self.meta.row_groups().iter().enumerate() {
            let end = start + meta.num_rows() as usize;
            let (from, to) = (rows.start.max(start), rows.end.min(end));
            if from < to {
                all.push(Rows { group, skip: from - start, take: to - from });
            }
            start = end;
        }
        all
    }

    /// Reads rows of one leaf: values as they come, levels beside them.
    fn read<T: DataType>(
        &self,
        file: &Arc<File>,
        leaf: usize,
        rows: Rows,
        levels: &mut Levels,
        values: &mut Vec<T::T>,
    ) -> Result<(), DataError> {
        let group = self.meta.row_group(rows.group);
        let chunk = group.column(leaf);
        let claimed = u64::try_from(chunk.num_values()).unwrap_or(u64::MAX);
        if claimed > MAX_VALUES {
            return Err(DataError::parquet(&self.path, format!("a column of {claimed} values in one row group")));
        }
        levels.definition.clear();
        levels.repetition.clear();
        let read = Self::guard(&self.path, || {
            let pages = SerializedPageReader::new(file.clone(), chunk, group.num_rows() as usize, None)?;
            let pages = Box::new(Budget { pages, left: claimed });
            let mut reader = ColumnReaderImpl::<T>::new(chunk.column_descr_ptr(), pages);
            let skipped = reader.skip_records(rows.skip)?;
            if skipped < rows.skip {
                return Ok(0);
            }
            let (records, _, _) =
                reader.read_records(rows.take, Some(&mut levels.definition), Some(&mut levels.repetition), values)?;
            Ok(records)
        })?;
        if read != rows.take {
            let name = chunk.column_path().string();
            return Err(DataError::column(&self.path, &name, format!("expected {} rows, found {read}", rows.take)));
        }
        Ok(())
    }

    /// Numbers of a column: `width` in every row, appended to `values`.
    fn numbers<T: DataType>(
        &self,
        file: &Arc<File>,
        (leaf, column): (usize, &str),
        (rows, width): (Rows, usize),
        levels: &mut Levels,
        values: &mut Vec<T::T>,
    ) -> Result<(), DataError> {
        let before = values.len();
        self.read::<T>(file, leaf, rows, levels, values)?;
        let found = values.len() - before;
        let descriptor = self.meta.file_metadata().schema_descr().column(leaf);
        let full = descriptor.max_def_level();
        if levels.definition.iter().any(|level| *level != full) {
            return Err(DataError::column(&self.path, column, "a value is null"));
        }
        let even = match descriptor.max_rep_level() {
            0 => width == 1,
            _ => width > 0 && levels.repetition.len() == found && even(&levels.repetition, width),
        };
        if !even || Some(found) != rows.take.checked_mul(width) {
            let found = match found.checked_div(rows.take) {
                Some(each) if each * rows.take == found && each != width => format!("{each}"),
                _ => "rows of several widths".to_owned(),
            };
            return Err(DataError::column(&self.path, column, format!("expected {width} values a row, found {found}")));
        }
        Ok(())
    }

    /// Numbers of a column in the dtype they are stored in, `width` in every row, C order.
    pub(super) fn values(
        &self,
        file: &Arc<File>,
        column: &str,
        rows: &[Rows],
        width: usize,
        levels: &mut Levels,
    ) -> Result<Values, DataError> {
        let leaf = self.leaf(column, None)?;
        let at = (leaf, column);
        macro_rules! all {
            ($type:ty, $values:path) => {{
                let wanted = rows.iter().map(|rows| rows.take).sum::<usize>().saturating_mul(width);
                let mut values = Vec::with_capacity(wanted.min(MAX_RESERVED));
                for rows in rows {
                    self.numbers::<$type>(file, at, (*rows, width), levels, &mut values)?;
                }
                Ok($values(values))
            }};
        }
        match self.meta.file_metadata().schema_descr().column(leaf).physical_type() {
            Physical::BOOLEAN => all!(BoolType, Values::Bool),
            Physical::INT32 => all!(Int32Type, Values::I32),
            Physical::INT64 => all!(Int64Type, Values::I64),
            Physical::FLOAT => all!(FloatType, Values::F32),
            Physical::DOUBLE => all!(DoubleType, Values::F64),
            other => Err(DataError::column(&self.path, column, format!("expected numbers, found {other}"))),
        }
    }

    /// A column of whole numbers.
    pub(super) fn whole(&self, file: &Arc<File>, column: &str) -> Result<Vec<i64>, DataError> {
        match self.values(file, column, &self.split(0..self.rows()), 1, &mut Levels::default())? {
            Values::I64(values) => Ok(values),
            Values::I32(values) => Ok(values.into_iter().map(i64::from).collect()),
            other => {
                Err(DataError::column(&self.path, column, format!("expected whole numbers, found {}", other.dtype())))
            }
        }
    }

    /// A column of numbers with a fraction.
    pub(super) fn real(&self, file: &Arc<File>, column: &str) -> Result<Vec<f64>, DataError> {
        Ok(self.values(file, column, &self.split(0..self.rows()), 1, &mut Levels::default())?.to_f64())
    }

    /// Texts of a column, row by row: one in each, or a list.
    pub(super) fn texts(&self, file: &Arc<File>, column: &str, rows: &[Rows]) -> Result<Vec<Vec<String>>, DataError> {
        let leaf = self.byte_leaf(column, None)?;
        let descriptor = self.meta.file_metadata().schema_descr().column(leaf);
        let (full, nested) = (descriptor.max_def_level(), descriptor.max_rep_level() > 0);
        let mut levels = Levels::default();
        let mut all: Vec<Vec<String>> = vec![];
        let mut bytes = 0;
        for rows in rows {
            let mut values: Vec<ByteArray> = vec![];
            self.read::<ByteArrayType>(file, leaf, *rows, &mut levels, &mut values)?;
            let mut values = values.into_iter();
            let count = if full > 0 { levels.definition.len() } else { rows.take };
            for at in 0..count {
                if !nested || levels.repetition.get(at) == Some(&0) {
                    all.push(vec![]);
                }
                if full > 0 && levels.definition.get(at) != Some(&full) {
                    continue;
                }
                let (Some(value), Some(row)) = (values.next(), all.last_mut()) else {
                    return Err(DataError::column(&self.path, column, "its levels do not add up"));
                };
                bytes += value.len();
                let text = std::str::from_utf8(value.data());
                let text = text.map_err(|_| DataError::column(&self.path, column, "a text is not UTF-8"))?;
                if bytes > MAX_BLOB_BYTES {
                    return Err(DataError::column(&self.path, column, "more text than a dataset can have"));
                }
                row.push(text.to_owned());
            }
        }
        Ok(all)
    }

    /// Bytes of a column, or of one part of its struct, row by row; `None` where there are none.
    pub(super) fn blobs(
        &self,
        file: &Arc<File>,
        column: &str,
        part: Option<&str>,
        rows: Rows,
    ) -> Result<Vec<Option<ByteArray>>, DataError> {
        let leaf = self.byte_leaf(column, part)?;
        let descriptor = self.meta.file_metadata().schema_descr().column(leaf);
        if descriptor.max_rep_level() > 0 {
            return Err(DataError::column(&self.path, column, "expected one picture a row, found lists"));
        }
        let full = descriptor.max_def_level();
        let mut levels = Levels::default();
        let mut values: Vec<ByteArray> = vec![];
        self.read::<ByteArrayType>(file, leaf, rows, &mut levels, &mut values)?;
        let mut values = values.into_iter();
        let there = |at: usize| full == 0 || levels.definition.get(at) == Some(&full);
        Ok((0..rows.take).map(|at| if there(at) { values.next() } else { None }).collect())
    }

    fn byte_leaf(&self, column: &str, part: Option<&str>) -> Result<usize, DataError> {
        let leaf = self.leaf(column, part)?;
        match self.meta.file_metadata().schema_descr().column(leaf).physical_type() {
            Physical::BYTE_ARRAY => Ok(leaf),
            other => Err(DataError::column(&self.path, column, format!("expected bytes or texts, found {other}"))),
        }
    }
}

/// Does a row begin at every `width`th value, and nowhere else?
fn even(repetition: &[i16], width: usize) -> bool {
    repetition.chunks(width).all(|row| row.first() == Some(&0) && !row.iter().skip(1).any(|level| *level == 0))
}

/// Pages that hold no more values than the footer says the column has.
struct Budget {
    pages: SerializedPageReader<File>,
    left: u64,
}

impl Budget {
    fn spend(&mut self, values: u64) -> Decoded<()> {
        match self.left.checked_sub(values) {
            Some(left) => self.left = left,
            None => return Err(ParquetError::General("its pages hold more values than its footer says".to_owned())),
        }
        Ok(())
    }
}

impl Iterator for Budget {
    type Item = Decoded<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Budget {
    fn get_next_page(&mut self) -> Decoded<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page
            && page.is_data_page()
        {
            self.spend(u64::from(page.num_values()))?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Decoded<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Decoded<()> {
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Decoded<Option<Page>> {
        self.pages.take_deferred_dictionary()
    }

    fn at_record_boundary(&mut self) -> Decoded<bool> {
        self.pages.at_record_boundary()
    }
}
