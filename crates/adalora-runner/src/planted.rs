//! A task whose answer is known: a teacher that differs from the frozen encoder by increments of known rank in known
//! layers. Importance that works puts the ranks there.

use adalora_models::{BertConfig, Checkpoint, Encoder, Head, Input, ModelConfig};
use adalora_tasks::{Dataset, DevSet, Evaluation, Example, Label, Target};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::experiment::{Planted, RandomEncoder};

/// Tokens 0 and 1 are padding and the start of a sequence.
const FIRST_WORD: u32 = 2;

/// The configuration of `[model.random]`. There is no dropout: the teacher has none.
pub fn config(encoder: &RandomEncoder, length: usize) -> ModelConfig {
    ModelConfig::Bert(BertConfig {
        vocab_size: encoder.vocabulary,
        hidden_size: encoder.hidden,
        num_hidden_layers: encoder.layers,
        num_attention_heads: encoder.heads,
        intermediate_size: encoder.intermediate,
        max_position_embeddings: length,
        type_vocab_size: 1,
        layer_norm_eps: 1e-12,
        hidden_act: adalora_models::Activation::Gelu,
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        classifier_dropout: None,
        initializer_range: 0.02,
    })
}

/// Sequences of random tokens, each with what the teacher says of it, and the checkpoint that training starts from:
/// `encoder`, with the teacher's head. `paths` are the layers that differ in the teacher. What it says is standardised
/// over the training sequences, output by output, so that a loss of 1 means nothing is known.
pub fn task(encoder: Checkpoint, paths: &[String], spec: &Planted) -> (Checkpoint, Dataset) {
    let _guard = tch::no_grad_guard();
    let mut random = ChaCha8Rng::seed_from_u64(spec.seed);
    let words = FIRST_WORD..encoder.config().vocab_size() as u32;
    let mut sequences = |rows: usize| -> Vec<Vec<u32>> {
        let mut words = || random.random_range(words.clone());
        (0..rows).map(|_| std::iter::once(1).chain((1..spec.length).map(|_| words())).collect()).collect()
    };
    let (train, dev) = (sequences(spec.train_rows), sequences(spec.dev_rows));

    let increments =
        |checkpoint: &Checkpoint| checkpoint.with_increments(paths, spec.rank, spec.strength, spec.seed);
    let raw = answers(&increments(&encoder), &train, spec);
    let student =
        encoder.with_standard_outputs(&raw.mean_dim(0, false, Kind::Float), &raw.std_dim(0, true, false));
    let teacher = increments(&student);
    let examples = |sequences: Vec<Vec<u32>>| -> Vec<Example> {
        let scores = answers(&teacher, &sequences, spec);
        let rows = scores.size()[0];
        let scores = (0..rows).map(|row| Vec::<f32>::try_from(scores.get(row)).expect("a row of f32"));
        let labelled = sequences.into_iter().zip(scores);
        labelled
            .map(|(ids, scores)| Example { type_ids: vec![0; ids.len()], ids, label: Label::Scores(scores) })
            .collect()
    };
    let (train, dev) = (examples(train), examples(dev));
    let dataset = Dataset {
        name: "planted".into(),
        train_available: train.len(),
        train: train.into(),
        dev: vec![DevSet::only(dev)],
        target: Target::Scores { width: spec.outputs },
        evaluation: vec![Evaluation::R2],
        notes: Vec::new(),
        pad_id: 0,
        files: Vec::new(),
    };
    (student, dataset)
}

/// Logits of a checkpoint, `(rows, outputs)`.
fn answers(checkpoint: &Checkpoint, sequences: &[Vec<u32>], spec: &Planted) -> Tensor {
    let encoder = Encoder::new(checkpoint, None, Device::Cpu);
    let extras = Head::start(checkpoint, spec.outputs, spec.seed).extras;
    let layout = adalora::Layout::new(adalora::Form::Svd, Vec::new());
    let arena = adalora::Arena::new(layout, extras, Device::Cpu, spec.seed);
    let head = Head::new(checkpoint.config(), &arena, 0.0);
    let batches = sequences.chunks(256).map(|chunk| {
        let ids: Vec<i64> = chunk.iter().flatten().map(|&id| i64::from(id)).collect();
        let ids = Tensor::from_slice(&ids).view([chunk.len() as i64, spec.length as i64]);
        let input = Input { type_ids: ids.zeros_like(), ids, mask: None };
        head.forward(&encoder.forward(&input, None), None)
    });
    Tensor::cat(&batches.collect::<Vec<_>>(), 0)
}
