//! What is stored alike on both sides: compared as it is decoded, without a scratch.
//!
//! Invariant: a group is called the same only if every source of it has a twin with equal moves, type, shape and
//! chunks on the other side, and every decoded byte of both is equal. All else is left to the scratch, which knows
//! where a difference lies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use orbax::{ArrayInfo, Chunk};
use remap::{At, Axis, Letter};

use super::{Meter, Pair, Part};

/// Bytes that are compared at once; a multiple of every element's size.
const PIECE_BYTES: usize = 1 << 20;

/// Twin sources of a group.
struct Twins {
    group: usize,
    left: usize,
    right: usize,
}

/// For each group: is it stored alike and equal to the last byte?
pub(super) fn same(
    sides: &[Part<'_>; 2],
    pairs: &[Pair],
    groups: &[Vec<usize>],
    threads: usize,
    meter: &Meter<'_>,
) -> remap::Result<Vec<bool>> {
    let paired: [BTreeSet<usize>; 2] =
        [pairs.iter().map(|p| p.left).collect(), pairs.iter().map(|p| p.right).collect()];
    let [left, right] = [0, 1].map(|n| shapes(&sides[n], &paired[n]));
    let mut differs: Vec<AtomicBool> = groups.iter().map(|_| AtomicBool::new(false)).collect();
    let mut work = vec![];
    for (group, members) in groups.iter().enumerate() {
        match twins(sides, pairs, group, members, (&left, &right)) {
            Some(twins) => work.extend(twins.into_iter().flat_map(|t| {
                let info = info(&sides[0], t.left);
                let chunks: u64 =
                    info.shape.iter().zip(&info.chunk_shape).map(|(n, c)| n.div_ceil((*c).max(1))).product();
                (0..chunks).map(move |chunk| (t.group, t.left, t.right, chunk)).collect::<Vec<_>>()
            })),
            None => differs[group] = AtomicBool::new(true),
        }
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let run = || {
        let mut buffers = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
        while let Some((group, left, right, chunk)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            if differs[*group].load(Ordering::Relaxed) {
                continue;
            }
            match equal(sides, (*left, *right), *chunk, &differs[*group], &mut buffers) {
                Ok(true) => {}
                Ok(false) => differs[*group].store(true, Ordering::Relaxed),
                Err(error) => {
                    next.store(work.len(), Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, work.len().max(1)) {
            scope.spawn(run);
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let same: Vec<bool> = differs.iter_mut().map(|d| !*d.get_mut()).collect();
    for (group, _) in groups.iter().zip(&same).filter(|(_, same)| **same) {
        meter.add(group.iter().map(|i| sides[0].bytes(pairs[*i].left) + sides[1].bytes(pairs[*i].right)).sum());
    }
    Ok(same)
}

/// A move by its output's name: two sources with equal lists put equal elements in equal places.
type Moves<'a> = Vec<(&'a str, u64, Vec<Vec<(Letter, u64, Option<u64>, u64)>>)>;

/// What each source gives to the outputs that are compared.
fn shapes<'a>(side: &Part<'a>, paired: &BTreeSet<usize>) -> BTreeMap<usize, Moves<'a>> {
    let mut all: BTreeMap<usize, Moves<'a>> = BTreeMap::new();
    for m in side.plan.moves.iter().filter(|m| paired.contains(&m.output)) {
        let axis = |a: &Axis| match a.at {
            At::All(stride) => (a.letter, a.len, Some(stride), 0),
            At::One(index) => (a.letter, a.len, None, index),
        };
        let axes = m.axes.iter().map(|group| group.iter().map(axis).collect()).collect();
        let name = side.plan.outputs[m.output].tensor.name.as_str();
        all.entry(m.source).or_default().push((name, m.offset, axes));
    }
    all.values_mut().for_each(|moves| moves.sort());
    all
}

/// The group's sources, each with its twin; `None` if one has none.
fn twins(
    sides: &[Part<'_>; 2],
    pairs: &[Pair],
    group: usize,
    members: &[usize],
    (left, right): (&BTreeMap<usize, Moves<'_>>, &BTreeMap<usize, Moves<'_>>),
) -> Option<Vec<Twins>> {
    let sources = |n: usize| -> BTreeSet<usize> {
        members.iter().flat_map(|i| &sides[n].sources[[pairs[*i].left, pairs[*i].right][n]]).copied().collect()
    };
    let (lefts, mut rights) = (sources(0), sources(1));
    let mut twins = vec![];
    for l in lefts {
        let alike = |r: &usize| {
            let (a, b) = (info(&sides[0], l), info(&sides[1], *r));
            left.get(&l) == right.get(r)
                && (a.dtype, a.order, &a.shape, &a.chunk_shape) == (b.dtype, b.order, &b.shape, &b.chunk_shape)
        };
        let r = rights.iter().copied().find(alike)?;
        rights.remove(&r);
        twins.push(Twins { group, left: l, right: r });
    }
    let outputs = members.iter().all(|i| {
        let (l, r) = (&sides[0].plan.outputs[pairs[*i].left], &sides[1].plan.outputs[pairs[*i].right]);
        l.tensor.dtype == r.tensor.dtype
    });
    (rights.is_empty() && outputs).then_some(twins)
}

fn info<'a>(side: &Part<'a>, source: usize) -> &'a ArrayInfo {
    &side.opened.source.arrays()[side.opened.arrays[source]]
}

/// Are the decoded bytes of two chunks equal? Stops where they are not, or where another chunk of the group was not.
fn equal(
    sides: &[Part<'_>; 2],
    (left, right): (usize, usize),
    chunk: u64,
    differs: &AtomicBool,
    (a, b): &mut (Vec<u8>, Vec<u8>),
) -> remap::Result<bool> {
    let open = |n: usize, source: usize| {
        let opened = sides[n].opened;
        opened.source.chunk(opened.arrays[source], chunk)
    };
    let (mut one, mut other) = (open(0, left)?, open(1, right)?);
    let info = info(&sides[0], left);
    let mut rest = info.chunk_shape.iter().product::<u64>() * info.dtype.size() as u64;
    let failed = |n: usize, source: usize| {
        let name = sides[n].opened.tensors[source].name.clone();
        move |error| remap::Error::Read { name, error }
    };
    while rest > 0 {
        let n = rest.min(PIECE_BYTES as u64) as usize;
        fill(&mut one, &mut a[..n]).map_err(failed(0, left))?;
        fill(&mut other, &mut b[..n]).map_err(failed(1, right))?;
        if a[..n] != b[..n] || differs.load(Ordering::Relaxed) {
            return Ok(false);
        }
        rest -= n as u64;
    }
    end(one).map_err(failed(0, left))?;
    end(other).map_err(failed(1, right))?;
    Ok(true)
}

fn fill(chunk: &mut Chunk<'_>, bytes: &mut [u8]) -> Result<(), Error> {
    match chunk {
        Chunk::Stream(stream) => stream.read_exact(bytes),
        Chunk::Fill(element) => {
            bytes.chunks_exact_mut(element.len().max(1)).for_each(|e| e.copy_from_slice(element));
            Ok(())
        }
    }
}

/// Reads on to the end, which is where a codec checks its frame.
fn end(chunk: Chunk<'_>) -> Result<(), Error> {
    let Chunk::Stream(mut stream) = chunk else { return Ok(()) };
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(Error::other("more bytes than the chunk's shape says")),
    }
}
