//! Recorded and predicted actions as a picture: a panel for each joint, time from left to right.
//!
//! Invariant: a file that stands alone (no font, script or picture from elsewhere) on a white ground of its own, so that
//! it looks the same on light and dark pages; every text in it is escaped.

use std::fmt::Write as _;

use anyhow::Result;

use super::metrics::{Metrics, Score, Step};
use super::{Compared, escape, percent, usable};
use crate::plot::panel::{Panel, STYLE, short};

/// Pixels: of a panel's own drawing, and of what stands around it.
const PANEL: (f64, f64) = (250.0, 110.0);
const LEFT: f64 = 56.0;
const TOP: f64 = 102.0;
const GAP: (f64, f64) = (62.0, 52.0);
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 40.0;
const COLUMNS: usize = 4;
/// Pixels of a letter, about, in titles and in panels' names.
const LETTER: (f64, f64) = (8.6, 6.6);
/// Room for the title where there are few columns.
const LEAST_WIDTH: f64 = 640.0;
/// Chunks take turns. Readable on white, and apart for most colour-blind eyes (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
/// Where more chunks begin, their dots would hide the lines.
const MAX_DOTS: usize = 200;

/// Of what is not recorded.
const OWN: &str = "\
  .chunk { fill: none; stroke-width: 1.1; stroke-linejoin: round; stroke-linecap: round; }
  .hold { fill: none; stroke: #6e7781; stroke-width: 1.4; stroke-dasharray: 4 3; }";

fn begin(t: &mut String, (width, height): (f64, f64), label: &str) {
    let _ = writeln!(
        t,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">\n<style>\n{STYLE}\n  {OWN}\n</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>",
        escape(label)
    );
}

/// The panels, with their title and legend.
///
/// # Errors
/// What [`Compared::check`] refuses.
pub fn panels(compared: &Compared, metrics: &Metrics) -> Result<String> {
    compared.check()?;
    let joints = compared.joints.len();
    let (columns, lines) = (joints.min(COLUMNS) as f64, joints.div_ceil(COLUMNS) as f64);
    let width = (LEFT + columns * (PANEL.0 + GAP.0) - GAP.0 + RIGHT).max(LEAST_WIDTH);
    let height = TOP + lines * (PANEL.1 + GAP.1) - GAP.1 + BOTTOM;
    // Few panels share the width.
    let wide = (width - LEFT - RIGHT - (columns - 1.0) * GAP.0) / columns;
    let mut t = String::new();
    begin(&mut t, (width, height), &format!("Recorded and predicted actions of {joints} joints: {}", compared.title));
    head(&mut t, compared, metrics, width - 24.0);
    let frames = compared.recorded.len();
    let time = (compared.seconds(compared.first_frame), compared.seconds(compared.first_frame + frames - 1));
    for j in 0..joints {
        let (column, line) = ((j % COLUMNS) as f64, (j / COLUMNS) as f64);
        let at = (LEFT + column * (wide + GAP.0), TOP + line * (PANEL.1 + GAP.1));
        let drawn = compared.chunks.iter().flat_map(|c| c.actions.iter().take(compared.overlap(c).1)).map(|a| a[j]);
        let panel = Panel::new(at, (wide, PANEL.1), time, compared.recorded.iter().map(|a| a[j]).chain(drawn));
        let share = metrics.joints.get(j).and_then(|joint| joint.scores.policy?.mae_of_range);
        let name = short(&compared.joints[j], wide - 90.0, LETTER.1);
        let _ = writeln!(t, "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>", at.0, at.1 - 6.0);
        let right = at.0 + wide;
        let note = if share.is_some() { format!("mae {} of range", percent(share)) } else { "never moves".to_owned() };
        let _ = writeln!(t, "<text x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\">{note}</text>", at.1 - 6.0);
        panel.axes(&mut t, "");
        if j + COLUMNS >= joints {
            let middle = at.0 + wide / 2.0;
            let below = at.1 + PANEL.1 + 27.0;
            let _ = writeln!(t, "<text x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">seconds</text>");
        }
        lines_of(&mut t, compared, j, &panel);
    }
    t += "</svg>\n";
    Ok(t)
}

/// What was recorded under what was predicted.
fn lines_of(t: &mut String, compared: &Compared, j: usize, panel: &Panel) {
    let path = |start: usize, actions: &[Vec<f64>]| {
        let frame = |i: usize| compared.seconds(compared.first_frame + start + i);
        panel.line(actions.iter().enumerate().map(|(i, action)| (frame(i), action[j])))
    };
    let _ = writeln!(t, "<path class=\"recorded\" d=\"{}\"/>", path(0, &compared.recorded));
    for (i, chunk) in compared.chunks.iter().enumerate() {
        let (start, overlap) = compared.overlap(chunk);
        let colour = COLOURS[i % COLOURS.len()];
        let line = path(start, &chunk.actions[..overlap]);
        let _ = writeln!(t, "<path class=\"chunk\" stroke=\"{colour}\" d=\"{line}\"/>");
        let first = chunk.actions[0][j];
        if usable(first) && compared.chunks.len() <= MAX_DOTS {
            let (x, y) = (panel.across(compared.seconds(chunk.frame)), panel.down(first));
            let _ = writeln!(t, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\" fill=\"{colour}\"/>");
        }
    }
}

fn head(t: &mut String, compared: &Compared, metrics: &Metrics, width: f64) {
    let _ = writeln!(t, "<text class=\"title\" x=\"12\" y=\"24\">{}</text>", short(&compared.title, width, LETTER.0));
    let _ = writeln!(t, "<text x=\"12\" y=\"42\">{}</text>", short(&compared.subtitle, width, 5.8));
    let _ = writeln!(t, "<text x=\"12\" y=\"57\">{}</text>", short(&metrics.verdict(), width, 5.8));
    let _ = writeln!(t, "<path class=\"recorded\" d=\"M12 72h22\"/><text x=\"40\" y=\"75.5\">recorded</text>");
    for (i, colour) in COLOURS.iter().enumerate().take(compared.chunks.len()) {
        let x = 104.0 + 28.0 * i as f64;
        let _ = writeln!(t, "<path class=\"chunk\" stroke=\"{colour}\" d=\"M{x:.0} 72h22\"/>");
        let _ = writeln!(t, "<circle cx=\"{x:.0}\" cy=\"72\" r=\"2\" fill=\"{colour}\"/>");
    }
    let x = 108.0 + 28.0 * COLOURS.len().min(compared.chunks.len()) as f64;
    let words = format!("predicted, a line for each of {} chunks of {} steps", metrics.chunks, metrics.horizon);
    let _ = writeln!(t, "<text x=\"{x:.0}\" y=\"75.5\">{words}</text>");
}

/// The mean error over the horizon, and that of standing still.
pub fn horizon(metrics: &Metrics) -> String {
    let size = (620.0, 190.0);
    let of = |score: Option<Score>| score.and_then(|score| score.mae_of_range).map(|share| share * 100.0);
    let line = |f: fn(&Step) -> Option<Score>| {
        metrics.steps.iter().map(move |step| (step.seconds, of(f(step)).unwrap_or(f64::NAN)))
    };
    let (policy, hold) = (|| line(|step| step.scores.policy), || line(|step| step.scores.hold));
    let last = metrics.steps.last().map_or(0.0, |step| step.seconds);
    let values = policy().chain(hold()).map(|(_, share)| share).chain([0.0]);
    let mut panel = Panel::new((LEFT, 40.0), size, (0.0, last), values);
    // An error of nothing is the floor.
    panel.y.0 = 0.0;
    let mut t = String::new();
    begin(&mut t, (LEFT + size.0 + RIGHT, 40.0 + size.1 + BOTTOM), "Mean error over the horizon");
    let _ = writeln!(t, "<text class=\"name\" x=\"{LEFT}\" y=\"15\">mean error as a share of a joint's range</text>");
    let _ = writeln!(t, "<path d=\"M{LEFT} 28h22\" class=\"chunk\" stroke=\"{}\"/>", COLOURS[0]);
    let _ = writeln!(t, "<text x=\"{}\" y=\"31.5\">the policy</text>", LEFT + 28.0);
    let _ = writeln!(t, "<path d=\"M{} 28h22\" class=\"hold\"/>", LEFT + 100.0);
    let _ = writeln!(t, "<text x=\"{}\" y=\"31.5\">standing still</text>", LEFT + 128.0);
    panel.axes(&mut t, " %");
    let (middle, below) = (LEFT + size.0 / 2.0, 40.0 + size.1 + 29.0);
    let _ =
        writeln!(t, "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">seconds after the chunk's frame</text>");
    let _ = writeln!(t, "<path class=\"hold\" d=\"{}\"/>", panel.line(hold()));
    let _ = writeln!(t, "<path class=\"chunk\" stroke=\"{}\" d=\"{}\"/>", COLOURS[0], panel.line(policy()));
    t += "</svg>\n";
    t
}
