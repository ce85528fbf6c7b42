//! Questions whose answers are spans of a paragraph, as SQuAD v1.1 (Rajpurkar et al., 2016) and v2.0 (2018) have them:
//! read, cut into windows that a model can read, answered from its logits, and scored.

mod decode;
mod read;
mod score;
mod window;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::catalogue::Catalogue;
use crate::dataset::{Dataset, Example, Files, Target, noted, sample};
use crate::dev::{DevSet, Truth};
use crate::error::TaskError;
use crate::manifest::{DataFormat, Parts};
use crate::texts::pair;

pub use decode::{Decoding, Found, Span, SpanLogits};
pub use read::{Answer, Question, QuestionProblem};
use score::Rated;
pub use score::{AnswerScore, BestThreshold};
pub use window::Window;
use window::WindowEncoder;

/// Which of the two data sets, and so which rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SquadVersion {
    /// Every question has an answer.
    #[serde(rename = "v1.1")]
    V1,
    /// A question may have none, and a model has to say so.
    #[serde(rename = "v2.0")]
    V2,
}

/// `[task.questions]` of an experiment: which questions, and how answers are looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuestionsSpec {
    /// Name of a manifest.
    pub data: String,
    /// Tokens of a window: special ones, the question, and as much of the context as fits.
    pub max_length: usize,
    /// Tokens of the context that neighbouring windows share: `doc_stride` of `run_qa.py`.
    pub stride: usize,
    /// Of the tokens of a window, as many of the likeliest first and last ones are put together.
    #[serde(default = "usual_n_best")]
    pub n_best: usize,
    /// Tokens of an answer at most.
    #[serde(default = "usual_answer")]
    pub max_answer_length: usize,
    /// Trains on a sample of this many questions instead of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_rows: Option<usize>,
    /// Evaluates on a sample of this many questions instead of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev_rows: Option<usize>,
}

impl QuestionsSpec {
    /// How answers are looked for.
    pub fn decoding(&self) -> Decoding {
        Decoding { n_best: self.n_best, max_answer_length: self.max_answer_length }
    }
}

fn usual_n_best() -> usize {
    Decoding::default().n_best
}

fn usual_answer() -> usize {
    Decoding::default().max_answer_length
}

impl Dataset {
    /// Reads both sides of the fetched data set `task.data` and cuts them into windows, with the tokenizer in a
    /// checkpoint's folder.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or breaks a rule, see [`QuestionProblem`]; an unusable tokenizer; a stride that leaves
    /// no room; a sample that is too large.
    pub fn questions(
        catalogue: &Catalogue,
        task: &QuestionsSpec,
        checkpoint: &Path,
    ) -> Result<Self, TaskError> {
        let name = &task.data;
        let (DataFormat::Squad(format), mut files) = Files::of(catalogue, name)? else {
            return Err(TaskError::OtherTask { name: name.clone(), task: "questions" });
        };
        let QuestionsSpec { max_length, stride, .. } = *task;
        let version = format.version;
        let encoder = WindowEncoder::open(checkpoint, &SquadSpec { version, max_length, stride })?;
        files.read.extend_from_slice(&encoder.files);
        let mut read = |parts: &Parts| {
            let parts = parts.files().iter().map(|file| {
                let (path, content) = files.read(file)?;
                Question::read(&content, &path, version)
            });
            parts.collect::<Result<Vec<_>, TaskError>>().map(|parts| parts.concat())
        };
        let (train, dev) = (read(&format.sides().train)?, read(&format.sides().dev)?);
        let train_available = train.len();
        let some = |all: Vec<Question>, asked, key| {
            let Some(asked) = asked else { return Ok(all) };
            // In the order of the file, so that questions about a paragraph stay together.
            let chosen: BTreeSet<_> =
                sample((0..all.len()).collect(), asked, name, key)?.into_iter().collect();
            Ok(chosen.into_iter().map(|place| all[place].clone()).collect())
        };
        let (train, dev) =
            (some(train, task.train_rows, "train_rows")?, some(dev, task.dev_rows, "dev_rows")?);
        let train = Questions::of(train, version, &encoder)?;
        let dev = Arc::new(Questions::of(dev, version, &encoder)?);
        let truth = Truth::Questions(Arc::clone(&dev), task.decoding());
        let left_out =
            (train.counts.nothing_to_learn, "questions to train on have only such answers: left out");
        Ok(Self {
            name: name.clone(),
            train: train.to_train(),
            dev: vec![DevSet { name: None, examples: Arc::clone(&dev.examples), truth }],
            target: Target::Answers,
            evaluation: DataFormat::Squad(format).evaluation().to_vec(),
            train_available,
            notes: [train.counts.notes("to train on"), noted([left_out]), dev.counts.notes("to evaluate on")]
                .concat(),
            pad_id: encoder.pad_id,
            files: files.read,
        })
    }
}

