//! Which values of a flat buffer belong to which triplet.

use std::ops::Range;

use tch::Tensor;

use crate::cuda::Tables;

/// A matrix in the flat buffer, row by row; each row belongs to one triplet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factor {
    /// Its first value.
    pub offset: usize,
    /// Vectors, one for each triplet; may be 0.
    pub rows: usize,
    /// Length of a vector.
    pub cols: usize,
    /// Triplet of the first row, counted over all adapters; the others follow.
    pub first: usize,
}

impl Factor {
    /// Where it lies in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.cols
    }

    /// It as a `(rows, cols)` view of a flat tensor.
    pub fn view(&self, flat: &Tensor) -> Tensor {
        let (rows, cols) = (self.rows as i64, self.cols as i64);
        flat.narrow(0, self.offset as i64, rows * cols).view([rows, cols])
    }
}

/// The rows of all triplets: the factors one after another, then one lambda for each triplet, or none.
#[derive(Debug)]
pub struct Rows {
    factors: Vec<Factor>,
    lambda: Range<usize>,
    groups: Vec<usize>,
    triplets: usize,
    pub(crate) tables: Tables,
}

impl Rows {
    /// The tables for `factors`, which follow each other from the start of the buffer, for the place of lambda right
    /// behind them, and for `groups`: the triplets of each adapter, in the order in which triplets are counted.
    ///
    /// # Panics
    ///
    /// If factors or lambda leave a gap or overlap, or belong to triplets that are not there.
    pub fn new(factors: Vec<Factor>, lambda: Range<usize>, groups: Vec<usize>) -> Self {
        let triplets = groups.iter().sum();
        let mut end = 0;
        for factor in &factors {
            assert_eq!(factor.offset, end, "each factor begins where the one before it ends");
            assert!(factor.first + factor.rows <= triplets, "each row belongs to a triplet");
            end = factor.range().end;
        }
        assert!(
            lambda.start == end && (lambda.is_empty() || lambda.len() == triplets),
            "one lambda a triplet"
        );
        Self { factors, lambda, groups, triplets, tables: Tables::default() }
    }

    /// Matrices of which each row belongs to one triplet, in the order of the buffer.
    pub fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// Where the lambda of all triplets lie; empty if there are none.
    pub fn lambda(&self) -> Range<usize> {
        self.lambda.clone()
    }

    /// Triplets of each adapter.
    pub fn groups(&self) -> &[usize] {
        &self.groups
    }

    /// Triplets over all adapters.
    pub fn triplets(&self) -> usize {
        self.triplets
    }

    /// Values that these tables describe, from the start of the buffer.
    pub fn entries(&self) -> usize {
        self.lambda.end
    }
}
