//! What CUDA needs to run besides a GPU: the driver's library, NVRTC, and the headers that kernels include.
//!
//! Kernels are CUDA C++, compiled by NVRTC on the machine that runs them. CubeCL loads `libcuda` and `libnvrtc` by name
//! when it first uses them, NVRTC loads `libnvrtc-builtins` by name in turn, and the headers are looked for in
//! `$CUDA_PATH/include` and `$CUDA_PATH/include/cccl`, else below `/usr/local/cuda`. A toolkit has them all; so do four
//! wheels from PyPI, which share the folder `nvidia/cu13` of a Python environment (compiling every header below for sm_90a
//! with the wheels of 13.0 was tried: without `nvidia-cuda-crt`, `mma.h` fails; without `LD_LIBRARY_PATH`, NVRTC itself).
//!
//! Invariant: nothing here changes the machine; what is found is handed to children as environment variables.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The headers that `cubecl-cpp` 0.11.3 can write into a kernel, and one that those include and some packages lack.
const HEADERS: [&str; 10] = [
    "cuda_fp16.h",
    "cuda_bf16.h",
    "cuda_fp8.h",
    "cuda_fp6.h",
    "cuda_fp4.h",
    "cuComplex.h",
    "mma.h",
    "crt/mma.h",
    "cooperative_groups.h",
    "cuda/barrier",
];
/// Where headers are, below a toolkit.
const HEADER_FOLDERS: [&str; 2] = ["include", "include/cccl"];
/// Where libraries are, below a toolkit.
const LIBRARY_FOLDERS: [&str; 5] =
    ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib/x86_64-linux-gnu"];
/// Where toolkits are put.
const ROOTS: [&str; 2] = ["/usr/local/cuda", "/opt/cuda"];
/// Where drivers put their library without telling the loader.
const DRIVER_FOLDERS: [&str; 3] = ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib"];
/// How NVRTC's files begin. The second carries major and minor version in its name.
const NVRTC: &str = "libnvrtc.so";
const NVRTC_BUILTINS: &str = "libnvrtc-builtins.so.";
/// How the driver's library is called.
const DRIVER: &str = "libcuda.so.1";

/// A folder that holds what NVRTC needs, or some of it.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub(super) struct Toolkit {
    /// What becomes `CUDA_PATH`.
    pub(super) root: PathBuf,
    /// Where NVRTC is; `None` if it is not below `root`.
    pub(super) libraries: Option<PathBuf>,
    /// NVRTC's version, such as `13.0`.
    pub(super) nvrtc: Option<String>,
    /// Headers that are not there.
    pub(super) missing: Vec<&'static str>,
}

impl Toolkit {
    /// Looks at one folder.
    fn at(root: &Path) -> Self {
        let is_missing =
            |header: &&'static str| !HEADER_FOLDERS.iter().any(|folder| root.join(folder).join(header).exists());
        let libraries =
            LIBRARY_FOLDERS.iter().map(|folder| root.join(folder)).find(|folder| first(folder, NVRTC).is_some());
        let builtins = libraries.as_deref().and_then(|folder| first(folder, NVRTC_BUILTINS));
        let nvrtc = builtins.as_deref().and_then(|name| version(name.strip_prefix(NVRTC_BUILTINS)?));
        Self { root: root.to_owned(), libraries, nvrtc, missing: HEADERS.into_iter().filter(is_missing).collect() }
    }

    /// Whether a kernel can be compiled with it.
    pub(super) fn is_whole(&self) -> bool {
        self.libraries.is_some() && self.missing.is_empty()
    }

    fn faults(&self) -> usize {
        self.missing.len() + usize::from(self.libraries.is_none())
    }

    /// What is missing, in words.
    pub(super) fn complaint(&self) -> String {
        let mut faults = Vec::new();
        if self.libraries.is_none() {
            faults.push(format!("no {NVRTC}* in {}", LIBRARY_FOLDERS.join(", ")));
        }
        if !self.missing.is_empty() {
            faults.push(format!("no {} in {}", self.missing.join(", "), HEADER_FOLDERS.join(", ")));
        }
        format!("{}: {}", self.root.display(), faults.join("; "))
    }
}