/// How questions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquadSpec {
    /// Whether there may be no answer.
    pub version: SquadVersion,
    /// Tokens of a window: special ones, the question, and as much of the context as fits.
    pub max_length: usize,
    /// Tokens of the context that neighbouring windows share: `doc_stride` of `transformers`' `run_qa.py`, which its older
    /// `run_squad.py` and BERT's own code take for the step from one window to the next.
    pub stride: usize,
}

/// What a user should know of the questions. Nothing was left out for any of these, except where it says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuestionCounts {
    /// Questions without an answer.
    pub unanswerable: usize,
    /// Answers that do not stand where the file says. They are scored, but cannot be learned.
    pub misplaced_answers: usize,
    /// Questions that have only such answers: [`Questions::to_train`] leaves them out.
    pub nothing_to_learn: usize,
    /// Questions about a paragraph without a visible character.
    pub empty_contexts: usize,
    /// Questions that lost their end, so that some of the context has room.
    pub cut_questions: usize,
    /// Questions whose context takes several windows.
    pub several_windows: usize,
}

impl QuestionCounts {
    /// As sentences; `which` questions these are. What is left out is not told here.
    fn notes(&self, which: &str) -> Vec<String> {
        let Self { unanswerable, misplaced_answers, empty_contexts, cut_questions, several_windows, .. } =
            *self;
        noted([
            (unanswerable, format!("questions {which} have no answer")),
            (
                misplaced_answers,
                format!(
                    "answers to questions {which} do not stand where the file says: scored, but not learned"
                ),
            ),
            (empty_contexts, format!("questions {which} are about an empty paragraph")),
            (cut_questions, format!("questions {which} leave no room for a paragraph and lost their end")),
            (
                several_windows,
                format!("questions {which} take several windows of task.questions.max_length tokens"),
            ),
        ])
    }
}

/// Questions of one file and the windows through which a model sees their contexts.
#[derive(Debug)]
pub struct Questions {
    /// In the order of the file.
    pub questions: Vec<Question>,
    /// What the model reads, in the order of the questions, one or more for each. The label is the first answer that can
    /// be learned, or the first token if the window does not show it whole.
    pub examples: Arc<[Example]>,
    /// For each of the examples, which part of which context it shows.
    pub windows: Vec<Window>,
    /// Fills shorter examples of a batch.
    pub pad_id: u32,
    /// What was found on the way.
    pub counts: QuestionCounts,
    version: SquadVersion,
}

impl Questions {
    /// Reads a file in SQuAD's layout, with the tokenizer of a checkpoint.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or breaks a rule, see [`QuestionProblem`]; an unusable tokenizer; a stride that leaves
    /// no room.
    pub fn load(file: &Path, spec: &SquadSpec, checkpoint: &Path) -> Result<Self, TaskError> {
        let content = fs::read(file).map_err(TaskError::io(file))?;
        let encoder = WindowEncoder::open(checkpoint, spec)?;
        Self::of(Question::read(&content, file, spec.version)?, spec.version, &encoder)
    }

