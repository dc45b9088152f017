//! How `rackhand-diag top` looks: what is known, drawn into a screen of any size.

use jiff::Timestamp;
use rackhand_common::{explanation::Stands, finding::Severity, health, machine::Power};
use ratatui::{
    Frame,
    buffer::Buffer,
    layout::{Position, Rect},
    style::{Color, Modifier, Style},
    text::Span,
    widgets::{Block, Borders, Clear, Widget as _},
};

use super::{
    emulator::{COLUMNS, Window, plain},
    node,
    state::{Over, Page, Pane, Row, Top},
};
use crate::show;

/// From this width on a console is shown beside the rest of a machine's page.
const BESIDE: u16 = 120;

/// From this height between the head and the last line on it is shown below it: on a screen of thirty lines.
const BELOW: u16 = 27;

/// From this height there on the list has the verdict on the chosen machine below it.
const VERDICT: u16 = 20;

const HELP: &str = "\
↑ ↓ PgUp PgDn, j k g G  move
Enter   a machine's page: why, its start, its console
Esc     back to the list; there: no filter
/       filter: name, address, state, verdict
s       sort: worst, longest, health, name
i  I    light its lamp; put it out
n       the node itself
Tab     the next pane; keys move in it
z       that pane alone, and back
← →     move the console sideways
w       type to the machine; ~. ends that, ~? tells more
c       open a console again that has ended
Ctrl-L  draw all anew
q       leave (Ctrl-C, too)";

/// Draws all of it.
pub(crate) fn draw(frame: &mut Frame, top: &Top, now: Timestamp) {
    let area = frame.area();
    if area.height < 4 || area.width < 12 {
        put(frame.buffer_mut(), area, 0, "too small", Style::new());
        return;
    }
    let body = Rect { y: area.y + 2, height: area.height - 3, ..area };
    head(frame.buffer_mut(), area, top, now);
    match &top.page {
        Some(page) => draw_page(frame, body, top, page, now),
        None => list(frame.buffer_mut(), body, top, now),
    }
    last_line(frame.buffer_mut(), area, top, now);
    if let Some(over) = top.over {
        draw_over(frame.buffer_mut(), body, top, over, now);
    }
}

fn head(buffer: &mut Buffer, area: Rect, top: &Top, now: Timestamp) {
    let paint = Paint(top.in_colour);
    let Some(rack) = &top.rack else {
        let (words, style) = match &top.silent {
            Some((_, why)) => (format!("the agent does not answer: {why}"), paint.severity(Severity::Error)),
            None => ("asking the agent …".to_owned(), Style::new()),
        };
        put(buffer, area, 0, &words, style);
        return;
    };
    let name = rack.node.rack_name.clone().unwrap_or_else(|| rack.node.rack.to_string());
    let (severity, mut words) = node::in_short(&rack.node, now);
    let mut style = paint.severity(severity);
    if let Some((since, why)) = &top.silent {
        words = format!("THE AGENT DOES NOT ANSWER, what is shown is {} old: {why}", show::span_since(*since, now));
        style = paint.severity(Severity::Error);
    }
    let name = format!("{name}  ");
    let used = put(buffer, area, 0, &name, Style::new().add_modifier(Modifier::BOLD));
    put(buffer, from(area, used), 0, &words, style);
    put(buffer, area, 1, &counts(top), Style::new());
}

/// How many machines there are of each kind, and how they are listed.
fn counts(top: &Top) -> String {
    let rows = top.rows();
    let all = top.rack.as_ref().map_or(0, |rack| rack.machines.len());
    let kinds = [Stands::Faulty, Stands::Stuck, Stands::Doubtful, Stands::Busy, Stands::Well];
    let counted = kinds.iter().filter_map(|kind| {
        let count = rows.iter().filter(|row| row.stands() == Some(*kind)).count();
        (count > 0).then(|| format!("{count} {}", kind.word()))
    });
    let counted = counted.collect::<Vec<_>>().join(", ");
    let machines = if all == 1 { "machine" } else { "machines" };
    let colon = if counted.is_empty() { "" } else { ": " };
    let shown =
        if rows.len() == all { format!("{all} {machines}") } else { format!("{} of {all} {machines}", rows.len()) };
    let filter = if top.filter.is_empty() { String::new() } else { format!("; filter {:?}", top.filter) };
    format!("{shown}{colon}{counted}; {}{filter}", top.sort.word())
}

