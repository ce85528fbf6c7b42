//! Where each adapter's parameters lie in the flat buffers.

use std::ops::Range;
use std::sync::Arc;

use adalora_kernels::clear::clear;
use adalora_kernels::rows::{Factor, Rows};
use adalora_kernels::{selection, triplets};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The form of all adapters of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `P diag(lambda) Q`: triplets.
    Svd,
    /// `B A` of LoRA (Hu et al., 2021): `A` in the place of `Q`, `B` in that of `P`, no lambda.
    Lora,
}

/// A linear layer that gets an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Path of the layer in the model, components separated by dots.
    pub path: String,
    /// Width of its input.
    pub d_in: usize,
    /// Width of its output.
    pub d_out: usize,
    /// Initial rank of the adapter; may be 0.
    pub rank: usize,
}

/// Offsets of all adapters: for each, `Q` rows then `P` rows; after the last adapter, all lambda.
///
/// The *adapter part* of a flat buffer is its first [`entries`](Self::entries) values, which this describes.
#[derive(Debug, Clone)]
pub struct Layout {
    form: Form,
    sites: Vec<Site>,
    /// `Q` and `P` of each adapter, one adapter after another. Shared: the tables may have a copy on a device.
    rows: Arc<Rows>,
}

/// The entries of one adapter as shaped views.
#[derive(Debug)]
pub struct Triplets {
    /// `(r, d_in)`.
    pub q: Tensor,
    /// `(r, d_out)`: `P` transposed.
    pub p: Tensor,
    /// `(r,)`; `None` for LoRA.
    pub lambda: Option<Tensor>,
}

impl Layout {
    /// Lays the adapters out in the order given, which is the order of everything that is listed by adapter.
    pub fn new(form: Form, sites: Vec<Site>) -> Self {
        let (mut factors, mut offset, mut first) = (Vec::new(), 0, 0);
        for &Site { d_in, d_out, rank, .. } in &sites {
            for cols in [d_in, d_out] {
                factors.push(Factor { offset, rows: rank, cols, first });
                offset += rank * cols;
            }
            first += rank;
        }
        let lambda = if form == Form::Svd { first } else { 0 };
        let ranks = sites.iter().map(|site| site.rank).collect();
        let rows = Arc::new(Rows::new(factors, offset..offset + lambda, ranks));
        Self { form, sites, rows }
    }

    /// SVD or LoRA.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The adapted layers, in build order.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Adapters.
    pub fn adapters(&self) -> usize {
        self.sites.len()
    }

    /// Triplets over all adapters.
    pub fn triplet_count(&self) -> usize {
        self.rows.triplets()
    }

    /// Initial rank of each adapter.
    pub fn ranks(&self) -> Vec<usize> {
        self.sites.iter().map(|site| site.rank).collect()
    }

    /// Triplets of one adapter among all.
    pub fn triplet_range(&self, adapter: usize) -> Range<usize> {
        let [q, _] = self.factors(adapter);
        q.first..q.first + q.rows
    }

    /// Values of the adapter part.
    pub fn entries(&self) -> usize {
        self.rows.entries()
    }

    /// Where `P` and `Q` of all adapters lie.
    pub fn factor_range(&self) -> Range<usize> {
        0..self.rows.lambda().start
    }

    /// Where the lambda of all adapters lie; empty for LoRA.
    pub fn lambda_range(&self) -> Range<usize> {
        self.rows.lambda()
    }

    /// Parameters of one live triplet of each adapter: `d_in + d_out`, and one more for lambda.
    pub fn triplet_costs(&self) -> Vec<usize> {
        let lambda = usize::from(self.form == Form::Svd);
        self.sites.iter().map(|site| site.d_in + site.d_out + lambda).collect()
    }

    /// `Q` and `P` of one adapter in the flat buffer.
    pub fn factors(&self, adapter: usize) -> [Factor; 2] {
        let own = &self.rows.factors()[2 * adapter..][..2];
        [own[0], own[1]]
    }

    /// Which value of the adapter part belongs to which triplet, as the kernels want it.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The layout that is left when only the triplets with a flag in `live` are kept, and where in this one its entries
    /// are, in its order. `live` has one flag for each triplet, adapters one after another.
    ///
    /// # Panics
    ///
    /// If `live` has another length.
    pub(crate) fn compact(&self, live: &[bool]) -> (Self, Vec<usize>) {
        assert_eq!(live.len(), self.triplet_count(), "one flag for each triplet");
        let flags = |adapter| &live[self.triplet_range(adapter)];
        let mut sites = self.sites.clone();
        let mut kept = Vec::new();
        for (adapter, site) in sites.iter_mut().enumerate() {
            site.rank = flags(adapter).iter().filter(|live| **live).count();
            for factor in self.factors(adapter) {
                let rows = (0..factor.rows).filter(|&row| flags(adapter)[row]);
                kept.extend(rows.flat_map(|row| {
                    let start = factor.offset + row * factor.cols;
                    start..start + factor.cols
                }));
            }
        }
        kept.extend(self.lambda_range().zip(live).filter(|(_, live)| **live).map(|(entry, _)| entry));
        (Self::new(self.form, sites), kept)
    }

