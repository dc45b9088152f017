//! Tables, and how times and sizes are written.

use std::{fmt, io::IsTerminal as _};

use jiff::Timestamp;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// What people see of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    /// Lines as they are.
    Text(String),
    /// Rows and columns.
    Table(Table),
}

/// A table without lines: easy to read, and to cut with other tools.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    shorten: &'static [&'static str],
    only_wide: &'static [&'static str],
    nothing: Option<String>,
}

/// What it is printed on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Surface {
    /// Columns; none where there is no end.
    pub(crate) width: Option<usize>,
    /// Whether there are colours.
    pub(crate) colour: bool,
}

/// A column that may be shortened stays at least this wide.
const LEAST: usize = 8;

/// Between columns.
const GAP: usize = 2;

pub(crate) fn table(header: &[&'static str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let rows = rows.into_iter().collect();
    Table { header: header.to_vec(), rows, shorten: &[], only_wide: &[], nothing: None }
}

impl Surface {
    /// That of standard output.
    pub(crate) fn present() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let width = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0));
        // A terminal that does not know its width says 0.
        let width = width.filter(|width| terminal && *width > 0);
        Self { width, colour: terminal && !dumb && !set("NO_COLOR") }
    }

    pub(crate) fn paint(&self, text: &str, code: Option<&str>) -> String {
        match code {
            Some(code) if self.colour => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

impl Table {
    /// These columns may be cut where there is no room: prose, never what is to be copied.
    pub(crate) fn shorten(self, columns: &'static [&'static str]) -> Self {
        Self { shorten: columns, ..self }
    }

    /// These columns are for those who want all.
    pub(crate) fn only_wide(self, columns: &'static [&'static str]) -> Self {
        Self { only_wide: columns, ..self }
    }

    /// What is said instead of a table without rows.
    pub(crate) fn or_say(self, nothing: impl Into<String>) -> Self {
        Self { nothing: Some(nothing.into()), ..self }
    }

    /// All of it, in the form of RFC 4180 but for its line ends.
    pub(crate) fn csv(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            // A dash stands for nothing only where people read.
            csv_line(&row.iter().map(|cell| if cell == "-" { "" } else { cell }).collect::<Vec<_>>())
        });
        let header = self.header.iter().map(|title| title.to_lowercase().replace(' ', "_")).collect::<Vec<_>>();
        std::iter::once(csv_line(&header)).chain(rows).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn on(&self, surface: &Surface) -> String {
        let shown = (0..self.header.len()).filter(|at| !self.only_wide.contains(&self.header[*at]));
        self.columns(shown.collect(), surface)
    }

    fn wide(&self, surface: &Surface) -> String {
        self.columns((0..self.header.len()).collect(), &Surface { width: None, ..*surface })
    }

    fn columns(&self, mut columns: Vec<usize>, surface: &Surface) -> String {
        if let Some(nothing) = self.nothing.as_ref().filter(|_| self.rows.is_empty()) {
            return nothing.clone();
        }
        let widths = loop {
            match self.widths(&columns, surface.width) {
                Some(widths) => break widths,
                // Whatever is left is whole; `--output wide` has the rest.
                None => drop(columns.pop()),
            }
        };
        let header = self.header.iter().map(|title| (*title).to_owned()).collect();
        let lines = std::iter::once(&header).chain(&self.rows).enumerate().map(|(number, row)| {
            let mut line = String::new();
            let mut gap = 0;
            for (&at, &width) in columns.iter().zip(&widths) {
                let cell = cut(&row[at], width);
                let code = match number {
                    0 => Some("1"),
                    _ if STATES.contains(&self.header[at]) => colour(&row[at]),
                    _ => None,
                };
                line += &" ".repeat(gap);
                line += &surface.paint(&cell, code);
                gap = width - cell.width() + GAP;
            }
            line.trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// How wide these columns are, so that all fit; none when they cannot.
    fn widths(&self, columns: &[usize], room: Option<usize>) -> Option<Vec<usize>> {
        let widest = |at: usize| self.rows.iter().map(|row| row[at].width()).chain([self.header[at].width()]).max();
        let mut widths: Vec<_> = columns.iter().map(|at| widest(*at).unwrap_or_default()).collect();
        let Some(room) = room else { return Some(widths) };
        loop {
            let excess = (widths.iter().sum::<usize>() + GAP * (widths.len() - 1)).saturating_sub(room);
            if excess == 0 || columns.len() == 1 {
                return Some(widths);
            }
            let least = |at: usize| self.header[at].width().max(LEAST);
            let may = columns
                .iter()
                .enumerate()
                .filter(|(place, at)| self.shorten.contains(&self.header[**at]) && widths[*place] > least(**at));
            let (place, at) = may.max_by_key(|(place, _)| widths[*place])?;
            // The widest gives first, down to the next widest.
            widths[place] -= excess.min(widths[place] - least(*at)).min(excess.div_ceil(2).max(1));
        }
    }
}

/// Columns that say how something is.
const STATES: [&str; 4] = ["STATE", "STATUS", "LIFECYCLE", "HEALTH"];

/// Green for what is well, red for what is not, yellow for what is under way.
fn colour(word: &str) -> Option<&'static str> {
    match word {
        "active" | "done" | "connected" | "ready" | "usable" | "ok" => Some("32"),
        "failed" | "quarantined" | "revoked" | "away" | "damaged" | "critical" => Some("31"),
        "running" | "deploying" | "releasing" | "importing" | "uploading" | "cancelled" | "warning" => Some("33"),
        _ => None,
    }
}

/// Text in no more columns than these.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let fits = text.chars().take_while(|letter| {
        let taken = letter.width().unwrap_or_default();
        let fits = taken <= room;
        room = room.saturating_sub(taken);
        fits
    });
    fits.collect::<String>() + "…"
}

