//! Documents and their summaries: read, tokenized, and scored by ROUGE.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use unicode_segmentation::UnicodeSegmentation;

use crate::catalogue::Catalogue;
use crate::dataset::{Dataset, Example, Files, Label, Target, noted, sample};
use crate::dev::{DevSet, Truth};
use crate::error::{Place, RowProblem, TaskError};
use crate::manifest::{DataFormat, Parts, Summaries};
use crate::parquet;
use crate::rouge::Rouge;
use crate::rows::Row;
use crate::tokenize::TextEncoder;

/// Which documents with summaries, and how much of them is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummariesSpec {
    /// Name of a manifest.
    pub data: String,
    /// Tokens of a document at most, special ones included: no more than the model has positions.
    pub max_document: usize,
    /// Tokens of a summary at most, in training.
    pub max_summary: usize,
    /// Trains on a sample of this many pairs instead of all.
    pub train_rows: Option<usize>,
    /// Evaluates on a sample of this many pairs instead of all, since generation takes its time.
    pub dev_rows: Option<usize>,
}

impl Dataset {
    /// Reads and tokenizes both sides of the fetched data set `task.data` with the tokenizer in a checkpoint's folder.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or a row that has not both texts; an unusable tokenizer; a sample that is too large.
    pub fn summaries(
        catalogue: &Catalogue,
        task: &SummariesSpec,
        checkpoint: &Path,
    ) -> Result<Self, TaskError> {
        let name = &task.data;
        let (DataFormat::Summaries(format), mut files) = Files::of(catalogue, name)? else {
            return Err(TaskError::OtherTask { name: name.clone(), task: "summaries" });
        };
        let reader = Reader {
            documents: TextEncoder::open(checkpoint, task.max_document, 1)?,
            summaries: TextEncoder::open(checkpoint, task.max_summary, 1)?,
        };
        files.read.extend_from_slice(&reader.summaries.files);
        let mut read = |parts| side(parts, &mut files, &format);
        let (train, dev) = (read(&format.sides().train)?, read(&format.sides().dev)?);
        let train_available = train.len();
        let some = |all, asked, key| match asked {
            Some(asked) => sample(all, asked, name, key),
            None => Ok(all),
        };
        let (train, dev) =
            (some(train, task.train_rows, "train_rows")?, some(dev, task.dev_rows, "dev_rows")?);
        let mut notes = Vec::new();
        let mut encode = |pairs: &[Pair]| {
            let (examples, own) = reader.encode(pairs)?;
            notes.extend(own);
            Ok::<Arc<[Example]>, TaskError>(examples.into())
        };
        let (train, examples) = (encode(&train)?, encode(&dev)?);
        let pad_id = reader.summaries.pad_id;
        let references = References { pairs: dev, encoder: reader.summaries };
        let truth = Truth::Summaries(Arc::new(references));
        Ok(Self {
            name: name.clone(),
            train,
            dev: vec![DevSet { name: None, examples, truth }],
            target: Target::Summaries,
            evaluation: DataFormat::Summaries(format).evaluation().to_vec(),
            train_available,
            notes,
            pad_id,
            files: files.read,
        })
    }
}

/// A document and its summary.
type Pair = [String; 2];

/// Tokenizes both sides.
struct Reader {
    documents: TextEncoder,
    summaries: TextEncoder,
}

impl Reader {
    /// Examples in the order of the pairs, and what a user should know of them. None is left out for any of it.
    fn encode(&self, pairs: &[Pair]) -> Result<(Vec<Example>, Vec<String>), TaskError> {
        let side = |place: usize| pairs.iter().map(move |pair| row(pair[place].clone())).collect::<Vec<_>>();
        let empty = |place: usize| pairs.iter().filter(|pair| pair[place].trim().is_empty()).count();
        let (documents, cut_documents) = self.documents.encode(side(0))?;
        let (summaries, cut_summaries) = self.summaries.encode(side(1))?;
        let notes = noted([
            (cut_documents, "documents are longer than task.summaries.max_document and lost their end"),
            (cut_summaries, "summaries are longer than task.summaries.max_summary and lost their end"),
            (empty(0), "documents are empty"),
            (empty(1), "summaries are empty: what is generated for them scores 0"),
        ]);
        let examples = documents.into_iter().zip(summaries);
        let examples = examples
            .map(|(document, summary)| Example { label: Label::Text(summary.ids), ..document })
            .collect();
        Ok((examples, notes))
    }
}

