//! A GPU with its kernels, and the way to launch them in libtorch's order.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaFunction, DriverError, result, sys};
use cudarc::nvrtc::Ptx;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use tch::{Device, Kind, Tensor};

use super::{Argument, KERNELS, Launch, nvrtc};

/// Why the kernels cannot be used on a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a GPU.
    #[error("{0:?} is no CUDA device, which the kernels are for")]
    NotCuda(Device),
    /// No library of the driver.
    #[error("the CUDA driver (libcuda.so.1) was not found by the loader: install NVIDIA's driver")]
    NoDriver,
    /// No NVRTC.
    #[error(
        "NVRTC, which compiles the kernels, was not found: neither {tried}, nor libnvrtc.so.13 by the loader; \
         `just setup` installs it, elsewhere the package nvidia-cuda-nvrtc==13.0.88 does, beside torch"
    )]
    NoCompiler {
        /// Where it was looked for, or what was found there and could not be opened.
        tried: String,
    },
    /// A libtorch that cannot be asked.
    #[error(
        "libtorch does not tell its stream, on which the kernels are launched ({0}): libtorch 2.11 with CUDA does"
    )]
    NoStream(String),
    /// The sources do not compile.
    #[error("NVRTC does not compile the kernels for {architecture}: {log}")]
    Compile {
        /// As in `sm_90`.
        architecture: String,
        /// What NVRTC says.
        log: String,
    },
    /// The driver refuses.
    #[error("the CUDA driver does not {what} of GPU {index}: {error}")]
    Driver {
        /// What was asked of it.
        what: &'static str,
        /// Index of the device.
        index: usize,
        /// Its answer.
        error: DriverError,
    },
}

/// `aoti_torch_get_current_cuda_stream` of libtorch's C interface: the device's index, where to write the stream; 0 if
/// all is well.
type CurrentStream = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;

/// A GPU on which all kernels are loaded.
pub(crate) struct Gpu {
    index: usize,
    /// The primary context of the device, which is libtorch's too.
    context: Arc<CudaContext>,
    kernels: HashMap<&'static str, CudaFunction>,
    current_stream: CurrentStream,
}

/// Opens the part of libtorch that knows GPUs, where it loads. The linker leaves it out of programs, because no symbol
/// of it is named, which lets one program serve machines with and without a GPU.
///
/// Must be called before anything else of libtorch, which asks for devices once and remembers the answer.
pub fn open() {
    // SAFETY: loading runs libtorch's own initialisers, as it would if the program were linked against it.
    if let Ok(library) = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_LAZY | RTLD_GLOBAL) } {
        std::mem::forget(library);
    }
}

/// Compiles and loads the kernels for a GPU, if that is not done yet; the first CUDA tensor does so too.
///
/// # Errors
///
/// Why they cannot be used, for good: the plain references will run in their place.
pub fn prepare(device: Device) -> Result<(), Error> {
    match device {
        Device::Cuda(index) => Gpu::at(index).map(|_| ()).map_err(Clone::clone),
        _ => Err(Error::NotCuda(device)),
    }
}

/// The GPU on which all these tensors lie in the form that kernels take: contiguous, `floats` f32 and `bools` Bool.
/// None on other devices, and where the kernels cannot be used, which is said once.
pub(crate) fn kernels_for(floats: &[&Tensor], bools: &[&Tensor]) -> Option<&'static Gpu> {
    let device = floats[0].device();
    let Device::Cuda(index) = device else { return None };
    let fits = |tensors: &[&Tensor], kind| {
        tensors.iter().all(|t| t.device() == device && t.kind() == kind && t.is_contiguous())
    };
    if !fits(floats, Kind::Float) || !fits(bools, Kind::Bool) {
        return None;
    }
    Gpu::at(index).ok()
}

impl Gpu {
    /// The GPU of this index, as libtorch counts.
    fn at(index: usize) -> Result<&'static Self, &'static Error> {
        /// libtorch's indices have eight bits with a sign.
        static GPUS: [OnceLock<Result<Gpu, Error>>; 128] = [const { OnceLock::new() }; 128];
        let made = GPUS[index].get_or_init(|| {
            Self::new(index).inspect_err(|error| {
                eprintln!("adalora: plain tensor operations run on GPU {index} in place of kernels: {error}");
            })
        });
        made.as_ref()
    }

    fn new(index: usize) -> Result<Self, Error> {
        // SAFETY: opens the driver's library, whose initialisers libtorch has run already.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver);
        }
        let current_stream = current_stream()?;
        let fails = |what| move |error| Error::Driver { what, index, error };
        // The context of this thread is the caller's, and decides which device is libtorch's current one.
        result::init().map_err(fails("start on behalf"))?;
        let _keep = KeepCurrent::new().map_err(fails("tell the current context"))?;
        let context = CudaContext::new(index).map_err(fails("give the context"))?;
        let capability = context.compute_capability().map_err(fails("tell the compute capability"))?;
        let program = nvrtc::compile(capability)?;
        let module =
            context.load_module(Ptx::from_binary(program.to_vec())).map_err(fails("load the kernels"))?;
        let kernels =
            KERNELS.map(|name| Ok((name, module.load_function(name).map_err(fails("find a kernel"))?)));
        let kernels = kernels.into_iter().collect::<Result<_, _>>()?;
        Ok(Self { index, context, kernels, current_stream })
    }

    fn try_launch(
        &self,
        kernel: &'static str,
        blocks: usize,
        threads: usize,
        arguments: &[Argument],
    ) -> Result<(), DriverError> {
        let _keep = KeepCurrent::new()?;
        self.context.bind_to_thread()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the function has this signature, and the device has libtorch's tensors on it.
        let status = unsafe { (self.current_stream)(self.index as i32, &mut stream) };
        assert_eq!(status, 0, "libtorch tells the current stream of a device that it has tensors on");
        let kernel = self.kernels[kernel].cu_function();
        let (blocks, threads) = (blocks as u32, threads as u32);
        // SAFETY: the arguments are of the number and kinds that the kernel declares, which the tests on the host
        // check for each; tensors are kept by libtorch until what is on their stream has run.
        Argument::with_addresses(arguments, |addresses| unsafe {
            result::launch_kernel(kernel, (blocks, 1, 1), (threads, 1, 1), 0, stream.cast(), addresses)
        })
    }
}

