//! The key that clients show: `Authorization: Api-Key KEY`, as openpi's client sends it (its own server never looks).
//!
//! Invariant: how long a comparison takes tells neither how many letters were right nor how many there are. Both sides are
//! hashed, and the hashes compared in constant time. The key itself is not kept.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What the header's value begins with.
const SCHEME: &[u8] = b"Api-Key ";

/// A key, hashed.
#[derive(Clone)]
pub struct Key {
    hash: [u8; 32],
}

impl Key {
    /// Of its text.
    pub fn new(text: &str) -> Self {
        Key { hash: Sha256::digest(text.as_bytes()).into() }
    }

    /// Is this header's value the scheme and the key?
    pub fn opens(&self, header: Option<&[u8]>) -> bool {
        let Some((scheme, shown)) = header.and_then(|value| value.split_at_checked(SCHEME.len())) else { return false };
        let shown: [u8; 32] = Sha256::digest(shown).into();
        scheme.eq_ignore_ascii_case(SCHEME) && bool::from(shown.ct_eq(&self.hash))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_key_opens() {
        let key = Key::new("a secret");
        assert!(key.opens(Some(b"Api-Key a secret")));
        assert!(key.opens(Some(b"api-key a secret")), "schemes have no case");
        for wrong in
            ["Api-Key a secre", "Api-Key a secret ", "Api-Key A secret", "Api-Key ", "Bearer a secret", "a secret", ""]
        {
            assert!(!key.opens(Some(wrong.as_bytes())), "{wrong:?}");
        }
        assert!(!key.opens(None));
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", Key::new("a secret")), "Key(..)");
    }
}
