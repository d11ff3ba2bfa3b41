//! Actions as a picture: one small panel for each action dim, the horizon from left to right, a line for each row.
//!
//! Invariant: a file that stands alone (no font, script or picture from elsewhere) and is readable on light and dark.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::chunk::{self, Chunk};

/// Pixels: of a panel's own drawing, and of what stands around it.
const PANEL: (f64, f64) = (200.0, 90.0);
const LEFT: f64 = 46.0;
const TOP: f64 = 22.0;
const GAP: (f64, f64) = (62.0, 46.0);
const COLUMNS: usize = 4;
/// Values at most: a picture of more is none.
const MAX_VALUES: usize = 1 << 20;
/// Lines of rows take turns. Readable on white and on black, and apart for most colour-blind eyes (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

const STYLE: &str = "\
  :root { color-scheme: light dark; }
  svg { background: #ffffff; color: #1f2328; font: 10px system-ui, sans-serif; }
  text { fill: currentColor; }
  .frame { fill: none; stroke: currentColor; stroke-opacity: 0.35; }
  .zero { stroke: currentColor; stroke-opacity: 0.25; stroke-dasharray: 2 3; }
  .line { fill: none; stroke-width: 1.4; stroke-linejoin: round; }
  @media (prefers-color-scheme: dark) { svg { background: #0d1117; color: #e6edf3; } }";

/// Refuses another kind of file.
pub(super) fn may_write(path: &Path, overwrite: bool) -> Result<()> {
    if path.extension().and_then(|e| e.to_str()) != Some("svg") {
        bail!("--plot {}: actions are drawn as a .svg", path.display());
    }
    chunk::may_write(path, overwrite)
}

/// The picture.
pub(super) fn svg(chunk: &Chunk) -> Result<String> {
    let Chunk::Actions { shape: [rows, horizon, dim], values } = chunk else { bail!("--plot: tokens have no panels") };
    let (rows, horizon, dim) = (*rows, *horizon, *dim);
    let values = &values.values;
    ensure!(values.len() <= MAX_VALUES, "--plot: {} values are too many for a picture", values.len());
    let (columns, lines) = (dim.min(COLUMNS), dim.div_ceil(COLUMNS));
    let place = |i: usize| {
        let (column, line) = ((i % COLUMNS) as f64, (i / COLUMNS) as f64);
        (LEFT + column * (PANEL.0 + GAP.0), TOP + line * (PANEL.1 + GAP.1))
    };
    let width = LEFT + columns as f64 * (PANEL.0 + GAP.0) - GAP.0 + 12.0;
    let height = TOP + lines as f64 * (PANEL.1 + GAP.1) - 8.0;
    let mut t = String::new();
    let _ = writeln!(
        t,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-label=\"Actions: {dim} dims over {horizon} steps, {rows} rows\">"
    );
    let _ = writeln!(t, "<style>\n{STYLE}\n</style>");
    for d in 0..dim {
        let of = |row: usize, step: usize| values[(row * horizon + step) * dim + d];
        let all = || (0..rows).flat_map(|r| (0..horizon).map(move |s| of(r, s))).filter(|x| x.is_finite());
        let (low, high) = (all().reduce(f32::min).unwrap_or(0.0), all().reduce(f32::max).unwrap_or(0.0));
        panel(&mut t, d, place(d), horizon, (low, high));
        for row in 0..rows {
            let path = line((0..horizon).map(|step| of(row, step)), place(d), horizon, (low, high));
            let colour = COLOURS[row % COLOURS.len()];
            let _ = writeln!(t, "<path class=\"line\" stroke=\"{colour}\" d=\"{path}\"/>");
        }
    }
    t += "</svg>\n";
    Ok(t)
}

/// Frame, title and axis labels.
fn panel(t: &mut String, dim: usize, (x, y): (f64, f64), horizon: usize, (low, high): (f32, f32)) {
    let (right, bottom) = (x + PANEL.0, y + PANEL.1);
    let mut text = |x: f64, y: f64, anchor: &str, words: &str| {
        let _ = writeln!(t, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{words}</text>");
    };
    text(x, y - 5.0, "start", &format!("action dim {dim}"));
    text(x - 4.0, y + 8.0, "end", &format!("{high:.2}"));
    text(x - 4.0, bottom, "end", &format!("{low:.2}"));
    text(x, bottom + 12.0, "start", "0");
    text((x + right) / 2.0, bottom + 12.0, "middle", "step");
    text(right, bottom + 12.0, "end", &horizon.saturating_sub(1).to_string());
    if low < 0.0 && high > 0.0 {
        let zero = height(0.0, y, (low, high));
        let _ = writeln!(t, "<line class=\"zero\" x1=\"{x}\" y1=\"{zero:.2}\" x2=\"{right}\" y2=\"{zero:.2}\"/>");
    }
    let (w, h) = PANEL;
    let _ = writeln!(t, "<rect class=\"frame\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\"/>");
}

fn height(value: f32, y: f64, (low, high): (f32, f32)) -> f64 {
    let span = f64::from(high) - f64::from(low);
    let part = if span > 0.0 { (f64::from(value) - f64::from(low)) / span } else { 0.5 };
    y + PANEL.1 * (1.0 - part)
}

/// A path that is broken where a value is none.
fn line(values: impl Iterator<Item = f32>, (x, y): (f64, f64), horizon: usize, range: (f32, f32)) -> String {
    let stride = PANEL.0 / horizon.saturating_sub(1).max(1) as f64;
    let (mut path, mut pen) = (String::new(), 'M');
    for (step, value) in values.enumerate() {
        if !value.is_finite() {
            pen = 'M';
            continue;
        }
        let _ = write!(path, "{pen}{:.2} {:.2}", x + stride * step as f64, height(value, y, range));
        pen = 'L';
    }
    if horizon == 1 && !path.is_empty() { path + "h3" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tags are closed in the order in which they were opened.
    fn well_formed(text: &str) -> bool {
        let mut open = vec![];
        for tag in text.split('<').skip(1) {
            let Some((tag, _)) = tag.split_once('>') else { return false };
            let name = tag.split_whitespace().next().unwrap_or_default();
            if tag.matches('"').count() % 2 == 1 {
                return false;
            } else if let Some(name) = name.strip_prefix('/') {
                if open.pop() != Some(name) {
                    return false;
                }
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        open.is_empty()
    }

    #[test]
    fn each_dim_has_a_panel_and_each_row_a_line() {
        let values: Vec<f32> = (0..2 * 5 * 7).map(|i| (i as f32).sin()).collect();
        let text = svg(&Chunk::actions([2, 5, 7], values)).unwrap();
        assert!(well_formed(&text), "{text}");
        assert_eq!(text.matches("<path").count(), 2 * 7);
        assert_eq!(text.matches("<rect").count(), 7);
        assert!((0..7).all(|dim| text.contains(&format!("action dim {dim}<"))));
    }

    #[test]
    fn what_is_not_finite_or_does_not_move_is_drawn_all_the_same() {
        let values = vec![1.0, f32::NAN, 1.0, f32::INFINITY, 1.0, 1.0];
        let text = svg(&Chunk::actions([1, 6, 1], values)).unwrap();
        assert!(well_formed(&text) && !text.contains("NaN") && !text.contains("inf"), "{text}");
        assert_eq!(text.matches('M').count(), 3, "{text}");
        let text = svg(&Chunk::actions([1, 1, 2], vec![f32::NAN, 2.0])).unwrap();
        assert!(well_formed(&text) && !text.contains("NaN"), "{text}");
    }
}