impl Launch for Gpu {
    /// # Panics
    ///
    /// If the driver refuses, which after a successful load means that an earlier operation has failed on the device;
    /// nothing on it can be relied upon then.
    fn launch(&self, kernel: &'static str, blocks: usize, threads: usize, arguments: &[Argument]) {
        if blocks == 0 {
            return;
        }
        if let Err(error) = self.try_launch(kernel, blocks, threads, arguments) {
            panic!("GPU {} failed at or before the launch of kernel `{kernel}`: {error}", self.index);
        }
    }

    fn scratch(&self, shape: &[i64], kind: Kind) -> Tensor {
        Tensor::empty(shape, (kind, Device::Cuda(self.index)))
    }
}

/// Gives the thread back the context that it had.
struct KeepCurrent(sys::CUcontext);

impl KeepCurrent {
    fn new() -> Result<Self, DriverError> {
        Ok(Self(result::ctx::get_current()?.unwrap_or(std::ptr::null_mut())))
    }
}

impl Drop for KeepCurrent {
    fn drop(&mut self) {
        // SAFETY: it was this thread's context a moment ago; null means none. It can only fail if the driver is gone,
        // and then so does what comes next.
        let _ = unsafe { result::ctx::set_current(self.0) };
    }
}

/// Looks the function up in libtorch_cuda, which is open, since there is a CUDA tensor.
fn current_stream() -> Result<CurrentStream, Error> {
    let no_stream = |error: libloading::Error| Error::NoStream(error.to_string());
    // SAFETY: no initialiser runs for a library that is open; the symbol has this type since libtorch 2.2.
    unsafe {
        let library = Library::open(Some("libtorch_cuda.so"), RTLD_LAZY).map_err(no_stream)?;
        let function =
            *library.get::<CurrentStream>(b"aoti_torch_get_current_cuda_stream\0").map_err(no_stream)?;
        std::mem::forget(library);
        Ok(function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::emulated::compile_cpp;
    use crate::cuda::{Number, Read, Value, Write};

    /// Against a driver and a libtorch_cuda that only write down what they are asked for: `stub_driver.cpp`. Theirs are
    /// the names by which both are opened.
    #[test]
    fn kernels_go_to_the_stream_and_device_of_their_tensors() {
        let stub = compile_cpp(include_str!("stub_driver.cpp"), &["-Wl,-soname,libcuda.so"]);
        let libtorch = compile_cpp(include_str!("stub_driver.cpp"), &["-Wl,-soname,libtorch_cuda.so"]);
        // SAFETY: compiled above, of this type.
        let log =
            unsafe { stub.get::<unsafe extern "C" fn() -> *const std::ffi::c_char>(b"stub_log\0").unwrap() };
        std::mem::forget(libtorch);

        let own = 0x77 as sys::CUcontext;
        // SAFETY: the stub takes any context.
        unsafe { result::ctx::set_current(own).unwrap() };
        let [first, second] = [0, 1].map(|index| Gpu::at(index).unwrap_or_else(|error| panic!("{error}")));
        let tensor = Tensor::from_slice(&[1f32, 2.0]);
        let arguments = [Write(&tensor), Number(-2), Read(&tensor), Value(0.5), Write(&tensor)];
        second.launch("clip", 3, 256, &arguments);
        first.launch("clip", 1, 128, &arguments);
        first.launch("clip", 0, 128, &arguments);
        assert_eq!(result::ctx::get_current().unwrap(), Some(own), "the thread has its own context again");

        // SAFETY: the stub keeps its log and ends it with a 0.
        let log = unsafe { std::ffi::CStr::from_ptr(log()) }.to_str().unwrap();
        let at = format!("{:p}", tensor.data_ptr());
        assert_eq!(
            log,
            format!(
                "load 0\nload 1\n\
                 clip<<<3, 256>>> on stream 0x201 of device 1: {at} -2 {at} 0.5 {at}\n\
                 clip<<<1, 128>>> on stream 0x200 of device 0: {at} -2 {at} 0.5 {at}\n"
            )
        );
    }

    #[test]
    fn what_is_no_gpu_is_refused() {
        assert_eq!(prepare(Device::Cpu), Err(Error::NotCuda(Device::Cpu)));
        assert!(kernels_for(&[&Tensor::from_slice(&[1f32])], &[]).is_none());
    }
}
