//! Questions with windows of their context, as `transformers`' example `run_qa.py` makes them.
//!
//! Where we differ: an answer that is the last token of a window is labelled with that token. There `run_qa.py` walks on
//! over the special token and the padding after it and labels the last of these as the start.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::tokenizer::{TruncationDirection, TruncationStrategy};
use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Tokenizer, TruncationParams};

use super::SquadSpec;
use super::read::{Answer, Question};
use crate::dataset::{Example, FileHash, Label};
use crate::error::TaskError;
use crate::tokenize::{TextEncoder, unusable};

/// Which part of which context a window shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Place of its question.
    pub question: usize,
    /// Which of its tokens are the context's.
    pub context: Range<usize>,
    /// The bytes of the context that each of these stands for.
    pub bytes: Vec<Range<usize>>,
}

/// Joins questions with windows of their contexts.
pub(crate) struct WindowEncoder {
    /// Neither truncates nor adds special tokens.
    plain: Tokenizer,
    /// Does both, with pairs of what `plain` makes.
    joining: Tokenizer,
    /// Tokens of a question and a window of its context.
    room: usize,
    /// Tokens of a window of the context at least: as many that the next one shows more of it.
    min_context: usize,
    pub(crate) pad_id: u32,
    pub(crate) files: Vec<FileHash>,
    file: PathBuf,
}

/// The windows of one question.
pub(crate) struct Windows {
    pub(crate) windows: Vec<(Example, Window)>,
    /// Whether the question lost its end.
    pub(crate) cut: bool,
}

impl WindowEncoder {
    /// With the tokenizer of a checkpoint's folder.
    pub(crate) fn open(checkpoint: &Path, spec: &SquadSpec) -> Result<Self, TaskError> {
        let SquadSpec { max_length, stride, .. } = *spec;
        let TextEncoder { tokenizer, pad_id, files, file } = TextEncoder::open(checkpoint, max_length, 2)?;
        let special = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(true));
        let least = special + stride + 2;
        if max_length < least {
            return Err(TaskError::Stride { stride, max_length, least });
        }
        let mut plain = tokenizer.clone();
        plain.with_truncation(None).map_err(unusable(&file))?;
        plain.with_post_processor(None::<PostProcessorWrapper>);
        let mut joining = tokenizer;
        let windows = TruncationParams {
            max_length,
            stride,
            strategy: TruncationStrategy::OnlySecond,
            direction: TruncationDirection::Right,
        };
        joining.with_truncation(Some(windows)).map_err(unusable(&file))?;
        Ok(Self { plain, joining, room: max_length - special, min_context: stride + 1, pad_id, files, file })
    }

    /// The windows of each question, in their order, on all cores.
    pub(crate) fn encode(&self, questions: &[Question]) -> Result<Vec<Windows>, TaskError> {
        let mut first = 0;
        let paragraphs = questions.chunk_by(|one, next| Arc::ptr_eq(&one.context, &next.context));
        let paragraphs = paragraphs.map(|own| {
            let place = first;
            first += own.len();
            (place, own)
        });
        let paragraphs: Vec<_> = paragraphs.collect();
        let encoded = paragraphs.into_par_iter().map(|(first, questions)| self.paragraph(first, questions));
        Ok(encoded.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// The questions of one paragraph, the first of which stands at `first`.
    fn paragraph(&self, first: usize, questions: &[Question]) -> Result<Vec<Windows>, TaskError> {
        let encode = |text: &str| self.plain.encode(text, false).map_err(unusable(&self.file));
        let mut context = encode(&questions[0].context)?;
        context.set_type_ids(vec![1; context.len()]);
        let max_question = self.room - context.len().min(self.min_context);
        let windows = questions.iter().enumerate().map(|(number, question)| {
            // Blanks before it would take room from the context with tokenizers that keep them.
            let mut asked = encode(question.text.trim_start_matches(is_space))?;
            let cut = asked.len() > max_question;
            asked.truncate(max_question, 0, TruncationDirection::Right);
            let _ = asked.take_overflowing();
            let joined = self.joining.post_process(asked, Some(context.clone()), true);
            let mut first_window = joined.map_err(unusable(&self.file))?;
            let others = first_window.take_overflowing();
            let windows = std::iter::once(first_window).chain(others);
            let windows = windows.map(|window| labelled(&window, first + number, &question.answers));
            Ok(Windows { windows: windows.collect(), cut })
        });
        windows.collect()
    }
}

/// White space as Python has it: four separators more than Unicode's property.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn labelled(encoding: &Encoding, question: usize, answers: &[Answer]) -> (Example, Window) {
    let sequences = encoding.get_sequence_ids();
    let context = match sequences.iter().position(|sequence| *sequence == Some(1)) {
        None => encoding.len()..encoding.len(),
        Some(start) => start..start + sequences.iter().filter(|sequence| **sequence == Some(1)).count(),
    };
    let bytes: Vec<_> =
        encoding.get_offsets()[context.clone()].iter().map(|&(start, end)| start..end).collect();
    // Of several answers the first is learned, as far as it can be.
    let answer = answers.iter().find_map(|answer| Some(answer.start?..answer.start? + answer.text.len()));
    let span = answer.and_then(|answer| span_of(answer, &bytes));
    let label = span.map_or([0, 0], |span| span.map(|token| context.start + token));
    let example = Example {
        ids: encoding.get_ids().to_vec(),
        type_ids: encoding.get_type_ids().to_vec(),
        label: Label::Span(label),
    };
    (example, Window { question, context, bytes })
}

