//! What is printed for people, as text made of what the agent told and the time.

use std::{collections::VecDeque, fmt::Write as _};

use comfy_table::{Table, presets};
use jiff::{Timestamp, tz::TimeZone};
use rackhand_common::{
    bmc::{Seen, Skipped},
    event::{Event, Stage, What},
    explanation::Explanation,
    health::{Cause, Standing},
    machine::Power,
    wire::{MachineView, NodeView},
};

/// The node, one fact per line.
pub(crate) fn status(view: &NodeView, now: Timestamp) -> String {
    let rack = view.rack_name.clone().unwrap_or_else(|| "(no name yet)".into());
    let boot = match view.boot_heard {
        Some(seconds) if seconds <= 60 => format!("heard {} ago", span(seconds)),
        Some(seconds) => {
            format!("NOT HEARD for {}: machines may not boot; see: systemctl status rackhand-boot", span(seconds))
        }
        None => "NEVER HEARD since the agent started; see: systemctl status rackhand-boot".into(),
    };
    let intent = match view.revision {
        0 => "none yet: the controller has never been reached".into(),
        revision => format!("revision {revision}"),
    };
    let mut facts = vec![
        ("rack", format!("{rack} ({})", view.rack)),
        ("agent", format!("{}, version {}", view.agent, view.version)),
        ("uplink", view.uplink.clone()),
        ("intent", intent),
        ("events waiting", view.spooled.to_string()),
        ("certificate", format!("until {}", when(view.certificate_until, now))),
        ("boot process", boot),
    ];
    if let Some(health) = &view.health {
        let share = |(used, total): (u64, u64)| {
            let percent = used.saturating_mul(100).checked_div(total).unwrap_or_default();
            format!("{percent} % of {} MiB", total >> 20)
        };
        facts.push(("load", format!("{}.{:02}", health.load / 100, health.load % 100)));
        facts.push(("memory", share(health.memory)));
        facts.push(("state disk", share(health.disk)));
        facts.push(("up for", span(health.uptime)));
    }
    facts.into_iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<15} {value}");
        text
    })
}

/// All machines as a table.
pub(crate) fn machines(views: &[MachineView], now: Timestamp) -> String {
    if views.is_empty() {
        return "no machine is known here yet: one appears when it asks the network for a boot program\n".into();
    }
    let mut table = plain();
    table.set_header(["MACHINE", "MAC", "ADDRESS", "POWER", "INSTALLER", "LATEST", "WHEN"]);
    for view in views {
        table.add_row([
            view.name.clone().unwrap_or_else(|| view.id.to_string()),
            or_dash(view.mac),
            or_dash(view.address),
            view.power.map_or("?", power).into(),
            if view.installer { "connected" } else { "-" }.into(),
            view.latest.clone(),
            view.since.map_or_else(|| "-".into(), |since| ago(since, now)),
        ]);
    }
    lines(&table)
}

/// What a BMC told, as a table, and below it how much of that was not understood.
pub(crate) fn seen(seen: &Seen) -> String {
    let ((header, rows), skipped) = seen.rows();
    let mut table = plain();
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    let mut text = lines(&table);
    for Skipped { place, why } in skipped {
        let _ = writeln!(text, "not understood: {place}: {why}");
    }
    text
}

/// How machines fare, the worst first, and why.
pub(crate) fn health(standings: &[Standing], now: Timestamp) -> String {
    if standings.is_empty() {
        return "no BMC of this rack is read yet: how each is reached is said at the controller, by `rackhand bmc set`\n"
            .into();
    }
    let state = |standing: &Standing| standing.verdict.as_ref().map(|verdict| verdict.state).unwrap_or_default();
    let mut sorted: Vec<_> = standings.iter().collect();
    sorted.sort_by_key(|standing| std::cmp::Reverse(state(standing)));
    let mut text = String::new();
    for standing in sorted {
        let answered =
            standing.answered.map_or_else(|| "not answered yet".into(), |at| format!("read {}", ago(at, now)));
        let word = state(standing).word();
        let word = if word == "ok" { word.to_owned() } else { word.to_uppercase() };
        let _ = writeln!(text, "{:<20} {word:<9} {answered}", standing.machine);
        if let Some(silent) = &standing.silent {
            let _ = writeln!(text, "    its BMC: {silent}");
        }
        for cause in standing.verdict.iter().flat_map(|verdict| &verdict.causes) {
            let Cause { rule, state, subject, reading, since, part } = cause;
            let _ = writeln!(text, "    {state}: {subject}: {reading}, since {} (rule {rule})", ago(*since, now));
            if let Some(part) = part {
                let _ = writeln!(text, "        {part}");
            }
        }
    }
    text
}

