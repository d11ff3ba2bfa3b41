//! What verifying found: the table, the first divergence, the certificate.
//!
//! Invariant: a certificate names all that its verdict rests on (weights, recording, mode, device, tool), and is stamped
//! with the hash of its own content, so that an edited one is told from a real one.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::compare::Line;

/// What was compared, and how it went.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Is every array within its tolerance?
    pub ok: bool,
    /// The first that is not, in the order in which the model computes them.
    pub first_divergence: Option<String>,
    /// Every recorded array, in that order.
    pub lines: Vec<Line>,
    /// `pi0`, `pi05`, `pi0_fast`.
    pub model: String,
    /// Precision mode of this run.
    pub mode: String,
    /// Where it ran.
    pub device: String,
    /// What was verified.
    pub checkpoint: String,
    /// SHA-256 over names, shapes, dtypes and bytes of all parameters as they were loaded, in canonical names: the same
    /// for a checkpoint and all its conversions.
    pub weights_sha256: String,
    /// What it was held against: a golden set, or a checkpoint.
    pub against: String,
    /// SHA-256 of the golden set's files, or the other checkpoint's `weights_sha256`.
    pub against_sha256: String,
    /// Version of this tool.
    pub pi0_burn: String,
}

impl Report {
    /// Sums up compared lines.
    pub fn first(lines: &[Line]) -> Option<String> {
        lines.iter().find(|line| !line.ok).map(|line| line.name.clone())
    }
}

/// A report and the hash of its JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Certificate {
    report: serde_json::Value,
    sha256: String,
}

/// The certificate of a report, as text.
///
/// # Errors
/// The report does not become JSON.
pub fn certificate(report: &Report) -> Result<String> {
    let report = serde_json::to_value(report)?;
    let sha256 = hex(&Sha256::digest(serde_json::to_vec(&report)?));
    Ok(serde_json::to_string_pretty(&Certificate { report, sha256 })? + "\n")
}

/// Reads a certificate back and tells whether its stamp is its own: the verdict of its report.
///
/// # Errors
/// It is none, or was changed after it was stamped.
pub fn check_certificate(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let certificate: Certificate =
        serde_json::from_str(&text).with_context(|| format!("{}: this is no certificate", path.display()))?;
    let found = hex(&Sha256::digest(serde_json::to_vec(&certificate.report)?));
    if found != certificate.sha256 {
        bail!(
            "{}: changed after it was stamped: its content hashes to {found}, the stamp is {}",
            path.display(),
            certificate.sha256
        );
    }
    Ok(certificate.report)
}

/// SHA-256 of files, one after another.
///
/// # Errors
/// What the file system says.
pub fn files_sha256(files: &[&Path]) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(std::fs::read(file).with_context(|| file.display().to_string())?);
    }
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            ok: true,
            first_divergence: None,
            lines: vec![],
            model: "pi0".into(),
            mode: "f32".into(),
            device: "cpu".into(),
            checkpoint: "a".into(),
            weights_sha256: "b".into(),
            against: "c".into(),
            against_sha256: "d".into(),
            pi0_burn: "0".into(),
        }
    }

    #[test]
    fn an_edited_certificate_is_told_from_a_real_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("certificate.json");
        let text = certificate(&report()).expect("a report becomes JSON");
        std::fs::write(&path, &text).expect("it can be written");
        assert_eq!(check_certificate(&path).expect("its own stamp")["mode"], "f32");
        std::fs::write(&path, text.replace("\"f32\"", "\"serve-bf16\"")).expect("it can be written");
        let error = check_certificate(&path).expect_err("the stamp is another's").to_string();
        assert!(error.contains("changed after it was stamped"), "{error}");
    }
}
