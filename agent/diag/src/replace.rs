//! `rackhand-diag replace-part`: a part of a machine is replaced by whoever stands in front of it, with the
//! agent on this node, which keeps how far that is.
//!
//! What is to be done next is decided by [`next`], a core without IO, from what the agent shows and what was
//! said; so that a tool which was killed goes on where it was.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use comfy_table::{Table, presets};
use rackhand_common::{
    replacement::{Ask, Found, Part, Shown, Stage, View},
    wire::{LocalRequest, LocalResponse},
};

use crate::{Output, ask, connect, print_json, refusal, user};

/// How long an agent that is being restarted is waited for.
const AGENT_BACK: Duration = Duration::from_secs(120);

const LOOK: Duration = Duration::from_millis(500);

/// What was asked for on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Wishes {
    /// The part that goes: its slot, or the serial number that is printed on it. Without, parts are listed.
    #[arg(long, value_name = "SLOT")]
    slot: Option<String>,
    /// The new part is in: start the machine and look.
    #[arg(long, conflicts_with_all = ["again", "abandon"])]
    swapped: bool,
    /// The new part is in, and this is printed on it.
    #[arg(long, value_name = "SERIAL", conflicts_with_all = ["again", "abandon"])]
    new_serial: Option<String>,
    /// Something was not as it should be: switch the machine off again.
    #[arg(long, conflicts_with = "abandon")]
    again: bool,
    /// End it, whatever is in the machine now.
    #[arg(long)]
    abandon: bool,
    /// Who does it; the user of this node otherwise.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Ask nothing: do what the flags say, as far as that goes.
    #[arg(long, short)]
    yes: bool,
}

/// What was said to the agent by this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    begun: bool,
    swapped: bool,
    again: bool,
    abandoned: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// Have one of the parts chosen.
    Choose,
    /// Have it confirmed that the machine is switched off.
    Confirm(Part),
    /// Have it said that the part is swapped; why the node did not do its part comes first.
    Swap(Option<String>),
    /// Have it said whether to try again.
    Again(Found),
    /// Ask the agent.
    Send(Ask),
    /// Look again soon.
    Wait(String),
    /// It is over, or somebody has to act first: what is to be said, and whether it is a failure.
    End(String, bool),
}

/// What is to be done next about this machine. Questions are only asked where somebody `answers`.
fn next(view: &View, wishes: &Wishes, said: Said, answers: bool) -> Next {
    let machine = &view.machine;
    let has_swapped = (wishes.swapped || wishes.new_serial.is_some()) && !said.swapped;
    let swapped = || Next::Send(Ask::Swapped { typed: wishes.new_serial.clone() });
    let Some(Shown { by, old, stage, .. }) = view.replacement.as_ref().filter(|shown| shown.stage.is_under_way())
    else {
        return begin(view, wishes, said, answers);
    };
    if wishes.abandon && !said.abandoned {
        return Next::Send(Ask::Abandon);
    }
    if let Some(slot) = wishes.slot.as_ref().filter(|slot| !old.is_meant_by(slot)) {
        let text = format!(
            "{by} replaces {old} in {machine}, not {slot}; to end that: rackhand-diag replace-part {machine} --abandon"
        );
        return Next::End(text, true);
    }
    if wishes.again && !said.again && !matches!(stage, Stage::SwitchingOff) {
        return Next::Send(Ask::Again);
    }
    match stage {
        Stage::SwitchingOff => Next::Wait(format!("{machine} is being switched off; its lamp is lit")),
        Stage::Swap { .. } | Stage::Doubtful(_) if has_swapped => swapped(),
        Stage::Swap { why } if answers => Next::Swap(why.clone()),
        Stage::Swap { why } => {
            let why = why.as_ref().map_or_else(|| format!("{machine} is off"), |why| format!("{machine}: {why}"));
            let text = format!(
                "{why}. Replace {old}, then: rackhand-diag replace-part {machine} --swapped [--new-serial SERIAL]"
            );
            Next::End(text, said.swapped)
        }
        Stage::Starting { why: None, .. } => Next::Wait(format!("{machine} starts, and tells what is in it")),
        Stage::Starting { why: Some(why), .. } => Next::Wait(format!("{machine}: {why}")),
        Stage::Doubtful(found) if answers => Next::Again(found.clone()),
        Stage::Doubtful(found) => {
            let text = format!(
                "{}to switch it off again: rackhand-diag replace-part {machine} --again; to look again: --swapped; to end it: --abandon",
                told(found)
            );
            Next::End(text, true)
        }
        Stage::Done(_) | Stage::Abandoned => begin(view, wishes, said, answers),
    }
}

