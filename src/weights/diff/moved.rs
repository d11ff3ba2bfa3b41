//! What is stored differently on the two sides: the left side's outputs go to a scratch, the right side's are compared
//! with it as they are moved.
//!
//! Invariant: both sides' chunks are decoded once, and no more than one batch of outputs is in the scratch.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use orbax::Dtype;
use remap::{Mover, Plan, Settings, Sink};

use super::compare::{Found, compare};
use super::{DiffOptions, Meter, Pair, Part};
use crate::weights::scratch::Scratch;

/// A scratch file takes groups of outputs up to this size together, so that all threads have work.
const BATCH_BYTES: u64 = 1 << 30;

/// Compares through a scratch; what was found for each pair. `groups` are sorted, largest first.
pub(super) fn compare_moved(
    sides: &[Part<'_>; 2],
    pairs: &[Pair],
    groups: &[Vec<usize>],
    options: &DiffOptions,
    meter: &Meter<'_>,
) -> Result<BTreeMap<usize, Found>> {
    let stop = AtomicBool::new(false);
    let settings = Settings::threads(options.threads);
    let [left, right] = sides
        .each_ref()
        .map(|side| Mover::new(side.plan, &*side.opened.source, &side.opened.arrays, None, settings.clone(), &stop));
    let mut all = BTreeMap::new();
    let mut at = 0;
    while at < groups.len() {
        let bytes = |group: &Vec<usize>| group.iter().map(|i| sides[0].bytes(pairs[*i].left)).sum::<u64>();
        let mut sum = bytes(&groups[at]);
        let limit = if sum > options.memory_bytes { BATCH_BYTES } else { options.memory_bytes };
        let mut end = at + 1;
        while end < groups.len() && sum.saturating_add(bytes(&groups[end])) <= limit {
            sum += bytes(&groups[end]);
            end += 1;
        }
        let batch: Vec<usize> = groups[at..end].concat();
        at = end;

        let mut sizes = vec![None; sides[0].plan.outputs.len()];
        let mut wanted: Vec<Option<Wanted>> = sides[1].plan.outputs.iter().map(|_| None).collect();
        for i in &batch {
            sizes[pairs[*i].left] = Some(sides[0].bytes(pairs[*i].left));
            wanted[pairs[*i].right] = Some(Wanted { left: pairs[*i].left, found: Mutex::new(Found::default()) });
        }
        let scratch = Scratch::new(&sizes, options.memory_bytes, &options.scratch)?;
        let room = || format!("comparing needs {sum} bytes of scratch in {}", options.scratch.display());
        left.run(&left.units(|o| sizes[o].is_some()), &Metered { sink: &scratch, meter, sizes: &sizes })
            .with_context(|| format!("{}; {}", sides[0].opened.path.display(), room()))?;
        let comparing = Comparing { scratch: &scratch, plans: [sides[0].plan, sides[1].plan], wanted: &wanted, meter };
        right
            .run(&right.units(|o| wanted[o].is_some()), &comparing)
            .with_context(|| sides[1].opened.path.display().to_string())?;
        for i in batch {
            if let Some(wanted) = &wanted[pairs[i].right] {
                all.insert(i, *wanted.found.lock().unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
    Ok(all)
}

/// Counts what goes into the scratch.
struct Metered<'a> {
    sink: &'a Scratch,
    meter: &'a Meter<'a>,
    sizes: &'a [Option<u64>],
}

impl Sink for Metered<'_> {
    fn write(&self, output: usize, offset: u64, bytes: &[u8]) -> remap::Result<()> {
        if self.sizes[output].is_some() {
            self.meter.add(bytes.len() as u64);
        }
        self.sink.write(output, offset, bytes)
    }
}

/// An output of the right side that is compared.
struct Wanted {
    left: usize,
    found: Mutex<Found>,
}

/// Compares what it is given with what the scratch has.
struct Comparing<'a> {
    scratch: &'a Scratch,
    plans: [&'a Plan; 2],
    wanted: &'a [Option<Wanted>],
    meter: &'a Meter<'a>,
}

impl Sink for Comparing<'_> {
    fn write(&self, output: usize, offset: u64, bytes: &[u8]) -> remap::Result<()> {
        let Some(wanted) = &self.wanted[output] else { return Ok(()) };
        let dtype = |plan: &Plan, output: usize| -> Dtype { plan.outputs[output].tensor.dtype };
        let (left, right) = (dtype(self.plans[0], wanted.left), dtype(self.plans[1], output));
        let (at, elements) = (offset / right.size() as u64, bytes.len() / right.size());
        let (start, length) = (at * left.size() as u64, elements * left.size());
        let found =
            self.scratch.with(wanted.left, start, length, |there| compare((left, there), (right, bytes), at))?;
        wanted.found.lock().unwrap_or_else(PoisonError::into_inner).add(found);
        self.meter.add(bytes.len() as u64);
        Ok(())
    }
}
