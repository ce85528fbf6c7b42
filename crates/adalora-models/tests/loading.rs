//! What a checkpoint folder can get wrong, each with its message.

use std::path::{Path, PathBuf};

use adalora_models::Checkpoint;

fn reference() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values/bert-random"))
}

/// A copy of the small checkpoint that a test may spoil.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(reference().join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn error(folder: &Path) -> String {
    let text = Checkpoint::open(folder).unwrap_err().to_string();
    text.replace(&folder.display().to_string(), "FOLDER")
}

fn edit_config(folder: &Path, from: &str, to: &str) {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

#[test]
fn a_missing_file() {
    let folder = copy();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/model.safetensors: No such file or directory (os error 2); a checkpoint is a folder with config.json, model.safetensors and tokenizer.json");
}

#[test]
fn a_truncated_file() {
    let folder = copy();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/model.safetensors is not a whole safetensors file (incomplete metadata, file not fully covered); fetch it again");
}

#[test]
fn another_shape() {
    let folder = copy();
    edit_config(folder.path(), "\"intermediate_size\": 37", "\"intermediate_size\": 38");
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/model.safetensors: `encoder.layer.0.intermediate.dense.weight` has shape [37, 30], but config.json asks for [38, 30]");
}

#[test]
fn missing_tensors() {
    let folder = copy();
    edit_config(folder.path(), "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    let text = error(folder.path());
    assert!(text.starts_with("FOLDER/model.safetensors lacks 16 tensor(s) of the encoder: "), "{text}");
    assert!(text.contains("encoder.layer.3.attention.self.query.weight"), "{text}");
}

#[test]
fn another_family() {
    let folder = copy();
    edit_config(folder.path(), "\"model_type\": \"bert\"", "\"model_type\": \"deberta-v2\"");
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/config.json: model_type is `deberta-v2`; the families that can be run are: bert");
}

#[test]
fn an_activation_that_we_do_not_have() {
    let folder = copy();
    edit_config(folder.path(), "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"swish\"");
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/config.json: unknown variant `swish`, expected one of `gelu`, `gelu_new`, `gelu_pytorch_tanh`, `relu` at line 10 column 23");
}
