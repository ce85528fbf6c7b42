use tch::{Kind, Tensor};

use super::{Launch, Number, Read, THREADS, Value, Write};
use crate::orthogonality::Join;
use crate::rows::Rows;

pub(crate) fn add_gradient(
    on: &impl Launch,
    param: &Tensor,
    grad: &Tensor,
    rows: &Rows,
    join: Join,
    weight: f64,
) -> Tensor {
    let end = rows.lambda().start;
    assert!(param.numel() >= end && grad.numel() >= end, "both buffers hold the factors");
    let tables = rows.resident(param.device());
    let factors = &tables.factors;
    let residual = on.scratch(&[factors.residuals as i64], Kind::Float);
    let squares = on.scratch(&[factors.tile_count as i64], Kind::Float);
    let arguments =
        [Read(param), Read(&factors.factors), Read(&factors.tiles), Write(&residual), Write(&squares)];
    on.launch("residuals", factors.tile_count, THREADS, &arguments);

    let value = on.scratch(&[], Kind::Float);
    let share = 1.0 / rows.factors().len() as f64;
    let (norms, scale) = match join {
        Join::SumOfSquares => (0, 4.0 * weight),
        Join::MeanOfNorms => (1, 2.0 * weight * share),
    };
    let arguments = [
        Read(param),
        Write(grad),
        Read(&factors.factors),
        Number(factors.count as i64),
        Read(&factors.strips),
        Read(&residual),
        Read(&squares),
        Number(norms),
        Value(share as f32),
        Value(scale as f32),
        Write(&value),
    ];
    on.launch("residual_gradient", factors.strip_count + 1, THREADS, &arguments);
    value
}
