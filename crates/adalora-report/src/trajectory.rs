//! The rank of each adapter over the steps: a row for each adapter, a panel for each variant.

use crate::ReportError;
use crate::heatmap::{Place, colour, draw_key, hex, short_names};
use crate::record::{Experiment, RankRow, Ranks, Run, Variant};
use crate::svg::{Anchor, FAINT, INK, Svg, text_width};
use crate::table::whole;

const MARGIN: f64 = 12.0;
const GAP: f64 = 30.0;
/// Panels stand side by side up to this width.
const WIDTH: f64 = 840.0;
const PLOT: f64 = 220.0;
const LABEL: f64 = 11.0;
const SMALL: f64 = 10.0;
const TITLE: f64 = 12.5;
/// Height of an adapter's row, and of the space between two types of matrices.
const ROW: f64 = 5.0;
const BETWEEN: f64 = 5.0;
const ABOVE: f64 = 24.0;
const BELOW: f64 = 40.0;

/// `trajectory.svg`: mean over the finished seeds of what the last allocation before each record kept. `None` where no
/// variant with a finished run allocates.
pub(crate) fn draw(experiment: &Experiment) -> Result<Option<String>, ReportError> {
    let mut panels = Vec::new();
    for variant in &experiment.variants {
        panels.extend(Panel::of(variant)?);
    }
    if panels.is_empty() {
        return Ok(None);
    }
    let largest =
        panels.iter().flat_map(|panel| panel.ranks.iter().flatten()).copied().fold(1.0, f64::max).ceil();
    let mut svg = Svg::default();
    let (mut x, mut y, mut height, mut width) = (MARGIN, MARGIN, 0.0_f64, 0.0_f64);
    for panel in &panels {
        if x > MARGIN && x + panel.width() > WIDTH {
            (x, y, height) = (MARGIN, y + height + GAP / 2.0, 0.0);
        }
        panel.draw(&mut svg, [x, y], largest);
        x += panel.width() + GAP;
        width = width.max(x - GAP);
        height = height.max(panel.height());
    }
    y += height;
    let text = "rank that the last allocation kept, mean over the finished seeds; layers from top to bottom";
    let key = draw_key(&mut svg, [MARGIN, y + 10.0], largest, text);
    let title = format!("Ranks of {} over the steps", experiment.name);
    Ok(Some(svg.finish(width.max(key) + MARGIN, y + 42.0 + MARGIN, &title)))
}

struct Panel {
    title: String,
    /// Types of matrices with the number of their rows, in order.
    kinds: Vec<(String, usize)>,
    /// Finished steps at each record.
    steps: Vec<usize>,
    /// Mean rank at each record of each row.
    ranks: Vec<Vec<f64>>,
}

impl Panel {
    /// `None` for a variant without allocation or without a finished run.
    fn of(variant: &Variant) -> Result<Option<Self>, ReportError> {
        let allocates = |run: &&Run| run.result.as_ref().is_some_and(|result| result.triplets.is_some());
        let seeds: Vec<(u64, &Ranks)> = variant
            .runs
            .iter()
            .filter(allocates)
            .filter_map(|run| Some((run.seed, run.ranks.as_ref()?)))
            .collect();
        let Some((_, Ranks { adapters, .. })) = seeds.first() else { return Ok(None) };
        if let Some((seed, _)) = seeds.iter().find(|(_, ranks)| ranks.adapters != *adapters) {
            return Err(ReportError::AdaptersDiffer { variant: variant.name.clone(), seed: *seed });
        }
        let at = |ranks: &'_ Ranks, step: usize| -> Option<Vec<usize>> {
            ranks.rows.iter().find(|row| row.step == step).map(|RankRow { ranks, .. }| ranks.clone())
        };
        // Steps that all seeds have recorded.
        let mut steps: Vec<usize> = seeds[0].1.rows.iter().map(|row| row.step).collect();
        steps.retain(|&step| seeds.iter().all(|(_, ranks)| at(ranks, step).is_some()));
        let means: Vec<Vec<f64>> = steps
            .iter()
            .map(|&step| {
                let all: Vec<_> = seeds.iter().filter_map(|(_, ranks)| at(ranks, step)).collect();
                let mean = |adapter: usize| {
                    all.iter().map(|ranks| ranks[adapter] as f64).sum::<f64>() / all.len() as f64
                };
                (0..adapters.len()).map(mean).collect()
            })
            .collect();

