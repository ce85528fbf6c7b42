//! Rules that settings must keep, as far as they show without model and data.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

use adalora::{BudgetSchedule, BudgetUnit, Form, ImportanceSpec, MaskedMoments, OrthogonalityForm};
use adalora_adapter::target;
use adalora_models::{Precision, Tuning};

use super::problem::Problem;
use super::read::quoted;
use super::spec::{AdapterSpec, Gradient, ModelSpec, RunSpec, TaskSpec};

/// Blocks of a random encoder. Every cell of a sweep has a plan that names their layers.
const MOST_LAYERS: usize = 100;

/// Every other size, as in a checkpoint's `config.json`: products of two can be counted.
const MOST: usize = 1 << 24;

/// Threads are started before the first step.
const MOST_THREADS: usize = 1024;

/// Every rule that the settings of a run break.
pub(super) fn broken(spec: &RunSpec) -> Vec<Problem> {
    let mut rules = Rules::default();
    rules.model_and_task(spec);
    rules.adapter(spec);
    rules.allocation(spec);
    rules.observation(spec);
    rules.budget(spec);
    rules.optimizer(spec);
    rules.train(spec);
    rules.broken
}

/// Every rule that the seeds break.
pub(super) fn broken_by_seeds(seeds: &[u64]) -> Vec<Problem> {
    let mut rules = Rules::default();
    rules.hold("seeds", !seeds.is_empty(), || {
        "is empty; list at least one, and three or more to compare variants".into()
    });
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<_> = seeds.iter().filter(|seed| !seen.insert(**seed)).collect();
    rules.hold("seeds", twice.is_empty(), || {
        format!("holds {} more than once: it would be the same run", quoted(&twice))
    });
    rules.broken
}

#[derive(Default)]
struct Rules {
    broken: Vec<Problem>,
}

