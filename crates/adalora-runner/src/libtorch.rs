//! Devices.

use tch::Device;

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