/// A line of comma-separated values, those quoted that have to be.
pub(crate) fn csv_line(cells: &[impl AsRef<str>]) -> String {
    let quoted = cells.iter().map(|cell| match cell.as_ref() {
        cell if cell.contains(['"', ',', '\n', '\r']) => format!("\"{}\"", cell.replace('"', "\"\"")),
        cell => cell.to_owned(),
    });
    quoted.collect::<Vec<_>>().join(",")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.on(&Surface::default()))
    }
}

impl Shown {
    /// As it fits.
    pub(crate) fn on(&self, surface: &Surface) -> String {
        match self {
            Self::Text(text) => page(text, surface),
            Self::Table(table) => table.on(surface),
        }
    }

    /// All of it.
    pub(crate) fn wide(&self, surface: &Surface) -> String {
        match self {
            Self::Text(text) => page(text, surface),
            Self::Table(table) => table.wide(surface),
        }
    }
}

/// Lines, of which those stand out that say that something is wrong.
fn page(text: &str, surface: &Surface) -> String {
    let lines = text.lines().map(|line| {
        let mut words = line.split_whitespace();
        match (line.starts_with("  "), words.next(), words.next()) {
            (true, Some("ALERT"), _) => surface.paint(line, Some("31")),
            (true, Some("CHANGED" | "FINDING"), _) => surface.paint(line, Some("33")),
            (true, Some("lifecycle" | "state" | "status"), Some(word)) => {
                line.replacen(word, &surface.paint(word, colour(word)), 1)
            }
            _ => line.to_owned(),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

impl From<Table> for Shown {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl From<String> for Shown {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Shown {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Absent things as a dash, so that columns can be counted.
pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

/// A time to the second.
pub(crate) fn second(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// How long after `start`: `+0:07.3`, as people read a stop watch.
pub(crate) fn relative(time: Timestamp, start: Timestamp) -> String {
    let tenths = (time.as_millisecond() - start.as_millisecond()).max(0) / 100;
    let (hours, minutes, seconds) = (tenths / 36_000, tenths / 600 % 60, tenths / 10 % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}.{}", tenths % 10),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// A size in binary units, to a tenth.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut divisor = 1u64;
    while unit + 1 < UNITS.len() && bytes / divisor >= 1024 {
        unit += 1;
        divisor *= 1024;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10 / u128::from(divisor)) as u64;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!([0, 1023, 1024, 1536, 10 << 30].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 GiB"]);
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        assert_eq!(relative(at(67_350), at(0)), "1:07.3");
        assert_eq!(relative(at(3_600_000 + 61_000), at(0)), "1:01:01");
        assert_eq!(relative(at(0), at(5)), "0:00.0");
    }

    fn runs() -> Table {
        let row = |because: &str| {
            let id = "01931b1e-0000-7000-8000-000000000002";
            [id, "deploy", "failed", because].map(str::to_owned).to_vec()
        };
        let rows = [row("a chunk of the image never had the right digest"), row("-")];
        table(&["RUN", "KIND", "STATUS", "BECAUSE"], rows).shorten(&["BECAUSE"])
    }

    #[test]
    fn a_table_fits_its_terminal_and_ids_stay_whole() {
        let on = |width| runs().on(&Surface { width: Some(width), colour: false });
        let text = [200, 80, 60, 30].map(|width| format!("{width}:\n{}\n", on(width))).concat();
        expect![[r#"
            200:
            RUN                                   KIND    STATUS  BECAUSE
            01931b1e-0000-7000-8000-000000000002  deploy  failed  a chunk of the image never had the right digest
            01931b1e-0000-7000-8000-000000000002  deploy  failed  -
            80:
            RUN                                   KIND    STATUS  BECAUSE
            01931b1e-0000-7000-8000-000000000002  deploy  failed  a chunk of the image neve…
            01931b1e-0000-7000-8000-000000000002  deploy  failed  -
            60:
            RUN                                   KIND    STATUS
            01931b1e-0000-7000-8000-000000000002  deploy  failed
            01931b1e-0000-7000-8000-000000000002  deploy  failed
            30:
            RUN
            01931b1e-0000-7000-8000-000000000002
            01931b1e-0000-7000-8000-000000000002
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let surface = Surface { width: None, colour: true };
        expect![[r#"
            ^[1mRUN^[0m                                   ^[1mKIND^[0m    ^[1mSTATUS^[0m  ^[1mBECAUSE^[0m
            01931b1e-0000-7000-8000-000000000002  deploy  ^[31mfailed^[0m  a chunk of the image never had the right digest
            01931b1e-0000-7000-8000-000000000002  deploy  ^[31mfailed^[0m  -"#]].assert_eq(&runs().on(&surface).replace('\x1b', "^"));
        let page = page("web-1\n  lifecycle  active\n  ALERT      no power", &surface);
        expect![[r#"
            web-1
              lifecycle  ^[32mactive^[0m
            ^[31m  ALERT      no power^[0m"#]]
        .assert_eq(&page.replace('\x1b', "^"));
    }

    #[test]
    fn wide_letters_take_their_room() {
        assert_eq!(cut("日本語テスト", 7), "日本語…");
        assert_eq!(cut("plain", 5), "plain");
    }
}
