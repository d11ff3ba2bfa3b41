//! What a replay found: a line for each recording, a line for each joint, and the verdict in a sentence.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::plot::{number, percent};
use crate::serve::compare::{Comparison, Held, Joint, Verdict};

/// Lines of recordings for people; what departs goes before what does not.
const MAX_ROWS: usize = 40;

/// One recording.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub file: String,
    /// What the comparison says; none where there is no answer.
    pub held: Option<Held>,
    /// Why there is none: it cannot be read, or was refused.
    pub error: Option<String>,
    /// Does it say what its actions began as?
    pub noise_is_known: bool,
    /// The model's time then.
    pub recorded_ms: Option<f64>,
    /// The model's time now.
    pub replayed_ms: Option<f64>,
    /// From the request to the answer, now.
    pub round_trip_ms: Option<f64>,
}

impl Row {
    fn departs(&self) -> bool {
        self.held.as_ref().is_none_or(|held| held.verdict.departs())
    }
}

/// The whole replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Who was asked.
    pub asked: String,
    /// Is every answer what it was, as far as can be told?
    pub holds: bool,
    /// Recordings without an answer.
    pub failed: usize,
    /// All answers.
    pub comparison: Comparison,
    /// Each recording.
    pub recordings: Vec<Row>,
    /// Files that were written.
    pub written: Vec<String>,
}

impl Report {
    pub(super) fn new(asked: String, comparison: Comparison, recordings: Vec<Row>) -> Self {
        let failed = recordings.iter().filter(|row| row.held.is_none()).count();
        let holds = failed == 0 && !comparison.departs();
        Report { asked, holds, failed, comparison, recordings, written: vec![] }
    }

    /// Does any answer depart, or is any missing?
    pub fn departs(&self) -> bool {
        !self.holds
    }

    fn rows(&self) -> String {
        let mut shown: Vec<&Row> = self.recordings.iter().filter(|row| row.departs()).collect();
        shown.extend(self.recordings.iter().filter(|row| !row.departs()));
        let more = shown.len().saturating_sub(MAX_ROWS);
        shown.truncate(MAX_ROWS);
        shown.sort_by_key(|row| row.number);
        let mut table =
            vec![["recording", "verdict", "max", "mean", "ms then", "ms now", ""].map(str::to_owned).to_vec()];
        let ms = |ms: Option<f64>| ms.map_or_else(|| "–".to_owned(), number);
        for row in shown {
            let held = row.held.as_ref();
            let errors = held.and_then(|held| held.actions);
            let mut remarks: Vec<String> = row.error.iter().cloned().collect();
            remarks.extend(held.and_then(|held| held.first).map(|first| first.to_string()));
            remarks.extend(held.into_iter().flat_map(|held| held.differences.clone()));
            table.push(vec![
                row.file.clone(),
                held.map_or("no answer", |held| held.verdict.name()).to_owned(),
                errors.map_or_else(|| "–".to_owned(), |errors| number(errors.max_abs)),
                errors.map_or_else(|| "–".to_owned(), |errors| number(errors.mean_abs)),
                ms(row.recorded_ms),
                ms(row.replayed_ms),
                remarks.join("; "),
            ]);
        }
        let mut text = columns(&table);
        if more > 0 {
            let _ = writeln!(text, "and {more} more; --json lists each");
        }
        text
    }

    fn joints(&self) -> String {
        let compared = self.comparison.joints.iter().any(|joint| joint.errors.values > 0);
        let heads: &[&str] = if compared {
            &["joint", "max", "mean", "max/range", "mean/range", "recorded", "replayed"]
        } else {
            &["joint", "recorded", "replayed", "mean then", "mean now", "std then", "std now", "shift/std"]
        };
        let mut table = vec![heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>()];
        let range = |low: f64, high: f64| format!("{} … {}", number(low), number(high));
        for (i, joint) in self.comparison.joints.iter().enumerate() {
            let Joint { errors, recorded, replayed } = joint;
            let ranges = [range(recorded.min, recorded.max), range(replayed.min, replayed.max)];
            let mut line = vec![i.to_string()];
            if compared {
                line.extend([number(errors.max_abs), number(errors.mean_abs)]);
                line.extend([errors.max_abs, errors.mean_abs].map(|error| percent(joint.of_range(error))));
                line.extend(ranges);
            } else {
                line.extend(ranges);
                line.extend([recorded.mean, replayed.mean, recorded.std, replayed.std].map(number));
                line.push(joint.shift().map_or_else(|| "–".to_owned(), number));
            }
            table.push(line);
        }
        columns(&table)
    }

    /// The end of it, in sentences.
    pub fn verdict(&self) -> String {
        let Comparison { tolerance, answers, equal, within, unknown, outside, unlike, .. } = &self.comparison;
        let counts = [
            (*equal, "equal bit for bit"),
            (*within, "within the tolerance"),
            (*unknown, "of unknown noise and otherwise alike"),
            (*outside, "outside the tolerance"),
            (*unlike, "unlike"),
            (self.failed, "without an answer"),
        ];
        let counts: Vec<String> =
            counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        let all = answers + self.failed;
        let mut text =
            format!("{all} replayed against {}: {} (tolerance {tolerance})\n", self.asked, counts.join(", "));
        if self.recordings.iter().any(|row| row.held.is_some() && !row.noise_is_known) {
            text += "Recordings that do not say what noise their actions began as (openpi's recorder does not keep it) cannot \
                     be\nequal: no value was compared, only keys, shapes, dtypes, ranges and spreads.\n";
        }
        let first = self.recordings.iter().find(|row| row.held.as_ref().is_some_and(|held| held.verdict.departs()));
        if let Some((row, held)) = first.and_then(|row| Some((row, row.held.as_ref()?))) {
            let what = match (held.verdict, &held.first) {
                (Verdict::Outside, Some(first)) => first.to_string(),
                _ => held.differences.join("; "),
            };
            let _ = writeln!(text, "The first that departs is {}: {what}", row.file);
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.rows())?;
        if !self.comparison.joints.is_empty() {
            write!(out, "\n{}", self.joints())?;
        }
        write!(out, "\n{}", self.verdict())?;
        self.written.iter().try_for_each(|path| writeln!(out, "written: {path}"))
    }
}

/// Lines of cells, the first cell of each and the last of remarks to the left, all others to the right.
fn columns(table: &[Vec<String>]) -> String {
    let count = table.first().map_or(0, Vec::len);
    let width = |i: usize| table.iter().map(|line| line[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for line in table {
        let mut row = String::new();
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match i {
                0 => write!(row, "{cell:<width$}"),
                // Remarks have no head.
                _ if table[0][i].is_empty() => write!(row, "  {cell}"),
                _ => write!(row, "  {cell:>width$}"),
            };
        }
        text += row.trim_end();
        text.push('\n');
    }
    text
}
