//! See `ocdbt::fuzzing::manifest`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ocdbt::fuzzing::manifest(bytes));
