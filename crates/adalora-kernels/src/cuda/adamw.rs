use std::ops::Range;

use tch::Tensor;

use super::{Argument, Launch, RUNS, Read, THREADS, Value, Write, assert_len, blocks_for, count};
use crate::adamw::Update;

/// `Decay` of `adamw.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decay {
    ends: [i64; RUNS],
    shrink: [f32; RUNS],
}

pub(crate) fn step(
    on: &impl Launch,
    param: &mut Tensor,
    grad: &Tensor,
    exp_avg: &mut Tensor,
    exp_avg_sq: &mut Tensor,
    decay: &[(Range<usize>, f64)],
    update: Update,
) {
    assert_len(param.numel(), &[grad, exp_avg, exp_avg_sq]);
    let end = decay.last().map_or(0, |(range, _)| range.end);
    assert!(end <= param.numel(), "the ranges of decay lie in the buffer");
    let (rate, root) = update.corrections();
    let take1 = 1.0 - update.beta1;
    let scalars = [take1, update.beta2, 1.0 - update.beta2, rate, root, update.eps].map(|x| Value(x as f32));
    for runs in runs(decay).chunks(RUNS) {
        let from = runs[0].0.start;
        let len = runs[runs.len() - 1].0.end - from;
        let mut table = Decay { ends: [len as i64; RUNS], shrink: [1.0; RUNS] };
        for (at, (range, rate)) in runs.iter().enumerate() {
            table.ends[at] = (range.end - from) as i64;
            table.shrink[at] = (1.0 - update.lr * rate) as f32;
        }
        let [param, grad, exp_avg, exp_avg_sq] =
            [&*param, grad, &*exp_avg, &*exp_avg_sq].map(|flat| flat.narrow(0, from as i64, len as i64));
        let buffers = [Write(&param), Read(&grad), Write(&exp_avg), Write(&exp_avg_sq), count(&param)];
        let arguments = [&buffers[..], &[Argument::Decay(&table)], &scalars].concat();
        on.launch("adamw", blocks_for(len), THREADS, &arguments);
    }
}

/// The ranges that hold something, neighbours of one rate joined.
fn runs(decay: &[(Range<usize>, f64)]) -> Vec<(Range<usize>, f64)> {
    let mut runs: Vec<(Range<usize>, f64)> = Vec::new();
    for (range, rate) in decay.iter().filter(|(range, _)| !range.is_empty()) {
        match runs.last_mut() {
            Some((last, same)) if same == rate && last.end == range.start => last.end = range.end,
            _ => runs.push((range.clone(), *rate)),
        }
    }
    runs
}