/// The verdict on a machine, what to do, and what speaks for it.
pub(crate) fn explanation(explanation: &Explanation, now: Timestamp) -> String {
    let Explanation { machine, stands, verdict, since, part, next, because, also } = explanation;
    let since = since.map_or_else(String::new, |since| format!(", since {}", ago(since, now)));
    let mut text = format!("{machine} is {}{since}\n\n  {verdict}\n", stands.word().to_uppercase());
    if let Some(part) = part {
        let _ = writeln!(text, "\n  Part: {part}");
    }
    for (title, lines) in [("What to do", next), ("Because", because), ("Also", also)] {
        if !lines.is_empty() {
            let _ = writeln!(text, "\n{title}:");
        }
        for line in lines {
            let _ = writeln!(text, "  - {line}");
        }
    }
    text
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// Without borders every cell is still padded.
pub(crate) fn lines(table: &Table) -> String {
    let lines = table.to_string();
    lines.lines().fold(String::new(), |text, line| text + line.strip_prefix(' ').unwrap_or(line).trim_end() + "\n")
}

/// One machine, above its timeline.
pub(crate) fn machine(view: &MachineView, now: Timestamp) -> String {
    let name = view.name.clone().unwrap_or_else(|| "(not adopted)".into());
    let since = view.since.map_or_else(String::new, |since| format!(", {}", ago(since, now)));
    format!(
        "{name}  {}  {}  {}\npower {}, installer {}; latest: {}{since}\n\n",
        view.id,
        or_dash(view.mac),
        or_dash(view.address),
        view.power.map_or("unknown", power),
        if view.installer { "connected" } else { "not connected" },
        view.latest,
    )
}

/// Prints events with the time of day and the time since power came on, or since the first
/// event shown.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    start: Option<Timestamp>,
}

impl Stopwatch {
    /// One event on one line.
    pub(crate) fn line(&mut self, event: &Event) -> String {
        format!("{}  {}", local(event.at), self.short(event))
    }

    /// The same without the time of day.
    pub(crate) fn short(&mut self, event: &Event) -> String {
        if matches!(event.what, What::Stage(Stage::PoweredOn)) || self.start.is_none() {
            self.start = Some(event.at);
        }
        let since = self.start.map_or(0.0, |start| event.at.duration_since(start).as_secs_f64());
        format!("{since:>+9.1} s  {}", event.what)
    }
}

/// The events that came after those already shown. The agent keeps only the latest, and
/// replaces a run's progress by the next.
pub(crate) fn fresh<'a>(shown: &VecDeque<Event>, now: &'a [Event]) -> &'a [Event] {
    let seen = now.iter().rposition(|event| shown.contains(event)).map_or(0, |last| last + 1);
    &now[seen..]
}

fn power(power: Power) -> &'static str {
    match power {
        Power::On => "on",
        Power::Off => "off",
    }
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

/// A time of day for people, in the node's zone.
pub(crate) fn local(at: Timestamp) -> String {
    at.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn when(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.as_second() - now.as_second();
    match seconds {
        ..0 => format!("{} (ENDED {} ago)", local(at), span(seconds.unsigned_abs())),
        _ => format!("{} (in {})", local(at), span(seconds.unsigned_abs())),
    }
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span_since(at, now))
}

/// How long ago that was. A clock that was set back makes the past look like the future: little is said then.
pub(crate) fn span_since(at: Timestamp, now: Timestamp) -> String {
    span((now.as_second() - at.as_second()).max(0).unsigned_abs())
}

pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use rackhand_common::id::{AgentId, RackId, RunId};
    use rackhand_common::{
        event::NodeHealth,
        health::{State, Verdict},
        id::MachineId,
    };

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn the_machine_that_fares_worst_comes_first_with_what_to_replace() {
        let cause = Cause {
            rule: "fan".into(),
            state: State::Critical,
            subject: "FAN2".into(),
            reading: "0 rpm, at least 500 rpm".into(),
            since: at(-600),
            part: Some("replace the fan FAN2".into()),
        };
        let standing = |machine: &str, verdict, silent: Option<&str>| Standing {
            machine: machine.into(),
            verdict,
            answered: Some(at(-30)),
            silent: silent.map(Into::into),
        };
        let verdict = |state, causes| Some(Verdict { state, since: at(-600), causes });
        let standings = [
            standing("web-1", verdict(State::Ok, Vec::new()), None),
            standing("web-2", verdict(State::Critical, vec![cause]), None),
            standing("web-3", None, Some("does not answer within 12 s")),
        ];
        expect![[r#"
            web-2                CRITICAL  read 30 s ago
                critical: FAN2: 0 rpm, at least 500 rpm, since 10 min 0 s ago (rule fan)
                    replace the fan FAN2
            web-3                UNKNOWN   read 30 s ago
                its BMC: does not answer within 12 s
            web-1                ok        read 30 s ago
        "#]]
        .assert_eq(&health(&standings, at(0)));
    }

    fn machine_view() -> MachineView {
        MachineView {
            id: MachineId(uuid()),
            name: None,
            mac: Some("52:54:00:12:34:56".parse().unwrap()),
            address: Some("10.77.0.9".parse().unwrap()),
            power: Some(Power::On),
            installer: true,
            latest: "inventory taken".into(),
            since: Some(at(-75)),
        }
    }

    fn uuid() -> uuid::Uuid {
        "018bcfe5-6800-7000-8000-000000000001".parse().unwrap()
    }

    fn check(shown: &str, expected: Expect) {
        expected.assert_eq(shown);
    }

    #[test]
    fn machines_are_a_table() {
        let known = MachineView { name: Some("web-1".into()), power: None, since: None, ..machine_view() };
        check(
            &machines(&[machine_view(), known], at(0)),
            expect![[r#"
             MACHINE                               MAC                ADDRESS    POWER  INSTALLER  LATEST           WHEN
             018bcfe5-6800-7000-8000-000000000001  52:54:00:12:34:56  10.77.0.9  on     connected  inventory taken  1 min 15 s ago
             web-1                                 52:54:00:12:34:56  10.77.0.9  ?      connected  inventory taken  -
        "#]],
        );
    }

    #[test]
    fn a_silent_boot_process_and_an_ended_certificate_stand_out() {
        let view = NodeView {
            version: "0.1.0".into(),
            agent: AgentId(uuid()),
            rack: RackId(uuid()),
            rack_name: Some("r1".into()),
            uplink: "connected".into(),
            revision: 7,
            spooled: 3,
            certificate_until: at(-90),
            boot_heard: Some(200),
            health: Some(NodeHealth {
                load: 105,
                memory: (1 << 30, 4 << 30),
                disk: (1 << 20, 10 << 20),
                uptime: 90_000,
            }),
        };
        // The time of day depends on the zone of whoever runs the test.
        let text = status(&view, at(0));
        assert!(text.contains("(ENDED 1 min 30 s ago)"), "{text}");
        assert!(text.contains("NOT HEARD for 3 min 20 s"), "{text}");
        assert!(text.contains("memory          25 % of 4096 MiB"), "{text}");
    }

    #[test]
    fn time_is_counted_from_power_on() {
        let event = |second, what| Event { at: at(second), machine: None, what };
        let mut clock = Stopwatch::default();
        let lines: Vec<_> =
            [event(0, What::Lost), event(5, What::Stage(Stage::PoweredOn)), event(17, What::Stage(Stage::Installer))]
                .iter()
                .map(|event| format!("|{}", &clock.line(event)[19..]))
                .collect();
        check(
            &lines.join("\n"),
            expect![[r#"
                |       +0.0 s  installer no longer heard of
                |       +0.0 s  powered on
                |      +12.0 s  installer connected"#]],
        );
    }

    #[test]
    fn only_what_came_since_is_printed_again() {
        let run = RunId(uuid());
        let event = |second, what| Event { at: at(second), machine: None, what };
        let progress = |second, done| event(second, What::Progress { run, done, total: 10 });
        let before = VecDeque::from([event(0, What::Lost), progress(1, 1)]);
        let now = [event(0, What::Lost), progress(3, 2), event(4, What::Stage(Stage::ImageWritten))];
        assert_eq!(fresh(&before, &now), &now[1..]);
        assert_eq!(fresh(&VecDeque::from(now.to_vec()), &now), &[]);
    }
}
