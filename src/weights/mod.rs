//! Checkpoints as the toolkit sees them: opened, understood, converted, compared. The only room beside the formats
//! that touches weight files; only `load` knows Burn.

pub mod anatomy;
pub mod arrays;
pub mod companions;
pub mod convert;
mod decide;
pub mod diff;
#[cfg(feature = "robot")]
pub mod init;
mod jax;
#[cfg(feature = "model")]
pub mod load;
pub mod names;
mod number;
pub mod open;
pub mod raw;
pub mod report;
mod scratch;
pub mod stage;
pub mod state;

use std::io::Read;

use orbax::{Chunk, Source};

/// Are two arrays of a source equal, bit for bit? Both must be whole in one chunk, as safetensors has them.
fn same_array(source: &dyn Source, a: usize, b: usize) -> anyhow::Result<bool> {
    let (x, y) = (&source.arrays()[a], &source.arrays()[b]);
    if (&x.shape, x.dtype) != (&y.shape, y.dtype) {
        return Ok(false);
    }
    let (Chunk::Stream(mut x), Chunk::Stream(mut y)) = (source.chunk(a, 0)?, source.chunk(b, 0)?) else {
        return Ok(false);
    };
    let (mut p, mut q) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = x.read(&mut p)?;
        if n == 0 {
            return Ok(y.read(&mut q[..1])? == 0);
        }
        y.read_exact(&mut q[..n])?;
        if p[..n] != q[..n] {
            return Ok(false);
        }
    }
}
