//! The two matrix products of one factor on the CPU, in tiles that stay in the registers.
//!
//! A factor is short and wide, `r` rows of some hundred to some thousand values, and fits into a core's cache. A
//! general product packs its operands first, which costs as much as so small a product itself.

use pulp::{Arch, Simd, WithSimd};

/// Rows of one side of a tile of `A Aᵀ`: nine sums and six operands for sixteen registers.
const SIDE: usize = 3;

/// What is done with one factor `A`: the residual `M = A Aᵀ - I`, then `scale * M A` added to the gradient, where
/// `scale` follows from `||M||²`, which is returned.
pub(super) struct Term<'a, F> {
    /// `(r, cols)`, not empty.
    pub(super) factor: &'a [f32],
    pub(super) cols: usize,
    /// `(r, cols)`
    pub(super) grad: &'a mut [f32],
    pub(super) scale: F,
}

impl<F: FnOnce(f64) -> f64> Term<'_, F> {
    /// With the widest vectors that the processor has.
    pub(super) fn run(self) -> f64 {
        Arch::new().dispatch(self)
    }
}

/// A row as whole vectors and what is left over.
type Row<'a, S> = (&'a [<S as Simd>::f32s], &'a [f32]);

impl<F: FnOnce(f64) -> f64> WithSimd for Term<'_, F> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { factor, cols, mut grad, scale } = self;
        let rows: Vec<Row<S>> = factor.chunks_exact(cols).map(S::as_simd_f32s).collect();
        let r = rows.len();
        let mut residual = gram(simd, &rows);
        for i in 0..r {
            residual[i * r + i] -= 1.0;
        }
        let square = residual.iter().map(|&m| f64::from(m) * f64::from(m)).sum();
        let scale = scale(square) as f32;
        residual.iter_mut().for_each(|m| *m *= scale);

        let mut residual = residual.as_slice();
        while !residual.is_empty() {
            let done = match residual.len() / r {
                6.. => add_product::<S, 6>(simd, residual, &rows, grad, cols),
                2.. => add_product::<S, 2>(simd, residual, &rows, grad, cols),
                _ => add_product::<S, 1>(simd, residual, &rows, grad, cols),
            };
            residual = &residual[done * r..];
            grad = &mut grad[done * cols..];
        }
        square
    }
}

/// `A Aᵀ`, `(r, r)`.
#[inline(always)]
fn gram<S: Simd>(simd: S, rows: &[Row<S>]) -> Vec<f32> {
    let r = rows.len();
    let mut gram = vec![0.0; r * r];
    for i in (0..r).step_by(SIDE) {
        for j in (i..r).step_by(SIDE) {
            // Past the end, the last row takes part once more and its sums are dropped.
            let side = |first: usize| std::array::from_fn(|at| rows[(first + at).min(r - 1)]);
            let sums = dots(simd, side(i), side(j));
            for (i, sums) in (i..r).zip(sums) {
                for (j, sum) in (j..r).zip(sums) {
                    gram[i * r + j] = sum;
                    gram[j * r + i] = sum;
                }
            }
        }
    }
    gram
}

/// The dot product of each row of `a` with each of `b`.
#[inline(always)]
fn dots<S: Simd>(simd: S, a: [Row<S>; SIDE], b: [Row<S>; SIDE]) -> [[f32; SIDE]; SIDE] {
    let mut sums = [[simd.splat_f32s(0.0); SIDE]; SIDE];
    let mut add = |a: [S::f32s; SIDE], b: [S::f32s; SIDE]| {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
    };
    let whole = a[0].0.len();
    let (x, y) = (a.map(|row| &row.0[..whole]), b.map(|row| &row.0[..whole]));
    for k in 0..whole {
        add(x.map(|row| row[k]), y.map(|row| row[k]));
    }
    if !a[0].1.is_empty() {
        let rest = |row: Row<S>| simd.partial_load_f32s(row.1);
        add(a.map(rest), b.map(rest));
    }
    sums.map(|sums| sums.map(|sum| simd.reduce_sum_f32s(sum)))
}

/// Adds the first `T` rows of `M A` to those of `into`, and returns `T`. `m` is `M` from the first of them on.
#[inline(always)]
fn add_product<S: Simd, const T: usize>(
    simd: S,
    m: &[f32],
    rows: &[Row<S>],
    into: &mut [f32],
    cols: usize,
) -> usize {
    let r = rows.len();
    let m: [&[f32]; T] = std::array::from_fn(|t| &m[t * r..][..r]);
    let mut into = into.chunks_exact_mut(cols).map(S::as_mut_simd_f32s);
    let mut into: [_; T] = std::array::from_fn(|_| into.next().expect("a row of the gradient for each of M"));
    let whole = rows[0].0.len();
    for k in (0..whole / 2).map(|pair| 2 * pair) {
        add_columns::<S, T, 2>(simd, m, rows, &mut into, k);
    }
    if whole % 2 == 1 {
        add_columns::<S, T, 1>(simd, m, rows, &mut into, whole - 1);
    }
    for (m, (_, into)) in m.iter().zip(&mut into) {
        for (m, (_, rest)) in m.iter().zip(rows) {
            into.iter_mut().zip(*rest).for_each(|(into, value)| *into += m * value);
        }
    }
    T
}

/// Adds `V` vectors, from vector `k` on, of `T` rows of `M A`.
#[inline(always)]
fn add_columns<S: Simd, const T: usize, const V: usize>(
    simd: S,
    m: [&[f32]; T],
    rows: &[Row<S>],
    into: &mut [(&mut [S::f32s], &mut [f32]); T],
    k: usize,
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; T];
    for (j, (row, _)) in rows.iter().enumerate() {
        let values: [S::f32s; V] = row[k..k + V].try_into().expect("a slice of V vectors");
        for (m, sums) in m.iter().zip(&mut sums) {
            let m = simd.splat_f32s(m[j]);
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = simd.mul_add_e_f32s(m, value, *sum);
            }
        }
    }
    for ((into, _), sums) in into.iter_mut().zip(sums) {
        for (into, sum) in into[k..k + V].iter_mut().zip(sums) {
            *into = simd.add_f32s(*into, sum);
        }
    }
}
