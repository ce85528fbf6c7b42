//! A BART to be trained from scratch: a tokenizer for the texts of a data set, and random weights.

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use adalora_models::{Checkpoint, ModelConfig};
use adalora_tasks::{Catalogue, NewTokenizer};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::merge::new_folder;

/// What the model is to be.
#[derive(Debug, Clone, Args)]
pub struct NewBart {
    /// The folder to be made.
    pub folder: PathBuf,
    /// Data set of summaries: the vocabulary is learned from what it has to train on.
    #[arg(long, value_name = "DATA")]
    pub texts: String,
    /// Tokens of the vocabulary.
    #[arg(long, value_name = "TOKENS")]
    pub vocabulary: usize,
    /// Blocks of the encoder, and of the decoder.
    #[arg(long)]
    pub layers: NonZeroUsize,
    /// Width of the hidden states; that of the feed-forward part is four times as much.
    #[arg(long)]
    pub width: NonZeroUsize,
    /// Attention heads; `width` must be a multiple of them.
    #[arg(long)]
    pub heads: NonZeroUsize,
    /// Tokens of the longest document or summary.
    #[arg(long, default_value = "512")]
    pub positions: NonZeroUsize,
    /// Of the random weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Tokens and parameters of what was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Of the vocabulary.
    pub tokens: usize,
    /// Of the model, the table of embeddings among them.
    pub parameters: usize,
}

/// Makes a checkpoint's folder that `transformers` loads too: tokenizer, configuration, weights as BART starts. The same
/// arguments give the same files.
///
/// # Errors
///
/// Sizes that do not fit each other, a data set that cannot be read, a folder that is there already.
pub fn init(new: &NewBart, catalogue: &Catalogue) -> Result<Made> {
    let [width, heads] = [new.width, new.heads].map(NonZeroUsize::get);
    ensure!(width.is_multiple_of(heads), "--width ({width}) must be a multiple of --heads ({heads})");
    let tokenizer = NewTokenizer::train(catalogue, &new.texts, new.vocabulary)?;
    new_folder(&new.folder)?;
    let write = |name: &str, content: String| {
        let path = new.folder.join(name);
        fs::write(&path, content).with_context(|| path.display().to_string())
    };
    write("tokenizer.json", tokenizer.json)?;
    write("tokenizer_config.json", pretty(&tokenizer_config(new.positions.get())))?;
    write("config.json", pretty(&config(new, tokenizer.tokens)))?;
    let ModelConfig::Bart(config) = ModelConfig::open(&new.folder)? else {
        unreachable!("the configuration of a BART was written")
    };
    let parameters = config.tensors().iter().map(|(_, shape)| shape.iter().product::<i64>() as usize).sum();
    Checkpoint::untrained(config, new.seed).save(&new.folder.join("model.safetensors"))?;
    Ok(Made { tokens: tokenizer.tokens, parameters })
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("a value can be written") + "\n"
}

/// As `transformers` writes it for a `BartForConditionalGeneration`.
fn config(new: &NewBart, tokens: usize) -> Value {
    let [layers, width, heads] = [new.layers, new.width, new.heads].map(NonZeroUsize::get);
    json!({
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "is_encoder_decoder": true,
        "vocab_size": tokens,
        "max_position_embeddings": new.positions,
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "activation_function": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        // BART's 0.02 is meant for widths of 768 and more; with this a layer keeps the size of what passes through it.
        "init_std": 1.0 / (width as f64).sqrt(),
        "scale_embedding": false,
        "tie_word_embeddings": true,
        "use_cache": true,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "torch_dtype": "float32",
    })
}

fn tokenizer_config(positions: usize) -> Value {
    json!({
        "tokenizer_class": "BartTokenizer",
        "add_prefix_space": false,
        "model_max_length": positions,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    const MANIFEST: &str = r#"
        description = ""
        licence = ""
        source.folder = { path = "ours", how = "they are made up" }

        [format.summaries]
        document = "document"
        summary = "summary"
        split.files = { train = "train.jsonl", dev = "dev.jsonl" }
    "#;
    const TEXTS: &str = r#"{"document": "A library for reading files, and a library for writing them.", "summary": "a library"}
{"document": "Another library reads other files.", "summary": "other files", "number": 3}
"#;

    /// A catalogue of one data set, and where things can be put.
    fn catalogue(base: &Path) -> Catalogue {
        fs::write(base.join("some.toml"), MANIFEST).unwrap();
        fs::create_dir(base.join("ours")).unwrap();
        fs::write(base.join("ours/train.jsonl"), TEXTS).unwrap();
        // Nothing is learned from it.
        fs::write(base.join("ours/dev.jsonl"), "no pair").unwrap();
        Catalogue::open(base, base).unwrap()
    }

    fn new(folder: PathBuf) -> NewBart {
        let [layers, width, heads, positions] = [2, 12, 3, 16].map(|size| NonZeroUsize::new(size).unwrap());
        NewBart { folder, texts: "some".into(), vocabulary: 270, layers, width, heads, positions, seed: 1 }
    }

    #[test]
    fn a_folder_is_read_back_and_the_same_arguments_make_it_again() {
        let base = tempfile::tempdir().unwrap();
        let catalogue = catalogue(base.path());
        let one = new(base.path().join("one"));
        let made = init(&one, &catalogue).unwrap();
        assert_eq!(made.tokens, 270);
        let checkpoint = Checkpoint::open(&one.folder).unwrap();
        assert_eq!(checkpoint.config().vocab_size(), 270);
        // transformers: sum(p.numel() for p in BartForConditionalGeneration(the same configuration).parameters())
        assert_eq!(made.parameters, 12_552);

        let two = new(base.path().join("two"));
        init(&two, &catalogue).unwrap();
        let files: BTreeSet<_> =
            fs::read_dir(&one.folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(files.len(), 4);
        for file in &files {
            let [one, two] = [&one, &two].map(|new| fs::read(new.folder.join(file)).unwrap());
            assert!(one == two, "{file:?}");
        }
        let three = NewBart { seed: 2, ..new(base.path().join("three")) };
        init(&three, &catalogue).unwrap();
        let weights = |new: &NewBart| fs::read(new.folder.join("model.safetensors")).unwrap();
        assert!(weights(&one) != weights(&three));
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let catalogue = catalogue(base.path());
        let error = |new: &NewBart| {
            let text = init(new, &catalogue).unwrap_err().to_string();
            text.replace(&base.path().display().to_string(), "BASE")
        };
        let good = new(base.path().join("there"));
        let wide = NewBart { width: NonZeroUsize::new(13).unwrap(), ..good.clone() };
        insta::assert_snapshot!(error(&wide), @"--width (13) must be a multiple of --heads (3)");
        insta::assert_snapshot!(error(&NewBart { vocabulary: 261, ..good.clone() }), @"a vocabulary of 261 tokens is too small: it needs at least 262, special tokens and all bytes among them");
        insta::assert_snapshot!(error(&NewBart { texts: "sum".into(), ..good.clone() }), @"no data set or checkpoint `sum`; `adalora list` shows all, and a repository of the hub is named OWNER/NAME");
        assert!(!good.folder.exists());
        init(&good, &catalogue).unwrap();
        insta::assert_snapshot!(error(&good), @"BASE/there is there already: give the name of a new folder");
    }
}
