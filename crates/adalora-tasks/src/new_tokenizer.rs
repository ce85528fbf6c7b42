//! A tokenizer for a model that is trained from scratch.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::byte_level;
use crate::error::{Place, RowProblem, TaskError};
use crate::tokenize::unusable;

/// A byte-level BPE tokenizer as BART has it, its special tokens first: `<s>`, `<pad>`, `</s>`, `<unk>`, `<mask>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTokenizer {
    /// What `tokenizer.json` is to hold.
    pub json: String,
    /// Tokens of the vocabulary.
    pub tokens: usize,
}

impl NewTokenizer {
    /// Learns a vocabulary of `vocabulary` tokens, fewer if there are not so many, from all strings of a file with one
    /// JSON object a line. The same texts give the same tokenizer.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a line that is no object, or a vocabulary that is too small for all bytes.
    pub fn train(file: &Path, vocabulary: usize) -> Result<Self, TaskError> {
        let least = byte_level::LEAST + 1;
        if vocabulary < least {
            return Err(TaskError::Vocabulary { vocabulary, least });
        }
        let content = fs::read_to_string(file).map_err(TaskError::io(file))?;
        let mut texts = Vec::new();
        for (number, line) in content.lines().enumerate() {
            let object: Map<String, Value> = serde_json::from_str(line).map_err(|error| TaskError::Row {
                file: file.into(),
                place: Place::Line(number + 1),
                problem: RowProblem::NoObject {
                    // The parser counts lines from the beginning of this one.
                    said: error.to_string().replace(" at line 1 column", " at column"),
                },
            })?;
            texts.extend(object.into_iter().filter_map(|(_, value)| match value {
                Value::String(text) => Some(text),
                _ => None,
            }));
        }
        let unusable = || unusable(file);
        let tokenizer = byte_level::train(&texts, vocabulary).map_err(|error| unusable()(error.into()))?;
        let json = tokenizer.to_string(true).map_err(unusable())?;
        Ok(Self { json, tokens: tokenizer.get_vocab_size(true) })
    }
}
