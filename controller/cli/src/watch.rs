//! `--watch`: shows an answer anew whenever it changes.
//!
//! On a terminal it is redrawn in place. Elsewhere, and for programs, every thing that is new or
//! changed is one line of JSON, and one that is gone is told with `"gone": true`.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    client::{Client, Events, Problem, view},
    output::{Output, names, print},
    show::{Shown, Surface},
};

/// Whether to stay.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// Stay, and show it anew whenever it changes
    #[arg(long, short)]
    watch: bool,
}

/// How it is noticed that something may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The controller's events tell.
    ByEvents,
    /// Nothing does.
    ByNobody,
}

/// How often it is asked for where nothing tells.
const PACE: Duration = Duration::from_secs(2);

/// How often it is asked for where events tell most of it.
const SLOW: Duration = Duration::from_secs(15);

/// Events come in bunches: so long is waited for more of them.
const BUNCH: Duration = Duration::from_millis(300);

/// Prints what `fetch` gets, once or whenever it changes.
pub(crate) async fn show<T: DeserializeOwned, S: Into<Shown>>(
    client: &Client,
    output: Output,
    Watch { watch }: Watch,
    told: Told,
    fetch: impl AsyncFn() -> anyhow::Result<Value>,
    shown: impl Fn(T) -> S,
) -> anyhow::Result<String> {
    if !watch {
        return print(output, fetch().await?, shown);
    }
    let drawn = output.is_for_people() && std::io::stdout().is_terminal();
    let (mut screen, mut lines) = (Screen::default(), Lines::default());
    let (mut events, mut latest) = (None, None);
    loop {
        // Events first, so that nothing happens between that is not told.
        if told == Told::ByEvents && events.is_none() {
            events = client.events("", None).await.ok();
        }
        match fetch().await {
            Ok(value) if latest.as_ref() == Some(&value) => {}
            Ok(value) => {
                match drawn {
                    true => screen.draw(&whole(output, shown(view(value.clone())?).into()))?,
                    false => lines.print(&value)?,
                }
                latest = Some(value);
            }
            // The controller may be away for a while; what it refuses it refuses again.
            Err(error) if latest.is_none() || error.is::<Problem>() => return Err(error),
            Err(_) => {}
        }
        let end = Instant::now() + if events.is_some() { SLOW } else { PACE };
        let alive = match &mut events {
            Some(stream) => told_before(stream, end).await,
            None => false,
        };
        if !alive {
            // One that is over is opened anew, but not at once.
            events = None;
            sleep(PACE).await;
        }
    }
}

fn whole(output: Output, shown: Shown) -> String {
    match output {
        Output::Wide => shown.wide(&Surface::present()),
        _ => shown.on(&Surface::present()),
    }
}

/// Waits until something happened, or for `end`; false when the stream is over.
async fn told_before(events: &mut Events, end: Instant) -> bool {
    let mut until = end;
    loop {
        match timeout_at(until, events.next()).await {
            Err(_) => return true,
            Ok(Ok(Some(_))) => until = until.min(Instant::now() + BUNCH),
            Ok(_) => return false,
        }
    }
}

/// What stands on the terminal.
#[derive(Debug, Default)]
struct Screen {
    /// How many lines of it are ours.
    drawn: usize,
}

impl Screen {
    fn draw(&mut self, text: &str) -> std::io::Result<()> {
        let size = terminal_size::terminal_size_of(std::io::stdout());
        let (width, height) = size.map_or((80, 24), |(width, height)| (width.0.max(1).into(), height.0.max(2).into()));
        let (frame, drawn) = frame(text, width, height, self.drawn);
        let mut out = std::io::stdout().lock();
        out.write_all(frame.as_bytes())?;
        self.drawn = drawn;
        out.flush()
    }
}

/// What takes the place of the `drawn` lines above, and how many lines it is.
fn frame(text: &str, width: usize, height: usize, drawn: usize) -> (String, usize) {
    let rows = |line: &str| console::measure_text_width(line).max(1).div_ceil(width);
    let (mut kept, mut used) = (Vec::new(), 0);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.peek() {
        // A line is left for what is not shown, and one for the cursor.
        if used + rows(line) > height.saturating_sub(2) {
            break;
        }
        used += rows(line);
        kept.extend(lines.next());
    }
    let more = lines.count();
    let mut frame = if drawn > 0 { format!("\x1b[{drawn}A\r\x1b[J") } else { String::new() };
    for line in kept {
        frame += line;
        frame += "\n";
    }
    if more > 0 {
        frame += &format!("… and {more} more lines\n");
        used += 1;
    }
    (frame, used)
}

/// What was told of each thing.
#[derive(Debug, Default)]
struct Lines(BTreeMap<String, Value>);

impl Lines {
    fn print(&mut self, value: &Value) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        for line in self.changed(value) {
            writeln!(out, "{line}")?;
        }
        out.flush()
    }

    fn changed(&mut self, value: &Value) -> Vec<String> {
        let things = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |thing: &Value| match thing.get("id").and_then(Value::as_str) {
            Some(id) => id.to_owned(),
            None => names(thing).concat(),
        };
        let now: BTreeMap<_, _> = things.iter().map(|thing| (id(thing), thing.clone())).collect();
        let changed = things.iter().filter(|thing| self.0.get(&id(thing)) != Some(thing)).map(Value::to_string);
        let gone =
            self.0.keys().filter(|id| !now.contains_key(*id)).map(|id| json!({"id": id, "gone": true}).to_string());
        let lines = changed.chain(gone).collect();
        self.0 = now;
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_takes_the_place_of_the_one_before_and_leaves_out_what_has_no_room() {
        assert_eq!(frame("a\nb", 80, 24, 0), ("a\nb\n".into(), 2));
        assert_eq!(frame("a", 80, 24, 2), ("\x1b[2A\r\x1b[Ja\n".into(), 1));
        // Colours take no room, and a long line takes two.
        assert_eq!(frame("\x1b[31maaaaaaaaaa\x1b[0m\nbbbbbbbbbbb", 10, 24, 0).1, 3);
        let many = (0..10).map(|line| line.to_string()).collect::<Vec<_>>().join("\n");
        assert_eq!(frame(&many, 80, 6, 0), ("0\n1\n2\n3\n… and 6 more lines\n".into(), 5));
    }

    #[test]
    fn programs_are_told_what_is_new_and_what_is_gone() {
        let mut lines = Lines::default();
        let web = json!({"id": "1", "name": "web-1", "power": "on"});
        let db = json!({"id": "2", "name": "db-1", "power": "on"});
        assert_eq!(lines.changed(&json!([web, db])).len(), 2);
        assert_eq!(lines.changed(&json!([web, db])), Vec::<String>::new());
        let off = json!({"id": "1", "name": "web-1", "power": "off"});
        assert_eq!(lines.changed(&json!([off])), [off.to_string(), r#"{"gone":true,"id":"2"}"#.into()]);
        // One thing by itself.
        let mut lines = Lines::default();
        assert_eq!(lines.changed(&web), [web.to_string()]);
    }
}
