//! The key of a policy server: on a command line, which others on the machine can read, or in the environment.

/// Where it stands, so that it is on no command line.
pub(super) const VARIABLE: &str = "PI0_API_KEY";

/// What was told, or else what the environment says.
pub(super) fn or_environment(told: Option<&str>) -> Option<String> {
    told.map(str::to_owned).or_else(|| std::env::var(VARIABLE).ok()).filter(|key| !key.is_empty())
}
