//! The manifest: a database's settings, its newest versions, and where the older ones are.
//!
//! Layout: uuid[16], kind u8, three limits, compression; then, unless the kind is "numbered", data file table, versions, version tree nodes.
//! Source: `manifest.cc` and `config_codec.cc` in <https://github.com/google/tensorstore/tree/bc4fbc11f/tensorstore/kvstore/ocdbt/format>.
//!
//! Invariant: a decoded manifest of the single kind has at least one version; its last one is the current state.

use crate::cursor::{Cursor, Origin};
use crate::envelope::{self, Compression, Kind};
use crate::error::Result;
use crate::limits::{MAX_MANIFEST_BYTES, MAX_NODE_BYTES};
use crate::table::Table;
use crate::varint;
use crate::version::{self, Version, VersionChild};

/// A database's settings, fixed when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Identity.
    pub uuid: [u8; 16],
    /// Values up to this many bytes are stored in the tree.
    pub max_inline_value_bytes: u32,
    /// Largest node a writer makes, in estimated bytes of memory; 0 = no limit.
    pub max_decoded_node_bytes: u32,
    /// Versions of one list, as a power of two.
    pub version_tree_arity_log2: u8,
    /// How a writer stores nodes.
    pub compression: Compression,
}

/// What follows the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Versions stand in this file.
    Single { versions: Vec<Version>, nodes: Vec<VersionChild> },
    /// Versions stand in `manifest.<generation>`, the largest of which counts.
    Numbered,
}

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Config,
    pub(crate) content: Content,
}

impl Config {
    fn decode(cursor: &mut Cursor<'_>) -> Result<(Self, u8)> {
        let uuid = cursor.uuid("uuid")?;
        let kind = cursor.u8("manifest kind")?;
        if kind > 1 {
            return Err(cursor.unexpected("manifest kind", "0 (single) or 1 (numbered)", kind.into()));
        }
        let max_inline_value_bytes = cursor.varint32("max_inline_value_bytes")?;
        let max_decoded_node_bytes = cursor.varint32("max_decoded_node_bytes")?;
        let version_tree_arity_log2 = cursor.u8("version tree arity")?;
        if !(1..=16).contains(&version_tree_arity_log2) {
            let found = version_tree_arity_log2.into();
            return Err(cursor.unexpected("version tree arity (log2)", "1 to 16", found));
        }
        let compression = match cursor.varint32("compression method")? {
            0 => Compression::None,
            1 => Compression::Zstd { level: cursor.i32le("zstd level")? },
            other => {
                return Err(cursor.unexpected("compression method", "0 (none) or 1 (zstd)", other.into()));
            }
        };
        let config =
            Self { uuid, max_inline_value_bytes, max_decoded_node_bytes, version_tree_arity_log2, compression };
        Ok((config, kind))
    }

    fn encode(&self, kind: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.uuid);
        out.push(kind);
        varint::encode(self.max_inline_value_bytes.into(), out);
        varint::encode(self.max_decoded_node_bytes.into(), out);
        out.push(self.version_tree_arity_log2);
        match self.compression {
            Compression::None => varint::encode(0, out),
            Compression::Zstd { level } => {
                varint::encode(1, out);
                out.extend_from_slice(&level.to_le_bytes());
            }
        }
    }

    /// The largest node this reader accepts in such a database: writers keep an estimate, not the exact size, under their limit.
    pub(crate) fn node_cap(&self) -> u64 {
        match u64::from(self.max_decoded_node_bytes) {
            0 => MAX_NODE_BYTES,
            limit => limit.saturating_mul(2).saturating_add(4 << 20).min(MAX_NODE_BYTES),
        }
    }
}

impl Manifest {
    /// Reads a manifest from all its bytes.
    pub(crate) fn decode(piece: &[u8], origin: &Origin) -> Result<Self> {
        let body = envelope::open(piece, origin, Kind::Manifest, MAX_MANIFEST_BYTES)?;
        let mut cursor = body.cursor();
        let (config, kind) = Config::decode(&mut cursor)?;
        let content = if kind == 1 {
            Content::Numbered
        } else {
            let arity = config.version_tree_arity_log2;
            let table = Table::decode(&mut cursor, b"")?;
            let versions = version::decode_versions(&mut cursor, &table, arity)?;
            let nodes = version::decode_children(&mut cursor, &table, arity, None)?;
            let last = versions.last().map_or(0, |version| version.generation);
            version::expect_places(&cursor, &nodes, arity, last)?;
            Content::Single { versions, nodes }
        };
        cursor.finish()?;
        Ok(Self { config, content })
    }

    /// Writes the manifest.
    pub(crate) fn encode(&self, compression: Compression) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        match &self.content {
            Content::Numbered => self.config.encode(1, &mut out),
            Content::Single { versions, nodes } => {
                self.config.encode(0, &mut out);
                let roots = versions.iter().map(|version| version.root.as_ref());
                let table = Table::of(roots.chain(nodes.iter().map(|node| Some(&node.location))));
                table.encode(&mut out);
                version::encode_versions(versions, &table, &mut out);
                version::encode_children(nodes, &table, true, &mut out);
            }
        }
        envelope::seal(Kind::Manifest, &out, compression)
    }
}
