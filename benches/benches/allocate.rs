//! What the allocator adds to a training step: the metric sees it, ranks are allocated, lambda is masked. 72 adapters, as
//! DeBERTaV3-base has, ten times as many, and 10,000; r = 12 to 4, f32, on the CPU. The larger two are narrow, so that the
//! number of adapters is what grows. Threads: `RAYON_NUM_THREADS`.

use adalora::{
    Arena, BudgetAction, BudgetSchedule, BudgetSpec, Form, ImportanceSpec, Layout, Phases, RankAllocator,
    Site, Start,
};
use adalora_benches::deberta_base;
use criterion::{Criterion, criterion_group, criterion_main};
use tch::{Device, Kind};

const STEPS: usize = 3_000_000;

fn narrow(adapters: usize) -> Layout {
    let site = |i| Site { path: format!("layer.{i}"), d_in: 64, d_out: 64, rank: 12 };
    Layout::new(Form::Svd, (0..adapters).map(site).collect())
}

fn allocator(arena: &Arena) -> RankAllocator {
    // Allocates at every step, for longer than a benchmark lasts.
    let phases =
        Phases { target_r: Some(4), target_parameters: None, t_init: 0, t_final: 1, delta_t: 1, min_r: 0 };
    let layout = arena.layout();
    let schedule =
        BudgetSchedule::new(&BudgetSpec::Linear(phases), &layout.ranks(), &layout.triplet_costs(), STEPS);
    let start = Start { layout, device: Device::Cpu, seed: 1 };
    let metric = ImportanceSpec::SensitivityUncertainty(Default::default()).start(&start);
    RankAllocator::new(metric, schedule.expect("the phases fit into the run"), arena)
}

fn allocate(criterion: &mut Criterion) {
    let shapes = [
        ("72 of DeBERTaV3-base", deberta_base(12)),
        ("720, 64 wide", narrow(720)),
        ("10,000, 64 wide", narrow(10_000)),
    ];
    for (name, layout) in shapes {
        let arena = Arena::new(layout, vec![], Device::Cpu, 1);
        let fill = || {
            let _ = arena.param().shallow_clone().normal_(0.0, 0.1);
            let _ = arena.grad().shallow_clone().normal_(0.0, 0.1);
        };
        tch::no_grad(fill);
        let mut own = allocator(&arena);
        let mut step = 0;
        let mut group = criterion.benchmark_group(format!("allocator, {name}, cpu"));
        group.bench_function("observe, allocate and mask", |b| {
            b.iter(|| {
                own.observe(step, &arena);
                let action = own.update(step, &arena).expect("scores are finite");
                assert!(matches!(action, BudgetAction::Allocate { .. }) || step == 0);
                step += 1;
            });
        });
        group.finish();
        let budget = own.schedule().budget(step - 1);
        assert_eq!(own.pattern().expect("scores are finite").live_count(), budget);
        let nonzero = arena.layout().lambda(arena.param()).ne(0.0).sum(Kind::Int64).int64_value(&[]) as usize;
        assert!(nonzero <= budget);
    }
}

criterion_group!(benches, allocate);
criterion_main!(benches);
