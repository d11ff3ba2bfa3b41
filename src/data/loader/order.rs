//! Which example stands at which position of a run.
//!
//! ```text
//! batch s of size B     positions s B .. s B + B
//! dataset of position p the one whose share of [0, 1) holds chance(seed, "loader/dataset", p)
//! c                     positions before p that the same dataset has
//! frame                 permutation(seed, "loader/epoch/<dataset>", c / n)[c mod n]    n frames; Fisher and Yates
//! ```
//!
//! Invariant: a pure function of seed and position. A [`Cursor`] remembers nothing but what saves it counting: begun
//! anywhere, it gives what one begun at 0 gives from there on.

use crate::chance::Stream;

/// An example of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which dataset, in the order in which they were named.
    pub dataset: usize,
    /// Which of its examples.
    pub frame: usize,
}

/// Why there is no order.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OrderError {
    /// Nothing to draw from.
    #[error("there is no dataset to learn from")]
    NoDatasets,
    /// A dataset without an example.
    #[error("{name}: it has no frames")]
    Empty {
        /// The dataset.
        name: String,
    },
    /// More examples than an order counts.
    #[error("{name}: {frames} frames, at most {}", u32::MAX)]
    TooMany {
        /// The dataset.
        name: String,
        /// Its examples.
        frames: usize,
    },
    /// A weight that is none.
    #[error("{name}: a weight of {weight}, expected a number above 0")]
    Weight {
        /// The dataset.
        name: String,
        /// What was told.
        weight: f64,
    },
}

/// The order of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    seed: u64,
    shuffle: bool,
    /// Frames of each dataset.
    frames: Vec<u32>,
    /// Where the share of each ends, the last at the sum of all.
    shares: Vec<f64>,
}

impl Order {
    /// Of datasets by name, number of examples and weight. Without `shuffle` the frames of each come in their own order;
    /// which of several datasets a position has is drawn all the same.
    ///
    /// # Errors
    /// No dataset, one without examples or with too many, a weight that is no number above 0.
    pub fn new<'a>(
        datasets: impl IntoIterator<Item = (&'a str, usize, f64)>,
        seed: u64,
        shuffle: bool,
    ) -> Result<Self, OrderError> {
        let mut order = Order { seed, shuffle, frames: vec![], shares: vec![] };
        let mut sum = 0.0;
        for (name, frames, weight) in datasets {
            let name = || name.to_owned();
            if frames == 0 {
                return Err(OrderError::Empty { name: name() });
            }
            sum += weight;
            if !(weight > 0.0 && sum.is_finite()) {
                return Err(OrderError::Weight { name: name(), weight });
            }
            order.frames.push(u32::try_from(frames).map_err(|_| OrderError::TooMany { name: name(), frames })?);
            order.shares.push(sum);
        }
        if order.frames.is_empty() { Err(OrderError::NoDatasets) } else { Ok(order) }
    }

    /// Which dataset a position has.
    fn dataset(&self, position: u64) -> usize {
        let Some(sum) = self.shares.last().filter(|_| self.shares.len() > 1) else { return 0 };
        let drawn = Stream::new(self.seed, "loader/dataset", position as usize).unit() * sum;
        self.shares.partition_point(|end| *end <= drawn).min(self.shares.len() - 1)
    }

    /// A dataset's frames in the order of one of its epochs.
    fn epoch(&self, dataset: usize, epoch: u64) -> Vec<u32> {
        let mut frames: Vec<u32> = (0..self.frames[dataset]).collect();
        let mut stream = Stream::new(self.seed, &format!("loader/epoch/{dataset}"), epoch as usize);
        for last in (1..frames.len()).rev() {
            frames.swap(last, stream.below(last as u64 + 1) as usize);
        }
        frames
    }

    /// The places from a position on, without end. Of several datasets the positions before are counted, some millions a
    /// second.
    pub fn at(&self, position: u64) -> Cursor {
        let mut drawn = vec![0; self.frames.len()];
        match &mut drawn[..] {
            [only] => *only = position,
            several => (0..position).for_each(|before| several[self.dataset(before)] += 1),
        }
        let epochs = vec![None; self.frames.len()];
        Cursor { order: self.clone(), position, drawn, epochs }
    }
}

