//! Relative positions of DeBERTa: log buckets, and the attention scores that depend on them.

use tch::Tensor;

use crate::DebertaConfig;
use crate::bert::LayerNorm;

/// Rows of the scores that are computed together. Columns that no score needs are one for each of these rows; a
/// smaller block has fewer of them, but smaller products too.
const BLOCK: i64 = 64;

/// The bucket of a distance, query minus key.
///
/// Distances up to `mid = buckets / 2` on either side are told apart. Beyond, buckets widen with the logarithm, so
/// that distance `furthest - 1` is in bucket `buckets - 1`:
///
/// `mid + ceil(ln(distance / mid) / ln((furthest - 1) / mid) * (mid - 1))`
///
/// He et al. (2020, 2021), by `transformers`' `make_log_bucket_position`. In f32 as there: with 7 buckets up to 19
/// distance 648 is 9 buckets away in f32 and 10 in f64.
pub(crate) fn bucket(distance: i64, buckets: i64, furthest: i64) -> i64 {
    let mid = buckets / 2;
    if distance.abs() <= mid {
        return distance;
    }
    let ratio = distance.abs() as f32 / mid as f32;
    let largest = ((furthest - 1) as f64 / mid as f64) as f32;
    let beyond = (ratio.ln() / largest.ln() * (mid - 1) as f32).ceil();
    distance.signum() * (beyond + mid as f32) as i64
}

/// The embeddings of all buckets.
#[derive(Debug)]
pub(crate) struct RelativePositions {
    buckets: i64,
    furthest: i64,
    /// `(2 * buckets, hidden)`, normalised but for `norm`.
    embeddings: Tensor,
    /// What normalises them, if that changes while the encoder is trained.
    norm: Option<LayerNorm>,
}

/// What of them sequences of one width need.
#[derive(Debug)]
pub(crate) struct Window {
    /// Embeddings of the buckets that occur, `(buckets, hidden)`.
    pub(crate) embeddings: Tensor,
    /// Rows of these for [`scores`] of queries.
    pub(crate) of_queries: Tensor,
    /// The same for [`scores`] of keys.
    pub(crate) of_keys: Tensor,
}

impl RelativePositions {
    /// From the table of a checkpoint, which `norm` normalises.
    pub(crate) fn new(config: &DebertaConfig, table: Tensor, norm: LayerNorm) -> Self {
        let (buckets, furthest) = (config.position_buckets, config.furthest());
        if table.requires_grad() || norm.is_trained() {
            Self { buckets, furthest, embeddings: table, norm: Some(norm) }
        } else {
            Self { buckets, furthest, embeddings: norm.forward(&table), norm: None }
        }
    }

    /// The row of a distance: what is further than the last bucket is in the last one.
    fn row(&self, distance: i64) -> i64 {
        let row = bucket(distance, self.buckets, self.furthest) + self.buckets;
        row.clamp(0, 2 * self.buckets - 1)
    }

    pub(crate) fn window(&self, width: i64) -> Window {
        let furthest = width - 1;
        let (first, last) = (self.row(-furthest), self.row(furthest));
        let rows: Vec<i64> =
            (-furthest..=width).map(|distance| self.row(distance.min(furthest)) - first).collect();
        let reversed: Vec<i64> =
            (-furthest..=width).map(|distance| self.row((-distance).max(-furthest)) - first).collect();
        let device = self.embeddings.device();
        let occurring = self.embeddings.narrow(0, first, last - first + 1);
        Window {
            embeddings: match &self.norm {
                Some(norm) => norm.forward(&occurring),
                None => occurring,
            },
            of_queries: Tensor::from_slice(&reversed).to(device),
            of_keys: Tensor::from_slice(&rows).to(device),
        }
    }
}

