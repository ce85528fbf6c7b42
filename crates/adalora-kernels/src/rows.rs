//! Which values of a flat buffer belong to which triplet.

use std::ops::Range;
use std::sync::OnceLock;

use tch::Tensor;

use crate::cuda::Tables;
use crate::host;

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
    /// Made when they are first asked for: a layout may only be counted, and be larger than any that is trained.
    blocks: OnceLock<Vec<Block>>,
    row_count: usize,
    pub(crate) tables: Tables,
}

/// What one task of a parallel pass works on: rows of one factor that follow each other, at least one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    rows: usize,
    /// Length of a row.
    pub(crate) cols: usize,
}

impl Block {
    /// The rows of a factor in blocks of about [`host::CHUNK`] values.
    fn split(factor: &Factor) -> impl Iterator<Item = Self> {
        let &Factor { rows, cols, .. } = factor;
        let count = (rows * cols).div_ceil(host::CHUNK).min(rows);
        (0..count).map(move |i| Self { rows: rows * (i + 1) / count - rows * i / count, cols })
    }
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
        let (mut end, mut row_count) = (0, 0);
        for factor in &factors {
            assert_eq!(factor.offset, end, "each factor begins where the one before it ends");
            assert!(factor.first + factor.rows <= triplets, "each row belongs to a triplet");
            assert!(factor.rows == 0 || factor.cols > 0, "each row has a value");
            end = factor.range().end;
            row_count += factor.rows;
        }
        assert!(
            lambda.start == end && (lambda.is_empty() || lambda.len() == triplets),
            "one lambda a triplet"
        );
        Self {
            factors,
            lambda,
            groups,
            triplets,
            blocks: OnceLock::new(),
            row_count,
            tables: Tables::default(),
        }
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
    /// The factors cut into blocks, in the order of the buffer.
    pub(crate) fn blocks(&self) -> &[Block] {
        self.blocks.get_or_init(|| self.factors.iter().flat_map(Block::split).collect())
    }

    /// The factors' part of a flat buffer, cut into the values of each block.
    pub(crate) fn split<'a>(&self, mut flat: &'a [f32]) -> Vec<&'a [f32]> {
        let blocks = self.blocks().iter();
        blocks.map(|block| flat.split_off(..block.rows * block.cols).expect(SHORT)).collect()
    }

    /// [`split`](Self::split), to be changed.
    pub(crate) fn split_mut<'a>(&self, mut flat: &'a mut [f32]) -> Vec<&'a mut [f32]> {
        let blocks = self.blocks().iter();
        blocks.map(|block| flat.split_off_mut(..block.rows * block.cols).expect(SHORT)).collect()
    }

    /// Rows of all factors together, in the order of the buffer.
    pub(crate) fn row_count(&self) -> usize {
        self.row_count
    }

    /// One value for each row, cut into those of each block.
    pub(crate) fn split_rows<'a>(&self, mut means: &'a mut [f32]) -> Vec<&'a mut [f32]> {
        self.blocks().iter().map(|block| means.split_off_mut(..block.rows).expect(SHORT)).collect()
    }

    /// For each triplet the sum over its rows, in the order of the buffer, of one value for each row.
    pub(crate) fn gather(&self, mut by_row: &[f32], sums: &mut [f32]) {
        sums.fill(0.0);
        for factor in &self.factors {
            let own = by_row.split_off(..factor.rows).expect(SHORT);
            for (sum, value) in sums[factor.first..].iter_mut().zip(own) {
                *sum += value;
            }
        }
    }
}

const SHORT: &str = "a flat buffer holds what the tables describe";
