//! Recorded and replayed actions as a picture: a panel for each joint, chunk after chunk from left to right.
//!
//! Invariant: a file that stands alone on a white ground of its own; every text in it is escaped. A line is broken between
//! chunks: what follows another recording is not what came after it in time.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};

use super::Report;
use crate::plot::escape;
use crate::plot::panel::{Panel, STYLE, short};
use crate::policy::record::Record;

/// Values of one side at most: a picture of more is none.
const MAX_VALUES: usize = 1 << 19;
const MAX_JOINTS: usize = 256;
/// Pixels: of a panel's own drawing, and of what stands around it.
const PANEL: (f64, f64) = (560.0, 100.0);
const LEFT: f64 = 56.0;
const TOP: f64 = 84.0;
const GAP: (f64, f64) = (64.0, 48.0);
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 36.0;
const COLUMNS: usize = 2;

/// Of what is not recorded.
const OWN: &str = "\
  .replayed { fill: none; stroke: #0072b2; stroke-width: 1.1; stroke-linejoin: round; stroke-linecap: round; }";

/// Chunks, recorded and replayed, as they are drawn.
#[derive(Debug, Clone, Default)]
pub struct Drawn {
    /// By chunk, then by horizon step: the joints' actions then and now.
    chunks: Vec<[Vec<Vec<f64>>; 2]>,
    values: usize,
    left_out: usize,
}

impl Drawn {
    /// One more, where there is room and both have actions of one shape.
    pub(super) fn add(&mut self, recorded: &Record, replayed: &Record) {
        let (Ok(old), Ok(new)) = (recorded.array("actions"), replayed.array("actions")) else { return };
        let width = old.width().unwrap_or(1);
        let values = old.values.len();
        if old.shape != new.shape || values == 0 || width > MAX_JOINTS || self.values + values > MAX_VALUES {
            self.left_out += 1;
            return;
        }
        self.values += values;
        self.chunks.push([old, new].map(|array| array.values.to_f64().chunks(width).map(<[f64]>::to_vec).collect()));
    }

    fn joints(&self) -> usize {
        self.chunks.iter().filter_map(|[old, _]| old.first()).map(Vec::len).max().unwrap_or(0)
    }

    /// A joint's actions, one side, with a gap after each chunk.
    fn line(&self, side: usize, joint: usize) -> impl Iterator<Item = (f64, f64)> {
        let all = self.chunks.iter().flat_map(move |chunk| {
            let steps = chunk[side].iter().map(move |step| step.get(joint).copied().unwrap_or(f64::NAN));
            steps.chain([f64::NAN])
        });
        all.enumerate().map(|(x, value)| (x as f64, value))
    }
}

/// Refuses another kind of file, and one that is there.
pub(super) fn may_write(path: &Path, overwrite: bool) -> Result<()> {
    let shown = path.display();
    ensure!(path.extension().is_some_and(|e| e == "svg"), "--plot {shown}: actions are drawn as a .svg");
    ensure!(overwrite || !path.exists(), "--plot {shown}: it is there already; --overwrite replaces it");
    Ok(())
}

/// The picture.
///
/// # Errors
/// There is nothing to draw.
pub(super) fn svg(drawn: &Drawn, report: &Report) -> Result<String> {
    let joints = drawn.joints();
    ensure!(joints > 0, "--plot: no answer has actions of the recorded shape; there is nothing to draw");
    let (columns, lines) = (joints.min(COLUMNS) as f64, joints.div_ceil(COLUMNS) as f64);
    let width = LEFT + columns * (PANEL.0 + GAP.0) - GAP.0 + RIGHT;
    let height = TOP + lines * (PANEL.1 + GAP.1) - GAP.1 + BOTTOM;
    let title = format!("{} recordings replayed against {}", drawn.chunks.len(), report.asked);
    let mut t = String::new();
    let _ = writeln!(
        t,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">\n<style>\n{STYLE}\n  {OWN}\n</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>",
        escape(&title)
    );
    let _ = writeln!(t, "<text class=\"title\" x=\"12\" y=\"24\">{}</text>", short(&title, width - 24.0, 8.6));
    let verdict = report.verdict();
    let mut words = verdict.lines().next().unwrap_or_default().to_owned();
    if drawn.left_out > 0 {
        let _ = write!(words, "; {} are not drawn", drawn.left_out);
    }
    let _ = writeln!(t, "<text x=\"12\" y=\"42\">{}</text>", short(&words, width - 24.0, 5.8));
    t += "<path class=\"recorded\" d=\"M12 58h22\"/><text x=\"40\" y=\"61.5\">recorded</text>\n\
          <path class=\"replayed\" d=\"M104 58h22\"/><text x=\"132\" y=\"61.5\">replayed</text>\n";
    let steps: usize = drawn.chunks.iter().map(|[old, _]| old.len() + 1).sum();
    for joint in 0..joints {
        let (column, line) = ((joint % COLUMNS) as f64, (joint / COLUMNS) as f64);
        let at = (LEFT + column * (PANEL.0 + GAP.0), TOP + line * (PANEL.1 + GAP.1));
        let values = drawn.line(0, joint).chain(drawn.line(1, joint)).map(|(_, value)| value);
        let panel = Panel::new(at, PANEL, (0.0, steps.saturating_sub(2) as f64), values);
        let _ = writeln!(t, "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">joint {joint}</text>", at.0, at.1 - 6.0);
        panel.grid(&mut t, &panel.step_marks(), &panel.down_marks(""));
        if joint + COLUMNS >= joints {
            let (middle, below) = (at.0 + PANEL.0 / 2.0, at.1 + PANEL.1 + 27.0);
            let _ = writeln!(
                t,
                "<text x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">actions, chunk after chunk</text>"
            );
        }
        for (side, class) in ["recorded", "replayed"].into_iter().enumerate() {
            let _ = writeln!(t, "<path class=\"{class}\" d=\"{}\"/>", panel.line(drawn.line(side, joint)));
        }
    }
    t += "</svg>\n";
    Ok(t)
}