/// Pairs as they are written, and the way from generated tokens to text.
pub struct References {
    pairs: Vec<Pair>,
    encoder: TextEncoder,
}

impl fmt::Debug for References {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pairs", self.pairs.len())
    }
}

/// Characters of a document that are shown beside what was made of it.
const SHOWN: usize = 400;

impl References {
    /// The text that generated tokens spell, without special ones.
    ///
    /// # Errors
    ///
    /// If the tokenizer has no way back to text.
    pub(crate) fn text(&self, tokens: &[i64]) -> Result<String, TaskError> {
        self.encoder.decode(tokens).map(|text| text.trim().to_owned())
    }

    /// The overlaps of generated texts with the summaries, in their order.
    pub(crate) fn score(&self, generated: &[String]) -> Vec<Rouge> {
        assert_eq!(generated.len(), self.pairs.len(), "one text for each pair");
        let pairs = self.pairs.par_iter().zip(generated);
        pairs.map(|([_, summary], text)| Rouge::score(&sentences(summary), &sentences(text))).collect()
    }

    /// The beginning of each document, its summary, and what was generated.
    pub(crate) fn outputs(&self, generated: &[String]) -> Vec<Value> {
        let pairs = self.pairs.iter().zip(generated);
        let output = |([document, summary], text): (&Pair, &String)| {
            let shown: String = document.chars().take(SHOWN).collect();
            json!({ "document": shown, "summary": summary, "generated": text })
        };
        pairs.map(output).collect()
    }
}

/// A sentence a line, as ROUGE-Lsum counts them. `run_summarization.py` splits by NLTK's Punkt, which knows
/// abbreviations; we by Unicode's rules (UAX 29), which do not.
fn sentences(text: &str) -> String {
    let sentences = text.lines().flat_map(|line| line.unicode_sentences()).map(str::trim);
    sentences.filter(|sentence| !sentence.is_empty()).collect::<Vec<_>>().join("\n")
}

fn row(text: String) -> Row {
    // The label is another text, which is tokenized apart.
    Row { text, pair: None, label: Label::Class(0) }
}

/// Every document and summary that the data set `name` has to train on.
pub(crate) fn training_texts(catalogue: &Catalogue, name: &str) -> Result<Vec<String>, TaskError> {
    let (DataFormat::Summaries(format), mut files) = Files::of(catalogue, name)? else {
        return Err(TaskError::OtherTask { name: name.into(), task: "summaries" });
    };
    Ok(side(&format.sides().train, &mut files, &format)?.into_iter().flatten().collect())
}

/// The pairs of one side.
fn side(parts: &Parts, files: &mut Files, format: &Summaries) -> Result<Vec<Pair>, TaskError> {
    let parts = parts.files().iter().map(|file| {
        let (path, content) = files.read(file)?;
        format.pairs(content, &path)
    });
    parts.collect::<Result<Vec<_>, TaskError>>().map(|parts| parts.concat())
}

impl Summaries {
    /// Documents and summaries of a file's content, by its ending Parquet or an object of JSON a line; `file` is named in
    /// errors.
    ///
    /// # Errors
    ///
    /// A row that has not both texts; a file without rows.
    pub fn pairs(&self, content: Vec<u8>, file: &Path) -> Result<Vec<[String; 2]>, TaskError> {
        let keys = [self.document.as_str(), &self.summary];
        let is_parquet = file.extension().is_some_and(|ending| ending == "parquet");
        let pairs =
            if is_parquet { parquet::texts(content, file, keys)? } else { lines(&content, file, keys)? };
        if pairs.is_empty() {
            return Err(TaskError::EmptySplit { file: file.into(), filter: None });
        }
        Ok(pairs)
    }
}

