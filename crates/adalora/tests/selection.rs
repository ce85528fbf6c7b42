//! The choice of triplets over tensors, held to the plain one over slices.

use adalora::{Form, Layout, RankPattern, Site};
use adalora_kernels::selection::{keep_top, reference};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

/// Importance of the triplets of each adapter: many ties, zeros of both signs, all magnitudes.
fn adapters() -> impl Strategy<Value = Vec<Vec<f32>>> {
    let finite = any::<f32>().prop_filter("importance is finite", |score| score.is_finite());
    let score = prop_oneof![finite, (-2i8..3).prop_map(f32::from), Just(-0.0)];
    proptest::collection::vec(proptest::collection::vec(score, 0..13), 0..20)
}

proptest! {
    #[test]
    fn the_kernel_and_its_reference_keep_what_the_rank_pattern_keeps(
        adapters in adapters(),
        min_r in 0..4usize,
        share in 0.0..1.1f64,
    ) {
        let ranks: Vec<usize> = adapters.iter().map(Vec::len).collect();
        let importance = adapters.concat();
        let floors: usize = ranks.iter().map(|&rank| rank.min(min_r)).sum();
        let budget = floors.max((share * importance.len() as f64) as usize);
        let expected = RankPattern::keep_top(&importance, &ranks, budget, min_r).unwrap();

        let site = |rank| Site { path: "any".into(), d_in: 2, d_out: 1, rank };
        let layout = Layout::new(Form::Svd, ranks.into_iter().map(site).collect());
        for keep in [keep_top, reference] {
            let mut masked = Tensor::zeros([importance.len() as i64], (Kind::Bool, Device::Cpu));
            keep(&Tensor::from_slice(&importance), layout.rows(), budget, min_r, &mut masked);
            let live = Vec::<bool>::try_from(masked.logical_not()).unwrap();
            prop_assert_eq!(expected.live(), live);
        }
    }
}
