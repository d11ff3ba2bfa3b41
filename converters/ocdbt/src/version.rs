//! The versions of a database, and the tree that keeps old ones reachable.
//!
//! Layouts (columns): see `encode_versions`, `encode_children` and `VersionNode::encode_body`. Source: `version_tree.cc` in
//! <https://github.com/google/tensorstore/tree/bc4fbc11f/tensorstore/kvstore/ocdbt/format>. Times are nanoseconds since the Unix epoch.
//!
//! Invariant: generations strictly increase inside a list, and a list fits the place its height gives it.

use crate::cursor::{Cursor, Origin};
use crate::envelope::{self, Compression, Kind};
use crate::error::{Problem, Result};
use crate::node::Statistics;
use crate::table::{Location, Table};
use crate::varint;

/// One committed state of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Version {
    /// Its number; later versions have larger ones.
    pub generation: u64,
    /// Nanoseconds since the Unix epoch.
    pub commit_time_ns: u64,
    /// What it holds, as its writer counted it.
    pub statistics: Statistics,
    pub(crate) height: u8,
    /// `None` where it holds no key.
    pub(crate) root: Option<Location>,
}

/// A reference to a node of the version tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionChild {
    /// Newest generation of the subtree.
    pub(crate) generation: u64,
    pub(crate) location: Location,
    pub(crate) generations: u64,
    /// Of the oldest version of the subtree.
    pub(crate) commit_time_ns: u64,
    pub(crate) height: u8,
}

/// A node of the version tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionNode {
    pub(crate) arity_log2: u8,
    pub(crate) height: u8,
    pub(crate) entries: VersionEntries,
}

/// What a node of the version tree holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VersionEntries {
    Versions(Vec<Version>),
    Children(Vec<VersionChild>),
}

/// `value` rounded down to a multiple of `2^bits`.
fn floor(value: u64, bits: u32) -> u64 {
    value.checked_shr(bits).and_then(|high| high.checked_shl(bits)).unwrap_or(0)
}

/// Largest height of a node of the version tree.
pub(crate) fn max_height(arity_log2: u8) -> u8 {
    63u8.checked_div(arity_log2).unwrap_or(0).saturating_sub(1)
}

fn capacity(arity_log2: u8) -> u64 {
    1u64.checked_shl(arity_log2.into()).unwrap_or(0)
}

fn expect_rising(cursor: &Cursor<'_>, generations: &[u64]) -> Result<()> {
    let before = std::iter::once(&0).chain(generations);
    for (index, (before, after)) in before.zip(generations).enumerate() {
        if before >= after {
            let detail = format!("{after} after {before}");
            return Err(cursor.fail(Problem::Order { what: "generation", index, detail }));
        }
    }
    Ok(())
}

/// Reads a list of versions.
pub(crate) fn decode_versions(cursor: &mut Cursor<'_>, table: &Table, arity_log2: u8) -> Result<Vec<Version>> {
    let n = cursor.varint64("number of versions")?;
    if n == 0 || n > capacity(arity_log2) {
        return Err(cursor.unexpected("number of versions", format!("1 to {}", capacity(arity_log2)), n));
    }
    let n = cursor.expect_room(n, 16, "versions")?;
    let generations = cursor.column64(n, "generation")?;
    expect_rising(cursor, &generations)?;
    if let (Some(first), Some(last)) = (generations.first(), generations.last()) {
        let oldest = floor(last.saturating_sub(1), arity_log2.into()).saturating_add(1);
        if *first < oldest {
            return Err(cursor.unexpected("first generation of a list", format!("at least {oldest}"), *first));
        }
    }
    let heights = cursor.take(n as u64, "root heights")?;
    let roots = table.decode_references(cursor, n, "root node")?;
    let statistics = Statistics::decode_all(cursor, n)?;
    let times = cursor.fixed64(n, "commit times")?;
    let mut versions = Vec::with_capacity(n);
    for (((generation, &height), root), (statistics, commit_time_ns)) in
        generations.into_iter().zip(heights).zip(roots).zip(statistics.into_iter().zip(times))
    {
        if root.is_none() && (height != 0 || statistics != Statistics::default()) {
            return Err(cursor.unexpected("keys of a version without a root", 0, statistics.keys));
        }
        versions.push(Version { generation, commit_time_ns, statistics, height, root });
    }
    Ok(versions)
}

