//! What holds for every metric in the table.

use adalora_adapter::{Form, Layout, Site};
use adalora_importance::{ImportanceMetric, ImportanceSpec, Observation, Start};
use tch::{Device, Kind, Tensor};

const SEED: u64 = 11;

/// Ragged: two adapters of ranks 3 and 2 with one of rank 0 between them.
fn layout() -> Layout {
    let site = |path: &str, d_in, d_out, rank| Site { path: path.into(), d_in, d_out, rank };
    Layout::new(Form::Svd, vec![site("a", 4, 3, 3), site("b", 3, 2, 0), site("c", 2, 5, 2)])
}

fn start(spec: &ImportanceSpec, layout: &Layout) -> Box<dyn ImportanceMetric> {
    spec.start(&Start { layout, device: Device::Cpu, seed: SEED })
}

/// Parameters and gradients of some steps, the same at each call.
fn steps(layout: &Layout) -> Vec<(Tensor, Tensor)> {
    let mut random = adalora_adapter::random::Random::new(3, "conformance");
    let entries = [layout.entries() as i64];
    (0..5).map(|_| (random.normal(&entries, 1.0), random.normal(&entries, 1.0))).collect()
}

fn feed(metric: &mut dyn ImportanceMetric, layout: &Layout, steps: &[(Tensor, Tensor)]) -> Vec<f32> {
    for (param, grad) in steps {
        metric.observe(&Observation { param, grad, layout });
    }
    let (param, grad) = steps.last().expect("at least one step");
    Vec::try_from(metric.importance(&Observation { param, grad, layout })).expect("a vector of f32")
}

#[test]
fn one_finite_value_for_each_triplet_and_not_all_zero() {
    let layout = layout();
    for spec in ImportanceSpec::all() {
        let importance = feed(&mut *start(&spec, &layout), &layout, &steps(&layout));
        assert_eq!(importance.len(), layout.triplet_count(), "{}", spec.name());
        assert!(importance.iter().all(|score| score.is_finite()), "{}", spec.name());
        assert!(importance.iter().any(|score| *score != 0.0), "{}", spec.name());
    }
}

#[test]
fn what_is_seen_is_not_changed_and_not_kept() {
    let layout = layout();
    for spec in ImportanceSpec::all() {
        let mut metric = start(&spec, &layout);
        let steps = steps(&layout);
        let copies: Vec<_> = steps.iter().map(|(param, grad)| (param.copy(), grad.copy())).collect();
        let before = feed(&mut *metric, &layout, &steps);
        assert_eq!(steps, copies, "{} changed what it saw", spec.name());
        // The arena goes on living: what a metric keeps must not alias it.
        for (param, grad) in &steps {
            let _ = (param.shallow_clone().fill_(9.0), grad.shallow_clone().fill_(9.0));
        }
        let (param, grad) = &copies[4];
        let again = metric.importance(&Observation { param, grad, layout: &layout });
        assert_eq!(Vec::<f32>::try_from(again).unwrap(), before, "{}", spec.name());
    }
}

#[test]
fn the_state_is_all_there_is_to_continue_from() {
    let layout = layout();
    for spec in ImportanceSpec::all() {
        let steps = steps(&layout);
        let mut whole = start(&spec, &layout);
        let expected = feed(&mut *whole, &layout, &steps);

        let mut first = start(&spec, &layout);
        feed(&mut *first, &layout, &steps[..2]);
        // Another seed: whatever the seed decides must come from the state.
        let mut second = spec.start(&Start { layout: &layout, device: Device::Cpu, seed: SEED + 1 });
        for ((name, from), (other, into)) in first.state().into_iter().zip(second.state()) {
            assert_eq!(name, other);
            into.copy_(from);
        }
        assert_eq!(feed(&mut *second, &layout, &steps[2..]), expected, "{}", spec.name());
    }
}

#[test]
fn reordering_triplets_reorders_importance() {
    let layout = layout();
    let order = Tensor::from_slice(&[2i64, 0, 1]);
    let permute = |entries: &Tensor| {
        let permuted = entries.copy();
        let (from, into) = (layout.triplets(entries, 0), layout.triplets(&permuted, 0));
        for (mut into, from) in
            [(into.q, from.q), (into.p, from.p), (into.lambda.unwrap(), from.lambda.unwrap())]
        {
            into.copy_(&from.index_select(0, &order));
        }
        permuted
    };
    for spec in ImportanceSpec::all() {
        if matches!(spec.name(), "random" | "uniform") {
            continue; // They look at nothing but the place.
        }
        let steps = steps(&layout);
        let permuted: Vec<_> = steps.iter().map(|(param, grad)| (permute(param), permute(grad))).collect();
        let plain = feed(&mut *start(&spec, &layout), &layout, &steps);
        let moved = feed(&mut *start(&spec, &layout), &layout, &permuted);
        assert_eq!(moved[..3], [plain[2], plain[0], plain[1]], "{}", spec.name());
        assert_eq!(moved[3..], plain[3..], "{}", spec.name());
    }
}

#[test]
fn names_are_what_a_file_says() {
    for spec in ImportanceSpec::all() {
        let file = format!("[{}]", spec.name());
        assert_eq!(toml::from_str::<ImportanceSpec>(&file).unwrap(), spec);
        assert!(spec.problems().is_empty());
        let unknown = toml::from_str::<ImportanceSpec>(&format!("{file}\nbeta_2 = 0.5"));
        assert!(unknown.unwrap_err().to_string().contains("beta_2"), "{}", spec.name());
    }
}

#[test]
fn betas_outside_their_range_are_problems() {
    for beta in ["0.0", "1.0", "-0.5", "nan"] {
        let spec: ImportanceSpec =
            toml::from_str(&format!("[sensitivity-uncertainty]\nbeta1 = {beta}\nbeta2 = {beta}")).unwrap();
        assert_eq!(spec.problems().len(), 2, "{beta}");
    }
}

#[test]
fn values_by_hand() {
    let layout = layout();
    let site = Site { path: "a".into(), d_in: 2, d_out: 1, rank: 1 };
    let one = Layout::new(Form::Svd, vec![site]);
    // Entries: Q = [1, 2], P = [3], lambda = [4]; gradients 1, so that the sensitivity is the parameter.
    let step = (Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]), Tensor::ones([4], (Kind::Float, Device::Cpu)));
    let value = |toml: &str| {
        feed(&mut *start(&toml::from_str(toml).unwrap(), &one), &one, &[(step.0.copy(), step.1.copy())])[0]
    };
    // Sensitivity with beta 0.5 is half the parameter; so is the deviation, and the uncertainty is a quarter of it.
    assert_eq!(value("[sensitivity]\nbeta = 0.5"), 0.75 + 1.5 + 2.0);
    assert_eq!(value("[uncertainty]\nbeta1 = 0.5\nbeta2 = 0.5"), 0.375 + 0.75 + 1.0);
    let product = |w: f32| w / 2.0 * (w / 4.0);
    let expected = (product(1.0) + product(2.0)) / 2.0 + product(3.0) + product(4.0);
    assert_eq!(value("[sensitivity-uncertainty]\nbeta1 = 0.5\nbeta2 = 0.5"), expected);
    assert_eq!(value("[inverse]\nbeta1 = 0.5\nbeta2 = 0.5"), -expected);
    assert_eq!(value("[magnitude]"), 4.0);
    let uniform = feed(&mut *start(&toml::from_str("[uniform]").unwrap(), &layout), &layout, &steps(&layout));
    assert_eq!(uniform, [-1.0, -2.0, -3.0, -1.0, -2.0]);
}
