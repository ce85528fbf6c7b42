//! The parameter arena, and the SVD and LoRA adapters whose parameters live in it.
//!
//! | subject | item |
//! |---|---|
//! | which linear layers get an adapter | [`target`] |
//! | where each adapter's parameters lie | [`Layout`] |
//! | the buffers, and the leaf tensors over them | [`Arena`] |
//! | a frozen linear layer with its increment: forward, merge, unmerge | [`Linear`], [`Adapter`] |
//! | what an increment is multiplied by | [`ScalePolicy`] |
//! | seeded starts of parameters | [`random`], [`FactorStart`] |
//! | orthogonality of the factors | [`Orthogonality`] |
//! | an adapter on disk, as PEFT names and shapes it | [`store`] |
//! | such an adapter as the start of another | [`Saved`] |
//! | such an adapter in other formats of PEFT | [`PeftAdapter`] |
//!
//! Shapes: `Q` is `(r, d_in)`; `P` is kept transposed, `(r, d_out)`; `lambda` is `(r,)`. A triplet is then two rows
//! and a number, so that masking, scoring and compaction are row operations. In the field's files `lora_A` is `Q`,
//! `lora_B` is `P` as `(d_out, r)` and `lora_E` is `lambda` as `(r, 1)`.

mod arena;
mod cosine;
mod layout;
mod linear;
mod orthogonality;
mod peft;
pub mod random;
mod saved;
mod scale;
mod start;
pub mod store;
pub mod target;

pub use arena::{Arena, Extra, Leaves, ParameterKind};
pub use layout::{Form, Layout, Site, Triplets};
pub use linear::{Adapter, Linear};
pub use orthogonality::{Orthogonality, OrthogonalityForm, squared_residuals};
pub use peft::{FormatError, Increment, PeftAdapter};
pub use saved::Saved;
pub use scale::ScalePolicy;
pub use start::FactorStart;
