//! The report of an episode: one file with all in it, for whoever was not there when it ran.
//!
//! Invariant: no script, and nothing is fetched from elsewhere; every text in it is escaped.

use std::fmt::Write as _;

use anyhow::Result;

use super::metrics::{HEADS, Metrics, cells};
use super::{Compared, escape, number, svg};
use crate::plot::base64;

/// Bytes of pictures at most; what is beyond is left out, with a word about it.
const MAX_IMAGE_BYTES: usize = 16 << 20;
/// Prompts at most, where they differ along the episode.
const MAX_PROMPTS: usize = 8;

const STYLE: &str = "\
  :root { color-scheme: light; }
  body { margin: 2rem auto; max-width: 1260px; padding: 0 1rem; background: #ffffff; color: #1f2328;
    font: 15px/1.5 system-ui, sans-serif; }
  h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
  h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
  p { margin: 0.4rem 0; max-width: 80ch; }
  .quiet { color: #59636e; overflow-wrap: anywhere; }
  .verdict { font-weight: 600; }
  .wide { overflow-x: auto; }
  .wide svg { max-width: 100%; height: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid #eaeef2; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
  tr.all td { border-top: 2px solid #afb8c1; font-weight: 600; }
  blockquote { margin: 0.4rem 0; padding: 0.2rem 0.8rem; border-left: 3px solid #afb8c1; white-space: pre-wrap;
    overflow-wrap: anywhere; }
  figure { display: inline-block; margin: 0 1rem 1rem 0; }
  figure img { display: block; width: 224px; image-rendering: auto; border: 1px solid #afb8c1; }
  figcaption { font-size: 0.85rem; color: #59636e; }";

/// The page.
///
/// # Errors
/// What [`Compared::check`] refuses.
pub fn page(compared: &Compared, metrics: &Metrics) -> Result<String> {
    let panels = svg::panels(compared, metrics)?;
    let (title, subtitle) = (escape(&compared.title), escape(&compared.subtitle));
    let mut t = String::new();
    let _ = writeln!(
        t,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p class=\"quiet\">{subtitle}</p>"
    );
    let Metrics { frames, chunks, horizon, compared: steps, padded, not_finite, .. } = metrics;
    let seconds = number(*frames as f64 / compared.fps);
    let fps = number(compared.fps);
    let infer = number(metrics.infer_ms_p50);
    let _ = writeln!(
        t,
        "<p class=\"quiet\">{frames} frames at {fps} fps ({seconds} s) · {chunks} chunks of {horizon} steps · {steps} steps \
         compared, {padded} beyond the end · {infer} ms a chunk (median)</p>"
    );
    let _ = writeln!(t, "<p class=\"verdict\">{}.</p>", escape(&capital(&metrics.verdict())));
    if *not_finite > 0 {
        let _ = writeln!(t, "<p class=\"verdict\">{not_finite} values are not finite and were left out.</p>");
    }
    prompts(&mut t, compared);
    images(&mut t, compared);
    let _ = writeln!(t, "<h2>Recorded and predicted</h2>\n<div class=\"wide\">\n{panels}</div>");
    let _ = writeln!(t, "<h2>Error over the horizon</h2>\n<div class=\"wide\">\n{}</div>", svg::horizon(metrics));
    table(&mut t, metrics);
    t += "</body>\n</html>\n";
    Ok(t)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn table(t: &mut String, metrics: &Metrics) {
    let row = |t: &mut String, class: &str, tag: &str, cells: &[String; 8]| {
        let _ = write!(t, "<tr{class}>");
        for cell in cells {
            let _ = write!(t, "<{tag}>{}</{tag}>", escape(cell));
        }
        t.push_str("</tr>\n");
    };
    t.push_str("<h2>Errors by joint, worst first</h2>\n<div class=\"wide\">\n<table>\n");
    row(t, "", "th", &HEADS.map(str::to_owned));
    for joint in metrics.worst_first() {
        row(t, "", "td", &cells(&joint.name, &joint.scores));
    }
    row(t, " class=\"all\"", "td", &cells("all", &metrics.all));
    t.push_str(
        "</table>\n</div>\n<p class=\"quiet\">mae: mean absolute error, rmse: root mean square error, max: the largest, in the \
         robot's units. Shares are of the range that the joint's recorded actions span. holding: mae/range of a robot that \
         holds the last action before each chunk; vs holding: the policy's error as a part of that, below ×1 is better.</p>\n",
    );
}

/// Each prompt that was given, in the order in which it first was.
fn prompts(t: &mut String, compared: &Compared) {
    let mut all: Vec<&str> = vec![];
    for chunk in &compared.chunks {
        if !chunk.prompt.is_empty() && !all.contains(&chunk.prompt.as_str()) && all.len() <= MAX_PROMPTS {
            all.push(&chunk.prompt);
        }
    }
    if all.is_empty() {
        return;
    }
    t.push_str("<h2>Prompt</h2>\n");
    for prompt in all.iter().take(MAX_PROMPTS) {
        let _ = writeln!(t, "<blockquote>{}</blockquote>", escape(prompt));
    }
    if all.len() > MAX_PROMPTS {
        t.push_str("<p class=\"quiet\">… and others</p>\n");
    }
}

/// What the policy saw first.
fn images(t: &mut String, compared: &Compared) {
    let Some(chunk) = compared.chunks.first().filter(|chunk| !chunk.images.is_empty()) else { return };
    let _ = writeln!(t, "<h2>What it saw at frame {}</h2>", chunk.frame);
    let mut bytes = 0;
    for (name, png) in &chunk.images {
        bytes += png.len();
        let name = escape(name);
        if bytes > MAX_IMAGE_BYTES {
            let _ = writeln!(t, "<p class=\"quiet\">{name}: too large to be shown</p>");
            continue;
        }
        let data = base64(png);
        let _ = writeln!(
            t,
            "<figure><img alt=\"{name}\" src=\"data:image/png;base64,{data}\"><figcaption>{name}</figcaption></figure>"
        );
    }
}
