//! What was read and may be asked for again: the least recently used goes when it is full.
//!
//! Invariant: nothing is read or made under its lock, so that threads wait for each other's look-ups alone. Two that want
//! the same thing at the same time may both read it; they read the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Things by key, up to so many bytes; always the one that was put there last, however large it is.
#[derive(Debug)]
pub(super) struct Shelf<K, V> {
    limit_bytes: usize,
    held: Mutex<Held<K, V>>,
}

#[derive(Debug)]
struct Held<K, V> {
    /// Counts look-ups.
    clock: u64,
    bytes: usize,
    things: BTreeMap<K, Thing<V>>,
}

#[derive(Debug)]
struct Thing<V> {
    value: Arc<V>,
    bytes: usize,
    used: u64,
}

impl<K: Ord + Clone, V> Shelf<K, V> {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Shelf { limit_bytes, held: Mutex::new(Held { clock: 0, bytes: 0, things: BTreeMap::new() }) }
    }

    /// What stands under a key; else it is read, and put there with the bytes that `weigh` says.
    pub(super) fn get_or<E>(
        &self,
        key: &K,
        read: impl FnOnce() -> Result<V, E>,
        weigh: impl FnOnce(&V) -> usize,
    ) -> Result<Arc<V>, E> {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        let value = Arc::new(read()?);
        self.put(key.clone(), Arc::clone(&value), weigh(&value));
        Ok(value)
    }

    fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clock += 1;
        let now = held.clock;
        held.things.get_mut(key).map(|thing| {
            thing.used = now;
            Arc::clone(&thing.value)
        })
    }

    fn put(&self, key: K, value: Arc<V>, bytes: usize) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = &mut *held;
        held.clock += 1;
        if let Some(before) = held.things.insert(key, Thing { value, bytes, used: held.clock }) {
            held.bytes -= before.bytes;
        }
        held.bytes = held.bytes.saturating_add(bytes);
        while held.bytes > self.limit_bytes && held.things.len() > 1 {
            let oldest = held.things.iter().min_by_key(|(_, thing)| thing.used).map(|(key, _)| key.clone());
            let Some(gone) = oldest.and_then(|key| held.things.remove(&key)) else { return };
            held.bytes -= gone.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_the_last_stays_however_large() {
        let shelf = Shelf::new(100);
        let reads = Cell::new(0);
        let ask = |key: u32, bytes: usize| {
            let before = reads.get();
            let read = || {
                reads.set(before + 1);
                Ok::<u32, ()>(10 * key)
            };
            assert_eq!(*shelf.get_or(&key, read, |_| bytes).unwrap(), 10 * key);
            reads.get() > before
        };
        assert!(ask(1, 40) && ask(2, 40) && !ask(1, 40));
        assert!(ask(3, 40), "no room: 2 was used least recently");
        assert!(!ask(1, 40) && !ask(3, 40) && ask(2, 40));
        assert!(ask(4, 1000) && !ask(4, 1000) && ask(3, 40));
        assert!(ask(4, 1000) && ask(5, 1));
        assert!(!ask(5, 1));
        assert!(shelf.get_or(&6, || Err(()), |_| 1).is_err());
        assert!(ask(6, 1), "a failure is not kept");
    }
}
