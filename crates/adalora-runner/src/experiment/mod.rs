//! Experiment files: what one says, where it says it, and every rule that it can break.
//!
//! A file is a base and `[variants.NAME]` tables, each of which replaces whole tables of the base. [`Document`] is the
//! file with the place of everything in it, [`Experiment`] is what it says, and [`Problems`] is all that is wrong with
//! it, shown at line and column.
//!
//! ```ignore
//! use adalora_runner::experiment::{Experiment, Problem};
//!
//! let (document, experiment) = Experiment::load("experiments/quickstart.toml".as_ref(), &["train.epochs=1".into()])?;
//! for (name, spec) in &experiment.variants {
//!     println!("{name}: {} steps between two evaluations", spec.train.evaluate_every);
//! }
//! // A rule that shows only with the model at hand is reported in the same way.
//! let found = Problem { variant: None, key: "train.threads".into(), message: "too many for this machine".into() };
//! println!("{}", document.problems([found]));
//! # Ok::<(), adalora_runner::experiment::Problems>(())
//! ```

mod document;
mod grid;
mod problem;
mod read;
mod rules;
mod schema;
mod spec;
mod tree;

pub use document::Document;
pub use grid::{Cell, Grid, Tuning};
pub use problem::{Problem, Problems};
pub use schema::schema;
pub use spec::{
    AdapterSpec, Bottleneck, Experiment, Gradient, Lora, ModelSpec, ObservationSpec, Planted, Pretrained,
    RandomEncoder, RunSpec, Svd, TaskSpec, TrainSpec, WarmStartSpec, Weights,
};
