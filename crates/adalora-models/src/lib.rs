//! Backbones, heads and losses, and the strict loading of checkpoints.
//!
//! A model is put together in this order, because its trainable parameters live in an arena that must know all of
//! them:
//!
//! 1. [`Checkpoint::open`] or [`Checkpoint::random`]: the tensors, by name.
//! 2. [`Bert::new`]: the frozen encoder; [`Bert::linears`] are the layers that adapters can be put on.
//! 3. [`Head::start`]: first values of pooler and classifier, from the checkpoint or drawn.
//! 4. An arena over adapters and head; [`Bert::attach`] and [`Head::new`] take their leaves from it.

mod bert;
mod checkpoint;
mod config;
mod error;
mod head;
mod precision;

pub use bert::{Bert, Input};
pub use checkpoint::Checkpoint;
pub use config::{Activation, BertConfig, LinearShape};
pub use error::ModelError;
pub use head::{Head, HeadStart, Loss};
pub use precision::{Precision, Settled};