/// First and last of the tokens with these `bytes` that stand for `answer`; `None` if some of it is not among them.
fn span_of(answer: Range<usize>, bytes: &[Range<usize>]) -> Option<[usize; 2]> {
    let (first, last) = (bytes.first()?, bytes.last()?);
    if first.start > answer.start || last.end < answer.end {
        return None;
    }
    let start = bytes.iter().take_while(|token| token.start <= answer.start).count() - 1;
    let after = bytes.iter().rev().take_while(|token| token.end >= answer.end).count();
    Some([start, bytes.len() - after])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde::Deserialize;

    use super::*;
    use crate::squad::tests::{checkpoint, values};
    use crate::squad::{Questions, SquadVersion};

    #[derive(Deserialize)]
    struct Recorded {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        tokenizer: String,
        version: SquadVersion,
        max_length: usize,
        stride: usize,
        windows: Vec<OfPython>,
    }

    #[derive(Deserialize)]
    struct OfPython {
        example_id: String,
        ids: Vec<u32>,
        type_ids: Vec<u32>,
        span: [usize; 2],
        context: [usize; 2],
        /// In characters, starts and ends in turns.
        offsets: Vec<usize>,
    }

    fn load(version: SquadVersion, max_length: usize, stride: usize, tokenizer: &str) -> Questions {
        let name = if version == SquadVersion::V1 { "v1.1.json" } else { "v2.0.json" };
        let spec = SquadSpec { version, max_length, stride };
        let file = values().join("squad").join(name);
        Questions::load(&file, &spec, &checkpoint(tokenizer)).expect("reference values")
    }

    /// The label that `run_qa.py` gives, except where it runs out of the context.
    fn span_of_python(own: &OfPython) -> [usize; 2] {
        if own.span[0] >= own.context[1] { [own.context[1] - 1; 2] } else { own.span }
    }

    #[test]
    fn the_same_windows_and_spans_as_in_python() {
        let text = fs::read_to_string(values().join("squad/windows.json")).expect("values");
        let Recorded { cases } = serde_json::from_str(&text).expect("reference values");
        let (mut compared, mut spans, mut corrected) = (0, 0, 0);
        for case in cases {
            let made = load(case.version, case.max_length, case.stride, &case.tokenizer);
            let context = |window: &Window| &made.questions[window.question].context;
            for own in &case.windows {
                let what = format!("{} at {}, {}", case.tokenizer, case.max_length, own.example_id);
                let mut of_question = made
                    .examples
                    .iter()
                    .zip(&made.windows)
                    .filter(|(_, window)| made.questions[window.question].id == own.example_id);
                let same = of_question.find(|(example, window)| {
                    let bytes = window.bytes.iter().flat_map(|token| [token.start, token.end]);
                    let characters = bytes.map(|byte| context(window)[..byte].chars().count());
                    example.ids == own.ids && characters.eq(own.offsets.iter().copied())
                });
                let (example, window) = same.unwrap_or_else(|| panic!("{what}: no such window"));
                assert_eq!(example.type_ids, own.type_ids, "{what}");
                assert_eq!(window.context, own.context[0]..own.context[1], "{what}");
                assert_eq!(example.label, Label::Span(span_of_python(own)), "{what}");
                compared += 1;
                spans += usize::from(own.span[0] > 0);
                corrected += usize::from(own.span != span_of_python(own));
            }
            // Nor are there any more of them.
            let ids: Vec<_> = case.windows.iter().map(|own| &own.example_id).collect();
            let windows = made.windows.iter().map(|window| &made.questions[window.question].id);
            assert_eq!(windows.filter(|id| ids.contains(id)).collect::<Vec<_>>(), ids);
        }
        assert!(compared > 100 && spans > 50 && corrected == 2, "{compared}, {spans}, {corrected}");
    }

    #[test]
    fn windows_cover_the_context_and_share_the_stride() {
        for (max_length, stride) in [(384, 128), (100, 30), (80, 0)] {
            let made = load(SquadVersion::V1, max_length, stride, "nmt-nfkc");
            let same_question = |one: &Window, next: &Window| one.question == next.question;
            for windows in made.windows.chunk_by(same_question) {
                for pair in windows.windows(2) {
                    let shared = pair[0].bytes.len() - stride..;
                    assert_eq!(pair[0].bytes[shared], pair[1].bytes[..stride]);
                }
                let context = &made.questions[windows[0].question].context;
                let end = windows.last().and_then(|window| window.bytes.last()).expect("a token").end;
                assert_eq!(end, context.trim_end().len());
                assert_eq!(windows[0].bytes[0].start, 0);
            }
            assert!(made.examples.iter().all(|example| example.ids.len() <= max_length));
            assert!(made.counts.several_windows > 0);
        }
    }

    #[test]
    fn a_question_gives_way_where_nothing_of_the_context_would_have_room() {
        let made = load(SquadVersion::V1, 30, 10, "bert-tiny");
        assert_eq!(made.counts.cut_questions, 1);
        // Three special tokens, 16 of the question, and one more of the context than windows share.
        let cut = made.windows.iter().find(|window| window.question == 2).expect("a window");
        assert_eq!((cut.context.clone(), cut.bytes.len()), (18..29, 11));
        assert!(made.examples.iter().all(|example| example.ids.len() <= 30));
        // Where all of a shorter context has room, it may be less than that.
        let made = load(SquadVersion::V2, 80, 70, "bert-tiny");
        let whole = made.windows.iter().find(|window| window.question == 2).expect("a window");
        assert!(whole.context.start > 50 && whole.bytes.len() == 16, "{whole:?}");
    }

    #[test]
    fn an_empty_context_has_a_window_and_is_counted() {
        let made = load(SquadVersion::V2, 64, 0, "bert-tiny");
        assert_eq!((made.counts.empty_contexts, made.counts.unanswerable), (1, 3));
        let window = made.windows.last().expect("a window");
        let (example, question) = (&made.examples[made.windows.len() - 1], &made.questions[window.question]);
        assert_eq!((question.text.as_str(), window.bytes.len()), ("What is here?", 0));
        assert_eq!((&example.label, example.ids.len()), (&Label::Span([0, 0]), window.context.start));
        assert_eq!(made.to_train(), made.examples);
    }

    #[test]
    fn what_cannot_be_learned_is_left_out_of_training_and_counted() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let content = r#"{"data": [{"paragraphs": [{"context": "Anna swam.", "qas": [
            {"id": "a", "question": "Who?", "answers": [{"text": "Anne", "answer_start": 0}]},
            {"id": "b", "question": "Who?", "answers": [{"text": "Eve", "answer_start": 0},
                {"text": "Anna", "answer_start": 0}]}]}]}]}"#;
        fs::write(&file, content).expect("a file");
        let spec = SquadSpec { version: SquadVersion::V1, max_length: 32, stride: 8 };
        let made = Questions::load(file.path(), &spec, &checkpoint("bert-tiny")).expect("valid");
        assert_eq!((made.counts.misplaced_answers, made.counts.nothing_to_learn), (2, 1));
        assert_eq!((made.examples.len(), made.to_train().len()), (2, 1));
        let Label::Span([start, end]) = made.to_train()[0].label else { panic!("a span") };
        let bytes = &made.windows[1].bytes;
        let first = made.windows[1].context.start;
        assert_eq!(bytes[start - first].start..bytes[end - first].end, 0..4);
    }

    #[test]
    fn a_stride_without_room() {
        let spec = SquadSpec { version: SquadVersion::V1, max_length: 132, stride: 128 };
        let error = WindowEncoder::open(&checkpoint("bert-tiny"), &spec).err().expect("no room");
        insta::assert_snapshot!(error, @"max_length (132) must be at least 133: special tokens, one token of the question, and one more of the context than windows share (stride = 128)");
        assert!(
            WindowEncoder::open(&checkpoint("bert-tiny"), &SquadSpec { max_length: 133, ..spec }).is_ok()
        );
    }
}
