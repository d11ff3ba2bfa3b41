//! Lazy arrays over a store: which key holds a chunk, where in its shard, and how it is decoded.
//!
//! Source: the zarr v2 and v3 specifications (`sharding_indexed` for shards), TensorStore bc4fbc11f.
//! Invariant: a declared size is compared with what is stored before anyone is told about it.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use crate::chunk::{decoder, plausible};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::zarr::{self, ArrayDoc, Codec, ShardIndex};
use crate::{ArrayInfo, Chunk};

/// The nowhere of a shard index: the sub-chunk is absent.
const ABSENT: u64 = u64::MAX;

/// An array as stored.
struct Stored {
    /// Name in the store, as it stands in messages.
    name: String,
    doc: ArrayDoc,
}

/// Array, shard, and the bytes of its index.
type CachedIndex = (usize, u64, Arc<Vec<u8>>);

/// Arrays of one store.
pub(crate) struct Arrays {
    store: Box<dyn Store>,
    stored: Vec<Stored>,
    infos: Vec<ArrayInfo>,
    /// A missing chunk is an error, not the fill value.
    strict: bool,
    /// The index read last, (array, shard): the chunks of a shard are mostly read one after another.
    last_index: Mutex<Option<CachedIndex>>,
}

/// Where a chunk lies.
struct Place {
    key: String,
    offset: u64,
    length: u64,
}

impl Arrays {
    pub(crate) fn new(store: Box<dyn Store>, strict: bool) -> Self {
        Arrays { store, stored: Vec::new(), infos: Vec::new(), strict, last_index: Mutex::new(None) }
    }

    pub(crate) fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    pub(crate) fn infos(&self) -> &[ArrayInfo] {
        &self.infos
    }

    /// zarr versions that occur.
    pub(crate) fn formats(&self) -> (bool, bool) {
        let has = |format| self.stored.iter().any(|s| s.doc.zarr_format == format);
        (has(2), has(3))
    }

    /// Reads the document of the array stored as `array` and adds it under the name `info_name`; `None` where there is no document.
    pub(crate) fn add(&mut self, array: &str, info_name: &str, prefer_v3: bool) -> Result<Option<usize>> {
        let key = |document: &str| join(array, document);
        let documents = [(key(".zarray"), 2u8), (key("zarr.json"), 3u8)];
        let ordered = if prefer_v3 { [&documents[1], &documents[0]] } else { [&documents[0], &documents[1]] };
        for (key, format) in ordered {
            let Some(bytes) = self.store.read(key, zarr::MAX_DOCUMENT)? else {
                continue;
            };
            let doc = if *format == 2 { zarr::parse_v2(key, &bytes)? } else { zarr::parse_v3(key, &bytes)? };
            self.infos.push(ArrayInfo {
                name: info_name.to_owned(),
                shape: doc.shape.clone(),
                dtype: doc.dtype,
                order: doc.order,
                chunk_shape: doc.chunk_shape.clone(),
            });
            self.stored.push(Stored { name: array.to_owned(), doc });
            return Ok(Some(self.stored.len().saturating_sub(1)));
        }
        Ok(None)
    }

    fn stored(&self, array: usize, chunk: u64) -> Result<(&Stored, Vec<u64>)> {
        let out_of_range =
            |name: &str, what, found, count| Error::OutOfRange { name: name.to_owned(), what, found, count };
        let to_u64 = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let Some(stored) = self.stored.get(array) else {
            return Err(out_of_range("checkpoint", "array", to_u64(array), to_u64(self.stored.len())));
        };
        if chunk >= stored.doc.chunks() {
            return Err(out_of_range(&stored.name, "chunk", chunk, stored.doc.chunks()));
        }
        Ok((stored, position(chunk, &zarr::grid(&stored.doc.shape, &stored.doc.chunk_shape))))
    }

