//! Checkpoints as the toolkit sees them: opened, understood, converted, compared. The only room beside the formats
//! that touches weight files; it knows no Burn.

pub mod anatomy;
pub mod diff;
mod number;
pub mod open;
pub mod raw;
mod scratch;
