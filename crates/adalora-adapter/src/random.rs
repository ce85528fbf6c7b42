//! Seeded starts of parameters.
//!
//! Drawn on the CPU by ChaCha, so that a seed means the same start on every device, and without libtorch's
//! generator, which is one for the whole process.

use rand::SeedableRng;
use rand::distr::{Distribution, Uniform};
use rand_chacha::ChaCha8Rng;
use rand_distr::Normal;
use tch::Tensor;

/// A stream of random tensors.
#[derive(Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of one purpose in the run with this seed. Different purposes are independent streams.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // FNV-1a: any spread will do, but it must be the same in every version of the program.
        let stream = purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        rng.set_stream(stream);
        Self(rng)
    }

    /// Normal with mean 0; f32 on the CPU.
    pub fn normal(&mut self, shape: &[i64], standard_deviation: f32) -> Tensor {
        self.draw(shape, Normal::new(0.0, standard_deviation).expect("a standard deviation is finite"))
    }

    /// Uniform in `[-bound, bound)`; f32 on the CPU.
    pub fn uniform(&mut self, shape: &[i64], bound: f64) -> Tensor {
        self.draw(shape, Uniform::new(-bound as f32, bound as f32).expect("a bound is finite and above 0"))
    }

    fn draw(&mut self, shape: &[i64], distribution: impl Distribution<f32>) -> Tensor {
        let count = shape.iter().product::<i64>() as usize;
        let values: Vec<f32> = distribution.sample_iter(&mut self.0).take(count).collect();
        Tensor::from_slice(&values).view(shape)
    }
}
