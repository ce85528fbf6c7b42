//! SQuAD's own JSON, v1.1 and v2.0.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::SquadVersion;
use crate::error::TaskError;

/// A question about a paragraph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// No other question of the file has it.
    pub id: String,
    /// As it is asked.
    pub text: String,
    /// The paragraph, which its questions share.
    pub context: Arc<str>,
    /// As annotators gave them; none if the paragraph does not answer the question, as v2.0 has it.
    pub answers: Vec<Answer>,
}

/// What one annotator took for the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// In the annotator's words.
    pub text: String,
    /// Byte of the context where it begins; `None` if it is not there, so that it can be scored but not learned.
    pub start: Option<usize>,
}

/// What is wrong with a file of questions.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuestionProblem {
    /// Not JSON, or other keys or types than SQuAD's.
    #[error(
        "{said}; expected are data[].paragraphs[], each with `context` and qas[] of `id`, `question` and answers[] of \
         `text` and `answer_start`"
    )]
    Layout {
        /// What the parser said.
        said: String,
    },
    /// An id that another question has.
    #[error("question `{id}` stands here a second time: answers are scored by id, so give each its own")]
    IdTwice {
        /// The id.
        id: String,
    },
    /// No answer where v1.1 has one.
    #[error("question `{id}` has no answer, which v1.1 does not know: give one, or read the file as v2.0")]
    NoAnswerInV1 {
        /// The question's id.
        id: String,
    },
    /// `is_impossible` and the answers contradict each other.
    #[error(
        "question `{id}` has {answers} answers, but `is_impossible` is {impossible}: correct one of them"
    )]
    Contradiction {
        /// The question's id.
        id: String,
        /// How many answers there are.
        answers: usize,
        /// In the file.
        impossible: bool,
    },
}

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    id: String,
    question: String,
    answers: Vec<Given>,
    is_impossible: Option<bool>,
}

#[derive(Deserialize)]
struct Given {
    text: String,
    /// In characters.
    answer_start: i64,
}

impl Question {
    /// All questions of a file's content, those of a paragraph together; `file` is named in errors.
    ///
    /// # Errors
    ///
    /// See [`QuestionProblem`].
    pub fn read(content: &[u8], file: &Path, version: SquadVersion) -> Result<Vec<Self>, TaskError> {
        let problem = |place, problem| TaskError::Questions { file: file.into(), place, problem };
        let mut parser = serde_json::Deserializer::from_slice(content);
        let parsed: File = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
            let place = error.path().to_string();
            problem(place, QuestionProblem::Layout { said: error.into_inner().to_string() })
        })?;
        parser.end().map_err(|error| {
            problem("after its end".into(), QuestionProblem::Layout { said: error.to_string() })
        })?;
        let mut seen = HashSet::new();
        let mut questions = Vec::new();
        for (article, Article { paragraphs }) in parsed.data.into_iter().enumerate() {
            for (paragraph, Paragraph { context, qas }) in paragraphs.into_iter().enumerate() {
                let context: Arc<str> = context.into();
                for (number, asked) in qas.into_iter().enumerate() {
                    check(&asked, version, &mut seen).map_err(|rule| {
                        problem(format!("data[{article}].paragraphs[{paragraph}].qas[{number}]"), rule)
                    })?;
                    let answers = asked.answers.into_iter().map(|given| given.within(&context));
                    questions.push(Question {
                        id: asked.id,
                        text: asked.question,
                        answers: answers.collect(),
                        context: Arc::clone(&context),
                    });
                }
            }
        }
        if questions.is_empty() {
            return Err(TaskError::EmptySplit { file: file.into(), filter: None });
        }
        Ok(questions)
    }
}

fn check(asked: &Asked, version: SquadVersion, seen: &mut HashSet<String>) -> Result<(), QuestionProblem> {
    let (id, answers) = (asked.id.clone(), asked.answers.len());
    if !seen.insert(id.clone()) {
        return Err(QuestionProblem::IdTwice { id });
    }
    match asked.is_impossible {
        Some(impossible) if impossible != (answers == 0) => {
            Err(QuestionProblem::Contradiction { id, answers, impossible })
        }
        _ if answers == 0 && version == SquadVersion::V1 => Err(QuestionProblem::NoAnswerInV1 { id }),
        _ => Ok(()),
    }
}

impl Given {
    fn within(self, context: &str) -> Answer {
        let start = usize::try_from(self.answer_start).ok();
        let start = start.and_then(|start| Some(context.char_indices().nth(start)?.0));
        let start = start.filter(|&start| !self.text.is_empty() && context[start..].starts_with(&self.text));
        Answer { text: self.text, start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"version": "v2.0", "data": [{"title": "Cafés", "paragraphs": [
        {"context": "Das Café liegt am Ring.", "qas": [
            {"id": "1", "question": "Wo?", "answers": [{"text": "am Ring", "answer_start": 15},
                {"text": "Ring", "answer_start": 3}, {"text": "im Prater", "answer_start": 15}]},
            {"id": "2", "question": "Wann?", "answers": [], "is_impossible": true, "plausible_answers": []}]},
        {"context": "", "qas": [{"id": "3", "question": "Was?", "answers": [{"text": "", "answer_start": 0},
                {"text": "x", "answer_start": -1}], "is_impossible": false}]}]}]}"#;

    fn parse(content: &str, version: SquadVersion) -> Result<Vec<Question>, TaskError> {
        Question::read(content.as_bytes(), Path::new("dev.json"), version)
    }

    #[test]
    fn answers_are_found_by_their_character() {
        let questions = parse(FILE, SquadVersion::V2).expect("valid");
        let starts: Vec<Vec<_>> =
            questions.iter().map(|own| own.answers.iter().map(|answer| answer.start).collect()).collect();
        // The accent takes two bytes.
        assert_eq!(starts, [vec![Some(16), None, None], vec![], vec![None, None]]);
        assert_eq!(&questions[0].context[16..], "am Ring.");
        assert!(Arc::ptr_eq(&questions[0].context, &questions[1].context));
        assert_eq!(questions[0].answers[2].text, "im Prater");
    }

    #[test]
    fn errors() {
        let error = |from: &str, to: &str, version| {
            assert!(FILE.contains(from), "{from}");
            parse(&FILE.replacen(from, to, 1), version).expect_err("a fault").to_string()
        };
        let errors = [
            error("\"Wann?\"", "3", SquadVersion::V2),
            error("\"context\": \"\", ", "", SquadVersion::V2),
            error("\"answer_start\": -1", "\"answer_start\": \"1\"", SquadVersion::V2),
            error("]}]}]}", "]}", SquadVersion::V2),
            error("]}]}]}", "]}]}]}]", SquadVersion::V2),
            error("{\"version\": \"v2.0\", \"data\": ", "", SquadVersion::V2),
            error("\"id\": \"3\"", "\"id\": \"1\"", SquadVersion::V2),
            error("true", "false", SquadVersion::V2),
            error("\"is_impossible\": false", "\"is_impossible\": true", SquadVersion::V2),
            error("", "", SquadVersion::V1),
            parse(r#"{"data": []}"#, SquadVersion::V1).expect_err("no question").to_string(),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }
}
