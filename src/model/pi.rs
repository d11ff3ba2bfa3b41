//! The model: pi0, pi0.5 and pi0-FAST in one type. What differs between them is in [`Settings`].
//!
//! Field names are the parameters' canonical names (`converters/remap/src/pi0.map`, column `burn`).
//! Source: openpi 15a9616, models/pi0.py and models/pi0_fast.py.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};

use super::language::Language;
use super::linear::Linear;
use super::observation::{Flags, Observation};
use super::settings::{Head, Settings};
use super::tap::Taps;
use super::vision::Vision;

/// A pi0, pi0.5 or pi0-FAST.
#[derive(Module, Debug)]
pub struct Pi {
    /// SigLIP.
    pub img: Vision,
    /// Gemma, with the action expert.
    pub llm: Language,
    /// `[A, W]`: a noisy action to a token.
    pub action_in_proj: Option<Linear>,
    /// `[W, A]`: a token to a velocity.
    pub action_out_proj: Option<Linear>,
    /// pi0: `[A, W]`, the state to a token.
    pub state_proj: Option<Linear>,
    /// pi0: `[2 W, W]`.
    pub action_time_mlp_in: Option<Linear>,
    /// pi0: `[W, W]`.
    pub action_time_mlp_out: Option<Linear>,
    /// pi0.5: `[W, W]`.
    pub time_mlp_in: Option<Linear>,
    /// pi0.5: `[W, W]`.
    pub time_mlp_out: Option<Linear>,
    #[module(skip)]
    settings: Settings,
    #[module(skip)]
    activations: DType,
}

/// Does what nobody may see still run?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// As JAX does: every image and every padded token, so that every intermediate is there.
    Keep,
    /// Images and tokens that are masked in every row are left out. No result changes: nobody may see them, and they
    /// take no position.
    Drop,
}

/// Embedded images and prompt.
#[derive(Debug, Clone)]
pub struct Prefix {
    /// `[B, P, W]`, in the activations' dtype.
    pub tokens: Tensor<3>,
    /// `[B, P]`: which are no padding.
    pub mask: Flags,
    /// `[B, P]`: which begin a block that those before do not see.
    pub ar: Flags,
}

impl Pi {
    /// A model without weights: it takes no memory until they are loaded.
    pub fn init(settings: &Settings, activations: DType, device: &Device) -> Self {
        let (language, action) = (settings.experts.first(), settings.experts.get(1));
        let w = action.map_or(0, |e| e.width);
        let projection = |wanted: bool, x: usize, y: usize| wanted.then(|| Linear::init_biased(x, y, device));
        let a = settings.action_dim().unwrap_or(0);
        let (flow, pi0) = (a > 0, matches!(settings.head, Head::StateToken { .. }));
        Pi {
            img: Vision::init(&settings.vision, language.map_or(0, |e| e.width), device),
            llm: Language::init(&settings.experts, settings.vocabulary, device),
            action_in_proj: projection(flow, a, w),
            action_out_proj: projection(flow, w, a),
            state_proj: projection(pi0, a, w),
            action_time_mlp_in: projection(pi0, 2 * w, w),
            action_time_mlp_out: projection(pi0, w, w),
            time_mlp_in: projection(flow && !pi0, w, w),
            time_mlp_out: projection(flow && !pi0, w, w),
            settings: settings.clone(),
            activations,
        }
    }

