//! Made-up examples of any size, for a first run of a model without data.
//!
//! Source: openpi 15a9616, training/data_loader.py (`FakeDataset`) and the `inputs_spec` of its models: uniform numbers,
//! tokens below 2048. Two differences: pictures are bytes, as every robot's are, and masks are true: openpi's are all
//! false, so that its models see nothing of an example and pi0-FAST learns nothing from it. Of pi0-FAST the second half of
//! a row is the answer.
//!
//! Invariant: an example is a function of seed and index.

use super::{Example, ExampleError, Examples};
use crate::chance::Stream;
use crate::policy::array::{Array, Values};
use crate::policy::image::CHANNELS;
use crate::policy::record::Record;

/// As many as openpi's has.
pub const NUM_SAMPLES: usize = 1024;
/// openpi draws tokens below this.
const TOKENS: usize = 2048;

/// What a model takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// Names of its pictures.
    pub slots: Vec<String>,
    /// Rows and columns of a picture.
    pub image: (usize, usize),
    /// A.
    pub action_dim: usize,
    /// H.
    pub action_horizon: usize,
    /// L.
    pub max_token_len: usize,
    /// Rows of its embedding.
    pub vocabulary: usize,
    /// Does it answer in tokens, as pi0-FAST?
    pub answers: bool,
}

/// Made-up examples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fake {
    /// What the model takes.
    pub inputs: Inputs,
    /// Where chance begins.
    pub seed: u64,
    /// How many there are.
    pub num_samples: usize,
}

impl Fake {
    /// As many as openpi's.
    pub fn new(inputs: Inputs, seed: u64) -> Self {
        Fake { inputs, seed, num_samples: NUM_SAMPLES }
    }
}

impl Examples for Fake {
    fn len(&self) -> usize {
        self.num_samples
    }

    fn name(&self) -> &str {
        "fake"
    }

    fn example(&self, index: usize) -> Result<Example, ExampleError> {
        let Inputs { slots, image: (h, w), action_dim, action_horizon, max_token_len, vocabulary, answers } =
            &self.inputs;
        let chance = |name: &str| Stream::new(self.seed, &format!("fake/{name}"), index);
        let uniform = |name: &str, shape: &[usize]| {
            let mut stream = chance(name);
            let count = shape.iter().product();
            Array::f32(shape, (0..count).map(|_| (2.0 * stream.unit() - 1.0) as f32).collect())
        };
        let mut record = Record::default();
        for slot in slots {
            let (mut stream, bytes) = (chance(&format!("image/{slot}")), h * w * CHANNELS);
            let mut pixels: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| stream.bits().to_le_bytes()).collect();
            pixels.truncate(bytes);
            record.put_array(format!("image/{slot}"), Array::u8([*h, *w, CHANNELS], pixels));
            record.put_array(format!("image_mask/{slot}"), Array::flag(true));
        }
        record.put_array("state", uniform("state", &[*action_dim]));
        record.put_array("actions", uniform("actions", &[*action_horizon, *action_dim]));
        let len = *max_token_len;
        let (mut stream, below) = (chance("tokenized_prompt"), TOKENS.min(*vocabulary).max(1) as u64);
        let tokens = (0..len).map(|_| stream.below(below) as i32).collect();
        record.put_array("tokenized_prompt", Array::new([len], Values::I32(tokens)));
        record.put_array("tokenized_prompt_mask", Array::new([len], Values::Bool(vec![true; len])));
        if *answers {
            let answer = |at: usize| at >= len / 2;
            let causal = (0..len).map(|at| i32::from(answer(at))).collect();
            record.put_array("token_ar_mask", Array::new([len], Values::I32(causal)));
            record.put_array("token_loss_mask", Array::new([len], Values::Bool((0..len).map(answer).collect())));
        }
        Ok(Example { record, padded: vec![false; *action_horizon], notices: vec![] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(seed: u64, answers: bool) -> Fake {
        let slots = ["base_0_rgb", "wrist_0_rgb"].map(str::to_owned).to_vec();
        let (action_dim, action_horizon, max_token_len, vocabulary) = (7, 10, 48, 512);
        Fake::new(
            Inputs { slots, image: (14, 28), action_dim, action_horizon, max_token_len, vocabulary, answers },
            seed,
        )
    }

    #[test]
    fn an_example_has_what_the_model_takes_and_nothing_out_of_range() {
        let example = fake(0, true).example(5).unwrap();
        let array = |key: &str| example.record.array(key).unwrap();
        assert_eq!(array("image/base_0_rgb").to_string(), "uint8[14, 28, 3]");
        assert_eq!(array("image_mask/wrist_0_rgb").to_string(), "bool[]");
        assert_eq!(array("state").to_string(), "float32[7]");
        assert_eq!(array("actions").to_string(), "float32[10, 7]");
        assert_eq!(array("tokenized_prompt").to_string(), "int32[48]");
        assert!(array("tokenized_prompt").integers().unwrap().iter().all(|id| (0..512).contains(id)));
        assert!(array("actions").values.to_f64().iter().all(|x| (-1.0..=1.0).contains(x)));
        assert_eq!(array("token_ar_mask").integers().unwrap().iter().sum::<i64>(), 24);
        assert_eq!(array("token_loss_mask").to_string(), "bool[48]");
        assert_eq!(example.padded, [false; 10]);
        assert_eq!(fake(0, false).example(5).unwrap().record.values.len(), example.record.values.len() - 2);
    }

    #[test]
    fn seed_and_index_alone_decide() {
        let of = |seed, index| fake(seed, false).example(index).unwrap();
        assert_eq!(of(0, 5), of(0, 5));
        for other in [of(0, 6), of(1, 5)] {
            for key in ["image/base_0_rgb", "state", "actions", "tokenized_prompt"] {
                assert_ne!(of(0, 5).record.array(key), other.record.array(key), "{key}");
            }
        }
    }
}
