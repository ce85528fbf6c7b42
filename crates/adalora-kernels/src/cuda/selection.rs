use tch::{Kind, Tensor};

use super::{CHOICE, Launch, Number, Read, THREADS, Write, assert_len};
use crate::rows::Rows;

pub(crate) fn keep_top(
    on: &impl Launch,
    importance: &Tensor,
    rows: &Rows,
    budget: usize,
    min_r: usize,
    masked: &mut Tensor,
) {
    let triplets = rows.triplets();
    assert_len(triplets, &[importance, masked]);
    if budget == 0 || budget >= triplets {
        let _ = masked.fill_(i64::from(budget == 0));
        return;
    }
    assert!(triplets < 1 << 31, "the index of a triplet has 31 bits of its key");
    let keys = on.scratch(&[triplets as i64], Kind::Int64);
    let tables = rows.resident(importance.device());
    let (count, budget) = (Number(triplets as i64), Number(budget as i64));
    let arguments = [Read(importance), tables.adapters(), count, Number(min_r as i64), Write(&keys)];
    on.launch("selection_keys", triplets.div_ceil(THREADS), THREADS, &arguments);
    on.launch("keep_top", 1, CHOICE, &[Read(&keys), count, budget, Write(masked)]);
}
