//! A reader over bytes in memory that knows where in which file they stand, so that every error can say so.
//!
//! Invariant: a count from the file is compared with the bytes left before anything of that size is allocated.

use std::sync::Arc;

use crate::error::{Error, Place, Problem, Result};
use crate::varint::{self, Unreadable};

/// Where a run of bytes comes from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Path of the file.
    pub(crate) file: Arc<str>,
    /// Byte of the file at which the piece (not the body) starts.
    pub(crate) start: u64,
}

impl Origin {
    /// An error at byte `at` of the piece.
    pub(crate) fn fail(&self, at: usize, problem: Problem) -> Error {
        let byte = self.start.saturating_add(at as u64);
        Error::Corrupt { place: Place { file: self.file.clone(), byte, decompressed: None }, problem }
    }
}

/// A position in bytes of a known origin.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    length: usize,
    origin: &'a Origin,
    /// Byte of the piece at which `bytes` start; `None` for a decompressed body.
    shift: Option<usize>,
}

impl<'a> Cursor<'a> {
    /// Over `bytes` that start at byte `shift` of the piece, or are its decompressed body (`None`).
    pub(crate) fn new(bytes: &'a [u8], origin: &'a Origin, shift: Option<usize>) -> Self {
        Self { rest: bytes, length: bytes.len(), origin, shift }
    }

    fn position(&self) -> usize {
        self.length.saturating_sub(self.rest.len())
    }

    /// Bytes not yet read.
    pub(crate) fn left(&self) -> u64 {
        self.rest.len() as u64
    }

    /// The bytes not yet read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// An error at this position.
    pub(crate) fn fail(&self, problem: Problem) -> Error {
        match self.shift {
            Some(shift) => self.origin.fail(shift.saturating_add(self.position()), problem),
            None => Error::Corrupt {
                place: Place {
                    file: self.origin.file.clone(),
                    byte: self.origin.start,
                    decompressed: Some(self.position() as u64),
                },
                problem,
            },
        }
    }

    /// An error: `found` is not what the format allows.
    pub(crate) fn unexpected(&self, what: &'static str, expected: impl ToString, found: u64) -> Error {
        self.fail(Problem::Value { what, expected: expected.to_string(), found })
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8]> {
        let split = usize::try_from(n).ok().and_then(|n| self.rest.split_at_checked(n));
        let (taken, rest) =
            split.ok_or_else(|| self.fail(Problem::Truncated { what, needed: n, left: self.left() }))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| self.fail(Problem::Truncated { what, needed: N as u64, left: self.left() }))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// 16 bytes.
    pub(crate) fn uuid(&mut self, what: &'static str) -> Result<[u8; 16]> {
        self.array(what)
    }

    /// One byte.
    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8> {
        self.array::<1>(what).map(u8::from_le_bytes)
    }

    /// Four bytes, most significant first.
    pub(crate) fn u32be(&mut self, what: &'static str) -> Result<u32> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// Four bytes, least significant first, signed.
    pub(crate) fn i32le(&mut self, what: &'static str) -> Result<i32> {
        self.array(what).map(i32::from_le_bytes)
    }

    /// Eight bytes, least significant first.
    pub(crate) fn u64le(&mut self, what: &'static str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn varint(&mut self, what: &'static str, bits: u32) -> Result<u64> {
        let (value, rest) = varint::decode(self.rest, bits).map_err(|reason| {
            self.fail(match reason {
                Unreadable::Truncated => {
                    Problem::Truncated { what, needed: self.left().saturating_add(1), left: self.left() }
                }
                Unreadable::TooLarge => Problem::Varint { what, bits },
            })
        })?;
        self.rest = rest;
        Ok(value)
    }

    /// A varint of 64 bits.
    pub(crate) fn varint64(&mut self, what: &'static str) -> Result<u64> {
        self.varint(what, 64)
    }

    /// A varint of 32 bits.
    pub(crate) fn varint32(&mut self, what: &'static str) -> Result<u32> {
        // The decoder keeps to 32 bits, so nothing is cut off.
        self.varint(what, 32).map(|value| value as u32)
    }

    /// A varint of 32 bits whose value must fit 16.
    pub(crate) fn varint16(&mut self, what: &'static str) -> Result<u16> {
        let value = self.varint(what, 32)?;
        u16::try_from(value).map_err(|_| self.fail(Problem::Varint { what, bits: 16 }))
    }

    /// Refuses `n` entries that take at least `each` bytes where fewer are left.
    pub(crate) fn expect_room(&self, n: u64, each: u64, what: &'static str) -> Result<usize> {
        let needed = n.saturating_mul(each);
        match usize::try_from(n) {
            Ok(n) if needed <= self.left() => Ok(n),
            _ => Err(self.fail(Problem::Truncated { what, needed, left: self.left() })),
        }
    }

    /// A column of `n` varints of 64 bits.
    pub(crate) fn column64(&mut self, n: usize, what: &'static str) -> Result<Vec<u64>> {
        self.expect_room(n as u64, 1, what)?;
        (0..n).map(|_| self.varint64(what)).collect()
    }

    /// A column of `n` varints of 16 bits.
    pub(crate) fn column16(&mut self, n: usize, what: &'static str) -> Result<Vec<u16>> {
        self.expect_room(n as u64, 1, what)?;
        (0..n).map(|_| self.varint16(what)).collect()
    }

    /// A column of `n` fixed 64-bit numbers.
    pub(crate) fn fixed64(&mut self, n: usize, what: &'static str) -> Result<Vec<u64>> {
        self.expect_room(n as u64, 8, what)?;
        (0..n).map(|_| self.u64le(what)).collect()
    }

    /// Demands that nothing is left.
    pub(crate) fn finish(self) -> Result<()> {
        match self.left() {
            0 => Ok(()),
            left => Err(self.fail(Problem::Trailing { left })),
        }
    }
}
