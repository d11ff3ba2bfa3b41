//! An array of an observation, whatever file it came from: npy, npz, safetensors, a list in JSON, a picture.
//!
//! Invariant: as many values as the shape says; no file makes us hold more than `MAX_BYTES` of one array.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use orbax::{Dtype, Npy, Source, read_array};
use serde_json::Value;

use crate::policy::array::{Array, Values};

/// Bytes of an array or a decoded picture: a batch of 500 images of 224² in f32.
const MAX_BYTES: u64 = 1 << 29;
/// Lists in lists; a batch of pictures has four.
const MAX_AXES: usize = 8;

/// Array `index` of a source.
pub(super) fn of(source: &dyn Source, index: usize) -> Result<Array> {
    let info = source.arrays().get(index).context("no such array")?;
    let size = info.dtype.size() as u64;
    let bytes = info.shape.iter().try_fold(size, |n, d| n.checked_mul(*d)).unwrap_or(u64::MAX);
    ensure!(bytes <= MAX_BYTES, "{}: {bytes} bytes, at most {MAX_BYTES} are accepted", info.name);
    let data = read_array(source, index)?;
    fn each<const N: usize, T>(data: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        data.as_chunks::<N>().0.iter().map(|bytes| f(*bytes)).collect()
    }
    let values = match info.dtype {
        Dtype::F16 => Values::F32(each(&data, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::Bf16 => Values::F32(each(&data, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F32 => Values::F32(each(&data, f32::from_le_bytes)),
        Dtype::F64 => Values::F64(each(&data, f64::from_le_bytes)),
        Dtype::I8 => Values::I64(each(&data, |b| i8::from_le_bytes(b).into())),
        Dtype::I16 => Values::I64(each(&data, |b| i16::from_le_bytes(b).into())),
        Dtype::I32 => Values::I32(each(&data, i32::from_le_bytes)),
        Dtype::I64 => Values::I64(each(&data, i64::from_le_bytes)),
        Dtype::U16 => Values::I64(each(&data, |b| u16::from_le_bytes(b).into())),
        Dtype::U32 => Values::I64(each(&data, |b| u32::from_le_bytes(b).into())),
        Dtype::U64 => Values::I64(each(&data, |b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX))),
        Dtype::U8 => Values::U8(data),
        Dtype::Bool => Values::Bool(data.iter().map(|b| *b != 0).collect()),
        other => bail!("{}: {other} is no number that an observation is made of", info.name),
    };
    Ok(Array { shape: info.shape.iter().map(|n| *n as usize).collect(), values })
}

/// A file by its extension: `.png` gives bytes `[height, width, 3]`, `.npy` what it holds.
///
/// # Errors
/// Another extension; what the file's format says.
pub(super) fn file(path: &Path) -> Result<Array> {
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("png") => picture(path).with_context(|| path.display().to_string()),
        Some("npy") => {
            ensure!(path.exists(), "{}: there is nothing under this path", path.display());
            of(&Npy::open(path)?, 0)
        }
        _ => bail!("{}: a .png or a .npy is read here; convert it to one of them", path.display()),
    }
}

/// Nested lists of numbers or of truth values; all lists of a level are equally long.
pub(super) fn json(value: &Value) -> Result<Array> {
    let mut leaves = vec![];
    let mut shape = vec![];
    flatten(value, 0, &mut shape, &mut leaves)?;
    let values = if leaves.iter().all(|v| v.is_i64()) && !leaves.is_empty() {
        Values::I64(leaves.iter().filter_map(|v| v.as_i64()).collect())
    } else if leaves.iter().all(|v| v.is_boolean()) && !leaves.is_empty() {
        Values::Bool(leaves.iter().filter_map(|v| v.as_bool()).collect())
    } else if leaves.iter().all(|v| v.is_number()) {
        Values::F64(leaves.iter().filter_map(|v| v.as_f64()).collect())
    } else {
        let odd = leaves.iter().find(|v| !v.is_number()).map(|v| v.to_string()).unwrap_or_default();
        bail!("found {odd}, expected numbers, or nothing but true and false");
    };
    Ok(Array { shape, values })
}

/// Several of one shape and kind, as rows of one.
pub(super) fn stack(all: Vec<Array>) -> Result<Array> {
    let rows = all.len();
    let mut all = all.into_iter();
    let Some(mut first) = all.next() else { bail!("an empty list") };
    let shape = first.shape.clone();
    for next in all {
        ensure!(next.shape == shape, "found shapes {shape:?} and {:?}, expected one", next.shape);
        match (&mut first.values, next.values) {
            (Values::F32(a), Values::F32(b)) => a.extend(b),
            (Values::F64(a), Values::F64(b)) => a.extend(b),
            (Values::U8(a), Values::U8(b)) => a.extend(b),
            (a, b) => bail!("found {} and {}, expected one kind", a.kind(), b.kind()),
        }
    }
    first.shape.insert(0, rows);
    Ok(first)
}

fn flatten<'a>(value: &'a Value, depth: usize, shape: &mut Vec<usize>, leaves: &mut Vec<&'a Value>) -> Result<()> {
    match value {
        Value::Array(list) => {
            ensure!(depth < MAX_AXES, "more than {MAX_AXES} lists in each other");
            if depth == shape.len() && leaves.is_empty() {
                shape.push(list.len());
            }
            let expected = shape.get(depth).copied();
            ensure!(expected == Some(list.len()), "found lists of different lengths or depths, expected a rectangle");
            list.iter().try_for_each(|inner| flatten(inner, depth + 1, shape, leaves))
        }
        leaf => {
            ensure!(depth == shape.len(), "found lists of different lengths or depths, expected a rectangle");
            leaves.push(leaf);
            Ok(())
        }
    }
}

/// A picture of 8 bits a channel as `[height, width, 3]`: palettes and greys become colours, as Pillow's `convert("RGB")`
/// has them. What would lose something (16 bits, transparency) is refused.
fn picture(path: &Path) -> Result<Array> {
    let file = File::open(path)?;
    let limits = png::Limits { bytes: MAX_BYTES as usize };
    let mut decoder = png::Decoder::new_with_limits(BufReader::new(file), limits);
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info()?;
    let (color, depth) = reader.output_color_type();
    ensure!(depth == png::BitDepth::Eight, "found 16 bits a channel, expected 8: what a camera gives");
    let bytes = reader.output_buffer_size().filter(|n| *n as u64 <= MAX_BYTES).context("the picture is too large")?;
    let mut data = vec![0; bytes];
    let info = reader.next_frame(&mut data)?;
    data.truncate(info.buffer_size());
    let opaque = |n: usize| data.chunks_exact(n).all(|pixel| pixel.last() == Some(&255));
    let grey = |n: usize| data.chunks_exact(n).flat_map(|pixel| [pixel[0]; 3]).collect();
    let transparent = "found transparent pixels, expected an opaque picture: what stands behind them is not known";
    let values = match color {
        png::ColorType::Rgb => data,
        png::ColorType::Grayscale => grey(1),
        png::ColorType::GrayscaleAlpha => {
            ensure!(opaque(2), transparent);
            grey(2)
        }
        png::ColorType::Rgba => {
            ensure!(opaque(4), transparent);
            data.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
        }
        png::ColorType::Indexed => bail!("a palette that was not expanded"),
    };
    Ok(Array { shape: vec![info.height as usize, info.width as usize, 3], values: Values::U8(values) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Array> {
        json(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn lists_become_arrays() {
        let array = parse("[[1, 2.5], [3, 4]]").unwrap();
        assert_eq!((array.shape, array.values), (vec![2, 2], Values::F64(vec![1.0, 2.5, 3.0, 4.0])));
        assert_eq!(parse("[1, 0]").unwrap().flags(), Some(vec![true, false]));
        assert_eq!(parse("[true]").unwrap().values, Values::Bool(vec![true]));
        assert_eq!(parse("true").unwrap().shape, Vec::<usize>::new());
    }

    #[test]
    fn lists_that_are_no_rectangle_are_refused() {
        for text in ["[[1], [1, 2]]", "[1, [2]]", "[[1], 2]", "[[], [1]]"] {
            assert!(parse(text).unwrap_err().to_string().contains("rectangle"), "{text}");
        }
        assert!(parse("[1, null]").unwrap_err().to_string().contains("null"));
        assert!(parse("[true, 1]").unwrap_err().to_string().contains("true"));
    }

    fn png(color: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Result<Array> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 2, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        file(&path)
    }

    #[test]
    fn pictures_of_every_kind_become_colours() {
        use png::{BitDepth, ColorType};
        let colours = |values: &[u8]| Array { shape: vec![1, 2, 3], values: Values::U8(values.to_vec()) };
        let eight = BitDepth::Eight;
        assert_eq!(png(ColorType::Rgb, eight, &[1, 2, 3, 4, 5, 6]).unwrap(), colours(&[1, 2, 3, 4, 5, 6]));
        assert_eq!(png(ColorType::Rgba, eight, &[1, 2, 3, 255, 4, 5, 6, 255]).unwrap(), colours(&[1, 2, 3, 4, 5, 6]));
        assert_eq!(png(ColorType::Grayscale, eight, &[7, 8]).unwrap(), colours(&[7, 7, 7, 8, 8, 8]));
        let error = png(ColorType::Rgba, eight, &[1, 2, 3, 255, 4, 5, 6, 0]).unwrap_err();
        assert!(format!("{error:#}").contains("transparent"));
        let error = png(ColorType::Rgb, BitDepth::Sixteen, &[0; 12]).unwrap_err();
        assert!(format!("{error:#}").contains("16 bits"));
    }
}
