//! `report.html`: a run for whoever opens it in a browser, while it runs and after.
//!
//! Invariant: no script, and nothing is fetched from elsewhere; every text in it is escaped; it is light or dark as the
//! reader's screen is.

use std::fmt::Write as _;
use std::time::SystemTime;

use super::curves::{self, LOSS, OTHERS, Scale};
use super::line::{Line, duration, rate, share, value_of};
use super::pictures::Shown;
use super::{Header, since_epoch};
use crate::plot::{base64, count, escape};

/// Bytes of pictures at most; what is beyond is left out, with a word about it.
const MAX_IMAGE_BYTES: usize = 16 << 20;

const STYLE: &str = "\
  :root { color-scheme: light dark; --ground: #ffffff; --card: #f6f8fa; --ink: #1f2328; --quiet: #59636e;
    --edge: #afb8c1; --grid: #eaeef2; --raw: #a9cdea; --line: #0072b2; --bad: #c4320a; --saved: #009e73; }
  @media (prefers-color-scheme: dark) {
    :root { --ground: #0d1117; --card: #161b22; --ink: #e6edf3; --quiet: #9198a1; --edge: #3d444d; --grid: #21262d;
      --raw: #2b5a80; --line: #58a6ff; --bad: #ff7b72; --saved: #3fb950; }
  }
  body { margin: 2rem auto; max-width: 1240px; padding: 0 1rem; background: var(--ground); color: var(--ink);
    font: 15px/1.5 system-ui, 'DejaVu Sans', sans-serif; }
  h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
  h2 { font-size: 1.1rem; margin: 2rem 0 0.6rem; }
  p { margin: 0.3rem 0; max-width: 90ch; }
  .quiet { color: var(--quiet); overflow-wrap: anywhere; }
  .bad-word { color: var(--bad); font-weight: 600; }
  .bar { height: 6px; border-radius: 3px; background: var(--grid); margin: 0.8rem 0; overflow: hidden; }
  .bar div { height: 100%; background: var(--line); }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin: 1rem 0; }
  .cards div { background: var(--card); border: 1px solid var(--grid); border-radius: 6px; padding: 0.4rem 0.8rem; }
  .cards b { display: block; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
  .cards span { font-size: 0.8rem; color: var(--quiet); }
  .curves { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 16px 12px; }
  .curves .loss { grid-column: span 2; grid-row: span 2; position: relative; }
  .curves svg { display: block; width: 100%; height: auto; }
  .loss input { position: absolute; opacity: 0; }
  .loss label { display: inline-block; font-size: 0.8rem; color: var(--quiet); cursor: pointer; padding: 0 0.5rem;
    border: 1px solid var(--grid); border-radius: 4px; }
  .loss .scales { text-align: right; height: 0; position: relative; top: 2.2rem; right: 1.8rem; z-index: 1; }
  .loss input:focus-visible ~ .scales { outline: 1px solid var(--line); }
  #linear:checked ~ .logarithmic, #logarithmic:checked ~ .linear { display: none; }
  #linear:checked ~ .scales label[for=linear], #logarithmic:checked ~ .scales label[for=logarithmic] {
    color: var(--ink); border-color: var(--edge); background: var(--card); }
  @media (max-width: 900px) { .curves { grid-template-columns: minmax(0, 1fr); } .curves .loss { grid-column: auto; } }
  svg text { font: 10px system-ui, 'DejaVu Sans', sans-serif; fill: var(--quiet); }
  svg .name { font-size: 12px; font-weight: 600; fill: var(--ink); }
  svg .frame { fill: none; stroke: var(--edge); }
  svg .tick { stroke: var(--grid); }
  svg .zero { stroke: var(--edge); }
  svg .raw, svg .line { fill: none; stroke-linejoin: round; stroke-linecap: round; }
  svg .raw { stroke: var(--raw); stroke-width: 1.1; }
  svg .line { stroke: var(--line); stroke-width: 1.6; }
  svg .saved { fill: var(--saved); }
  svg .bad { fill: none; stroke: var(--bad); stroke-width: 1.8; }
  .hint rect { fill: none; pointer-events: all; }
  .hint path, .hint circle { visibility: hidden; stroke: var(--edge); fill: var(--line); pointer-events: none; }
  .hint:hover path, .hint:hover circle { visibility: visible; }
  dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.15rem 1.2rem; margin: 0; }
  dt { color: var(--quiet); }
  dd { margin: 0; overflow-wrap: anywhere; }
  details { margin: 0.6rem 0; }
  summary { cursor: pointer; color: var(--quiet); }
  .example { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 0 0 1.2rem; align-items: flex-start; }
  .example .about { flex: 1 1 220px; min-width: 0; }
  .example blockquote { margin: 0; padding: 0 0.8rem; border-left: 3px solid var(--edge); white-space: pre-wrap;
    overflow-wrap: anywhere; }
  figure { margin: 0; }
  figure img { display: block; width: 224px; max-width: 100%; height: auto; border: 1px solid var(--edge); }
  figcaption { font-size: 0.85rem; color: var(--quiet); }
  .saves { font-variant-numeric: tabular-nums; }
  .saves s { color: var(--quiet); }";

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Closed,
}