/// The same where nothing is under way.
fn begin(view: &View, wishes: &Wishes, said: Said, answers: bool) -> Next {
    let machine = &view.machine;
    let latest = view.replacement.as_ref().map(|shown| outcome(machine, shown));
    if said != Said::default() {
        return Next::End(latest.unwrap_or_default(), false);
    }
    if wishes.abandon || wishes.swapped || wishes.again || wishes.new_serial.is_some() {
        return match latest {
            // Whoever asks was killed before it was told.
            Some(latest) => Next::End(latest, false),
            None => Next::End(format!("no part of {machine} is being replaced; begin with --slot"), true),
        };
    }
    let Some(slot) = &wishes.slot else {
        if answers && !view.parts.is_empty() {
            return Next::Choose;
        }
        let text = match view.parts.is_empty() {
            true => format!(
                "this node has not seen what is in {machine}: start it from the network once, into its installer"
            ),
            false => format!("{}say which one goes: --slot SLOT", listed(&view.parts)),
        };
        return Next::End(text, true);
    };
    if wishes.yes {
        let by = wishes.by.clone().unwrap_or_default();
        return Next::Send(Ask::Begin { part: slot.clone(), by });
    }
    match view.parts.iter().find(|part| part.is_meant_by(slot)) {
        None => Next::End(format!("{}{machine} has no part {slot:?}", listed(&view.parts)), true),
        Some(part) if answers => Next::Confirm(part.clone()),
        Some(part) => {
            Next::End(format!("{machine} would be switched off to replace {part}; if it may be: --yes"), true)
        }
    }
}

/// How a replacement ended, for people.
fn outcome(machine: &str, shown: &Shown) -> String {
    let Shown { by, old, stage, .. } = shown;
    match stage {
        Stage::Done(found) => {
            let new = found.new.as_ref().map(Part::to_string).unwrap_or_default();
            let mut text = format!("{by} has replaced {old}\n  by {new}\n");
            text.extend(found.notes.iter().map(|note| format!("  note: {note}\n")));
            let _ = write!(
                text,
                "Nothing else in {machine} is other than it was. The controller accepts the part, has it tested and puts the \
                 machine back into service, as soon as it is told."
            );
            text
        }
        _ => format!("{by} does not replace {old} after all"),
    }
}

fn told(found: &Found) -> String {
    let lines = found.problems.iter().chain(&found.notes);
    lines.fold("not all is as it should be:\n".to_owned(), |text, line| text + "  - " + line + "\n")
}

/// Parts as a table, numbered from 1.
pub(crate) fn listed(parts: &[Part]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "PART", "SLOT", "SERIAL", "WHAT", "SPEAKS AGAINST IT"]);
    for (number, part) in (1..).zip(parts) {
        let number: usize = number;
        table.add_row([
            number.to_string(),
            part.kind.to_string(),
            part.slot.clone(),
            part.serial.clone(),
            part.about.clone(),
            part.fault.clone(),
        ]);
    }
    crate::show::lines(&table)
}

