//! What an adapter's increment is multiplied by.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `adapter.svd.scale` and `adapter.lora.scale`: how the scale depends on the rank `r` of an adapter.
///
/// A rank of 0 counts as 1: the increment is 0 then, and 1 is the rank it has if a triplet comes back. (The authors'
/// code divides by `r + 1e-5`, so that such a triplet is scaled by `1e5 * alpha` until the next allocation.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScalePolicy {
    /// `alpha / r` with the rank at the start, whatever the rank is later: both codes.
    #[default]
    InitialRank,
    /// `alpha / r` with the rank that the last allocation left, the initial one before the first. It stays between two
    /// allocations, while masked triplets move away from 0 again: the switch `adapt_scaling` of the authors' code.
    CurrentRank,
    /// `alpha / sqrt(r)` with the rank at the start: rsLoRA (Kalajdzievski, 2023), under which neither outputs nor
    /// gradients of a LoRA shrink as its rank grows.
    #[serde(rename = "rslora")]
    RsLora,
    /// `alpha` itself, whatever the rank.
    Constant,
}

impl ScalePolicy {
    /// The scale of an adapter that began with rank `initial` and has `live` triplets.
    pub fn of(self, alpha: f64, initial: usize, live: usize) -> f64 {
        let rank = |rank: usize| rank.max(1) as f64;
        match self {
            Self::InitialRank => alpha / rank(initial),
            Self::CurrentRank => alpha / rank(live),
            Self::RsLora => alpha / rank(initial).sqrt(),
            Self::Constant => alpha,
        }
    }

    /// Whether it changes when triplets are masked.
    pub fn follows_rank(self) -> bool {
        self == Self::CurrentRank
    }

    /// Whether it is the default, which files need not say.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_by_policy() {
        let of =
            |policy: ScalePolicy| [(4, 4), (4, 1), (4, 0), (0, 0)].map(|(r, live)| policy.of(12.0, r, live));
        assert_eq!(of(ScalePolicy::InitialRank), [3.0, 3.0, 3.0, 12.0]);
        assert_eq!(of(ScalePolicy::CurrentRank), [3.0, 12.0, 12.0, 12.0]);
        assert_eq!(of(ScalePolicy::RsLora), [6.0, 6.0, 6.0, 12.0]);
        assert_eq!(of(ScalePolicy::Constant), [12.0; 4]);
    }
}
