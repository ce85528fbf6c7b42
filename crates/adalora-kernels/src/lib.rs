//! Operations on the flat buffers of the parameter arena, each beside its plain tensor reference.
//!
//! | operation | file | plain reference | one pass on the CPU |
//! |---|---|---|---|
//! | averages of sensitivity and uncertainty | [`smoothing`] | [`smoothing::reference`] | yes |
//! | AdamW with decoupled decay | [`adamw`] | [`adamw::reference`] | yes |
//! | orthogonality, value and gradient | [`orthogonality`] | itself | - |
//! | gradient norm and clip | [`clip`] | itself | - |
//!
//! A caller never names a device: each function looks at where its tensors live. What stands on the CPU in f32 takes
//! the single pass, on an NVIDIA GPU the kernels of [`cuda`]; everything else takes the reference, which is correct
//! wherever libtorch runs.
//!
//! All functions change their arguments in place and read nothing back from a device.

pub mod adamw;
pub mod clip;
pub mod cuda;
mod host;
pub mod orthogonality;
pub mod rows;
pub mod selection;
pub mod smoothing;
pub mod triplets;
