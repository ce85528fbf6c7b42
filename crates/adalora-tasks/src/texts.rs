//! Texts without labels, for a trained model to say something of them.

use std::path::Path;

use crate::dataset::{Example, Label, noted};
use crate::error::TaskError;
use crate::rows::Row;
use crate::tokenize::TextEncoder;

/// Texts, or pairs of them, as tokens.
pub struct Texts {
    /// One for each line. Labels say nothing: all are class 0.
    pub examples: Vec<Example>,
    /// Examples that lost tokens to `max_length`.
    pub truncated: usize,
    /// The token that pads a batch.
    pub pad_id: u32,
    encoder: TextEncoder,
}

impl Texts {
    /// Tokenizes lines with the tokenizer in a checkpoint's folder. Where `texts` is 1 a line is a text, tabs included;
    /// where it is 2 it is two texts with a tab between. An empty line is an empty text.
    ///
    /// # Errors
    ///
    /// A line that should be a pair and is none; a tokenizer that cannot be used.
    pub fn read(lines: &str, checkpoint: &Path, max_length: usize, texts: usize) -> Result<Self, TaskError> {
        let rows = lines.lines().enumerate().map(|(index, line)| {
            let label = Label::Class(0);
            if texts == 1 {
                return Ok(Row { text: line.into(), pair: None, label });
            }
            let (text, pair) = pair(line, index + 1)?;
            Ok(Row { text: text.into(), pair: Some(pair.into()), label })
        });
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let encoder = TextEncoder::open(checkpoint, max_length, texts)?;
        let (examples, truncated) = encoder.encode(rows)?;
        Ok(Self { examples, truncated, pad_id: encoder.pad_id, encoder })
    }

    /// What a user should know of the texts; `limit` is the setting that was too small for some.
    pub fn notes(&self, limit: &str) -> Vec<String> {
        noted([(self.truncated, format!("text(s) are longer than {limit} and lost their end"))])
    }

    /// The text that generated tokens spell, without special ones.
    ///
    /// # Errors
    ///
    /// If the tokenizer has no way back to text.
    pub fn text(&self, tokens: &[i64]) -> Result<String, TaskError> {
        self.encoder.decode(tokens)
    }
}

/// The two sides of a line, which has this number.
pub(crate) fn pair(line: &str, number: usize) -> Result<(&str, &str), TaskError> {
    match line.split('\t').collect::<Vec<_>>().as_slice() {
        [first, second] => Ok((first, second)),
        found => Err(TaskError::NotAPair { line: number, tabs: found.len() - 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str, max_length: usize, texts: usize) -> Result<Texts, TaskError> {
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        Texts::read(lines, &checkpoint, max_length, texts)
    }

    // Ids are line numbers in the fixture's vocabulary: 2 start, 3 end, 4 the, 5 a, 6 cat, 7 dog.

    #[test]
    fn a_line_is_a_text_or_a_pair() {
        let texts = read("the cat\r\n\na\tdog\n", 8, 1).unwrap();
        let ids: Vec<_> = texts.examples.iter().map(|example| example.ids.clone()).collect();
        assert_eq!(ids, [vec![2, 4, 6, 3], vec![2, 3], vec![2, 5, 7, 3]]);
        let pairs = read("the cat\ta dog\nthe the the\ta dog", 7, 2).unwrap();
        assert_eq!(pairs.examples[0].ids, [2, 4, 6, 3, 5, 7, 3]);
        assert_eq!(pairs.truncated, 1);
    }

    #[test]
    fn a_line_that_is_no_pair_is_named() {
        let error = read("the cat\ta dog\nthe cat\n", 8, 2).err().expect("no pair").to_string();
        assert_eq!(
            error,
            "line 2 has 0 tabs; this task has pairs: write the two texts with one tab between them"
        );
    }
}
