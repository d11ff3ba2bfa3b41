//! Observations of a robot, from chance: every key that its policy reads, in the shapes that a robot's program would send.
//!
//! Invariant: the same robot, seed and number give the same observation.

use crate::chance::Stream;
use crate::policy::array::Array;
use crate::policy::chain::Data;
use crate::policy::record::{Fault, Record};

/// Rows and columns of a picture, as openpi's clients send it.
const SIDE: usize = 224;
/// What the robot is told.
const PROMPT: &str = "do something";

/// The `number`th: state in [0, 1), pictures of uniform bytes `[224, 224, 3]`, words.
///
/// # Errors
/// The robot has no such layout.
pub(super) fn observation(data: &Data, seed: u64, number: usize) -> Result<Record, Fault> {
    let mut record = Record::default();
    for part in &data.robot.state {
        let mut stream = Stream::new(seed, &part.key, number);
        record.put_array(part.key.clone(), Array::f64([part.width], (0..part.width).map(|_| stream.unit()).collect()));
    }
    for camera in data.robot.layout(&data.layout)?.iter().filter_map(|slot| slot.camera.as_ref()) {
        let mut stream = Stream::new(seed, camera, number);
        let bytes = (0..SIDE * SIDE * 3).map(|_| (stream.bits() >> 56) as u8).collect();
        record.put_array(camera.clone(), Array::u8([SIDE, SIDE, 3], bytes));
    }
    record.put_text("prompt", PROMPT);
    Ok(record)
}
