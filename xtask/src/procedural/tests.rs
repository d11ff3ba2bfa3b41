//! The formula and the trees, held against check values recorded from JAX.

use super::*;
use recording::{MODELS, Recorded};
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn each(prefix: &str, test: impl Fn(&Leaf, &Recorded)) {
    for model in MODELS {
        let model = format!("{prefix}{model}");
        let leaves = tree::leaves(root(), &model).unwrap();
        let recorded = recording::read(root(), &model).unwrap();
        assert_eq!(
            leaves.iter().map(|leaf| &leaf.name).collect::<Vec<_>>(),
            recorded.iter().map(|leaf| &leaf.name).collect::<Vec<_>>(),
            "{model}"
        );
        for (leaf, recorded) in leaves.iter().zip(&recorded) {
            test(leaf, recorded);
        }
    }
}

#[test]
fn names_shapes_and_formulas_of_every_leaf_are_those_recorded() {
    for prefix in ["", "tiny_"] {
        each(prefix, |leaf, recorded| {
            let what = &leaf.name;
            assert_eq!(leaf.shape, recorded.shape, "{what}");
            assert_eq!(format!("{:016x}", leaf.seed), recorded.seed, "{what}");
            assert_eq!(format!("{:08x}", leaf.scale.to_bits()), recorded.scale, "{what}");
            assert_eq!(leaf.offset, recorded.offset, "{what}");
        });
    }
}

#[test]
fn first_last_and_middle_values_of_every_full_size_leaf_are_those_recorded() {
    each("", |leaf, recorded| {
        let n = leaf.len();
        let values = |indices: &[u64]| indices.iter().map(|index| leaf.value(*index)).collect::<Vec<_>>();
        let f32 = |values: Vec<f32>| values.iter().map(|value| format!("{:08x}", value.to_bits())).collect::<Vec<_>>();
        let bf16 = |values: Vec<f32>| {
            values.iter().map(|value| format!("{:04x}", bf16::from_f32(*value).to_bits())).collect::<Vec<_>>()
        };
        for (indices, f32_bits, bf16_bits) in [
            (vec![0, 1, 2, 3], recorded.f32.first.clone(), recorded.bf16.first.clone()),
            (vec![n - 2, n - 1], recorded.f32.last.clone(), recorded.bf16.last.clone()),
            (vec![n / 2], vec![recorded.f32.mid.clone()], vec![recorded.bf16.mid.clone()]),
        ] {
            assert_eq!(f32(values(&indices)), f32_bits, "{}", leaf.name);
            assert_eq!(bf16(values(&indices)), bf16_bits, "{}", leaf.name);
        }
    });
}

#[test]
fn every_value_of_the_tiny_models_adds_up_to_the_recorded_sums() {
    each("tiny_", |leaf, recorded| {
        assert_eq!(leaf.sum(Dtype::F32, 0, leaf.len()), recorded.f32.sum, "{}", leaf.name);
        assert_eq!(leaf.sum(Dtype::Bf16, 0, leaf.len()), recorded.bf16.sum, "{}", leaf.name);
    });
}

#[test]
fn a_value_does_not_depend_on_where_the_buffer_starts() {
    let leaf = Leaf::new("a/kernel".to_owned(), vec![64, 16], 1.0);
    let (mut whole, mut part) = (vec![0.0; 1024], vec![0.0; 24]);
    leaf.fill(0, &mut whole);
    leaf.fill(1000, &mut part);
    assert_eq!(whole[1000..], part);
    assert_ne!(whole[..24], part);
}
