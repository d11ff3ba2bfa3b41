//! Small arrays of a safetensors file, whole in memory: recorded observations, noise, intermediates.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use half::{bf16, f16};
use orbax::{Dtype, Source};
use remap::Safetensors;

/// An array of numbers. Whole numbers and flags are values as well: all that occur are exact in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Sizes of its axes.
    pub shape: Vec<usize>,
    /// How it was stored: `float32`, `bfloat16`, `int32`, `bool`, ...
    pub dtype: String,
    /// Row by row.
    pub values: Vec<f32>,
}

impl Array {
    /// f32 values in a shape.
    pub fn new(shape: Vec<usize>, values: Vec<f32>) -> Self {
        Array { shape, dtype: "float32".into(), values }
    }
}

/// Every array of a safetensors file, by name.
///
/// # Errors
/// No such file, a broken one, a dtype that is no plain number.
pub fn read_arrays(path: &Path) -> Result<BTreeMap<String, Array>> {
    let file = Safetensors::open(path).with_context(|| path.display().to_string())?;
    let mut arrays = BTreeMap::new();
    for (i, info) in file.arrays().iter().enumerate() {
        let bytes = orbax::read_array(&file, i)?;
        let values = values(info.dtype, &bytes).with_context(|| {
            format!("{}: {}: values of {} are not read", path.display(), info.name, info.dtype.name())
        })?;
        let shape = info.shape.iter().map(|n| *n as usize).collect();
        arrays.insert(info.name.clone(), Array { shape, dtype: info.dtype.name().into(), values });
    }
    if arrays.is_empty() {
        bail!("{}: there is no array in it", path.display());
    }
    Ok(arrays)
}

/// As f32, where every value of the type that we meet is exact in it.
fn values(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|c| f(*c)).collect()
    }
    Some(match dtype {
        Dtype::Bool => each(bytes, |[b]| f32::from(u8::from(b != 0))),
        Dtype::U8 => each(bytes, |[b]| f32::from(b)),
        Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
        Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        _ => return None,
    })
}
