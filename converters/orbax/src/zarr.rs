//! zarr documents: `.zarray` (v2) and `zarr.json` (v3), both read into one description; v2 also written.
//!
//! Sources: the zarr v2 and v3 specifications, and what TensorStore's drivers accept and write
//! (<https://github.com/google/tensorstore> at bc4fbc11f, `tensorstore/driver/zarr` and `zarr3`).
//! Invariant: an [`ArrayDoc`] is consistent: equal ranks, chunk sides >= 1, every product fits and lies below the caps here, and a codec
//! chain this crate can undo. Nothing was allocated for the sizes it declares.

use serde_json::Value;

use crate::Order;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::fill::fill_bytes;

/// Bytes of a zarr document. Orbax writes a few hundred.
pub(crate) const MAX_DOCUMENT: u64 = 1 << 20;
/// Axes of an array (numpy's own limit is 64, JAX arrays have a handful).
pub(crate) const MAX_RANK: usize = 32;
/// Bytes of an array.
pub(crate) const MAX_ARRAY_BYTES: u64 = 1 << 44;
/// Bytes of a chunk (Orbax: at most 2 GiB) and of a shard.
pub(crate) const MAX_CHUNK_BYTES: u64 = 1 << 38;
/// Chunks of an array.
pub(crate) const MAX_CHUNKS: u64 = 1 << 24;
/// Chunks inside a shard: its index is held in memory, 16 bytes each.
pub(crate) const MAX_SUB_CHUNKS: u64 = 1 << 20;
/// Compressors and checksums behind each other.
const MAX_CODECS: usize = 8;

/// A step from stored bytes to the bytes of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Zstd,
    Gzip,
    Zlib,
    Crc32c,
}

/// How chunk keys are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyStyle {
    /// `0.1`; rank 0: `0`.
    V2(char),
    /// `c/0/1`; rank 0: `c`.
    V3(char),
}

/// The index of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardIndex {
    pub(crate) at_end: bool,
    pub(crate) crc32c: bool,
    pub(crate) big_endian: bool,
}

/// One description for both document versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArrayDoc {
    pub(crate) zarr_format: u8,
    pub(crate) shape: Vec<u64>,
    pub(crate) dtype: Dtype,
    pub(crate) big_endian: bool,
    pub(crate) order: Order,
    /// The stored unit that holds a chunk: the chunk itself, or its shard.
    pub(crate) outer_shape: Vec<u64>,
    /// The chunk that is presented; divides `outer_shape`.
    pub(crate) chunk_shape: Vec<u64>,
    pub(crate) keys: KeyStyle,
    /// To be undone first to last.
    pub(crate) codecs: Vec<Codec>,
    pub(crate) shard: Option<ShardIndex>,
    /// One element, little endian.
    pub(crate) fill: Vec<u8>,
}

/// The product of sizes; `None` where it does not fit.
pub(crate) fn product(sizes: &[u64]) -> Option<u64> {
    sizes.iter().try_fold(1u64, |all, &n| all.checked_mul(n))
}

/// `ceil(shape / chunk)` along each axis.
pub(crate) fn grid(shape: &[u64], chunk: &[u64]) -> Vec<u64> {
    shape.iter().zip(chunk).map(|(&n, &c)| n.div_ceil(c.max(1))).collect()
}