fn last_line(buffer: &mut Buffer, area: Rect, top: &Top, now: Timestamp) {
    let line = area.height - 1;
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let words = if top.is_filtering {
        format!("/{}_", top.filter)
    } else if let Some(said) = top.said(now) {
        said.to_owned()
    } else if top.is_typing() {
        "you type to the machine; at the beginning of a line ~. ends that".to_owned()
    } else if top.page.is_some() {
        "? help  Esc back  Tab pane  w type  i lamp  q leave".to_owned()
    } else {
        "? help  Enter open  / filter  s sort  i lamp  q leave".to_owned()
    };
    let padded = format!(" {words}{}", " ".repeat(area.width.into()));
    put(buffer, area, line, &padded, reversed);
}

/// The columns of the list that there is room for: where each begins, and where the last of them, the verdict, does.
struct Columns {
    state: u16,
    power: Option<u16>,
    health: Option<u16>,
    since: Option<u16>,
    why: u16,
}

impl Columns {
    fn within(width: u16, longest_name: u16) -> Self {
        let state = longest_name.clamp(7, (width / 3).max(7)) + 2;
        let after = state + 10;
        match width {
            100.. => {
                Self { state, power: Some(after), health: Some(after + 7), since: Some(after + 17), why: after + 29 }
            }
            70..100 => Self { state, power: Some(after), health: Some(after + 7), since: None, why: after + 17 },
            _ => Self { state, power: None, health: None, since: None, why: after },
        }
    }
}

fn list(buffer: &mut Buffer, area: Rect, top: &Top, now: Timestamp) {
    let rows = top.rows();
    let chosen = top.chosen().map(|row| row.view.id);
    let below = if area.height >= VERDICT { area.height / 3 } else { 0 };
    let table = Rect { height: area.height - below, ..area };
    let longest = rows.iter().map(|row| width(&plain(&row.name()))).max().unwrap_or(0);
    let columns = Columns::within(area.width, longest);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    put(buffer, Rect { width: columns.state.saturating_sub(1), ..area }, 0, "MACHINE", bold);
    let titles = [
        (Some(columns.state), "STATE"),
        (columns.power, "POWER"),
        (columns.health, "HEALTH"),
        (columns.since, "SINCE"),
        (Some(columns.why), "WHY"),
    ];
    for (column, title) in titles {
        if let Some(column) = column {
            put(buffer, from(area, column), 0, title, bold);
        }
    }
    if rows.is_empty() {
        let nothing = match &top.rack {
            Some(rack) if rack.machines.is_empty() => {
                "none yet: a machine appears when it asks the network for a boot program"
            }
            Some(_) => "no machine is meant by the filter; Esc takes it away",
            None => "",
        };
        put(buffer, area, 1, nothing, Style::new());
    }
    let visible = usize::from(table.height - 1);
    let at = rows.iter().position(|row| Some(row.view.id) == chosen).unwrap_or(0);
    let first = (at + 1).saturating_sub(visible);
    for (line, row) in (1..table.height).zip(rows.iter().skip(first)) {
        let is_chosen = Some(row.view.id) == chosen;
        draw_row(buffer, Rect { y: table.y + line, height: 1, ..table }, &columns, row, is_chosen, top.in_colour, now);
    }
    if below > 0 {
        let area = Rect { y: area.y + table.height, height: below, ..area };
        if let Some(row) = top.chosen() {
            let area = framed(buffer, area, &row.name(), false);
            text(buffer, area, &verdict(row, now), 0);
        }
    }
}

