//! Documents and their summaries: read, tokenized, batched, and scored by ROUGE.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::dataset::{FileHash, Label};
use crate::error::{Place, RowProblem, TaskError};
use crate::fetch::sha256_of;
use crate::rouge::{Interval, Rouge, bootstrap};
use crate::rows::Row;
use crate::tokenize::TextEncoder;

/// Where documents and summaries are found, and how much of them is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummarySpec {
    /// Key of the document in an object of the file.
    pub document: String,
    /// Key of the summary.
    pub summary: String,
    /// Tokens of a document at most, special ones included: no more than the model has positions.
    pub max_document: usize,
    /// Tokens of a summary at most.
    pub max_summary: usize,
}

/// A document and its summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryExample {
    /// Tokens of the document.
    pub document: Vec<u32>,
    /// Tokens of the summary, from its first to its end.
    pub summary: Vec<u32>,
    /// The summary as it is written.
    pub reference: String,
}

/// What a user should know of the pairs. Nothing was left out for any of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Documents that lost their end to [`SummarySpec::max_document`].
    pub truncated_documents: usize,
    /// Summaries that lost theirs.
    pub truncated_summaries: usize,
    /// Documents without a visible character.
    pub empty_documents: usize,
    /// Summaries without one: what is generated for them scores 0.
    pub empty_summaries: usize,
}

/// Pairs of one file, tokenized, and the tokenizer for what will be generated.
pub struct Summaries {
    /// In the order of the file.
    pub examples: Vec<SummaryExample>,
    /// Fills shorter documents of a batch.
    pub pad_id: u32,
    /// What was found on the way.
    pub counted: Counted,
    /// Every file that was read.
    pub files: Vec<FileHash>,
    encoder: TextEncoder,
}

impl Summaries {
    /// Reads a file with one JSON object a line, with the tokenizer of a checkpoint.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or a line that is no object with both texts; an unusable tokenizer.
    pub fn load(file: &Path, spec: &SummarySpec, checkpoint: &Path) -> Result<Self, TaskError> {
        let content = fs::read(file).map_err(TaskError::io(file))?;
        let documents = TextEncoder::open(checkpoint, spec.max_document, 1)?;
        let encoder = TextEncoder::open(checkpoint, spec.max_summary, 1)?;
        let pairs = spec.read(&content, file)?;
        let empty = |texts: fn(&[String; 2]) -> &String| {
            pairs.iter().filter(|pair| texts(pair).trim().is_empty()).count()
        };
        let (empty_documents, empty_summaries) = (empty(|pair| &pair[0]), empty(|pair| &pair[1]));
        let references: Vec<String> = pairs.iter().map(|[_, summary]| summary.clone()).collect();
        let (to_read, to_write): (Vec<_>, Vec<_>) =
            pairs.into_iter().map(|[document, summary]| (row(document), row(summary))).unzip();
        let (documents, truncated_documents) = documents.encode(to_read)?;
        let (summaries, truncated_summaries) = encoder.encode(to_write)?;
        let texts = documents.into_iter().zip(summaries).zip(references);
        let examples = texts.map(|((document, summary), reference)| SummaryExample {
            document: document.ids,
            summary: summary.ids,
            reference,
        });
        let own = FileHash { file: file.display().to_string(), sha256: sha256_of(&content) };
        Ok(Self {
            examples: examples.collect(),
            pad_id: encoder.pad_id,
            counted: Counted { truncated_documents, truncated_summaries, empty_documents, empty_summaries },
            files: std::iter::once(own).chain(encoder.files.iter().cloned()).collect(),
            encoder,
        })
    }

    /// The text that generated tokens spell, without special ones.
    ///
    /// # Errors
    ///
    /// If the tokenizer has no way back to text.
    pub fn text(&self, tokens: &[i64]) -> Result<String, TaskError> {
        self.encoder.decode(tokens)
    }

