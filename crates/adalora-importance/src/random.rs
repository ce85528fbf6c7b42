//! Control: importance that knows nothing.
//!
//! One order of all triplets is drawn when the run starts and kept, so that the ranks shrink along the same budget
//! towards a random pattern. Drawn anew at each allocation it would keep resetting triplets that have learnt
//! something: a handicap that allocation by importance does not have, and so no fair control.

use adalora_adapter::random::Random as Draw;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{BetaError, ImportanceMetric, Observation, Start};

/// `[importance.random]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Random {}

impl Random {
    pub(crate) fn problems(&self) -> Vec<BetaError> {
        Vec::new()
    }

    pub(crate) fn start(&self, start: &Start) -> Order {
        let triplets = start.layout.triplet_count() as i64;
        Order { drawn: Draw::new(start.seed, "random importance").uniform(&[triplets], 1.0).to(start.device) }
    }
}

#[derive(Debug)]
pub(crate) struct Order {
    /// Shape `(triplets,)`.
    drawn: Tensor,
}

impl ImportanceMetric for Order {
    fn observe(&mut self, _seen: &Observation) {}

    fn importance(&self, _seen: &Observation) -> Tensor {
        self.drawn.copy()
    }

    fn state(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        vec![("drawn", &mut self.drawn)]
    }
}
