//! Checkpoints as the toolkit sees them: opened, understood, converted, compared. The only room beside the formats
//! that touches weight files; it knows no Burn.

pub mod anatomy;
pub mod companions;
pub mod norm_stats;
pub mod open;
