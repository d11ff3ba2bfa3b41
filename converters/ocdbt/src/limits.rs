//! Every limit in one place: what the format allows, and what this reader is willing to hold.
//!
//! Invariant: no allocation, loop or walk in this crate is bounded by a number from a file alone; each is bounded by the
//! bytes really there or by a constant of this page.

/// Longest key, and longest full path of a data file, in bytes (format).
pub const MAX_KEY_BYTES: usize = 65_535;
/// Longest value that may be stored in a B+tree node, in bytes (format).
pub const MAX_INLINE_VALUE_BYTES: u32 = 1 << 20;
/// Most entries of one B+tree node (format).
pub const MAX_NODE_ENTRIES: u64 = 1 << 20;
/// Offset + length of every reference stays below this (format).
pub const MAX_FILE_BYTES: u64 = 1 << 63;

/// Largest manifest, both stored and decompressed, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Largest B+tree or version tree node, both stored and decompressed, in bytes; a manifest's own limit lowers it.
pub const MAX_NODE_BYTES: u64 = 1 << 30;
/// Most files one data file table may name.
pub const MAX_TABLE_FILES: u64 = 1 << 20;
/// Most bytes the paths of one data file table may add up to once their shared prefixes are written out.
pub const MAX_TABLE_PATH_BYTES: u64 = 64 << 20;
/// Most bytes the keys of one node may add up to once their shared prefixes are written out.
pub const MAX_NODE_KEY_BYTES: u64 = 256 << 20;

/// Most B+tree nodes one walk visits. The root's own key count lowers it: `2 * keys + 1024`.
pub const MAX_WALK_NODES: u64 = 1 << 20;
/// Most keys one walk collects.
pub const MAX_WALK_KEYS: u64 = 1 << 24;
/// Most bytes of decompressed nodes one walk looks at.
pub const MAX_WALK_DECODED_BYTES: u64 = 2 << 30;
/// Most bytes of full keys one walk collects.
pub const MAX_WALK_KEY_BYTES: u64 = 1 << 30;
/// Most nodes of the version tree one walk visits.
pub const MAX_VERSION_NODES: u64 = 1 << 16;
/// Most versions listed.
pub const MAX_VERSIONS: u64 = 1 << 20;
/// Largest zstd window accepted, as a power of two (the zstd tool's own default).
pub const MAX_ZSTD_WINDOW_LOG2: u32 = 27;
