//! Data sets: manifest, fetch, read, tokenize, batch, evaluate. Plain Rust, no tensors.
//!
//! A *manifest* (`datasets/NAME.toml`) says where a data set or a checkpoint comes from, what it must hash to and how
//! it is read; the data itself lives in the materials folder and is never committed. From a name to numbers:
//!
//! 1. [`Catalogue`] finds manifests by name, and [`Catalogue::fetch`] brings what they name onto the disk;
//! 2. [`Dataset::load`] reads both splits and tokenizes them, as the `[task]` table of an experiment ([`TaskSpec`])
//!    asks;
//! 3. [`epoch_order`] and [`dev_order`] cut examples into batches, [`Batch::collate`] pads one, and [`Prefetch`] does so
//!    ahead of time;
//! 4. [`Evaluation::score`] compares predictions with labels.
//!
//! What [`Catalogue::data`] returns tells a task's [`Target`] and [`Evaluation`]s before anything is fetched.
//! Everything that can go wrong is a [`TaskError`].

mod batch;
mod byte_level;
mod catalogue;
mod dataset;
mod delimited;
mod dev;
mod error;
mod evaluation;
mod fetch;
mod glue;
mod hub;
mod manifest;
mod new_tokenizer;
mod parquet;
mod porter;
mod prefetch;
mod rouge;
mod rows;
mod sentencepiece;
mod squad;
mod summaries;
mod texts;
mod tokenize;

pub use batch::{Batch, dev_order, epoch_order};
pub use catalogue::Catalogue;
pub use dataset::{Dataset, Example, FileHash, Label, Labels, Target, TaskSpec};
pub use dev::{DevSet, Said, Scored, Truth};
pub use error::{HubProblem, ManifestRule, Place, RowProblem, TaskError};
pub use evaluation::Evaluation;
pub use fetch::Fetched;
pub use hub::{Hub, Progress};
pub use manifest::{DataFormat, Manifest, Squad, Summaries, Table};
pub use new_tokenizer::NewTokenizer;
pub use prefetch::Prefetch;
pub use rouge::{Interval, Overlap, Rouge, bootstrap};
pub use rows::Row;
pub use squad::{
    Answer, AnswerScore, BestThreshold, BestThresholds, Decoding, Found, Question, QuestionCounts,
    QuestionProblem, Questions, QuestionsSpec, Span, SpanLogits, SquadScore, SquadSpec, SquadVersion, Window,
};
pub use summaries::{References, SummariesSpec};
pub use texts::Texts;