/// Has a part of a machine replaced, as far as that goes now.
pub(crate) fn replace(socket: &Path, machine: &str, wishes: Wishes, output: Output) -> Result<()> {
    let json = output == Output::Json;
    let answers = io::stdin().is_terminal() && !json && !wishes.yes;
    let by = wishes.by.clone().or_else(user).unwrap_or_else(|| "a technician".to_owned());
    let mut wishes = Wishes { by: Some(by.clone()), ..wishes };
    let (mut said, mut shown) = (Said::default(), String::new());
    let mut view = tell(socket, machine, &Ask::Show)?;
    loop {
        match next(&view, &wishes, said, answers) {
            Next::Send(what) => {
                match what {
                    Ask::Begin { .. } => said.begun = true,
                    Ask::Swapped { .. } => said.swapped = true,
                    Ask::Again => said.again = true,
                    Ask::Abandon => said.abandoned = true,
                    Ask::Show => {}
                }
                view = tell(socket, machine, &what)?;
            }
            Next::Wait(words) => {
                if words != shown && !json {
                    writeln!(io::stderr(), "{words}")?;
                }
                shown = words;
                std::thread::sleep(LOOK);
                view = patiently(socket, machine)?;
            }
            Next::Choose => {
                write!(io::stderr(), "{}", listed(&view.parts))?;
                let number = question("Which one goes (its number)? ")?;
                let chosen = number.parse::<usize>().ok().and_then(|number| view.parts.get(number.checked_sub(1)?));
                let Some(part) = chosen else { bail!("no part has the number {number:?}; nothing was done") };
                wishes.slot = Some(if part.serial.is_empty() { part.slot.clone() } else { part.serial.clone() });
            }
            Next::Confirm(part) => {
                if !part.fault.is_empty() {
                    writeln!(io::stderr(), "{part}: {}", part.fault)?;
                }
                let prompt = format!("{machine} is switched off and its lamp lit, to replace {part}. Go on (yes/no)? ");
                if !is_yes(&question(&prompt)?) {
                    bail!("nothing was done");
                }
                said.begun = true;
                let part = wishes.slot.clone().unwrap_or_default();
                view = tell(socket, machine, &Ask::Begin { part, by: by.clone() })?;
            }
            Next::Swap(why) => {
                if let Some(why) = why {
                    writeln!(io::stderr(), "{machine}: {why}")?;
                }
                let typed = question("Replace it now. Then scan or type the new serial number, or only press Enter: ")?;
                said.swapped = true;
                view = tell(socket, machine, &Ask::Swapped { typed: Some(typed) })?;
            }
            Next::Again(found) => {
                write!(io::stderr(), "{}", told(&found))?;
                match question("Switch it off and try again (yes), look again (look), or end it (abandon)? ")?.as_str()
                {
                    "look" => view = tell(socket, machine, &Ask::Swapped { typed: None })?,
                    "abandon" => {
                        said.abandoned = true;
                        view = tell(socket, machine, &Ask::Abandon)?;
                    }
                    answer if is_yes(answer) => view = tell(socket, machine, &Ask::Again)?,
                    _ => bail!("it stays as it is; `rackhand-diag replace-part {machine}` goes on with it"),
                }
            }
            Next::End(text, is_failure) => {
                if json {
                    print_json(&mut io::stdout().lock(), &view)?;
                }
                if is_failure {
                    bail!(text);
                }
                if !json {
                    writeln!(io::stdout().lock(), "{text}")?;
                }
                return Ok(());
            }
        }
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes")
}

/// What somebody types; nothing more comes when they are gone.
fn question(prompt: &str) -> Result<String> {
    write!(io::stderr(), "{prompt}")?;
    io::stderr().flush()?;
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        bail!("nobody answers; how far it is, is kept");
    }
    Ok(line.trim().to_owned())
}

fn tell(socket: &Path, machine: &str, what: &Ask) -> Result<View> {
    let mut agent = connect(socket)?;
    let what = serde_json::to_string(what).context("what is asked does not serialize")?;
    match ask(&mut agent, &LocalRequest::Replacement(machine.to_owned(), what))? {
        LocalResponse::Replacement(view) => {
            serde_json::from_str(&view).context("what the agent tells is not understood")
        }
        other => bail!(refusal(other)),
    }
}