    /// F1 of the four overlaps between generated texts and the examples' summaries, in the examples' order.
    ///
    /// # Panics
    ///
    /// If there is another number of texts than of examples.
    pub fn score(&self, generated: &[String]) -> [RougeScore; 4] {
        assert_eq!(generated.len(), self.examples.len(), "one text for each example");
        let pairs = self.examples.iter().zip(generated);
        let f1 = pairs.map(|(example, text)| {
            let Rouge { rouge1, rouge2, rouge_l, rouge_lsum } = Rouge::score(&example.reference, text);
            [rouge1, rouge2, rouge_l, rouge_lsum].map(|overlap| overlap.f1)
        });
        let f1: Vec<[f64; 4]> = f1.collect();
        let names = ["rouge1", "rouge2", "rougeL", "rougeLsum"];
        std::array::from_fn(|kind| {
            let own: Vec<f64> = f1.iter().map(|scores| scores[kind]).collect();
            let mean = own.iter().sum::<f64>() / own.len() as f64;
            RougeScore { name: names[kind], mean, interval: bootstrap(&own) }
        })
    }
}

/// One of the four overlaps over all examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RougeScore {
    /// As `rouge-score` calls it.
    pub name: &'static str,
    /// Mean F1, in 0..1.
    pub mean: f64,
    /// How sure that mean is.
    pub interval: Interval,
}

fn row(text: String) -> Row {
    // Summaries have their labels in their own tokens.
    Row { text, pair: None, label: Label::Class(0) }
}

impl SummarySpec {
    /// Document and summary of each line of a file's content; `file` is named in errors.
    ///
    /// # Errors
    ///
    /// A line that is no object with both texts.
    pub fn read(&self, content: &[u8], file: &Path) -> Result<Vec<[String; 2]>, TaskError> {
        let mut lines: Vec<&[u8]> = content.split(|&byte| byte == b'\n').collect();
        if lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        let pairs = lines.into_iter().enumerate().map(|(number, line)| {
            let problem =
                |problem| TaskError::Row { file: file.into(), place: Place::Line(number + 1), problem };
            let object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| {
                problem(RowProblem::Json {
                    // The parser counts lines from the beginning of this one.
                    said: error.to_string().replace(" at line 1 column", " at column"),
                    keys: [self.document.clone(), self.summary.clone()],
                })
            })?;
            let text = |key: &String| match object.get(key) {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(Value::Number(value)) => {
                    Err(problem(RowProblem::NotText { column: key.clone(), value: value.to_string() }))
                }
                Some(Value::Null) => Err(problem(RowProblem::Null { column: key.clone() })),
                Some(other) => {
                    Err(problem(RowProblem::Kind { column: key.clone(), value: other.to_string() }))
                }
                None => Err(problem(RowProblem::NoKey {
                    key: key.clone(),
                    found: object.keys().cloned().collect::<Vec<_>>(),
                })),
            };
            Ok([text(&self.document)?, text(&self.summary)?])
        });
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        if pairs.is_empty() {
            return Err(TaskError::EmptySplit { file: file.into(), filter: None });
        }
        Ok(pairs)
    }
}

/// Some examples, padded. Matrices are row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryBatch {
    /// Examples.
    pub rows: usize,
    /// Tokens of the longest document.
    pub width: usize,
    /// Tokens of the documents, `(rows, width)`, padded at the end.
    pub documents: Vec<i64>,
    /// Whether there is a token, `(rows, width)`.
    pub mask: Vec<bool>,
    /// Tokens of the longest summary.
    pub summary_width: usize,
    /// Tokens of the summaries, `(rows, summary_width)`; -100 where there is none.
    pub labels: Vec<i64>,
}

impl SummaryBatch {
    /// The examples at `indices`, in that order.
    pub fn collate(examples: &[SummaryExample], indices: &[usize], pad_id: u32) -> Self {
        let chosen = || indices.iter().map(|&index| &examples[index]);
        let [width, summary_width] = [
            chosen().map(|example| example.document.len()).max().unwrap_or(0),
            chosen().map(|example| example.summary.len()).max().unwrap_or(0),
        ];
        let padded = |tokens: &[u32], width: usize, padding: i64| {
            let padding = std::iter::repeat_n(padding, width - tokens.len());
            tokens.iter().map(|&token| token.into()).chain(padding).collect::<Vec<i64>>()
        };
        Self {
            rows: indices.len(),
            width,
            documents: chosen().flat_map(|own| padded(&own.document, width, pad_id.into())).collect(),
            mask: chosen().flat_map(|own| (0..width).map(|column| column < own.document.len())).collect(),
            summary_width,
            labels: chosen().flat_map(|own| padded(&own.summary, summary_width, -100)).collect(),
        }
    }