/// The places of a run, one after the other.
#[derive(Debug, Clone)]
pub struct Cursor {
    order: Order,
    position: u64,
    /// Positions before, by dataset.
    drawn: Vec<u64>,
    /// The epoch that each dataset is in, laid out when it is first needed.
    epochs: Vec<Option<(u64, Vec<u32>)>>,
}

impl Cursor {
    /// The next place.
    pub fn advance(&mut self) -> Place {
        let Cursor { order, position, drawn, epochs } = self;
        let dataset = order.dataset(*position);
        let frames = u64::from(order.frames[dataset]);
        let (epoch, at) = (drawn[dataset] / frames, (drawn[dataset] % frames) as usize);
        *position += 1;
        drawn[dataset] += 1;
        if !order.shuffle {
            return Place { dataset, frame: at };
        }
        let laid = epochs[dataset].take().filter(|(laid, _)| *laid == epoch);
        let (_, laid) = epochs[dataset].insert(laid.unwrap_or_else(|| (epoch, order.epoch(dataset, epoch))));
        Place { dataset, frame: laid[at] as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(order: &Order, from: u64, count: usize) -> Vec<Place> {
        let mut cursor = order.at(from);
        (0..count).map(|_| cursor.advance()).collect()
    }

    #[test]
    fn every_epoch_is_a_permutation_and_no_two_are_alike() {
        let order = Order::new([("a", 100, 1.0)], 7, true).unwrap();
        let epochs: Vec<Vec<usize>> =
            (0..3).map(|epoch| places(&order, epoch * 100, 100).iter().map(|place| place.frame).collect()).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..100).collect::<Vec<_>>());
            // Of a hundred frames one stands in its own place on average.
            assert!(epoch.iter().enumerate().filter(|(at, frame)| at == *frame).count() < 10, "{epoch:?}");
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        assert_ne!(places(&order, 0, 100), places(&Order { seed: 8, ..order.clone() }, 0, 100));
        let straight = Order { shuffle: false, ..order };
        assert_eq!(
            places(&straight, 98, 4).iter().map(|place| place.frame).collect::<Vec<_>>(),
            [98, 99, 0, 1],
            "unshuffled"
        );
    }

    #[test]
    fn every_frame_is_first_as_often_as_any_other() {
        let mut first = [0; 5];
        for seed in 0..5000 {
            first[places(&Order::new([("a", 5, 1.0)], seed, true).unwrap(), 0, 1)[0].frame] += 1;
        }
        assert!(first.iter().all(|count| (900..1100).contains(count)), "{first:?}");
    }

    #[test]
    fn begun_anywhere_it_goes_on_as_if_begun_at_the_start() {
        let order = Order::new([("a", 7, 1.0), ("b", 5, 2.5), ("c", 11, 0.5)], 3, true).unwrap();
        let all = places(&order, 0, 200);
        for from in [0, 1, 6, 35, 77, 199] {
            assert_eq!(places(&order, from as u64, 200 - from), all[from..], "from {from}");
        }
    }

    #[test]
    fn weights_are_met_and_each_dataset_has_its_own_epochs() {
        let order = Order::new([("a", 7, 7.0), ("b", 50, 3.0)], 0, true).unwrap();
        let all = places(&order, 0, 20_000);
        let of: Vec<usize> = all.iter().filter(|place| place.dataset == 0).map(|place| place.frame).collect();
        assert!((13_700..14_300).contains(&of.len()), "{}", of.len());
        for epoch in of.chunks_exact(7) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn what_cannot_be_drawn_from_is_named() {
        let refusal = |datasets: &[(&'static str, usize, f64)]| {
            Order::new(datasets.iter().copied(), 0, true).unwrap_err().to_string()
        };
        assert_eq!(refusal(&[]), "there is no dataset to learn from");
        assert_eq!(refusal(&[("a", 1, 1.0), ("b", 0, 1.0)]), "b: it has no frames");
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(refusal(&[("a", 1, weight)]).starts_with("a: a weight of"), "{weight}");
        }
        let many = u32::MAX as usize + 1;
        assert!(refusal(&[("a", many, 1.0)]).contains("at most 4294967295"));
    }
}