fn draw_row(
    buffer: &mut Buffer,
    area: Rect,
    columns: &Columns,
    row: &Row,
    is_chosen: bool,
    in_colour: bool,
    now: Timestamp,
) {
    let paint = Paint(in_colour);
    let base = if is_chosen { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
    buffer.set_style(area, base);
    let mark = if is_chosen { ">" } else { " " };
    put(buffer, Rect { width: columns.state - 1, ..area }, 0, &format!("{mark}{}", row.name()), base);
    let state = row.stands();
    let words = state.map_or("?".to_owned(), word);
    put(buffer, from(area, columns.state), 0, &words, state.map_or(base, |state| base.patch(paint.stands(state))));
    if let Some(column) = columns.power {
        put(buffer, from(area, column), 0, power(row), base);
    }
    if let Some(column) = columns.health {
        let style = row.health.map_or(base, |health| base.patch(paint.health(health)));
        put(buffer, from(area, column), 0, row.health.map_or("-", health::State::word), style);
    }
    if let Some(column) = columns.since {
        let since = row.since().map_or_else(|| "-".to_owned(), |since| show::span_since(since, now));
        put(buffer, Rect { width: 11, ..from(area, column) }, 0, &since, base);
    }
    let why = row.explanation.as_ref().map_or(&row.view.latest, |told| &told.verdict);
    put(buffer, from(area, columns.why), 0, why, base);
}

/// Those that need somebody stand out without colour, too.
fn word(state: Stands) -> String {
    if state >= Stands::Stuck { state.word().to_uppercase() } else { state.word().to_owned() }
}

fn verdict(row: &Row, now: Timestamp) -> String {
    row.explanation.as_ref().map_or_else(|| row.view.latest.clone(), |told| show::explanation(told, now))
}

fn draw_page(frame: &mut Frame, area: Rect, top: &Top, page: &Page, now: Timestamp) {
    for (pane, area) in panes(area, page) {
        let is_current = pane == page.pane;
        let buffer = frame.buffer_mut();
        match pane {
            Pane::Why => {
                let title = top.open().map_or_else(|| format!("why · {}", page.machine), title);
                let area = framed(buffer, area, &title, is_current);
                let words = match top.open() {
                    Some(row) => verdict(row, now) + "\n" + &show::machine(&row.view, now),
                    None => "this node knows it no more".to_owned(),
                };
                let at = &page.scrolled[Pane::Why as usize];
                at.set(text(buffer, area, &words, at.get()));
            }
            Pane::Timeline => {
                let area = framed(buffer, area, "timeline", is_current);
                let mut clock = show::Stopwatch::default();
                let lines: Vec<_> = page.events.iter().map(|event| clock.short(event)).collect();
                let lines: Vec<_> = lines.iter().flat_map(|line| wrapped(line, area.width)).collect();
                let at = &page.scrolled[Pane::Timeline as usize];
                at.set(tail(buffer, area, &lines, at.get()));
            }
            Pane::Console => draw_console(frame, area, top, page, is_current),
        }
    }
}

/// What is known of a machine beside its verdict, in short.
fn title(row: &Row) -> String {
    let installer = if row.view.installer { ", in its installer" } else { "" };
    format!("why · {} · power {}{installer}", row.name(), power(row))
}

fn power(row: &Row) -> &'static str {
    match row.view.power {
        Some(Power::On) => "on",
        Some(Power::Off) => "off",
        None => "?",
    }
}

