//! A robot's pictures → the slots of a model's layout.
//!
//! Source: openpi 15a9616, policies/. Invariant: after this step nothing is left in the record but `state`, `actions`,
//! `prompt`, `image/<slot>` and `image_mask/<slot>`, as openpi's inputs return nothing else.

use serde::Deserialize;

use super::super::array::Array;
use super::super::image::parse;
use super::super::record::{Fault, Record, nearest};
use super::super::step::Step;

/// What holds for all pictures of a robot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Keys that begin so are pictures; one that no slot shows and `unused` does not name is refused.
    pub prefix: Option<String>,
    /// Pictures that may be there, and that no slot shows.
    #[serde(default)]
    pub unused: Vec<String>,
}

/// A picture as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// The model's name of it.
    pub slot: String,
    /// The robot's key; without one the slot is black.
    pub camera: Option<String>,
    /// May the camera be missing? Then the slot is black and masked.
    #[serde(default)]
    pub optional: bool,
    /// Of a black slot: does the model look at it?
    #[serde(default)]
    pub mask: bool,
}

/// What is wrong with a layout.
pub(super) fn faults(slots: &[Slot]) -> Vec<String> {
    let mut faults = vec![];
    // Black pictures are as large as the first.
    match slots.first() {
        None => faults.push("it has no slot".to_owned()),
        Some(first) if first.camera.is_none() || first.optional => {
            faults.push(format!("{}: the first slot needs a camera that is always there", first.slot));
        }
        Some(_) => {}
    }
    for (at, slot) in slots.iter().enumerate() {
        if slots[..at].iter().any(|before| before.slot == slot.slot) {
            faults.push(format!("{}: it is there twice", slot.slot));
        }
        if slot.camera.is_some() && slot.mask {
            faults.push(format!("{}: mask is of slots without a camera", slot.slot));
        }
        if slot.camera.is_none() && slot.optional {
            faults.push(format!("{}: optional is of slots with a camera", slot.slot));
        }
    }
    faults
}

/// Pictures into slots.
#[derive(Debug, Clone)]
pub struct RobotCameras {
    pub(super) robot: String,
    pub(super) layout: String,
    pub(super) images: Images,
    pub(super) slots: Vec<Slot>,
}

impl RobotCameras {
    fn known(&self) -> impl Iterator<Item = &str> {
        let shown = self.slots.iter().filter_map(|slot| slot.camera.as_deref());
        shown.chain(self.images.unused.iter().map(String::as_str))
    }
}

impl Step for RobotCameras {
    fn name(&self) -> &'static str {
        "robot-cameras"
    }

    fn describe(&self) -> String {
        let slot = |slot: &Slot| match &slot.camera {
            Some(camera) if slot.optional => format!("{} = {camera}, or black and masked", slot.slot),
            Some(camera) => format!("{} = {camera}", slot.slot),
            None if slot.mask => format!("{} = black", slot.slot),
            None => format!("{} = black and masked", slot.slot),
        };
        let slots: Vec<String> = self.slots.iter().map(slot).collect();
        format!(
            "{}, layout {}: {}; all but state, actions and prompt is dropped",
            self.robot,
            self.layout,
            slots.join(", ")
        )
    }

    fn reads(&self) -> Vec<String> {
        self.slots.iter().filter_map(|slot| slot.camera.clone()).collect()
    }

    fn writes(&self) -> Vec<String> {
        let keys = |slot: &Slot| [format!("image/{}", slot.slot), format!("image_mask/{}", slot.slot)];
        self.slots.iter().flat_map(keys).collect()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        let strange = |key: &&String| {
            let picture = self.images.prefix.as_deref().is_some_and(|prefix| key.starts_with(prefix));
            picture && !self.known().any(|known| known == *key)
        };
        if let Some(key) = record.values.keys().find(strange) {
            return Err(Fault::Unknown { key: key.clone(), nearest: nearest(key, self.known()) });
        }
        let mut out = Record::default();
        let mut size: Option<Vec<usize>> = None;
        for slot in &self.slots {
            let camera = slot.camera.as_deref().filter(|camera| !slot.optional || record.has(camera));
            let (image, mask) = match (camera, &size) {
                (Some(camera), _) => (parse(camera, record.array(camera)?)?, true),
                (None, Some(size)) => (black(size), slot.mask),
                (None, None) => {
                    let what = "the first slot of a layout needs a camera".to_owned();
                    return Err(Fault::Wrong { key: slot.slot.clone(), what });
                }
            };
            size.get_or_insert_with(|| image.shape.clone());
            out.put_array(format!("image/{}", slot.slot), image);
            out.put_array(format!("image_mask/{}", slot.slot), Array::flag(mask));
        }
        for key in ["state", "actions", "prompt"] {
            if let Some(value) = record.values.remove(key) {
                out.put(key, value);
            }
        }
        *record = out;
        Ok(())
    }
}

fn black(shape: &[usize]) -> Array {
    Array::u8(shape, vec![0; shape.iter().product()])
}
