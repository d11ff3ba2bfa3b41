//! Two runs of elements side by side: how many differ, by how much, and which is the first.
//!
//! Invariants: equal means equal bits. Across types both are widened exactly first; there NaN equals NaN, since a
//! widened payload says nothing. Relative is `|a - b| / max(|a|, |b|)`, and 0 / 0 is 0.

use orbax::Dtype;

use crate::weights::number::{Number, floats};

/// Elements that are looked at together.
const PIECE: usize = 4096;

/// What was found so far in one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found {
    /// Elements looked at.
    pub(super) compared: u64,
    /// Elements that differ.
    pub(super) count: u64,
    /// The smallest index among them.
    pub(super) first: u64,
    /// Largest difference.
    pub(super) max_abs: f64,
    /// Largest relative difference.
    pub(super) max_rel: f64,
}

impl Default for Found {
    fn default() -> Self {
        Found { compared: 0, count: 0, first: u64::MAX, max_abs: 0.0, max_rel: 0.0 }
    }
}

impl Found {
    /// Adds what was found elsewhere in the same tensor.
    pub(super) fn add(&mut self, other: Found) {
        self.compared += other.compared;
        self.count += other.count;
        self.first = self.first.min(other.first);
        self.max_abs = self.max_abs.max(other.max_abs);
        self.max_rel = self.max_rel.max(other.max_rel);
    }

    fn differs(&mut self, index: u64, (abs, rel): (f64, f64)) {
        self.count += 1;
        self.first = self.first.min(index);
        self.max_abs = self.max_abs.max(abs);
        self.max_rel = self.max_rel.max(rel);
    }
}

/// Compares as many elements as both slices hold, the first of which is element `at` of the tensor.
pub(super) fn compare((left, a): (Dtype, &[u8]), (right, b): (Dtype, &[u8]), at: u64) -> Found {
    let mut found = Found::default();
    let (mut x, mut y) = (vec![], vec![]);
    let pieces = a.chunks(PIECE * left.size()).zip(b.chunks(PIECE * right.size()));
    for (a, b) in pieces {
        let start = at + found.compared;
        found.compared += (a.len() / left.size()) as u64;
        let same_type = left == right;
        if same_type && a == b {
            continue;
        }
        let elements = || a.chunks_exact(left.size()).zip(b.chunks_exact(right.size())).zip(start..);
        if floats(left, a, &mut x) && floats(right, b, &mut y) {
            for (((a, b), index), (x, y)) in elements().zip(x.iter().zip(&y)) {
                let equal = if same_type { a == b } else { x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()) };
                if !equal {
                    found.differs(index, apart(*x, *y, (x - y).abs(), x.abs().max(y.abs())));
                }
            }
        } else {
            for ((a, b), index) in elements() {
                let (x, y) = (Number::read(left, a), Number::read(right, b));
                let equal = if same_type { a == b } else { equal(x, y) };
                if !equal {
                    found.differs(index, distance(x, y));
                }
            }
        }
    }
    found
}

/// Are two elements of different types the same number?
fn equal(x: Number, y: Number) -> bool {
    let bits = |a: f64, b: f64| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    match (x, y) {
        (Number::Int(a), Number::Int(b)) => a == b,
        (Number::Float(a), Number::Float(b)) => bits(a, b),
        (Number::Complex(a, c), Number::Complex(b, d)) => bits(a, b) && bits(c, d),
        (Number::Int(i), Number::Float(f)) | (Number::Float(f), Number::Int(i)) => bits(i as f64, f) && f as i128 == i,
        (Number::Int(i), Number::Complex(f, zero)) | (Number::Complex(f, zero), Number::Int(i)) => {
            zero == 0.0 && bits(i as f64, f) && f as i128 == i
        }
        (Number::Float(a), Number::Complex(b, zero)) | (Number::Complex(b, zero), Number::Float(a)) => {
            zero == 0.0 && bits(a, b)
        }
    }
}

/// Absolute and relative difference.
fn distance(x: Number, y: Number) -> (f64, f64) {
    let parts = |n: Number| match n {
        Number::Int(i) => (i as f64, 0.0),
        Number::Float(x) => (x, 0.0),
        Number::Complex(re, im) => (re, im),
    };
    if let (Number::Int(a), Number::Int(b)) = (x, y) {
        // No integer here has more than 64 bits; their difference is exact.
        let (abs, largest) = ((a - b).unsigned_abs() as f64, a.unsigned_abs().max(b.unsigned_abs()) as f64);
        return (abs, if largest == 0.0 { 0.0 } else { abs / largest });
    }
    let ((a, c), (b, d)) = (parts(x), parts(y));
    if c == 0.0 && d == 0.0 {
        return apart(a, b, (a - b).abs(), a.abs().max(b.abs()));
    }
    let worst = |one: (f64, f64), two: (f64, f64)| (one.0.max(two.0), one.1.max(two.1));
    let finite = [a, b, c, d].iter().all(|v| v.is_finite());
    if finite {
        apart(0.0, 1.0, (a - b).hypot(c - d), a.hypot(c).max(b.hypot(d)))
    } else {
        let part = |p: f64, q: f64| {
            if p.to_bits() == q.to_bits() { (0.0, 0.0) } else { apart(p, q, (p - q).abs(), p.abs().max(q.abs())) }
        };
        worst(part(a, b), part(c, d))
    }
}

