//! Every input that the fuzz targets begin with, and every one that once broke something, goes through the same entry points.

use std::fs;
use std::path::Path;

type Target = (&'static str, fn(&[u8]));

#[test]
fn every_fuzz_input_is_answered_without_a_panic() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let targets: [Target; 4] = [
        ("manifest", ocdbt::fuzzing::manifest),
        ("node", ocdbt::fuzzing::node),
        ("version_node", ocdbt::fuzzing::version_node),
        ("database", ocdbt::fuzzing::database),
    ];
    for (target, run) in targets {
        let mut inputs = 0;
        for folder in ["corpus", "crashes"] {
            // A target that never crashed has no folder there.
            let Ok(folder) = fs::read_dir(fuzz.join(folder).join(target)) else {
                continue;
            };
            for file in folder {
                run(&fs::read(file.unwrap().path()).unwrap());
                inputs += 1;
            }
        }
        assert!(inputs > 0, "{target} has no input");
    }
}
