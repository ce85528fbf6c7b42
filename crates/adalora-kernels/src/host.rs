//! Tensors on the CPU as slices, and passes over them.

use tch::{Device, Kind, Tensor};

/// Values that one task of a parallel pass works on: 64 KiB of each buffer, a few of which fit into a core's cache.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Whether every tensor can be seen as a slice by [`slice`] or [`slice_mut`].
pub(crate) fn all_on_host(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device() == Device::Cpu && t.kind() == Kind::Float && t.is_contiguous())
}

/// Runs a pass compiled for what the processor has, wider vectors than the build asks for above all: AVX2 is up to
/// 1.6 times as fast as the SSE2 of plain x86-64. No product and sum are contracted into one rounding, so that the
/// values do not depend on the processor.
///
/// The closure must be `#[inline(always)]`, and so must what it calls: else it is compiled for the build's target.
pub(crate) fn vectorised<R>(pass: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(pass)
}

/// Values that are added up side by side in a row, so that the order of a sum does not depend on the processor either.
pub(crate) const LANES: usize = 16;

/// Values of a row that are added up in f32; beyond, in f64.
pub(crate) const PIECE: usize = 4096;

/// The sum of what the lanes have added up.
#[inline(always)]
pub(crate) fn total(lanes: [f32; LANES]) -> f64 {
    lanes.into_iter().map(f64::from).sum()
}

/// The values of a tensor for which [`all_on_host`] holds.
pub(crate) fn slice(tensor: &Tensor) -> &[f32] {
    debug_assert!(all_on_host(&[tensor]));
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: a contiguous f32 tensor on the CPU is `numel` values behind its data pointer, which lives as long as
    // the tensor.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The values of a tensor for which [`all_on_host`] holds, to be changed.
pub(crate) fn slice_mut(tensor: &mut Tensor) -> &mut [f32] {
    debug_assert!(all_on_host(&[tensor]));
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `slice`. The exclusive borrow keeps this tensor from being used meanwhile; that no other tensor
    // over the same storage is touched during the pass is what the callers, which own their buffers, rely upon.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The flags of a contiguous Bool tensor on the CPU, to be changed.
pub(crate) fn flags_mut(tensor: &mut Tensor) -> &mut [bool] {
    assert!(tensor.device() == Device::Cpu && tensor.kind() == Kind::Bool && tensor.is_contiguous());
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `slice_mut`; libtorch keeps a Bool as one byte, 0 or 1.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}