/// The best toolkit among `roots`: the first whole one, else the one that lacks least; `None` if there is not even a part.
pub(super) fn choose(roots: &[PathBuf]) -> Option<Toolkit> {
    let found = roots.iter().filter(|root| root.is_dir()).map(|root| Toolkit::at(root));
    let some = found.filter(|toolkit| toolkit.faults() <= HEADERS.len());
    some.min_by_key(Toolkit::faults)
}

/// Where to look, in order: what the user names, the usual folders, the compiler's own, Python environments.
pub(super) fn roots(named: Option<&Path>) -> Vec<PathBuf> {
    if let Some(named) = named {
        return vec![named.to_owned()];
    }
    let mut roots: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT"]
        .into_iter()
        .filter_map(std::env::var_os)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .collect();
    roots.extend(ROOTS.iter().map(PathBuf::from));
    let search = std::env::var_os("PATH").unwrap_or_default();
    roots.extend(
        std::env::split_paths(&search)
            .filter(|folder| folder.join("nvcc").exists())
            .filter_map(|folder| folder.parent().map(Path::to_owned)),
    );
    roots.extend(python_folders().iter().flat_map(|folder| wheels(folder)));
    roots
}

/// The folders in which a Python environment keeps packages.
fn python_folders() -> Vec<PathBuf> {
    let script = "import sys; print('\\n'.join(sys.path))";
    let listed = std::process::Command::new("python3").args(["-c", script]).output();
    let Ok(listed) = listed else { return Vec::new() };
    String::from_utf8_lossy(&listed.stdout).lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()
}

/// The toolkit folders that NVIDIA's wheels make in a folder of packages, newest first.
fn wheels(packages: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(packages.join("nvidia")) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.strip_prefix("cu").is_some_and(|rest| rest.parse::<u32>().is_ok())
        })
        .collect();
    found.sort();
    found.reverse();
    found
}

/// The folder of the driver's library, if the loader has to be told about it; `Ok(None)` if it finds it by itself.
///
/// # Errors
/// The library is nowhere; the message says what to do.
pub(super) fn driver_folder() -> Result<Option<PathBuf>, String> {
    let told = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let known = std::process::Command::new("ldconfig").arg("-p").output();
    let known = known.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains(DRIVER));
    if known || std::env::split_paths(&told).any(|folder| folder.join(DRIVER).exists()) {
        return Ok(None);
    }
    let hidden = DRIVER_FOLDERS.iter().map(PathBuf::from).find(|folder| folder.join(DRIVER).exists());
    hidden.map(Some).ok_or_else(|| {
        format!(
            "{DRIVER} is not on this machine: it comes with NVIDIA's driver, not with the toolkit; install the driver \
             (in a container: start it with GPUs, `--gpus all`), or run with `--device cpu`"
        )
    })
}

/// What children are told: where the headers are, and where the libraries.
pub(super) fn environment(toolkit: &Toolkit, driver: Option<&Path>) -> Vec<(&'static str, OsString)> {
    let told = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = toolkit.libraries.as_deref().into_iter().chain(driver).map(Path::to_owned);
    let folders = folders.chain(std::env::split_paths(&told).filter(|folder| !folder.as_os_str().is_empty()));
    let mut variables = vec![("CUDA_PATH", toolkit.root.clone().into_os_string())];
    // A folder with a colon in its name cannot be told: the loader would read two.
    variables.extend(std::env::join_paths(folders).ok().map(|folders| ("LD_LIBRARY_PATH", folders)));
    variables
}

/// How to get what is missing without a toolkit, for a driver of that CUDA version.
pub(super) fn advice(driver: Option<&str>) -> String {
    let pin = driver.map_or(String::new(), |version| format!("=={version}.*"));
    format!(
        "install the CUDA toolkit and set CUDA_PATH to it, or take the same files from PyPI: `python3 -m pip install \
         nvidia-cuda-nvrtc{pin} nvidia-cuda-runtime{pin} nvidia-cuda-crt{pin} nvidia-cuda-cccl`; they are found by \
         themselves in the environment of `python3`"
    )
}

/// What to say if NVRTC writes kernels that the driver is too old to load.
pub(super) fn too_new(nvrtc: &str, driver: &str) -> Option<String> {
    let number = |text: &str| -> Option<(u32, u32)> {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    (number(nvrtc)? > number(driver)?).then(|| {
        format!(
            "NVRTC {nvrtc} is newer than the driver's CUDA {driver}, which may refuse its kernels \
             (CUDA_ERROR_UNSUPPORTED_PTX_VERSION)"
        )
    })
}

/// The alphabetically first name in a folder that starts so.
fn first(folder: &Path, start: &str) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(start)).min()
}