impl ArrayDoc {
    /// Bytes of one decoded chunk.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        bytes_of(&self.chunk_shape, self.dtype).unwrap_or(u64::MAX)
    }

    /// Number of presented chunks.
    pub(crate) fn chunks(&self) -> u64 {
        product(&grid(&self.shape, &self.chunk_shape)).unwrap_or(u64::MAX)
    }

    /// Chunks of a shard along each axis.
    pub(crate) fn sub_grid(&self) -> Vec<u64> {
        grid(&self.outer_shape, &self.chunk_shape)
    }

    /// Key of the stored unit at `index`, below the array's name.
    pub(crate) fn chunk_key(&self, index: &[u64]) -> String {
        let (separator, mut key) = match self.keys {
            KeyStyle::V2(separator) => (separator, String::new()),
            KeyStyle::V3(separator) => (separator, String::from("c")),
        };
        for i in index {
            if !key.is_empty() {
                key.push(separator);
            }
            key.push_str(&i.to_string());
        }
        if key.is_empty() { "0".to_owned() } else { key }
    }

    fn check(self, name: &str) -> Result<Self> {
        let bad = |problem: String| Err(Error::document(name, problem));
        if self.shape.len() > MAX_RANK {
            return bad(format!("{} axes, at most {MAX_RANK} are accepted", self.shape.len()));
        }
        for (what, sides) in [("chunk", &self.outer_shape), ("inner chunk", &self.chunk_shape)] {
            if sides.len() != self.shape.len() {
                return bad(format!(
                    "shape {:?} has {} axes, {what} {sides:?} has {}",
                    self.shape,
                    self.shape.len(),
                    sides.len()
                ));
            }
            if sides.contains(&0) {
                return bad(format!("{what} {sides:?} has a side of 0"));
            }
            if bytes_of(sides, self.dtype).is_none_or(|bytes| bytes > MAX_CHUNK_BYTES) {
                return bad(format!("{what} {sides:?} of {}: more than {MAX_CHUNK_BYTES} bytes", self.dtype));
            }
        }
        if self.outer_shape.iter().zip(&self.chunk_shape).any(|(outer, inner)| !outer.is_multiple_of(*inner)) {
            return bad(format!("inner chunk {:?} does not divide the shard {:?}", self.chunk_shape, self.outer_shape));
        }
        if bytes_of(&self.shape, self.dtype).is_none_or(|bytes| bytes > MAX_ARRAY_BYTES) {
            return bad(format!("shape {:?} of {}: more than {MAX_ARRAY_BYTES} bytes", self.shape, self.dtype));
        }
        if product(&grid(&self.shape, &self.chunk_shape)).is_none_or(|n| n > MAX_CHUNKS) {
            return bad(format!(
                "shape {:?} in chunks of {:?}: more than {MAX_CHUNKS} chunks",
                self.shape, self.chunk_shape
            ));
        }
        if self.shard.is_some() && product(&self.sub_grid()).is_none_or(|n| n > MAX_SUB_CHUNKS) {
            return bad(format!(
                "shard {:?} in chunks of {:?}: more than {MAX_SUB_CHUNKS}",
                self.outer_shape, self.chunk_shape
            ));
        }
        Ok(self)
    }
}

fn bytes_of(sides: &[u64], dtype: Dtype) -> Option<u64> {
    product(sides)?.checked_mul(u64::try_from(dtype.size()).ok()?)
}

/// A JSON object with a name to complain by.
struct Doc<'a> {
    name: &'a str,
    value: &'a Value,
}

impl<'a> Doc<'a> {
    fn bad(&self, problem: impl std::fmt::Display) -> Error {
        Error::document(self.name, problem.to_string())
    }

    /// A member; a JSON `null` counts as absent.
    fn maybe(&self, member: &str) -> Option<&'a Value> {
        self.value.get(member).filter(|value| !value.is_null())
    }

    fn member(&self, member: &str) -> Result<&'a Value> {
        self.maybe(member).ok_or_else(|| self.bad(format!("no member {member:?}")))
    }

    fn text(&self, member: &str) -> Result<&'a str> {
        let value = self.member(member)?;
        value.as_str().ok_or_else(|| self.bad(format!("{member:?}: expected a string, found {}", short(value))))
    }

    fn sides(&self, member: &str) -> Result<Vec<u64>> {
        let value = self.member(member)?;
        let wrong = || self.bad(format!("{member:?}: expected a list of sizes, found {}", short(value)));
        let list = value.as_array().ok_or_else(wrong)?;
        list.iter().map(|n| n.as_u64().filter(|&n| n < 1 << 62).ok_or_else(wrong)).collect()
    }

    fn inner(&self, value: &'a Value) -> Doc<'a> {
        Doc { name: self.name, value }
    }

    fn format(&self, expected: u64) -> Result<()> {
        match self.member("zarr_format")?.as_u64() {
            Some(found) if found == expected => Ok(()),
            _ => {
                Err(self.bad(format!("zarr_format: expected {expected}, found {}", short(self.member("zarr_format")?))))
            }
        }
    }
}

/// A value as it appears in a message.
pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}...", text.get(..cut).unwrap_or_default()),
        None => text,
    }
}

fn parse_json(name: &str, bytes: &[u8]) -> Result<Value> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| Error::document(name, format!("not JSON: {e}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Error::document(name, format!("expected an object, found {}", short(&value))))
    }
}

