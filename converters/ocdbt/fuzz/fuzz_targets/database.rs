//! See `ocdbt::fuzzing::database`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ocdbt::fuzzing::database(bytes));
