//! See `ocdbt::fuzzing::version_node`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ocdbt::fuzzing::version_node(bytes));
