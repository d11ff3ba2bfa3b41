//! `configs/robot/*.toml`: robots, by name or from a user's own file.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::policy::record::nearest;
use crate::policy::robot::Robot;

/// openpi's robots.
pub const ROBOTS: [(&str, &str); 4] = [
    ("aloha", include_str!("../../configs/robot/aloha.toml")),
    ("droid", include_str!("../../configs/robot/droid.toml")),
    ("libero", include_str!("../../configs/robot/libero.toml")),
    ("ur5", include_str!("../../configs/robot/ur5.toml")),
];

/// Bytes of a TOML file; a real one has some kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// One of openpi's robots.
///
/// # Errors
/// None has this name: the nearest.
pub fn named(name: &str) -> Result<Robot> {
    let Some((_, text)) = ROBOTS.iter().find(|(known, _)| *known == name) else {
        let nearest = nearest(name, ROBOTS.map(|(name, _)| name));
        bail!("{name}: no such robot; {nearest}. Your own is named by its file, {name}.toml");
    };
    parse(text).with_context(|| format!("configs/robot/{name}.toml"))
}

/// A robot's file.
///
/// # Errors
/// It cannot be read; a key that is missing or that nothing knows; what contradicts itself.
pub fn file(path: &Path) -> Result<Robot> {
    parse(&read(path)?).with_context(|| path.display().to_string())
}

/// `name`, or a file if it ends in `.toml`: relative to `folder`.
///
/// # Errors
/// As [`named`] and [`file()`].
pub fn find(name: &str, folder: &Path) -> Result<Robot> {
    if name.ends_with(".toml") { file(&folder.join(name)) } else { named(name) }
}

/// A robot's text.
///
/// # Errors
/// A key that is missing or that nothing knows; what contradicts itself.
pub fn parse(text: &str) -> Result<Robot> {
    let robot: Robot = toml::from_str(text)?;
    let faults = robot.faults();
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(robot)
}

/// A TOML file of bounded size.
pub(super) fn read(path: &Path) -> Result<String> {
    let shown = || path.display().to_string();
    let about = std::fs::metadata(path).with_context(shown)?;
    ensure!(about.is_file(), "{}: not a file", shown());
    ensure!(about.len() <= MAX_BYTES, "{}: {} bytes, at most {MAX_BYTES} are read", shown(), about.len());
    std::fs::read_to_string(path).with_context(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_robot_is_sound_and_bears_the_name_of_its_file() {
        for (name, _) in ROBOTS {
            let robot = named(name).expect("sound");
            assert_eq!(robot.name, name);
            assert!(robot.layouts.contains_key("pi0"));
        }
    }

    #[test]
    fn what_is_wrong_with_a_robot_is_told() {
        assert!(named("alhoa").unwrap_err().to_string().contains("the nearest is aloha"));
        let (_, droid) = ROBOTS[1];
        let refusal = |text: String| format!("{:#}", parse(&text).unwrap_err());
        assert!(refusal(droid.replace("actions =", "action =")).contains("action"));
        assert!(refusal(droid.replace("width = 7", "width = 0")).contains("a width of 0"));
        let without = r#"{ slot = "base_0_rgb", camera = "observation/exterior_image_1_left" }"#;
        assert!(
            refusal(droid.replace(without, r#"{ slot = "base_0_rgb" }"#)).contains("the first slot needs a camera")
        );
        let (_, aloha) = ROBOTS[0];
        let refused = refusal(aloha.replace("signs = [1, -1,", "signs = [1, 2,"));
        assert!(refused.contains("1 and -1 alone"), "{refused}");
        assert!(refusal(aloha.replace("dims = [6, 13]", "dims = [6, 14]")).contains("no dimension 14"));
        assert!(refusal(aloha.replace("width = 14", "width = 15")).contains("14 of them, expected 15"));
        assert!(refusal(aloha.replace("max = 1.4910", "max = -0.6213")).contains("no way back"));
    }

    #[test]
    fn a_robot_of_ones_own_lies_beside_the_preset() {
        let folder = tempfile::tempdir().expect("folder");
        let (_, text) = ROBOTS[3];
        std::fs::write(folder.path().join("mine.toml"), text.replace("\"ur5\"", "\"mine\"")).expect("written");
        assert_eq!(find("mine.toml", folder.path()).expect("read").name, "mine");
        assert_eq!(find("ur5", folder.path()).expect("named").name, "ur5");
        assert!(find("other.toml", folder.path()).unwrap_err().to_string().contains("other.toml"));
    }
}
