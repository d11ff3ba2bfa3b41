//! openpi's running statistics, recorded, and ours of the same batches.
#![cfg(feature = "robot")]

use std::path::Path;

use pi0_burn::policy::statistics::Summary;
use pi0_burn::policy::statistics::running::{Real, vectors};
use safetensors::{Dtype, SafeTensors};

fn golden() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/statistics/running.safetensors")).unwrap()
}

/// A recorded array as f64, with its dtype and shape.
fn array(set: &SafeTensors, name: &str) -> (Dtype, Vec<usize>, Vec<f64>) {
    let view = set.tensor(name).unwrap();
    let data = view.data();
    let values = match view.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        other => panic!("{name}: {other:?}"),
    };
    (view.dtype(), view.shape().to_vec(), values)
}

/// Batches as elements, and the rows of each.
fn fed<R: Real>(set: &SafeTensors, case: &str) -> (Vec<Vec<R>>, Vec<usize>) {
    let mut names: Vec<&str> = set.names().into_iter().filter(|n| n.starts_with(&format!("{case}/in/"))).collect();
    names.sort_unstable();
    let mut elements: Vec<Vec<R>> = vec![];
    let mut rows = vec![];
    for name in names {
        let (_, shape, values) = array(set, name);
        let width = *shape.last().unwrap();
        elements.resize(width, vec![]);
        rows.push(values.len() / width);
        for (i, value) in values.into_iter().enumerate() {
            elements[i % width].push(R::of(value));
        }
    }
    (elements, rows)
}

fn compare<R: Real>(set: &SafeTensors, case: &str) {
    let (elements, rows) = fed::<R>(set, case);
    let all = vectors(&elements, &rows);
    type Figure = fn(&Summary) -> f64;
    let lists: [(&str, Figure); 6] = [
        ("mean", |s| s.mean),
        ("std", |s| s.std),
        ("q01", |s| s.q01),
        ("q99", |s| s.q99),
        ("min", |s| s.min),
        ("max", |s| s.max),
    ];
    for (what, of) in lists {
        let expected = array(set, &format!("{case}/out/{what}")).2;
        let found: Vec<f64> = all.iter().map(of).collect();
        assert_eq!(found, expected, "{case}/{what}");
    }
}

#[test]
fn every_recorded_case_is_reproduced_bit_for_bit() {
    let bytes = golden();
    let set = SafeTensors::deserialize(&bytes).unwrap();
    for case in ["b32", "mixed", "one_batch"] {
        assert_eq!(array(&set, &format!("{case}/in/batch000")).0, Dtype::F32);
        compare::<f32>(&set, case);
    }
    for case in ["b1", "grow", "const_dim"] {
        assert_eq!(array(&set, &format!("{case}/in/batch000")).0, Dtype::F64);
        compare::<f64>(&set, case);
    }
}
