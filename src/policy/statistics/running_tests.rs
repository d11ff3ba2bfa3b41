//! What numpy does in corners. `tests/statistics.rs` has what openpi recorded.

use super::*;

#[test]
fn a_single_column_is_summed_in_pairs_as_numpy_does() {
    // numpy.mean of (numpy.arange(1000, dtype=float32) ** 2 / 7 + 0.1).reshape(-1, 1) and of its first rows.
    let values: Vec<f32> = (0..1000).map(|i| (i * i) as f32 / 7.0 + 0.1).collect();
    let paired = [(5, 0.957_142_83_f32), (100, 469.171_42), (300, 4_264.409_7), (1000, 47_547.74)];
    for (n, expected) in paired {
        assert_eq!(pairwise(&values[..n]) / n as f32, expected, "{n} rows");
    }
}
