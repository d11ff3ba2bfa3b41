//! The chance of one picture, as data: drawn from (seed, step, row, camera), or read from a recording.
//!
//! Source: openpi 15a9616, models/model.py; augmax 0.4.1, `RandomCrop`, `Rotate`, `ColorJitter`. openpi gives every camera one key, and
//! JAX 0.5 splits it so that the first of n does not depend on n. Hence, for a row's key r and `/i` its i-th split:
//! crop = r/0/0, angle = r/0/2, jitter of a camera that is cropped = r/1/0, of a wrist's = r/0/0. The last is the crop's own key:
//! whether a wrist is jittered and where the crop lies in height are one number. All the rest is independent.

use serde::{Deserialize, Serialize};

use super::Quirks;
use super::view::cropped;
use crate::chance::Stream;

/// In degrees, to both sides.
const ANGLE: f64 = 5.0;
/// How often colours are jittered.
const JITTERED: f64 = 0.5;
/// By how much, to both sides. Hue is in turns; openpi does not name it, 0.1 is augmax's default.
const BRIGHTNESS: f64 = 0.3;
const CONTRAST: f64 = 0.4;
const SATURATION: f64 = 0.5;
const HUE: f64 = 0.1;

/// All chance of one picture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draws {
    /// Crop and angle; wrist cameras have none.
    pub view: Option<View>,
    /// The colours.
    pub jitter: Jitter,
}

/// Where the picture is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The crop's centre below the picture's, in pixels: a fraction is meant, not rounded.
    pub center_y: f32,
    /// The crop's centre to the right of the picture's, in pixels.
    pub center_x: f32,
    /// In radians; what is seen turns counterclockwise where it is positive.
    pub angle: f32,
}

/// What becomes of the colours.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jitter {
    /// Whether anything does. The amounts are drawn in any case.
    pub applied: bool,
    /// Towards white where positive, towards black where negative; ± 1 arrives there.
    pub brightness: f32,
    /// The slope at middle grey is tan(π/4 (1 + contrast)).
    pub contrast: f32,
    /// In turns of the colour circle.
    pub hue: f32,
    /// Saturation is multiplied by 1 + this, unless it is ignored.
    pub saturation: f32,
}

impl Draws {
    /// The draws of a row's picture in a step of a run. `row` counts over the whole step.
    ///
    /// The distribution is openpi's; its ends belong to it here, which f32 could not tell apart anyway.
    pub fn of((seed, step): (u64, u64), row: usize, camera: &str, (h, w): (usize, usize), quirks: Quirks) -> Self {
        let wrist = camera.contains("wrist");
        let stream = |what: &str, whose: &str| Stream::new(seed, &format!("augment/{step}/{what}/{whose}"), row);
        let whose = |alike| if quirks.cameras_draw_alike { alike } else { camera };
        let mut crop = stream("crop", whose("views"));
        let mut colors = stream("jitter", whose(if wrist { "wrists" } else { "views" }));

        let (down, right, turn) = (crop.unit(), crop.unit(), crop.unit());
        let chosen = colors.unit();
        let jitter = Jitter {
            applied: if wrist && quirks.cameras_draw_alike { down } else { chosen } < JITTERED,
            brightness: within(BRIGHTNESS, colors.unit()),
            contrast: within(CONTRAST, colors.unit()),
            hue: within(HUE, colors.unit()),
            saturation: within(SATURATION, colors.unit()),
        };
        let room = |side: usize| (side - cropped(side)) as f64 / 2.0;
        let view = View {
            center_y: within(room(h), down),
            center_x: within(room(w), right),
            angle: within(ANGLE.to_radians(), turn),
        };
        Draws { view: (!wrist).then_some(view), jitter }
    }
}

/// Of [-limit, limit], by a number of [0, 1).
fn within(limit: f64, unit: f64) -> f32 {
    (limit * (2.0 * unit - 1.0)) as f32
}