/// Writes a list of versions; `table` must hold their roots.
pub(crate) fn encode_versions(versions: &[Version], table: &Table, out: &mut Vec<u8>) {
    varint::encode(versions.len() as u64, out);
    varint::encode_all(versions.iter().map(|v| v.generation), out);
    out.extend(versions.iter().map(|v| v.height));
    table.encode_references(versions.iter().map(|v| v.root.as_ref()), out);
    Statistics::encode_all(versions.iter().map(|v| v.statistics), out);
    out.extend(versions.iter().flat_map(|v| v.commit_time_ns.to_le_bytes()));
}

/// Reads a list of version tree nodes: those of a manifest, which state their heights, or (`parent`) those of a node of that height.
pub(crate) fn decode_children(
    cursor: &mut Cursor<'_>,
    table: &Table,
    arity_log2: u8,
    parent: Option<u8>,
) -> Result<Vec<VersionChild>> {
    let tallest = max_height(arity_log2);
    let (least, most) = match parent {
        Some(_) => (1, capacity(arity_log2)),
        None => (0, tallest.into()),
    };
    let n = cursor.varint64("number of version tree nodes")?;
    if n < least || n > most {
        return Err(cursor.unexpected("number of version tree nodes", format!("{least} to {most}"), n));
    }
    let n = cursor.expect_room(n, 13, "version tree nodes")?;
    let generations = cursor.column64(n, "generation")?;
    expect_rising(cursor, &generations)?;
    let locations = table.decode_locations(cursor, n, "version tree node")?;
    let counts = cursor.column64(n, "number of generations")?;
    let times = cursor.fixed64(n, "commit times")?;
    let heights = match parent {
        Some(parent) => vec![parent.saturating_sub(1); n],
        None => cursor.take(n as u64, "heights")?.to_vec(),
    };
    if parent.is_none() {
        for (index, height) in heights.iter().enumerate() {
            if *height == 0 || *height > tallest {
                return Err(cursor.unexpected("height", format!("1 to {tallest}"), (*height).into()));
            }
            let before = index.checked_sub(1).and_then(|before| heights.get(before));
            if before.is_some_and(|before| before <= height) {
                let detail = format!("{height}, heights must fall");
                return Err(cursor.fail(Problem::Order { what: "height", index, detail }));
            }
        }
    }
    let children = generations.into_iter().zip(locations).zip(counts).zip(times.into_iter().zip(heights)).map(
        |(((generation, location), generations), (commit_time_ns, height))| VersionChild {
            generation,
            location,
            generations,
            commit_time_ns,
            height,
        },
    );
    Ok(children.collect())
}

/// Writes a list of version tree nodes; `table` must hold them.
pub(crate) fn encode_children(children: &[VersionChild], table: &Table, with_heights: bool, out: &mut Vec<u8>) {
    varint::encode(children.len() as u64, out);
    varint::encode_all(children.iter().map(|c| c.generation), out);
    table.encode_references(children.iter().map(|c| Some(&c.location)), out);
    varint::encode_all(children.iter().map(|c| c.generations), out);
    out.extend(children.iter().flat_map(|c| c.commit_time_ns.to_le_bytes()));
    if with_heights {
        out.extend(children.iter().map(|c| c.height));
    }
}

