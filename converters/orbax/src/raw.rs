//! Databases and single arrays without a checkpoint around them: for looking into what [`Checkpoint`](crate::Checkpoint) refuses.
//!
//! Invariant: the same stores, documents and decoders as for a checkpoint; missing chunks are the fill value.

use std::path::Path;

use crate::array::Arrays;
use crate::error::{Error, Result};
use crate::store::{OcdbtStore, PlainStore, Store};
use crate::{ArrayInfo, Chunk, Source};

/// An OCDBT database of whatever content.
pub struct Database(OcdbtStore);

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Database").field(self.0.database()).finish()
    }
}

impl Database {
    /// Opens the newest version in `dir`.
    ///
    /// # Errors
    /// A damaged database.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        OcdbtStore::open(dir.as_ref()).map(Database)
    }

    /// Every key with the bytes of its value, sorted.
    pub fn keys(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.0.database().entries().iter().map(|entry| (entry.key.as_slice(), entry.value.len()))
    }

    /// Names of the arrays in it: the folders of `.zarray` and `zarr.json` keys.
    ///
    /// # Errors
    /// None at present.
    pub fn array_names(&self) -> Result<Vec<String>> {
        Ok(self.0.array_names()?.0.into_iter().collect())
    }

    /// The array `name` as a source of one array.
    ///
    /// # Errors
    /// No such array, or a document that is not understood.
    pub fn array(self, name: &str) -> Result<Array> {
        Array::new(Box::new(self.0), name, name)
    }
}

/// One zarr array, v2 or v3, as a source.
pub struct Array(Arrays);

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Array").field(&self.0.infos()).finish()
    }
}

impl Array {
    /// Opens the folder of a zarr array (`.zarray` or `zarr.json` lies in it); its name is the folder's.
    ///
    /// # Errors
    /// No document in the folder, or one that is not understood.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self::new(Box::new(PlainStore::open(dir)), "", &name)
    }

    fn new(store: Box<dyn Store>, stored: &str, name: &str) -> Result<Self> {
        let mut arrays = Arrays::new(store, false);
        match arrays.add(stored, name, false)? {
            Some(_) => Ok(Array(arrays)),
            None => Err(Error::document(name, "no zarr array here (neither .zarray nor zarr.json)")),
        }
    }
}

impl Source for Array {
    fn arrays(&self) -> &[ArrayInfo] {
        self.0.infos()
    }
    fn chunk(&self, array: usize, chunk: u64) -> Result<Chunk<'_>> {
        self.0.chunk(array, chunk)
    }
    fn stored_len(&self, array: usize, chunk: u64) -> Result<u64> {
        self.0.stored_len(array, chunk)
    }
}