/// The same while the agent may be restarted.
fn patiently(socket: &Path, machine: &str) -> Result<View> {
    let until = Instant::now() + AGENT_BACK;
    loop {
        match tell(socket, machine, &Ask::Show) {
            Err(_) if Instant::now() < until => std::thread::sleep(LOOK),
            told => return told,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rackhand_common::replacement::Kind;

    use super::*;

    fn part(slot: &str, serial: &str) -> Part {
        Part {
            kind: Kind::Disk,
            slot: slot.into(),
            identity: format!("SSD/{serial}"),
            serial: serial.into(),
            about: "SSD 100 GiB".into(),
            amount: 100,
            fault: String::new(),
        }
    }

    fn view(stage: Option<Stage>) -> View {
        let shown = |stage| Shown { by: "ada".into(), began: Timestamp::UNIX_EPOCH, old: part("sda", "D1"), stage };
        View {
            machine: "web-1".into(),
            parts: vec![part("sda", "D1"), part("sdb", "D2")],
            replacement: stage.map(shown),
        }
    }

    fn wishes(flags: &str) -> Wishes {
        let mut wishes = Wishes::default();
        for flag in flags.split(' ').filter(|flag| !flag.is_empty()) {
            match flag.split_once('=').unwrap_or((flag, "")) {
                ("slot", slot) => wishes.slot = Some(slot.into()),
                ("serial", serial) => wishes.new_serial = Some(serial.into()),
                ("swapped", _) => wishes.swapped = true,
                ("again", _) => wishes.again = true,
                ("abandon", _) => wishes.abandon = true,
                ("yes", _) => wishes.yes = true,
                _ => unreachable!("{flag}"),
            }
        }
        wishes
    }

    /// In short what is next, with nobody there to answer.
    fn alone(stage: Option<Stage>, flags: &str, said: Said) -> String {
        match next(&view(stage), &wishes(flags), said, false) {
            Next::Send(what) => format!("send {what:?}"),
            Next::Wait(_) => "wait".into(),
            Next::End(text, is_failure) => {
                let last = text.lines().last().unwrap_or_default().to_owned();
                format!("{}: {last}", if is_failure { "fail" } else { "end" })
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn without_a_terminal_the_flags_say_all_and_nothing_is_done_twice() {
        let off = || Some(Stage::Swap { why: None });
        let doubtful = || Some(Stage::Doubtful(Found { problems: vec!["it is gone".into()], ..Found::default() }));
        let nothing = Said::default();
        assert_eq!(alone(None, "", nothing), "fail: say which one goes: --slot SLOT");
        assert!(alone(None, "slot=sda", nothing).ends_with("if it may be: --yes"));
        assert_eq!(alone(None, "slot=sda yes", nothing), r#"send Begin { part: "sda", by: "" }"#);
        assert_eq!(alone(Some(Stage::SwitchingOff), "slot=sda yes", Said { begun: true, ..nothing }), "wait");
        assert!(
            alone(off(), "slot=sda yes", Said { begun: true, ..nothing })
                .starts_with("end: web-1 is off. Replace disk sda")
        );
        assert_eq!(alone(off(), "serial=D9", nothing), r#"send Swapped { typed: Some("D9") }"#);
        assert_eq!(alone(off(), "swapped", nothing), "send Swapped { typed: None }");
        // Its installer did not come.
        assert!(alone(off(), "swapped", Said { swapped: true, ..nothing }).starts_with("fail: web-1"));
        assert!(
            alone(doubtful(), "swapped", Said { swapped: true, ..nothing }).starts_with("fail: to switch it off again")
        );
        assert_eq!(alone(doubtful(), "swapped", nothing), "send Swapped { typed: None }");
        assert_eq!(alone(doubtful(), "again", nothing), "send Again");
        assert_eq!(alone(doubtful(), "abandon", nothing), "send Abandon");
        assert_eq!(
            alone(Some(Stage::Abandoned), "abandon", nothing),
            "end: ada does not replace disk sda (SSD 100 GiB, D1) after all"
        );
        assert!(alone(off(), "slot=sdb yes", nothing).starts_with("fail: ada replaces disk sda"));
        assert!(alone(None, "swapped", nothing).starts_with("fail: no part of web-1 is being replaced"));
        // Killed before it was told that it is done.
        let done = Some(Stage::Done(Found { new: Some(part("sda", "D9")), ..Found::default() }));
        assert!(alone(done.clone(), "swapped", nothing).starts_with("end: Nothing else in web-1"));
        assert_eq!(alone(done, "slot=sdb yes", nothing), r#"send Begin { part: "sdb", by: "" }"#);
    }

    #[test]
    fn whoever_answers_is_led_from_where_it_is() {
        let next = |stage, flags: &str, said| next(&view(stage), &wishes(flags), said, true);
        let nothing = Said::default();
        assert_eq!(next(None, "", nothing), Next::Choose);
        assert_eq!(next(None, "slot=d2", nothing), Next::Confirm(part("sdb", "D2")));
        assert_eq!(next(Some(Stage::Swap { why: None }), "", nothing), Next::Swap(None));
        let found = Found { problems: vec!["it is gone".into()], ..Found::default() };
        assert_eq!(next(Some(Stage::Doubtful(found.clone())), "", nothing), Next::Again(found));
        assert_eq!(next(Some(Stage::Abandoned), "", nothing), Next::Choose);
    }
}