/// What the page is made of, but for the pictures.
pub(super) struct Page<'a> {
    pub(super) header: &'a Header,
    pub(super) lines: &'a [Line],
    /// Steps that were saved, and whether they are still there.
    pub(super) saved: &'a [(u64, bool)],
    /// What [`examples`] made of the first batch.
    pub(super) examples: &'a str,
    pub(super) state: State,
    pub(super) now: SystemTime,
}

/// The page.
pub(super) fn page(page: &Page) -> String {
    let Header { config, exp, .. } = page.header;
    let title = escape(&format!("{exp} · {config}"));
    let mut t = String::new();
    let _ = writeln!(
        t,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>"
    );
    let _ = writeln!(t, "<p class=\"quiet\">{}</p>", escape(&page.header.summary()));
    state(&mut t, page);
    curves(&mut t, page);
    saved(&mut t, page);
    t += page.examples;
    t.push_str("<h2>The run</h2>\n<dl>\n");
    for (name, value) in page.header.facts() {
        let _ = writeln!(t, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(&value));
    }
    t.push_str("</dl>\n");
    if !page.header.settings.is_empty() {
        t.push_str("<details><summary>all settings</summary>\n<dl>\n");
        for (name, value) in &page.header.settings {
            let _ = writeln!(t, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        }
        t.push_str("</dl>\n</details>\n");
    }
    t += "</body>\n</html>\n";
    t
}

/// How far it is, and the newest line.
fn state(t: &mut String, page: &Page) {
    let (total, last) = (page.header.steps, page.lines.last());
    let step = last.map_or(0, |line| line.step);
    let part = if total > 0 { (step as f64 / total as f64).min(1.0) * 100.0 } else { 0.0 };
    let word = match page.state {
        State::Running => "training",
        State::Closed if step >= total => "done",
        State::Closed => "stopped",
    };
    let left = last.filter(|_| page.state == State::Running && step < total).and_then(|line| line.seconds_left(total));
    let eta = left.map(|seconds| format!(" · {} to go", duration(seconds))).unwrap_or_default();
    let (step, total) = (count(step), count(total));
    let _ = writeln!(
        t,
        "<p class=\"quiet\">{word} · step {step} of {total} ({part:.0} %){eta} · as of {}</p>\n\
         <div class=\"bar\"><div style=\"width: {part:.1}%\"></div></div>",
        date(page.now)
    );
    let Some(line) = last else { return };
    let cards = [
        ("loss", value_of(f64::from(line.loss))),
        ("gradient norm", value_of(f64::from(line.grad_norm))),
        ("learning rate", rate(line.learning_rate)),
        ("samples per second", value_of(line.samples_per_s)),
        ("waiting for data", share(line.data_wait)),
        ("samples", count(line.samples)),
        ("time", duration(line.seconds)),
    ];
    t.push_str("<div class=\"cards\">\n");
    for (name, value) in cards {
        let _ = writeln!(t, "<div><span>{name}</span><b>{}</b></div>", escape(&value));
    }
    t.push_str("</div>\n");
    let bad: Vec<u64> = page.lines.iter().filter(|line| !line.loss.is_finite()).map(|line| line.step).collect();
    if let Some(first) = bad.first() {
        let lines = if bad.len() == 1 { "1 line".to_owned() } else { format!("{} lines", count(bad.len() as u64)) };
        let first = count(*first);
        let _ = writeln!(t, "<p class=\"bad-word\">The loss was not finite in {lines}, first at step {first}.</p>");
    }
}

fn curves(t: &mut String, page: &Page) {
    if page.lines.is_empty() {
        t.push_str("<p class=\"quiet\">No step has been written down yet.</p>\n");
        return;
    }
    let steps: Vec<u64> = page.saved.iter().map(|(step, _)| *step).collect();
    let picture = |curve, scale| curves::picture(curve, page.lines, scale, &steps);
    t.push_str("<h2>Curves</h2>\n<div class=\"curves\">\n<div class=\"loss\">\n");
    let shown = curves::scale(&LOSS, page.lines);
    for (scale, name) in [(Scale::Logarithmic, "logarithmic"), (Scale::Linear, "linear")] {
        let checked = if scale == shown { " checked" } else { "" };
        let _ = writeln!(t, "<input type=\"radio\" name=\"scale\" id=\"{name}\"{checked}>");
    }
    t.push_str(
        "<div class=\"scales\"><label for=\"logarithmic\">logarithmic</label> <label for=\"linear\">linear</label></div>\n",
    );
    let _ = writeln!(t, "<div class=\"logarithmic\">\n{}</div>", picture(&LOSS, Scale::Logarithmic));
    let _ = writeln!(t, "<div class=\"linear\">\n{}</div>\n</div>", picture(&LOSS, Scale::Linear));
    for curve in &OTHERS {
        let _ = writeln!(t, "<div>\n{}</div>", picture(curve, curves::scale(curve, page.lines)));
    }
    t.push_str("</div>\n");
}

fn saved(t: &mut String, page: &Page) {
    if page.saved.is_empty() {
        return;
    }
    t.push_str("<h2>Checkpoints</h2>\n<p class=\"saves\">");
    for (i, (step, kept)) in page.saved.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = if *kept { write!(t, "{comma}{step}") } else { write!(t, "{comma}<s>{step}</s>") };
    }
    t.push_str("</p>\n");
    if page.saved.iter().any(|(_, kept)| !kept) {
        t.push_str("<p class=\"quiet\">Those that are struck out have since been removed.</p>\n");
    }
}