/// Reads a `.zarray` document; `name` is its key.
pub(crate) fn parse_v2(name: &str, bytes: &[u8]) -> Result<ArrayDoc> {
    let value = parse_json(name, bytes)?;
    let doc = Doc { name, value: &value };
    doc.format(2)?;
    let dtype_value = doc.member("dtype")?;
    let (dtype, big_endian) = dtype_value
        .as_str()
        .and_then(Dtype::from_zarr2)
        .ok_or_else(|| Error::unsupported(name, format!("dtype {}", short(dtype_value))))?;
    if let Some(filters) = doc.maybe("filters")
        && filters.as_array().is_none_or(|list| !list.is_empty())
    {
        return Err(Error::unsupported(name, format!("filters {}", short(filters))));
    }
    let codecs = match doc.maybe("compressor") {
        None => Vec::new(),
        Some(compressor) => match doc.inner(compressor).text("id")? {
            "zstd" => vec![Codec::Zstd],
            "gzip" => vec![Codec::Gzip],
            "zlib" => vec![Codec::Zlib],
            other => {
                return Err(Error::unsupported(name, format!("compressor {other:?} (zstd, gzip, zlib and null are)")));
            }
        },
    };
    let order = match doc.text("order")? {
        "C" => Order::C,
        "F" => Order::F,
        other => return Err(doc.bad(format!("order: expected \"C\" or \"F\", found {other:?}"))),
    };
    let separator = match doc.maybe("dimension_separator").map(Value::as_str) {
        None | Some(Some(".")) => '.',
        Some(Some("/")) => '/',
        Some(_) => return Err(doc.bad("dimension_separator: expected \".\" or \"/\"")),
    };
    let chunks = doc.sides("chunks")?;
    ArrayDoc {
        zarr_format: 2,
        shape: doc.sides("shape")?,
        dtype,
        big_endian,
        order,
        outer_shape: chunks.clone(),
        chunk_shape: chunks,
        keys: KeyStyle::V2(separator),
        codecs,
        shard: None,
        fill: fill_bytes(name, dtype, doc.maybe("fill_value"))?,
    }
    .check(name)
}

/// Reads a `zarr.json` document; `name` is its key.
pub(crate) fn parse_v3(name: &str, bytes: &[u8]) -> Result<ArrayDoc> {
    let value = parse_json(name, bytes)?;
    let doc = Doc { name, value: &value };
    doc.format(3)?;
    match doc.text("node_type")? {
        "array" => {}
        other => return Err(Error::unsupported(name, format!("node_type {other:?}"))),
    }
    let data_type = doc.member("data_type")?;
    let dtype = data_type
        .as_str()
        .and_then(Dtype::from_zarr3)
        .ok_or_else(|| Error::unsupported(name, format!("data_type {}", short(data_type))))?;
    if let Some(list) = doc.maybe("storage_transformers")
        && list.as_array().is_none_or(|list| !list.is_empty())
    {
        return Err(Error::unsupported(name, format!("storage_transformers {}", short(list))));
    }
    let chunk_grid = doc.inner(doc.member("chunk_grid")?);
    if chunk_grid.text("name")? != "regular" {
        return Err(Error::unsupported(name, format!("chunk_grid {}", short(chunk_grid.value))));
    }
    let outer_shape = chunk_grid.inner(chunk_grid.member("configuration")?).sides("chunk_shape")?;
    let shape = doc.sides("shape")?;
    let keys = key_style(&doc)?;
    let outer = chain(&doc, "codecs", &shape)?;
    let (codecs, shard, chunk_shape) = match outer.start {
        Start::Bytes { .. } => (outer, None, outer_shape.clone()),
        Start::Sharded { ref configuration } => {
            if outer.order == Order::F || !outer.codecs.is_empty() {
                return Err(Error::unsupported(name, "a codec around sharding_indexed"));
            }
            let shard = doc.inner(configuration);
            let inner = chain(&shard, "codecs", &shape)?;
            let index = shard_index(&shard, &shape)?;
            (inner, Some(index), shard.sides("chunk_shape")?)
        }
    };
    let Start::Bytes { big_endian } = codecs.start else {
        return Err(Error::unsupported(name, "sharding_indexed inside sharding_indexed"));
    };
    ArrayDoc {
        zarr_format: 3,
        shape,
        dtype,
        big_endian: big_endian && dtype.size() > 1,
        order: codecs.order,
        outer_shape,
        chunk_shape,
        keys,
        codecs: codecs.codecs,
        shard,
        fill: fill_bytes(name, dtype, doc.maybe("fill_value"))?,
    }
    .check(name)
}

fn key_style(doc: &Doc<'_>) -> Result<KeyStyle> {
    let encoding = doc.inner(doc.member("chunk_key_encoding")?);
    let style = encoding.text("name")?;
    let separator = match encoding.maybe("configuration").and_then(|c| c.get("separator")).map(Value::as_str) {
        None => None,
        Some(Some(".")) => Some('.'),
        Some(Some("/")) => Some('/'),
        Some(_) => return Err(doc.bad("chunk_key_encoding: expected the separator \".\" or \"/\"")),
    };
    match style {
        "default" => Ok(KeyStyle::V3(separator.unwrap_or('/'))),
        "v2" => Ok(KeyStyle::V2(separator.unwrap_or('.'))),
        other => Err(Error::unsupported(doc.name, format!("chunk_key_encoding {other:?}"))),
    }
}

