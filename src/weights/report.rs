//! What a conversion did, or would do: every source tensor has its line.

use remap::{Fate, From, Plan, Tensor};
use serde::Serialize;

use super::anatomy::Anatomy;
use super::open::{LeftOut, Opened};

/// The whole account.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was read.
    pub source: SourceLine,
    /// What it is.
    pub model: Anatomy,
    /// What was written, or would be.
    pub target: TargetLine,
    /// Every tensor of the source.
    pub tensors: Vec<TensorLine>,
    /// Arrays that are no part of the chosen tree.
    pub left_out: Vec<LeftOut>,
    /// Every tensor of the target.
    pub outputs: Vec<OutputLine>,
    /// Sums over all of them.
    pub totals: Totals,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Odd, not wrong.
    pub warnings: Vec<String>,
}

/// What was read.
#[derive(Debug, Clone, Serialize)]
pub struct SourceLine {
    /// Folder or file.
    pub path: String,
    /// In a sentence: what was taken of what the user named.
    pub taken: String,
    /// Container and layout.
    pub format: String,
    /// Naming scheme.
    pub scheme: String,
    /// Training step.
    pub step: Option<u64>,
    /// Decoded bytes.
    pub bytes: u64,
}

/// What is written.
#[derive(Debug, Clone, Serialize)]
pub struct TargetLine {
    /// The file or folder.
    pub path: String,
    /// All files, in the order in which they were published.
    pub files: Vec<String>,
    /// Naming scheme.
    pub scheme: String,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// False for `--dry-run`.
    pub written: bool,
    /// What became of low-rank pairs: `none`, `keep`, `merge`, `drop`.
    pub lora: String,
}

/// A tensor of the source.
#[derive(Debug, Clone, Serialize)]
pub struct TensorLine {
    /// Name in its scheme.
    pub name: String,
    /// numpy's name of the element type.
    pub dtype: String,
    /// Elements along each axis.
    pub shape: Vec<u64>,
    /// Where it went, or why nowhere.
    pub fate: Fate,
}

/// A tensor of the target.
#[derive(Debug, Clone, Serialize)]
pub struct OutputLine {
    /// Name in its scheme.
    pub name: String,
    /// numpy's name of the element type.
    pub dtype: String,
    /// Elements along each axis.
    pub shape: Vec<u64>,
    /// `moves`, or `zeros` for a filler that nothing reads.
    pub from: &'static str,
    /// Elements whose value a cast changed.
    pub changed: u64,
    /// Of the bytes in the file, read back; only where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Sums.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Totals {
    /// Source tensors that went somewhere.
    pub moved: usize,
    /// Source tensors that were added into others.
    pub merged: usize,
    /// Source tensors that went nowhere.
    pub dropped: usize,
    /// Elements written.
    pub elements: u64,
    /// Elements whose value a cast changed.
    pub changed: u64,
    /// Elements of merged weights that the target's type had to round.
    pub rounded: u64,
    /// Seconds from the first byte read to the last name given.
    pub seconds: f64,
}

impl Report {
    /// Everything that is known before a byte is read.
    pub(super) fn planned(opened: &Opened, scheme: &str, model: Anatomy, plan: &Plan, target: TargetLine) -> Self {
        let line = |(tensor, fate): (&Tensor, &Fate)| TensorLine {
            name: tensor.name.clone(),
            dtype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.clone(),
            fate: fate.clone(),
        };
        let tensors: Vec<TensorLine> = opened.tensors.iter().zip(&plan.fates).map(line).collect();
        let outputs = plan.outputs.iter().map(|o| OutputLine {
            name: o.tensor.name.clone(),
            dtype: o.tensor.dtype.name().to_owned(),
            shape: o.tensor.shape.clone(),
            from: if o.from == From::Moves { "moves" } else { "zeros" },
            changed: 0,
            sha256: None,
        });
        let count = |f: &dyn Fn(&Fate) -> bool| plan.fates.iter().filter(|fate| f(fate)).count();
        Report {
            source: SourceLine {
                path: opened.path.display().to_string(),
                taken: opened.taken.clone(),
                format: opened.format.clone(),
                scheme: scheme.to_owned(),
                step: opened.step,
                bytes: opened.bytes(),
            },
            model,
            target,
            totals: Totals {
                moved: count(&|f| matches!(f, Fate::Moved(_))),
                merged: count(&|f| matches!(f, Fate::Merged(_))),
                dropped: count(&|f| matches!(f, Fate::Dropped(_))),
                elements: plan.outputs.iter().map(|o| o.tensor.len()).sum(),
                ..Totals::default()
            },
            tensors,
            left_out: opened.left_out.clone(),
            outputs: outputs.collect(),
            notes: vec![],
            warnings: opened.warnings.clone(),
        }
    }
}
