//! Where the model computes, and in which precision: the only file that names a backend or decides a dtype.
//!
//! Precision modes, as openpi's own runs have them:
//!
//! | mode | parameters | activations | where in openpi |
//! | --- | --- | --- | --- |
//! | `f32` | f32 | f32 | nowhere: the proof of the algorithm |
//! | `train-bf16` | as stored (f32; frozen LoRA leaves bf16) | bf16 | training |
//! | `serve-bf16` | all bf16 | bf16 | serving |

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device};

/// A precision mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// All in f32.
    F32,
    /// Parameters as they are stored, activations in bf16.
    TrainBf16,
    /// All in bf16.
    ServeBf16,
}

impl Precision {
    /// Every mode.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::TrainBf16, Precision::ServeBf16];

    /// Its name: `f32`, `train-bf16`, `serve-bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::TrainBf16 => "train-bf16",
            Precision::ServeBf16 => "serve-bf16",
        }
    }

    /// In which dtype the model computes.
    pub fn activations(self) -> DType {
        if self == Precision::F32 { DType::F32 } else { DType::BF16 }
    }

    /// To which dtype parameters are cast when they are loaded; `None` leaves them as they are.
    pub fn parameters(self) -> Option<DType> {
        match self {
            Precision::F32 => Some(DType::F32),
            Precision::TrainBf16 => None,
            Precision::ServeBf16 => Some(DType::BF16),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        Precision::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            anyhow::anyhow!(
                "{name}: no such precision mode; there are {}",
                Precision::ALL.map(Precision::name).join(", ")
            )
        })
    }
}

/// Should weights be packed for inference? Where they are bf16 and the CPU has instructions that read them so.
pub fn packs(device: &Device, precision: Precision) -> bool {
    precision == Precision::ServeBf16 && *device == Device::flex() && crate::kernels::packs()
}

/// A device by name: `cpu`, `cuda:0`.
///
/// # Errors
/// A name that is none, a backend this binary was built without, a device that is not there.
pub fn device(name: &str) -> anyhow::Result<Device> {
    match name {
        "cpu" => Ok(Device::flex()),
        _ => anyhow::bail!("{name}: no such device in this build; there is cpu"),
    }
}