/// Refuses version tree nodes of a manifest whose generations do not stand where their heights put them, below `last`, the newest of all.
pub(crate) fn expect_places(cursor: &Cursor<'_>, children: &[VersionChild], arity_log2: u8, last: u64) -> Result<()> {
    let arity = u32::from(arity_log2);
    let mut children = children.iter().rev().peekable();
    let mut newest = floor(last.saturating_sub(1), arity);
    let mut height = 1u8;
    while newest > 0 {
        let bits = u32::from(height).saturating_add(1).saturating_mul(arity);
        let below = floor(newest.saturating_sub(1), bits);
        if let Some(child) = children.next_if(|child| child.height == height)
            && (child.generation <= below || child.generation > newest)
        {
            let expected = format!("{} to {newest} at height {height}", below.saturating_add(1));
            return Err(cursor.unexpected("generation of a version tree node", expected, child.generation));
        }
        newest = below;
        height = height.saturating_add(1);
    }
    match children.next() {
        None => Ok(()),
        Some(child) => {
            Err(cursor.unexpected("generation of a version tree node", "none of this height", child.generation))
        }
    }
}

impl VersionNode {
    /// Newest generation in it.
    pub(crate) fn last_generation(&self) -> u64 {
        match &self.entries {
            VersionEntries::Versions(versions) => versions.last().map_or(0, |v| v.generation),
            VersionEntries::Children(children) => children.last().map_or(0, |c| c.generation),
        }
    }

    /// Reads a node from all its bytes, envelope included.
    pub(crate) fn decode(piece: &[u8], origin: &Origin, transitive: &[u8], cap: u64) -> Result<(Self, u64)> {
        let body = envelope::open(piece, origin, Kind::VersionNode, cap)?;
        let mut cursor = body.cursor();
        let arity_log2 = cursor.u8("version tree arity")?;
        if !(1..=16).contains(&arity_log2) {
            return Err(cursor.unexpected("version tree arity (log2)", "1 to 16", arity_log2.into()));
        }
        let height = cursor.u8("height")?;
        if height > max_height(arity_log2) {
            let expected = format!("at most {}", max_height(arity_log2));
            return Err(cursor.unexpected("height", expected, height.into()));
        }
        let table = Table::decode(&mut cursor, transitive)?;
        let entries = if height == 0 {
            VersionEntries::Versions(decode_versions(&mut cursor, &table, arity_log2)?)
        } else {
            let children = decode_children(&mut cursor, &table, arity_log2, Some(height))?;
            expect_block(&cursor, &children, arity_log2, height)?;
            VersionEntries::Children(children)
        };
        cursor.finish()?;
        Ok((Self { arity_log2, height, entries }, body.len()))
    }

    /// Writes the node, envelope included.
    pub(crate) fn encode(&self, compression: Compression) -> std::io::Result<Vec<u8>> {
        let mut out = vec![self.arity_log2, self.height];
        match &self.entries {
            VersionEntries::Versions(versions) => {
                let table = Table::of(versions.iter().map(|v| v.root.as_ref()));
                table.encode(&mut out);
                encode_versions(versions, &table, &mut out);
            }
            VersionEntries::Children(children) => {
                let table = Table::of(children.iter().map(|c| Some(&c.location)));
                table.encode(&mut out);
                encode_children(children, &table, false, &mut out);
            }
        }
        envelope::seal(Kind::VersionNode, &out, compression)
    }
}

/// Refuses children of an interior node that are not the full blocks of one aligned range.
fn expect_block(cursor: &Cursor<'_>, children: &[VersionChild], arity_log2: u8, height: u8) -> Result<()> {
    let bits = u32::from(arity_log2).saturating_mul(height.into());
    let span = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    let block = |generation: u64| floor(generation.saturating_sub(1), bits.saturating_add(arity_log2.into()));
    let first = children.first().map_or(0, |child| block(child.generation));
    for child in children {
        if floor(child.generation, bits) != child.generation {
            let expected = format!("a multiple of {span}");
            return Err(cursor.unexpected("generation of a version tree node", expected, child.generation));
        }
        if child.generations > span {
            let expected = format!("at most {span}");
            return Err(cursor.unexpected("number of generations", expected, child.generations));
        }
        if block(child.generation) != first {
            let expected = format!("in the block after {first}");
            return Err(cursor.unexpected("generation of a version tree node", expected, child.generation));
        }
    }
    Ok(())
}