    /// Labels that are there: what a loss over tokens is a mean over.
    pub fn labels(&self) -> usize {
        self.labels.iter().filter(|&&label| label != -100).count()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn checkpoint() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values/byte-level")
    }

    fn load(content: &str, max_document: usize) -> Result<Summaries, TaskError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("pairs.jsonl");
        fs::write(&file, content).expect("a file");
        let spec = SummarySpec {
            document: "document".into(),
            summary: "summary".into(),
            max_document,
            max_summary: 16,
        };
        Summaries::load(&file, &spec, &checkpoint())
    }

    const PAIRS: &str = r#"{"document": "The film is long, and the end is not near.", "summary": "A long film", "id": 1}
{"document": "Short.", "summary": " "}
{"document": "", "summary": "Nothing at all is said of the film, and the film says nothing of itself to anyone"}
"#;

    #[test]
    fn pairs_are_counted_and_none_is_left_out() {
        let summaries = load(PAIRS, 8).expect("pairs");
        let counted = Counted {
            truncated_documents: 1,
            truncated_summaries: 1,
            empty_documents: 1,
            empty_summaries: 1,
        };
        assert_eq!(summaries.counted, counted);
        let lengths: Vec<_> =
            summaries.examples.iter().map(|own| (own.document.len(), own.summary.len())).collect();
        assert_eq!((lengths.len(), lengths[0].0, lengths[2]), (3, 8, (2, 16)));
        assert_eq!(summaries.files.len(), 3);
        let spelled = |example: &SummaryExample| {
            let tokens: Vec<i64> = example.summary.iter().map(|&token| token.into()).collect();
            summaries.text(&tokens).expect("text")
        };
        assert_eq!(spelled(&summaries.examples[0]), "A long film");
        assert!(summaries.examples[2].reference.starts_with(&spelled(&summaries.examples[2])));
    }

    #[test]
    fn batches_are_padded_on_both_sides() {
        let summaries = load(PAIRS, 32).expect("pairs");
        let batch = SummaryBatch::collate(&summaries.examples, &[2, 0], summaries.pad_id);
        let [first, second] = [&summaries.examples[2], &summaries.examples[0]];
        assert_eq!((batch.rows, batch.width, batch.summary_width), (2, second.document.len(), 16));
        let tokens = |tokens: &[u32]| tokens.iter().map(|&token| i64::from(token)).collect::<Vec<_>>();
        assert_eq!(batch.documents[..2], tokens(&first.document)[..]);
        assert!(batch.documents[2..batch.width].iter().all(|&token| token == i64::from(summaries.pad_id)));
        assert_eq!(batch.documents[batch.width..], tokens(&second.document)[..]);
        assert_eq!(batch.mask.iter().filter(|token| **token).count(), 2 + second.document.len());
        assert_eq!(batch.labels[16..16 + second.summary.len()], tokens(&second.summary)[..]);
        assert!(batch.labels[16 + second.summary.len()..].iter().all(|&label| label == -100));
        assert_eq!(batch.labels(), 16 + second.summary.len());
    }

    #[test]
    fn scores_of_the_references_themselves() {
        let summaries = load(PAIRS, 32).expect("pairs");
        let texts: Vec<_> = summaries.examples.iter().map(|example| example.reference.clone()).collect();
        let scores = summaries.score(&texts);
        // The empty one has nothing in common with itself.
        assert!(scores.iter().all(|score| (score.mean - 2.0 / 3.0).abs() < 1e-12), "{scores:?}");
        assert!(
            scores.iter().all(|score| score.interval.low < score.mean && score.mean < score.interval.high)
        );
    }

    #[test]
    fn lines_that_are_no_pair() {
        let error = |line: &str| {
            let content = format!("{}\n{line}\n", PAIRS.lines().next().expect("a line"));
            let text = load(&content, 32).err().expect("a malformed line").to_string();
            text[text.find("line 2").expect("the line's number")..].to_owned()
        };
        insta::assert_snapshot!(
            [
                error(r#"{"document": "a", "summary": "b""#),
                error(""),
                error("[1]"),
                error(r#"{"document": "a", "highlights": "b"}"#),
                error(r#"{"document": "a", "summary": 3}"#),
                error(r#"{"document": "a", "summary": null}"#),
                error(r#"{"document": ["a"], "summary": "b"}"#),
            ]
            .join("\n")
        );
        assert!(load("", 32).err().expect("no pair").to_string().contains("holds no examples"));
    }
}
