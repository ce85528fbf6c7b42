//! What a checkpoint folder can get wrong, each with its message.

use std::path::{Path, PathBuf};

use adalora_models::{Checkpoint, Head};

fn reference(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../reference/values")).join(name)
}

/// A copy of a small checkpoint that a test may spoil.
fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in reference(name).read_dir().unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

fn copy() -> tempfile::TempDir {
    copy_of("bert-random")
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
    insta::assert_snapshot!(error(folder.path()), @"FOLDER has neither model.safetensors nor pytorch_model.bin");
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/config.json: No such file or directory (os error 2); a checkpoint is a folder with config.json, model.safetensors or pytorch_model.bin, and a tokenizer");
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
    assert!(text.starts_with("FOLDER/model.safetensors lacks 16 tensor(s) of the model: "), "{text}");
    assert!(text.contains("encoder.layer.3.attention.self.query.weight"), "{text}");
}

#[test]
fn another_family() {
    let folder = copy();
    edit_config(folder.path(), "\"model_type\": \"bert\"", "\"model_type\": \"roberta\"");
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/config.json: model_type is `roberta`; the families that can be run are: bert, deberta-v2, bart");
}

#[test]
fn a_deberta_that_is_not_of_version_3() {
    let folder = copy_of("deberta-odd");
    edit_config(folder.path(), "\"share_att_key\": true", "\"share_att_key\": false");
    edit_config(folder.path(), "\"type_vocab_size\": 0", "\"type_vocab_size\": 2");
    edit_config(folder.path(), "\"p2c\"", "\"p2p\"");
    insta::assert_snapshot!(error(folder.path()), @r#"FOLDER/config.json: only DeBERTa as version 3 has it can be run: share_att_key is false and must be true; type_vocab_size is 2 and must be 0; pos_att_type is ["p2p", "c2p"] and must be ["p2c", "c2p"]"#);
    // What is absent is as `transformers` has it by default.
    let folder = copy();
    edit_config(folder.path(), "\"model_type\": \"bert\"", "\"model_type\": \"deberta-v2\"");
    insta::assert_snapshot!(error(folder.path()), @r#"FOLDER/config.json: only DeBERTa as version 3 has it can be run: relative_attention is false and must be true; position_biased_input is true and must be false; share_att_key is false and must be true; norm_rel_ebd is "none" and must be "layer_norm"; type_vocab_size is 2 and must be 0; pos_att_type is [] and must be ["p2c", "c2p"]"#);
}

#[test]
fn positions_and_convolutions_that_make_no_sense() {
    let folder = copy_of("deberta-odd");
    edit_config(folder.path(), "\"conv_groups\": 2", "\"conv_groups\": 4");
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/config.json: conv_kernel_size (3) must be odd and hidden_size (30) a multiple of conv_groups (4)");
    edit_config(folder.path(), "\"max_relative_positions\": 14", "\"max_relative_positions\": 5");
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/config.json: position_buckets (9) must be at least 2, and max_relative_positions (5) more than half of that and one");
}

/// The file that the hub has for DeBERTaV3: f16, with tensors of heads that we do not have.
#[test]
fn a_file_of_torch_save() {
    let folder = copy_of("deberta-small");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(Head::start(&checkpoint, 2, 0).drawn.is_empty());
    assert_eq!(Head::start(&checkpoint, 3, 0).drawn, ["classifier.weight", "classifier.bias"]);

    edit_config(folder.path(), "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7");
    let text = error(folder.path());
    assert!(text.starts_with("FOLDER/pytorch_model.bin lacks 16 tensor(s) of the model: "), "{text}");
    edit_config(folder.path(), "\"position_buckets\": 256", "\"position_buckets\": 128");
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/pytorch_model.bin: `encoder.rel_embeddings.weight` has shape [512, 36], but config.json asks for [256, 36]");
    std::fs::copy(reference("torch-files/payload.bin"), folder.path().join("pytorch_model.bin")).unwrap();
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/pytorch_model.bin: its pickle asks for `__builtin__.exec`: only tensors are read, and nothing is called");
}

#[test]
fn safetensors_come_first() {
    let folder = copy();
    std::fs::write(folder.path().join("pytorch_model.bin"), "nothing").unwrap();
    Checkpoint::open(folder.path()).unwrap();
}

#[test]
fn an_activation_that_we_do_not_have() {
    let folder = copy();
    edit_config(folder.path(), "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"mish\"");
    insta::assert_snapshot!(error(folder.path()), @"FOLDER/config.json: unknown variant `mish`, expected one of `gelu`, `gelu_new`, `gelu_pytorch_tanh`, `relu`, `tanh`, `silu`, `swish` at line 10 column 22");
}
