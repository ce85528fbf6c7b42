//! Dropout whose masks are a function of a seed and of the order in which they are drawn.
//!
//! On the CPU libtorch draws a mask one value after another on one thread, which is a twelfth of a training step of a
//! small encoder. Here chunks of a mask are drawn side by side, from a counter, so that neither the number of threads
//! nor anything else in the process decides what they hold. On another device libtorch's own dropout is used, from a
//! generator that was seeded by the same numbers.

use std::cell::Cell;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::host;

/// The dropout of one forward and backward pass.
#[derive(Debug)]
pub struct Dropout {
    seed: u64,
    masks: Cell<u64>,
}

impl Dropout {
    /// The masks that belong to `seed` and `step`: the first that is drawn, the second, and so on.
    pub fn new(seed: u64, step: u64) -> Self {
        let seed = mix(mix(seed) ^ step);
        tch::manual_seed(seed as i64);
        Self { seed, masks: Cell::new(0) }
    }

    /// `x` with each value set to 0 with probability `p` and multiplied by `1 / (1 - p)` otherwise. `p` is at least 0
    /// and below 1.
    pub fn apply(&self, x: &Tensor, p: f64) -> Tensor {
        if p == 0.0 {
            return x.shallow_clone();
        }
        if x.device() != Device::Cpu {
            return x.dropout(p, true);
        }
        x * self.mask(&x.size(), p).to_kind(x.kind())
    }

    /// Zeros and `1 / (1 - p)`, f32, on the CPU.
    fn mask(&self, shape: &[i64], p: f64) -> Tensor {
        let number = self.masks.get();
        self.masks.set(number + 1);
        let start = mix(self.seed ^ mix(number));
        let mut mask = Tensor::empty(shape, (Kind::Float, Device::Cpu));
        // Of 2^32 values of a draw, those below are dropped.
        let dropped = (p * 2f64.powi(32)).round() as u32;
        let kept = (1.0 / (1.0 - p)) as f32;
        host::slice_mut(&mut mask).par_chunks_mut(host::CHUNK).enumerate().for_each(|(chunk, values)| {
            let first = start.wrapping_add((chunk * host::CHUNK) as u64);
            for (pair, values) in values.chunks_mut(2).enumerate() {
                let draw = mix(first.wrapping_add(pair as u64));
                values[0] = if (draw as u32) < dropped { 0.0 } else { kept };
                if let Some(value) = values.get_mut(1) {
                    *value = if ((draw >> 32) as u32) < dropped { 0.0 } else { kept };
                }
            }
        });
        mask
    }
}

/// `dropout` applied to `x`, or `x` where there is none.
pub fn apply(dropout: Option<&Dropout>, x: &Tensor, p: f64) -> Tensor {
    dropout.map_or_else(|| x.shallow_clone(), |dropout| dropout.apply(x, p))
}

/// Splitmix64: a bijection whose values for neighbouring arguments have nothing in common.
fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ones(len: i64) -> Tensor {
        Tensor::ones([len], (Kind::Float, Device::Cpu))
    }

    #[test]
    fn the_share_that_is_dropped_and_the_mean_are_as_asked() {
        let len = 1_000_001;
        for p in [0.1, 0.5, 0.9] {
            let y = Dropout::new(3, 5).apply(&ones(len), p);
            let dropped = y.eq(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            // Five standard deviations of a binomial share.
            let tolerance = 5.0 * (p * (1.0 - p) / len as f64).sqrt();
            assert!((dropped - p).abs() < tolerance, "{dropped} of {p}");
            assert_eq!(y.max().double_value(&[]), f64::from((1.0 / (1.0 - p)) as f32));
        }
    }

    #[test]
    fn masks_are_a_function_of_seed_step_and_number() {
        let draw = |seed, step| {
            let dropout = Dropout::new(seed, step);
            [(); 2].map(|()| Vec::<f32>::try_from(dropout.apply(&ones(40_000), 0.5)).unwrap())
        };
        let again = draw(1, 2);
        assert_eq!(draw(1, 2), again);
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert!(one_thread.install(|| draw(1, 2) == again));
        let others = [&again[1], &draw(1, 3)[0], &draw(2, 2)[0], &draw(2, 1)[0]];
        for other in others {
            // Independent halves agree in half the places.
            let same = again[0].iter().zip(other).filter(|(a, b)| a == b).count() as f64 / 40_000.0;
            assert!((same - 0.5).abs() < 0.02, "{same}");
        }
    }

    #[test]
    fn the_gradient_is_dropped_like_the_value() {
        let x = ones(1000).set_requires_grad(true);
        let y = Dropout::new(1, 1).apply(&x, 0.3);
        y.sum(Kind::Float).backward();
        assert_eq!(x.grad(), y.detach());
        assert_eq!(Dropout::new(1, 1).apply(&x, 0.0), x);
    }
}