    /// Shaped views of one adapter's part of `entries`, a flat tensor of at least [`entries`](Self::entries) values.
    pub fn triplets(&self, entries: &Tensor, adapter: usize) -> Triplets {
        let [q, p] = self.factors(adapter);
        let lambda =
            (self.form == Form::Svd).then(|| self.lambda(entries).narrow(0, q.first as i64, q.rows as i64));
        Triplets { q: q.view(entries), p: p.view(entries), lambda }
    }

    /// The lambda entries alone, `(triplets,)`; empty for LoRA.
    pub fn lambda(&self, entries: &Tensor) -> Tensor {
        let range = self.lambda_range();
        entries.narrow(0, range.start as i64, range.len() as i64)
    }

    /// Masks triplets in place: their lambda becomes 0; of LoRA's doublets, which have none, both rows do. `masked` is a
    /// Bool tensor, `(triplets,)`.
    ///
    /// A masked doublet is dead: the task's gradient of either row has the other as a factor. That of lambda has only
    /// `P` and `Q`, which stay, so that a masked triplet may come back.
    pub fn mask(&self, entries: &Tensor, masked: &Tensor) {
        match self.form {
            Form::Svd => selection::mask(&mut self.lambda(entries), masked),
            Form::Lora => clear(&mut entries.shallow_clone(), &self.rows, masked),
        }
    }

    /// Triplets that are not masked as [`mask`](Self::mask) does it. Waits for the device.
    pub fn unmasked(&self, entries: &Tensor) -> usize {
        let size = match self.form {
            Form::Svd => self.lambda(entries),
            Form::Lora => self.triplet_mean(&entries.abs()),
        };
        size.ne(0.0).sum(Kind::Int64).int64_value(&[]) as usize
    }

    /// For each triplet the mean over its `Q` row plus the mean over its `P` row, plus its lambda entry:
    /// AdaLoRA (2023), equation 7, summed in the order of the authors' code. `(triplets,)`.
    pub fn triplet_mean(&self, entries: &Tensor) -> Tensor {
        triplets::mean(entries, &self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ragged(form: Form) -> Layout {
        let site = |path: &str, d_in, d_out, rank| Site { path: path.into(), d_in, d_out, rank };
        Layout::new(form, vec![site("a", 2, 3, 2), site("b", 4, 1, 0), site("c", 1, 2, 1)])
    }

    #[test]
    fn triplet_mean_of_ragged_ranks() {
        let layout = ragged(Form::Svd);
        assert_eq!((layout.entries(), layout.triplet_count()), (16, 3));
        let entries = Tensor::from_slice(&(0..16).map(|i| i as f32).collect::<Vec<_>>());
        // Adapter a: Q = [[0,1],[2,3]], P = [[4,5,6],[7,8,9]]; c: Q = [[10]], P = [[11,12]]; lambda = [13,14,15].
        let means = Vec::<f32>::try_from(layout.triplet_mean(&entries)).unwrap();
        assert_eq!(means, [0.5 + 5.0 + 13.0, 2.5 + 8.0 + 14.0, 10.0 + 11.5 + 15.0]);
        let without_lambda = Vec::<f32>::try_from(ragged(Form::Lora).triplet_mean(&entries)).unwrap();
        assert_eq!(without_lambda, [5.5, 10.5, 21.5]);
    }

    #[test]
    fn a_masked_triplet_loses_lambda_and_a_doublet_both_rows() {
        let masked = Tensor::from_slice(&[false, true, false]);
        for (form, zeros) in [(Form::Svd, vec![14]), (Form::Lora, vec![2, 3, 7, 8, 9])] {
            let layout = ragged(form);
            let entries = Tensor::ones([layout.entries() as i64], (Kind::Float, tch::Device::Cpu));
            assert_eq!(layout.unmasked(&entries), 3);
            layout.mask(&entries, &masked);
            let values = Vec::<f32>::try_from(&entries).unwrap();
            let found: Vec<_> = (0..values.len()).filter(|&i| values[i] == 0.0).collect();
            assert_eq!((found, layout.unmasked(&entries)), (zeros, 2), "{form:?}");
        }
    }

    #[test]
    fn views_share_the_buffer() {
        let layout = ragged(Form::Svd);
        let entries = Tensor::zeros([16], (Kind::Float, tch::Device::Cpu));
        let _ = layout.triplets(&entries, 2).p.fill_(1.0);
        let _ = layout.triplets(&entries, 0).lambda.unwrap().fill_(2.0);
        let values = Vec::<f32>::try_from(&entries).unwrap();
        assert_eq!(values[11..], [1.0, 1.0, 2.0, 2.0, 0.0]);
    }
}
