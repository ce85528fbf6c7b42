//! Examples to evaluate on, and how good what a model says of them is.

use std::sync::Arc;

use serde_json::json;

use crate::dataset::{Example, Labels};
use crate::error::TaskError;
use crate::evaluation::Evaluation;
use crate::rouge::{Interval, bootstrap};
use crate::squad::{Decoding, Questions, SpanLogits};
use crate::summaries::References;

/// The score of no answer must be above that of the best answer by more than this, as in `run_qa.py`.
const NULL_THRESHOLD: f32 = 0.0;

/// Examples to evaluate on.
#[derive(Debug, Clone)]
pub struct DevSet {
    /// What tells its scores from those of other sets of the task; `None` if it is the only one.
    pub name: Option<String>,
    /// The examples.
    pub examples: Arc<[Example]>,
    /// What is right.
    pub truth: Truth,
}

/// What a model's words are compared with.
#[derive(Debug, Clone)]
pub enum Truth {
    /// The labels of the examples.
    Labels,
    /// The answers to the questions whose windows the examples are.
    Questions(Arc<Questions>, Decoding),
    /// Summaries as they are written.
    Summaries(Arc<References>),
}

/// What a model says of the examples of a dev set, in their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// A class or scores of each.
    Labels(Labels),
    /// Where answers begin and end.
    Spans(Vec<SpanLogits>),
    /// Tokens of a text for each.
    Texts(Vec<Vec<i64>>),
}

/// How good that is.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// By name, the headline first.
    pub scores: Vec<(String, f64)>,
    /// How sure some of them are, by the same names.
    pub intervals: Vec<(String, Interval)>,
    /// What was said in words, an object of JSON for each question or document.
    pub outputs: Vec<serde_json::Value>,
}

impl DevSet {
    /// The only one of a task.
    pub fn only(examples: impl Into<Arc<[Example]>>) -> Self {
        Self { name: None, examples: examples.into(), truth: Truth::Labels }
    }

    /// Under which name a score of this set is reported: `accuracy`, or `accuracy-matched` for one set of several.
    pub fn score_name(&self, evaluation: Evaluation) -> String {
        match &self.name {
            None => evaluation.to_string(),
            Some(set) => format!("{evaluation}-{set}"),
        }
    }

    /// Compares what was said with what is right.
    ///
    /// # Errors
    ///
    /// A tokenizer that has no way back to text.
    ///
    /// # Panics
    ///
    /// If something of another kind was said, or an evaluation is asked for that this kind does not have.
    pub fn score(&self, said: Said, evaluation: &[Evaluation]) -> Result<Scored, TaskError> {
        let (mut intervals, mut outputs) = (Vec::new(), Vec::new());
        let score: Box<dyn Fn(Evaluation) -> f64> = match (&self.truth, said) {
            (Truth::Labels, Said::Labels(predicted)) => {
                let labels = Labels::of(self.examples.iter());
                Box::new(move |own| own.score(&predicted, &labels))
            }
            (Truth::Questions(questions, decoding), Said::Spans(logits)) => {
                let found = questions.decode(&logits, decoding);
                let scores = questions.score(&found, NULL_THRESHOLD).all;
                outputs = (0..found.len())
                    .map(|place| {
                        let question = &questions.questions[place];
                        let answers: Vec<_> = question.answers.iter().map(|own| own.text.as_str()).collect();
                        json!({
                            "id": question.id,
                            "question": question.text,
                            "answer": questions.answer(place, &found[place], NULL_THRESHOLD),
                            "answers": answers,
                        })
                    })
                    .collect();
                Box::new(move |own| match own {
                    Evaluation::ExactMatch => scores.exact,
                    Evaluation::F1 => scores.f1,
                    other => panic!("{other} is no score of answers"),
                })
            }
            (Truth::Summaries(references), Said::Texts(texts)) => {
                let texts = texts.iter().map(|tokens| references.text(tokens));
                let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
                let each = references.score(&texts);
                let of = |own: Evaluation| each.iter().map(|rouge| own.of_summary(rouge)).collect::<Vec<_>>();
                intervals =
                    evaluation.iter().map(|&own| (self.score_name(own), bootstrap(&of(own)))).collect();
                outputs = references.outputs(&texts);
                let means: Vec<_> = evaluation
                    .iter()
                    .map(|&own| (own, of(own).iter().sum::<f64>() / texts.len() as f64))
                    .collect();
                Box::new(move |own| means.iter().find(|(name, _)| *name == own).expect("one of these").1)
            }
            (truth, said) => panic!("what was said ({said:?}) is of another kind than {truth:?}"),
        };
        let scores = evaluation.iter().map(|&own| (self.score_name(own), score(own))).collect();
        Ok(Scored { scores, intervals, outputs })
    }
}
