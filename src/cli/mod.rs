//! The `pi0` command.
