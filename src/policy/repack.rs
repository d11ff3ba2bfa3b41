//! A dataset's keys → the keys that the robot's own program sends.
//!
//! Source: openpi 15a9616, transforms.py (RepackTransform). Invariant: what is not named is dropped, what is named must be
//! there. openpi takes this step for datasets only and has no way back for it: actions that a model gave stay `actions`.

use super::record::{Fault, Record};
use super::step::Step;

/// The new keys, each with the key that its value has now.
#[derive(Debug, Clone)]
pub struct Repack {
    /// (new, old).
    pub keys: Vec<(String, String)>,
}

impl Step for Repack {
    fn name(&self) -> &'static str {
        "repack"
    }

    fn describe(&self) -> String {
        let renamed: Vec<String> = self.keys.iter().map(|(new, old)| format!("{new} = {old}")).collect();
        format!("{}; all else is dropped", renamed.join(", "))
    }

    fn reads(&self) -> Vec<String> {
        self.keys.iter().map(|(_, old)| old.clone()).collect()
    }

    fn writes(&self) -> Vec<String> {
        self.keys.iter().map(|(new, _)| new.clone()).collect()
    }

    fn apply(&self, record: &mut Record) -> Result<(), Fault> {
        let mut repacked = Record::default();
        for (at, (new, old)) in self.keys.iter().enumerate() {
            // Two new keys may have one source; a picture is copied only then.
            let again = self.keys[at + 1..].iter().any(|(_, later)| later == old);
            let value = match record.get(old) {
                Some(value) if again => value.clone(),
                _ => record.take(old)?,
            };
            repacked.put(new.clone(), value);
        }
        *record = repacked;
        Ok(())
    }
}
