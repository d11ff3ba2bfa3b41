//! The `pi0` command.
fn main() {}
