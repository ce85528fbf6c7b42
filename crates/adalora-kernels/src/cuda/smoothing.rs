use tch::Tensor;

use super::{Launch, Read, THREADS, Value, Write, assert_len, blocks_for, count};
use crate::rows::Rows;

pub(crate) fn smooth(
    on: &impl Launch,
    sensitivity: &mut Tensor,
    uncertainty: &mut Tensor,
    param: &Tensor,
    grad: &Tensor,
    beta1: f64,
    beta2: f64,
) {
    assert_len(param.numel(), &[sensitivity, uncertainty, grad]);
    let [keep1, take1, keep2, take2] = shares(beta1, beta2);
    let arguments = [
        Write(sensitivity),
        Write(uncertainty),
        Read(param),
        Read(grad),
        keep1,
        take1,
        keep2,
        take2,
        count(param),
    ];
    on.launch("smooth", blocks_for(param.numel()), THREADS, &arguments);
}

#[expect(clippy::too_many_arguments)]
pub(crate) fn smooth_and_score(
    on: &impl Launch,
    sensitivity: &mut Tensor,
    uncertainty: &mut Tensor,
    score: &mut Tensor,
    param: &Tensor,
    grad: &Tensor,
    beta1: f64,
    beta2: f64,
    rows: &Rows,
) {
    assert_len(rows.entries(), &[sensitivity, uncertainty, param, grad]);
    assert_len(rows.triplets(), &[score]);
    let [keep1, take1, keep2, take2] = shares(beta1, beta2);
    let tables = rows.resident(param.device());
    let [first, of_triplets, lambda] = tables.triplets();
    let averages = [Write(sensitivity), Write(uncertainty), Read(param), Read(grad)];
    let arguments =
        [&averages[..], &[keep1, take1, keep2, take2, first, of_triplets, lambda, Write(score)]].concat();
    on.launch("smooth_and_score", rows.triplets(), THREADS, &arguments);
}

/// Shares of the old average and of the new value, rounded as in the plain reference.
fn shares(beta1: f64, beta2: f64) -> [super::Argument<'static>; 4] {
    [beta1, 1.0 - beta1, beta2, 1.0 - beta2].map(|share| Value(share as f32))
}
