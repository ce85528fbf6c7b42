//! The decoder one token at a time, with the keys and values of what came before kept.

use adalora_adapter::Linear;
use tch::{Device, Tensor};

use super::{Bart, DecoderBlock, Encoded, join, split};
use crate::bert::attention;

/// Where the decoding of a batch stands. Its rows are `beams` for each item, items one after another.
///
/// What is known of a source is kept once for all beams of its item: these are queries of one sequence to it.
pub(crate) struct Decoding<'a> {
    bart: &'a Bart,
    beams: i64,
    /// Tokens before the coming one.
    length: i64,
    /// Keys and values of each block, `(rows, heads, capacity, size)`, of which `length` are there.
    own: Vec<[Tensor; 2]>,
    /// Keys and values of the source for each block, `(items, heads, width, size)`.
    cross: Vec<[Tensor; 2]>,
    /// `(items, 1, 1, width)`.
    mask: Option<Tensor>,
}

impl<'a> Decoding<'a> {
    /// Before the first token, with place for `capacity` of them.
    pub(crate) fn new(bart: &'a Bart, encoded: &Encoded, beams: usize, capacity: usize) -> Self {
        let (items, _, hidden) = encoded.hidden.size3().expect("hidden states have three dimensions");
        let (beams, heads) = (beams as i64, bart.decoder.heads);
        let shape = [items * beams, heads, capacity as i64, hidden / heads];
        let options = (encoded.hidden.kind(), encoded.hidden.device());
        let blocks = bart.decoder_blocks.iter();
        Self {
            bart,
            beams,
            length: 0,
            own: blocks.clone().map(|_| [(); 2].map(|()| Tensor::empty(shape, options))).collect(),
            cross: blocks
                .map(|block| block.cross.of_source(encoded, heads).map(|y| y.contiguous()))
                .collect(),
            mask: encoded.mask.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// Logits of the token after these, `(rows, vocabulary)`, f32; there is one for each row.
    pub(crate) fn step(&mut self, tokens: &[i64]) -> Tensor {
        let Bart { decoder, decoder_blocks, .. } = self.bart;
        let rows = tokens.len() as i64;
        let tokens = Tensor::from_slice(tokens).view([rows, 1]).to(self.device());
        let mut hidden = self.bart.embed(decoder, &tokens, self.length, None);
        let width = self.length + 1;
        let blocks = decoder_blocks.iter().zip(&self.own).zip(&self.cross);
        for ((DecoderBlock { own, cross, feed_forward }, kept), source) in blocks {
            let [query, key, value] = Linear::forward_together([&own.query, &own.key, &own.value], &hidden)
                .map(|y| split(&y, decoder.heads));
            let [keys, values] = [(0, key), (1, value)].map(|(part, new)| {
                kept[part].narrow(2, self.length, 1).copy_(&new);
                kept[part].narrow(2, 0, width)
            });
            let context = join(&attention(&query, &keys, &values, None, None));
            hidden = self.bart.add(own, &hidden, &context, None);

            let size = hidden.size()[2];
            let beams = cross.query.forward(&hidden).view([rows / self.beams, self.beams, size]);
            let query = split(&beams, decoder.heads);
            let context = join(&attention(&query, &source[0], &source[1], self.mask.as_ref(), None));
            hidden = self.bart.add(cross, &hidden, &context.view([rows, 1, size]), None);
            hidden = self.bart.feed_forward(feed_forward, &hidden, None);
        }
        self.length = width;
        self.bart.logits(&hidden.squeeze_dim(1))
    }

    /// Goes on with these rows in the place of all: `rows` names one for each beam of each of `items`, which are in
    /// increasing order and without those that are finished.
    pub(crate) fn keep(&mut self, items: &[i64], rows: &[i64]) {
        let device = self.device();
        let index = |values: &[i64]| Tensor::from_slice(values).to(device);
        let (before, after) = (self.own[0][0].size()[0], rows.len() as i64);
        if after == before && rows.iter().enumerate().all(|(at, &row)| at as i64 == row) {
            return;
        }
        let chosen = index(rows);
        for part in self.own.iter_mut().flatten() {
            let kept = part.narrow(2, 0, self.length).index_select(0, &chosen);
            *part = part.narrow(0, 0, after);
            part.narrow(2, 0, self.length).copy_(&kept);
        }
        if items.len() as i64 * self.beams < before {
            let chosen = index(items);
            for part in self.cross.iter_mut().flatten() {
                *part = part.index_select(0, &chosen);
            }
            self.mask = self.mask.as_ref().map(|mask| mask.index_select(0, &chosen));
        }
    }

    fn device(&self) -> Device {
        self.cross[0][0].device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, BartConfig, Checkpoint, Source};

    fn bart() -> Bart {
        let config = BartConfig {
            vocab_size: 31,
            d_model: 12,
            encoder_layers: 1,
            decoder_layers: 2,
            encoder_attention_heads: 2,
            decoder_attention_heads: 3,
            encoder_ffn_dim: 9,
            decoder_ffn_dim: 11,
            max_position_embeddings: 16,
            activation_function: Activation::Gelu,
            dropout: 0.1,
            attention_dropout: 0.1,
            activation_dropout: 0.0,
            scale_embedding: false,
            init_std: 0.5,
            pad_token_id: 1,
            bos_token_id: 0,
            eos_token_id: 2,
            decoder_start_token_id: 2,
        };
        let checkpoint = Checkpoint::untrained(config, 3);
        Bart::of(&checkpoint, None, Device::Cpu)
    }

    /// Rows change places and items leave: the logits are those of the whole sequences.
    #[test]
    fn token_by_token_as_all_at_once() {
        let bart = bart();
        let ids = Tensor::from_slice(&[0_i64, 7, 9, 2, 0, 5, 2, 1, 0, 2, 1, 1]).view([3, 4]);
        let mask = ids.ne(1);
        let source = |items: &[i64]| {
            let index = Tensor::from_slice(items);
            Source { ids: ids.index_select(0, &index), mask: Some(mask.index_select(0, &index)) }
        };
        let mut decoding = Decoding::new(&bart, &bart.encode(&source(&[0, 1, 2]), None), 2, 6);
        let mut histories = vec![vec![2]; 6];
        let (mut items, mut next) = (vec![0, 1, 2], 3);
        let keeps: [(&[i64], &[i64]); 5] = [
            (&[0, 1, 2], &[0, 1, 2, 3, 4, 5]),
            (&[0, 1, 2], &[1, 1, 3, 2, 4, 4]),
            (&[0, 2], &[1, 0, 5, 4]),
            (&[0, 1], &[0, 1, 3, 2]),
            (&[1], &[3, 2]),
        ];
        for (kept, rows) in keeps {
            let last: Vec<i64> =
                histories.iter().map(|history: &Vec<i64>| history[history.len() - 1]).collect();
            let logits = decoding.step(&last);
            let tokens = Tensor::from_slice(&histories.concat()).view([histories.len() as i64, -1]);
            let twice: Vec<i64> = items.iter().flat_map(|&item| [item, item]).collect();
            let whole = bart.forward(&source(&twice), &tokens, None);
            let whole = whole.select(1, whole.size()[1] - 1);
            let difference = (logits - &whole).abs().max().double_value(&[]);
            assert!(difference < 1e-5 * whole.abs().max().double_value(&[]), "{difference}");

            decoding.keep(kept, rows);
            items = kept.iter().map(|&item| items[item as usize]).collect();
            histories = rows.iter().map(|&row| histories[row as usize].clone()).collect();
            for history in &mut histories {
                history.push(next);
                next = 3 + (next * 5) % 27;
            }
        }
    }
}
