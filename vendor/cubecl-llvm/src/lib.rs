//! Stands in for CubeCL's `cubecl-llvm` 0.11.3: the names that `cubecl-cuda` 0.11.3 mentions, and no LLVM behind them.
//!
//! `cubecl-cuda` always compiles two kernel compilers and picks one when it starts: CUDA C++ through NVRTC, if its feature
//! `cpp` is on, else LLVM. The second is this crate, and the published one downloads a prebuilt LLVM from GitHub in its
//! build script: where only package registries can be reached, nothing that depends on it builds. This project uses
//! NVRTC (the root manifest turns `cpp` on), so the LLVM half only has to exist: it costs no download, no link, no size.
//!
//! What `cubecl-cuda` names is here under the same paths, written from its `compiler.rs`, `runtime.rs` and
//! `compute/context.rs` (<https://docs.rs/crate/cubecl-cuda/0.11.3/source/src/>). The types that only a working compiler
//! could make have no values, so the compiler itself vouches for the rest: no module is ever handed out.
//!
//! Invariant: nothing compiles here. [`PlironCompiler::compile`] returns an error that says what to turn on.
//!
//! It can go when `cubecl-cuda` no longer needs `cubecl-llvm` for NVRTC, or when that crate builds without a download. To
//! have LLVM instead of NVRTC, on a machine that reaches GitHub: delete the patch and the dependency on `cubecl-cuda` from
//! the root manifest.
#![no_std]

extern crate alloc;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ffi::c_char;
use core::fmt;

use cubecl_core::environment::backtrace::BackTrace;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::{BufferIOAttr, KernelDefinition};
use cubecl_core::{CompilationError, Compiler};

/// Why there is no module, and what to do about it.
const NOT_HERE: &str = "LLVM is not part of this build, CUDA kernels are compiled by NVRTC: \
                        turn on the feature `cpp` of cubecl-cuda";

/// NVIDIA's side of the crate.
pub mod nvptx {
    /// The version of PTX that a driver loads.
    pub mod ptx_version {
        use core::fmt;

        /// A version of PTX to emit. Nothing emits PTX here, so there is none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// Always `None`, which stands for "leave it to the compiler".
            #[must_use]
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _out: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What is the same on all targets.
pub mod shared {
    /// What a device offers, cut down to what LLVM can compile.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// Whose features to cut down.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA.
            Nvptx,
        }

        /// Leaves the features as they are: asked for only if LLVM is to compile, and then every kernel is refused.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}

/// What LLVM would compile for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA.
    #[default]
    Nvptx,
}

/// The compiler that is not there.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

/// What `cubecl-cuda` tells the compiler; nobody reads it.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// An architecture of AMD's: always `None` on NVIDIA.
    pub arch: Option<Infallible>,
    /// The architecture of the NVIDIA device.
    pub sm_arch: Option<SmArch>,
    /// The version of PTX to emit.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether scalars are passed in the kernel's parameter block.
    pub grid_constants: bool,
}

/// A compiled kernel. There is none: `never` has no value.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX, ended by a zero.
    pub ptx: Vec<c_char>,
    /// LLVM's own text, for the log.
    pub ir: String,
    /// Shared memory of a launch, in bytes.
    pub shared_memory_size: usize,
    /// What the kernel does with each buffer.
    pub io: Vec<BufferIOAttr>,
    /// Keeps this type without values.
    pub never: Infallible,
}

/// What compiling gives: nothing, since [`NvptxModule`] has no values.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// A kernel for NVIDIA.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, _out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NvptxCode(module) => match module.never {},
        }
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        Err(CompilationError::Generic { reason: NOT_HERE.to_string(), backtrace: BackTrace::capture() })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
