//! Training loss, dev score and triplets against the optimizer step, a line for each variant.

use std::collections::BTreeMap;

use crate::record::{Experiment, LogRecord, TrainRecord, Variant};
use crate::svg::{Anchor, FAINT, INK, Svg, text_width};
use crate::table::whole;

const WIDTH: f64 = 840.0;
const MARGIN: f64 = 12.0;
/// Drawing area of one panel, and the room left and right of it.
const PLOT: [f64; 2] = [204.0, 176.0];
const LEFT: f64 = 54.0;
const RIGHT: f64 = 18.0;
const SMALL: f64 = 10.0;
const LABEL: f64 = 11.0;
/// Up to so many points are marked, so that sparse evaluations show where they were made.
const MARKED: usize = 20;

/// Okabe and Ito's palette for the colour-blind without its yellow, which is faint on white. Black is the control.
const PALETTE: [&str; 7] = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

/// `curves.svg`: mean over the finished seeds, and a band from the smallest to the largest.
pub(crate) fn draw(experiment: &Experiment, headline: &str) -> String {
    let dev = lines(experiment, &|record| match record {
        LogRecord::Dev(dev) => dev.scores.get(headline).copied(),
        LogRecord::Train(_) => None,
    });
    let budget = train_lines(experiment, |record| record.budget.map(|budget| budget as f64));
    let live = train_lines(experiment, |record| record.live.map(|live| live as f64));
    let panels = [
        Panel::new("training loss of the task", train_lines(experiment, |record| Some(record.loss))),
        Panel::new(format!("{headline} on dev"), dev),
        Panel { below: budget, at_most: 0.0, ..Panel::new("triplets over all adapters", live) },
    ];
    let budget = if panels[2].is_empty() { "" } else { "; triplets: live thin, budget pale" };
    let text = format!("line: mean over the finished seeds; band: smallest to largest{budget}");
    draw_panels(&names(experiment), &panels, &format!("Curves of {}", experiment.name), &text)
}

/// `factors.svg`: how far P and Q are from orthonormal, and what decides importance. `None` where no variant says so.
pub(crate) fn draw_factors(experiment: &Experiment) -> Option<String> {
    let mean =
        |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
    let of = |name: &str, value: &dyn Fn(&TrainRecord) -> Option<f64>| Panel {
        logarithmic: true,
        ..Panel::new(name, train_lines(experiment, value))
    };
    let panels = [
        of("squared residual of P", &|record| Some(mean(&record.residuals.as_ref()?.p))),
        of("squared residual of Q", &|record| Some(mean(&record.residuals.as_ref()?.q))),
        of("share of λ in importance", &|record| Some(record.shares.as_ref()?.lambda.into())),
        of("share of P in importance", &|record| Some(record.shares.as_ref()?.p.into())),
        of("share of Q in importance", &|record| Some(record.shares.as_ref()?.q.into())),
    ];
    let text = "residual: norm of P'P − I and of QQ' − I, mean over adapters; line: mean over the finished seeds; band: \
                smallest to largest";
    let some = panels.iter().any(|panel| !panel.is_empty());
    some.then(|| draw_panels(&names(experiment), &panels, &format!("Factors of {}", experiment.name), text))
}

fn lines(experiment: &Experiment, value: &dyn Fn(&LogRecord) -> Option<f64>) -> Vec<Line> {
    experiment.variants.iter().map(|variant| Line::of(variant, value)).collect()
}

fn train_lines(experiment: &Experiment, value: impl Fn(&TrainRecord) -> Option<f64>) -> Vec<Line> {
    lines(experiment, &|record| match record {
        LogRecord::Train(train) => value(train),
        LogRecord::Dev(_) => None,
    })
}

