//! What kernels must know of [`Rows`], as tensors on their device. Made once for each device and kept.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Tensor};

use super::{Argument, Number, Read, THREADS, TILE};
use crate::rows::{Factor, Rows};

/// The tables of one [`Rows`], of each device that asked for them.
#[derive(Debug, Default)]
pub(crate) struct Tables(Mutex<Vec<(Device, Arc<Resident>)>>);

/// The tables on one device.
#[derive(Debug)]
pub(crate) struct Resident {
    /// First row of each triplet, and the number of rows.
    first: Tensor,
    /// Offset and length of each row, sorted by triplet, those of one triplet in the order of the factors.
    rows: Tensor,
    /// First lambda; -1 if there are none.
    lambda: i64,
    /// For each triplet the first of its adapter and the one behind the last.
    adapters: Tensor,
    pub(crate) factors: Factors,
}

/// What the two kernels of the regularizer share out, for factors that have rows.
#[derive(Debug)]
pub(crate) struct Factors {
    /// Six numbers for each: see `Factor` in `orthogonality.cu`.
    pub(crate) factors: Tensor,
    pub(crate) count: usize,
    /// Factor, row and column of each tile on or below a diagonal.
    pub(crate) tiles: Tensor,
    pub(crate) tile_count: usize,
    /// Factor, row and column of each strip of a gradient.
    pub(crate) strips: Tensor,
    pub(crate) strip_count: usize,
    /// Entries of all residuals.
    pub(crate) residuals: usize,
}

// SAFETY: the tensors are not written after they are made; of them only addresses are asked for.
unsafe impl Sync for Resident {}

impl Rows {
    /// The tables of these rows on a device. The first call for it copies them there and waits for that.
    pub(crate) fn resident(&self, device: Device) -> Arc<Resident> {
        let mut all = self.tables.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, resident)) = all.iter().find(|(place, _)| *place == device) {
            return resident.clone();
        }
        let resident = Arc::new(Resident::new(device, self));
        all.push((device, resident.clone()));
        resident
    }
}

impl Resident {
    fn new(device: Device, rows: &Rows) -> Self {
        let mut of_triplets = vec![Vec::new(); rows.triplets()];
        for factor in rows.factors() {
            for row in 0..factor.rows {
                of_triplets[factor.first + row].push([factor.offset + row * factor.cols, factor.cols]);
            }
        }
        let mut first = vec![0];
        first.extend(of_triplets.iter().scan(0, |end, own| {
            *end += own.len();
            Some(*end)
        }));
        let mut start = 0;
        let mut adapters = Vec::new();
        for &group in rows.groups() {
            adapters.extend(std::iter::repeat_n([start, start + group], group));
            start += group;
        }
        let lambda = rows.lambda();
        Self {
            first: upload(device, &first),
            rows: upload(device, of_triplets.concat().as_flattened()),
            lambda: if lambda.is_empty() { -1 } else { lambda.start as i64 },
            adapters: upload(device, adapters.as_flattened()),
            factors: Factors::new(device, rows.factors()),
        }
    }

    /// The arguments that describe triplets.
    pub(crate) fn triplets(&self) -> [Argument<'_>; 3] {
        [Read(&self.first), Read(&self.rows), Number(self.lambda)]
    }

    /// The argument that describes adapters.
    pub(crate) fn adapters(&self) -> Argument<'_> {
        Read(&self.adapters)
    }
}

impl Factors {
    fn new(device: Device, all: &[Factor]) -> Self {
        let (mut factors, mut tiles, mut strips, mut residuals) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for factor in all.iter().filter(|factor| factor.rows > 0) {
            let (index, first_tile) = (factors.len(), tiles.len());
            for row in (0..factor.rows).step_by(TILE) {
                tiles.extend((0..=row).step_by(TILE).map(|col| [index, row, col]));
                strips.extend((0..factor.cols).step_by(THREADS).map(|col| [index, row, col]));
            }
            let Factor { offset, rows, cols, .. } = *factor;
            factors.push([offset, rows, cols, residuals, first_tile, tiles.len() - first_tile]);
            residuals += rows * rows;
        }
        Self {
            count: factors.len(),
            tile_count: tiles.len(),
            strip_count: strips.len(),
            residuals,
            factors: upload(device, factors.as_flattened()),
            tiles: upload(device, tiles.as_flattened()),
            strips: upload(device, strips.as_flattened()),
        }
    }
}

fn upload(device: Device, numbers: &[usize]) -> Tensor {
    let numbers: Vec<i64> = numbers.iter().map(|&number| number as i64).collect();
    Tensor::from_slice(&numbers).to(device)
}
