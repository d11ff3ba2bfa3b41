//! A panel: a place on a picture where numbers have a height, its axes, and lines on it.
//!
//! Invariant: a line has a gap where a value is none. Colours and fonts are those of the picture: a panel names classes
//! (`frame`, `tick`, `zero`) and whoever draws says how they look; [`STYLE`] is how pages with recorded values do.

use std::fmt::Write as _;

use super::{brief, escape, usable};

/// The look of a page of panels with recorded values: quiet frames, a broad grey line for what was recorded.
pub const STYLE: &str = "\
  text { font: 10px system-ui, 'DejaVu Sans', sans-serif; fill: #424a53; }
  .title { font-size: 16px; font-weight: 600; fill: #1f2328; }
  .name { font-size: 11px; font-weight: 600; fill: #1f2328; }
  .frame { fill: none; stroke: #afb8c1; }
  .tick { stroke: #eaeef2; }
  .zero { stroke: #afb8c1; }
  .recorded { fill: none; stroke: #a8b1bb; stroke-width: 3.2; stroke-linejoin: round; stroke-linecap: round; }";

/// A panel: where it stands and what its edges mean.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Its left upper corner, in pixels.
    pub at: (f64, f64),
    /// Width and height, in pixels.
    pub size: (f64, f64),
    /// What its left and right edges mean.
    pub x: (f64, f64),
    /// What its lower and upper edges mean; logarithms to the base of ten where `log`.
    pub y: (f64, f64),
    /// Are heights logarithms?
    pub log: bool,
}

/// A mark on an axis: where, and what stands there.
pub type Mark = (f64, String);

impl Panel {
    /// A panel as high as the values need.
    pub fn new(at: (f64, f64), size: (f64, f64), x: (f64, f64), values: impl Iterator<Item = f64>) -> Self {
        let mut y = values.filter(|v| usable(*v)).map(|v| (v, v)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        let (low, high) = y.get_or_insert((0.0, 0.0));
        // Air above and below; around what never moves, as much as it is large.
        let air = if high > low { (*high - *low) * 0.06 } else { high.abs().max(1.0) * 0.5 };
        let x = if x.1 > x.0 { x } else { (x.0, x.0 + 1.0) };
        Panel { at, size, x, y: (*low - air, *high + air), log: false }
    }

    /// The same, with logarithms for heights; what is not above 0 has none.
    pub fn logarithmic(at: (f64, f64), size: (f64, f64), x: (f64, f64), values: impl Iterator<Item = f64>) -> Self {
        Panel { log: true, ..Self::new(at, size, x, values.map(logarithm)) }
    }

    /// Where a value of the x axis is, in pixels.
    pub fn across(&self, x: f64) -> f64 {
        self.at.0 + self.size.0 * (x - self.x.0) / (self.x.1 - self.x.0)
    }

    /// Where a value of the y axis is, in pixels; not a number where it has no height.
    pub fn down(&self, y: f64) -> f64 {
        let y = if self.log { logarithm(y) } else { y };
        self.at.1 + self.size.1 * (self.y.1 - y) / (self.y.1 - self.y.0)
    }

    /// Lines and labels of both axes, and the frame.
    pub fn axes(&self, t: &mut String, y_unit: &str) {
        self.grid(t, &self.across_marks(), &self.down_marks(y_unit));
    }

    /// The frame, and the marks of both axes.
    pub fn grid(&self, t: &mut String, across: &[Mark], down: &[Mark]) {
        let ((x, y), (w, h)) = (self.at, self.size);
        let (right, bottom) = (x + w, y + h);
        for (value, label) in down {
            let (at, class) = (self.down(*value), if *value == 0.0 { "zero" } else { "tick" });
            let _ =
                writeln!(t, "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{at:.1}\" x2=\"{right:.1}\" y2=\"{at:.1}\"/>");
            let (x, y) = (x - 5.0, at + 3.5);
            let _ = writeln!(t, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>", escape(label));
        }
        for (value, label) in across {
            let (at, below) = (self.across(*value), bottom + 13.0);
            let _ =
                writeln!(t, "<line class=\"tick\" x1=\"{at:.1}\" y1=\"{y:.1}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\"/>");
            let _ = writeln!(t, "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>", escape(label));
        }
        let _ = writeln!(t, "<rect class=\"frame\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\"/>");
    }

    /// Round numbers of the x axis.
    pub fn across_marks(&self) -> Vec<Mark> {
        ticks(self.x, 5.0)
    }

    /// Round numbers of the y axis, each with its unit.
    pub fn down_marks(&self, unit: &str) -> Vec<Mark> {
        let marks = if self.log { decades(self.y) } else { None };
        let marks = marks.unwrap_or_else(|| {
            let ends = if self.log { (10_f64.powf(self.y.0), 10_f64.powf(self.y.1)) } else { self.y };
            ticks(ends, 4.0)
        });
        marks.into_iter().map(|(value, label)| (value, label + unit)).collect()
    }

    /// Whole numbers of the x axis that are multiples of a round one: `0`, `500`, `12.5k`, `1M`.
    pub fn step_marks(&self) -> Vec<Mark> {
        let whole = ticks(self.x, 5.0).into_iter().filter(|(value, _)| value.fract() == 0.0);
        whole.map(|(value, _)| (value, thousands(value))).collect()
    }

    /// A path that is broken where a value is none.
    pub fn line(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        /// First, least, largest and last of a column of pixels.
        fn draw(path: &mut String, pen: &mut char, column: Option<(f64, [f64; 4])>) {
            let Some((x, heights)) = column else { return };
            let mut drawn = f64::NAN;
            for y in heights {
                if y != drawn {
                    let _ = write!(path, "{pen}{x:.1} {y:.1}");
                    (*pen, drawn) = ('L', y);
                }
            }
        }
        let (mut path, mut pen) = (String::new(), 'M');
        // A line needs no more points on one column of pixels than that.
        let mut column: Option<(f64, [f64; 4])> = None;
        for (x, y) in points {
            let (x, y) = (self.across(x), if usable(y) { self.down(y) } else { f64::NAN });
            if y.is_nan() {
                draw(&mut path, &mut pen, column.take());
                pen = 'M';
                continue;
            }
            match &mut column {
                Some((at, [_, low, high, last])) if x - *at < 0.5 => {
                    (*low, *high, *last) = (low.min(y), high.max(y), y)
                }
                _ => {
                    draw(&mut path, &mut pen, column.take());
                    column = Some((x, [y; 4]));
                }
            }
        }
        draw(&mut path, &mut pen, column);
        // A line of one point is a dot, by its round cap.
        if path.matches(['M', 'L']).count() == 1 { path + "h0" } else { path }
    }
}

fn logarithm(value: f64) -> f64 {
    if value > 0.0 { value.log10() } else { f64::NAN }
}

/// 1, and 2 and 5 if there is room, of every power of ten between the ends; none if that would be fewer than two.
fn decades((low, high): (f64, f64)) -> Option<Vec<Mark>> {
    let (first, last) = (low.floor() as i32, high.ceil() as i32);
    let apart = ((high - low) / 6.0).ceil().max(1.0) as usize;
    let digits: &[f64] = if high - low < 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let values = (first..=last).step_by(apart).flat_map(|power| digits.iter().map(move |d| d * 10_f64.powi(power)));
    let marks: Vec<Mark> =
        values.filter(|value| (low..=high).contains(&value.log10())).map(|value| (value, brief(value))).collect();
    (marks.len() >= 2).then_some(marks)
}

/// Round numbers between the ends, about `count` of them.
fn ticks((low, high): (f64, f64), count: f64) -> Vec<Mark> {
    let rough = (high - low) / count;
    let power = rough.log10().floor();
    let ten = 10_f64.powf(power);
    let step = [1.0, 2.0, 5.0].map(|n| n * ten).into_iter().find(|step| *step >= rough * 0.7).unwrap_or(10.0 * ten);
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    // Beyond what f64 tells apart there is nothing to mark.
    if !step.is_finite() || last - first > 2.0 * count || last < first || low + step == low {
        return vec![];
    }
    let values = (0..=(last - first) as usize).map(|i| (first + i as f64) * step + 0.0);
    values.map(|value| (value, tick(value, step))).collect()
}

/// A multiple of `step`, with the digits that tell it from the next.
fn tick(value: f64, step: f64) -> String {
    let power = |x: f64| x.abs().log10().floor();
    let digits = (-power(step)).clamp(0.0, 12.0) as usize;
    if digits > 4 || value.abs() >= 1e5 {
        if value == 0.0 {
            return "0".to_owned();
        }
        let digits = (power(value) - power(step)).clamp(0.0, 12.0) as usize;
        return format!("{value:.digits$e}");
    }
    format!("{value:.digits$}")
}

fn thousands(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{}M", value / 1e6),
        size if size >= 1e4 => format!("{}k", value / 1e3),
        _ => format!("{value}"),
    }
}

/// At most so many letters of so many pixels each, escaped.
pub fn short(text: &str, width: f64, letter: f64) -> String {
    let letters = (width / letter).max(4.0) as usize;
    if text.chars().count() <= letters {
        return escape(text);
    }
    escape(&(text.chars().take(letters - 1).collect::<String>() + "…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(marks: &[Mark]) -> Vec<&str> {
        marks.iter().map(|(_, label)| label.as_str()).collect()
    }

    fn panel(log: bool, x: (f64, f64), values: [f64; 3]) -> Panel {
        let (at, size, values) = ((0.0, 0.0), (100.0, 100.0), values.into_iter());
        if log { Panel::logarithmic(at, size, x, values) } else { Panel::new(at, size, x, values) }
    }

    #[test]
    fn steps_are_marked_by_whole_numbers() {
        assert_eq!(labels(&panel(false, (0.0, 3.0), [0.0; 3]).step_marks()), ["0", "1", "2", "3"]);
        let far = panel(false, (0.0, 30_000.0), [0.0; 3]).step_marks();
        assert_eq!(labels(&far), ["0", "5000", "10k", "15k", "20k", "25k", "30k"]);
        assert_eq!(labels(&panel(false, (0.0, 4e6), [0.0; 3]).step_marks()).last(), Some(&"4M"));
    }

    #[test]
    fn logarithms_are_marked_by_powers_of_ten_or_by_round_numbers() {
        assert_eq!(labels(&panel(true, (0.0, 1.0), [1.2, 0.002, 0.5]).down_marks("")), ["0.01", "0.1", "1"]);
        assert_eq!(labels(&panel(true, (0.0, 1.0), [1.2, 0.18, 0.5]).down_marks("")), ["0.2", "0.5", "1"]);
        let close = panel(true, (0.0, 1.0), [0.31, 0.32, 0.33]).down_marks(" s");
        assert!(close.len() >= 2 && close.iter().all(|(_, label)| label.ends_with(" s")), "{close:?}");
        let wide = panel(true, (0.0, 1.0), [1e-30, 1.0, 1e30]).down_marks("");
        assert!((3..12).contains(&wide.len()), "{wide:?}");
    }

    #[test]
    fn marks_beside_each_other_read_differently() {
        assert_eq!(labels(&ticks((0.0, 2.5e-5), 4.0)), ["0", "5e-6", "1.0e-5", "1.5e-5", "2.0e-5", "2.5e-5"]);
        assert_eq!(labels(&ticks((180_210.0, 180_250.0), 4.0))[..2], ["1.8021e5", "1.8022e5"]);
        assert_eq!(labels(&ticks((1802.1, 1802.5), 4.0))[..2], ["1802.1", "1802.2"]);
    }

    #[test]
    fn what_has_no_logarithm_is_a_gap() {
        let panel = panel(true, (0.0, 4.0), [0.1, 1.0, 10.0]);
        let path =
            panel.line([0.1, -1.0, 1.0, 0.0, f64::NAN, 10.0].into_iter().enumerate().map(|(x, y)| (x as f64, y)));
        assert_eq!(path.matches('M').count(), 3, "{path}");
        assert!(!path.contains("NaN"), "{path}");
        assert!(panel.down(10.0) < panel.down(0.1));
    }
}
