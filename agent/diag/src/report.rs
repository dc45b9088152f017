//! One page about a machine, from what its node knows: to be printed, or sent to whoever sells parts.

use std::{fmt::Write as _, os::unix::net::UnixStream};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use rackhand_common::{
    bmc::{Look, Seen},
    event::{Event, Stage, What},
    explanation::Explanation,
    machine::Inventory,
    replacement::{Ask, Part, View},
    wire::{LocalRequest, LocalResponse, MachineView},
};
use serde::Serialize;

use crate::{ask, console, refusal, replace, show, timeline, why};

/// Entries of the event log that are shown, the latest.
const ENTRIES: usize = 20;

/// Lines of the console that are shown, the latest.
const LINES: usize = 40;

/// What a page says.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: MachineView,
    explanation: Explanation,
    /// What its installer found in it last.
    inventory: Option<Inventory>,
    /// Its parts that can be replaced here, with slots, or why they are not known.
    parts: Result<Vec<Part>, String>,
    /// Its latest start, from power-on.
    start: Vec<Event>,
    /// What the BMC says it is, and its event log; or why that is not known.
    identity: Result<Seen, String>,
    log: Result<Seen, String>,
    /// The end of what was recorded of its console during the latest run, or why there is none.
    console: Result<String, String>,
}

/// Asks for everything; what cannot be had does not keep back the rest.
pub(crate) fn gather(agent: &mut UnixStream, machine: &str) -> Result<Report> {
    let explanation = why(agent, machine.to_owned())?;
    let (view, events) = timeline(agent, machine)?;
    let inventory = events.iter().rev().find_map(|event| match &event.what {
        What::Connected { inventory, .. } => Some(inventory.clone()),
        _ => None,
    });
    let mut look = |look| match ask(agent, &LocalRequest::Look(machine.to_owned(), look)) {
        Ok(LocalResponse::Seen(told)) => serde_json::from_str(&told).map_err(|error| error.to_string()),
        Ok(other) => Err(refusal(other)),
        Err(error) => Err(format!("{error:#}")),
    };
    let asked = serde_json::to_string(&Ask::Show).context("what is asked does not serialize")?;
    let (identity, log) = (look(Look::Identity), look(Look::Log));
    let parts = match ask(agent, &LocalRequest::Replacement(machine.to_owned(), asked)) {
        Ok(LocalResponse::Replacement(told)) => {
            serde_json::from_str(&told).map(|view: View| view.parts).map_err(|error| error.to_string())
        }
        Ok(other) => Err(refusal(other)),
        Err(error) => Err(format!("{error:#}")),
    };
    let mut recorded = Vec::new();
    let console = match console::recorded(agent, machine, &mut recorded) {
        Ok(()) => Ok(last_lines(&printable(&recorded))),
        Err(error) => Err(format!("{error:#}")),
    };
    Ok(Report { machine: view, explanation, inventory, parts, start: latest_start(&events), identity, log, console })
}

impl Report {
    /// The page, as text.
    pub(crate) fn page(&self, now: Timestamp) -> String {
        let mut text = format!("REPORT ON A MACHINE, {}\n\n", show::local(now));
        text += &show::machine(&self.machine, now);
        text += &show::explanation(&self.explanation, now);
        title(&mut text, "What it is, by its BMC");
        text += &told(&self.identity, usize::MAX);
        title(&mut text, "What its installer found in it last");
        text += &self.inventory.as_ref().map_or_else(|| "  nothing: none was connected lately\n".to_owned(), parts);
        title(&mut text, "Its parts");
        text += &match &self.parts {
            Ok(parts) if parts.is_empty() => {
                "  not known: it was not in its installer since this node keeps them\n".to_owned()
            }
            Ok(parts) => replace::listed(parts).lines().fold(String::new(), |text, line| text + "  " + line + "\n"),
            Err(reason) => format!("  not known: {reason}\n"),
        };
        title(&mut text, "Its latest start");
        let mut clock = show::Stopwatch::default();
        for event in &self.start {
            let _ = writeln!(text, "  {}", clock.line(event));
        }
        title(&mut text, &format!("The end of its event log, at most {ENTRIES} entries"));
        text += &told(&self.log, ENTRIES);
        title(&mut text, &format!("The end of its console in the latest run, at most {LINES} lines"));
        match &self.console {
            Ok(lines) => text += lines,
            Err(reason) => {
                let _ = writeln!(text, "  not known: {reason}");
            }
        }
        printable(text.as_bytes())
    }
}

fn title(text: &mut String, title: &str) {
    let _ = writeln!(text, "\n{title}\n{}", "-".repeat(title.chars().count()));
}

