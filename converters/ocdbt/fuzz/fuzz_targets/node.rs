//! See `ocdbt::fuzzing::node`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ocdbt::fuzzing::node(bytes));
