//! The curves of a run as pictures: steps from left to right, the newest at the right edge.
//!
//! Invariant: colours are the page's (classes and CSS variables); where a value is none the line has a gap, and the loss
//! bears a mark.

use std::fmt::Write as _;

use super::history::smooth;
use super::line::{Line, rate, share, value_of};
use crate::plot::escape;
use crate::plot::panel::Panel;

/// Pixels around a panel: its labels.
const LEFT: f64 = 58.0;
const TOP: f64 = 30.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 36.0;
/// Places on a curve that say what they are.
const MAX_HINTS: usize = 160;
/// Marks of values that are not finite, at most.
const MAX_MARKS: usize = 50;
/// Of values that differ by more, logarithms are shown.
const MAX_LINEAR: f64 = 30.0;

/// A curve.
pub(super) struct Curve {
    pub(super) name: &'static str,
    /// Width and height of the picture, in pixels.
    pub(super) size: (f64, f64),
    of: fn(&Line) -> f64,
    spelt: fn(f64) -> String,
    unit: &'static str,
    /// Is nothing the floor?
    from_zero: bool,
}

pub(super) const LOSS: Curve = Curve {
    name: "loss",
    size: (816.0, 472.0),
    of: |line| f64::from(line.loss),
    spelt: value_of,
    unit: "",
    from_zero: false,
};

const SMALL: Curve = Curve { size: (400.0, 228.0), ..LOSS };

/// The others, in the order in which they are shown.
pub(super) const OTHERS: [Curve; 5] = [
    Curve { name: "gradient norm, before clipping", of: |line| f64::from(line.grad_norm), ..SMALL },
    Curve {
        name: "learning rate",
        of: |line| f64::from(line.learning_rate),
        spelt: |value| rate(value as f32),
        from_zero: true,
        ..SMALL
    },
    Curve { name: "parameter norm", of: |line| f64::from(line.param_norm), spelt: |value| format!("{value}"), ..SMALL },
    Curve { name: "samples per second", of: |line| line.samples_per_s, from_zero: true, ..SMALL },
    Curve {
        name: "waiting for data, share of the time",
        of: |line| line.data_wait * 100.0,
        spelt: |value| share(value / 100.0),
        unit: " %",
        from_zero: true,
        ..SMALL
    },
];

/// How heights are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    Logarithmic,
}

/// Whether logarithms show more: all values are above 0, and they differ widely.
pub(super) fn scale(curve: &Curve, lines: &[Line]) -> Scale {
    let finite = lines.iter().map(curve.of).filter(|value| value.is_finite());
    let ends = finite.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    let wide = ends.0 > 0.0 && ends.1 > ends.0 * MAX_LINEAR;
    if wide && !curve.from_zero { Scale::Logarithmic } else { Scale::Linear }
}

/// About how many lines the smoothed loss is a mean of.
pub(super) fn window(lines: usize) -> usize {
    (lines / 40).max(4)
}

