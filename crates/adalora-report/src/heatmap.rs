//! The final rank of each adapter as a heat map: matrix types by layers, one panel for each variant.

use crate::ReportError;
use crate::record::{Experiment, RankRow, Ranks, Variant};
use crate::statistics::Summary;
use crate::svg::{Anchor, INK, Svg, text_width};

const CELL: [f64; 2] = [44.0, 34.0];
const LABEL: f64 = 11.0;
const TITLE: f64 = 12.5;
const MARGIN: f64 = 12.0;
const GAP: f64 = 28.0;
/// Panels stand side by side up to this width; a wider one has a row of its own.
const WIDTH: f64 = 840.0;
/// Height of a panel beside its cells: title above, layer numbers and axis name below.
const ABOVE: f64 = 24.0;
const BELOW: f64 = 38.0;

/// ColorBrewer's sequential Blues, safe for the colour-blind and in grey print.
const SCALE: [[u8; 3]; 9] = [
    [0xf7, 0xfb, 0xff],
    [0xde, 0xeb, 0xf7],
    [0xc6, 0xdb, 0xef],
    [0x9e, 0xca, 0xe1],
    [0x6b, 0xae, 0xd6],
    [0x42, 0x92, 0xc6],
    [0x21, 0x71, 0xb5],
    [0x08, 0x51, 0x9c],
    [0x08, 0x30, 0x6b],
];

/// `ranks.svg`: mean over the finished seeds, and their deviation in small print.
pub(crate) fn draw(experiment: &Experiment) -> Result<String, ReportError> {
    let mut panels = Vec::new();
    for variant in &experiment.variants {
        panels.extend(Panel::of(variant)?);
    }
    let largest = panels.iter().flat_map(|panel| &panel.cells).map(|cell| cell.rank.mean).fold(1.0, f64::max);
    let largest = largest.ceil();

    let mut svg = Svg::default();
    let (mut x, mut y, mut row_height, mut width) = (MARGIN, MARGIN, 0.0_f64, 0.0_f64);
    for panel in &panels {
        if x > MARGIN && x + panel.width() > WIDTH {
            (x, y) = (MARGIN, y + row_height + GAP / 2.0);
            row_height = 0.0;
        }
        panel.draw(&mut svg, [x, y], largest);
        x += panel.width() + GAP;
        row_height = row_height.max(panel.height());
        width = width.max(x - GAP);
    }
    y += row_height;
    if panels.is_empty() {
        let text = "No variant with a finished run allocates ranks.";
        svg.text([MARGIN, y + 8.0], Anchor::Start, TITLE, &fill(INK), text);
        return Ok(svg.finish(text_width(text, TITLE) + 2.0 * MARGIN, y + 16.0 + MARGIN, "Final ranks"));
    }
    let text = "final rank: mean over the finished seeds, ± standard deviation";
    let key = draw_key(&mut svg, [MARGIN, y + 10.0], largest, text);
    let title = format!("Final ranks of {}", experiment.name);
    Ok(svg.finish(width.max(key) + MARGIN, y + 42.0 + MARGIN, &title))
}