/// The panels that have something to show, three side by side, with a legend and a caption below.
pub(crate) fn draw_panels(variants: &[&str], panels: &[Panel], title: &str, caption: &str) -> String {
    let mut svg = Svg::default();
    let shown: Vec<_> = panels.iter().filter(|panel| !panel.is_empty()).collect();
    let mut y = MARGIN;
    for row in shown.chunks(3) {
        for (panel, at) in row.iter().zip(0..) {
            panel.draw(&mut svg, [MARGIN + f64::from(at) * (LEFT + PLOT[0] + RIGHT), y]);
        }
        y += PLOT[1] + 58.0;
    }
    y = draw_legend(&mut svg, variants, y);
    svg.text([MARGIN, y], Anchor::Start, SMALL, &fill(FAINT), caption);
    svg.finish(WIDTH, y + MARGIN + 4.0, title)
}

fn names(experiment: &Experiment) -> Vec<&str> {
    experiment.variants.iter().map(|variant| variant.name.as_str()).collect()
}

/// Returns the height below it.
fn draw_legend(svg: &mut Svg, variants: &[&str], mut y: f64) -> f64 {
    let mut x = MARGIN;
    for (variant, name) in variants.iter().enumerate() {
        let width = 30.0 + text_width(name, LABEL) + 18.0;
        if x > MARGIN && x + width > WIDTH {
            (x, y) = (MARGIN, y + 18.0);
        }
        svg.line([x, y], [x + 24.0, y], &format!(r#"{} stroke-width="2.4""#, stroke(variant)));
        svg.text([x + 30.0, y], Anchor::Start, LABEL, &fill(INK), name);
        x += width;
    }
    y + 22.0
}

/// One value of one variant over the steps at which all its finished seeds have a finite one.
#[derive(PartialEq)]
pub(crate) struct Line {
    pub(crate) points: Vec<Point>,
}

#[derive(PartialEq)]
pub(crate) struct Point {
    /// Optimizer step, or size.
    pub(crate) across: f64,
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Line {
    fn of(variant: &Variant, value: &dyn Fn(&LogRecord) -> Option<f64>) -> Self {
        let mut steps: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let finished = variant.runs.iter().filter(|run| run.result.is_some());
        for run in finished.clone() {
            // One value for each step, should a run have evaluated twice at one.
            let values = run.log.iter().filter_map(|record| Some((step_of(record), value(record)?)));
            for (step, value) in values.collect::<BTreeMap<_, _>>() {
                steps.entry(step).or_default().push(value);
            }
        }
        let seeds = finished.count();
        steps.retain(|_, values| values.len() == seeds && values.iter().all(|value| value.is_finite()));
        let point = |(step, values): (usize, Vec<f64>)| Point {
            across: step as f64,
            mean: values.iter().sum::<f64>() / seeds as f64,
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
        Self { points: steps.into_iter().map(point).collect() }
    }
}

fn step_of(record: &LogRecord) -> usize {
    match record {
        LogRecord::Train(train) => train.step,
        LogRecord::Dev(dev) => dev.step,
    }
}

pub(crate) struct Panel {
    name: String,
    /// What goes across.
    across: &'static str,
    /// One for each variant, without points where it has no such value.
    lines: Vec<Line>,
    /// Wide and pale below the lines.
    below: Vec<Line>,
    /// Where the upward axis begins at the latest.
    at_most: f64,
    /// The upward axis; what is not above 0 has no place on it.
    logarithmic: bool,
}

impl Panel {
    fn new(name: impl Into<String>, lines: Vec<Line>) -> Self {
        Self {
            name: name.into(),
            across: "optimizer step",
            lines,
            below: Vec::new(),
            at_most: f64::INFINITY,
            logarithmic: false,
        }
    }

    /// Over parameters of the adapters, from 0.
    pub(crate) fn against_size(name: String, lines: Vec<Line>) -> Self {
        Self { across: "adapter parameters at the end", ..Self::new(name, lines) }
    }

    /// Whether some line has more than one place across.
    pub(crate) fn has_several_places(&self) -> bool {
        self.lines.iter().any(|line| line.points.windows(2).any(|pair| pair[0].across < pair[1].across))
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        let points = self.lines.iter().chain(&self.below).flat_map(|line| &line.points);
        points.filter(|point| self.has_place(point))
    }

    fn has_place(&self, point: &Point) -> bool {
        !self.logarithmic || point.low > 0.0
    }

    fn is_empty(&self) -> bool {
        self.points().next().is_none()
    }

    fn draw(&self, svg: &mut Svg, [x, y]: [f64; 2]) {
        let [left, top] = [x + LEFT, y];
        let [right, bottom] = [left + PLOT[0], top + PLOT[1]];
        let last = self.points().map(|point| point.across).fold(0.0, f64::max);
        let low = self.points().map(|point| point.low).fold(self.at_most, f64::min);
        let high = self.points().map(|point| point.high).fold(f64::NEG_INFINITY, f64::max);
        let across = Axis { low: 0.0, high: last, from: left, to: right, logarithmic: false };
        let up = if self.logarithmic {
            Axis::logarithmic(low, high, bottom, top)
        } else {
            Axis::around(low, high, bottom, top)
        };

        for (value, label) in up.ticks(6) {
            let y = up.at(value);
            svg.line([left, y], [right, y], r##"stroke="#e6e6e6""##);
            svg.text([left - 6.0, y], Anchor::End, SMALL, &fill(INK), &label);
        }
        for (value, label) in across.ticks(4) {
            let x = across.at(value);
            svg.line([x, bottom], [x, bottom + 4.0], &format!(r#"stroke="{INK}""#));
            svg.text([x, bottom + 13.0], Anchor::Middle, SMALL, &fill(INK), &label);
        }
        svg.polyline([[left, top], [left, bottom], [right, bottom]], &format!(r#"stroke="{INK}""#));
        svg.text([(left + right) / 2.0, bottom + 31.0], Anchor::Middle, LABEL, &fill(INK), self.across);
        svg.text([x + 4.0, (top + bottom) / 2.0], Anchor::Upwards, LABEL, &fill(INK), &self.name);

        let path = |line: &Line, value: fn(&Point) -> f64| -> Vec<[f64; 2]> {
            let points = line.points.iter().filter(|point| self.has_place(point));
            points.map(|point| [across.at(point.across), up.at(value(point))]).collect()
        };
        for (variant, line) in self.lines.iter().enumerate() {
            if line.points.iter().any(|point| point.low < point.high && self.has_place(point)) {
                let mut outline = path(line, |point| point.high);
                outline.extend(path(line, |point| point.low).into_iter().rev());
                let style = format!(r#"{} fill-opacity="0.14""#, fill(colour(variant)));
                svg.polygon(outline, &style);
            }
        }
        for (variant, line) in self.below.iter().enumerate() {
            let style = r#"stroke-width="5" stroke-opacity="0.25""#;
            let style = format!("{} {style}", stroke_among(&self.below, variant));
            svg.polyline(path(line, |point| point.mean), &style);
        }
        for (variant, line) in self.lines.iter().enumerate() {
            let points = path(line, |point| point.mean);
            if points.len() <= MARKED {
                for &point in &points {
                    svg.circle(point, 2.2, &fill(colour(variant)));
                }
            }
            let style = r#"stroke-width="1.6" stroke-linejoin="round""#;
            svg.polyline(points, &format!("{} {style}", stroke_among(&self.lines, variant)));
        }
    }
}

fn colour(variant: usize) -> &'static str {
    PALETTE[variant % PALETTE.len()]
}

/// Colour of a variant's line, solid or, past the end of the palette, dashed.
fn stroke(variant: usize) -> String {
    let dashes = if variant < PALETTE.len() { "" } else { r#" stroke-dasharray="5 3""# };
    format!(r#"stroke="{}"{dashes}"#, colour(variant))
}

/// The same for one line among others. Variants with one schedule have one line of triplets: each then draws its
/// own dashes of it.
fn stroke_among(lines: &[Line], variant: usize) -> String {
    const DASH: usize = 9;
    let alike: Vec<_> = (0..lines.len()).filter(|&other| lines[other] == lines[variant]).collect();
    if alike.len() < 2 {
        return stroke(variant);
    }
    let place = alike.iter().position(|&other| other == variant).expect("a line is like itself");
    let [gap, offset] = [DASH * (alike.len() - 1), DASH * (alike.len() - place)];
    format!(r#"stroke="{}" stroke-dasharray="{DASH} {gap}" stroke-dashoffset="{offset}""#, colour(variant))
}

struct Axis {
    low: f64,
    high: f64,
    /// Pixels of `low` and `high`.
    from: f64,
    to: f64,
    logarithmic: bool,
}

impl Axis {
    /// With a little air around the values, save below zero where they begin there.
    fn around(low: f64, high: f64, from: f64, to: f64) -> Self {
        let air = if low < high { 0.04 * (high - low) } else { 0.1 * low.abs().max(1.0) };
        let low = if low == 0.0 { 0.0 } else { low - air };
        Self { low, high: high + air, from, to, logarithmic: false }
    }

    /// From a power of ten to another, `low` being above 0.
    fn logarithmic(low: f64, high: f64, from: f64, to: f64) -> Self {
        let [first, last] = [low.log10().floor(), high.log10().ceil()];
        let last = if first < last { last } else { first + 1.0 };
        Self { low: 10.0_f64.powf(first), high: 10.0_f64.powf(last), from, to, logarithmic: true }
    }

    fn at(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.log10() } else { value };
        let [low, high] = [self.low, self.high].map(scale);
        self.from + (self.to - self.from) * (scale(value) - low) / (high - low)
    }

    /// About `count` round values with their labels.
    fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        if self.logarithmic {
            let [first, last] = [self.low, self.high].map(|value| value.log10().round() as i32);
            let every = ((last - first) as usize).div_ceil(count);
            return (first..=last)
                .step_by(every)
                .map(|power| (10.0_f64.powi(power), power_of_ten(power)))
                .collect();
        }
        let raw = (self.high - self.low) / count as f64;
        let power = 10.0_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|&step| step >= raw);
        let step = step.unwrap_or(10.0 * power);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let label = |value: f64| if decimals == 0 { whole(value) } else { format!("{value:.decimals$}") };
        let first = (self.low / step).ceil() as i64;
        let ticks = (first..).map(|i| i as f64 * step).take_while(|&value| value <= self.high + 1e-9 * step);
        ticks.map(|value| (value, label(value))).collect()
    }
}

/// Small powers in full. Raised digits would read better, and not every font has them.
fn power_of_ten(power: i32) -> String {
    if power.abs() <= 2 { format!("{}", 10.0_f64.powi(power)) } else { format!("1e{power}") }
}

fn fill(colour: &str) -> String {
    format!(r#"fill="{colour}""#)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        let axis = Axis { low, high, from: 0.0, to: 1.0, logarithmic: false };
        axis.ticks(5).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(0.0, 2000.0), ["0", "500", "1,000", "1,500", "2,000"]);
        assert_eq!(labels(0.503, 0.698), ["0.55", "0.60", "0.65"]);
        assert_eq!(labels(-0.1, 0.3), ["-0.1", "0.0", "0.1", "0.2", "0.3"]);
        assert_eq!(labels(0.0, 7.0), ["0", "2", "4", "6"]);
    }

    #[test]
    fn ticks_of_a_logarithmic_axis_are_powers_of_ten() {
        let labels = |low, high| -> Vec<String> {
            Axis::logarithmic(low, high, 0.0, 1.0).ticks(6).into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(0.003, 0.9), ["1e-3", "0.01", "0.1", "1"]);
        assert_eq!(labels(2e-12, 0.5), ["1e-12", "1e-10", "1e-8", "1e-6", "1e-4", "0.01", "1"]);
        assert_eq!(labels(1.0, 1.0), ["1", "10"]);
    }

    #[test]
    fn lines_that_coincide_take_turns() {
        let line = |mean| Line { points: vec![Point { across: 1.0, mean, low: mean, high: mean }] };
        let lines = [line(1.0), line(2.0), line(1.0)];
        let black = r##"stroke="#000000" stroke-dasharray="9 9" stroke-dashoffset="18""##;
        let orange = r##"stroke="#D55E00" stroke-dasharray="9 9" stroke-dashoffset="9""##;
        assert_eq!(stroke_among(&lines, 0), black);
        assert_eq!(stroke_among(&lines, 1), stroke(1));
        assert_eq!(stroke_among(&lines, 2), orange);
    }
}
