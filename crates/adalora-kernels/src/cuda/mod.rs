//! The operations as kernels for NVIDIA GPUs, compiled when they are first used.
//!
//! Nothing of CUDA is needed to build this crate: the sources (`*.cu`) are text in the program, NVRTC compiles them for
//! the GPU that is there, and both NVRTC and the driver are opened when the first CUDA tensor comes. Kernels are
//! launched on libtorch's current stream of the tensors' device, in the context that libtorch uses, so they take their
//! turn with libtorch's own, and nothing waits for them.
//!
//! | operation | launches | kernels |
//! |---|---|---|
//! | `smoothing::smooth`, `smoothing::smooth_and_score` | 1 | `smooth`, `smooth_and_score` |
//! | `triplets::mean` | 1 | `triplet_mean` |
//! | `selection::keep_top` | 2 | `selection_keys`, `keep_top` |
//! | `selection::mask` | 1 | libtorch's own |
//! | `orthogonality::add_gradient` | 2 | `residuals`, `residual_gradient` |
//! | `clip::norm`, `clip::clip` | 2, 1 | `square_sums` and `root_of_sum`, `clip` |
//! | `adamw::step` | 1 for each 64 ranges | `adamw` |
//!
//! Sums are taken in one order, without atomic operations on floats, so equal inputs give equal bits. Every kernel
//! takes any shape: ranks that differ, rank 0, rows that begin at no 16-byte boundary.
//!
//! Where the kernels cannot be had for a CUDA tensor (NVRTC is missing, say), the plain reference runs in their place,
//! which is correct and slower, and one line on standard error says so and why. [`prepare`] tells it as an error.
//!
//! # Adding a kernel
//!
//! 1. Write it in a `.cu` file: `extern "C" __global__ void __launch_bounds__(THREADS) name(...)`, with the helpers of
//!    `common.cuh`. A new file goes into `SOURCES`, the name into `KERNELS`.
//! 2. Write the function that launches it in the `.rs` file of the same name, for any `Launch`. What must not be
//!    there twice is a constant in `CONSTANTS`.
//! 3. Compare it with its plain reference in `compare.rs`. The function there runs twice: in `emulated.rs` on the host,
//!    where a C++ compiler builds the same source behind stand-ins for CUDA's words (`emulated.cpp`), in several orders
//!    of threads and blocks and with NaN around every buffer; and in `on_gpu.rs` on a GPU, with `just test-cuda`.
//!
//! In every test run `nvrtc.rs` compiles all kernels for compute capability 8.0 and 9.0, and `gpu.rs` launches against a
//! driver that only writes down what it is asked for (`stub_driver.cpp`).

pub(crate) mod adamw;
pub(crate) mod clip;
#[cfg(test)]
mod compare;
#[cfg(test)]
mod emulated;
mod gpu;
mod nvrtc;
#[cfg(test)]
mod on_gpu;
pub(crate) mod orthogonality;
pub(crate) mod selection;
pub(crate) mod smoothing;
mod tables;
pub(crate) mod triplets;

use tch::{Kind, Tensor};

pub(crate) use self::gpu::kernels_for;
pub use self::gpu::{Error, open, prepare};
pub(crate) use self::tables::Tables;

/// One program, in this order.
const SOURCES: [(&str, &str); 7] = [
    ("common.cuh", include_str!("common.cuh")),
    ("triplets.cu", include_str!("triplets.cu")),
    ("smoothing.cu", include_str!("smoothing.cu")),
    ("selection.cu", include_str!("selection.cu")),
    ("orthogonality.cu", include_str!("orthogonality.cu")),
    ("clip.cu", include_str!("clip.cu")),
    ("adamw.cu", include_str!("adamw.cu")),
];

const KERNELS: [&str; 11] = [
    "adamw",
    "clip",
    "keep_top",
    "residual_gradient",
    "residuals",
    "root_of_sum",
    "selection_keys",
    "smooth",
    "smooth_and_score",
    "square_sums",
    "triplet_mean",
];

/// Threads of a block.
const THREADS: usize = 256;
/// Threads of the one block that chooses among all triplets.
const CHOICE: usize = 1024;
/// Rows and columns of a tile of a residual, rows of a strip of a gradient.
const TILE: usize = 16;
/// Columns of a factor that a block holds at a time.
const DEPTH: usize = 256;
/// Ranges of different decay in one launch.
const RUNS: usize = 64;

/// What the sources expect to be defined.
const CONSTANTS: [(&str, usize); 5] =
    [("THREADS", THREADS), ("CHOICE", CHOICE), ("TILE", TILE), ("DEPTH", DEPTH), ("RUNS", RUNS)];

/// Where kernels run: on a GPU; in tests, on the host.
pub(crate) trait Launch {
    /// Runs a kernel of [`KERNELS`], at once or after all that was launched before. No blocks, no launch.
    fn launch(&self, kernel: &'static str, blocks: usize, threads: usize, arguments: &[Argument]);

    /// A tensor to be written by a kernel before it is read.
    fn scratch(&self, shape: &[i64], kind: Kind) -> Tensor;
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// A tensor that is only read.
    Read(&'a Tensor),
    /// A tensor that is written.
    Write(&'a Tensor),
    /// `i64` of the sources.
    Number(i64),
    /// `float`.
    Value(f32),
    /// A structure by value.
    Decay(&'a adamw::Decay),
}

use Argument::{Number, Read, Value, Write};

impl Argument<'_> {
    /// Hands the addresses of the arguments' values to `call`, as the driver wants them.
    fn with_addresses<T>(arguments: &[Self], call: impl FnOnce(&mut [*mut std::ffi::c_void]) -> T) -> T {
        // Eight bytes each, written as what the kernel reads.
        let mut values: Vec<[u8; 8]> = arguments
            .iter()
            .map(|argument| match argument {
                Read(tensor) | Write(tensor) => (tensor.data_ptr() as u64).to_ne_bytes(),
                Number(number) => number.to_ne_bytes(),
                Value(value) => {
                    let mut bytes = [0; 8];
                    bytes[..4].copy_from_slice(&value.to_ne_bytes());
                    bytes
                }
                Self::Decay(_) => [0; 8],
            })
            .collect();
        let mut addresses: Vec<_> = std::iter::zip(arguments, &mut values)
            .map(|(argument, value)| match argument {
                Self::Decay(decay) => std::ptr::from_ref(*decay).cast_mut().cast(),
                _ => value.as_mut_ptr().cast(),
            })
            .collect();
        call(&mut addresses)
    }
}

/// Blocks that share `values` out, each thread taking eight or more. A function of their number alone, because sums
/// over blocks depend on it.
fn blocks_for(values: usize) -> usize {
    values.div_ceil(THREADS * 8).min(1024)
}

/// Holds callers to what kernels rely upon, who would read and write beyond a shorter buffer.
#[track_caller]
fn assert_len(len: usize, tensors: &[&Tensor]) {
    for tensor in tensors {
        assert_eq!(tensor.numel(), len, "each flat buffer of an operation has as many values as it says");
    }
}

fn count(tensor: &Tensor) -> Argument<'static> {
    Number(tensor.numel() as i64)
}
