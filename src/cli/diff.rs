//! `pi0 inspect --diff`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use remap::Map;

use super::Answer;
use super::convert::default_threads;
use super::output::{Mouth, condense};
use crate::weights::diff::{Diff, DiffOptions, Side, Verdict, diff, index_of};
use crate::weights::open::{Choice, Opened};

/// Compares two checkpoints; the answer is no where any value differs.
pub(super) fn run(left: &Path, right: &Path, choice: &Choice, mouth: &Mouth) -> Result<Answer> {
    let map = Map::pi0();
    let open = |path: &Path| Opened::open(path, choice).with_context(|| path.display().to_string());
    let (a, b) = (open(left)?, open(right)?);
    let (x, y) = (a.scheme(&map, choice.from.as_deref())?, b.scheme(&map, choice.from.as_deref())?);
    let options = DiffOptions::new(default_threads(), std::env::temp_dir());
    let found = diff(&a, x, &b, y, &options, mouth)?;
    mouth.say(&found, || text(&found, (&a, &x.name), (&b, &y.name)))?;
    Ok(if found.same_values() { Answer::Yes } else { Answer::No })
}

fn text(found: &Diff, left: (&Opened, &str), right: (&Opened, &str)) -> String {
    let mut t = String::new();
    for (side, (opened, scheme), model) in [("left ", left, &found.left_model), ("right", right, &found.right_model)] {
        let model = model.as_deref().unwrap_or("no whole model");
        let _ = writeln!(t, "{side}  {} · {} · scheme {scheme} · {model}", opened.path.display(), opened.format);
    }
    let _ = writeln!(t);
    let differing = found.tensors.iter().filter(|d| !matches!(d.verdict, Verdict::Same | Verdict::SameValues));
    for d in differing {
        let _ = write!(t, "  {}  {}", d.name, d.verdict);
        match (&d.verdict, &d.left, &d.right) {
            (Verdict::Differs { first, .. }, Some(l), _) if !l.shape.is_empty() => {
                let _ = write!(t, " = {:?} of {:?}", index_of(&l.shape, *first), l.shape);
            }
            (Verdict::Shape, Some(l), Some(r)) => {
                let _ = write!(t, ": {:?} and {:?}", l.shape, r.shape);
            }
            _ => {}
        }
        let _ = writeln!(t);
    }
    for side in [Side::Left, Side::Right] {
        let mut reasons: Vec<&str> = found.notes.iter().filter(|n| n.side == side).map(|n| n.reason.as_str()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        for reason in reasons {
            let ours = found.notes.iter().filter(|n| n.side == side && n.reason == reason);
            let names: Vec<String> = condense(ours.map(|n| n.name.as_str())).into_iter().map(|(n, _)| n).collect();
            let word = if side == Side::Left { "left" } else { "right" };
            let _ = writeln!(t, "  not compared ({word}): {}: {reason}", names.join(", "));
        }
    }
    let n = found.tally();
    let _ = writeln!(
        t,
        "{} tensors: {} the same bit for bit, {} the same values in another type, {} differ, {} of another shape, \
         {} only left, {} only right",
        found.tensors.len(),
        n.same,
        n.same_values,
        n.differs,
        n.shape,
        n.only_left,
        n.only_right
    );
    t
}
