use tch::{Kind, Tensor};

use super::{Launch, Read, THREADS, Write};
use crate::rows::Rows;

pub(crate) fn mean(on: &impl Launch, entries: &Tensor, rows: &Rows) -> Tensor {
    assert!(entries.numel() >= rows.entries(), "the buffer holds what the rows describe");
    let mean = on.scratch(&[rows.triplets() as i64], Kind::Float);
    let tables = rows.resident(entries.device());
    let [first, of_triplets, lambda] = tables.triplets();
    let arguments = [Read(entries), first, of_triplets, lambda, Write(&mean)];
    on.launch("triplet_mean", rows.triplets(), THREADS, &arguments);
    mean
}
