//! Flat f32 tensors on the CPU as slices.

use tch::{Device, Kind, Tensor};

/// Values that one task of a parallel pass works on: 64 KiB of each buffer, a few of which fit into a core's cache.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Whether every tensor can be seen as a slice by [`slice`].
pub(crate) fn all_on_host(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device() == Device::Cpu && t.kind() == Kind::Float && t.is_contiguous())
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
