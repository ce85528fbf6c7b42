//! AdaLoRA as a library: adaptive rank for a training loop of your own.
//!
//! ```text
//! for step in 0..total_steps {
//!     loss(&model, &batch).backward();
//!     orthogonality.add_gradient(&arena);
//!     allocator.observe(step, &arena);
//!     optimizer.step(&arena, lr.at(step));
//!     allocator.update(step, &arena)?;
//!     arena.zero_grad();
//! }
//! ```
//!
//! `examples/own_loop.rs` is this in full, for a hand-written model.

mod allocator;
mod optimizer;

pub use adalora_adapter::{
    Adapter, Arena, Extra, FactorStart, Form, Layout, Leaves, Linear, Orthogonality, OrthogonalityForm,
    ParameterKind, ScalePolicy, Site,
};
pub use adalora_budget::{
    BudgetAction, BudgetError, BudgetSchedule, BudgetSpec, BudgetUnit, Phases, RankPattern,
};
pub use adalora_importance::{ImportanceMetric, ImportanceSpec, Observation, SensitivityUncertainty, Start};
pub use allocator::{AllocationError, RankAllocator};
pub use optimizer::{AdamW, AdamWSpec, LearningRate, LearningRateSpec, MaskedMoments, WarmUp, WeightDecay};
