//! The one mouth: data on stdout, as text or JSON; progress on stderr, only where it is a terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub use crate::weights::anatomy::grouped;
use crate::weights::convert::Progress;

/// Speaks for every verb.
#[derive(Debug)]
pub struct Mouth {
    json: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Mouth {
    /// For people, or for machines.
    pub fn new(json: bool) -> Self {
        Mouth { json, bar: Mutex::new(None) }
    }

    /// Says a result: its JSON, or the text made of it.
    ///
    /// # Errors
    /// stdout is closed.
    pub fn say<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        self.hush();
        let mut out = std::io::stdout().lock();
        let result = if self.json {
            serde_json::to_writer_pretty(&mut out, value)?;
            writeln!(out)
        } else {
            out.write_all(text().as_bytes())
        };
        match result.and_then(|()| out.flush()) {
            // A reader that has seen enough (`| head`) is no failure.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// Reports what went wrong, once.
    pub fn error(&self, error: &anyhow::Error) {
        self.hush();
        if self.json {
            let faults: Option<Vec<String>> = error
                .downcast_ref::<remap::Refused>()
                .or_else(|| match error.downcast_ref::<remap::Error>() {
                    Some(remap::Error::Refused(refused)) => Some(refused),
                    _ => None,
                })
                .map(|refused| refused.faults.iter().map(ToString::to_string).collect());
            #[cfg(feature = "model")]
            let faults = faults.or_else(|| {
                let misfit: &super::observation::Error = error.downcast_ref()?;
                Some(misfit.faults.iter().map(ToString::to_string).collect())
            });
            let value = serde_json::json!({"error": format!("{error:#}"), "faults": faults});
            let _ = writeln!(std::io::stdout(), "{value:#}");
        } else {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
        }
    }

    fn hush(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl Mouth {
    /// Work that is counted in something other than bytes; [`Progress::at`] tells how far it is.
    pub fn count(&self, what: &str, total: u64) {
        self.bar(what, total, "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} eta {eta}");
    }

    fn bar(&self, what: &str, total: u64, template: &str) {
        self.hush();
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = if total == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total) };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        if total == 0 {
            bar.enable_steady_tick(std::time::Duration::from_millis(120));
        }
        *self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(bar);
    }
}

impl Mouth {
    /// A line on the way, for people: on stderr, above the bar where there is one.
    pub fn note(&self, line: &str) {
        match &*self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(bar) => bar.println(line),
            None => {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }
}

impl Progress for Mouth {
    fn phase(&self, what: &str, bytes: u64) {
        let template = match bytes {
            0 => "{spinner} {msg} {elapsed}",
            _ => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
        };
        self.bar(what, bytes, template);
    }

    fn at(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            bar.set_position(bytes);
        }
    }
}

/// `2831136` as `2.8 MB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}

/// `[3, 4]` as `3x4`, a scalar as `scalar`.
pub fn shape(shape: &[u64]) -> String {
    if shape.is_empty() {
        return "scalar".into();
    }
    shape.iter().map(u64::to_string).collect::<Vec<_>>().join("x")
}

/// Names that differ only in numbers, as one: `blocks.{0..17}.q`. In the order in which they first appear.
pub fn condense<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<(String, usize)> {
    let mut groups: Vec<(String, Vec<Vec<u64>>)> = vec![];
    for name in names {
        let (skeleton, numbers) = skeleton(name);
        match groups.iter_mut().find(|(s, _)| *s == skeleton) {
            Some((_, all)) => all.push(numbers),
            None => groups.push((skeleton, vec![numbers])),
        }
    }
    let spell = |(skeleton, all): (String, Vec<Vec<u64>>)| {
        let mut name = String::new();
        for (i, part) in skeleton.split('\0').enumerate() {
            if i > 0 {
                let column = || all.iter().filter_map(|n| n.get(i - 1));
                match (column().min(), column().max()) {
                    (Some(a), Some(b)) if a != b => name += &format!("{{{a}..{b}}}"),
                    (Some(a), _) => name += &a.to_string(),
                    _ => {}
                }
            }
            name += part;
        }
        (name, all.len())
    };
    groups.into_iter().map(spell).collect()
}

/// The name with its numbers taken out, and the numbers.
pub fn skeleton(name: &str) -> (String, Vec<u64>) {
    let (mut skeleton, mut numbers) = (String::new(), vec![]);
    let mut rest = name;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let end = rest[at..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |n| at + n);
        skeleton += &rest[..at];
        // Only a number that stands alone is an index: `LayerNorm_0` and `norm1` are names.
        let alone = rest[..at].ends_with(['.', '/']) || (at == 0 && skeleton.is_empty());
        match rest[at..end].parse() {
            Ok(number) if alone => {
                skeleton.push('\0');
                numbers.push(number);
            }
            _ => skeleton += &rest[at..end],
        }
        rest = &rest[end..];
    }
    (skeleton + rest, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_numbers_become_one() {
        let names = ["a.0.norm1.w", "a.1.norm1.w", "a.2.norm1.w", "b"];
        assert_eq!(condense(names), [("a.{0..2}.norm1.w".to_owned(), 3), ("b".to_owned(), 1)]);
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(2_831_136), "2.8 MB");
    }
}
