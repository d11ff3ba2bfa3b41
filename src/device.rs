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

use anyhow::{Result, anyhow, bail};
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

    fn from_str(name: &str) -> Result<Self> {
        Precision::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            anyhow!("{name}: no such precision mode; there are {}", Precision::ALL.map(Precision::name).join(", "))
        })
    }
}

/// Should weights be packed for inference? Where they are bf16 and the CPU has instructions that read them so.
pub fn packs(device: &Device, precision: Precision) -> bool {
    precision == Precision::ServeBf16 && *device == Device::flex() && crate::kernels::packs()
}

/// A device by name: `cpu`, `cuda:0`, `wgpu`.
///
/// # Errors
/// A name that is none, a backend this binary was built without, a device that is not there.
pub fn device(name: &str) -> Result<Device> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let index: usize =
        index.parse().map_err(|_| anyhow!("{name}: what follows the colon is a number, as in cuda:0"))?;
    match kind {
        "cpu" if index == 0 => Ok(Device::flex()),
        "cuda" => cuda(name, index),
        "wgpu" => wgpu(name),
        _ => bail!("{name}: no such device; there are cpu, cuda:0, cuda:1, ... and wgpu"),
    }
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, index: usize) -> Result<Device> {
    use burn::tensor::DeviceType;

    const NEEDED: &str = "It needs the driver (libcuda.so.1; nvidia-smi tells), and NVRTC with CUDA's headers: the CUDA \
        toolkit (CUDA_PATH), or `pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl` and \
        then CUDA_PATH=.../site-packages/nvidia/cu13 and LD_LIBRARY_PATH=$CUDA_PATH/lib. `cargo xtask gpu` looks for each";
    // A driver library that lacks its symbols panics instead of telling.
    let found = std::panic::catch_unwind(|| Device::enumerate(DeviceType::Cuda).into_vec()).unwrap_or_default();
    if found.is_empty() {
        bail!("{name}: no NVIDIA GPU was found. {NEEDED}");
    }
    if index >= found.len() {
        bail!("{name}: there are {} GPUs, cuda:0 to cuda:{}", found.len(), found.len() - 1);
    }
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _: usize) -> Result<Device> {
    bail!("{name}: this binary was built without CUDA: cargo install --path . --features cuda")
}

#[cfg(feature = "wgpu")]
fn wgpu(_: &str) -> Result<Device> {
    Ok(Device::wgpu(Default::default()))
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(name: &str) -> Result<Device> {
    bail!("{name}: this binary was built without wgpu: cargo install --path . --features wgpu")
}
