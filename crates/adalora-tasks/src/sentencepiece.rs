//! The tokenizer of DeBERTa-v2 and -v3 out of the SentencePiece file that their checkpoints hold.
//!
//! It is the one that transformers 4 converts such a file to. On texts that hold no special token, its tokens are
//! SentencePiece's own, with rare exceptions: white space other than the blank at an end of the text is removed, and
//! where two ways of splitting a word are equally likely, sums in f64 may pick another than SentencePiece's in f32.

use prost::Message;
use serde::Deserialize;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// What counts of `tokenizer_config.json`; transformers' defaults.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Settings {
    #[serde(default)]
    do_lower_case: bool,
    #[serde(default)]
    split_by_punct: bool,
}

/// Why a SentencePiece file is not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SentencePieceError {
    #[error("this is no SentencePiece file ({0}): copy or fetch it anew")]
    Malformed(#[from] prost::DecodeError),
    #[error(
        "{0}: only files as DeBERTa-v2 and -v3 have them are read; save this tokenizer as tokenizer.json instead"
    )]
    NotDeberta(String),
    #[error("{0}")]
    Refused(tokenizers::Error),
}

/// The tokenizer of a checkpoint from the content of its `spm.model`.
pub(crate) fn tokenizer(content: &[u8], settings: Settings) -> Result<Tokenizer, SentencePieceError> {
    let file = Model::decode(content)?;
    file.check()?;
    build(&file, settings).map_err(SentencePieceError::Refused)
}

fn build(file: &Model, settings: Settings) -> tokenizers::Result<Tokenizer> {
    let vocabulary = file.pieces.iter().map(|piece| (piece.piece.clone(), f64::from(piece.score))).collect();
    let unknown = file.trainer.unk_id() as usize;
    let mut tokenizer =
        Tokenizer::new(Unigram::from(vocabulary, Some(unknown), file.trainer.byte_fallback())?);

    let mut normalizers = Vec::new();
    if settings.do_lower_case {
        normalizers.push(Lowercase.into());
    }
    normalizers.push(Strip::new(true, true).into());
    if !file.normalizer.precompiled_charsmap().is_empty() {
        normalizers.push(Precompiled::from(file.normalizer.precompiled_charsmap())?.into());
    }
    normalizers.push(Replace::new(ReplacePattern::Regex(" {2,}".into()), " ")?.into());
    tokenizer.with_normalizer(Some(Sequence::new(normalizers)));

    let mut splitters = Vec::new();
    if settings.split_by_punct {
        splitters.push(Punctuation::new(SplitDelimiterBehavior::Isolated).into());
    }
    splitters.push(Metaspace::new('▁', PrependScheme::Always, true).into());
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(splitters)));

    // A piece that stands for no text of its own is found as a whole, before the text is normalized.
    for piece in &file.pieces {
        if matches!(piece.kind(), Kind::Control | Kind::UserDefined) {
            let special = piece.kind() == Kind::Control;
            tokenizer.add_tokens(&[AddedToken::from(&piece.piece, special).normalized(false)]);
        }
    }
    tokenizer.add_tokens(&[AddedToken::from("[UNK]", true).normalized(true)]);
    // DeBERTa-v3's file lacks it: it gets the number after the last piece.
    tokenizer.add_tokens(&[AddedToken::from("[MASK]", true).normalized(false)]);

    let id = |token: &str| tokenizer.token_to_id(token).expect("`check` found this piece");
    let specials = vec![("[CLS]", id("[CLS]")), ("[SEP]", id("[SEP]"))];
    let template = TemplateProcessing::builder()
        .try_single("[CLS]:0 $A:0 [SEP]:0")?
        .try_pair("[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")?
        .special_tokens(specials)
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

