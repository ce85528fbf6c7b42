//! The byte-level BPE tokenizer of BART out of `vocab.json` and `merges.txt`, which older checkpoints hold in the place
//! of `tokenizer.json`.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

/// Tokens with a meaning of their own, in the order that BART's vocabulary has them in.
const SPECIAL: [&str; 5] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];

/// Why the two files are not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ByteLevelError {
    #[error("{0}; a vocabulary is one object from token to number")]
    Vocabulary(serde_json::Error),
    #[error("the vocabulary lacks `{0}`: only vocabularies as BART and RoBERTa have them are read")]
    Special(&'static str),
    #[error("line {line} of merges.txt is `{found}`: expected two tokens with a blank between them")]
    Merge { line: usize, found: String },
    #[error("{0}")]
    Refused(tokenizers::Error),
}

/// The tokenizer of a checkpoint from the contents of its two files: what `tokenizer.json` would say.
pub(crate) fn tokenizer(vocabulary: &[u8], merges: &str) -> Result<Tokenizer, ByteLevelError> {
    let vocabulary: Map<String, Value> =
        serde_json::from_slice(vocabulary).map_err(ByteLevelError::Vocabulary)?;
    let id = |token: &'static str| vocabulary.get(token).ok_or(ByteLevelError::Special(token));
    let added = SPECIAL.map(|token| {
        // The mask takes the blank before it.
        Ok(json!({
            "id": id(token)?, "content": token, "special": true, "normalized": true,
            "single_word": false, "lstrip": token == "<mask>", "rstrip": false,
        }))
    });
    let added = added.into_iter().collect::<Result<Vec<_>, _>>()?;
    let merges =
        merges.lines().enumerate().filter(|(_, line)| !line.starts_with("#version")).map(|(number, line)| {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [left, right] => Ok([left, right]),
                _ => Err(ByteLevelError::Merge { line: number + 1, found: line.into() }),
            }
        });
    let merges = merges.collect::<Result<Vec<_>, _>>()?;
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let whole = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", id("</s>")?],
            "cls": ["<s>", id("<s>")?],
            "trim_offsets": true,
            "add_prefix_space": false,
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": false,
            "byte_fallback": false,
            "vocab": vocabulary,
            "merges": merges,
        },
    });
    Tokenizer::from_bytes(whole.to_string()).map_err(ByteLevelError::Refused)
}