/// Which panes there is room for, and where.
fn panes(area: Rect, page: &Page) -> Vec<(Pane, Rect)> {
    let rows =
        |upper: u16| (Rect { height: upper, ..area }, Rect { y: area.y + upper, height: area.height - upper, ..area });
    if page.is_large || (area.width < BESIDE && area.height < BELOW) {
        return vec![(page.pane, area)];
    }
    if area.width >= BESIDE {
        let console = (COLUMNS + 2).min(area.width - 44);
        let left = area.width - console;
        let (upper, lower) = rows(area.height / 2);
        return vec![
            (Pane::Why, Rect { width: left, ..upper }),
            (Pane::Timeline, Rect { width: left, ..lower }),
            (Pane::Console, Rect { x: area.x + left, width: console, ..area }),
        ];
    }
    let (upper, lower) = rows(area.height / 2);
    let half = area.width / 2;
    vec![
        (Pane::Why, Rect { width: half, ..upper }),
        (Pane::Timeline, Rect { x: area.x + half, width: area.width - half, ..upper }),
        (Pane::Console, lower),
    ]
}

fn draw_console(frame: &mut Frame, area: Rect, top: &Top, page: &Page, is_current: bool) {
    let console = &page.console;
    let title = match (&console.ended, &console.writer) {
        (Some(_), _) => "console · ended; c opens it again".to_owned(),
        (None, (_, true)) => "console · you have the keyboard".to_owned(),
        (None, (Some(who), false)) => format!("console · {who} has the keyboard"),
        (None, (None, false)) if console.is_typing => "console · you type".to_owned(),
        (None, (None, false)) => "console · read only; w types".to_owned(),
    };
    let area = framed(frame.buffer_mut(), area, &title, is_current);
    let why = console.ended.iter().flat_map(|why| wrapped(&format!("[{why}]"), area.width));
    let why: Vec<_> = why.take(area.height.into()).collect();
    let told = u16::try_from(why.len()).unwrap_or(area.height);
    let seen = Rect { height: area.height - told, ..area };
    let window = Window {
        width: seen.width,
        height: seen.height,
        left: page.left,
        back: page.scrolled[Pane::Console as usize].get(),
    };
    let picture = console.emulator.borrow_mut().picture(window, top.in_colour);
    page.scrolled[Pane::Console as usize].set(picture.back);
    for (line, shown) in (0..seen.height).zip(&picture.lines) {
        frame.buffer_mut().set_line(seen.x, seen.y + line, shown, seen.width);
    }
    for (line, words) in (seen.height..).zip(&why) {
        put(frame.buffer_mut(), area, line, words, Style::new());
    }
    if let Some((column, line)) = picture.cursor.filter(|_| console.is_typing) {
        frame.set_cursor_position(Position::new(seen.x + column, seen.y + line));
    }
}

fn draw_over(buffer: &mut Buffer, area: Rect, top: &Top, over: Over, now: Timestamp) {
    let (title, words) = match (over, &top.rack) {
        (Over::Help, _) => ("help · any key", HELP.to_owned()),
        (Over::Node, Some(rack)) => ("the node · any key", node::in_full(&rack.node, now)),
        (Over::Node, None) => ("the node · any key", "the agent has not answered yet".to_owned()),
    };
    Clear.render(area, buffer);
    let area = framed(buffer, area, title, true);
    text(buffer, area, &words, 0);
}

