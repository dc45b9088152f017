//! A machine's serial console as a picture: what it prints goes to a terminal of fixed size that exists in
//! memory alone, and is shown as plain cells.
//!
//! Invariants:
//! - No byte that a machine printed reaches the technician's terminal as anything but a visible character.
//! - What is kept is bounded: [`ROWS`] by [`COLUMNS`], and [`KEPT`] lines that went by.

use std::borrow::Cow;

use ratatui::{
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

/// Lines of the terminal: a serial line cannot tell its size, and everybody takes it for a VT100's.
const ROWS: u16 = 24;

/// Columns of it.
pub(crate) const COLUMNS: u16 = 80;

/// Lines that went by and can be looked at again.
const KEPT: usize = 1000;

/// The longest string of an operating system command that is left out, in bytes; behind it a machine that
/// never ended one is shown again.
const LONGEST_STRING: usize = 4096;

/// The terminal that a machine prints to.
pub(crate) struct Emulator {
    strings: Strings,
    parser: vt100::Parser,
}

/// A part of it, to be shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picture {
    pub(crate) lines: Vec<Line<'static>>,
    /// Column and line of the cursor, as far as it is in the picture.
    pub(crate) cursor: Option<(u16, u16)>,
    /// How many lines it is moved up: no more than there are.
    pub(crate) back: usize,
}

/// Which part of it is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    pub(crate) width: u16,
    pub(crate) height: u16,
    /// The first column.
    pub(crate) left: u16,
    /// How many lines it is moved up from the end.
    pub(crate) back: usize,
}

impl Default for Emulator {
    fn default() -> Self {
        Self { strings: Strings::default(), parser: vt100::Parser::new(ROWS, COLUMNS, KEPT) }
    }
}

impl Emulator {
    /// The machine prints this.
    pub(crate) fn print(&mut self, bytes: &[u8]) {
        let shown: Vec<_> = bytes.iter().flat_map(|byte| self.strings.take(*byte)).collect();
        self.parser.process(&shown);
    }

    /// How many lines there are above its first one.
    pub(crate) fn above(&mut self) -> usize {
        let screen = self.parser.screen_mut();
        screen.set_scrollback(usize::MAX);
        let above = screen.scrollback();
        screen.set_scrollback(0);
        above
    }

    /// What is to be seen through a window at its end.
    pub(crate) fn picture(&mut self, window: Window, in_colour: bool) -> Picture {
        let Window { width, height, left, back } = window;
        let above = self.above();
        let (cursor_row, cursor_column) = self.parser.screen().cursor_position();
        let used = (0..ROWS).rev().find(|row| !is_blank(self.parser.screen(), *row)).unwrap_or(0).max(cursor_row);
        // Lines are counted from the oldest.
        let all = above + usize::from(used) + 1;
        let back = back.min(all.saturating_sub(usize::from(height).max(1)));
        let end = all - back;
        let start = end.saturating_sub(height.into());
        let screen = self.parser.screen_mut();
        let lines = (start..end).map(|line| {
            let offset = above.saturating_sub(line);
            screen.set_scrollback(offset);
            let row = u16::try_from(line + offset - above).unwrap_or(ROWS);
            shown(screen, row, left, width, in_colour)
        });
        let lines = lines.collect();
        screen.set_scrollback(0);
        let cursor = (above + usize::from(cursor_row)).checked_sub(start).and_then(|row| {
            let column = cursor_column.checked_sub(left).filter(|column| *column < width)?;
            Some((column, u16::try_from(row).ok().filter(|row| *row < height)?))
        });
        Picture { lines, cursor, back }
    }
}

fn is_blank(screen: &vt100::Screen, row: u16) -> bool {
    (0..COLUMNS).all(|column| screen.cell(row, column).is_none_or(|cell| cell.contents().trim().is_empty()))
}

/// A row's cells in `width` columns from `left` on, those of one style together.
fn shown(screen: &vt100::Screen, row: u16, left: u16, width: u16, in_colour: bool) -> Line<'static> {
    let mut spans: Vec<Span<'static>> = Vec::new();
    for column in left..COLUMNS.min(left.saturating_add(width)) {
        let Some(cell) = screen.cell(row, column).filter(|cell| !cell.is_wide_continuation()) else { continue };
        let text = if cell.has_contents() { plain(cell.contents()) } else { " ".into() };
        let style = style(cell, in_colour);
        match spans.last_mut() {
            Some(span) if span.style == style => span.content.to_mut().push_str(&text),
            _ => spans.push(Span::styled(text.into_owned(), style)),
        }
    }
    Line::from(spans)
}

fn style(cell: &vt100::Cell, in_colour: bool) -> Style {
    let mut style = Style::new();
    for (has, modifier) in
        [(cell.bold(), Modifier::BOLD), (cell.underline(), Modifier::UNDERLINED), (cell.inverse(), Modifier::REVERSED)]
    {
        if has {
            style = style.add_modifier(modifier);
        }
    }
    if in_colour { style.fg(colour(cell.fgcolor())).bg(colour(cell.bgcolor())) } else { style }
}

fn colour(colour: vt100::Color) -> Color {
    match colour {
        vt100::Color::Default => Color::Reset,
        vt100::Color::Idx(index) => Color::Indexed(index),
        vt100::Color::Rgb(red, green, blue) => Color::Rgb(red, green, blue),
    }
}

/// Text with nothing in it that is not seen or moves what is: control characters, and those that turn the
/// direction of what is around them or have no width.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let is_unseen = |letter: char| {
        letter.is_control()
            || matches!(
                letter,
                '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' |
                '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
            )
    };
    if text.contains(is_unseen) { text.replace(is_unseen, "\u{b7}").into() } else { text.into() }
}

