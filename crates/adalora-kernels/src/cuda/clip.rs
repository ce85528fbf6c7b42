use tch::{Kind, Tensor};

use super::{Launch, Number, Read, THREADS, Value, Write, assert_len, blocks_for, count};

pub(crate) fn norm(on: &impl Launch, grad: &Tensor) -> Tensor {
    let blocks = blocks_for(grad.numel());
    let sums = on.scratch(&[blocks as i64], Kind::Float);
    let norm = on.scratch(&[], Kind::Float);
    on.launch("square_sums", blocks, THREADS, &[Read(grad), count(grad), Write(&sums)]);
    on.launch("root_of_sum", 1, THREADS, &[Read(&sums), Number(blocks as i64), Write(&norm)]);
    norm
}

pub(crate) fn clip(on: &impl Launch, grad: &mut Tensor, norm: &Tensor, max_norm: f64) -> Tensor {
    assert_len(1, &[norm]);
    let factor = on.scratch(&[], Kind::Float);
    let arguments = [Write(grad), count(grad), Read(norm), Value(max_norm as f32), Write(&factor)];
    // A block even for an empty buffer, for the factor.
    on.launch("clip", blocks_for(grad.numel()).max(1), THREADS, &arguments);
    factor
}