/// A frame with a title; where it is narrow, only its upper edge. Returns what is within.
fn framed(buffer: &mut Buffer, area: Rect, title: &str, is_current: bool) -> Rect {
    let borders = if area.width < 60 && area.x == 0 { Borders::TOP } else { Borders::TOP | Borders::LEFT };
    let style = if is_current { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
    let block = Block::new().borders(borders).title(Span::styled(format!(" {} ", plain(title)), style));
    let inner = block.inner(area);
    block.render(area, buffer);
    inner
}

/// Text that is wrapped, from so many lines behind its beginning; its last page at most. How many it was.
fn text(buffer: &mut Buffer, area: Rect, words: &str, skipped: usize) -> usize {
    let lines: Vec<_> = words.lines().flat_map(|line| wrapped(line, area.width)).collect();
    let skipped = skipped.min(lines.len().saturating_sub(area.height.into()));
    for (line, words) in (0..area.height).zip(lines.iter().skip(skipped)) {
        put(buffer, area, line, words, Style::new());
    }
    skipped
}

/// The end of these lines, or what is so many lines above it; their first page at most. How many it was.
fn tail(buffer: &mut Buffer, area: Rect, lines: &[String], back: usize) -> usize {
    let most = lines.len().saturating_sub(area.height.into());
    let back = back.min(most);
    for (line, words) in (0..area.height).zip(&lines[most - back..]) {
        put(buffer, area, line, words, Style::new());
    }
    back
}

/// A line in pieces no wider than this, broken between words where that is possible; what follows the first is
/// indented as it is.
fn wrapped(line: &str, most: u16) -> Vec<String> {
    let line = plain(line);
    let indent: String = line.chars().take_while(|letter| *letter == ' ').collect();
    let indent = if width(&indent) + 10 > most { String::new() } else { indent };
    let mut lines = vec![indent.clone()];
    let mut is_begun = false;
    for word in line.trim_start().split(' ') {
        let mut rest = word;
        loop {
            let last = lines.last_mut().expect("there is a first line");
            let gap = usize::from(is_begun);
            let room = usize::from(most).saturating_sub(usize::from(width(last)) + gap);
            if usize::from(width(rest)) <= room {
                last.push_str(&" ".repeat(gap));
                last.push_str(rest);
                is_begun = true;
                break;
            }
            if is_begun {
                lines.push(indent.clone());
                is_begun = false;
                continue;
            }
            // A word that is wider than a line.
            let mut cut = String::new();
            for letter in rest.chars() {
                if cut.is_empty()
                    || usize::from(width(&cut)) + usize::from(width(letter.encode_utf8(&mut [0; 4]))) <= room
                {
                    cut.push(letter);
                } else {
                    break;
                }
            }
            rest = &rest[cut.len()..];
            last.push_str(&cut);
            if rest.is_empty() {
                is_begun = true;
                break;
            }
            lines.push(indent.clone());
        }
    }
    lines
}

/// Writes a line as far as there is room; how wide it is.
fn put(buffer: &mut Buffer, area: Rect, line: u16, words: &str, style: Style) -> u16 {
    if line >= area.height || area.width == 0 {
        return 0;
    }
    let (end, _) = buffer.set_stringn(area.x, area.y + line, plain(words), area.width.into(), style);
    end - area.x
}

fn from(area: Rect, column: u16) -> Rect {
    let column = column.min(area.width);
    Rect { x: area.x + column, width: area.width - column, ..area }
}

fn width(text: &str) -> u16 {
    u16::try_from(Span::raw(text).width()).unwrap_or(u16::MAX)
}

/// Colours, if they are wanted.
struct Paint(bool);

impl Paint {
    fn colour(&self, colour: Color) -> Style {
        if self.0 { Style::new().fg(colour) } else { Style::new() }
    }

    fn stands(&self, stands: Stands) -> Style {
        let bold = |style: Style| style.add_modifier(Modifier::BOLD);
        match stands {
            Stands::Well => self.colour(Color::Green),
            Stands::Busy => self.colour(Color::Cyan),
            Stands::Doubtful => self.colour(Color::Yellow),
            Stands::Stuck => bold(self.colour(Color::Magenta)),
            Stands::Faulty => bold(self.colour(Color::Red)),
        }
    }

    fn health(&self, health: health::State) -> Style {
        match health {
            health::State::Ok => self.colour(Color::Green),
            health::State::Unknown => Style::new(),
            health::State::Warning => self.colour(Color::Yellow),
            health::State::Critical => self.colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    fn severity(&self, severity: Severity) -> Style {
        match severity {
            Severity::Good => self.colour(Color::Green),
            Severity::Warning => self.colour(Color::Yellow),
            Severity::Error => self.colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}
