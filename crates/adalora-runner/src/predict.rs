//! What a finished run says of texts.

use std::path::Path;

use adalora_tasks::{Batch, Catalogue, Target, Texts, dev_order};
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use tch::Device;

use crate::experiment::TaskSpec;
use crate::finished::FinishedRun;
use crate::trainer::input;

/// How predictions are written, a line for each text in the order of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Columns with a header: the class and each class's probability, or the scores.
    Tsv,
    /// An object a line, with the logits too.
    JsonLines,
}

/// What a model says of texts, in their order.
#[derive(Debug)]
pub struct Predictions {
    target: Target,
    /// Of each text a logit for each class, or its scores.
    rows: Vec<Vec<f32>>,
    /// Texts that were longer than the run's `max_length`.
    pub truncated: usize,
}

/// What `run` says of `texts`: one a line, or two with a tab between where the task has pairs. `adapter` replaces the
/// run's own.
///
/// # Errors
///
/// Lines that are no pairs; files that are missing.
pub fn predict(
    run: &FinishedRun,
    adapter: Option<&Path>,
    catalogue: &Catalogue,
    texts: &str,
    device: Device,
) -> Result<Predictions> {
    let spec = run.spec();
    let (target, per_row) = run.target(catalogue)?;
    let Some(TaskSpec::Text(task)) = &spec.task else { bail!("a task without texts has no target") };
    let checkpoint = run.checkpoint(catalogue)?;
    let Texts { examples, truncated, pad_id } = Texts::read(texts, &checkpoint, task.max_length, per_row)?;
    tch::set_num_threads(spec.train.threads as i32);
    let model = run.model(adapter, catalogue, target.outputs(), device)?;
    let mut rows = vec![Vec::new(); examples.len()];
    // As on the dev set in training, so that the same texts give the same numbers.
    for indices in dev_order(&examples, spec.train.batch_size) {
        let batch = Batch::collate(&examples, &indices, pad_id);
        let logits = model.logits(&input(&batch, device));
        let values = Vec::<f32>::try_from(logits.view(-1)).expect("a flat f32 tensor");
        for (&index, values) in indices.iter().zip(values.chunks(target.outputs())) {
            rows[index] = values.to_vec();
        }
    }
    Ok(Predictions { target, rows, truncated })
}

impl Predictions {
    /// Of each text a logit for each class, or its scores.
    pub fn rows(&self) -> &[Vec<f32>] {
        &self.rows
    }

    /// As text.
    pub fn write(&self, output: Output) -> String {
        let lines = self.rows.iter().map(|row| match output {
            Output::Tsv => self.tsv(row),
            Output::JsonLines => self.json(row).to_string(),
        });
        let header = (output == Output::Tsv).then(|| self.header());
        header.into_iter().chain(lines).map(|line| line + "\n").collect()
    }

    fn header(&self) -> String {
        match &self.target {
            Target::Classes(names) => format!("class\t{}", names.join("\t")),
            Target::Scores { width: 1 } => "score".into(),
            Target::Scores { width } => {
                (1..=*width).map(|number| format!("score-{number}")).collect::<Vec<_>>().join("\t")
            }
        }
    }

    fn tsv(&self, row: &[f32]) -> String {
        let joined = |row: &[f32]| row.iter().map(ToString::to_string).collect::<Vec<_>>().join("\t");
        match &self.target {
            Target::Classes(names) => format!("{}\t{}", names[largest(row)], joined(&probabilities(row))),
            Target::Scores { .. } => joined(row),
        }
    }

    fn json(&self, row: &[f32]) -> Value {
        match &self.target {
            Target::Classes(names) => {
                let each = |row: &[f32]| {
                    let pairs = names.iter().cloned().zip(row.iter().map(|&value| json!(value)));
                    pairs.collect::<Map<_, _>>()
                };
                let probabilities = each(&probabilities(row));
                json!({ "class": names[largest(row)], "probabilities": probabilities, "logits": each(row) })
            }
            Target::Scores { .. } => json!({ "scores": row }),
        }
    }
}

/// Softmax.
fn probabilities(logits: &[f32]) -> Vec<f32> {
    let most = f64::from(logits[largest(logits)]);
    let parts: Vec<_> = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).collect();
    let sum: f64 = parts.iter().sum();
    parts.iter().map(|part| (part / sum) as f32).collect()
}

/// The first place of the largest value, as libtorch's `argmax` finds it on the CPU.
fn largest(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, place| if row[place] > row[best] { place } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_text() {
        let target = Target::Classes(vec!["bad".into(), "good".into()]);
        // 1 / (1 + e) = 0.26894142
        let classes = Predictions { target, rows: vec![vec![-0.5, 0.5], vec![2.0, 2.0]], truncated: 0 };
        assert_eq!(
            classes.write(Output::Tsv),
            "class\tbad\tgood\ngood\t0.26894143\t0.7310586\nbad\t0.5\t0.5\n"
        );
        assert_eq!(
            classes.write(Output::JsonLines).lines().nth(1).unwrap(),
            r#"{"class":"bad","logits":{"bad":2.0,"good":2.0},"probabilities":{"bad":0.5,"good":0.5}}"#
        );
        let scores = Predictions { target: Target::Scores { width: 1 }, rows: vec![vec![3.5]], truncated: 0 };
        assert_eq!(scores.write(Output::Tsv), "score\n3.5\n");
        assert_eq!(scores.write(Output::JsonLines), "{\"scores\":[3.5]}\n");
    }
}
