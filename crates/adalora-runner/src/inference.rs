//! What a model says of examples, and what it costs.

use adalora_kernels::dropout::Dropout;
use adalora_models::{Generation, Input, Loss, Model, Source};
use adalora_tasks::{Batch, Example, Labels, Said, SpanLogits, dev_order};
use tch::{Device, Kind, Tensor};

/// A batch as an encoder takes it.
pub(crate) fn input(batch: &Batch, device: Device) -> Input {
    let shape = [batch.rows as i64, batch.width as i64];
    let padded = batch.mask.iter().any(|token| !token);
    Input {
        ids: Tensor::from_slice(&batch.ids).view(shape).to(device),
        type_ids: Tensor::from_slice(&batch.type_ids).view(shape).to(device),
        mask: padded.then(|| Tensor::from_slice(&batch.mask).view(shape).to(device)),
    }
}

/// The documents of a batch.
pub(crate) fn source(batch: &Batch, device: Device) -> Source {
    let Input { ids, mask, .. } = input(batch, device);
    Source { ids, mask }
}

/// Loss summed over the [units](Labels::units) of a batch, and the logits. `smoothing` is that of the labels, where a text
/// is written.
///
/// # Panics
///
/// If the batch is for another kind of model.
pub(crate) fn loss(
    model: &Model,
    batch: &Batch,
    smoothing: f64,
    device: Device,
    dropout: Option<&Dropout>,
) -> (Tensor, Tensor) {
    let matrix =
        |values: &[i64], width: usize| Tensor::from_slice(values).view([-1, width as i64]).to(device);
    let (logits, loss) = match (model, &batch.labels) {
        (Model::Classifier(encoder, head), labels) => {
            let logits = head.forward(&encoder.forward(&input(batch, device), dropout), dropout);
            let loss = match labels {
                Labels::Classes(classes) => Loss::Classes(Tensor::from_slice(classes).to(device)),
                Labels::Scores { width, values } => {
                    Loss::Scores(Tensor::from_slice(values).view([-1, *width as i64]).to(device))
                }
                other => panic!("a classifier has classes or scores, not {other:?}"),
            };
            (logits, loss)
        }
        (Model::Reader(encoder, head), Labels::Spans(spans)) => {
            let input = input(batch, device);
            let logits = head.forward(&encoder.forward(&input, dropout), input.mask.as_ref());
            (logits, Loss::Spans(matrix(spans.as_flattened(), 2)))
        }
        (Model::Writer(bart), Labels::Texts { width, tokens }) => {
            let labels = matrix(tokens, *width);
            let logits = bart.forward(&source(batch, device), &bart.decoder_tokens(&labels), dropout);
            (logits, Loss::Tokens { labels, smoothing })
        }
        (model, labels) => panic!("{labels:?} are nothing for {model:?}"),
    };
    (loss.sum(&logits), logits)
}

/// Mean loss over examples, and what the model says of each, in their order.
pub(crate) fn evaluate(
    model: &Model,
    examples: &[Example],
    (batch_size, pad_id): (usize, u32),
    (smoothing, generation): (f64, Option<&Generation>),
    device: Device,
) -> (f64, Said) {
    let _guard = tch::no_grad_guard();
    let order = dev_order(examples, batch_size);
    let (mut sum, mut units) = (0.0, 0);
    let (mut classes, mut scores, mut spans, mut texts) = (vec![], vec![], vec![], vec![]);
    for indices in &order {
        let batch = Batch::collate(examples, indices, pad_id);
        let (loss, logits) = loss(model, &batch, smoothing, device, None);
        sum += loss.double_value(&[]);
        units += batch.labels.units();
        match (model, &batch.labels) {
            (_, Labels::Classes(_)) => {
                classes.extend(Vec::<i64>::try_from(logits.argmax(1, false)).expect("a class for each row"))
            }
            (_, Labels::Scores { .. }) => scores.extend(rows(&logits)),
            (_, Labels::Spans(_)) => {
                let [starts, ends] = [0, 1].map(|side| rows(&logits.select(2, side)));
                spans.extend(starts.into_iter().zip(ends).map(|(starts, ends)| SpanLogits { starts, ends }));
            }
            (Model::Writer(bart), Labels::Texts { .. }) => {
                let how = generation.expect("a task of writing says how");
                texts.extend(bart.generate(&source(&batch, device), how));
            }
            (model, Labels::Texts { .. }) => panic!("{model:?} writes nothing"),
        }
    }
    let places = order.concat();
    let said = match Labels::of(examples) {
        Labels::Classes(_) => Said::Labels(Labels::Classes(in_place(classes, &places))),
        Labels::Scores { width, .. } => {
            Said::Labels(Labels::Scores { width, values: in_place(scores, &places).concat() })
        }
        Labels::Spans(_) => Said::Spans(in_place(spans, &places)),
        Labels::Texts { .. } => Said::Texts(in_place(texts, &places)),
    };
    (sum / units as f64, said)
}

/// The rows of a matrix, as f32.
pub(crate) fn rows(matrix: &Tensor) -> Vec<Vec<f32>> {
    let width = matrix.size()[1] as usize;
    let values = Vec::<f32>::try_from(matrix.to_kind(Kind::Float).contiguous().view(-1));
    values.expect("a flat f32 tensor").chunks(width).map(<[f32]>::to_vec).collect()
}

/// Puts what came in the order of `places` where it belongs.
pub(crate) fn in_place<T>(came: Vec<T>, places: &[usize]) -> Vec<T> {
    let mut all: Vec<_> = places.iter().zip(came).collect();
    all.sort_by_key(|(place, _)| **place);
    all.into_iter().map(|(_, one)| one).collect()
}
