//! A tokenizer for a model that is trained from scratch.

use crate::byte_level;
use crate::catalogue::Catalogue;
use crate::error::TaskError;
use crate::summaries::training_texts;

/// A byte-level BPE tokenizer as BART has it, its special tokens first: `<s>`, `<pad>`, `</s>`, `<unk>`, `<mask>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTokenizer {
    /// What `tokenizer.json` is to hold.
    pub json: String,
    /// Tokens of the vocabulary.
    pub tokens: usize,
}

impl NewTokenizer {
    /// Learns a vocabulary of `vocabulary` tokens, fewer if there are not so many, from the documents and summaries that
    /// the fetched data set `data` has to train on. The same texts give the same tokenizer.
    ///
    /// # Errors
    ///
    /// A data set without summaries, or one that cannot be read; a vocabulary that is too small for all bytes.
    pub fn train(catalogue: &Catalogue, data: &str, vocabulary: usize) -> Result<Self, TaskError> {
        let least = byte_level::LEAST + 1;
        if vocabulary < least {
            return Err(TaskError::Vocabulary { vocabulary, least });
        }
        let unusable = |source| TaskError::NoVocabulary { name: data.into(), source };
        let tokenizer = byte_level::train(&training_texts(catalogue, data)?, vocabulary)
            .map_err(|error| unusable(error.into()))?;
        let json = tokenizer.to_string(true).map_err(unusable)?;
        Ok(Self { json, tokens: tokenizer.get_vocab_size(true) })
    }
}
