//! Forward and backward of a random DeBERTaV3 with adapters of rank 12 on all linear layers, timed: our side of
//! `reference/peers/deberta_step.py`.
//!
//! Arguments: layers, hidden width, heads, feed-forward width, rows, tokens in a row, dropout, threads, dtype. Each line of
//! standard input asks for one pass; the answer is its time in milliseconds.

use std::io::{BufRead, Write};
use std::time::Instant;

use adalora_adapter::{Arena, Form, Layout, Site};
use adalora_models::{Checkpoint, DebertaConfig, Encoder, EncoderConfig, Head, Input, Loss};
use tch::{Device, Kind, Tensor};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layers, hidden, heads, intermediate, rows, width, dropout, threads, dtype] = &arguments[..] else {
        panic!("nine arguments, see the head of this file");
    };
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let (rows, width) = (number(rows) as i64, number(width) as i64);
    let kind = if dtype == "bf16" { Kind::BFloat16 } else { Kind::Float };
    tch::set_num_threads(number(threads) as i32);
    tch::manual_seed(1);

    let config: DebertaConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 1000,
        "num_hidden_layers": number(layers),
        "hidden_size": number(hidden),
        "num_attention_heads": number(heads),
        "intermediate_size": number(intermediate),
        "max_position_embeddings": 512,
        "position_buckets": 256,
        "layer_norm_eps": 1e-7,
        "hidden_act": "gelu",
        "hidden_dropout_prob": dropout.parse::<f64>().expect("a number"),
        "attention_probs_dropout_prob": dropout.parse::<f64>().expect("a number"),
    }))
    .expect("a whole configuration");
    let config = EncoderConfig::Deberta(config);
    let checkpoint = Checkpoint::random(config, 2, 1).to_kind(kind);
    let sites = checkpoint.config().linears().into_iter();
    let sites = sites.map(|own| Site { path: own.path, d_in: own.d_in, d_out: own.d_out, rank: 12 });
    let extras = Head::start(&checkpoint, 2, 1).extras;
    let arena = Arena::new(Layout::new(Form::Svd, sites.collect()), extras, Device::Cpu, 1);
    let mut encoder = Encoder::new(&checkpoint, None, Device::Cpu);
    let places: Vec<usize> = (0..encoder.linears().len()).collect();
    encoder.attach(&places, arena.adapters(16.0 / 12.0));
    let head = Head::new(checkpoint.config(), &arena, checkpoint.config().classifier_dropout());

    let ids = Tensor::randint_low(5, 1000, [rows, width], (Kind::Int64, Device::Cpu));
    let input = Input { type_ids: ids.zeros_like(), ids, mask: None };
    let labels = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(2);
    for _ in std::io::stdin().lock().lines() {
        let start = Instant::now();
        let logits = head.forward(&encoder.forward(&input, true), true);
        let forward = start.elapsed();
        (Loss::Classes(labels.shallow_clone()).sum(&logits) / rows as f64).backward();
        let both = start.elapsed();
        arena.zero_grad();
        println!("{} {}", forward.as_secs_f64() * 1e3, both.as_secs_f64() * 1e3);
        std::io::stdout().flush().expect("someone listens");
    }
}