    /// What it is made of.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The dtype in which it computes.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.img.pos.device()
    }

    /// Rearranges the bf16 weights of both towers for the CPU's matrix instructions, one at a time. For inference: packed
    /// weights are constants, and no longer in the order in which a file has them.
    pub fn pack(&mut self) {
        self.img.pack();
        self.llm.pack();
    }

    /// Canonical name and shape of every parameter, in the module's order. Initialises none.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        struct Names {
            path: Vec<String>,
            found: Vec<(String, Vec<usize>)>,
        }
        impl ModuleVisitor for Names {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.found.push((self.path.join("."), param.lazy_shape().to_vec()));
            }
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name.to_owned());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
        }
        let mut names = Names { path: vec![], found: vec![] };
        self.visit(&mut names);
        names.found
    }

    /// Images in their order, then the prompt.
    pub(super) fn embed(&self, observation: &Observation, padding: Padding, taps: &mut Taps<'_>) -> Prefix {
        let layout = Layout::of(observation, padding);
        let images = layout.images(observation).map(|images| {
            // All images are one batch.
            taps.share(layout.cameras.iter().map(|c| format!("siglip/{}/", observation.cameras[*c].name)).collect());
            let tokens = self.img.forward(images, self.activations, taps);
            taps.share(vec![]);
            tokens
        });
        let words = layout.words(observation).map(|words| self.llm.embed.encode(words, self.activations));
        layout.join(observation, images, words)
    }
}

/// What of an observation is read.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Cameras, by their place in the observation.
    cameras: Vec<usize>,
    /// Columns of the prompt.
    columns: Vec<usize>,
}

impl Layout {
    /// All of it, or only what somebody may see.
    pub(crate) fn of(observation: &Observation, padding: Padding) -> Self {
        let (b, prompt) = (observation.batch(), &observation.prompt);
        let keep = |seen: bool| seen || padding == Padding::Keep;
        let camera = |c: &usize| keep(observation.cameras[*c].mask.contains(&true));
        let column = |col: &usize| keep((0..b).any(|row| prompt.mask.get(row, *col)));
        Layout {
            cameras: (0..observation.cameras.len()).filter(camera).collect(),
            columns: (0..prompt.mask.cols).filter(column).collect(),
        }
    }

    /// All images as one batch, camera by camera: `[cameras B, side, side, 3]`.
    pub(crate) fn images(&self, observation: &Observation) -> Option<Tensor<4>> {
        let images: Vec<_> = self.cameras.iter().map(|c| observation.cameras[*c].image.clone()).collect();
        (!images.is_empty()).then(|| Tensor::cat(images, 0))
    }

    /// Tokens of the prompt, `[B, T]`.
    pub(crate) fn words(&self, observation: &Observation) -> Option<Tensor<2, burn::tensor::Int>> {
        let prompt = &observation.prompt;
        if self.columns.is_empty() {
            return None;
        }
        let all = self.columns.len() == prompt.mask.cols;
        Some(if all { prompt.tokens.clone() } else { pick(&prompt.tokens, &self.columns) })
    }

    /// Embedded images `[cameras B, S, W]` and words `[B, T, W]` as one sequence.
    pub(crate) fn join(
        &self,
        observation: &Observation,
        images: Option<Tensor<3>>,
        words: Option<Tensor<3>>,
    ) -> Prefix {
        let b = observation.batch();
        let (mut tokens, mut masks) = (vec![], vec![]);
        for (i, camera) in self.cameras.iter().enumerate() {
            let Some(all) = &images else { continue };
            let image = all.clone().narrow(0, i * b, b);
            let mask = &observation.cameras[*camera].mask;
            masks.push(Flags::build(b, image.dims()[1], |row, _| mask[row]));
            tokens.push(image);
        }
        let seen: usize = masks.iter().map(|m| m.cols).sum();
        tokens.extend(words);
        let prompt = &observation.prompt;
        masks.push(prompt.mask.columns(&self.columns));
        let ar = prompt.ar.as_ref().map_or(Flags::all(b, self.columns.len(), false), |ar| ar.columns(&self.columns));
        Prefix {
            tokens: Tensor::cat(tokens, 1),
            mask: Flags::beside(&masks.iter().collect::<Vec<_>>()),
            ar: Flags::beside(&[&Flags::all(b, seen, false), &ar]),
        }
    }
}

/// Some columns of whole numbers `[B, T]`.
fn pick(x: &Tensor<2, burn::tensor::Int>, columns: &[usize]) -> Tensor<2, burn::tensor::Int> {
    let indices: Vec<i32> = columns.iter().map(|c| *c as i32).collect();
    let data = burn::tensor::TensorData::new(indices, [columns.len()]);
    x.clone().select(1, Tensor::from_data(data, (&x.device(), DType::I32)))
}
