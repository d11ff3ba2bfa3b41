//! The plan at openpi's real sizes, from the parameter counts of its own trees.

use super::*;

const VISION: Vision = Vision { width: 1152, depth: 27, mlp: 4304, heads: 16, tokens: 256 };

fn gemma(width: u64, mlp: u64, tokens: u64) -> Expert {
    Expert { width, depth: 18, mlp, heads: 8, kv_heads: 1, head_size: 256, tokens }
}

/// pi0: 768 image tokens, 48 of the prompt, 50 actions and the state.
fn pi0(counts: Counts, ema: bool, batch: u64) -> Sizes {
    Sizes {
        vision: VISION,
        images: 3,
        experts: vec![gemma(2048, 16_384, 816), gemma(1024, 4096, 51)],
        logits: (0, 0),
        counts,
        batch,
        accumulated: false,
        bf16: true,
        moments: 2,
        ema,
    }
}

const FULL: Counts = Counts { trainable: 3_238_048_528, frozen: 0, largest: 526_647_296, block: 127_000_000 };
const LORA: Counts = Counts { trainable: 468_039_440, frozen: 2_819_996_672, largest: 4_958_208, block: 129_000_000 };

#[test]
fn weights_gradients_moments_and_the_average_are_five_times_the_weights() {
    let plan = pi0(FULL, true, 1).plan();
    let always: u64 = plan.parts.iter().filter(|p| p.when == When::Always).map(|p| p.bytes).sum();
    assert_eq!(always, 5 * 12_952_194_112);
    assert!(plan.parts.iter().all(|p| p.name != "frozen weights, bf16"));
}

#[test]
fn low_rank_pairs_fit_into_16_gb() {
    assert_eq!(LORA.all(), 3_288_036_112);
    let plan = pi0(LORA, false, 1).plan();
    assert!(plan.fits(16_000_000_000).is_ok(), "{plan}");
    assert!((14.0..15.0).contains(&(plan.total as f64 / 1e9)), "{plan}");
}

#[test]
fn all_of_pi0_with_its_average_fits_into_70_gb() {
    let plan = pi0(FULL, true, 1).plan();
    assert!(plan.fits(70_000_000_000).is_ok(), "{plan}");
}

#[test]
fn only_the_greater_of_two_moments_counts() {
    let plan = pi0(FULL, true, 1).plan();
    let sum = |when| plan.parts.iter().filter(|p| p.when == when).map(|p| p.bytes).sum::<u64>();
    assert_eq!(plan.total, sum(When::Always) + sum(When::Update).max(sum(When::Backward)));
    assert!(sum(When::Update) > 0 && sum(When::Update) < sum(When::Backward), "weights change piece by piece");
    let many = pi0(FULL, true, 64).plan();
    assert!(many.total > plan.total && many.parts[0] == plan.parts[0]);
}

#[test]
fn an_example_costs_the_same_in_every_batch() {
    let (one, two) = (pi0(LORA, false, 8).plan(), pi0(LORA, false, 9).plan());
    assert!((two.total - one.total).abs_diff(one.example) < 32, "{one}\n{two}");
}

#[test]
fn what_would_fit_is_told() {
    let plan = pi0(LORA, false, 64).plan();
    let refused = plan.fits(24_000_000_000).unwrap_err().to_string();
    let most: u64 = refused.split("; ").nth(1).and_then(|t| t.split(' ').next()?.parse().ok()).expect("a number");
    assert!(pi0(LORA, false, most).plan().fits(24_000_000_000).is_ok(), "{refused}");
    assert!(pi0(LORA, false, most + 1).plan().fits(24_000_000_000).is_err(), "{refused}");
    let refused = pi0(FULL, true, 4).plan().fits(24_000_000_000).unwrap_err().to_string();
    assert!(refused.contains("not even one example") && refused.contains("found 24.00 GB"), "{refused}");
}

#[test]
fn logits_are_counted_where_actions_are_tokens() {
    let fast =
        |tokens| Sizes { experts: vec![gemma(2048, 16_384, 1018)], logits: (tokens, 257_152), ..pi0(FULL, true, 2) };
    let logits = |sizes: Sizes| sizes.plan().parts.iter().find(|p| p.name == "logits, f32").map(|p| p.bytes);
    assert_eq!(logits(fast(249)), Some(2 * 249 * 257_152 * 4 * 3));
    assert_eq!(logits(fast(0)), None);
}

#[test]
fn values_are_counted_by_fate_and_by_block() {
    let parameters = [
        ("img.blocks.0.norm1.gamma", 5),
        ("img.norm.gamma", 100),
        ("llm.blocks.0.experts.0.q.weight", 20),
        ("llm.blocks.0.experts.1.q.weight", 30),
        ("llm.blocks.10.experts.0.q.weight", 21),
    ];
    let counts = Counts::of(parameters, &BTreeSet::from(["img.norm.gamma"]));
    assert_eq!(counts, Counts { trainable: 76, frozen: 100, largest: 30, block: 50 });
}

#[test]
fn the_plan_is_a_table() {
    insta::assert_snapshot!(pi0(LORA, false, 1).plan());
}