    /// Questions about paragraphs of their own, whose answers nobody knows: one a line, with a tab before the paragraph.
    ///
    /// # Errors
    ///
    /// A line without that; an unusable tokenizer; a stride that leaves no room.
    pub fn ask(
        lines: &str,
        task: &QuestionsSpec,
        version: SquadVersion,
        checkpoint: &Path,
    ) -> Result<Self, TaskError> {
        let QuestionsSpec { max_length, stride, .. } = *task;
        let encoder = WindowEncoder::open(checkpoint, &SquadSpec { version, max_length, stride })?;
        let questions = lines.lines().enumerate().map(|(index, line)| {
            let (text, context) = pair(line, index + 1)?;
            let id = (index + 1).to_string();
            Ok(Question { id, text: text.into(), context: context.into(), answers: Vec::new() })
        });
        Self::of(questions.collect::<Result<_, TaskError>>()?, version, &encoder)
    }

    fn of(
        questions: Vec<Question>,
        version: SquadVersion,
        encoder: &WindowEncoder,
    ) -> Result<Self, TaskError> {
        let encoded = encoder.encode(&questions)?;
        let count = |rule: fn(&Question) -> bool| questions.iter().filter(|question| rule(question)).count();
        let counts = QuestionCounts {
            unanswerable: count(|question| question.answers.is_empty()),
            misplaced_answers: questions
                .iter()
                .flat_map(|question| &question.answers)
                .filter(|answer| answer.start.is_none())
                .count(),
            nothing_to_learn: count(|question| !question.can_be_learned()),
            empty_contexts: count(|question| question.context.trim().is_empty()),
            cut_questions: encoded.iter().filter(|own| own.cut).count(),
            several_windows: encoded.iter().filter(|own| own.windows.len() > 1).count(),
        };
        let (examples, windows): (Vec<_>, Vec<_>) = encoded.into_iter().flat_map(|own| own.windows).unzip();
        Ok(Self { questions, examples: examples.into(), windows, pad_id: encoder.pad_id, counts, version })
    }

    /// The examples to train on: those of questions that have an answer to learn, or none to find.
    pub fn to_train(&self) -> Arc<[Example]> {
        let examples = self.examples.iter().zip(&self.windows);
        let learnable = examples.filter(|(_, window)| self.questions[window.question].can_be_learned());
        learnable.map(|(example, _)| example.clone()).collect()
    }

    /// What a model's logits for the examples, in their order, say of each question.
    ///
    /// # Panics
    ///
    /// If there is another number of logits than of examples, or fewer than tokens in one.
    pub fn decode(&self, logits: &[SpanLogits], decoding: &Decoding) -> Vec<Found> {
        assert_eq!(logits.len(), self.windows.len(), "logits for each window");
        let mut first = 0;
        let windows = self.windows.chunk_by(|one, next| one.question == next.question).map(|own| {
            let place = first;
            first += own.len();
            (own, &logits[place..first])
        });
        let windows: Vec<_> = windows.collect();
        windows.into_par_iter().map(|(windows, logits)| decoding.find(windows, logits)).collect()
    }

    /// The answer to the question at `question`: empty if there is none, and for v2.0 if no answer is likelier by more
    /// than `threshold`, which is 0 in `run_qa.py`.
    pub fn answer(&self, question: usize, found: &Found, threshold: f32) -> &str {
        let none = self.version == SquadVersion::V2 && found.null_odds() > threshold;
        let best = found.spans.first().filter(|_| !none);
        best.map_or("", |best| &self.questions[question].context[best.bytes.clone()])
    }