        let places: Vec<_> = adapters.iter().map(|path| Place::of(path)).collect();
        let mut kinds: Vec<&[&str]> = Vec::new();
        for place in &places {
            if !kinds.contains(&place.kind.as_slice()) {
                kinds.push(&place.kind);
            }
        }
        let mut order: Vec<usize> = (0..places.len()).collect();
        let kind_of = |adapter: usize| kinds.iter().position(|&kind| kind == places[adapter].kind);
        order.sort_by_key(|&adapter| (kind_of(adapter), places[adapter].layer));
        let rows = kinds.iter().map(|&kind| places.iter().filter(|place| place.kind == kind).count());
        let n = seeds.len();
        Ok(Some(Self {
            title: format!("{} ({n} seed{})", variant.name, if n == 1 { "" } else { "s" }),
            kinds: short_names(&kinds).into_iter().zip(rows).collect(),
            ranks: order.iter().map(|&adapter| means.iter().map(|ranks| ranks[adapter]).collect()).collect(),
            steps,
        }))
    }

    fn label_width(&self) -> f64 {
        self.kinds.iter().map(|(name, _)| text_width(name, LABEL)).fold(0.0, f64::max) + 6.0
    }

    fn width(&self) -> f64 {
        (self.label_width() + PLOT).max(text_width(&self.title, TITLE))
    }

    fn height(&self) -> f64 {
        ABOVE + ROW * self.ranks.len() as f64 + BETWEEN * (self.kinds.len() - 1) as f64 + BELOW
    }

    fn draw(&self, svg: &mut Svg, [x, y]: [f64; 2], largest: f64) {
        svg.text(
            [x, y + 8.0],
            Anchor::Start,
            TITLE,
            &format!(r#"fill="{INK}" font-weight="bold""#),
            &self.title,
        );
        let left = x + self.label_width();
        let last = *self.steps.last().unwrap_or(&1) as f64;
        let at = |step: usize| left + PLOT * step as f64 / last;
        let mut top = y + ABOVE;
        let mut rows = self.ranks.iter();
        for (name, count) in &self.kinds {
            let middle = top + ROW * *count as f64 / 2.0;
            svg.text([left - 6.0, middle], Anchor::End, LABEL, &format!(r#"fill="{INK}""#), name);
            for ranks in rows.by_ref().take(*count) {
                self.draw_row(svg, ranks, top, &at, largest);
                top += ROW;
            }
            top += BETWEEN;
        }
        let bottom = top - BETWEEN;
        for step in [0.0, last / 2.0, last] {
            let x = left + PLOT * step / last;
            svg.line([x, bottom], [x, bottom + 4.0], &format!(r#"stroke="{INK}""#));
            svg.text([x, bottom + 13.0], Anchor::Middle, SMALL, &format!(r#"fill="{INK}""#), &whole(step));
        }
        let middle = left + PLOT / 2.0;
        svg.text(
            [middle, bottom + 28.0],
            Anchor::Middle,
            LABEL,
            &format!(r#"fill="{FAINT}""#),
            "optimizer step",
        );
    }

    /// One rectangle for each stretch of records with one rank, from the record before it.
    fn draw_row(&self, svg: &mut Svg, ranks: &[f64], top: f64, at: &dyn Fn(usize) -> f64, largest: f64) {
        let mut from = at(0);
        for (record, &rank) in ranks.iter().enumerate() {
            if ranks.get(record + 1) == Some(&rank) {
                continue;
            }
            let to = at(self.steps[record]);
            let style = format!(r#"fill="{}""#, hex(colour(rank / largest)));
            // A little overlap hides seams between the stretches.
            svg.rect([from, top, to - from + 0.2, ROW - 0.6], &style);
            from = to;
        }
    }
}