/// The part of the page that shows the first batch; it does not change while a run goes on.
pub(super) fn examples(shown: &[Shown]) -> String {
    let mut t = String::new();
    if shown.is_empty() {
        return t;
    }
    t.push_str("<h2>The first batch, before it is augmented</h2>\n");
    let mut bytes = 0;
    for example in shown {
        let (dataset, frame) = (escape(&example.dataset), count(example.frame));
        let prompt = escape(&example.prompt);
        t.push_str("<div class=\"example\">\n");
        for picture in &example.pictures {
            bytes += picture.png.len();
            let camera = escape(&picture.camera);
            if bytes > MAX_IMAGE_BYTES {
                let _ = writeln!(t, "<p class=\"quiet\">{camera}: too large to be shown</p>");
                continue;
            }
            let data = base64(&picture.png);
            let _ = writeln!(
                t,
                "<figure><img alt=\"{camera}\" src=\"data:image/png;base64,{data}\"><figcaption>{camera}</figcaption></figure>"
            );
        }
        let _ = writeln!(
            t,
            "<div class=\"about\"><blockquote>{prompt}</blockquote><p class=\"quiet\">{dataset}, frame {frame}</p></div>\n</div>"
        );
    }
    t
}

/// A moment, to the second, in the time of Greenwich.
fn date(now: SystemTime) -> String {
    let seconds = since_epoch(now).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, in eras of 400: the day that leaps is the last (Hinnant, chrono-compatible low-level
    // date algorithms).
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + later;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_spelt_as_the_calendar_has_it() {
        let at = |seconds| date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59 UTC");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }
}