impl Rules {
    /// The message follows the key.
    fn hold(&mut self, key: &str, holds: bool, message: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(Problem {
                variant: None,
                key: key.into(),
                message: format!("{key} {}", message()),
            });
        }
    }

    fn within(
        &mut self,
        key: &str,
        value: impl Into<Option<usize>>,
        range: RangeInclusive<usize>,
        what: &str,
    ) {
        let (Some(value), (least, most)) = (value.into(), range.into_inner()) else { return };
        self.hold(key, value >= least, || format!("({value}) must be at least {least}{what}"));
        self.hold(key, value <= most, || format!("({value}) must be at most {most}"));
    }

    /// A size, a length or a number of things.
    fn count(&mut self, key: &str, value: impl Into<Option<usize>>, least: usize, what: &str) {
        self.within(key, value, least..=MOST, what);
    }

    fn positive(&mut self, key: &str, value: f64, otherwise: &str) {
        let holds = value > 0.0 && value.is_finite();
        self.hold(key, holds, || format!("({value:?}) must be finite and above 0{otherwise}"));
    }

    fn below_one(&mut self, key: &str, value: f64, what: &str) {
        self.hold(key, (0.0..1.0).contains(&value), || {
            format!("({value:?}) must be at least 0 and below 1: {what}")
        });
    }

    fn patterns(&mut self, key: &str, patterns: &[String], what: &str) {
        self.hold(key, !patterns.is_empty(), || format!("is empty; {what}"));
        let expanded: Vec<_> = patterns.iter().map(|pattern| target::expand(pattern)).collect();
        let blank = expanded
            .iter()
            .flatten()
            .flatten()
            .any(|pattern| pattern.split('.').any(|part| part.trim() != part || part.is_empty()));
        self.hold(key, !blank, || {
            "holds a pattern with an empty part; a pattern is names with dots between".into()
        });
        for malformed in expanded.iter().filter_map(|pattern| pattern.as_ref().err()) {
            self.hold(key, false, || format!("cannot be read: {malformed}"));
        }
    }

    /// Data that a manifest names, which takes a tokenizer to read.
    fn data(&mut self, table: &str, data: &str, model: &ModelSpec) {
        self.hold(&format!("{table}.data"), !data.trim().is_empty(), || "is empty; name a manifest".into());
        self.hold(table, matches!(model, ModelSpec::Pretrained(_)), || {
            "needs [model.pretrained]: a random encoder has no tokenizer".into()
        });
    }

    fn model_and_task(&mut self, spec: &RunSpec) {
        match &spec.model {
            ModelSpec::Pretrained(model) => {
                let named = !model.checkpoint.trim().is_empty();
                self.hold("model.pretrained.checkpoint", named, || {
                    "is empty; name a manifest or a folder".into()
                });
                let dropouts = [("dropout", model.dropout), ("classifier_dropout", model.classifier_dropout)];
                for (key, value) in dropouts.iter().filter_map(|(key, value)| Some((key, (*value)?))) {
                    self.below_one(
                        &format!("model.pretrained.{key}"),
                        value,
                        "it is the share that is set to 0",
                    );
                }
            }
            ModelSpec::Random(model) => {
                self.within("model.random.layers", model.layers, 1..=MOST_LAYERS, "");
                let sizes =
                    [("hidden", model.hidden), ("heads", model.heads), ("intermediate", model.intermediate)];
                for (key, value) in sizes {
                    self.count(&format!("model.random.{key}"), value, 1, "");
                }
                self.count(
                    "model.random.vocabulary",
                    model.vocabulary,
                    3,
                    ": two tokens stand for padding and the start of a sequence",
                );
                let divides = model.heads == 0 || model.hidden.is_multiple_of(model.heads);
                self.hold("model.random.heads", divides, || {
                    format!(
                        "({}) must divide hidden ({}): each head sees an equal part",
                        model.heads, model.hidden
                    )
                });
            }
        }
        match &spec.task {
            TaskSpec::Text(text) => {
                self.data("task.text", &text.data, &spec.model);
                self.count(
                    "task.text.max_length",
                    text.max_length,
                    3,
                    ": two tokens are the frame of a sentence",
                );
                self.count("task.text.train_rows", text.train_rows, 1, "; leave it out to train on all");
            }
            TaskSpec::Questions(questions) => {
                let table = "task.questions";
                self.data(table, &questions.data, &spec.model);
                let least = questions.stride.saturating_add(1);
                self.count(
                    &format!("{table}.max_length"),
                    questions.max_length,
                    least,
                    ": neighbouring windows share `stride` tokens of the paragraph",
                );
                self.count(&format!("{table}.n_best"), questions.n_best, 1, "");
                self.count(&format!("{table}.max_answer_length"), questions.max_answer_length, 1, "");
                let all = "; leave it out to take all";
                self.count(&format!("{table}.train_rows"), questions.train_rows, 1, all);
                self.count(&format!("{table}.dev_rows"), questions.dev_rows, 1, all);
            }
            TaskSpec::Summaries(summaries) => {
                let table = "task.summaries";
                self.data(table, &summaries.data, &spec.model);
                let frame = ": two tokens are the frame of a text";
                self.count(&format!("{table}.max_document"), summaries.max_document, 3, frame);
                self.count(&format!("{table}.max_summary"), summaries.max_summary, 3, frame);
                let share = "it is the share that all tokens are given";
                self.below_one(&format!("{table}.label_smoothing"), summaries.label_smoothing, share);
                let all = "; leave it out to take all";
                self.count(&format!("{table}.train_rows"), summaries.train_rows, 1, all);
                self.count(&format!("{table}.dev_rows"), summaries.dev_rows, 1, all);
            }
            TaskSpec::Planted(planted) => {
                self.patterns(
                    "task.planted.layers",
                    &planted.layers,
                    "name the layers that differ in the teacher",
                );
                let sizes = [
                    ("rank", planted.rank),
                    ("outputs", planted.outputs),
                    ("length", planted.length),
                    ("train_rows", planted.train_rows),
                    ("dev_rows", planted.dev_rows),
                ];
                for (key, value) in sizes {
                    self.count(&format!("task.planted.{key}"), value, 1, "");
                }
                self.positive("task.planted.strength", planted.strength, ": at 0 the teacher is the student");
                self.hold("task.planted", matches!(spec.model, ModelSpec::Random(_)), || {
                    "needs [model.random]: its tokens are random, which means nothing to a pretrained encoder"
                        .into()
                });
            }
        }
    }

    fn adapter(&mut self, spec: &RunSpec) {
        let table = format!("adapter.{}", spec.adapter.name());
        match &spec.adapter {
            AdapterSpec::Svd(_) => self.increments(spec, &table, "init_r"),
            AdapterSpec::Lora(_) => self.increments(spec, &table, "r"),
            AdapterSpec::Houlsby(bottleneck) | AdapterSpec::Pfeiffer(bottleneck) => {
                self.count(&format!("{table}.width"), bottleneck.width, 1, "");
            }
            AdapterSpec::Full(_) | AdapterSpec::Bitfit(_) => {}
        }
        if let Some(warm_start) = &spec.warm_start {
            let named = !warm_start.run.trim().is_empty();
            self.hold("warm_start.run", named, || "is empty; name the folder of a finished run".into());
            self.hold("warm_start", spec.adapter.form().is_some(), || {
                format!("has no effect with [{table}], which has no increments: leave it out")
            });
        }
        // The encoder's own tensors are f32 where they are trained; bottlenecks stand beside a frozen one.
        let own = matches!(spec.adapter.tuning(), Tuning::Full | Tuning::BitFit);
        self.hold("train.precision", !own || spec.train.precision == Precision::F32, || {
            format!("must be \"f32\" with [{table}], which trains the encoder's own tensors: leave it out")
        });
        if let Some(form) = &spec.orthogonality {
            let (name, weight) = form.named();
            self.positive(
                &format!("orthogonality.{name}.gamma"),
                weight.gamma,
                "; leave [orthogonality] out for no regularizer",
            );
            self.hold("orthogonality", spec.adapter.form().is_some(), || {
                format!("has no effect with [{table}], which has no factors: leave it out")
            });
            let pairs =
                !matches!(form, OrthogonalityForm::MeanOfCosines(_)) || spec.adapter.rank() != Some(1);
            self.hold("orthogonality.mean-of-cosines", pairs, || {
                "has no effect at rank 1: a cosine is of two rows; leave [orthogonality] out".into()
            });
        }
    }

    fn increments(&mut self, spec: &RunSpec, table: &str, rank: &str) {
        self.patterns(
            &format!("{table}.targets"),
            spec.adapter.targets(),
            "name the layers to adapt, such as \"query\"",
        );
        self.count(
            &format!("{table}.{rank}"),
            spec.adapter.rank(),
            1,
            ": an adapter of rank 0 learns nothing",
        );
        match (spec.adapter.rank(), spec.adapter.ranks()) {
            (None, None) => self.hold(table, false, || {
                format!("needs {rank}, one rank for all layers, or ranks, a file with a rank for each")
            }),
            (Some(one), Some(_)) => self.hold(&format!("{table}.ranks"), false, || {
                format!("and {rank} ({one}) both give the ranks: keep one")
            }),
            _ => {}
        }
        let fixed = spec.adapter.ranks().is_none() || spec.budget.is_none();
        self.hold(&format!("{table}.ranks"), fixed, || {
            format!("is a pattern that stays, and [budget] would change it: leave one out, or write {rank}")
        });
        self.positive(&format!("{table}.alpha"), spec.adapter.alpha(), ": the increment is scaled by it");
        let moves = !spec.adapter.scale().follows_rank() || spec.budget.is_some();
        self.hold(&format!("{table}.scale"), moves, || {
            "(\"current-rank\") has no effect without [budget], as ranks stay what they are: leave it out"
                .into()
        });
    }

    /// Importance, budget and observation exist together, and only with triplets or LoRA's doublets.
    fn allocation(&mut self, spec: &RunSpec) {
        let (importance, budget) = (spec.importance.is_some(), spec.budget.is_some());
        self.hold("importance", !importance || budget, || {
            "has no effect without [budget]: add one, or leave [importance] and [observation] out".into()
        });
        self.hold("budget", !budget || importance, || {
            "needs [importance], which says what to keep: add one, or leave [budget] out".into()
        });
        let form = spec.adapter.form();
        for (table, present) in [("importance", importance), ("budget", budget)] {
            self.hold(table, !present || form.is_some(), || {
                format!(
                    "has no effect with [adapter.{}], which has no ranks to choose: take [adapter.svd] or \
                     [adapter.lora], or leave [importance], [budget] and [observation] out",
                    spec.adapter.name()
                )
            });
        }
        let magnitude = matches!(spec.importance, Some(ImportanceSpec::Magnitude(_)));
        self.hold("importance.magnitude", !magnitude || form != Some(Form::Lora), || {
            "needs [adapter.svd]: it is the size of lambda, which LoRA has not; take another metric".into()
        });
        if let Some(metric) = &spec.importance {
            for error in metric.problems() {
                self.prefixed(&format!("importance.{}", metric.name()), error.key, &error);
            }
        }
    }

    /// A problem whose text starts with a key of `table`.
    fn prefixed(&mut self, table: &str, key: &str, text: &dyn Display) {
        let (key, message) = (format!("{table}.{key}"), format!("{table}.{text}"));
        self.broken.push(Problem { variant: None, key, message });
    }

    fn observation(&mut self, spec: &RunSpec) {
        let Some(observation) = &spec.observation else {
            self.hold("importance", spec.importance.is_none(), || {
                "needs [observation]: paper and authors' code differ in the weights and the gradient that \
                 importance is computed from, so say which"
                    .into()
            });
            return;
        };
        // A budget alone was told what it needs.
        self.hold("observation", spec.importance.is_some() || spec.budget.is_some(), || {
            "has no effect without [importance]: leave it out".into()
        });
        let clips = spec.train.clip.is_some() || observation.gradient == Gradient::Raw;
        self.hold("observation.gradient", clips, || {
            "(\"clipped\") has no effect without train.clip: set that, or write \"raw\"".into()
        });
        match (&spec.orthogonality, observation.regularizer) {
            (Some(_), None) => self.hold("observation", false, || {
                "needs regularizer = true or false: whether the gradient of [orthogonality] is part of it"
                    .into()
            }),
            (None, Some(_)) => self.hold("observation.regularizer", false, || {
                "has no effect without [orthogonality]: leave it out".into()
            }),
            _ => {}
        }
    }

    /// All rules of the schedule if the number of steps is given, else those that need none.
    fn budget(&mut self, spec: &RunSpec) {
        let Some(budget) = spec.budget.as_ref().filter(|_| spec.adapter.form().is_some()) else { return };
        // What is 0 was reported where it stands.
        let given = |value: usize| Some(value).filter(|value| *value > 0).unwrap_or(usize::MAX);
        let steps = given(spec.train.steps.unwrap_or(0));
        // Every adapter has the same rank, so one stands for all.
        // How many parameters a triplet has is known with the model only, and one is the least.
        let rank = match budget.phases().unit() {
            BudgetUnit::Triplets => given(spec.adapter.rank().unwrap_or(0)),
            BudgetUnit::Parameters => usize::MAX,
        };
        let Err(errors) = BudgetSchedule::new(budget, &[rank], &[1], steps) else { return };
        for error in errors {
            self.prefixed(&format!("budget.{}", budget.name()), error.key(), &error);
        }
    }

    fn optimizer(&mut self, spec: &RunSpec) {
        let optimizer = &spec.optimizer;
        self.positive("optimizer.lr", optimizer.lr, ": it is the learning rate at its highest");
        for beta in optimizer.betas {
            self.below_one("optimizer.betas", beta, "each is the weight of the past in a running average");
        }
        self.positive("optimizer.eps", optimizer.eps, ": it keeps the denominator from 0");
        let decay = &optimizer.weight_decay;
        let rates = [
            ("factors", decay.factors),
            ("lambda", decay.lambda),
            ("head", decay.head),
            ("encoder", decay.encoder),
        ];
        for (key, value) in rates {
            let key = format!("optimizer.weight_decay.{key}");
            self.hold(&key, value >= 0.0 && value.is_finite(), || {
                format!("({value:?}) must be finite and at least 0")
            });
        }
        let table = spec.adapter.name();
        let weights = !matches!(spec.adapter.tuning(), Tuning::Frozen | Tuning::BitFit);
        let present = [
            ("factors", decay.factors, spec.adapter.form().is_some(), "factors"),
            ("lambda", decay.lambda, spec.adapter.form() == Some(Form::Svd), "singular values"),
            ("encoder", decay.encoder, weights, "weights in the encoder to train"),
        ];
        for (key, value, present, what) in present {
            self.hold(&format!("optimizer.weight_decay.{key}"), present || value == 0.0, || {
                format!("({value:?}) has no effect: [adapter.{table}] has no {what}; leave it out")
            });
        }
        let masks = optimizer.masked_moments == MaskedMoments::Keep || spec.budget.is_some();
        self.hold("optimizer.masked_moments", masks, || {
            "(\"zero\") has no effect without [budget], as nothing is masked: leave it out".into()
        });
        let warm_up = optimizer.schedule.warm_up();
        if let Some(steps) = spec.train.steps.filter(|steps| *steps > 0) {
            let curve = match optimizer.schedule {
                adalora::LearningRateSpec::Constant(_) => "constant",
                adalora::LearningRateSpec::Linear(_) => "linear",
            };
            self.hold(&format!("optimizer.schedule.{curve}.warm_up"), warm_up < steps, || {
                format!("({warm_up}) must be below train.steps ({steps})")
            });
        }
    }

    fn train(&mut self, spec: &RunSpec) {
        let train = &spec.train;
        match (train.epochs, train.steps) {
            (None, None) => self.hold("train", false, || "needs epochs or steps: how long to train".into()),
            (Some(epochs), Some(steps)) => self.hold("train.steps", false, || {
                format!("({steps}) and train.epochs ({epochs}) both say how long to train: keep one")
            }),
            _ => {}
        }
        let counts = [
            ("epochs", train.epochs),
            ("steps", train.steps),
            ("batch_size", Some(train.batch_size)),
            ("accumulate", Some(train.accumulate)),
        ];
        for (key, value) in counts {
            self.count(&format!("train.{key}"), value, 1, "");
        }
        // One that is longer than the run is a way to say never.
        let intervals = [
            ("evaluate_every", Some(train.evaluate_every)),
            ("record_every", Some(train.record_every)),
            ("checkpoint_every", train.checkpoint_every),
        ];
        for (key, value) in intervals {
            self.within(&format!("train.{key}"), value, 1..=usize::MAX, "");
        }
        self.within("train.threads", train.threads, 1..=MOST_THREADS, "");
        if let Some(clip) = train.clip {
            self.positive("train.clip", clip, "; leave it out for no clipping");
        }
    }
}