/// Document and summary of each line.
fn lines(content: &[u8], file: &Path, keys: [&str; 2]) -> Result<Vec<Pair>, TaskError> {
    let mut lines: Vec<&[u8]> = content.split(|&byte| byte == b'\n').collect();
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    let pairs = lines.into_iter().enumerate().map(|(number, line)| {
        let problem = |problem| TaskError::Row { file: file.into(), place: Place::Line(number + 1), problem };
        let object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| {
            problem(RowProblem::Json {
                // The parser counts lines from the beginning of this one.
                said: error.to_string().replace(" at line 1 column", " at column"),
                keys: keys.map(String::from),
            })
        })?;
        let text = |key: &str| match object.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(value)) => {
                Err(problem(RowProblem::NotText { column: key.into(), value: value.to_string() }))
            }
            Some(Value::Null) => Err(problem(RowProblem::Null { column: key.into() })),
            Some(other) => Err(problem(RowProblem::Kind { column: key.into(), value: other.to_string() })),
            None => Err(problem(RowProblem::NoKey {
                key: key.into(),
                found: object.keys().cloned().collect::<Vec<_>>(),
            })),
        };
        Ok([text(keys[0])?, text(keys[1])?])
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::batch::Batch;
    use crate::dataset::Labels;
    use crate::dev::Said;

    fn checkpoint() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values/byte-level")
    }

    fn load(content: &str, change: impl Fn(&mut SummariesSpec)) -> Result<Dataset, TaskError> {
        let root = tempfile::tempdir().expect("a temporary folder");
        let manifest = r#"
            description = ""
            licence = ""
            source.folder = { path = "ours", how = "they are made up" }

            [format.summaries]
            document = "document"
            summary = "summary"
            split.files = { train = ["pairs.jsonl", "pairs.jsonl"], dev = "pairs.jsonl" }
        "#;
        fs::write(root.path().join("some.toml"), manifest).expect("a manifest");
        fs::create_dir(root.path().join("ours")).expect("a new folder");
        fs::write(root.path().join("ours/pairs.jsonl"), content).expect("a file");
        let catalogue = Catalogue::open(root.path(), root.path()).expect("a catalogue");
        let mut spec = SummariesSpec {
            data: "some".into(),
            max_document: 32,
            max_summary: 16,
            train_rows: None,
            dev_rows: None,
        };
        change(&mut spec);
        Dataset::summaries(&catalogue, &spec, &checkpoint())
    }

    const PAIRS: &str = r#"{"document": "The film is long, and the end is not near.", "summary": "A long film", "id": 1}
{"document": "Short.", "summary": " "}
{"document": "", "summary": "Nothing at all is said of the film, and the film says nothing of itself to anyone"}
"#;

    fn references(data: &Dataset) -> &References {
        let Truth::Summaries(references) = &data.dev[0].truth else { panic!("pairs have summaries") };
        references
    }

    #[test]
    fn pairs_are_counted_and_none_is_left_out() {
        let data = load(PAIRS, |spec| spec.max_document = 8).expect("pairs");
        let of = |count| {
            [
                format!("{count} documents are longer than task.summaries.max_document and lost their end"),
                format!("{count} summaries are longer than task.summaries.max_summary and lost their end"),
                format!("{count} documents are empty"),
                format!("{count} summaries are empty: what is generated for them scores 0"),
            ]
        };
        assert_eq!(data.notes, [of(2), of(1)].concat());
        // The file twice, and both files of the tokenizer.
        assert_eq!((data.train.len(), data.dev[0].examples.len(), data.files.len()), (6, 3, 5));
        let examples = &data.dev[0].examples;
        let text = |example: &Example| match &example.label {
            Label::Text(tokens) => tokens.iter().map(|&token| token.into()).collect::<Vec<i64>>(),
            other => panic!("{other:?}"),
        };
        let lengths: Vec<_> = examples.iter().map(|own| (own.ids.len(), text(own).len())).collect();
        assert_eq!((lengths[0].0, lengths[2]), (8, (2, 16)));
        let references = references(&data);
        assert_eq!(references.text(&text(&examples[0])).expect("text"), "A long film");
        assert!(references.pairs[2][1].starts_with(&references.text(&text(&examples[2])).expect("text")));
    }

    #[test]
    fn labels_are_padded_with_what_no_loss_counts() {
        let data = load(PAIRS, |_| {}).expect("pairs");
        let (long, short) = (&data.dev[0].examples[2], &data.dev[0].examples[0]);
        let batch = Batch::collate(&data.dev[0].examples, &[2, 0], data.pad_id);
        let Labels::Texts { width, tokens } = &batch.labels else { panic!("texts") };
        let (Label::Text(first), Label::Text(second)) = (&long.label, &short.label) else { panic!("texts") };
        assert_eq!((batch.rows, batch.width, *width), (2, short.ids.len(), 16));
        let wide = |tokens: &[u32]| tokens.iter().map(|&token| i64::from(token)).collect::<Vec<_>>();
        assert_eq!(tokens[..16], wide(first)[..]);
        assert_eq!(tokens[16..16 + second.len()], wide(second)[..]);
        assert!(tokens[16 + second.len()..].iter().all(|&token| token == -100));
        assert_eq!(batch.labels.units(), 16 + second.len());
    }

    #[test]
    fn scores_of_the_references_themselves() {
        let data = load(PAIRS, |_| {}).expect("pairs");
        let tokens = |example: &Example| match &example.label {
            Label::Text(tokens) => tokens.iter().map(|&token| token.into()).collect(),
            other => panic!("{other:?}"),
        };
        let said = Said::Texts(data.dev[0].examples.iter().map(tokens).collect());
        let scored = data.dev[0].score(said, &data.evaluation).expect("text");
        // The second has nothing in common with itself, and the third lost its end.
        for ((name, score), (of, interval)) in scored.scores.iter().zip(&scored.intervals) {
            assert_eq!(name, of);
            assert!((0.5..0.667).contains(score), "{name}: {score}");
            assert!(interval.low < *score && *score < interval.high, "{name}: {interval:?}");
        }
        assert_eq!(scored.scores.len(), 4);
        assert_eq!(scored.outputs[0]["generated"], "A long film");
    }

    #[test]
    fn a_sentence_is_a_line() {
        let text = "It ran. It fell, e.g. twice!\nWas it him? \n";
        assert_eq!(sentences(text), "It ran.\nIt fell, e.g. twice!\nWas it him?");
    }

    #[test]
    fn a_sample_is_taken_of_either_side() {
        let sample = |train, dev| load(PAIRS, |spec| (spec.train_rows, spec.dev_rows) = (train, dev));
        let data = sample(Some(4), Some(2)).expect("as many");
        assert_eq!((data.train.len(), data.train_available, data.dev[0].examples.len()), (4, 6, 2));
        let error = sample(None, Some(4)).expect_err("too many").to_string();
        assert_eq!(
            error,
            "dev_rows (4) must be 1 to 3, the examples that `some` has there; leave it out for all"
        );
    }

    #[test]
    fn lines_that_are_no_pair() {
        let error = |line: &str| {
            let content = format!("{}\n{line}\n", PAIRS.lines().next().expect("a line"));
            let text = load(&content, |_| {}).expect_err("a malformed line").to_string();
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
        assert!(load("", |_| {}).expect_err("no pair").to_string().contains("holds no examples"));
    }
}
