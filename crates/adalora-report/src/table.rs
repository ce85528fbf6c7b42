//! A table of text, as Markdown, LaTeX and HTML, and numbers as text.

use crate::svg::escape;

/// Stands where there is nothing to say.
pub(crate) const ABSENT: &str = "–";

#[derive(Debug, Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    title: String,
    alignment: Alignment,
    cells: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alignment {
    Left,
    Right,
}

impl Table {
    /// All columns of one table have the same number of cells.
    pub(crate) fn column(
        &mut self,
        title: impl Into<String>,
        alignment: Alignment,
        cells: impl IntoIterator<Item = String>,
    ) {
        self.columns.push(Column { title: title.into(), alignment, cells: cells.into_iter().collect() });
    }

    /// Padded, so that it reads well in a terminal too.
    pub(crate) fn markdown(&self) -> String {
        let columns: Vec<_> = self.columns.iter().map(Column::padded).collect();
        let rows: Vec<_> = (0..columns[0].len()).map(|row| line("| ", " | ", " |", &columns, row)).collect();
        rows.concat()
    }

    /// A `tabular` with the rules of the package booktabs.
    pub(crate) fn latex(&self) -> String {
        let alignments: String = self
            .columns
            .iter()
            .map(|column| if column.alignment == Alignment::Left { 'l' } else { 'r' })
            .collect();
        let columns: Vec<_> =
            self.columns.iter().map(|column| column.all().map(escape_latex).collect()).collect();
        let rows: Vec<_> = (0..=self.rows()).map(|row| line("    ", " & ", r" \\", &columns, row)).collect();
        let (head, body) = (&rows[0], rows[1..].concat());
        format!(
            "  \\begin{{tabular}}{{{alignments}}}\n    \\toprule\n{head}    \\midrule\n{body}    \\bottomrule\n  \
             \\end{{tabular}}\n"
        )
    }

    pub(crate) fn html(&self) -> String {
        let row = |tag: &str, row: usize| {
            let cells = self.columns.iter().map(|column| {
                let class = if column.alignment == Alignment::Right { r#" class="number""# } else { "" };
                let text = column.all().nth(row).expect("all columns have as many cells");
                format!("<{tag}{class}>{}</{tag}>", escape(text))
            });
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let body: String = (1..=self.rows()).map(|number| row("td", number)).collect();
        format!(
            "<div class=\"table\"><table>\n<thead>\n{}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n",
            row("th", 0)
        )
    }

    fn rows(&self) -> usize {
        self.columns[0].cells.len()
    }
}

impl Column {
    /// Title and cells.
    fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.title).chain(&self.cells).map(String::as_str)
    }

    /// Title, ruler and cells for Markdown, all of one width.
    fn padded(&self) -> Vec<String> {
        let mut texts: Vec<_> = self.all().map(escape_markdown).collect();
        let width = texts.iter().map(|text| text.chars().count()).max().unwrap_or(0).max(3);
        let ruler = match self.alignment {
            Alignment::Left => "-".repeat(width),
            Alignment::Right => format!("{}:", "-".repeat(width - 1)),
        };
        texts.insert(1, ruler);
        let pad = |text| match self.alignment {
            Alignment::Left => format!("{text:<width$}"),
            Alignment::Right => format!("{text:>width$}"),
        };
        texts.into_iter().map(pad).collect()
    }
}

fn line(start: &str, between: &str, end: &str, columns: &[Vec<String>], row: usize) -> String {
    let cells: Vec<_> = columns.iter().map(|column| column[row].as_str()).collect();
    format!("{start}{}{end}\n", cells.join(between))
}

/// Underscores stay: inside a word they mean nothing in Markdown.
pub(crate) fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\\' | '|' | '*' | '`' | '<') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

pub(crate) fn escape_latex(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str(r"\textbackslash{}"),
            '~' => escaped.push_str(r"\textasciitilde{}"),
            '^' => escaped.push_str(r"\textasciicircum{}"),
            '|' => escaped.push_str(r"\textbar{}"),
            '<' => escaped.push_str("$<$"),
            '>' => escaped.push_str("$>$"),
            '±' => escaped.push_str(r"$\pm$"),
            '−' => escaped.push_str("$-$"),
            'Δ' => escaped.push_str(r"$\Delta$"),
            'ⁿ' => escaped.push_str("$^n$"),
            '–' => escaped.push_str("--"),
            '_' | '&' | '%' | '#' | '$' | '{' | '}' => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// A score or loss to four decimals.
pub(crate) fn score(value: f64) -> String {
    unsigned(value, "")
}

/// The same, with its sign in either case.
pub(crate) fn difference(value: f64) -> String {
    unsigned(value, "+")
}

fn unsigned(value: f64, plus: &str) -> String {
    let digits = format!("{:.4}", value.abs());
    let zero = digits.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    match () {
        () if zero || value.is_nan() => digits,
        () if value < 0.0 => format!("−{digits}"),
        () => format!("{plus}{digits}"),
    }
}

/// A whole number in groups of three digits.
pub(crate) fn whole(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { String::from("−") } else { String::new() };
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// At most one decimal: a mean of whole numbers.
pub(crate) fn mean_of_whole(value: f64) -> String {
    if value.fract() == 0.0 { whole(value) } else { format!("{value:.1}") }
}

pub(crate) fn duration(seconds: f64) -> String {
    // Not 60.0, which would be rounded to `60.0 s`.
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let seconds = seconds.round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours} h {minutes:02} min") } else { format!("{minutes} min {seconds:02} s") }
}

pub(crate) fn memory(bytes: u64) -> String {
    let mebibytes = bytes as f64 / (1u64 << 20) as f64;
    if mebibytes < 1024.0 { format!("{mebibytes:.0} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_escaped() {
        let name = r"a_b & 50% #1 {x} $y <z> ~ ^ \ | *";
        assert_eq!(
            escape_latex(name),
            r"a\_b \& 50\% \#1 \{x\} \$y $<$z$>$ \textasciitilde{} \textasciicircum{} \textbackslash{} \textbar{} *"
        );
        assert_eq!(escape_markdown(name), r"a_b & 50% #1 {x} $y \<z> ~ ^ \\ \| \*");
        assert_eq!(escape(r#"<a b="c'd">&"#), "&lt;a b=&quot;c&#39;d&quot;&gt;&amp;");
    }

    #[test]
    fn numbers_as_text() {
        assert_eq!([0.71325, -0.5, -0.00001].map(score), ["0.7133", "−0.5000", "0.0000"]);
        assert_eq!([0.0121, -0.003, 0.0, f64::NAN].map(difference), ["+0.0121", "−0.0030", "0.0000", "NaN"]);
        assert_eq!(
            [0.0, 999.0, 1000.0, 1327104.0, -1500.0].map(whole),
            ["0", "999", "1,000", "1,327,104", "−1,500"]
        );
        assert_eq!([24.0, 20.333].map(mean_of_whole), ["24", "20.3"]);
        assert_eq!(
            [38.04, 59.99, 252.0, 7500.0].map(duration),
            ["38.0 s", "1 min 00 s", "4 min 12 s", "2 h 05 min"]
        );
        assert_eq!([641_728_512, 3_650_722_202].map(memory), ["612 MiB", "3.4 GiB"]);
    }
}