/// `|x - y|` and its ratio to the larger of both, where infinities and NaN have a say.
fn apart(x: f64, y: f64, abs: f64, largest: f64) -> (f64, f64) {
    if x == y || (x.is_nan() && y.is_nan()) {
        // Zeros of two signs, NaN of two payloads.
        return (0.0, 0.0);
    }
    if abs.is_nan() || largest.is_infinite() {
        return (f64::INFINITY, f64::INFINITY);
    }
    if abs.is_infinite() {
        return (abs, (x / largest - y / largest).abs());
    }
    (abs, if largest == 0.0 { 0.0 } else { abs / largest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn of_f32(a: &[f32], b: &[f32]) -> Found {
        compare((Dtype::F32, &f32s(a)), (Dtype::F32, &f32s(b)), 100)
    }

    #[test]
    fn the_first_the_number_and_the_size_of_differences_are_told() {
        let found = of_f32(&[1.0, 2.0, 3.0, 0.0], &[1.0, 2.5, 3.0, -8.0]);
        assert_eq!(found, Found { compared: 4, count: 2, first: 101, max_abs: 8.0, max_rel: 1.0 });
        assert_eq!(of_f32(&[4.0], &[3.0]).max_rel, 0.25);
    }

    #[test]
    fn a_nan_equals_the_same_bits_and_is_infinitely_far_from_a_number() {
        let other = f32::from_bits(f32::NAN.to_bits() | 1);
        assert_eq!(of_f32(&[f32::NAN], &[f32::NAN]).count, 0);
        assert_eq!(of_f32(&[f32::NAN], &[1.0]).max_abs, f64::INFINITY);
        assert_eq!(of_f32(&[1.0], &[f32::NAN]).max_rel, f64::INFINITY);
        let payload = of_f32(&[f32::NAN], &[other]);
        assert_eq!((payload.count, payload.max_abs), (1, 0.0));
    }

    #[test]
    fn the_two_zeros_differ_in_their_bits_by_nothing() {
        let found = of_f32(&[0.0], &[-0.0]);
        assert_eq!((found.count, found.max_abs, found.max_rel), (1, 0.0, 0.0));
    }

    #[test]
    fn infinities_are_infinitely_far_from_all_but_themselves() {
        let inf = f32::INFINITY;
        assert_eq!(of_f32(&[inf], &[inf]).count, 0);
        assert_eq!(of_f32(&[inf], &[-inf]).max_abs, f64::INFINITY);
        let far = compare((Dtype::F64, &f64::MAX.to_le_bytes()), (Dtype::F64, &(-f64::MAX).to_le_bytes()), 0);
        assert_eq!((far.max_abs, far.max_rel), (f64::INFINITY, 2.0));
    }

    #[test]
    fn other_types_are_compared_after_exact_widening() {
        let bf16: Vec<u8> =
            [1.5f32, f32::NAN, -0.0].iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let same = compare((Dtype::Bf16, &bf16), (Dtype::F32, &f32s(&[1.5, f32::NAN, -0.0])), 0);
        assert_eq!((same.count, same.compared), (0, 3));
        let off = compare((Dtype::Bf16, &bf16), (Dtype::F32, &f32s(&[1.5, f32::NAN, 1e-9])), 0);
        assert_eq!((off.count, off.first), (1, 2));
        let ints = compare((Dtype::I32, &7i32.to_le_bytes()), (Dtype::F32, &7f32.to_le_bytes()), 0);
        assert_eq!(ints.count, 0);
    }

    #[test]
    fn large_integers_are_not_rounded_before_they_are_compared() {
        let (a, b) = (i64::MAX, i64::MAX - 1);
        let found = compare((Dtype::I64, &a.to_le_bytes()), (Dtype::I64, &b.to_le_bytes()), 0);
        assert_eq!((found.count, found.max_abs), (1, 1.0));
        let mixed = compare((Dtype::I64, &a.to_le_bytes()), (Dtype::F64, &(a as f64).to_le_bytes()), 0);
        assert_eq!(mixed.count, 1);
        assert!(mixed.max_abs >= 0.0);
    }

    #[test]
    fn complex_numbers_are_apart_as_points_are() {
        let c = |re: f32, im: f32| f32s(&[re, im]);
        let found = compare((Dtype::C64, &c(3.0, 4.0)), (Dtype::C64, &c(0.0, 0.0)), 0);
        assert_eq!((found.max_abs, found.max_rel), (5.0, 1.0));
        let nan = compare((Dtype::C64, &c(3.0, f32::NAN)), (Dtype::C64, &c(3.0, 4.0)), 0);
        assert_eq!(nan.max_abs, f64::INFINITY);
    }
}
