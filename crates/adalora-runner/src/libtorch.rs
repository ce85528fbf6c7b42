//! Devices, and the part of libtorch that knows GPUs.

use tch::Device;

/// Opens `libtorch_cuda.so` where it loads, so that one program serves machines with and without a GPU: the linker
/// leaves it out, because no symbol of it is named. Must be called before anything else of libtorch, which asks for
/// devices once and remembers the answer.
pub fn open_cuda() {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
    // SAFETY: loading runs libtorch's own initialisers, as it would if the program were linked against it.
    if let Ok(library) = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_LAZY | RTLD_GLOBAL) } {
        std::mem::forget(library);
    }
}

/// The device that `name` means: `cpu`, or `cuda:0` and so on.
///
/// # Errors
///
/// A name that is neither, or a GPU that is not there.
pub fn device(name: &str) -> Result<Device, String> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let index = name.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok());
    let Some(index) = index else {
        return Err(format!("device `{name}` is unknown; expected `cpu` or `cuda:0`, `cuda:1` and so on"));
    };
    let devices = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    if (index as i64) < devices {
        Ok(Device::Cuda(index))
    } else {
        Err(format!(
            "device `{name}` is not there: libtorch sees {devices} GPU(s); with a GPU in the machine, \
             `just setup` installs the libtorch that can use it"
        ))
    }
}