/// The file, as far as it is read: `ModelProto` of `sentencepiece_model.proto`, version 2 of the language, with its
/// numbers and defaults.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, required, tag = "2")]
    trainer: TrainerSpec,
    #[prost(message, required, tag = "3")]
    normalizer: NormalizerSpec,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    piece: String,
    /// Logarithm of its probability.
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(enumeration = "Kind", optional, tag = "3", default = "Normal")]
    kind: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(enumeration = "Algorithm", optional, tag = "3", default = "Unigram")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35", default = "false")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40", default = "0")]
    unk_id: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
enum Algorithm {
    Unigram = 1,
    Bpe = 2,
    Word = 3,
    Char = 4,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    /// Replacements of characters, as a trie.
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

impl Model {
    /// That this is a file whose settings are the ones that [`build`] follows.
    fn check(&self) -> Result<(), SentencePieceError> {
        let refuse = |what: String| Err(SentencePieceError::NotDeberta(what));
        if self.trainer.model_type() != Algorithm::Unigram {
            return refuse(format!("its algorithm is {:?}, not Unigram", self.trainer.model_type()));
        }
        for (setting, on) in [
            ("add_dummy_prefix", self.normalizer.add_dummy_prefix()),
            ("remove_extra_whitespaces", self.normalizer.remove_extra_whitespaces()),
            ("escape_whitespaces", self.normalizer.escape_whitespaces()),
        ] {
            if !on {
                return refuse(format!("its setting {setting} is off"));
            }
        }
        for special in ["[PAD]", "[CLS]", "[SEP]"] {
            if !self.pieces.iter().any(|piece| piece.piece == special) {
                return refuse(format!("it has no piece {special}"));
            }
        }
        let unknown = usize::try_from(self.trainer.unk_id()).ok().and_then(|id| self.pieces.get(id));
        if unknown.is_none_or(|piece| piece.kind() != Kind::Unknown) {
            return refuse(format!("its piece {} is not the one for unknown text", self.trainer.unk_id()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = include_bytes!("../../../reference/values/sentencepiece/nmt-nfkc/spm.model");

    #[test]
    fn what_the_file_says_is_read() {
        let file = Model::decode(FILE).expect("reference values");
        assert_eq!(file.pieces.len(), 2000);
        let kinds: Vec<_> =
            file.pieces[..6].iter().map(|piece| (piece.piece.as_str(), piece.kind())).collect();
        let expected = [
            ("[PAD]", Kind::Control),
            ("[CLS]", Kind::Control),
            ("[SEP]", Kind::Control),
            ("[UNK]", Kind::Unknown),
            ("@user", Kind::UserDefined),
            ("\u{2581}", Kind::Normal),
        ];
        assert_eq!(kinds, expected);
        assert_eq!((file.trainer.unk_id(), file.trainer.byte_fallback()), (3, false));
        let tokenizer = tokenizer(FILE, Settings::default()).expect("reference values");
        assert_eq!(tokenizer.token_to_id("[MASK]"), Some(2000));
    }

    #[test]
    fn errors() {
        let changed = |change: fn(&mut Model)| {
            let mut file = Model::decode(FILE).expect("reference values");
            change(&mut file);
            let refused = tokenizer(&file.encode_to_vec(), Settings::default());
            refused.expect_err("an unusable file").to_string()
        };
        let errors = [
            tokenizer(&FILE[..1000], Settings::default()).expect_err("half a file").to_string(),
            tokenizer(b"", Settings::default()).expect_err("no file").to_string(),
            changed(|file| file.trainer.model_type = Some(Algorithm::Bpe.into())),
            changed(|file| file.normalizer.add_dummy_prefix = Some(false)),
            changed(|file| file.normalizer.remove_extra_whitespaces = Some(false)),
            changed(|file| file.normalizer.escape_whitespaces = Some(false)),
            changed(|file| file.pieces[1].piece = "<cls>".into()),
            changed(|file| file.trainer.unk_id = Some(2000)),
            changed(|file| file.trainer.unk_id = Some(-1)),
            changed(|file| file.normalizer.precompiled_charsmap = Some(vec![9, 9])),
        ];
        insta::assert_snapshot!(errors.join("\n"));
    }
}