    /// Finds a chunk; `None` where it is absent.
    fn place(&self, array: usize, stored: &Stored, at: &[u64]) -> Result<Option<Place>> {
        let doc = &stored.doc;
        let sub_grid = doc.sub_grid();
        let outer: Vec<u64> = at.iter().zip(&sub_grid).map(|(i, n)| i.checked_div(*n).unwrap_or(0)).collect();
        let key = join(&stored.name, &doc.chunk_key(&outer));
        let Some(length) = self.store.value_len(&key)? else {
            return Ok(None);
        };
        let Some(shard) = doc.shard else {
            return Ok(Some(Place { key, offset: 0, length }));
        };

        let bad = |problem: String| Error::Chunk { array: stored.name.clone(), chunk: dotted(at), problem };
        let count = zarr::product(&sub_grid).unwrap_or(u64::MAX);
        let shard_number = number(&outer, &zarr::grid(&doc.shape, &doc.outer_shape));
        let checksum = if shard.crc32c { 4 } else { 0 };
        // The cap on sub-chunks keeps this small.
        let index_len = count.saturating_mul(16).saturating_add(checksum);
        if index_len > length {
            return Err(bad(format!("its shard of {length} bytes is shorter than the shard index of {index_len}")));
        }
        let index_at = if shard.at_end { length.saturating_sub(index_len) } else { 0 };
        let index = match self.cached_index(array, shard_number) {
            Some(index) => index,
            None => {
                let index = Arc::new(self.read_index(&key, index_at, index_len, shard).map_err(|e| match e {
                    IndexError::Store(e) => e,
                    IndexError::Bad(problem) => bad(problem),
                })?);
                if count > 1 {
                    *self.last_index.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some((array, shard_number, Arc::clone(&index)));
                }
                index
            }
        };
        let sub: Vec<u64> = at.iter().zip(&sub_grid).map(|(i, n)| i.checked_rem(*n).unwrap_or(0)).collect();
        let entry = usize::try_from(number(&sub, &sub_grid)).unwrap_or(usize::MAX).saturating_mul(16);
        let word = |at: usize| -> Option<u64> {
            let bytes: [u8; 8] = index.get(at..at.checked_add(8)?)?.try_into().ok()?;
            Some(if shard.big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
        };
        let (Some(offset), Some(nbytes)) = (word(entry), word(entry.saturating_add(8))) else {
            return Err(bad("its entry lies outside the shard index".to_owned()));
        };
        if offset == ABSENT && nbytes == ABSENT {
            return Ok(None);
        }
        let (data_from, data_to) = if shard.at_end { (0, index_at) } else { (index_len, length) };
        match offset.checked_add(nbytes) {
            Some(end) if offset >= data_from && end <= data_to => Ok(Some(Place { key, offset, length: nbytes })),
            _ => Err(bad(format!(
                "bytes {offset} + {nbytes} lie outside the data of its shard, {data_from} to {data_to} of {length}"
            ))),
        }
    }

    fn cached_index(&self, array: usize, shard: u64) -> Option<Arc<Vec<u8>>> {
        let cache = self.last_index.lock().unwrap_or_else(PoisonError::into_inner);
        cache.as_ref().filter(|(a, s, _)| (*a, *s) == (array, shard)).map(|(_, _, index)| Arc::clone(index))
    }

    fn read_index(&self, key: &str, at: u64, length: u64, shard: ShardIndex) -> Result<Vec<u8>, IndexError> {
        let mut bytes = Vec::new();
        let mut reader = self.store.reader(key, at, length).map_err(IndexError::Store)?;
        reader.read_to_end(&mut bytes).map_err(|e| IndexError::Store(Error::io(key, e)))?;
        if shard.crc32c {
            let found = bytes.split_off(bytes.len().saturating_sub(4));
            let expected = crc32c::crc32c(&bytes);
            if found != expected.to_le_bytes() {
                return Err(IndexError::Bad(format!("the shard index has a wrong CRC-32C, expected {expected:08x}")));
            }
        }
        Ok(bytes)
    }

    pub(crate) fn chunk(&self, array: usize, chunk: u64) -> Result<Chunk<'_>> {
        let (stored, at) = self.stored(array, chunk)?;
        let doc = &stored.doc;
        let Some(place) = self.place(array, stored, &at)? else {
            if self.strict {
                return Err(Error::MissingChunk { array: stored.name.clone(), chunk: dotted(&at) });
            }
            return Ok(Chunk::Fill(doc.fill.clone()));
        };
        let bad = |problem: String| Error::Chunk { array: stored.name.clone(), chunk: dotted(&at), problem };
        let expected = doc.chunk_bytes();
        let compressed = doc.codecs.iter().any(|&codec| codec != Codec::Crc32c);
        if !plausible(place.length, expected, compressed) {
            return Err(bad(format!(
                "too short: {} stored bytes cannot hold the {expected} of this chunk",
                place.length
            )));
        }
        let bytes = self.store.reader(&place.key, place.offset, place.length)?;
        let unit = if doc.big_endian { doc.dtype.swap_unit() } else { 1 };
        let what = format!("array {:?}, chunk {}", stored.name, dotted(&at));
        decoder(bytes, &doc.codecs, unit, expected, what).map(Chunk::Stream).map_err(|e| bad(e.to_string()))
    }

    pub(crate) fn stored_len(&self, array: usize, chunk: u64) -> Result<u64> {
        let (stored, at) = self.stored(array, chunk)?;
        Ok(self.place(array, stored, &at)?.map_or(0, |place| place.length))
    }
}

enum IndexError {
    Store(Error),
    Bad(String),
}

/// `NAME/key`; the keys of the nameless array (a bare leaf) stand alone.
pub(crate) fn join(array: &str, key: &str) -> String {
    if array.is_empty() { key.to_owned() } else { format!("{array}/{key}") }
}

/// Position of chunk `number` in C order over `grid`.
pub(crate) fn position(number: u64, grid: &[u64]) -> Vec<u64> {
    let mut rest = number;
    let mut at: Vec<u64> = grid
        .iter()
        .rev()
        .map(|&n| {
            let i = rest.checked_rem(n).unwrap_or(0);
            rest = rest.checked_div(n).unwrap_or(0);
            i
        })
        .collect();
    at.reverse();
    at
}

/// The inverse of [`position`].
fn number(at: &[u64], grid: &[u64]) -> u64 {
    at.iter().zip(grid).fold(0u64, |all, (i, n)| all.saturating_mul(*n).saturating_add(*i))
}

/// A grid position as messages spell it.
pub(crate) fn dotted(at: &[u64]) -> String {
    if at.is_empty() { "0".to_owned() } else { at.iter().map(u64::to_string).collect::<Vec<_>>().join(".") }
}
