//! What the feature `cuda` promises on every machine, with a GPU or without. What a GPU computes is held by `parity.rs`.

#![cfg(feature = "cuda")]

use burn::tensor::{Device, DeviceType};

#[test]
fn kernels_are_compiled_by_nvrtc_and_not_by_the_stand_in_for_llvm() {
    use cubecl_cuda::compiler::{CudaBackend, CudaCompiler};
    assert_eq!(CudaBackend::default(), CudaBackend::Cpp);
    assert!(matches!(CudaCompiler::default(), CudaCompiler::Cpp(_)));
}

#[test]
fn looking_for_gpus_is_an_answer_and_no_panic_where_there_is_no_driver() {
    let devices = Device::enumerate(DeviceType::Cuda);
    let found = devices.into_iter().count();
    println!("{found} CUDA devices");
    // The CPU works beside it, whatever was found.
    let cpu = Device::enumerate(DeviceType::Flex);
    assert_eq!(cpu.into_iter().count(), 1);
}
