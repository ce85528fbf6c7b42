//! Shapes and models that the benches share.

pub mod step;

use adalora_adapter::{Form, Layout, Site};

/// The 72 adapters of DeBERTaV3-base at rank `rank`: six linear layers in each of twelve blocks.
pub fn deberta_base(rank: usize) -> Layout {
    let block = [(768, 768), (768, 768), (768, 768), (768, 768), (768, 3072), (3072, 768)];
    let sites = (0..12).flat_map(|layer| {
        block.iter().enumerate().map(move |(i, &(d_in, d_out))| Site {
            path: format!("encoder.layer.{layer}.{i}"),
            d_in,
            d_out,
            rank,
        })
    });
    Layout::new(Form::Svd, sites.collect())
}
