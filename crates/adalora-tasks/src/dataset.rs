//! A task's examples as token ids with labels, split into train and dev.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Catalogue, Located};
use crate::dev::{DevSet, Truth};
use crate::error::TaskError;
use crate::evaluation::Evaluation;
use crate::fetch::{check_sha256, sha256_of};
use crate::manifest::{DataFormat, DevFiles, Source, Split};
use crate::tokenize::TextEncoder;

/// `[task]` of an experiment: which data, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Name of a manifest.
    pub data: String,
    /// Tokens of an example, special ones included; what is longer is truncated, the longer text of a pair first.
    pub max_length: usize,
    /// Trains on a sample of this many examples instead of all. It is drawn with a seed of its own, so it is the same
    /// for every run, and a smaller sample is part of a larger one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_rows: Option<usize>,
}

/// What a model has to predict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One class of these, by name, in the order of their numbers from 0.
    Classes(Vec<String>),
    /// Real numbers.
    Scores {
        /// How many for each example.
        width: usize,
    },
    /// Where in a text the answer to a question stands.
    Answers,
    /// A summary of a text.
    Summaries,
}

impl Target {
    /// Logits of a classifier: one for each class, or the number of scores; none where no class or score is asked for.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Classes(names) => names.len(),
            Self::Scores { width } => *width,
            Self::Answers | Self::Summaries => 0,
        }
    }
}

/// What is true of one example.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// The number of its class, from 0.
    Class(usize),
    /// Its scores; as many for every example of a data set.
    Scores(Vec<f32>),
    /// First and last of its tokens that are the answer; both the first token of all if none are.
    Span([usize; 2]),
    /// The tokens of a text that is to be written, from its first to its end.
    Text(Vec<u32>),
}

/// Labels of, or predictions for, several examples.
#[derive(Debug, Clone, PartialEq)]
pub enum Labels {
    /// A class for each example.
    Classes(Vec<i64>),
    /// Scores in row-major order, shape `(rows, width)`.
    Scores {
        /// Scores of each example.
        width: usize,
        /// `rows * width` numbers.
        values: Vec<f32>,
    },
    /// First and last token of each example's answer.
    Spans(Vec<[i64; 2]>),
    /// Tokens of each example's text, row-major, shape `(rows, width)`; -100 where there is none.
    Texts {
        /// Tokens of the longest.
        width: usize,
        /// `rows * width` of them.
        tokens: Vec<i64>,
    },
}

impl Labels {
    /// Labels of `examples`, in their order; no examples have no classes.
    ///
    /// # Panics
    ///
    /// If the examples do not share one kind of label and one width.
    pub fn of<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut examples = examples.into_iter().peekable();
        match examples.peek().map(|example| &example.label) {
            None | Some(Label::Class(_)) => Self::Classes(
                examples
                    .map(|example| match &example.label {
                        Label::Class(class) => *class as i64,
                        _ => panic!("examples of one data set share one kind of label"),
                    })
                    .collect(),
            ),
            Some(Label::Scores(first)) => {
                let width = first.len();
                let mut values = Vec::new();
                for example in examples {
                    match &example.label {
                        Label::Scores(scores) if scores.len() == width => values.extend_from_slice(scores),
                        _ => panic!("examples of one data set share one kind of label and its width"),
                    }
                }
                Self::Scores { width, values }
            }
            Some(Label::Span(_)) => Self::Spans(
                examples
                    .map(|example| match &example.label {
                        Label::Span(span) => span.map(|token| token as i64),
                        _ => panic!("examples of one data set share one kind of label"),
                    })
                    .collect(),
            ),
            Some(Label::Text(_)) => {
                let texts: Vec<_> = examples
                    .map(|example| match &example.label {
                        Label::Text(tokens) => tokens,
                        _ => panic!("examples of one data set share one kind of label"),
                    })
                    .collect();
                let width = texts.iter().map(|text| text.len()).max().expect("there is an example");
                let padded = texts.into_iter().flat_map(|text| {
                    let padding = std::iter::repeat_n(-100, width - text.len());
                    text.iter().map(|&token| token.into()).chain(padding)
                });
                Self::Texts { width, tokens: padded.collect() }
            }
        }
    }

    /// What a loss is a mean over: examples, or the tokens of texts.
    pub fn units(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.len(),
            Self::Scores { width, values } => values.len() / width,
            Self::Spans(spans) => spans.len(),
            Self::Texts { tokens, .. } => tokens.iter().filter(|&&token| token != -100).count(),
        }
    }
}