/// Major and minor of `13.0.88`.
fn version(text: &str) -> Option<String> {
    let mut parts = text.split('.').filter(|part| part.parse::<u32>().is_ok());
    Some(format!("{}.{}", parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder as a toolkit or the wheels make it.
    fn plant(root: &Path, library_folder: &str, library: &str) {
        for header in HEADERS {
            let folder = if header == "cuda/barrier" { "include/cccl" } else { "include" };
            let path = root.join(folder).join(header);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        std::fs::create_dir_all(root.join(library_folder)).unwrap();
        std::fs::write(root.join(library_folder).join(library), "").unwrap();
        std::fs::write(root.join(library_folder).join("libnvrtc-builtins.so.13.0"), "").unwrap();
    }

    #[test]
    fn a_toolkit_and_the_wheels_are_whole() {
        for (folder, library) in [("lib64", "libnvrtc.so"), ("lib", "libnvrtc.so.13")] {
            let root = tempfile::tempdir().unwrap();
            plant(root.path(), folder, library);
            let toolkit = choose(&[root.path().to_owned()]).unwrap();
            assert!(toolkit.is_whole(), "{toolkit:?}");
            assert_eq!(toolkit.nvrtc.as_deref(), Some("13.0"));
            let told = environment(&toolkit, Some(Path::new("/driver")));
            assert_eq!(told[0], ("CUDA_PATH", root.path().as_os_str().to_owned()));
            let folders: Vec<PathBuf> = std::env::split_paths(&told[1].1).collect();
            assert_eq!(folders[..2], [root.path().join(folder), PathBuf::from("/driver")]);
        }
    }

    #[test]
    fn a_header_that_is_not_there_is_named() {
        let root = tempfile::tempdir().unwrap();
        plant(root.path(), "lib", "libnvrtc.so.13");
        std::fs::remove_file(root.path().join("include/crt/mma.h")).unwrap();
        std::fs::remove_file(root.path().join("lib/libnvrtc.so.13")).unwrap();
        let toolkit = choose(&[root.path().to_owned()]).unwrap();
        assert!(!toolkit.is_whole());
        let complaint = toolkit.complaint();
        assert!(complaint.contains("no libnvrtc.so* in lib64, lib"), "{complaint}");
        assert!(complaint.contains("no crt/mma.h in include, include/cccl"), "{complaint}");
    }

    #[test]
    fn the_first_whole_toolkit_is_taken_before_an_earlier_part_of_one() {
        let (part, whole, second) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        plant(part.path(), "lib", "libnvrtc.so.13");
        std::fs::remove_file(part.path().join("include/mma.h")).unwrap();
        plant(whole.path(), "lib", "libnvrtc.so.13");
        plant(second.path(), "lib", "libnvrtc.so.13");
        let roots = [part.path(), whole.path(), second.path()].map(Path::to_owned);
        assert_eq!(choose(&roots).unwrap().root, whole.path());
        // A folder that has nothing of it is no part of a toolkit.
        assert_eq!(choose(&[tempfile::tempdir().unwrap().path().to_owned()]), None);
    }

    #[test]
    fn the_wheels_folder_is_found_by_its_name() {
        let packages = tempfile::tempdir().unwrap();
        for name in ["cu12", "cu13", "cudnn", "cufft"] {
            std::fs::create_dir_all(packages.path().join("nvidia").join(name)).unwrap();
        }
        let found = wheels(packages.path());
        assert_eq!(found, ["cu13", "cu12"].map(|name| packages.path().join("nvidia").join(name)));
    }

    #[test]
    fn only_a_compiler_newer_than_the_driver_is_complained_about() {
        assert!(too_new("13.0", "12.8").is_some());
        assert!(too_new("12.10", "12.8").is_some());
        assert_eq!(too_new("13.0", "13.0"), None);
        assert_eq!(too_new("12.8", "13.0"), None);
        assert_eq!(too_new("?", "13.0"), None);
        assert!(advice(Some("13.0")).contains("nvidia-cuda-crt==13.0.*"));
    }
}
