//! What a figure was measured on: processor, memory, system, GPU, driver, compiler, commit.
//!
//! Invariant: a fact that cannot be read is absent, never guessed; no host name, no user, no path.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// What `nvidia-smi` is asked for, in the order of [`Gpu`]'s fields.
const QUERY: &str = "--query-gpu=name,driver_version,memory.total,compute_cap";
/// Where `nvidia-smi` prints the CUDA version that the driver speaks.
const CUDA_VERSION: &str = "CUDA Version:";

/// The machine of a report.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) processor: Option<String>,
    pub(super) cores: usize,
    pub(super) memory_bytes: Option<u64>,
    pub(super) system: Option<String>,
    pub(super) kernel: Option<String>,
    pub(super) rustc: Option<String>,
    /// The commit of the tree, with `+` if files differ from it.
    pub(super) commit: Option<String>,
    pub(super) gpus: Vec<Gpu>,
    /// The newest CUDA that the driver speaks, such as `13.0`.
    pub(super) driver_cuda: Option<String>,
}

/// One GPU, as the driver names it.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) driver: String,
    pub(super) memory_mib: Option<u64>,
    pub(super) compute_capability: Option<String>,
}

impl Machine {
    /// Reads all facts.
    pub(super) fn read(root: &Path) -> Self {
        let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let commit = said(root, "git", &["rev-parse", "--short=10", "HEAD"]);
        let changed = said(root, "git", &["status", "--porcelain", "--untracked-files=no"]).is_some();
        Self {
            processor: value(&information, "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: value(&memory, "MemTotal").and_then(|text| kibibytes(&text)),
            system: value(&system, "PRETTY_NAME").map(|name| name.trim_matches('"').to_owned()),
            kernel: said(root, "uname", &["-sr"]),
            rustc: said(root, "rustc", &["--version"]),
            commit: commit.map(|commit| if changed { commit + "+" } else { commit }),
            gpus: said(root, "nvidia-smi", &[QUERY, "--format=csv,noheader,nounits"])
                .map_or(Vec::new(), |text| gpus(&text)),
            driver_cuda: said(root, "nvidia-smi", &[]).and_then(|text| driver_cuda(&text)),
        }
    }
}

/// What a command prints, without the space around it; `None` if it fails or prints nothing.
fn said(root: &Path, program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(root).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// The first value of `name` in lines such as `name : value` or `name=value`.
fn value(text: &str, name: &str) -> Option<String> {
    let after = text.lines().find_map(|line| {
        let (left, right) = line.split_once([':', '='])?;
        (left.trim() == name).then(|| right.trim().to_owned())
    })?;
    (!after.is_empty()).then_some(after)
}

/// Bytes of `24689532 kB`.
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn gpus(listing: &str) -> Vec<Gpu> {
    listing
        .lines()
        .filter_map(|line| {
            let mut cells = line.split(',').map(|cell| cell.trim().to_owned());
            let (name, driver) = (cells.next()?, cells.next()?);
            let memory_mib = cells.next().and_then(|cell| cell.parse().ok());
            let compute_capability = cells.next().filter(|cell| cell.parse::<f64>().is_ok());
            Some(Gpu { name, driver, memory_mib, compute_capability })
        })
        .collect()
}

fn driver_cuda(table: &str) -> Option<String> {
    let (_, after) = table.split_once(CUDA_VERSION)?;
    let version = after.split_whitespace().next()?;
    version.split_once('.').filter(|(major, _)| major.parse::<u32>().is_ok()).map(|_| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_read_from_the_drivers_list() {
        let found = gpus("NVIDIA H200, 580.159.03, 143771, 9.0\nOld One, 390.1, [N/A], [N/A]\nnonsense\n");
        assert_eq!(
            found,
            [
                Gpu {
                    name: "NVIDIA H200".into(),
                    driver: "580.159.03".into(),
                    memory_mib: Some(143_771),
                    compute_capability: Some("9.0".into()),
                },
                Gpu { name: "Old One".into(), driver: "390.1".into(), memory_mib: None, compute_capability: None },
            ]
        );
    }

    #[test]
    fn the_cuda_version_of_the_driver_stands_in_the_tables_head() {
        let table = "| NVIDIA-SMI 580.159.03   Driver Version: 580.159.03   CUDA Version: 13.0     |\n";
        assert_eq!(driver_cuda(table).as_deref(), Some("13.0"));
        assert_eq!(driver_cuda("| CUDA Version: N/A |"), None);
        assert_eq!(driver_cuda("NVIDIA-SMI has failed"), None);
    }

    #[test]
    fn facts_of_the_system_are_read_and_absent_ones_stay_absent() {
        assert_eq!(value("a\t: 1\nmodel name\t: Xeon : 2\nmodel name: b\n", "model name").as_deref(), Some("Xeon : 2"));
        assert_eq!(value("NAME=\n", "NAME"), None);
        assert_eq!(kibibytes("2 kB"), Some(2048));
        assert_eq!(kibibytes("2 MB"), None);
        let machine = Machine::read(Path::new("."));
        assert!(machine.cores > 0);
    }
}
