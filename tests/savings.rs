//! What is saved when nobody listens changes no result: padding dropped, the last layer cut short, times made once.

#![cfg(feature = "model")]

mod tool;

use burn::tensor::{DType, Tensor, TensorData};
use pi0_burn::device::{Precision, device};
use pi0_burn::model::observation::Observation;
use pi0_burn::model::{Padding, Pi, Taps};
use pi0_burn::sample::flow::{Steps, sample_actions};
use pi0_burn::verify::against::observed;
use pi0_burn::verify::record::observation;
use pi0_burn::weights::load::{Load, load};
use pi0_burn::weights::open::{Choice, Opened};

fn model(name: &str) -> Pi {
    let device = device("cpu").expect("the CPU");
    let opened = Opened::open(&tool::checkpoint(name), &Choice::default()).expect("a checkpoint");
    let how = Load {
        from: None,
        parameters: Precision::F32.parameters(),
        activations: DType::F32,
        lora_scale: 1.0,
        threads: 1,
        pack: false,
        digest: false,
    };
    load(&opened, &how, &device, &()).expect("a model").pi
}

/// One row, whose last camera is masked and whose prompt is padded; and noise for it.
fn masked(pi: &Pi) -> (Observation, Tensor<3>) {
    let set = observed(pi, 3, 1e-5).expect("an observation");
    let mut both = observation(pi, &set, "in").expect("an observation");
    let second = |x: Tensor<4>| x.narrow(0, 1, 1);
    for camera in &mut both.cameras {
        camera.image = second(camera.image.clone());
        camera.mask = vec![camera.mask[1]];
    }
    both.state = both.state.narrow(0, 1, 1);
    both.prompt.tokens = both.prompt.tokens.narrow(0, 1, 1);
    both.prompt.mask.bits = both.prompt.mask.row(1).to_vec();
    both.prompt.mask.rows = 1;
    assert!(both.cameras.iter().any(|c| !c.mask[0]) && both.prompt.mask.bits.contains(&false));
    let noise = &set.arrays["sample/noise"];
    let (horizon, a) = (noise.shape[1], noise.shape[2]);
    let data = TensorData::new(noise.values[horizon * a..].to_vec(), [1, horizon, a]);
    (both, Tensor::from_data(data, (&pi.device(), DType::F32)))
}

fn furthest(a: Tensor<3>, b: Tensor<3>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

#[test]
fn dropping_masked_images_and_padding_changes_no_action() {
    for name in ["base/pi0/params", "base/pi05/params"] {
        let pi = model(name);
        let (observation, noise) = masked(&pi);
        let kept = pi.embed_prefix(&observation, Padding::Keep, &mut Taps::off());
        let dropped = pi.embed_prefix(&observation, Padding::Drop, &mut Taps::off());
        assert!(dropped.mask.bits.iter().all(|b| *b) && dropped.mask.cols < kept.mask.cols);
        let steps = Steps::new(&pi, 10);
        let run = |padding| sample_actions(&pi, &observation, noise.clone(), &steps, padding, &mut Taps::off());
        let off = furthest(run(Padding::Keep), run(Padding::Drop));
        assert!(off <= 5e-6, "{name}: {off}");
    }
}

#[test]
fn a_prefix_that_is_only_cached_has_the_same_keys_and_values() {
    let pi = model("base/pi0/params");
    let (observation, _) = masked(&pi);
    let prefix = pi.embed_prefix(&observation, Padding::Keep, &mut Taps::off());
    // Listening runs the last layer to its end.
    let mut heard = 0;
    let mut hear = |_: &str, _: TensorData| heard += 1;
    let whole = pi.read_prefix(prefix.clone(), &mut Taps::on(&mut hear)).cache;
    let short = pi.read_prefix(prefix, &mut Taps::off()).cache;
    assert!(heard > 0);
    assert_eq!(whole.keys().into_data(), short.keys().into_data());
    assert_eq!(whole.values().into_data(), short.values().into_data());
}

#[test]
fn times_made_once_for_all_steps_are_those_made_for_each() {
    let pi = model("base/pi05/params");
    let times = Steps::new(&pi, 10).times().to_vec();
    assert_eq!(times.len(), 10);
    let all = pi.condition(&times, &mut Taps::off());
    for (i, time) in times.iter().enumerate() {
        let one = pi.condition(&[*time], &mut Taps::off());
        let (all, one) = (all.row(i).modulations.expect("pi0.5"), one.modulations.expect("pi0.5"));
        for ([a, b], [c, d]) in all.layers.into_iter().zip(one.layers) {
            for (x, y) in [(a, c), (b, d)] {
                for (x, y) in [(x.scale, y.scale), (x.shift, y.shift), (x.gate, y.gate)] {
                    let off = furthest(x, y);
                    assert!(off <= 1e-6, "time {time}: {off}");
                }
            }
        }
    }
}

#[test]
fn more_steps_than_one_never_run_past_zero() {
    let pi = model("base/pi0/params");
    for n in [1, 2, 3, 5, 7, 10, 13, 50, 64, 100] {
        let steps = Steps::new(&pi, n);
        assert_eq!(steps.times().len(), n, "{n}");
        assert!(steps.times().iter().all(|t| *t > 0.0));
    }
}