    /// Exact match and F1 of what was found for each question, in their order.
    ///
    /// # Panics
    ///
    /// If something was found for another number of questions.
    pub fn score(&self, found: &[Found], threshold: f32) -> SquadScore {
        assert_eq!(found.len(), self.questions.len(), "something for each question");
        let scores = |threshold: f32| -> Vec<AnswerScore> {
            let questions = self.questions.par_iter().zip(found).enumerate();
            let scores = questions.map(|(place, (question, found))| {
                let answers: Vec<&str> = question.answers.iter().map(|own| own.text.as_str()).collect();
                AnswerScore::of(self.version, self.answer(place, found, threshold), &answers)
            });
            scores.collect()
        };
        let at_threshold = scores(threshold);
        let mean = |answerable: Option<bool>| {
            let scores = at_threshold.iter().zip(&self.questions);
            let chosen = scores
                .filter(|(_, question)| answerable.is_none_or(|own| own != question.answers.is_empty()));
            AnswerScore::mean(chosen.map(|(score, _)| *score))
        };
        SquadScore {
            all: mean(None).expect("a file has a question"),
            answerable: mean(Some(true)),
            unanswerable: mean(Some(false)),
            best: (self.version == SquadVersion::V2).then(|| {
                let always = scores(f32::INFINITY);
                let best = |score: fn(&AnswerScore) -> f64| {
                    let questions = always.iter().zip(&self.questions).zip(found);
                    let rated = questions.map(|((own, question), found)| Rated {
                        odds: f64::from(found.null_odds()),
                        score: score(own),
                        answerable: !question.answers.is_empty(),
                        answered: !found.spans.is_empty(),
                    });
                    BestThreshold::of(&rated.collect::<Vec<_>>())
                };
                BestThresholds { exact: best(|own| own.exact), f1: best(|own| own.f1) }
            }),
        }
    }
}

/// Scores of a file of questions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SquadScore {
    /// Means over all questions: what papers report, in 0..1.
    pub all: AnswerScore,
    /// Means over those with an answer, if there are any.
    pub answerable: Option<AnswerScore>,
    /// Means over those without, if there are any.
    pub unanswerable: Option<AnswerScore>,
    /// For v2.0, what another threshold would have given; chosen with the answers known.
    pub best: Option<BestThresholds>,
}

/// The best threshold for each of the two scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestThresholds {
    /// For exact match.
    pub exact: BestThreshold,
    /// For F1.
    pub f1: BestThreshold,
}