/// One text, or pair of texts, as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids, special tokens included, not padded.
    pub ids: Vec<u32>,
    /// For each token, which text of a pair it belongs to: 0 or 1.
    pub type_ids: Vec<u32>,
    /// What is to be predicted.
    pub label: Label,
}

/// A file that was read, for a run's provenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Path inside the materials folder; the tokenizer's with the checkpoint's folder as it was given.
    pub file: String,
    /// In lower-case hexadecimal.
    pub sha256: String,
}

/// All examples of a task. The fields are public so that a synthetic task can be built without files; the examples are
/// shared, so that a [`Prefetch`](crate::Prefetch) can hold them.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Name of the manifest.
    pub name: String,
    /// Examples to train on.
    pub train: Arc<[Example]>,
    /// Examples to evaluate on: one set or more, the headline's first.
    pub dev: Vec<DevSet>,
    /// What is to be predicted.
    pub target: Target,
    /// What is reported, the headline first.
    pub evaluation: Vec<Evaluation>,
    /// Examples there are to train on, of which `train` is all or a sample.
    pub train_available: usize,
    /// What a user should know of the examples: how many lost tokens, what is odd about others.
    pub notes: Vec<String>,
    /// The token that pads a batch.
    pub pad_id: u32,
    /// Every file that was read.
    pub files: Vec<FileHash>,
}

impl Dataset {
    /// The names of all scores, the headline first: every evaluation of the first dev set, then of the next.
    pub fn score_names(&self) -> Vec<String> {
        let of_set = |set: &'_ DevSet| -> Vec<_> {
            self.evaluation.iter().map(|evaluation| set.score_name(*evaluation)).collect()
        };
        self.dev.iter().flat_map(of_set).collect()
    }

    /// Reads and tokenizes both splits of the fetched data set `task.data` with the tokenizer in a checkpoint's folder:
    /// `tokenizer.json`, or DeBERTa's `spm.model`.
    ///
    /// The result is a function of the files and of `task`.
    pub fn load(catalogue: &Catalogue, task: &TaskSpec, checkpoint: &Path) -> Result<Self, TaskError> {
        let name = &task.data;
        let (DataFormat::Table(table), mut files) = Files::of(catalogue, name)? else {
            return Err(TaskError::OtherTask { name: name.clone(), task: "text" });
        };
        let encoder = TextEncoder::open(checkpoint, task.max_length, table.text.len())?;
        files.read.extend_from_slice(&encoder.files);
        let mut read = |file: &str| {
            let (path, content) = files.read(file)?;
            table.rows(content, &path)
        };
        let (mut train, dev) = match &table.split {
            Split::Files { train, dev: DevFiles::One(dev) } => (read(train)?, vec![(None, read(dev)?)]),
            Split::Files { train, dev: DevFiles::Several(dev) } => {
                let train = read(train)?;
                let dev = dev.iter().map(|dev| Ok((Some(dev.name.clone()), read(&dev.file)?)));
                (train, dev.collect::<Result<_, TaskError>>()?)
            }
            Split::Shuffled { file, dev, seed } => {
                let mut rows = read(file)?;
                if *dev >= rows.len() {
                    return Err(TaskError::DevTooLarge {
                        file: files.folder.join(file),
                        dev: *dev,
                        rows: rows.len(),
                    });
                }
                rows.shuffle(&mut ChaCha8Rng::seed_from_u64(*seed));
                let train = rows.split_off(*dev);
                (train, vec![(None, rows)])
            }
        };
        let train_available = train.len();
        if let Some(asked) = task.train_rows {
            train = sample(train, asked, name, "train_rows")?;
        }
        let mut truncated = 0;
        let mut encode = |rows| {
            let (examples, lost) = encoder.encode(rows)?;
            truncated += lost;
            Ok::<Arc<[Example]>, TaskError>(examples.into())
        };
        let train = encode(train)?;
        let dev = dev
            .into_iter()
            .map(|(name, rows)| Ok(DevSet { name, examples: encode(rows)?, truth: Truth::Labels }));
        let dev = dev.collect::<Result<_, TaskError>>()?;
        let note = "examples are longer than task.text.max_length and were truncated";
        Ok(Self {
            name: name.clone(),
            train,
            dev,
            target: table.target(),
            evaluation: table.evaluation().to_vec(),
            train_available,
            notes: noted([(truncated, note)]),
            pad_id: encoder.pad_id,
            files: files.read,
        })
    }
}

