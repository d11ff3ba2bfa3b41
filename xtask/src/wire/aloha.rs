//! What an ALOHA with three cameras sends, right and wrong: 14 joints, 3 × 224 × 224 pixels of three colours, a prompt.
//!
//! Source: openpi 15a9616, policies/aloha_policy.py (`make_aloha_example`). Invariant: the same seed gives the same bytes.

use super::message::Writer;
use crate::procedural::mix;

pub(crate) const CAMERAS: [&str; 3] = ["cam_high", "cam_left_wrist", "cam_right_wrist"];
/// Colours, rows, columns.
pub(crate) const PICTURE: [u16; 3] = [3, 224, 224];
pub(crate) const JOINTS: u16 = 14;
pub(crate) const PROMPT: &str = "transfer the cube";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// As openpi's client asks.
    Plainly,
    /// With noise from a seed: a key of this server alone.
    Seeded(u64),
    /// The camera that every ALOHA has is not there.
    WithoutCamera,
    /// A joint is no number.
    NotANumber,
    /// Nine joints of fourteen.
    ShortState,
    /// Words where joints belong.
    Words,
    /// A picture with fewer bytes than its shape says.
    ShortPicture,
    /// Joints of a type that only Python can hold.
    Objects,
}

/// The joints, in radians and openings.
pub(crate) fn state(seed: u64) -> Vec<f64> {
    (0..u64::from(JOINTS)).map(|joint| (mix(seed ^ joint << 32) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0).collect()
}

/// A camera's picture.
pub(crate) fn picture(seed: u64, camera: u64) -> Vec<u8> {
    let len = PICTURE.iter().map(|n| u64::from(*n)).product::<u64>();
    (0..len.div_ceil(8)).flat_map(|i| mix(mix(seed) ^ camera << 40 ^ i).to_le_bytes()).take(len as usize).collect()
}

/// The message.
pub(crate) fn message(seed: u64, asked: Asked) -> Vec<u8> {
    let mut out = Writer::default();
    out.map(if matches!(asked, Asked::Seeded(_)) { 4 } else { 3 });
    let mut joints = state(seed);
    match asked {
        Asked::NotANumber => joints[3] = f64::NAN,
        Asked::ShortState => joints.truncate(9),
        _ => {}
    }
    let bytes: Vec<u8> = joints.iter().flat_map(|x| x.to_le_bytes()).collect();
    out.text("state");
    match asked {
        Asked::Words => out.text("near the table"),
        Asked::Objects => out.array("|O", &[JOINTS], &bytes),
        _ => out.array("<f8", &[joints.len() as u16], &bytes),
    };
    let left_out = usize::from(asked == Asked::WithoutCamera);
    out.text("images").map((CAMERAS.len() - left_out) as u8);
    for (i, camera) in CAMERAS.iter().enumerate().skip(left_out) {
        let mut data = picture(seed, i as u64);
        if asked == Asked::ShortPicture {
            data.truncate(1000);
        }
        out.text(camera).array("|u1", &PICTURE, &data);
    }
    out.text("prompt").text(PROMPT);
    if let Asked::Seeded(noise) = asked {
        out.text("pi0").map(1).text("seed").number(noise);
    }
    out.bytes
}

#[cfg(test)]
mod tests {
    use super::super::message::Value;
    use super::*;

    #[test]
    fn what_is_asked_wrongly_lacks_what_it_says() {
        let whole = message(1, Asked::Plainly);
        let read = Value::parse(&whole).unwrap();
        let Some(Value::Binary(high)) = read.get("images").unwrap().get("cam_high").unwrap().get("data") else {
            panic!()
        };
        assert_eq!((high.len(), *high), (3 * 224 * 224, &picture(1, 0)[..]));
        assert_ne!(picture(1, 0), picture(1, 1));
        assert!(state(1).iter().all(|x| x.abs() <= 1.0) && state(1) != state(2));
        assert_eq!(message(1, Asked::Plainly), whole);
        let bytes = message(1, Asked::WithoutCamera);
        assert!(Value::parse(&bytes).unwrap().get("images").unwrap().get("cam_high").is_none());
        let bytes = message(1, Asked::Seeded(5));
        assert_eq!(Value::parse(&bytes).unwrap().number(&["pi0", "seed"]), Some(5.0));
        assert!(message(1, Asked::ShortPicture).len() < 4000);
    }
}