/// The picture of a curve; the loss with its mean, and with the steps that were saved.
pub(super) fn picture(curve: &Curve, lines: &[Line], scale: Scale, saved: &[u64]) -> String {
    let values: Vec<f64> = lines.iter().map(curve.of).collect();
    let means = (curve.name == LOSS.name).then(|| smooth(&values, window(lines.len()) as f64));
    let steps = || lines.iter().map(|line| line.step as f64);
    let last = lines.last().map_or(0, |line| line.step);
    let size = (curve.size.0 - LEFT - RIGHT, curve.size.1 - TOP - BOTTOM);
    let make = |values: &mut dyn Iterator<Item = f64>| match scale {
        Scale::Linear => Panel::new((LEFT, TOP), size, (0.0, last as f64), values),
        Scale::Logarithmic => Panel::logarithmic((LEFT, TOP), size, (0.0, last as f64), values),
    };
    let mut panel = make(&mut values.iter().copied().chain(curve.from_zero.then_some(0.0)));
    if curve.from_zero {
        panel.y.0 = 0.0;
    }
    let (right, bottom) = (LEFT + size.0, TOP + size.1);
    let mut t = String::new();
    let (width, height) = curve.size;
    let label = escape(curve.name);
    let _ = writeln!(
        t,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{label} over steps\">\n\
         <text class=\"name\" x=\"{LEFT}\" y=\"18\">{label}</text>"
    );
    if means.is_none() && scale == Scale::Logarithmic {
        let _ = writeln!(t, "<text x=\"{right}\" y=\"18\" text-anchor=\"end\">logarithmic</text>");
    }
    panel.grid(&mut t, &panel.step_marks(), &panel.down_marks(curve.unit));
    let below = bottom + 28.0;
    let _ = writeln!(t, "<text x=\"{:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">step</text>", LEFT + size.0 / 2.0);
    let class = if means.is_some() { "raw" } else { "line" };
    let path = |values: &[f64]| panel.line(steps().zip(values.iter().copied()));
    let _ = writeln!(t, "<path class=\"{class}\" d=\"{}\"/>", path(&values));
    if let Some(means) = &means {
        let _ = writeln!(t, "<path class=\"line\" d=\"{}\"/>", path(means));
        legend(&mut t, right, window(lines.len()), !saved.is_empty());
        for step in saved.iter().filter(|step| **step <= last) {
            let x = panel.across(*step as f64);
            let _ = writeln!(
                t,
                "<path class=\"saved\" d=\"M{x:.1} {bottom:.1}l-4 -7h8z\"><title>checkpoint {step}</title></path>"
            );
        }
        for (line, value) in lines.iter().zip(&values).filter(|(_, value)| !value.is_finite()).take(MAX_MARKS) {
            let x = panel.across(line.step as f64);
            let word = value_of(*value);
            let _ = writeln!(
                t,
                "<path class=\"bad\" d=\"M{:.1} {:.1}l8 8m0 -8l-8 8\"><title>step {}: {word}</title></path>",
                x - 4.0,
                TOP + 4.0,
                line.step
            );
        }
    }
    hints(&mut t, curve, &panel, lines, &values, means.as_deref());
    t += "</svg>\n";
    t
}

/// What the lines and marks of the loss are, at the right.
fn legend(t: &mut String, right: f64, window: usize, saved: bool) {
    let mean = format!("mean over about {window} lines");
    let mut x = right - 5.4 * mean.len() as f64;
    let _ =
        writeln!(t, "<text x=\"{x:.1}\" y=\"18\">{mean}</text><path class=\"line\" d=\"M{:.1} 14.5h18\"/>", x - 23.0);
    x -= 23.0 + 62.0;
    let _ =
        writeln!(t, "<text x=\"{x:.1}\" y=\"18\">as it was</text><path class=\"raw\" d=\"M{:.1} 14.5h18\"/>", x - 23.0);
    if saved {
        x -= 23.0 + 74.0;
        let _ = writeln!(
            t,
            "<text x=\"{x:.1}\" y=\"18\">checkpoint</text><path class=\"saved\" d=\"M{:.1} 18l-4 -7h8z\"/>",
            x - 9.0
        );
    }
}

/// Columns that say, under the pointer, what the curve is there.
fn hints(t: &mut String, curve: &Curve, panel: &Panel, lines: &[Line], values: &[f64], means: Option<&[f64]>) {
    let count = lines.len().min(MAX_HINTS);
    let (top, bottom) = (panel.at.1, panel.at.1 + panel.size.1);
    let (left, right) = (panel.at.0, panel.at.0 + panel.size.0);
    let places: Vec<usize> = (1..=count).map(|i| i * lines.len() / count - 1).collect();
    let x = |place: usize| panel.across(lines[place].step as f64);
    for (i, place) in places.iter().enumerate() {
        let here = x(*place);
        let from = if i == 0 { left } else { (x(places[i - 1]) + here) / 2.0 };
        let to = places.get(i + 1).map_or(right, |next| (here + x(*next)) / 2.0);
        let mut text = format!("step {}: {}", lines[*place].step, (curve.spelt)(values[*place]));
        if let Some(means) = means {
            text += &format!(", mean {}", (curve.spelt)(means[*place]));
        }
        let (width, text) = (to - from, escape(&text));
        let _ = write!(
            t,
            "<g class=\"hint\"><title>{text}</title><rect x=\"{from:.1}\" y=\"{top:.0}\" width=\"{width:.1}\" \
             height=\"{:.0}\"/><path d=\"M{here:.1} {top:.0}V{bottom:.0}\"/>",
            bottom - top
        );
        let y = panel.down(values[*place]);
        if y.is_finite() {
            let _ = write!(t, "<circle cx=\"{here:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        }
        t.push_str("</g>\n");
    }
}
