//! Adaptive rank for a model and a training loop of one's own.
//!
//! A frozen network learns to imitate itself with a change of rank 2 in its second layer: the two triplets of the
//! budget should go there. Run with `cargo run --example own_loop`.

use adalora::*;
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tch::manual_seed(1);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)) / (shape[1] as f64).sqrt();

    // The model, and what its second layer should become.
    let mut first = Linear::new("first", random(&[32, 16]), None);
    let mut second = Linear::new("second", random(&[8, 32]), None);
    let wanted = second.weight() + random(&[8, 2]).matmul(&random(&[2, 32]));

    // One adapter of rank 4 on each layer.
    let sites = [&first, &second].map(|layer| {
        let (d_in, d_out) = layer.widths();
        Site { path: layer.path().into(), d_in, d_out, rank: 4 }
    });
    let arena = Arena::new(Layout::new(Form::Svd, sites.into()), vec![], Device::Cpu, 1);
    for (layer, adapter) in [&mut first, &mut second].into_iter().zip(arena.adapters(1.0)) {
        layer.attach(adapter);
    }

    // From 8 triplets to 2: one of each adapter on average.
    let steps = 400;
    let phases =
        Phases { target_r: Some(1), target_parameters: None, t_init: 40, t_final: 200, delta_t: 1, min_r: 0 };
    let (ranks, costs) = (arena.layout().ranks(), arena.layout().triplet_costs());
    let schedule = BudgetSchedule::new(&BudgetSpec::Cubic(phases), &ranks, &costs, steps)
        .map_err(|broken| broken[0].clone())?;
    let metric = ImportanceSpec::SensitivityUncertainty(Default::default());
    let start = Start { layout: arena.layout(), device: Device::Cpu, seed: 1 };
    let mut allocator = RankAllocator::new(metric.start(&start), schedule, &arena);

    let spec = AdamWSpec { lr: 2e-2, ..Default::default() };
    let (mut optimizer, lr) = (AdamW::new(&spec, &arena), LearningRate::new(&spec, steps));
    for step in 0..steps {
        let input = Tensor::randn([64, 16], (Kind::Float, Device::Cpu));
        let hidden = first.forward(&input).tanh();
        let base = input.linear(first.weight(), None::<&Tensor>).tanh();
        let target = base.linear(&wanted, None::<&Tensor>);
        let loss = second.forward(&hidden).mse_loss(&target, tch::Reduction::Mean);
        loss.backward();
        allocator.observe(step, &arena);
        optimizer.step(&arena, lr.at(step));
        allocator.update(step, &arena)?;
        arena.zero_grad();
        if (step + 1) % 100 == 0 {
            let ranks = allocator.pattern()?.ranks();
            println!("step {:3}  loss {:.5}  ranks {ranks:?}", step + 1, loss.double_value(&[]));
        }
    }
    Ok(())
}
