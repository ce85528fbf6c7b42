//! Shapes and models that the benches share, and a comparison that criterion lacks.

pub mod step;

use std::time::Instant;

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

/// Runs the passes one after another, 300 times over, and gives the median time of each in milliseconds.
///
/// Criterion times one pass for seconds and then the next, so that their ratio holds on a quiet machine only.
pub fn medians_in_turn<const N: usize>(mut passes: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut times = passes.each_ref().map(|_| Vec::new());
    for _ in 0..300 {
        for (pass, times) in passes.iter_mut().zip(&mut times) {
            let start = Instant::now();
            pass();
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.map(|mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}
