//! Operations on the flat buffers of the parameter arena, each beside its plain tensor reference.
//!
//! | operation | file | plain tensor reference | on the CPU |
//! |---|---|---|---|
//! | averages of sensitivity and uncertainty | [`smoothing`] | [`smoothing::reference`] | one pass |
//! | the same, and the importance of triplets from them | [`smoothing`] | [`smoothing::score_reference`] | one pass |
//! | importance of triplets from that of entries | [`triplets`] | [`triplets::reference`] | one pass |
//! | choice of the triplets that live | [`selection`] | [`selection::reference`] | selection by integer keys |
//! | mask of the others | [`selection`] | [`selection::mask`] itself | one write of libtorch's |
//! | what belongs to masked triplets set to 0 | [`clear`] | [`clear::reference`] | one pass over their rows |
//! | orthogonality, value and gradient | [`orthogonality`] | [`orthogonality::reference`] | register tiles, factors side by side |
//! | gradient norm | [`clip`] | [`clip::reference`] | one pass in f64 |
//! | gradient clip | [`clip`] | [`clip::clip`] itself | one write of libtorch's |
//! | AdamW with decoupled decay | [`adamw`] | [`adamw::reference`] | one pass |
//! | dropout from a counter | [`dropout`] | libtorch's own, with other numbers | in parallel chunks |
//!
//! [`rows`] says which values of the buffers belong to which triplet.
//!
//! A caller never names a device: each function looks at where its tensors live. What stands on the CPU in f32 takes
//! the way in the last column, on an NVIDIA GPU the kernels of [`cuda`]; everything else takes the reference, which is
//! correct wherever libtorch runs. On the CPU each result is the same bit for bit whatever the number of threads; the
//! averages are those of the reference.
//!
//! All functions change their arguments in place and read nothing back from a device.

pub mod adamw;
pub mod clear;
pub mod clip;
pub mod cuda;
pub mod dropout;
mod host;
pub mod orthogonality;
pub mod rows;
pub mod selection;
pub mod smoothing;
#[cfg(test)]
mod testing;
pub mod triplets;