/// The colour scale; returns where it ends on the right.
pub(crate) fn draw_key(svg: &mut Svg, [x, y]: [f64; 2], largest: f64, text: &str) -> f64 {
    const STEPS: usize = 60;
    const LENGTH: f64 = 180.0;
    for step in 0..STEPS {
        let share = step as f64 / (STEPS - 1) as f64;
        let left = x + LENGTH * step as f64 / STEPS as f64;
        // A little overlap hides seams between the strips.
        svg.rect([left, y, LENGTH / STEPS as f64 + 0.3, 12.0], &fill(&hex(colour(share))));
    }
    svg.rect([x, y, LENGTH, 12.0], r##"fill="none" stroke="#999" stroke-width="0.6""##);
    svg.text([x, y + 22.0], Anchor::Start, 10.0, &fill(INK), "0");
    svg.text([x + LENGTH, y + 22.0], Anchor::End, 10.0, &fill(INK), &format!("{largest}"));
    svg.text([x + LENGTH + 12.0, y + 6.0], Anchor::Start, LABEL, &fill(INK), text);
    x + LENGTH + 12.0 + text_width(text, LABEL)
}

struct Panel {
    title: String,
    rows: Vec<String>,
    /// Layer numbers as in the paths; `None`, for a path without a number, comes last.
    columns: Vec<Option<usize>>,
    cells: Vec<Cell>,
}

struct Cell {
    row: usize,
    column: usize,
    rank: Summary,
}

impl Panel {
    /// `None` for a variant without allocation or without a finished run.
    fn of(variant: &Variant) -> Result<Option<Self>, ReportError> {
        let mut adapters: Option<&[String]> = None;
        let mut seeds: Vec<&[usize]> = Vec::new();
        for run in &variant.runs {
            let allocates = run.result.as_ref().is_some_and(|result| result.triplets.is_some());
            let Some(Ranks { adapters: names, rows }) = run.ranks.as_ref().filter(|_| allocates) else {
                continue;
            };
            let Some(RankRow { ranks, .. }) = rows.last() else { continue };
            if *adapters.get_or_insert(names) != names {
                return Err(ReportError::AdaptersDiffer { variant: variant.name.clone(), seed: run.seed });
            }
            seeds.push(ranks);
        }
        let Some(adapters) = adapters else { return Ok(None) };

        let places: Vec<_> = adapters.iter().map(|path| Place::of(path)).collect();
        let mut kinds: Vec<&[&str]> = Vec::new();
        for place in &places {
            if !kinds.contains(&place.kind.as_slice()) {
                kinds.push(&place.kind);
            }
        }
        let mut columns: Vec<_> = places.iter().map(|place| place.layer).collect();
        columns.sort_by_key(|layer| (layer.is_none(), *layer));
        columns.dedup();
        let index = "every kind and layer was collected from these places";
        let cells = places.iter().enumerate().map(|(adapter, place)| Cell {
            row: kinds.iter().position(|&kind| kind == place.kind).expect(index),
            column: columns.iter().position(|&layer| layer == place.layer).expect(index),
            rank: Summary::of(seeds.iter().map(|ranks| ranks[adapter] as f64)).expect("one seed at least"),
        });
        let n = seeds.len();
        Ok(Some(Self {
            title: format!("{} ({n} seed{})", variant.name, if n == 1 { "" } else { "s" }),
            cells: cells.collect(),
            rows: short_names(&kinds),
            columns,
        }))
    }

    fn label_width(&self) -> f64 {
        self.rows.iter().map(|row| text_width(row, LABEL)).fold(0.0, f64::max) + 6.0
    }

    fn width(&self) -> f64 {
        (self.label_width() + CELL[0] * self.columns.len() as f64).max(text_width(&self.title, TITLE))
    }

    fn height(&self) -> f64 {
        ABOVE + CELL[1] * self.rows.len() as f64 + BELOW
    }

    fn draw(&self, svg: &mut Svg, [x, y]: [f64; 2], largest: f64) {
        svg.text(
            [x, y + 8.0],
            Anchor::Start,
            TITLE,
            &format!(r#"{} font-weight="bold""#, fill(INK)),
            &self.title,
        );
        let [left, top] = [x + self.label_width(), y + ABOVE];
        let bottom = top + CELL[1] * self.rows.len() as f64;
        for (row, name) in self.rows.iter().enumerate() {
            let middle = top + CELL[1] * (row as f64 + 0.5);
            svg.text([left - 6.0, middle], Anchor::End, LABEL, &fill(INK), name);
        }
        for (column, layer) in self.columns.iter().enumerate() {
            let middle = left + CELL[0] * (column as f64 + 0.5);
            let number = layer.map_or("–".to_owned(), |layer| layer.to_string());
            svg.text([middle, bottom + 10.0], Anchor::Middle, LABEL, &fill(INK), &number);
        }
        let middle = left + CELL[0] * self.columns.len() as f64 / 2.0;
        svg.text([middle, bottom + 26.0], Anchor::Middle, LABEL, &fill(INK), "layer");
        for cell in &self.cells {
            cell.draw(svg, [left + CELL[0] * cell.column as f64, top + CELL[1] * cell.row as f64], largest);
        }
    }
}

impl Cell {
    fn draw(&self, svg: &mut Svg, [x, y]: [f64; 2], largest: f64) {
        let colour = colour(self.rank.mean / largest);
        let style = format!(r##"{} stroke="#ccd3da" stroke-width="0.6""##, fill(&hex(colour)));
        svg.rect([x, y, CELL[0], CELL[1]], &style);
        let ink = fill(readable_on(colour));
        let [middle, height] = [x + CELL[0] / 2.0, CELL[1]];
        let mean = format!("{:.1}", self.rank.mean);
        match self.rank.sd {
            Some(sd) => {
                svg.text([middle, y + 0.37 * height], Anchor::Middle, 12.0, &ink, &mean);
                svg.text([middle, y + 0.74 * height], Anchor::Middle, 8.5, &ink, &format!("±{sd:.1}"));
            }
            None => svg.text([middle, y + 0.5 * height], Anchor::Middle, 12.0, &ink, &mean),
        }
    }
}

/// Where an adapter sits, read from its path.
pub(crate) struct Place<'a> {
    /// The first component that is a number.
    pub(crate) layer: Option<usize>,
    /// The other components, without the one that introduces the number (`layer`, `layers`, `h`) and without a
    /// closing `dense`: neither tells two matrices apart.
    pub(crate) kind: Vec<&'a str>,
}

impl<'a> Place<'a> {
    pub(crate) fn of(path: &'a str) -> Self {
        let mut kind: Vec<_> = path.split('.').collect();
        let number = kind.iter().position(|part| part.parse::<usize>().is_ok());
        let layer = number.and_then(|at| kind[at].parse().ok());
        if let Some(at) = number {
            kind.drain(at.saturating_sub(1)..=at);
        }
        if kind.len() > 1 && kind.last() == Some(&"dense") {
            kind.pop();
        }
        Self { layer, kind }
    }
}

/// For each kind its shortest ending that no other kind shares, or all of it: `query`, `attention output`, `output`
/// for `encoder.attention.self.query`, `encoder.attention.output`, `encoder.output`.
pub(crate) fn short_names(kinds: &[&[&str]]) -> Vec<String> {
    let shared = kinds.iter().map(|kind| kind.len()).min().unwrap_or(0).saturating_sub(1);
    let common = (0..shared).take_while(|&at| kinds.iter().all(|kind| kind[at] == kinds[0][at])).count();
    let kinds: Vec<_> = kinds.iter().map(|kind| &kind[common..]).collect();
    let name = |(i, kind): (usize, &&[&str])| {
        let alone =
            |tail: &&[&str]| kinds.iter().enumerate().all(|(j, other)| i == j || !other.ends_with(tail));
        let mut tails = (0..kind.len()).rev().map(|from| &kind[from..]);
        tails.find(alone).unwrap_or(kind).join(" ")
    };
    kinds.iter().enumerate().map(name).collect()
}

/// Colour at a share of the scale from 0 to 1.
pub(crate) fn colour(share: f64) -> [u8; 3] {
    let at = share.clamp(0.0, 1.0) * (SCALE.len() - 1) as f64;
    let lower = (at as usize).min(SCALE.len() - 2);
    let mix =
        |low: u8, high: u8| (low as f64 + (high as f64 - low as f64) * (at - lower as f64)).round() as u8;
    std::array::from_fn(|channel| mix(SCALE[lower][channel], SCALE[lower + 1][channel]))
}

pub(crate) fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn fill(colour: &str) -> String {
    format!(r#"fill="{colour}""#)
}

/// Relative luminance, from 0 for black to 1 for white (WCAG 2).
fn luminance(colour: [u8; 3]) -> f64 {
    let [red, green, blue] = colour.map(|channel| {
        let channel = channel as f64 / 255.0;
        if channel <= 0.04045 { channel / 12.92 } else { ((channel + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// Black or white, whichever has the larger contrast.
fn readable_on(colour: [u8; 3]) -> &'static str {
    // Contrast with black is (l + 0.05) / 0.05 and with white 1.05 / (l + 0.05).
    if (luminance(colour) + 0.05).powi(2) > 0.05 * 1.05 { "#000000" } else { "#ffffff" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str]) -> Vec<String> {
        let places: Vec<_> = paths.iter().map(|path| Place::of(path)).collect();
        short_names(&places.iter().map(|place| place.kind.as_slice()).collect::<Vec<_>>())
    }

    #[test]
    fn bert_paths_are_split_at_the_layer() {
        let paths = [
            "encoder.layer.11.attention.self.query",
            "encoder.layer.11.attention.self.key",
            "encoder.layer.11.attention.self.value",
            "encoder.layer.11.attention.output.dense",
            "encoder.layer.11.intermediate.dense",
            "encoder.layer.11.output.dense",
        ];
        assert!(paths.iter().all(|path| Place::of(path).layer == Some(11)));
        assert_eq!(names(&paths), ["query", "key", "value", "attention output", "intermediate", "output"]);
    }

    #[test]
    fn paths_of_other_models_are_told_apart() {
        let paths = [
            "encoder.layers.0.self_attn.q_proj",
            "encoder.layers.0.fc1",
            "decoder.layers.0.self_attn.q_proj",
            "decoder.layers.0.encoder_attn.q_proj",
        ];
        let short = ["encoder self_attn q_proj", "fc1", "decoder self_attn q_proj", "encoder_attn q_proj"];
        assert_eq!(names(&paths), short);
        assert_eq!(names(&["h.0.mlp.dense"]), ["mlp"]);
        assert_eq!(Place::of("pooler.dense").layer, None);
    }

    #[test]
    fn text_is_readable_on_every_colour() {
        for share in 0..=100 {
            let colour = colour(share as f64 / 100.0);
            let [light, dark] = match readable_on(colour) {
                "#ffffff" => [1.0, luminance(colour)],
                _ => [luminance(colour), 0.0],
            };
            // WCAG 2, level AA.
            assert!((light + 0.05) / (dark + 0.05) >= 4.5, "share {share}");
        }
    }
}