/// Products of every token with the position of every other one relative to it, `(heads * rows, width, width)`.
///
/// `tokens` is `(heads, rows, width, size)`, `positions` is `(buckets, heads * size)`. Token `x` meets the position
/// of token `y` in row `index[y - x + width - 1]` of `positions`; `index` has `2 * width` entries, of which the last
/// is there only because an even number of columns multiplies faster.
///
/// `transformers` multiplies with all buckets and gathers. Here a row of the product has one column for each
/// *difference* `y - x`, so that the scores are a view of it whose rows begin one column further left each time.
pub(crate) fn scores(tokens: &Tensor, positions: &Tensor, index: &Tensor) -> Tensor {
    let (heads, rows, width, size) = tokens.size4().expect("tokens have four dimensions");
    // Not `index_select`: the gradient of an embedding is summed in a fixed order on every device.
    let positions = Tensor::embedding(positions, index, -1, false, false);
    let positions = positions.view([2 * width, heads, size]).permute([1, 2, 0]);
    let blocks = (0..width).step_by(BLOCK as usize).map(|start| {
        let block = BLOCK.min(width - start);
        let columns = width + block;
        let product = tokens
            .narrow(2, start, block)
            .reshape([heads, rows * block, size])
            .bmm(&positions.narrow(2, width - start - block, columns));
        product.as_strided([heads * rows, block, width], [block * columns, columns - 1, 1], block - 1)
    });
    let mut blocks: Vec<_> = blocks.collect();
    if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(&blocks, 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adalora_adapter::random::Random;
    use serde::Deserialize;
    use tch::Kind;

    #[derive(Deserialize)]
    struct Recorded {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        buckets: i64,
        furthest: i64,
        /// Distances from 0 on that were recorded.
        distances: i64,
        /// The first distance in each bucket, and the bucket.
        first: Vec<i64>,
        bucket: Vec<i64>,
    }

    /// By `transformers`: see `reference/deberta.py`.
    #[test]
    fn buckets_of_all_distances() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values/deberta-buckets.json");
        let recorded: Recorded = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(recorded.cases.iter().any(|case| (case.buckets, case.furthest) == (256, 512)));
        for Case { buckets, furthest, distances, first, bucket: expected } in recorded.cases {
            for distance in 0..distances {
                let last = first.partition_point(|&first| first <= distance) - 1;
                let found = bucket(distance, buckets, furthest);
                assert_eq!(found, expected[last], "distance {distance}, {buckets} buckets up to {furthest}");
                assert_eq!(bucket(-distance, buckets, furthest), -found);
            }
        }
    }

    /// The same with all buckets and a gather, as the definition has it.
    fn plain_scores(
        table: &RelativePositions,
        tokens: &Tensor,
        positions: &Tensor,
        of_queries: bool,
    ) -> Tensor {
        let (heads, rows, width, size) = tokens.size4().unwrap();
        let positions = positions.view([-1, heads, size]).permute([1, 2, 0]).unsqueeze(1);
        let places: Vec<i64> = (0..width)
            .flat_map(|token| {
                (0..width).map(move |other| if of_queries { token - other } else { other - token })
            })
            .map(|distance| table.row(distance))
            .collect();
        let places = Tensor::from_slice(&places).view([width, width]);
        let places = places.expand([heads, rows, width, width], false);
        tokens.matmul(&positions).gather(-1, &places, false).view([heads * rows, width, width])
    }

    #[test]
    fn scores_and_gradients_are_those_of_a_gather() {
        let (heads, rows, size) = (3, 2, 5);
        let mut random = Random::new(3, "scores");
        for (width, buckets, furthest) in
            [1, 2, 7, 63, 64, 65, 131, 200].into_iter().flat_map(|width| [(width, 9, 14), (width, 64, 140)])
        {
            let table = RelativePositions {
                buckets,
                furthest,
                embeddings: random.normal(&[2 * buckets, heads * size], 1.0),
                norm: None,
            };
            let window = table.window(width);
            let first = table.row(1 - width);
            for (of_queries, index) in [(true, &window.of_queries), (false, &window.of_keys)] {
                let tokens = random.normal(&[heads, rows, width, size], 1.0).set_requires_grad(true);
                let positions = table.embeddings.copy().set_requires_grad(true);
                let occurring = positions.narrow(0, first, window.embeddings.size()[0]);
                assert_eq!(occurring, window.embeddings);
                let cotangent = random.normal(&[heads * rows, width, width], 1.0);
                let mut results = Vec::new();
                for scores in [
                    scores(&tokens, &occurring, index),
                    plain_scores(&table, &tokens, &positions, of_queries),
                ] {
                    let loss = (&scores * &cotangent).sum(Kind::Float);
                    let gradients = Tensor::run_backward(&[loss], &[&tokens, &positions], true, false);
                    results.push((scores, gradients));
                }
                let [(own, own_gradients), (plain, plain_gradients)] = &results[..] else { unreachable!() };
                let pairs = own_gradients.iter().zip(plain_gradients).chain([(own, plain)]);
                for (own, plain) in pairs {
                    let worst = ((own - plain).abs().max() / plain.abs().max()).double_value(&[]);
                    assert!(worst < 1e-5, "width {width}, {buckets} buckets: {worst:e}");
                }
            }
        }
    }
}
