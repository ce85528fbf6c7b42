//! Score against the size of the adapters: a panel for each column of a study, a line for each variant.

use crate::ReportError;
use crate::curves::{self, Line, Panel, Point};
use crate::record::Variant;
use crate::statistics::Summary;
use crate::study::Study;

/// `ladder.svg`: mean over the finished seeds and a band from the smallest to the largest, at each size that the groups
/// of a study have. `None` where they have one alone.
pub(crate) fn draw(study: &Study) -> Result<Option<String>, ReportError> {
    let variants: Vec<_> =
        study.groups[0].cells[0].experiment.variants.iter().map(|of| of.name.as_str()).collect();
    let mut panels = Vec::new();
    for (column, title) in study.columns.iter().enumerate() {
        let mut lines = Vec::new();
        for at in 0..variants.len() {
            let mut points = Vec::new();
            for cell in study.groups.iter().filter_map(|group| group.cells.get(column)) {
                let scores: Vec<_> =
                    cell.scores(at)?.into_values().filter(|score| score.is_finite()).collect();
                if let (Some(size), Some(score)) =
                    (size(&cell.experiment.variants[at]), Summary::of(scores.clone()))
                {
                    points.push(Point {
                        across: size,
                        mean: score.mean,
                        low: scores.iter().copied().fold(f64::INFINITY, f64::min),
                        high: scores.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    });
                }
            }
            points.sort_by(|a, b| a.across.total_cmp(&b.across));
            lines.push(Line { points });
        }
        let headline = study.groups.iter().find_map(|group| group.cells.get(column)?.headline());
        let name = headline.map_or(title.clone(), |headline| format!("{title}, {headline}"));
        panels.push(Panel::against_size(name, lines));
    }
    let has_steps = |panel: &Panel| panel.has_several_places();
    if !panels.iter().any(has_steps) {
        return Ok(None);
    }
    let text = "line: mean over the finished seeds; band: smallest to largest";
    Ok(Some(curves::draw_panels(&variants, &panels, &format!("Score against size of {}", study.name), text)))
}

/// Parameters of the live adapters at the end, mean over the finished runs.
fn size(variant: &Variant) -> Option<f64> {
    Summary::of(variant.results().map(|result| result.parameters.adapter_final as f64)).map(|of| of.mean)
}
