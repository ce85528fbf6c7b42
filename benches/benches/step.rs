//! Whole training steps: LoRA, and AdaLoRA in each phase, at the shapes of `reference/peers/step.py`. Random weights, dropout
//! .1, f32, on the CPU, one thread.

use adalora_benches::step::{DEBERTA_SMALL, MINILM, Variant, trainer};
use criterion::{Criterion, criterion_group, criterion_main};

fn steps(criterion: &mut Criterion) {
    tch::set_num_threads(1);
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("the first pool of this process");
    for shape in [MINILM, DEBERTA_SMALL] {
        let mut group = criterion.benchmark_group(format!("step, {}", shape.name));
        group.sample_size(10);
        for variant in Variant::ALL {
            let mut trainer = trainer(&shape, variant, 0.1);
            let mut step = || {
                trainer.step().expect("the step trains");
                trainer.record(0.0).expect("the loss is finite")
            };
            assert!(step().loss > 0.0);
            group.bench_function(variant.name(), |b| b.iter(&mut step));
        }
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
