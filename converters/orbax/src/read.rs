//! One whole array in memory, assembled from its chunks.
//!
//! Invariant: memory is taken only after the size was compared with a cap and, chunk by chunk, with what is stored.

use std::io::{ErrorKind, Read};

use crate::array::position;
use crate::chunk::plausible;
use crate::error::{Error, Result};
use crate::zarr::{MAX_CHUNKS, grid, product};
use crate::{Chunk, Order, Source};

/// Arrays above this many bytes are read chunk by chunk or not at all.
pub const MAX_READ_BYTES: u64 = 16 << 30;

/// Reads one whole array in C order (small arrays, tests). Refuses what cannot be in memory.
///
/// Memory: the array, plus one row of a chunk.
///
/// # Errors
/// An array above [`MAX_READ_BYTES`], one that memory cannot hold, and everything that is wrong with its chunks.
pub fn read_array(source: &dyn Source, array: usize) -> Result<Vec<u8>> {
    let count = u64::try_from(source.arrays().len()).unwrap_or(u64::MAX);
    let Some(info) = source.arrays().get(array) else {
        let found = u64::try_from(array).unwrap_or(u64::MAX);
        return Err(Error::OutOfRange { name: "source".to_owned(), what: "array", found, count });
    };
    let size = u64::try_from(info.dtype.size()).unwrap_or(u64::MAX);
    let bytes = product(&info.shape).and_then(|n| n.checked_mul(size)).unwrap_or(u64::MAX);
    let too_large = || Error::TooLarge { name: info.name.clone(), found: bytes, limit: MAX_READ_BYTES };
    if bytes > MAX_READ_BYTES {
        return Err(too_large());
    }
    let grid = grid(&info.shape, &info.chunk_shape);
    let chunks = product(&grid).filter(|&n| n <= MAX_CHUNKS).ok_or_else(too_large)?;
    // Opening the first chunk compares the declared with the stored size: a forged document is refused before memory is taken for it.
    if chunks > 0 {
        source.chunk(array, 0)?;
    }
    if bytes > MAX_UNSTORED_BYTES {
        let mut stored = 0u64;
        for chunk in 0..chunks {
            stored = stored.saturating_add(source.stored_len(array, chunk)?);
        }
        if !plausible(stored, bytes.saturating_sub(MAX_UNSTORED_BYTES), true) {
            return Err(Error::TooLarge { name: info.name.clone(), found: bytes, limit: MAX_UNSTORED_BYTES });
        }
    }
    let mut out = Vec::new();
    let length = usize::try_from(bytes).map_err(|_| too_large())?;
    out.try_reserve_exact(length).map_err(|_| too_large())?;
    out.resize(length, 0);
    for chunk in 0..chunks {
        let at = position(chunk, &grid);
        let stream = match source.chunk(array, chunk)? {
            Chunk::Stream(stream) => Elements::Stream(stream),
            Chunk::Fill(element) => Elements::Fill(element),
        };
        place(&mut out, info, &at, stream)?;
    }
    Ok(out)
}

enum Elements<'a> {
    Stream(Box<dyn Read + Send + 'a>),
    Fill(Vec<u8>),
}

/// Copies the valid part of a chunk to its place. Axes are walked in stored order, fastest last; a line is one run along the fastest.
fn place(out: &mut [u8], info: &crate::ArrayInfo, at: &[u64], mut elements: Elements<'_>) -> Result<()> {
    let problem = |e: std::io::Error| Error::io(&info.name, e);
    let wrong = || problem(std::io::Error::new(ErrorKind::InvalidInput, "sizes do not fit in memory"));
    let to_usize = |n: u64| usize::try_from(n).map_err(|_| wrong());
    let size = info.dtype.size();
    // Per axis: elements of the chunk, valid ones, and the byte stride in the output.
    let mut axes = Vec::new();
    let (mut stride, mut base) = (size, 0usize);
    for ((&n, &c), &i) in info.shape.iter().zip(&info.chunk_shape).zip(at).rev() {
        let start = i.checked_mul(c).ok_or_else(wrong)?;
        let valid = n.saturating_sub(start).min(c);
        base = base.checked_add(to_usize(start)?.checked_mul(stride).ok_or_else(wrong)?).ok_or_else(wrong)?;
        axes.push((c, valid, stride));
        stride = stride.checked_mul(to_usize(n)?).ok_or_else(wrong)?;
    }
    // `axes` runs from the last axis to the first: fastest first, as C order stores.
    if info.order == Order::F {
        axes.reverse();
    }
    let (fast, slow) = match axes.split_first() {
        Some((fast, slow)) => (*fast, slow.to_vec()),
        None => ((1, 1, size), Vec::new()),
    };
    let (line, valid) = (to_usize(fast.0)?, to_usize(fast.1)?);
    let lines = slow.iter().try_fold(1u64, |all, axis| all.checked_mul(axis.0)).ok_or_else(wrong)?;
    // Rows are read in pieces, so a forged chunk side takes no memory.
    let mut buffer = vec![0u8; size.saturating_mul(line.min(PIECE))];
    let mut index = vec![0u64; slow.len()];
    for _ in 0..lines {
        let inside = index.iter().zip(&slow).all(|(i, axis)| *i < axis.1);
        let mut target = base;
        for (i, axis) in index.iter().zip(&slow) {
            target = target.saturating_add(to_usize(*i)?.saturating_mul(axis.2));
        }
        let mut done = 0usize;
        while done < line {
            let piece = line.saturating_sub(done).min(PIECE);
            let bytes = buffer.get_mut(..piece.saturating_mul(size)).unwrap_or_default();
            match &mut elements {
                Elements::Stream(stream) => stream.read_exact(bytes).map_err(problem)?,
                Elements::Fill(element) => bytes.chunks_exact_mut(size).for_each(|to| to.copy_from_slice(element)),
            }
            if inside {
                let count = valid.saturating_sub(done).min(piece);
                for (j, from) in bytes.chunks_exact(size).take(count).enumerate() {
                    let start = target.saturating_add(done.saturating_add(j).saturating_mul(fast.2));
                    let to = start.checked_add(size).and_then(|end| out.get_mut(start..end)).ok_or_else(wrong)?;
                    to.copy_from_slice(from);
                }
            }
            done = done.saturating_add(piece);
        }
        for (i, axis) in index.iter_mut().zip(&slow) {
            *i = i.saturating_add(1);
            if *i < axis.0 {
                break;
            }
            *i = 0;
        }
    }
    if let Elements::Stream(mut stream) = elements
        && stream.read(&mut [0]).map_err(problem)? > 0
    {
        return Err(problem(std::io::Error::new(ErrorKind::InvalidData, "a chunk longer than declared")));
    }
    Ok(())
}

/// An array of absent chunks costs its writer nothing: above this many bytes, what is stored must account for the rest.
const MAX_UNSTORED_BYTES: u64 = 1 << 30;
/// Elements read at once.
const PIECE: usize = 4096;