fn told(seen: &Result<Seen, String>, most: usize) -> String {
    match seen {
        Ok(seen) => {
            let shown = show::seen(seen);
            let (mut lines, header) = (shown.lines(), shown.lines().take(1));
            let rows: Vec<_> = lines.by_ref().skip(1).collect();
            let latest = rows.len().saturating_sub(most);
            header.chain(rows[latest..].iter().copied()).fold(String::new(), |text, line| text + "  " + line + "\n")
        }
        Err(reason) => format!("  not known: {reason}\n"),
    }
}

fn parts(inventory: &Inventory) -> String {
    let Inventory { system, cpu, memory, nics, disks, .. } = inventory;
    let mut text = format!("  system   {} {}, serial number {}\n", system.vendor, system.product, system.serial);
    let _ = writeln!(text, "  cpu      {}, {} threads", cpu.model, cpu.threads);
    let _ = writeln!(text, "  memory   {} MiB", memory >> 20);
    for nic in nics {
        let link = if nic.link { "link" } else { "NO LINK" };
        let _ = writeln!(text, "  network  {} {} ({}), {link}", nic.name, nic.mac, nic.driver);
    }
    for disk in disks {
        let (name, gigabytes) = (&disk.name, disk.size / 1_000_000_000);
        let _ = writeln!(text, "  disk     {name} {}, {gigabytes} GB, serial number {}", disk.model, disk.serial);
    }
    text
}

/// The events since the machine was last switched on; all, when that was not seen.
fn latest_start(events: &[Event]) -> Vec<Event> {
    let started = events.iter().rposition(|event| matches!(event.what, What::Stage(Stage::PoweredOn)));
    events[started.unwrap_or(0)..].to_vec()
}

/// Text without what would move a terminal's cursor, colour it or make it answer: a machine's
/// console holds whatever its owner wants (ECMA-48 escape and control sequences).
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut letters = text.chars().peekable();
    let mut plain = String::new();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => match letters.next() {
                // A control sequence ends with a letter from `@` to `~`.
                Some('[') => while letters.next().is_some_and(|letter| !('@'..='~').contains(&letter)) {},
                // A string of an operating system command or a device ends with BEL or ESC \.
                Some(']' | 'P' | '_' | '^' | 'X') => {
                    while let Some(letter) = letters.next() {
                        if letter == '\u{7}' || (letter == '\u{1b}' && letters.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                _ => {}
            },
            '\n' | '\t' => plain.push(letter),
            letter if letter.is_control() => {}
            letter => plain.push(letter),
        }
    }
    plain
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().fold(String::new(), |text, line| text + "  " + line + "\n")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rackhand_common::bmc::{Reading, SensorKind, Sensors, Thresholds};

    use super::*;

    fn event(second: i64, what: What) -> Event {
        Event { at: Timestamp::from_second(second).unwrap(), machine: None, what }
    }

    #[test]
    fn a_console_cannot_move_the_reader_s_terminal() {
        let hostile =
            b"\x1b[2J\x1b[1;31mlogin: \x1b]0;title\x07root\x1b]52;c;ZXZpbA==\x1b\\\r\n\x1b(B# \x07\x08ls\x1b[";
        assert_eq!(printable(hostile), "login: root\nB# ls");
        assert_eq!(printable("grüße\t1\n".as_bytes()), "grüße\t1\n");
        assert_eq!(printable(&[0x1b]), "");
        assert_eq!(printable(b"\x1b]never ended"), "");
    }

    #[test]
    fn only_the_end_of_a_console_is_shown() {
        let text = (0..100).map(|line| format!("line {line}  \n\n")).collect::<String>();
        let last = last_lines(&text);
        assert_eq!(last.lines().count(), LINES);
        assert!(last.starts_with("  line 60\n") && last.ends_with("  line 99\n"), "{last}");
    }

    #[test]
    fn a_start_begins_with_power() {
        let on = What::Stage(Stage::PoweredOn);
        let events =
            [event(0, What::Lost), event(1, on.clone()), event(2, What::Lost), event(3, on), event(4, What::Lost)];
        assert_eq!(latest_start(&events), events[3..]);
        assert_eq!(latest_start(&events[..1]), events[..1]);
    }

    #[test]
    fn the_latest_entries_are_shown_below_the_header() {
        let reading = |name: &str| Reading { name: name.into(), ..reading() };
        let sensors = Sensors { readings: vec![reading("first"), reading("second")], skipped: Vec::new() };
        let shown = told(&Ok(Seen::Sensors(sensors)), 1);
        assert!(shown.starts_with("  SENSOR") && shown.contains("second") && !shown.contains("first"), "{shown}");
        assert_eq!(told(&Err("its BMC is away".into()), 1), "  not known: its BMC is away\n");
    }

    fn reading() -> Reading {
        Reading {
            name: String::new(),
            kind: SensorKind::Fan,
            value: Some(8400.0),
            states: Vec::new(),
            severity: None,
            thresholds: Thresholds::default(),
        }
    }
}