/// The codec that turns an array into bytes.
enum Start {
    Bytes { big_endian: bool },
    Sharded { configuration: Value },
}

/// A parsed codec list: transpose, then the start, then compressors and checksums.
struct Chain {
    order: Order,
    start: Start,
    codecs: Vec<Codec>,
}

fn chain(doc: &Doc<'_>, member: &str, shape: &[u64]) -> Result<Chain> {
    let list = doc.member(member)?;
    let list = list.as_array().ok_or_else(|| doc.bad(format!("{member}: expected a list, found {}", short(list))))?;
    if list.len() > MAX_CODECS {
        return Err(doc.bad(format!("{member}: {} codecs, at most {MAX_CODECS} are accepted", list.len())));
    }
    let (mut order, mut start, mut codecs) = (Order::C, None, Vec::new());
    for value in list {
        let codec = doc.inner(value);
        let configuration = codec.maybe("configuration");
        let codec_name = codec.text("name")?;
        match (codec_name, start.is_some()) {
            ("transpose", false) => order = transposed(&codec, order, shape)?,
            ("bytes", false) => {
                let big_endian = match configuration.and_then(|c| c.get("endian")).map(Value::as_str) {
                    None | Some(Some("little")) => false,
                    Some(Some("big")) => true,
                    Some(_) => {
                        return Err(doc.bad("codec bytes: expected the endian \"little\" or \"big\""));
                    }
                };
                start = Some(Start::Bytes { big_endian });
            }
            ("sharding_indexed", false) => {
                start = Some(Start::Sharded { configuration: codec.member("configuration")?.clone() });
            }
            ("zstd", true) => codecs.push(Codec::Zstd),
            ("gzip", true) => codecs.push(Codec::Gzip),
            ("crc32c", true) => codecs.push(Codec::Crc32c),
            ("transpose" | "bytes" | "sharding_indexed" | "zstd" | "gzip" | "crc32c", _) => {
                return Err(doc.bad(format!("{member}: the codec {codec_name:?} stands in the wrong place")));
            }
            (other, _) => return Err(Error::unsupported(doc.name, format!("codec {other:?}"))),
        }
    }
    let start = start.ok_or_else(|| doc.bad(format!("{member}: neither \"bytes\" nor \"sharding_indexed\"")))?;
    codecs.reverse();
    Ok(Chain { order, start, codecs })
}

/// Only the two orders that [`Order`] can say.
fn transposed(codec: &Doc<'_>, before: Order, shape: &[u64]) -> Result<Order> {
    let axes = codec.inner(codec.member("configuration")?).sides("order")?;
    let rank = u64::try_from(shape.len()).unwrap_or(u64::MAX);
    if before == Order::F || axes.len() != shape.len() {
        return Err(Error::unsupported(codec.name, format!("transpose {axes:?}")));
    }
    if axes.iter().copied().eq(0..rank) {
        Ok(Order::C)
    } else if axes.iter().copied().eq((0..rank).rev()) {
        Ok(Order::F)
    } else {
        Err(Error::unsupported(codec.name, format!("transpose {axes:?}")))
    }
}

fn shard_index(shard: &Doc<'_>, shape: &[u64]) -> Result<ShardIndex> {
    let index = chain(shard, "index_codecs", shape)?;
    let Start::Bytes { big_endian } = index.start else {
        return Err(Error::unsupported(shard.name, "a sharded shard index"));
    };
    let crc32c = match index.codecs.as_slice() {
        [] => false,
        [Codec::Crc32c] => true,
        _ => return Err(Error::unsupported(shard.name, "a compressed shard index")),
    };
    if index.order == Order::F {
        return Err(Error::unsupported(shard.name, "a transposed shard index"));
    }
    let at_end = match shard.maybe("index_location").map(Value::as_str) {
        None | Some(Some("end")) => true,
        Some(Some("start")) => false,
        Some(_) => return Err(shard.bad("index_location: expected \"start\" or \"end\"")),
    };
    Ok(ShardIndex { at_end, crc32c, big_endian })
}

/// The `.zarray` document that Orbax writes, byte for byte: compact, members sorted.
pub(crate) fn write_v2(shape: &[u64], chunks: &[u64], dtype: Dtype, level: i32) -> String {
    let list = |sides: &[u64]| sides.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    format!(
        r#"{{"chunks":[{}],"compressor":{{"id":"zstd","level":{level}}},"dimension_separator":".","dtype":"{}","fill_value":null,"filters":null,"order":"C","shape":[{}],"zarr_format":2}}"#,
        list(chunks),
        dtype.zarr2(),
        list(shape)
    )
}

#[cfg(test)]
#[path = "zarr_tests.rs"]
mod tests;