/// Leaves out strings of control (OSC, DCS, SOS, PM, APC of ECMA-48): titles, clipboards, downloads. The
/// parser behind this would collect them without bound.
#[derive(Clone, Copy, Debug, Default)]
enum Strings {
    #[default]
    Outside,
    /// Behind an escape that was not passed on yet.
    Escape,
    /// Within one, so many bytes.
    Inside(usize),
    /// Behind an escape in one, which ends it if a backslash follows.
    Ending,
}

impl Strings {
    /// What is to be passed on once this byte has come.
    fn take(&mut self, byte: u8) -> Vec<u8> {
        const ESCAPE: u8 = 0x1b;
        let (next, passed) = match (*self, byte) {
            (Self::Outside, ESCAPE) => (Self::Escape, vec![]),
            (Self::Outside, _) => (Self::Outside, vec![byte]),
            (Self::Escape | Self::Ending, ESCAPE) => (Self::Escape, vec![]),
            (Self::Escape | Self::Ending, b']' | b'P' | b'X' | b'^' | b'_') => (Self::Inside(0), vec![]),
            (Self::Ending, b'\\') => (Self::Outside, vec![]),
            (Self::Escape | Self::Ending, _) => (Self::Outside, vec![ESCAPE, byte]),
            (Self::Inside(_), ESCAPE) => (Self::Ending, vec![]),
            // BEL, CAN and SUB end one as well.
            (Self::Inside(_), 0x07 | 0x18 | 0x1a) => (Self::Outside, vec![]),
            (Self::Inside(length), _) if length >= LONGEST_STRING => (Self::Outside, vec![]),
            (Self::Inside(length), _) => (Self::Inside(length + 1), vec![]),
        };
        *self = next;
        passed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(picture: &Picture) -> String {
        picture.lines.iter().map(|line| line.to_string().trim_end().to_owned() + "\n").collect()
    }

    fn printed(bytes: &[u8], window: Window) -> String {
        let mut emulator = Emulator::default();
        emulator.print(bytes);
        text(&emulator.picture(window, true))
    }

    const WINDOW: Window = Window { width: 80, height: 10, left: 0, back: 0 };

    #[test]
    fn a_machine_draws_in_its_own_picture_and_nowhere_else() {
        let hostile = b"\x1b]0;title\x07a\x1b]52;c;ZXZpbA==\x1b\\b\x1bP+q\x1b\\c\x1b[6n\x1b[2;3Hd\x1b[1;1HA";
        assert_eq!(printed(hostile, WINDOW), "Abc\n  d\n");
        // Turned around, so that it reads as something else.
        assert_eq!(printed("ok \u{202e}lagelli".as_bytes(), WINDOW), "ok \u{b7}lagelli\n");
        let unended = [b"\x1b]0;".as_slice(), &[b'x'; LONGEST_STRING - 1], b"login: "].concat();
        assert_eq!(printed(&unended, WINDOW), "login:\n");
    }

    #[test]
    fn the_end_is_seen_and_what_went_by_can_be_looked_at_again() {
        let mut emulator = Emulator::default();
        for line in 0..100 {
            emulator.print(format!("line {line}\r\n").as_bytes());
        }
        let window = Window { height: 3, ..WINDOW };
        assert_eq!(text(&emulator.picture(window, true)), "line 98\nline 99\n\n");
        assert_eq!(emulator.picture(window, true).cursor, Some((0, 2)));
        assert_eq!(text(&emulator.picture(Window { back: 60, ..window }, true)), "line 38\nline 39\nline 40\n");
        assert_eq!(text(&emulator.picture(Window { back: 9999, ..window }, true)), "line 0\nline 1\nline 2\n");
        assert_eq!(emulator.picture(Window { back: 9999, ..window }, true).back, 98);
        assert_eq!(text(&emulator.picture(Window { left: 5, width: 1, ..window }, true)), "9\n9\n\n");
        let tall = emulator.picture(Window { height: 60, ..WINDOW }, true);
        assert_eq!((tall.lines.len(), tall.lines[0].to_string().trim_end()), (60, "line 41"));
        for _ in 0..3 * KEPT {
            emulator.print(b"more\r\n");
        }
        assert_eq!(emulator.above(), KEPT);
    }

    #[test]
    fn colours_are_left_out_where_they_are_not_wanted() {
        let mut emulator = Emulator::default();
        emulator.print(b"\x1b[1;31mred");
        let style = |picture: Picture| picture.lines[0].spans[0].style;
        assert_eq!(style(emulator.picture(WINDOW, true)).fg, Some(Color::Indexed(1)));
        let without = style(emulator.picture(WINDOW, false));
        assert_eq!((without.fg, without.bg, without.add_modifier), (None, None, Modifier::BOLD));
    }

    /// Bytes that are control sequences more often than chance has it.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<Vec<u8>>(),
            "\\PC{0,12}".prop_map(String::into_bytes),
            "\x1b\\[[?>]?[0-9;:]{0,12}[@-~]".prop_map(String::into_bytes),
            "\x1b[78DEHMc=>\\]P]".prop_map(String::into_bytes),
            "[\r\n\t\x08\x0b]{1,40}".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_bytes_break_it_and_none_of_them_is_passed_on(
            bytes in hostile(), width in 0_u16..200, height in 0_u16..80, left in 0_u16..100, back in 0_usize..2000
        ) {
            let mut emulator = Emulator::default();
            for piece in bytes.chunks(7) {
                emulator.print(piece);
            }
            let picture = emulator.picture(Window { width, height, left, back }, true);
            prop_assert!(picture.lines.len() <= usize::from(height));
            for line in &picture.lines {
                let line = line.to_string();
                prop_assert_eq!(plain(&line), line.as_str());
            }
            prop_assert!(emulator.above() <= KEPT);
        }
    }
}
