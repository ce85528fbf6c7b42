//! The byte-level BPE tokenizer of BART: out of `vocab.json` and `merges.txt`, which older checkpoints hold in the place
//! of `tokenizer.json`, or with a vocabulary for texts that are given.

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

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

/// The tokenizer of a checkpoint from the contents of its two files.
pub(crate) fn tokenizer(vocabulary: &[u8], merges: &str) -> Result<Tokenizer, ByteLevelError> {
    let vocabulary: Map<String, Value> =
        serde_json::from_slice(vocabulary).map_err(ByteLevelError::Vocabulary)?;
    let merges =
        merges.lines().enumerate().filter(|(_, line)| !line.starts_with("#version")).map(|(number, line)| {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [left, right] => Ok([left, right]),
                _ => Err(ByteLevelError::Merge { line: number + 1, found: line.into() }),
            }
        });
    let merges = merges.collect::<Result<Vec<_>, _>>()?;
    whole(&vocabulary, &json!(merges))
}

/// Special tokens and one for each byte: what every vocabulary has.
pub(crate) const LEAST: usize = SPECIAL.len() + 256;

/// A tokenizer with a vocabulary for these texts, of `size` tokens unless they have too few pairs of tokens that occur
/// twice. The order of the texts does not matter.
pub(crate) fn train(texts: &[String], size: usize) -> Result<Tokenizer, ByteLevelError> {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(size)
        .min_frequency(2)
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).into())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut learner = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .build()
        .map_err(ByteLevelError::Refused)?;
    // A text may hold special tokens, which are not spelled.
    let pieces = texts.iter().flat_map(|text| {
        SPECIAL.iter().fold(vec![text.as_str()], |pieces, token| {
            pieces.into_iter().flat_map(|piece| piece.split(token)).collect()
        })
    });
    learner.train(&mut trainer, pieces).map_err(ByteLevelError::Refused)?;
    let model = serde_json::to_value(learner.get_model()).expect("a model can be written");
    whole(model["vocab"].as_object().expect("a vocabulary is an object"), &model["merges"])
}

/// What `tokenizer.json` would say.
fn whole(vocabulary: &Map<String, Value>, merges: &Value) -> Result<Tokenizer, ByteLevelError> {
    let id = |token: &'static str| vocabulary.get(token).ok_or(ByteLevelError::Special(token));
    let added = SPECIAL.map(|token| {
        // The mask takes the blank before it.
        Ok(json!({
            "id": id(token)?, "content": token, "special": true, "normalized": true,
            "single_word": false, "lstrip": token == "<mask>", "rstrip": false,
        }))
    });
    let added = added.into_iter().collect::<Result<Vec<_>, _>>()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        let words = [
            "library",
            "libraries",
            "for reading",
            "of packages",
            "caf\u{e9}",
            "12 files",
            "\u{65e5}\u{672c}",
        ];
        (0..200)
            .map(|number| format!("{} {} {}", words[number % 7], words[number % 5], words[number % 3]))
            .collect()
    }

    #[test]
    fn a_vocabulary_is_that_of_the_texts_in_any_order() {
        let tokenizer = train(&texts(), 300).expect("a tokenizer");
        let mut reversed = texts();
        reversed.reverse();
        let other = train(&reversed, 300).expect("a tokenizer");
        let spelled = tokenizer.to_string(false).expect("JSON");
        assert_eq!(spelled, other.to_string(false).expect("JSON"));
        let gapped: Vec<_> = texts().iter().map(|text| format!("{text} <mask>")).collect();
        let gapped = train(&gapped, 300).expect("a tokenizer");
        assert_eq!(spelled, gapped.to_string(false).expect("JSON"));
        assert_eq!(tokenizer.get_vocab_size(true), 300);
        assert_eq!(SPECIAL.map(|token| tokenizer.token_to_id(token)), [0, 1, 2, 3, 4].map(Some));

        let read = Tokenizer::from_bytes(spelled).expect("what was written");
        // Words that are frequent are one token, and anything can be spelled.
        let text = "library of caf\u{e9} \u{1f600}\tZebra";
        let encoding = read.encode(text, true).expect("tokens");
        assert_eq!(encoding.get_tokens()[..2], ["<s>", "library"]);
        assert_eq!(encoding.get_ids().last(), Some(&2));
        assert_eq!(read.decode(encoding.get_ids(), true).expect("text"), text);
    }

    #[test]
    fn few_texts_make_a_small_vocabulary() {
        let tokenizer = train(&["ab ab".into(), "ab".into()], 300).expect("a tokenizer");
        // `ab`, once with a blank before it: the latter is seen once.
        assert_eq!(tokenizer.get_vocab_size(true), LEAST + 1);
    }
}
