//! Texts to token ids, by the tokenizer that belongs to a checkpoint.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::{EncodeInput, PostProcessor, Tokenizer, TruncationParams};

use crate::dataset::Example;
use crate::delimited::Row;
use crate::error::TaskError;

/// A `tokenizer.json` with our own truncation and without its padding.
pub(crate) struct TextEncoder {
    tokenizer: Tokenizer,
    /// Fills shorter examples of a batch; masked out.
    pub(crate) pad_id: u32,
    file: PathBuf,
}

impl TextEncoder {
    /// From the content of `file`. At most `max_length` tokens, special ones included, are kept of an example of
    /// `texts` texts; the longer text of a pair is shortened first.
    pub(crate) fn new(
        content: &[u8],
        file: &Path,
        max_length: usize,
        texts: usize,
    ) -> Result<Self, TaskError> {
        let unusable = |source| TaskError::Tokenizer { file: file.into(), source };
        let mut tokenizer = Tokenizer::from_bytes(content).map_err(unusable)?;
        let pad_id = tokenizer
            .get_padding()
            .map(|padding| padding.pad_id)
            .or_else(|| ["[PAD]", "<pad>"].iter().find_map(|token| tokenizer.token_to_id(token)))
            .ok_or_else(|| TaskError::NoPadding(file.into()))?;
        let special = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(texts == 2));
        let least = special + texts;
        if max_length < least {
            return Err(TaskError::MaxLength { max_length, least });
        }
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(unusable)?;
        Ok(Self { tokenizer, pad_id, file: file.into() })
    }

    /// Examples in the order of `rows`, on all cores, and how many of them were truncated.
    pub(crate) fn encode(&self, rows: Vec<Row>) -> Result<(Vec<Example>, usize), TaskError> {
        let encoded: Vec<(Example, bool)> =
            rows.into_par_iter().map(|row| self.encode_row(row)).collect::<Result<_, _>>()?;
        let truncated = encoded.iter().filter(|(_, truncated)| *truncated).count();
        Ok((encoded.into_iter().map(|(example, _)| example).collect(), truncated))
    }

    fn encode_row(&self, row: Row) -> Result<(Example, bool), TaskError> {
        let input = match row.pair {
            None => EncodeInput::from(row.text),
            Some(pair) => EncodeInput::from((row.text, pair)),
        };
        let encoding = self
            .tokenizer
            .encode_fast(input, true)
            .map_err(|source| TaskError::Tokenizer { file: self.file.clone(), source })?;
        let example = Example {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            label: row.label,
        };
        Ok((example, !encoding.get_overflowing().is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Label;

    const TOKENIZER: &str = include_str!("../tests/fixtures/tokenizer.json");

    fn encoder(max_length: usize, texts: usize) -> Result<TextEncoder, TaskError> {
        TextEncoder::new(TOKENIZER.as_bytes(), Path::new("tokenizer.json"), max_length, texts)
    }

    fn row(text: &str, pair: Option<&str>) -> Row {
        Row { text: text.into(), pair: pair.map(String::from), label: Label::Class(1) }
    }

    // Ids are line numbers in the fixture's vocabulary: 0 pad, 1 unknown, 2 start, 3 end, 4 the, 5 a, 6 cat, 7 dog,
    // 8 sat, 9 ran, 21 ##s.

    #[test]
    fn a_text_stands_between_its_special_tokens() {
        let (examples, truncated) =
            encoder(16, 1).and_then(|it| it.encode(vec![row("The cats zzz", None)])).expect("valid");
        assert_eq!(examples[0].ids, [2, 4, 6, 21, 1, 3]);
        assert_eq!(examples[0].type_ids, [0; 6]);
        assert_eq!((truncated, examples[0].label.clone()), (0, Label::Class(1)));
    }

    #[test]
    fn the_longer_text_of_a_pair_is_truncated_first() {
        let rows = vec![row("the cat sat", Some("a dog")), row("the cat the cat the cat", Some("a dog"))];
        let (examples, truncated) = encoder(8, 2).and_then(|it| it.encode(rows)).expect("valid");
        assert_eq!(examples[0].ids, [2, 4, 6, 8, 3, 5, 7, 3]);
        assert_eq!(examples[0].type_ids, [0, 0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(examples[1].ids, [2, 4, 6, 4, 3, 5, 7, 3]);
        assert_eq!(truncated, 1);
    }

    #[test]
    fn order_is_kept_and_truncation_counted() {
        let words = ["the", "a", "cat", "dog"];
        let rows = (0..1000).map(|index| row(&[words[index % 4]].repeat(1 + index % 7).join(" "), None));
        let (examples, truncated) = encoder(6, 1).and_then(|it| it.encode(rows.collect())).expect("valid");
        for (index, example) in examples.iter().enumerate() {
            let ids = [vec![2], vec![4 + index as u32 % 4; (1 + index % 7).min(4)], vec![3]].concat();
            assert_eq!(example.ids, ids);
        }
        assert_eq!(truncated, (0..1000).filter(|index| 1 + index % 7 > 4).count());
    }

    #[test]
    fn the_padding_of_the_file_is_replaced_by_ours() {
        let padded = TOKENIZER.replacen(
            r#""padding": null"#,
            r#""padding": {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null,
               "pad_id": 9, "pad_type_id": 0, "pad_token": "ran"}"#,
            1,
        );
        let encoder = TextEncoder::new(padded.as_bytes(), Path::new("tokenizer.json"), 16, 1).expect("valid");
        let (examples, _) = encoder.encode(vec![row("cat", None)]).expect("valid");
        assert_eq!((encoder.pad_id, examples[0].ids.len()), (9, 3));
    }

    /// Held to the Python package on the values that `reference/bert.py` made with BERT-tiny's real tokenizer, which
    /// `just setup` fetches.
    #[test]
    fn the_same_tokens_as_in_python() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let materials = std::env::var_os("ADALORA_MATERIALS")
            .map_or_else(|| Path::new(root).join(".materials"), PathBuf::from);
        let file = materials.join("bert-tiny/tokenizer.json");
        let content = std::fs::read(&file)
            .unwrap_or_else(|error| panic!("{}: {error}: run `just setup`", file.display()));
        let recorded = std::fs::read_to_string(format!("{root}/reference/values/tokens.json"))
            .expect("reference values");
        let recorded: serde_json::Value = serde_json::from_str(&recorded).expect("JSON");
        let numbers = |value: &serde_json::Value| -> Vec<u32> {
            serde_json::from_value(value.clone()).expect("a list of numbers")
        };
        let cases = recorded["cases"].as_array().expect("a list");
        assert!(cases.len() > 60);
        let mut encoders = std::collections::BTreeMap::new();
        for case in cases {
            let texts: Vec<String> = serde_json::from_value(case["texts"].clone()).expect("texts");
            let max_length = case["max_length"].as_u64().expect("a number") as usize;
            // Reading the file takes longer than all the texts.
            let encoder = encoders.entry((max_length, texts.len())).or_insert_with(|| {
                TextEncoder::new(&content, &file, max_length, texts.len()).expect("a usable tokenizer")
            });
            let row = row(&texts[0], texts.get(1).map(String::as_str));
            let (examples, truncated) = encoder.encode(vec![row]).expect("valid");
            assert_eq!(examples[0].ids, numbers(&case["ids"]), "{texts:?}");
            assert_eq!(examples[0].type_ids, numbers(&case["type_ids"]), "{texts:?}");
            assert_eq!(truncated == 1, case["truncated"].as_bool().expect("a flag"), "{texts:?}");
        }
    }

    #[test]
    fn errors() {
        let error = |content: &str, max_length| {
            let encoder = TextEncoder::new(content.as_bytes(), Path::new("tokenizer.json"), max_length, 2);
            encoder.err().expect("an unusable tokenizer").to_string()
        };
        let errors = [
            error(TOKENIZER, 4),
            error(TOKENIZER, 0),
            error(&TOKENIZER.replace("[PAD]", "[FILL]"), 16),
            error(&TOKENIZER[..100], 16),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }
}
