//! Times generation on a checkpoint and inputs that `reference/peers/generate.py` made, and says whether transformers
//! found the same tokens. See there for how to run both.

use std::path::PathBuf;
use std::time::Instant;

use adalora_models::{Bart, Checkpoint, Generation, Source};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Job {
    generation: Generation,
    /// Of transformers, for each row, without the start token and padding.
    tokens: Vec<Vec<i64>>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("the folder that generate.py made"));
    let repeats: usize = arguments.next().map_or(3, |count| count.parse().expect("how often to generate"));
    let threads = arguments.next().map_or(1, |count| count.parse().expect("threads"));
    tch::set_num_threads(threads);

    let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
    let bart = Bart::of(&checkpoint, None, Device::Cpu);
    let inputs = Tensor::read_safetensors(folder.join("inputs.safetensors")).expect("inputs");
    let input = |name: &str| {
        let (_, tensor) = inputs.iter().find(|(own, _)| own == name).expect("an input of this name");
        tensor.shallow_clone()
    };
    let source = Source { ids: input("input_ids"), mask: Some(input("attention_mask").to_kind(Kind::Bool)) };
    let job = std::fs::read_to_string(folder.join("generation.json")).expect("settings");
    let job: Job = serde_json::from_str(&job).expect("settings as generate.py writes them");

    for _ in 0..repeats {
        let start = Instant::now();
        let tokens = bart.generate(&source, &job.generation);
        let seconds = start.elapsed().as_secs_f64();
        let same = tokens.iter().zip(&job.tokens).filter(|(own, other)| own == other).count();
        let generated: usize = tokens.iter().map(Vec::len).sum();
        println!(
            "{seconds:.3} s for {generated} tokens; {same} of {} texts as by transformers",
            tokens.len()
        );
    }
}
