//! NVRTC, CUDA's compiler as a library: found beside libtorch, opened when it is first needed.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::{CStr, CString, c_char};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::nvrtc::{result, sys};
use libloading::os::unix::Library;

use super::{CONSTANTS, Error, SOURCES};

/// Machine code by compute capability.
type Programs = BTreeMap<(i32, i32), Arc<[u8]>>;

/// Machine code of all kernels for GPUs of this compute capability, compiled once in a process.
///
/// Machine code rather than PTX: the driver need not be as new as NVRTC, nor compile a second time, and registers and
/// shared memory are checked here.
pub(super) fn compile(capability: (i32, i32)) -> Result<Arc<[u8]>, Error> {
    static COMPILED: Mutex<Programs> = Mutex::new(Programs::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = compiled.get(&capability) {
        return Ok(code.clone());
    }
    open()?;
    let architecture = format!("sm_{}{}", capability.0, capability.1);
    let mut options = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into()];
    // One rounding for each operator, as in the plain references.
    options.push("--fmad=false".into());
    options.extend(CONSTANTS.iter().map(|(name, value)| format!("-D{name}={value}")));
    let source = CString::new(source()).expect("sources are text");
    let code = translate(&source, &options).map_err(|log| Error::Compile { architecture, log })?;
    Ok(compiled.entry(capability).or_insert(code.into()).clone())
}

/// The whole program; errors are reported by file.
pub(super) fn source() -> String {
    SOURCES.iter().fold(String::new(), |mut all, (file, text)| {
        write!(all, "#line 1 \"{file}\"\n{text}").expect("a string takes all");
        all
    })
}

fn translate(source: &CStr, options: &[String]) -> Result<Vec<u8>, String> {
    let say = |error: result::NvrtcError| error.to_string();
    let program = result::create_program(source, Some(c"kernels")).map_err(say)?;
    // SAFETY: `program` is created above and destroyed below, and the buffers have the sizes that NVRTC asks for.
    unsafe {
        let compiled = result::compile_program(program, options);
        let code = match compiled {
            Ok(()) => machine_code(program).map_err(say),
            Err(error) => {
                let log: Vec<u8> = result::get_program_log(program)
                    .map(|log| log.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect())
                    .unwrap_or_default();
                Err(format!("{error}\n{}", String::from_utf8_lossy(&log)))
            }
        };
        result::destroy_program(program).map_err(say)?;
        code
    }
}

/// # Safety
///
/// `program` is compiled and not destroyed.
unsafe fn machine_code(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    unsafe { sys::nvrtcGetCUBINSize(program, &mut size) }.result()?;
    let mut code = vec![0u8; size];
    unsafe { sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()) }.result()?;
    Ok(code)
}

/// Makes NVRTC's functions available for the rest of the process.
fn open() -> Result<(), Error> {
    static OPENED: OnceLock<Result<(), Error>> = OnceLock::new();
    OPENED
        .get_or_init(|| {
            let tried = match libtorch_folder() {
                Some(libtorch) => open_beside(&libtorch),
                None => "beside libtorch, whose folder is unknown".into(),
            };
            // What is opened by path is found by its name from now on. Asked here because the bindings panic where they
            // find nothing.
            // SAFETY: loading runs the initialisers of NVIDIA's library.
            if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(Error::NoCompiler { tried }) }
        })
        .clone()
}

/// Opens NVRTC by path from the first folder around libtorch's that has it. The answer tells what was tried.
fn open_beside(libtorch: &Path) -> String {
    let mut tried = Vec::new();
    for folder in folders(libtorch) {
        for name in ["libnvrtc.so.13", "libnvrtc.so.12"] {
            let path = folder.join(name);
            if path.is_file() {
                match open_in(&folder, &path) {
                    Ok(()) => return format!("{}", path.display()),
                    Err(error) => {
                        let reason = error.source().map_or(error.to_string(), ToString::to_string);
                        tried.push(format!("{} ({reason})", path.display()));
                    }
                }
            }
        }
        tried.push(format!("in {}", folder.display()));
    }
    tried.join(", ")
}