impl Question {
    fn can_be_learned(&self) -> bool {
        self.answers.is_empty() || self.answers.iter().any(|answer| answer.start.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::dataset::Label;

    pub(super) fn values() -> PathBuf {
        root().join("reference/values")
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// A folder with the tokenizer of this name; BERT-tiny's is one that `just setup` fetches.
    pub(super) fn checkpoint(name: &str) -> PathBuf {
        let materials =
            std::env::var_os("ADALORA_MATERIALS").map_or_else(|| root().join(".materials"), PathBuf::from);
        match name {
            "bert-tiny" => {
                let folder = materials.join(name);
                assert!(folder.is_dir(), "{} is missing: run `just setup`", folder.display());
                folder
            }
            _ => values().join("sentencepiece").join(name),
        }
    }

    fn recorded(name: &str) -> Value {
        let text = fs::read_to_string(values().join("squad").join(name)).expect("reference values");
        serde_json::from_str(&text).expect("reference values")
    }

    #[derive(Deserialize)]
    struct Case {
        version: SquadVersion,
        n_best: usize,
        max_answer_length: usize,
        /// Those of the case before, if they are left out.
        starts: Option<Vec<Vec<f32>>>,
        ends: Option<Vec<Vec<f32>>>,
        answers: Vec<OfPython>,
    }

    #[derive(Deserialize)]
    struct OfPython {
        id: String,
        answer: String,
        /// The n best, with that of no answer among them for v2.0.
        texts: Vec<String>,
        /// Of start and end in turns.
        logits: Vec<f32>,
        null_odds: Option<f32>,
    }

    /// Held to `run_qa.py`'s own function on the values that `reference/squad.py` made.
    #[test]
    fn answers_from_logits_as_in_python() {
        let cases: Vec<Case> =
            serde_json::from_value(recorded("answers.json")["cases"].clone()).expect("cases");
        let mut logits = Vec::new();
        let mut none = 0;
        for case in cases {
            if let (Some(starts), Some(ends)) = (case.starts, case.ends) {
                let sides = starts.into_iter().zip(ends);
                logits = sides.map(|(starts, ends)| SpanLogits { starts, ends }).collect::<Vec<_>>();
            }
            let file = if case.version == SquadVersion::V1 { "v1.1.json" } else { "v2.0.json" };
            let spec = SquadSpec { version: case.version, max_length: 72, stride: 12 };
            let made = Questions::load(&values().join("squad").join(file), &spec, &checkpoint("bert-tiny"));
            let made = made.expect("reference values");
            // What is behind the recorded questions has no logits.
            let place =
                |id: &String| made.questions.iter().position(|own| own.id == *id).expect("its question");
            let last = case.answers.iter().map(|own| place(&own.id)).max().expect("an answer");
            let windows = made.windows.iter().filter(|window| window.question <= last).count();
            assert_eq!(windows, logits.len());
            let part = Questions { windows: made.windows[..windows].to_vec(), ..made };
            let decoding = Decoding { n_best: case.n_best, max_answer_length: case.max_answer_length };
            let found = part.decode(&logits, &decoding);
            assert_eq!(found.len(), case.answers.len());
            for own in case.answers {
                let place =
                    part.questions.iter().position(|question| question.id == own.id).expect("its question");
                let (found, context) = (&found[place], &part.questions[place].context);
                if own.texts[0] == "empty" {
                    // There no span is left, and a word is made up.
                    assert!(found.spans.is_empty(), "{}", own.id);
                    none += 1;
                    continue;
                }
                let recorded: Vec<_> = own.texts.iter().zip(own.logits.chunks(2)).collect();
                let recorded = recorded.into_iter().filter(|(text, _)| !text.is_empty());
                let recorded: Vec<_> =
                    recorded.map(|(text, logits)| (text.as_str(), logits[0], logits[1])).collect();
                let spans = found.spans.iter();
                let spans: Vec<_> =
                    spans.map(|own| (&context[own.bytes.clone()], own.start_logit, own.end_logit)).collect();
                // There no answer may take the place of one of the spans.
                assert_eq!(spans[..recorded.len()], recorded, "{}", own.id);
                assert!(spans.len() - recorded.len() <= 1, "{}", own.id);
                assert_eq!(part.answer(place, found, 0.0), own.answer, "{}", own.id);
                if let Some(odds) = own.null_odds {
                    assert_eq!(found.null_odds(), odds, "{}", own.id);
                }
            }
        }
        assert!(none < 5, "{none}");
    }

    #[test]
    fn thresholds_move_from_answers_to_none() {
        let spec = SquadSpec { version: SquadVersion::V2, max_length: 72, stride: 12 };
        let file = values().join("squad/v2.0.json");
        let made = Questions::load(&file, &spec, &checkpoint("bert-tiny")).expect("reference values");
        // Sure of every answer that it sees, and that there is none where it sees none.
        let logits: Vec<_> = made
            .examples
            .iter()
            .map(|example| {
                let Label::Span([start, end]) = example.label else { panic!("a span") };
                let only = |at: usize, least: f32| {
                    (0..example.ids.len())
                        .map(|token| if token == at { 5.0 } else { least - 1e-3 * token as f32 })
                        .collect()
                };
                SpanLogits { starts: only(start, 0.0), ends: only(end, 0.0) }
            })
            .collect();
        let found = made.decode(&logits, &Decoding::default());
        // One answer ends in an accent that its token does not have, and so goes on to the next word.
        let (questions, all) = (made.questions.len() as f64, made.score(&found, 0.0).all);
        assert_eq!([all.exact, all.f1].map(|mean| (mean * questions * 3.0).round()), [51.0, 53.0]);
        let never = made.score(&found, f32::NEG_INFINITY);
        let unanswerable = made.counts.unanswerable as f64 / made.questions.len() as f64;
        assert_eq!((never.all.exact, never.answerable.expect("some").f1), (unanswerable, 0.0));
        assert_eq!(never.unanswerable.expect("some"), AnswerScore { exact: 1.0, f1: 1.0 });
        assert_eq!(never.best.expect("v2.0").f1.score, all.f1);
        let always = made.score(&found, f32::INFINITY);
        assert_eq!(always.answerable, made.score(&found, 0.0).answerable);
        assert!(always.unanswerable.expect("some").exact < 1.0);
    }

    /// SQuAD's own files, which need not be at hand: `cargo test -p adalora-tasks squad -- --ignored` with ADALORA_SQUAD
    /// naming the folder.
    #[test]
    #[ignore = "needs the folder ADALORA_SQUAD with the files that reference/squad.py names"]
    fn real_questions_as_in_python() {
        let folder = PathBuf::from(std::env::var_os("ADALORA_SQUAD").expect("ADALORA_SQUAD"));
        let real = recorded("real.json");
        for tokenizer in ["bert-tiny", "nmt-nfkc"] {
            let spec = SquadSpec { version: SquadVersion::V1, max_length: 384, stride: 128 };
            let made = Questions::load(&folder.join("xquad.en.json"), &spec, &checkpoint(tokenizer));
            let made = made.expect("a file of the folder");
            let mut hasher = Sha256::new();
            for example in made.examples.iter() {
                let Label::Span(span) = example.label else { panic!("a span") };
                let numbers = std::iter::once(example.ids.len() as u32).chain(example.ids.iter().copied());
                numbers
                    .chain(span.map(|token| token as u32))
                    .for_each(|own| hasher.update(own.to_le_bytes()));
            }
            let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            let expected = &real[format!("xquad.en.json by {tokenizer}")];
            assert_eq!(
                (made.examples.len() as u64, found.as_str()),
                (
                    expected["windows"].as_u64().expect("a number"),
                    expected["sha256"].as_str().expect("a hash"),
                )
            );
            assert_eq!(made.counts.misplaced_answers, 0);
        }
        for (file, version) in [("dev-v1.1.json", SquadVersion::V1), ("dev-v2.0.half.json", SquadVersion::V2)]
        {
            let expected = &real[file];
            let content = fs::read(folder.join(file)).expect("a file of the folder");
            let questions = Question::read(&content, Path::new(file), version).expect("valid");
            assert_eq!(expected["questions"].as_u64(), Some(questions.len() as u64));
            let near = |own: f64, name: &str| {
                let expected = expected[name].as_f64().expect("a number");
                assert!((100.0 * own - expected).abs() < 1e-9, "{file}, {name}: {own} and {expected}");
            };
            let odds = |number: usize| ((number * 7919) % 1000) as f64 / 500.0 - 1.0;
            let scored = questions.iter().enumerate().map(|(number, question)| {
                let answers: Vec<_> = question.answers.iter().map(|own| own.text.as_str()).collect();
                let predicted = altered(number, question);
                (AnswerScore::of(version, &predicted, &answers), !answers.is_empty())
            });
            let scored: Vec<_> = scored.collect();
            if version == SquadVersion::V1 {
                let mean = AnswerScore::mean(scored.iter().map(|(score, _)| *score)).expect("questions");
                near(mean.exact, "exact");
                near(mean.f1, "f1");
                continue;
            }
            let at_zero = scored.iter().enumerate().map(|(number, &(score, has))| match odds(number) > 0.0 {
                true => AnswerScore { exact: f64::from(u8::from(!has)), f1: f64::from(u8::from(!has)) },
                false => score,
            });
            let mean = AnswerScore::mean(at_zero).expect("questions");
            near(mean.exact, "exact");
            near(mean.f1, "f1");
            let best = |score: fn(&AnswerScore) -> f64| {
                let rated = scored.iter().enumerate().map(|(number, (own, answerable))| Rated {
                    odds: odds(number),
                    score: score(own),
                    answerable: *answerable,
                    answered: true,
                });
                BestThreshold::of(&rated.collect::<Vec<_>>())
            };
            near(best(|own| own.exact).score, "best_exact");
            near(best(|own| own.f1).score, "best_f1");
            near(best(|own| own.f1).threshold / 100.0, "best_f1_thresh");
        }
    }

    /// The answers that `reference/squad.py` makes up, by the same rule.
    fn altered(number: usize, question: &Question) -> String {
        let characters: Vec<char> = question.context.chars().collect();
        let range = match question.answers.first() {
            None => 0..10 + number % 5,
            Some(answer) => {
                let start = question.context[..answer.start.expect("found")].chars().count();
                let end = start + answer.text.chars().count();
                start.saturating_sub(number % 7)..start.max(end - number % 3) + number % 5
            }
        };
        characters[range.start..range.end.min(characters.len())].iter().collect()
    }
}
