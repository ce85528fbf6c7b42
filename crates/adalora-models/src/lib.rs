//! Backbones, heads and losses, and the strict loading of checkpoints.
//!
//! A model is put together in this order, because its trainable parameters live in an arena that must know all of
//! them:
//!
//! 1. [`Checkpoint::open`] or [`Checkpoint::random`]: the tensors, by name.
//! 2. [`Encoder::new`]: the frozen encoder; [`Encoder::linears`] are the layers that adapters can be put on.
//! 3. [`Head::start`]: first values of pooler and classifier, from the checkpoint or drawn;
//!    [`SpanHead::start`] where answers are spans of the text.
//! 4. An arena over adapters and head; [`Encoder::attach`] and [`Head::new`] or [`SpanHead::new`] take their leaves from it.
//!
//! Where more of the encoder is trained than increments, [`Tuning::start`] says what goes into the arena too, and
//! [`Encoder::tuned`] in the place of `new` takes it from there.
//!
//! A model that generates text has no head to be trained: [`Bart`], an arena over adapters, and [`Generation`] for what is
//! to be generated. [`Model`] is any of these, by its [`Purpose`].

mod bart;
mod bert;
mod bottleneck;
mod checkpoint;
mod config;
mod deberta;
mod encoder;
mod error;
mod generate;
mod head;
mod merge;
mod model;
mod pickle;
mod precision;
mod search;
mod span;
mod torch_file;
mod tuning;

pub use bart::{Bart, Encoded, Source};
pub use bert::{Bert, Input};
pub use bottleneck::Placement;
pub use checkpoint::{Checkpoint, tensors_file};
pub use config::{Activation, BartConfig, BertConfig, DebertaConfig, LinearShape, ModelConfig};
pub use deberta::Deberta;
pub use encoder::Encoder;
pub use error::ModelError;
pub use generate::{EarlyStopping, Generation};
pub use head::{Head, HeadStart, Loss};
pub use merge::{Merged, merge};
pub use model::{Dropouts, Model, Purpose};
pub use pickle::PickleError;
pub use precision::{Precision, Settled};
pub use span::SpanHead;
pub use torch_file::TorchFileError;
pub use tuning::{TunedTensor, Tuning};
