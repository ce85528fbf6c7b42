//! A writer for the few shapes that the pictures need.
//!
//! `plotters` was tried first: it rounds coordinates to whole pixels, which shows as kinks in curves, and has no
//! legend outside a panel.

use std::fmt::Write;

/// Ink of text and axes.
pub(crate) const INK: &str = "#222";
/// Ink of what should stay behind: captions.
pub(crate) const FAINT: &str = "#666";

/// Shapes in the order in which they were drawn. Coordinates are pixels from the upper left corner.
///
/// `style` arguments are attributes as they stand in the file; what comes from outside goes in as text only.
#[derive(Debug, Default)]
pub(crate) struct Svg {
    shapes: String,
}

/// Where a text lies about its point.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
    /// Centred, and turned to read upwards.
    Upwards,
}

impl Svg {
    pub(crate) fn rect(&mut self, [x, y, width, height]: [f64; 4], style: &str) {
        let [x, y, width, height] = [x, y, width, height].map(round);
        self.shape(format_args!(r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" {style}/>"#));
    }

    pub(crate) fn circle(&mut self, [x, y]: [f64; 2], radius: f64, style: &str) {
        let [x, y] = [x, y].map(round);
        self.shape(format_args!(r#"<circle cx="{x}" cy="{y}" r="{radius}" {style}/>"#));
    }

    pub(crate) fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], style: &str) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(round);
        self.shape(format_args!(r#"<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {style}/>"#));
    }

    pub(crate) fn polyline(&mut self, points: impl IntoIterator<Item = [f64; 2]>, style: &str) {
        self.shape(format_args!(r#"<polyline points="{}" fill="none" {style}/>"#, join(points)));
    }

    pub(crate) fn polygon(&mut self, points: impl IntoIterator<Item = [f64; 2]>, style: &str) {
        self.shape(format_args!(r#"<polygon points="{}" {style}/>"#, join(points)));
    }

    /// `[x, y]` is the middle of the text's height.
    pub(crate) fn text(&mut self, [x, y]: [f64; 2], anchor: Anchor, size: f64, style: &str, text: &str) {
        let (name, turn) = match anchor {
            Anchor::Start => ("start", String::new()),
            Anchor::Middle => ("middle", String::new()),
            Anchor::End => ("end", String::new()),
            Anchor::Upwards => ("middle", format!(r#" transform="rotate(-90 {} {})""#, round(x), round(y))),
        };
        // Digits and capitals are about 0.7 em high.
        let [x, y] = [x, y + 0.35 * size].map(round);
        let text = escape(text);
        self.shape(format_args!(
            r#"<text x="{x}" y="{y}" text-anchor="{name}" font-size="{size}" {style}{turn}>{text}</text>"#
        ));
    }

    /// The file. It needs no XML declaration, so that it can stand inside HTML as it is.
    pub(crate) fn finish(self, width: f64, height: f64, title: &str) -> String {
        let [width, height] = [width, height].map(f64::ceil);
        let title = escape(title);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" role="img">
<title>{title}</title>
<rect width="{width}" height="{height}" fill="white"/>
{}</svg>
"#,
            self.shapes
        )
    }

    fn shape(&mut self, shape: std::fmt::Arguments) {
        writeln!(self.shapes, "{shape}").expect("a String takes all that is written");
    }
}

/// An upper estimate of a text's width; fonts differ from one viewer to another.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    0.6 * size * text.chars().count() as f64
}

/// Text for XML and HTML, in elements and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// To hundredths of a pixel, which no one sees, so that files stay short.
fn round(pixels: f64) -> f64 {
    (pixels * 100.0).round() / 100.0
}

fn join(points: impl IntoIterator<Item = [f64; 2]>) -> String {
    let points: Vec<_> = points.into_iter().map(|[x, y]| format!("{},{}", round(x), round(y))).collect();
    points.join(" ")
}
