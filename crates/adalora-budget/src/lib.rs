//! The rank budget as a function of the optimizer step, and the choice of the triplets it keeps.
//!
//! Everything here is integers and `f32` slices: no tensors, no files, no state.
//!
//! * [`BudgetSpec`] is what an experiment file says; [`BudgetSchedule`] is what runs, and can only be made from a
//!   specification that holds for the run at hand.
//! * [`RankPattern`] says which triplets of which adapter are live.
//!
//! Words: a *triplet* is one value of lambda with its two vectors; the *budget* counts live triplets over all
//! adapters, or their parameters; the *rank* of one adapter is the number of its live triplets.

mod pattern;
mod schedule;

pub use pattern::{RankPattern, SelectionError};
pub use schedule::{BudgetAction, BudgetError, BudgetSchedule, BudgetSpec, BudgetUnit, Phases};