/// Where NVRTC lies beside a libtorch: for CUDA 13 and CUDA 12 as a Python package, as `just setup` installs it, and
/// in libtorch's own folder.
fn folders(libtorch: &Path) -> [PathBuf; 3] {
    let packages = libtorch.parent().and_then(Path::parent).unwrap_or(libtorch);
    [packages.join("nvidia/cu13/lib"), packages.join("nvidia/cuda_nvrtc/lib"), libtorch.into()]
}

fn open_in(folder: &Path, nvrtc: &Path) -> Result<(), libloading::Error> {
    // NVRTC opens its builtins by name only, which finds them nowhere unless they are open.
    let builtins = folder.read_dir().into_iter().flatten().flatten();
    let builtins =
        builtins.filter(|entry| entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so."));
    for path in builtins.map(|entry| entry.path()).chain([nvrtc.into()]) {
        // SAFETY: loading runs the initialisers of NVIDIA's libraries.
        std::mem::forget(unsafe { Library::new(path) }?);
    }
    Ok(())
}

/// The folder of the libtorch in this process.
fn libtorch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut mapped = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    let libtorch = mapped.find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))?;
    Some(libtorch.parent()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::KERNELS;

    #[test]
    fn every_kernel_compiles_for_old_and_new_gpus() {
        for capability in [(8, 0), (9, 0)] {
            let code = compile(capability).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(code[..4], *b"\x7fELF");
            for name in KERNELS {
                // Each kernel has a section of that name.
                let section = format!(".text.{name}\0");
                assert!(
                    code.windows(section.len()).any(|window| window == section.as_bytes()),
                    "{name} is not in the code for {capability:?}"
                );
            }
        }
    }

    #[test]
    fn every_kernel_of_the_sources_is_listed() {
        let source = source();
        let mut found: Vec<_> = source
            .split("extern \"C\" __global__")
            .skip(1)
            .map(|rest| {
                let bounds_end = rest.find(") ").expect("a kernel has launch bounds");
                rest[bounds_end + 2..].split('(').next().expect("a kernel has arguments")
            })
            .collect();
        found.sort_unstable();
        assert_eq!(found, KERNELS);
    }

    #[test]
    fn an_error_in_a_source_is_reported_by_file_and_line() {
        open().unwrap_or_else(|error| panic!("{error}"));
        let log = translate(c"#line 7 \"some.cu\"\nvoid f() { return 1 }", &[]).unwrap_err();
        assert!(log.contains("some.cu(7): error: expected a \";\""), "{log}");
    }

    #[test]
    fn nvrtc_is_looked_for_beside_libtorch() {
        let base = tempfile::tempdir().unwrap();
        let libtorch = base.path().join("torch/lib");
        let in_packages = base.path().join("nvidia/cu13/lib");
        for folder in [&libtorch, &in_packages] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let tried = open_beside(&libtorch);
        assert_eq!(
            tried.replace(base.path().to_str().unwrap(), "BASE"),
            "in BASE/nvidia/cu13/lib, in BASE/nvidia/cuda_nvrtc/lib, in BASE/torch/lib"
        );
        std::fs::write(in_packages.join("libnvrtc.so.13"), "not a library").unwrap();
        let tried = open_beside(&libtorch).replace(base.path().to_str().unwrap(), "BASE");
        assert!(tried.starts_with("BASE/nvidia/cu13/lib/libnvrtc.so.13 ("), "{tried}");
        assert!(tried.contains("file too short") || tried.contains("invalid ELF header"), "{tried}");
    }

    #[test]
    fn the_libtorch_of_this_process_is_found() {
        // A call into libtorch, without which the linker would leave it out.
        tch::get_num_threads();
        assert!(libtorch_folder().unwrap().join("libtorch_cpu.so").is_file());
    }
}
