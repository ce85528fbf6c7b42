//! What a finished run says of texts.

use std::path::Path;

use adalora_models::Model;
use adalora_tasks::{Batch, Catalogue, DataFormat, Questions, Said, Target, Texts, dev_order};
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use tch::Device;

use crate::experiment::TaskSpec;
use crate::finished::FinishedRun;
use crate::inference;

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
    said: Words,
    /// What a user should know of the texts: how many lost their end.
    pub notes: Vec<String>,
}

#[derive(Debug)]
enum Words {
    /// Of each text a logit for each class, or its scores.
    Rows(Vec<Vec<f32>>),
    /// Answers or summaries.
    Texts(Vec<String>),
}

/// What `run` says of `texts`, one a line: a text, or two with a tab between where the task has pairs; a question and a
/// paragraph with a tab between; a document. `adapter` replaces the run's own.
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
    let format = run.data(catalogue)?;
    let checkpoint = run.checkpoint(catalogue)?;
    let batch_size = spec.train.batch_size;
    tch::set_num_threads(spec.train.threads as i32);
    let model = || run.model(adapter, catalogue, device);
    let Some(task) = &spec.task else { bail!("without a task there is no data") };
    let (said, notes) = match (task, &format) {
        (TaskSpec::Text(task), DataFormat::Table(table)) => {
            let texts = Texts::read(texts, &checkpoint, task.max_length, table.text_columns())?;
            let rows = |batch: &Batch, model: &Model| {
                inference::rows(&inference::loss(model, batch, 0.0, device, None).1)
            };
            (Words::Rows(each(&texts, &model()?, batch_size, rows)), texts.notes("task.text.max_length"))
        }
        (TaskSpec::Summaries(task), _) => {
            let texts = Texts::read(texts, &checkpoint, task.max_document, 1)?;
            let write = |batch: &Batch, model: &Model| match model {
                Model::Writer(bart) => bart.generate(&inference::source(batch, device), &task.generation),
                _ => unreachable!("summaries are written"),
            };
            let tokens = each(&texts, &model()?, batch_size, write);
            let said = tokens.iter().map(|tokens| texts.text(tokens)).collect::<Result<_, _>>()?;
            (Words::Texts(said), texts.notes("task.summaries.max_document"))
        }
        (TaskSpec::Questions(task), DataFormat::Squad(squad)) => {
            let asked = Questions::ask(texts, task, squad.version(), &checkpoint)?;
            let batches = (batch_size, asked.pad_id);
            let (_, said) = inference::evaluate(&model()?, &asked.examples, batches, (0.0, None), device);
            let Said::Spans(logits) = said else { unreachable!("answers are spans") };
            let found = asked.decode(&logits, &task.decoding());
            let answers = (0..found.len()).map(|place| asked.answer(place, &found[place], 0.0).to_owned());
            (Words::Texts(answers.collect()), Vec::new())
        }
        (task, _) => bail!("{} is no data set for [task.{}]", task.data().unwrap_or_default(), task.name()),
    };
    Ok(Predictions { target: format.target(), said, notes })
}

/// What a model says of each text, batch by batch as on the dev set in training, so that the same texts give the same
/// numbers.
fn each<T>(
    texts: &Texts,
    model: &Model,
    batch_size: usize,
    say: impl Fn(&Batch, &Model) -> Vec<T>,
) -> Vec<T> {
    let _guard = tch::no_grad_guard();
    let order = dev_order(&texts.examples, batch_size);
    let said =
        order.iter().flat_map(|indices| say(&Batch::collate(&texts.examples, indices, texts.pad_id), model));
    inference::in_place(said.collect(), &order.concat())
}

impl Predictions {
    /// Of each text a logit for each class, or its scores; none where a text is said.
    pub fn rows(&self) -> &[Vec<f32>] {
        match &self.said {
            Words::Rows(rows) => rows,
            Words::Texts(_) => &[],
        }
    }

    /// As text.
    pub fn write(&self, output: Output) -> String {
        let lines: Vec<String> = match (&self.said, output) {
            (Words::Rows(rows), Output::Tsv) => rows.iter().map(|row| self.tsv(row)).collect(),
            (Words::Rows(rows), Output::JsonLines) => {
                rows.iter().map(|row| self.json(row).to_string()).collect()
            }
            // A line for each: what breaks one becomes a blank.
            (Words::Texts(texts), Output::Tsv) => texts
                .iter()
                .map(|text| text.split(['\t', '\r', '\n']).collect::<Vec<_>>().join(" "))
                .collect(),
            (Words::Texts(texts), Output::JsonLines) => {
                texts.iter().map(|text| json!({ self.header(): text }).to_string()).collect()
            }
        };
        let header = (output == Output::Tsv).then(|| self.header());
        header.into_iter().chain(lines).map(|line| line + "\n").collect()
    }

    fn header(&self) -> String {
        match &self.target {
            Target::Classes(names) => format!("class\t{}", names.join("\t")),
            Target::Scores { width: 1 } => "score".into(),
            Target::Answers => "answer".into(),
            Target::Summaries => "summary".into(),
            Target::Scores { width } => {
                (1..=*width).map(|number| format!("score-{number}")).collect::<Vec<_>>().join("\t")
            }
        }
    }

    fn tsv(&self, row: &[f32]) -> String {
        let joined = |row: &[f32]| row.iter().map(ToString::to_string).collect::<Vec<_>>().join("\t");
        match &self.target {
            Target::Classes(names) => format!("{}\t{}", names[largest(row)], joined(&probabilities(row))),
            _ => joined(row),
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
            _ => json!({ "scores": row }),
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
        let classes =
            Predictions { target, said: Words::Rows(vec![vec![-0.5, 0.5], vec![2.0, 2.0]]), notes: vec![] };
        assert_eq!(
            classes.write(Output::Tsv),
            "class\tbad\tgood\ngood\t0.26894143\t0.7310586\nbad\t0.5\t0.5\n"
        );
        assert_eq!(
            classes.write(Output::JsonLines).lines().nth(1).unwrap(),
            r#"{"class":"bad","logits":{"bad":2.0,"good":2.0},"probabilities":{"bad":0.5,"good":0.5}}"#
        );
        let scores = Predictions {
            target: Target::Scores { width: 1 },
            said: Words::Rows(vec![vec![3.5]]),
            notes: vec![],
        };
        assert_eq!(scores.write(Output::Tsv), "score\n3.5\n");
        let said = Words::Texts(vec!["in\n1066".into(), String::new()]);
        let answers = Predictions { target: Target::Answers, said, notes: vec![] };
        assert_eq!(answers.write(Output::Tsv), "answer\nin 1066\n\n");
        assert_eq!(answers.write(Output::JsonLines), "{\"answer\":\"in\\n1066\"}\n{\"answer\":\"\"}\n");
        assert_eq!(scores.write(Output::JsonLines), "{\"scores\":[3.5]}\n");
    }
}
