//! openpi's own command line: which policy its words mean.
//!
//! Source: openpi 15a9616, scripts/serve_policy.py. Its parser takes options before `policy:checkpoint` and that policy's
//! own after it; here the order is free.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::Args;

/// Words for which policy.
pub(super) const POLICIES: [&str; 2] = ["policy:checkpoint", "policy:default"];
/// Where openpi's server records.
pub(super) const RECORDS: &str = "policy_records";

/// openpi's environments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Env {
    /// pi05_aloha on the base model
    Aloha,
    /// pi0_aloha_sim
    #[value(name = "aloha_sim", alias = "aloha-sim")]
    AlohaSim,
    /// pi05_droid
    Droid,
    /// pi05_libero
    Libero,
}

impl Env {
    /// Preset and published checkpoint.
    fn default_policy(self) -> (&'static str, &'static str) {
        match self {
            Env::Aloha => ("pi05_aloha", "gs://openpi-assets/checkpoints/pi05_base"),
            Env::AlohaSim => ("pi0_aloha_sim", "gs://openpi-assets/checkpoints/pi0_aloha_sim"),
            Env::Droid => ("pi05_droid", "gs://openpi-assets/checkpoints/pi05_droid"),
            Env::Libero => ("pi05_libero", "gs://openpi-assets/checkpoints/pi05_libero"),
        }
    }
}

/// Makes of openpi's words what ours would be.
///
/// # Errors
/// Words that contradict each other, or say too little.
pub(super) fn apply(args: &mut Args) -> Result<()> {
    // `--record policy:checkpoint`: openpi's --record takes no value.
    if let Some(word) = args.record.as_deref().and_then(Path::to_str).filter(|word| POLICIES.contains(word)) {
        ensure!(args.policy.is_none(), "{word}: the policy is named twice");
        args.policy = Some(word.to_owned());
        args.record = Some(PathBuf::from(RECORDS));
    }
    let named = args.engine.config.is_some() || args.engine.checkpoint_dir.is_some();
    let default = match args.policy.as_deref() {
        Some("policy:default") => {
            ensure!(
                !named,
                "policy:default: --env says which; leave --config and --checkpoint-dir out, or policy:default"
            );
            true
        }
        Some(_) => false,
        None => !named,
    };
    if default {
        ensure!(
            args.env.is_some() || args.policy.is_some(),
            "which policy? Name a preset and a checkpoint (--config pi05_libero --checkpoint-dir DIR), or an environment, \
             whose published checkpoint is then taken (--env LIBERO)"
        );
        let (config, checkpoint) = args.env.unwrap_or(Env::AlohaSim).default_policy();
        args.engine.config = Some(config.to_owned());
        args.engine.checkpoint_dir = Some(checkpoint.into());
        return Ok(());
    }
    ensure!(args.engine.config.is_some(), "--config (--policy.config): which preset?");
    ensure!(args.engine.checkpoint_dir.is_some(), "--checkpoint-dir (--policy.dir): which checkpoint?");
    // As openpi: --env is only of default policies, and is not looked at beside a checkpoint.
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(words: &[&str]) -> Result<Args> {
        let mut args = Alone::try_parse_from([&["serve"], words].concat())?.args;
        apply(&mut args)?;
        Ok(args)
    }

    fn policy(words: &[&str]) -> (String, String) {
        let args = parsed(words).unwrap();
        (args.engine.config.unwrap(), args.engine.checkpoint_dir.unwrap().display().to_string())
    }

    #[test]
    fn openpis_own_command_lines_mean_what_they_mean_there() {
        let own = ["policy:checkpoint", "--policy.config=pi05_droid", "--policy.dir=checkpoints/pi05_droid/1/100"];
        assert_eq!(policy(&own), ("pi05_droid".into(), "checkpoints/pi05_droid/1/100".into()));
        let spaced = ["--port", "8001", "policy:checkpoint", "--policy.config", "pi0_libero", "--policy.dir", "d"];
        assert_eq!(policy(&spaced), ("pi0_libero".into(), "d".into()));
        let published = ("pi05_libero".to_owned(), "gs://openpi-assets/checkpoints/pi05_libero".to_owned());
        assert_eq!(policy(&["--env", "LIBERO"]), published);
        assert_eq!(policy(&["--env", "libero", "--default_prompt", "fold"]), published);
        assert_eq!(policy(&["--env=ALOHA_SIM", "policy:default"]).0, "pi0_aloha_sim");
        assert_eq!(policy(&["policy:default"]).0, "pi0_aloha_sim");
        let beside = ["--env", "DROID", "policy:checkpoint", "--policy.config", "pi0_libero", "--policy.dir", "d"];
        assert_eq!(policy(&beside).0, "pi0_libero");
    }

    #[test]
    fn recording_needs_no_folder_and_takes_one() {
        let own = ["--policy.config", "a", "--policy.dir", "b"];
        let record = |words: &[&str]| {
            let args = parsed(words).unwrap();
            (args.record.unwrap().display().to_string(), args.engine.config.unwrap())
        };
        assert_eq!(record(&[&["--record", "policy:checkpoint"][..], &own].concat()), (RECORDS.into(), "a".into()));
        assert_eq!(record(&[&["--record"][..], &own].concat()), (RECORDS.into(), "a".into()));
        assert_eq!(record(&[&["--record", "kept"][..], &own].concat()), ("kept".into(), "a".into()));
    }

    #[test]
    fn what_says_too_little_or_too_much_is_refused() {
        let refusal = |words: &[&str]| format!("{:#}", parsed(words).unwrap_err());
        assert!(refusal(&[]).contains("--env LIBERO"));
        assert!(refusal(&["policy:checkpoint", "--policy.dir", "d"]).contains("--policy.config"));
        assert!(refusal(&["--config", "pi0_libero"]).contains("--checkpoint-dir"));
        assert!(refusal(&["policy:default", "--config", "pi0_libero"]).contains("--env"));
        assert!(refusal(&["--env", "ISAAC"]).contains("aloha_sim"));
    }
}