/// A note for each of what there is some of.
pub(crate) fn noted<T: Display>(counts: impl IntoIterator<Item = (usize, T)>) -> Vec<String> {
    let some = counts.into_iter().filter(|(count, _)| *count > 0);
    some.map(|(count, what)| format!("{count} {what}")).collect()
}

/// The files of a data set.
pub(crate) struct Files<'a> {
    catalogue: &'a Catalogue,
    source: Source<'a>,
    folder: PathBuf,
    /// What was read.
    pub(crate) read: Vec<FileHash>,
}

impl<'a> Files<'a> {
    /// Of the fetched data set `name`, and how they are read.
    pub(crate) fn of(catalogue: &'a Catalogue, name: &str) -> Result<(DataFormat, Self), TaskError> {
        catalogue.data(name)?;
        let Located { source, folder, .. } = catalogue.locate(name)?;
        let format = catalogue.manifest(name)?.format_from(source).expect("a data set");
        Ok((format, Self { catalogue, source, folder, read: Vec::new() }))
    }

    /// Path and content of one, whose hash is checked if it is known.
    pub(crate) fn read(&mut self, file: &str) -> Result<(PathBuf, Vec<u8>), TaskError> {
        let path = self.folder.join(file);
        let content = fs::read(&path).map_err(TaskError::io(&path))?;
        let sha256 = sha256_of(&content);
        if let Some((_, expected)) = self.source.hashes().find(|(fixed, _)| *fixed == file) {
            check_sha256(&path, &sha256, expected)?;
        }
        let inside = path.strip_prefix(&self.catalogue.materials).expect("data lies in the materials folder");
        self.read.push(FileHash { file: inside.display().to_string(), sha256 });
        Ok((path, content))
    }
}

/// `asked` of all rows, as the setting `key` says, in an order of their own: the same whenever they are asked for, and part of a larger sample.
pub(crate) fn sample<T>(
    mut all: Vec<T>,
    asked: usize,
    name: &str,
    key: &'static str,
) -> Result<Vec<T>, TaskError> {
    let available = all.len();
    if !(1..=available).contains(&asked) {
        return Err(TaskError::Rows { name: name.into(), key, asked, available });
    }
    all.shuffle(&mut ChaCha8Rng::seed_from_u64(SAMPLE_SEED));
    all.truncate(asked);
    Ok(all)
}

