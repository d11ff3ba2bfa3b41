//! pi0-burn
