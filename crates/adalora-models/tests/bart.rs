//! What a BART folder can get wrong, each with its message, and a small model that learns to write.

use std::path::{Path, PathBuf};

use adalora_adapter::{Arena, Extra, Form, Layout, ParameterKind};
use adalora_kernels::dropout::Dropout;
use adalora_models::{Activation, Bart, BartConfig, Checkpoint, EarlyStopping, Generation, Loss, Source};
use tch::{Device, Kind, Tensor};

fn reference(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values")).join(name)
}

/// What opening a copy of a small checkpoint says when its configuration is changed.
fn error(from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(reference("bart-odd").join(file), folder.path().join(file)).unwrap();
    }
    edit(&folder.path().join("config.json"), from, to);
    let text = Checkpoint::open(folder.path()).unwrap_err().to_string();
    text.replace(&folder.path().display().to_string(), "FOLDER")
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn what_cannot_be_run_is_refused() {
    insta::assert_snapshot!(error(r#""bart""#, r#""mbart""#), @"FOLDER/config.json: model_type is `mbart`; the family that generates text is: bart");
    insta::assert_snapshot!(error(r#""decoder_attention_heads": 5"#, r#""decoder_attention_heads": 4"#), @"FOLDER/config.json: d_model (30) must be a multiple of decoder_attention_heads (4)");
    insta::assert_snapshot!(error(r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#), @"FOLDER/config.json: tie_word_embeddings must be true: logits are taken with the embedding table");
    insta::assert_snapshot!(error(r#""decoder_layerdrop": 0.0"#, r#""decoder_layerdrop": 0.1"#), @"FOLDER/config.json: decoder_layerdrop is 0.1, but blocks are never left out: set it to 0");
    insta::assert_snapshot!(error(r#""decoder_ffn_dim": 41"#, r#""decoder_ffn_dim": 42"#), @"FOLDER/model.safetensors: `decoder.layers.0.fc1.weight` has shape [41, 30], but config.json asks for [42, 30]");
    let missing = error(r#""encoder_layers": 2"#, r#""encoder_layers": 3"#);
    assert!(missing.starts_with("FOLDER/model.safetensors lacks 16 tensor(s) of the model: "), "{missing}");
}

fn small() -> BartConfig {
    BartConfig {
        vocab_size: 23,
        d_model: 32,
        encoder_layers: 1,
        decoder_layers: 2,
        encoder_attention_heads: 4,
        decoder_attention_heads: 4,
        encoder_ffn_dim: 48,
        decoder_ffn_dim: 48,
        max_position_embeddings: 12,
        activation_function: Activation::Gelu,
        dropout: 0.1,
        attention_dropout: 0.1,
        activation_dropout: 0.1,
        scale_embedding: false,
        init_std: 0.1,
        pad_token_id: 1,
        bos_token_id: 0,
        eos_token_id: 2,
        decoder_start_token_id: 2,
    }
}

fn how(beams: usize) -> Generation {
    Generation {
        beams,
        max_length: 10,
        min_length: 0,
        length_penalty: 1.0,
        no_repeat_ngram: 0,
        early_stopping: EarlyStopping::No,
        forced_bos: true,
        forced_eos: true,
    }
}

/// Texts of three to six words, their beginnings first: the model must read the source to tell the words, and the
/// labels before to tell where it is.
fn pairs() -> (Source, Tensor) {
    let rows = 8;
    let (mut ids, mut labels) = (vec![1; rows * 8], vec![-100; rows * 8]);
    for row in 0..rows {
        let length = 3 + row % 4;
        let word = |place: usize| 3 + ((row * 7 + place * 5) % 20) as i64;
        let text: Vec<i64> = [0].into_iter().chain((0..length).map(word)).chain([2]).collect();
        ids[row * 8..row * 8 + text.len()].copy_from_slice(&text);
        // The words in the opposite order.
        let reversed: Vec<i64> = [0].into_iter().chain((0..length).rev().map(word)).chain([2]).collect();
        labels[row * 8..row * 8 + text.len()].copy_from_slice(&reversed);
    }
    let matrix = |values: &[i64]| Tensor::from_slice(values).view([rows as i64, 8]);
    let ids = matrix(&ids);
    (Source { mask: Some(ids.ne(1)), ids }, matrix(&labels))
}

/// All weights are trained, which live in the arena as its extras; then greedy and beam search write what was learned.
#[test]
fn a_small_model_learns_to_write() {
    tch::set_num_threads(1);
    let checkpoint = Checkpoint::untrained(small(), 3);
    let names = small().tensors().into_iter().map(|(name, _)| name).chain(["final_logits_bias".into()]);
    let extras = names.map(|name| Extra {
        start: checkpoint.tensor(&name, Device::Cpu),
        kind: ParameterKind::Weight,
        name,
    });
    let arena = Arena::new(Layout::new(Form::Svd, vec![]), extras.collect(), Device::Cpu, 0);
    let bart = Bart::new(&small(), None, |name| arena.extra(name));
    let (source, labels) = pairs();
    let tokens = bart.decoder_tokens(&labels);
    let count = labels.ne(-100).sum(Kind::Int64);
    let loss = |dropout: Option<&Dropout>| {
        let logits = bart.forward(&source, &tokens, dropout);
        Loss::Tokens { labels: labels.shallow_clone(), smoothing: 0.0 }.sum(&logits) / &count
    };
    let before = loss(None).double_value(&[]);
    assert!((before - f64::ln(23.0)).abs() < 1.0, "knowing nothing costs about ln 23: {before}");
    // Adam.
    let (mut mean, mut square) = (arena.param().zeros_like(), arena.param().zeros_like());
    for step in 1..=250 {
        arena.zero_grad();
        loss(Some(&Dropout::new(1, step))).backward();
        let _guard = tch::no_grad_guard();
        mean = mean * 0.9 + arena.grad() * 0.1;
        square = square * 0.99 + arena.grad().square() * 0.01;
        let [first, second] = [0.9_f64, 0.99].map(|beta| 1.0 - beta.powi(step as i32));
        let _ = arena
            .param()
            .shallow_clone()
            .g_sub_(&(&mean / first * 3e-3 / ((&square / second).sqrt() + 1e-8)));
    }
    let after = loss(None).double_value(&[]);
    assert!(after < 0.1, "{before} to {after}");
    let expected: Vec<Vec<i64>> = (0..labels.size()[0])
        .map(|row| {
            Vec::<i64>::try_from(labels.get(row))
                .unwrap()
                .into_iter()
                .filter(|&label| label != -100)
                .collect()
        })
        .collect();
    for beams in [1, 3] {
        assert_eq!(bart.generate(&source, &how(beams)), expected, "{beams} beams");
    }
}

/// A row of padding alone must not spoil the others, nor become NaN.
#[test]
fn bf16_is_near_f32_and_finite() {
    let checkpoint = Checkpoint::untrained(small(), 5);
    let (source, labels) = pairs();
    let _ = source.mask.as_ref().unwrap().get(0).fill_(0);
    let logits = |kind| {
        let checkpoint = checkpoint.to_kind(kind);
        let bart = Bart::of(&checkpoint, None, Device::Cpu);
        bart.forward(&source, &bart.decoder_tokens(&labels), None)
    };
    let (exact, rounded) = (logits(Kind::Float), logits(Kind::BFloat16));
    assert_eq!((rounded.kind(), rounded.isfinite().all().int64_value(&[])), (Kind::Float, 1));
    let difference = (&exact - &rounded).abs().max().double_value(&[]);
    // 8 bits of mantissa, through a few layers.
    assert!(difference < 0.1 * exact.abs().max().double_value(&[]) && difference > 0.0, "{difference}");
}

#[test]
fn settings_are_checked_and_spelled_as_in_the_field() {
    let parse = |text: &str| serde_json::from_str::<Generation>(text);
    let full = parse(r#"{"beams": 4, "max_length": 12, "early_stopping": "never"}"#).unwrap();
    assert_eq!(full, Generation { max_length: 12, early_stopping: EarlyStopping::Never, ..how(4) });
    assert!(full.problems(&small()).is_empty());
    let error = parse(r#"{"beams": 4, "max_length": 12, "early_stopping": "soon"}"#).unwrap_err();
    assert!(error.to_string().starts_with("true, false or \"never\""), "{error}");

    let bad = Generation { beams: 12, max_length: 13, min_length: 13, length_penalty: f64::NAN, ..how(1) };
    let problems = bad.problems(&small()).into_iter().map(|(key, rule)| format!("{key} {rule}"));
    insta::assert_snapshot!(problems.collect::<Vec<_>>().join("\n"), @r"
    beams (12) must not exceed half the vocabulary (23)
    max_length (13) must not exceed the model's positions (12)
    min_length (13) must be below max_length (13)
    length_penalty must be a finite number
    ");
}
