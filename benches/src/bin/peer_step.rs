//! Our half of `reference/peers/step.py`: one training step for each line of standard input, which names a variant.
//! Answers with the wall time and the CPU time of the step in milliseconds.
//!
//!     peer_step SHAPE DROPOUT THREADS

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Instant;

use adalora_benches::step::{DEBERTA_SMALL, MINILM, Variant, trainer};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shape, dropout, threads] = arguments.as_slice() else { panic!("peer_step SHAPE DROPOUT THREADS") };
    let shape =
        [MINILM, DEBERTA_SMALL].into_iter().find(|own| own.name == shape).expect("a shape of the step bench");
    let dropout = dropout.parse().expect("dropout is a number");
    let threads: usize = threads.parse().expect("threads is a number");
    tch::set_num_threads(threads as i32);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .expect("the first pool of this process");

    let mut trainers = BTreeMap::new();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let name = line.expect("standard input is text").trim().to_owned();
        let variant =
            Variant::ALL.into_iter().find(|own| own.name() == name).expect("a variant of the step bench");
        let trainer = trainers.entry(name).or_insert_with(|| trainer(&shape, variant, dropout));
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        trainer.step().expect("the step trains");
        let (wall, cpu) = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        trainer.record(0.0).expect("the loss is finite");
        writeln!(out, "{} {}", wall * 1e3, cpu * 1e3).expect("standard output is open");
        out.flush().expect("standard output is open");
    }
}

/// CPU time of this process.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