/// Of the sample that `train_rows` or `dev_rows` takes. Part of what a result means, so it never changes.
const SAMPLE_SEED: u64 = 0;

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// 20 rows that tell themselves apart by length, sorted by label, with two that belong elsewhere.
    fn catalogue(change: (&str, &str)) -> (TempDir, Catalogue) {
        let root = TempDir::new().expect("a temporary folder");
        let manifest = r#"
            description = ""
            licence = ""
            source.folder = { path = "ours", how = "they are made up" }

            [format.delimited]
            delimiter = ","
            quoting = true
            header = true
            text = ["text"]
            label = "label"
            only = { column = "source", equals = "ours" }
            labels.classes = { names = ["bad", "good"] }
            split.shuffled = { file = "all.csv", dev = 4, seed = 1 }
            evaluation = ["accuracy"]
        "#;
        assert!(manifest.contains(change.0));
        fs::write(root.path().join("some.toml"), manifest.replace(change.0, change.1)).expect("a manifest");
        fs::create_dir_all(root.path().join("ours")).expect("a new folder");
        let rows = (1..=20).map(|length| {
            format!("{},{},ours\n", "cat ".repeat(length), if length > 10 { "good" } else { "bad" })
        });
        let rows = format!("text,label,source\nx,bad,theirs\n{}x,bad,theirs\n", rows.collect::<String>());
        fs::write(root.path().join("ours/all.csv"), rows).expect("a data file");
        let catalogue = Catalogue::open(root.path(), root.path()).expect("a catalogue");
        (root, catalogue)
    }

    fn load(
        change: (&str, &str),
        max_length: usize,
        train_rows: Option<usize>,
    ) -> Result<Dataset, TaskError> {
        let (_root, catalogue) = catalogue(change);
        let task = TaskSpec { data: "some".into(), max_length, train_rows };
        Dataset::load(&catalogue, &task, &checkpoint())
    }

    /// A folder with a tokenizer.
    fn checkpoint() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
    }

    const AS_IT_IS: (&str, &str) = ("", "");

    /// Words of each text, which stand for its line in the file.
    fn words(examples: &[Example]) -> Vec<usize> {
        examples.iter().map(|example| example.ids.len() - 2).collect()
    }

    /// Recorded from the first version: results are comparable only while the held-out rows stay the same.
    #[test]
    fn the_shuffled_split_never_changes() {
        let data = load(AS_IT_IS, 32, None).expect("valid");
        assert_eq!(words(&data.dev[0].examples), [16, 9, 6, 3]);
        assert_eq!(words(&data.train), [8, 14, 12, 19, 5, 2, 7, 18, 15, 10, 20, 4, 11, 17, 13, 1]);
        assert_eq!(
            words(&load(("seed = 1", "seed = 2"), 32, None).expect("valid").dev[0].examples),
            [4, 16, 12, 11]
        );
        for example in data.train.iter().chain(data.dev[0].examples.iter()) {
            assert_eq!(example.label, Label::Class(usize::from(example.ids.len() - 2 > 10)));
        }
    }

    #[test]
    fn a_smaller_sample_is_part_of_a_larger_one() {
        let all = load(AS_IT_IS, 32, None).expect("valid");
        let five = load(AS_IT_IS, 32, Some(5)).expect("valid");
        let nine = load(AS_IT_IS, 32, Some(9)).expect("valid");
        assert_eq!(words(&five.train), words(&nine.train)[..5]);
        assert_eq!((five.train.len(), five.train_available), (5, 16));
        assert_eq!(five.dev[0].examples, all.dev[0].examples);
    }

    #[test]
    fn what_was_cut_and_what_was_read_is_told() {
        let data = load(AS_IT_IS, 12, None).expect("valid");
        assert_eq!(data.notes, ["10 examples are longer than task.text.max_length and were truncated"]);
        assert_eq!(
            data.train.iter().chain(data.dev[0].examples.iter()).map(|example| example.ids.len()).max(),
            Some(12)
        );
        let (root, _) = catalogue(AS_IT_IS);
        let content = fs::read(root.path().join("ours/all.csv")).expect("the data file");
        assert_eq!(data.files[1], FileHash { file: "ours/all.csv".into(), sha256: sha256_of(&content) });
        assert_eq!(data.files.len(), 2);
    }

    #[test]
    fn errors() {
        let hash = format!(r#"sha256 = {{ "all.csv" = "{}" }}, how"#, "0".repeat(64));
        let errors = [
            load(("dev = 4", "dev = 20"), 32, None),
            load(AS_IT_IS, 32, Some(0)),
            load(AS_IT_IS, 32, Some(17)),
            load(("how", &hash), 32, None),
            load(("all.csv", "none.csv"), 32, None),
        ];
        let (root, catalogue) = catalogue(AS_IT_IS);
        let task = TaskSpec { data: "some".into(), max_length: 8, train_rows: None };
        let no_tokenizer = Dataset::load(&catalogue, &task, root.path());
        let errors = errors.into_iter().chain([no_tokenizer]).map(|result| {
            let text = result.expect_err("a fault").to_string();
            let folder = text.split(['/', ' ']).find(|part| part.starts_with(".tmp")).map(String::from);
            let temporary = std::env::temp_dir().join(folder.unwrap_or_default());
            text.replace(&temporary.display().to_string(), "MATERIALS")
        });
        insta::assert_snapshot!(errors.collect::<Vec<_>>().join("\n"));
    }

    #[test]
    #[should_panic(expected = "share one kind of label")]
    fn labels_of_two_kinds_are_our_own_mistake() {
        let of = |label| Example { ids: vec![], type_ids: vec![], label };
        Labels::of(&[of(Label::Class(1)), of(Label::Scores(vec![0.5]))]);
    }
}
