//! Numbers to verdicts.
//!
//! f32: the largest difference, as a share of the recorded array's largest absolute value. bf16: two computations in
//! bf16 differ from each other by as much as they differ from the truth, so ours is held against the f32 set: its error
//! (root of the sum of squares) may be no larger than the recording's own, times a factor.

use serde::Serialize;

use super::set::{Set, Tolerance};
use super::view;
use crate::verify::record::Recording;
use crate::weights::arrays::Array;

/// One array, compared.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Its name in the golden set.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Largest absolute difference to the recording.
    pub max_abs: f64,
    /// That, as a share of the recording's largest absolute value.
    pub relative: f64,
    /// Cosine to the recording.
    pub cosine: f64,
    /// bf16: our error against the f32 set over the recording's own.
    pub error_ratio: Option<f64>,
    /// What was allowed: `relative 1e-5`, `absolute 3e-4`, `error ratio 1.1, cosine 0.999`, `equal`.
    pub allowed: String,
    /// Why this one has a tolerance of its own.
    pub reason: Option<String>,
    /// Is it near enough?
    pub ok: bool,
    /// Where in a stack of layers the first one departs: `layer 1`.
    pub at: Option<String>,
    /// What is wrong beyond numbers: a shape, NaN, an array that the model does not produce.
    pub fault: Option<String>,
}

/// Compares every recorded array, in the order in which the model computes them.
pub fn compare(set: &Set, recording: &Recording) -> Vec<Line> {
    let order = |of: &str| recording.order.iter().position(|n| n == of).unwrap_or(usize::MAX);
    let mut lines: Vec<(usize, Line)> = vec![];
    for (name, golden) in &set.arrays {
        if view::is_input(name) {
            continue;
        }
        let line = match view::find(name, &set.arrays, recording) {
            Some((of, ours)) => (order(&of), line(set, name, golden, &ours)),
            None => (usize::MAX, fault(name, golden, "recorded, but this model does not produce it".into())),
        };
        lines.push(line);
    }
    lines.sort_by_key(|(order, _)| *order);
    lines.into_iter().map(|(_, line)| line).collect()
}

fn fault(name: &str, golden: &Array, fault: String) -> Line {
    Line {
        name: name.to_owned(),
        shape: golden.shape.clone(),
        max_abs: f64::NAN,
        relative: f64::NAN,
        cosine: f64::NAN,
        error_ratio: None,
        allowed: String::new(),
        reason: None,
        ok: false,
        at: None,
        fault: Some(fault),
    }
}

fn line(set: &Set, name: &str, golden: &Array, ours: &Array) -> Line {
    if ours.shape != golden.shape {
        return fault(name, golden, format!("found shape {:?}, expected {:?}", ours.shape, golden.shape));
    }
    if let Some(at) = ours.values.iter().position(|v| !v.is_finite()) {
        return fault(name, golden, format!("value {at} is {}", ours.values[at]));
    }
    let m = measure(&ours.values, &golden.values);
    let mut line = Line {
        name: name.to_owned(),
        shape: golden.shape.clone(),
        max_abs: m.max_abs,
        relative: m.max_abs / m.largest.max(f64::MIN_POSITIVE),
        cosine: m.cosine,
        error_ratio: None,
        allowed: String::new(),
        reason: None,
        ok: false,
        at: None,
        fault: None,
    };
    if m.max_abs == 0.0 {
        line.relative = 0.0;
    }
    let tolerance = &set.document.tolerance;
    let exact = golden.dtype == "bool" || golden.dtype.starts_with("int") || name == "infer/tokens";
    let truth = set.reference.as_ref().and_then(|r| r.get(name)).filter(|t| t.shape == golden.shape);
    if exact {
        (line.allowed, line.ok) = ("equal".into(), m.max_abs == 0.0);
        if let (true, Some(_)) = (name == "infer/tokens", &set.reference) {
            // Greedy tokens of bf16 runs may part at a tie of rounded logits; the logits are held to their own bounds.
            (line.allowed, line.ok) = ("told, not held: bf16 logits tie".into(), true);
        }
    } else if let Some(truth) = truth {
        in_bf16(&mut line, tolerance, [&ours.values, &golden.values, &truth.values]);
    } else {
        in_f32(&mut line, tolerance);
    }
    if !line.ok && golden.shape.len() == 5 && ["/kv_k", "/kv_v"].iter().any(|end| name.ends_with(end)) {
        line.at = first_layer(&ours.values, &golden.values, golden.shape[0], m.max_abs);
    }
    line
}

