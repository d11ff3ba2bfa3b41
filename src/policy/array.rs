//! An array on the host, in numpy's dtypes: what steps read and write.
//!
//! Invariants: as many values as the shape says, in C order; a dtype changes only where numpy's would, so that a chain's
//! result has the bits that openpi's has.

use std::fmt;

/// An array on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Elements along each axis; none for a scalar.
    pub shape: Vec<usize>,
    /// In C order.
    pub values: Values,
}

/// Its elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// `uint8`: what pictures are made of.
    U8(Vec<u8>),
    /// `int32`: tokens.
    I32(Vec<i32>),
    /// `int64`: any other whole number.
    I64(Vec<i64>),
    /// `float32`.
    F32(Vec<f32>),
    /// `float64`.
    F64(Vec<f64>),
    /// `bool`.
    Bool(Vec<bool>),
}

impl Values {
    /// numpy's name of the dtype.
    pub fn dtype(&self) -> &'static str {
        match self {
            Values::U8(_) => "uint8",
            Values::I32(_) => "int32",
            Values::I64(_) => "int64",
            Values::F32(_) => "float32",
            Values::F64(_) => "float64",
            Values::Bool(_) => "bool",
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Values::U8(x) => x.len(),
            Values::I32(x) => x.len(),
            Values::I64(x) => x.len(),
            Values::F32(x) => x.len(),
            Values::F64(x) => x.len(),
            Values::Bool(x) => x.len(),
        }
    }

    /// How many bytes they take.
    pub fn bytes(&self) -> usize {
        self.len()
            * match self {
                Values::U8(_) | Values::Bool(_) => 1,
                Values::I32(_) | Values::F32(_) => 4,
                Values::I64(_) | Values::F64(_) => 8,
            }
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As f64, exactly but for whole numbers of more than 53 bits; truth values are 0 and 1.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Values::U8(x) => x.iter().map(|x| f64::from(*x)).collect(),
            Values::I32(x) => x.iter().map(|x| f64::from(*x)).collect(),
            Values::I64(x) => x.iter().map(|x| *x as f64).collect(),
            Values::F32(x) => x.iter().map(|x| f64::from(*x)).collect(),
            Values::F64(x) => x.clone(),
            Values::Bool(x) => x.iter().map(|x| f64::from(u8::from(*x))).collect(),
        }
    }

    /// What they are, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Values::F32(_) | Values::F64(_) => "floats",
            Values::I32(_) | Values::I64(_) => "integers",
            Values::U8(_) => "bytes",
            Values::Bool(_) => "booleans",
        }
    }

    /// As f32, each value rounded once.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Values::F32(x) => x.clone(),
            Values::I64(x) => x.iter().map(|x| *x as f32).collect(),
            other => other.to_f64().into_iter().map(|x| x as f32).collect(),
        }
    }
}

impl Array {
    /// With this shape.
    ///
    /// # Panics
    /// If there are not as many values as the shape says: a fault of the caller's, never of a file's.
    pub fn new(shape: impl Into<Vec<usize>>, values: Values) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values of an array of shape {shape:?}");
        Array { shape, values }
    }

    /// `float32`.
    pub fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self::new(shape, Values::F32(values))
    }

    /// `float64`.
    pub fn f64(shape: impl Into<Vec<usize>>, values: Vec<f64>) -> Self {
        Self::new(shape, Values::F64(values))
    }

    /// `uint8`.
    pub fn u8(shape: impl Into<Vec<usize>>, values: Vec<u8>) -> Self {
        Self::new(shape, Values::U8(values))
    }

    /// A truth value, without an axis.
    pub fn flag(value: bool) -> Self {
        Self::new([], Values::Bool(vec![value]))
    }

    /// As f32: floats, and whole numbers but bytes, which are what pictures are made of.
    pub fn floats(&self) -> Option<Vec<f32>> {
        matches!(self.values.kind(), "floats" | "integers").then(|| self.values.to_f32())
    }

    /// As whole numbers, bytes too.
    pub fn integers(&self) -> Option<Vec<i64>> {
        match &self.values {
            Values::I64(x) => Some(x.clone()),
            Values::I32(x) => Some(x.iter().map(|x| i64::from(*x)).collect()),
            Values::U8(x) => Some(x.iter().map(|x| i64::from(*x)).collect()),
            _ => None,
        }
    }

    /// As flags: booleans, or nothing but 0 and 1.
    pub fn flags(&self) -> Option<Vec<bool>> {
        if let Values::Bool(x) = &self.values {
            return Some(x.clone());
        }
        let numbers = self.integers()?;
        numbers.iter().all(|x| matches!(x, 0 | 1)).then(|| numbers.iter().map(|x| *x == 1).collect())
    }

    /// Elements along the last axis; `None` for a scalar.
    pub fn width(&self) -> Option<usize> {
        self.shape.last().copied()
    }
}

impl fmt::Display for Array {
    /// `float32[14]`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        write!(out, "{}[{}]", self.values.dtype(), axes.join(", "))
    }
}
