//! Token by token: both ways of counting positions, both ways of stopping, and chance as an argument.

#![cfg(feature = "model")]

use std::path::Path;

use burn::tensor::{DType, Int, Tensor, TensorData};
use pi0_burn::device::{Precision, device};
use pi0_burn::model::fast::Next;
use pi0_burn::model::observation::{Flags, Observation};
use pi0_burn::model::{Pi, Taps};
use pi0_burn::sample::tokens::{Choice, END, Limits, Stop, sample_tokens};
use pi0_burn::verify::record::observation;
use pi0_burn::verify::set::Set;
use pi0_burn::weights::load::{Load, load};
use pi0_burn::weights::open::{Choice as Tree, Opened};

/// The model of a golden set, and its observation.
fn golden(name: &str) -> (Pi, Observation) {
    let set = Set::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)).expect("a set");
    let opened = Opened::open(&set.weights().expect("weights"), &Tree::default()).expect("a checkpoint");
    let how = Load {
        from: None,
        parameters: Precision::F32.parameters(),
        activations: DType::F32,
        lora_scale: 1.0,
        threads: 1,
        pack: false,
        digest: false,
    };
    let pi = load(&opened, &how, &device("cpu").expect("the CPU"), &()).expect("a model").pi;
    let prompt = if set.arrays.contains_key("infer/tokenized_prompt") { "infer" } else { "in" };
    let observation = observation(&pi, &set, prompt).expect("an observation");
    (pi, observation)
}

fn limits(max_decoding_steps: usize, stop: Stop, next: Next) -> Limits {
    Limits { max_decoding_steps, stop, next }
}

fn greedy(pi: &Pi, observation: &Observation, limits: Limits) -> Vec<Vec<i32>> {
    sample_tokens(pi, observation, limits, Choice::Greedy, &|_| None, &mut Taps::off(), &mut || {})
}

/// One row of it, with `more` tokens after the valid ones.
fn row(observation: &Observation, row: usize, more: &[i32]) -> Observation {
    let valid = observation.prompt.mask.count(row);
    let tokens: Vec<i32> = observation.prompt.tokens.to_data().iter::<i32>().collect();
    let cols = observation.prompt.mask.cols;
    let mut words = tokens[row * cols..row * cols + valid].to_vec();
    words.extend_from_slice(more);
    let n = words.len();
    let old = observation.prompt.ar.clone().expect("pi0-FAST");
    let mut one = observation.clone();
    for camera in &mut one.cameras {
        camera.image = camera.image.clone().narrow(0, row, 1);
        camera.mask = vec![camera.mask[row]];
    }
    one.state = one.state.narrow(0, row, 1);
    let device = one.state.device();
    one.prompt.tokens = Tensor::<2, Int>::from_data(TensorData::new(words, [1, n]), (&device, DType::I32));
    one.prompt.mask = Flags::all(1, n, true);
    one.prompt.ar = Some(Flags::build(1, n, |_, t| t >= valid || old.get(row, t)));
    one.prompt.loss = None;
    one
}

fn distance(a: &Tensor<2>, b: &Tensor<2>) -> f32 {
    (a.clone() - b.clone()).abs().max().into_scalar::<f32>()
}

#[test]
fn fixed_positions_decode_as_one_reading_of_prompt_and_tokens_would() {
    let (pi, both) = golden("pi0fast_f32");
    let one = row(&both, 1, &[]);
    let tokens = greedy(&pi, &one, limits(4, Stop::EachRow, Next::Fixed)).remove(0);
    let mut decoding = pi.read_prompt(&one, Next::Fixed, 0, &mut Taps::off());
    for (s, token) in tokens.iter().enumerate() {
        pi.read_token(&mut decoding, &[*token]);
        let whole = pi.read_prompt(&row(&both, 1, &tokens[..=s]), Next::Fixed, 0, &mut Taps::off());
        let off = distance(&decoding.logits, &whole.logits);
        assert!(off < 1e-5, "after {} tokens: {off}", s + 1);
    }
}

#[test]
fn reference_positions_skip_one() {
    let (pi, both) = golden("pi0fast_f32");
    let one = row(&both, 1, &[]);
    let read = |next| {
        let mut decoding = pi.read_prompt(&one, next, 0, &mut Taps::off());
        pi.read_token(&mut decoding, &[7]);
        decoding.logits
    };
    assert!(distance(&read(Next::Reference), &read(Next::Fixed)) > 1e-4);
}

#[test]
fn a_row_that_ends_is_followed_by_nothing_where_each_row_counts() {
    let (pi, one) = golden("pi0fast_eos_f32");
    let ended = greedy(&pi, &one, limits(24, Stop::EachRow, Next::Reference)).remove(0);
    assert_eq!(ended.last(), Some(&END));
    assert_eq!(ended, greedy(&pi, &one, limits(24, Stop::AllAtOnce, Next::Reference)).remove(0));
    assert_eq!(greedy(&pi, &one, limits(2, Stop::EachRow, Next::Reference)).remove(0), ended[..2]);
}

#[test]
fn the_same_numbers_choose_the_same_tokens() {
    let (pi, both) = golden("pi0fast_f32");
    let draw = |seed: u64| {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let choice = Choice::Temperature(1.0, &mut next);
        sample_tokens(
            &pi,
            &both,
            limits(6, Stop::AllAtOnce, Next::Reference),
            choice,
            &|_| None,
            &mut Taps::off(),
            &mut || {},
        )
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}