/// The first layer of `[L, ..]` that is off by a tenth of the largest difference.
fn first_layer(ours: &[f32], golden: &[f32], layers: usize, max_abs: f64) -> Option<String> {
    let n = golden.len() / layers.max(1);
    let off = |l: &usize| measure(&ours[l * n..(l + 1) * n], &golden[l * n..(l + 1) * n]).max_abs > max_abs / 10.0;
    (0..layers).find(off).map(|l| format!("layer {l}"))
}

fn in_f32(line: &mut Line, tolerance: &Tolerance) {
    let exception = tolerance.exception(&line.name);
    line.reason = exception.map(|e| e.reason.clone());
    if let Some(absolute) = exception.and_then(|e| e.absolute) {
        (line.allowed, line.ok) = (format!("absolute {absolute:.0e}"), line.max_abs <= absolute);
        return;
    }
    if let (Some(actions), None, true) = (tolerance.actions, exception, line.name.starts_with("sample/")) {
        (line.allowed, line.ok) = (format!("absolute {actions:.0e}"), line.max_abs <= actions);
        return;
    }
    let relative = exception.and_then(|e| e.relative).or(tolerance.relative);
    // A bf16 set's arrays that its f32 set lacks are held as f32 ones would be, where a bound is stated.
    let relative = relative.unwrap_or(1e-5);
    (line.allowed, line.ok) = (format!("relative {relative:.0e}"), line.relative <= relative);
}

fn in_bf16(line: &mut Line, tolerance: &Tolerance, [ours, golden, truth]: [&[f32]; 3]) {
    let exception = tolerance.exception(&line.name);
    line.reason = exception.map(|e| e.reason.clone());
    let (ratio, cosine) = (tolerance.error_ratio.unwrap_or(1.1), tolerance.cosine.unwrap_or(0.999));
    let ratio = exception.and_then(|e| e.error_ratio).unwrap_or(ratio);
    let (ours_off, golden_off) = (measure(ours, truth), measure(golden, truth));
    if golden_off.root == 0.0 || golden_off.max_abs <= 1e-5 * golden_off.largest {
        // Computed in f32 in this mode too.
        return in_f32(line, tolerance);
    }
    // Where rounding alone took the recording further from f32 than this cosine, we must be nearer to it than f32 is.
    let cosine = cosine.min(golden_off.cosine);
    line.error_ratio = Some(ours_off.root / golden_off.root);
    line.allowed = format!("error ratio {ratio}, cosine {cosine:.4}");
    line.ok = ours_off.root <= ratio * golden_off.root && line.cosine >= cosine;
}

/// Differences of two arrays.
#[derive(Debug, Clone, Copy)]
pub struct Measure {
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Largest absolute value of the second.
    pub largest: f64,
    /// Root of the sum of squared differences.
    pub root: f64,
    /// Cosine of the angle between them.
    pub cosine: f64,
}

/// Measures `ours` against `golden`.
pub fn measure(ours: &[f32], golden: &[f32]) -> Measure {
    let mut m = Measure { max_abs: 0.0, largest: 0.0, root: 0.0, cosine: 1.0 };
    let (mut dot, mut a2, mut b2) = (0.0, 0.0, 0.0);
    for (a, b) in ours.iter().zip(golden) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        m.max_abs = m.max_abs.max((a - b).abs());
        m.largest = m.largest.max(b.abs());
        m.root += (a - b) * (a - b);
        (dot, a2, b2) = (dot + a * b, a2 + a * a, b2 + b * b);
    }
    m.root = m.root.sqrt();
    if a2 > 0.0 || b2 > 0.0 {
        m.cosine = dot / (a2 * b2).sqrt().max(f64::MIN_POSITIVE);
    }
    m
}
