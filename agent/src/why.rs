//! One verdict on a machine from all that its node knows, in plain words, and what to do.
//!
//! A core without IO. Each rule looks at the evidence by itself and may find something; what is worst
//! becomes the verdict, of equals the rule that stands first, and the rest is told beside it. A rule
//! says only what the evidence says: where two causes look the same from here, it names both.

use std::time::Duration;

use jiff::Timestamp;
use rackhand_common::{
    event::{Cause, Event, NodeHealth, Outcome, Stage, What},
    explanation::{Explanation, Stands},
    health::{Standing, State},
    intent::{Boot, MachineIntent},
    machine::{Disk, Inventory, Power},
};

/// What is known of a machine, and of the node it depends on.
#[derive(Clone, Debug)]
pub(crate) struct Evidence<'a> {
    /// What people call it.
    pub(crate) machine: &'a str,
    /// What the controller wants of it; `None` for one that it has not named.
    pub(crate) wanted: Option<&'a MachineIntent>,
    /// Its events, oldest first.
    pub(crate) events: &'a [Event],
    /// Who has it open to replace a part of it, in words; `None` when nobody has.
    pub(crate) opened: Option<String>,
    /// What the rules of health make of it.
    pub(crate) standing: Standing,
    /// Why the controller cannot be reached, if it cannot.
    pub(crate) away: Option<&'a str>,
    /// How long ago boot was heard; `None`: never.
    pub(crate) boot_heard: Option<Duration>,
    /// How the node fares, once that was measured.
    pub(crate) node: Option<&'a NodeHealth>,
    /// The present, by the node's clock.
    pub(crate) now: Timestamp,
}

/// Boot asks for the intent every twenty seconds.
const BOOT_SILENT: Duration = Duration::from_secs(60);

/// A node whose disk is fuller than this cannot keep what happens for long.
const DISK_FULL_PERCENT: u64 = 95;

struct Finding {
    stands: Stands,
    verdict: String,
    since: Option<Timestamp>,
    part: Option<String>,
    next: Vec<String>,
    because: Vec<String>,
}

impl Finding {
    fn new(stands: Stands, verdict: impl Into<String>) -> Self {
        let verdict = verdict.into();
        Self { stands, verdict, since: None, part: None, next: Vec::new(), because: Vec::new() }
    }

    fn since(self, since: Timestamp) -> Self {
        Self { since: Some(since), ..self }
    }

    fn part(self, part: Option<String>) -> Self {
        Self { part, ..self }
    }

    fn next<T: Into<String>>(mut self, steps: impl IntoIterator<Item = T>) -> Self {
        self.next.extend(steps.into_iter().map(Into::into));
        self
    }

    fn because<T: Into<String>>(mut self, facts: impl IntoIterator<Item = T>) -> Self {
        self.because.extend(facts.into_iter().map(Into::into));
        self
    }
}

/// Of equally bad findings the first is the verdict: what explains more stands further up.
const RULES: &[fn(&Evidence<'_>) -> Option<Finding>] =
    &[boot_process, opened, hardware, order, power, ticket, way, bmc, node_disk, uplink];

/// The verdict on a machine.
pub(crate) fn explain(evidence: &Evidence<'_>) -> Explanation {
    let mut findings: Vec<_> = RULES.iter().filter_map(|rule| rule(evidence)).collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.stands));
    let mut findings = findings.into_iter();
    let worst = findings
        .next()
        .unwrap_or_else(|| Finding::new(Stands::Well, "Nothing that this node knows speaks against it."));
    let also = findings.filter(|finding| finding.stands >= Stands::Doubtful).map(|finding| finding.verdict).collect();
    let Finding { stands, verdict, since, part, next, because } = worst;
    Explanation { machine: evidence.machine.to_owned(), stands, verdict, since, part, next, because, also }
}

fn boot_process(evidence: &Evidence<'_>) -> Option<Finding> {
    let heard = match evidence.boot_heard {
        Some(ago) if ago <= BOOT_SILENT => return None,
        Some(ago) => format!("it was last heard {} s ago", ago.as_secs()),
        None => "it was not heard since the agent was started".to_owned(),
    };
    let verdict = "This node's boot process does not run: no machine of the rack can boot from the network.";
    Some(
        Finding::new(Stands::Faulty, verdict).because([heard]).next([
            "On the node: systemctl status rackhand-boot, journalctl -u rackhand-boot",
            "rackhand-agent doctor",
        ]),
    )
}

fn opened(evidence: &Evidence<'_>) -> Option<Finding> {
    let who = evidence.opened.as_deref()?;
    let next = format!("`rackhand-diag replace-part {}` says how far that is, and goes on with it", evidence.machine);
    Some(Finding::new(Stands::Busy, format!("It is open: {who}.")).next([next]))
}

fn hardware(evidence: &Evidence<'_>) -> Option<Finding> {
    let verdict = evidence.standing.verdict.as_ref()?;
    let worst = verdict.causes.first()?;
    let (stands, word) = match worst.state {
        State::Critical => (Stands::Faulty, "is broken or about to break"),
        State::Warning => (Stands::Doubtful, "should be looked at"),
        State::Ok | State::Unknown => return None,
    };
    let facts =
        verdict.causes.iter().map(|cause| format!("{}: {} (rule {})", cause.subject, cause.reading, cause.rule));
    Some(
        Finding::new(stands, format!("{} {word}: {}.", worst.subject, worst.reading))
            .since(worst.since)
            .part(worst.part.clone())
            .because(facts)
            .next([
                "`rackhand-diag identify` lights the machine's lamp, so that you open the right one".to_owned(),
                "Once the part is replaced, the machine is well again by itself".to_owned(),
            ]),
    )
}

/// The latest order, if it failed and none was begun since.
fn order(evidence: &Evidence<'_>) -> Option<Finding> {
    let ended = evidence.events.iter().rev().find(|event| {
        matches!(
            event.what,
            What::Failed { .. } | What::Done { .. } | What::PhonedHome { .. } | What::Stage(Stage::OrderStarted(_))
        )
    })?;
    let What::Failed { run, attempt, cause, detail } = &ended.what else { return None };
    let summary = detail.lines().next().unwrap_or_default();
    let unclean = evidence.events.iter().filter_map(|event| match &event.what {
        What::Erased { run: of, attempt: again, drive } if (of, again) == (run, attempt) => {
            drive.reason.as_ref().map(|reason| format!("disk {}: {reason}", drive.disk))
        }
        _ => None,
    });
    let disks = || {
        let named: Vec<_> = disks_in(evidence, detail).map(named).collect();
        (!named.is_empty()).then(|| format!("replace {}", named.join(" and ")))
    };
    let machine = evidence.machine;
    let (verdict, part, next): (&str, _, Vec<String>) = match cause {
        Cause::DisksDiffer | Cause::MainboardDiffers | Cause::WrongMachine => (
            "The installer found other parts than were accepted",
            None,
            vec![
                "Put the part back that belongs there".into(),
                format!("Or have what is there accepted: `rackhand machine replace-part {machine}`"),
            ],
        ),
        Cause::NoSuitableDisk => (
            "No disk of the machine fits",
            None,
            vec![
                "Is every disk seated, and does the controller it hangs on show it?".into(),
                "Choose a smaller image, or name the disk in the deploy".into(),
            ],
        ),
        Cause::DiskError | Cause::Verify => (
            "A disk failed",
            disks(),
            vec![
                "Replace the disk; where several fail at once, look at their cable, backplane and controller first"
                    .into(),
                format!("Then have the new one accepted: `rackhand machine replace-part {machine}`"),
            ],
        ),
        Cause::Image => (
            "The image could not be had whole",
            None,
            vec![
                "On the node: rackhand-agent doctor (disk, uplink), rackhand-diag status".into(),
                "Then have the run done again: `rackhand run retry`".into(),
            ],
        ),
        Cause::ImageUnsuitable => (
            "The image was made for other hardware",
            None,
            vec!["`rackhand image check` says for which firmware and sectors it was made: choose another".into()],
        ),
        Cause::Tpm => (
            "The machine's TPM is not known to be cleared",
            None,
            vec![
                "Is its firmware asking for a key on the machine's console? Then press it".into(),
                "Or clear the TPM in the firmware's setup, and release the machine again".into(),
            ],
        ),
        Cause::Bmc => (
            "The machine's BMC did not take its user and password in-band",
            None,
            vec![
                "Does its firmware let the host reach its BMC (KCS), and has the BMC a place left for a user?".into(),
                format!(
                    "Or set the password by the BMC's web page or console, then `rackhand bmc set {machine}` and release \
                     the machine again"
                ),
            ],
        ),
        Cause::BootOrder => (
            "The firmware did not take the boot order",
            None,
            vec![
                "Set the firmware's settings back to its defaults, or remove boot entries there that nobody needs"
                    .into(),
            ],
        ),
        Cause::Internal => ("The installer failed", None, vec!["`rackhand run logs` has all it said".into()]),
    };
    let verdict = if summary.is_empty() { format!("{verdict}.") } else { format!("{verdict}: {summary}.") };
    let facts = std::iter::once(format!("order of run {run}, attempt {attempt}")).chain(unclean);
    Some(Finding::new(Stands::Faulty, verdict).since(ended.at).part(part).next(next).because(facts))
}

fn inventory<'a>(evidence: &Evidence<'a>) -> Option<&'a Inventory> {
    evidence.events.iter().rev().find_map(|event| match &event.what {
        What::Connected { inventory, .. } => Some(inventory),
        _ => None,
    })
}

/// The disks whose identities stand in this text.
fn disks_in<'a>(evidence: &Evidence<'a>, text: &'a str) -> impl Iterator<Item = &'a Disk> {
    let disks = inventory(evidence).map(|inventory| inventory.disks.as_slice()).unwrap_or_default();
    disks.iter().filter(move |disk| disk.identity().is_some_and(|identity| text.contains(&identity)))
}

fn named(disk: &Disk) -> String {
    format!("the disk {} ({}, serial number {})", disk.name, disk.model, disk.serial)
}

fn power(evidence: &Evidence<'_>) -> Option<Finding> {
    let latest = evidence.events.iter().rev().find(|event| {
        matches!(event.what, What::Commanded { .. } | What::Stage(_) | What::Connected { .. } | What::PhonedHome { .. })
    })?;
    let What::Commanded { outcome, .. } = &latest.what else { return None };
    let (verdict, next) = match outcome {
        // Another way of starting it is tried next.
        Outcome::Done | Outcome::Unsupported(_) => return None,
        Outcome::Refused(reason) => (
            format!("The last power command was refused: {reason}."),
            "It came too late, or for an allocation that is over: have it done again from the controller",
        ),
        Outcome::Failed(reason) => (
            format!("The machine could not be switched: {reason}."),
            "Ask its BMC: `rackhand-diag bmc`; or switch it by its button, once nothing is being written",
        ),
        Outcome::Unknown => (
            "The node was stopped in the middle of switching the machine.".to_owned(),
            "Is the machine on? `rackhand-diag bmc` asks its BMC",
        ),
    };
    Some(Finding::new(Stands::Stuck, verdict).since(latest.at).next([next]).because([latest.what.to_string()]))
}

fn ticket(evidence: &Evidence<'_>) -> Option<Finding> {
    let latest = evidence.events.iter().rev().find(|event| {
        matches!(event.what, What::TicketRefused { .. } | What::Stage(Stage::Installer) | What::Connected { .. })
    })?;
    let What::TicketRefused { reason } = &latest.what else { return None };
    Some(
        Finding::new(Stands::Stuck, format!("Its installer was not let in: {reason}."))
            .since(latest.at)
            .because([latest.what.to_string()])
            .next([
                "Restart the machine: each boot gets a ticket of its own",
                "If that comes back, something else on this network uses the machine's tickets: look who is cabled to it",
            ]),
    )
}

/// Where the machine is on its way from power to a running system.
fn way(evidence: &Evidence<'_>) -> Option<Finding> {
    let waits_for_installer = evidence.wanted.is_some_and(|wanted| wanted.boot == Boot::Installer);
    let latest = evidence.events.iter().rev().find(|event| tells_of_the_way(&event.what));
    // Whoever has it open has it off.
    if evidence.opened.is_some() && latest.is_none_or(|latest| matches!(latest.what, What::Power(Power::Off))) {
        return None;
    }
    let Some(latest) = latest else {
        return Some(Finding::new(Stands::Stuck, "Nothing was ever heard of it.").next([
            "Is it switched on, and is the card it boots from cabled to this network?",
            "Is the network the first of its boot devices?",
        ]));
    };
    let since = u64::try_from(evidence.now.duration_since(latest.at).as_secs()).unwrap_or(0);
    let finding = match &latest.what {
        What::PhonedHome { .. } => Finding::new(Stands::Well, "Its installed system runs: it has called home."),
        What::Power(Power::Off) if waits_for_installer => {
            Finding::new(Stands::Stuck, "It is switched off, and its installer is wanted.").next([
                "The controller switches it on: `rackhand run list` says what it waits for",
                "With the controller away: switch it on by its button",
            ])
        }
        What::Power(Power::Off) => Finding::new(Stands::Well, "It is switched off, and nobody wants it on."),
        What::Power(Power::On) => hop(evidence, None, since),
        What::Lost => Finding::new(Stands::Stuck, "Its installer is no longer heard of.").next([
            "Look at its console: `rackhand-diag console`",
            "Is it still on, and is the cable of the card it boots from still in?",
        ]),
        What::Progress { .. } => worked_on(latest, since),
        What::Stage(stage) => hop(evidence, Some(stage), since),
        What::Connected { .. } => present(evidence, since),
        What::Rescue { login, .. } => {
            Finding::new(Stands::Well, format!("It is in rescue, where its owner logs in: {login}."))
        }
        // An order that is over leaves an installer that waits.
        _ => idle(evidence),
    };
    Some(finding.since(latest.at).because([latest.what.to_string()]))
}

fn tells_of_the_way(what: &What) -> bool {
    matches!(
        what,
        What::PhonedHome { .. }
            | What::Power(_)
            | What::Lost
            | What::Progress { .. }
            | What::Stage(_)
            | What::Connected { .. }
            | What::Done { .. }
            | What::Failed { .. }
            | What::Updated { .. }
            | What::Rescue { .. }
    )
}

fn idle(evidence: &Evidence<'_>) -> Finding {
    match evidence.away {
        Some(away) => Finding::new(
            Stands::Stuck,
            "Its installer is connected and waits to be told what to do, while the controller is out of reach.",
        )
        .next([format!("Nothing is to be done at the machine. The controller: {away}")]),
        None => Finding::new(Stands::Well, "Its installer is connected and waits to be told what to do."),
    }
}

fn present(evidence: &Evidence<'_>, since: u64) -> Finding {
    const PATIENCE: u64 = 5 * 60;
    match evidence.wanted.is_some_and(|wanted| wanted.order.is_some()) {
        false => idle(evidence),
        true if since <= PATIENCE => Finding::new(Stands::Busy, "Its installer has connected, and has its order."),
        true => Finding::new(Stands::Stuck, "Its installer has connected, and has not begun its order.").next([
            "Look at its console: `rackhand-diag console`",
            "On the node: rackhand-agent doctor; journalctl -u rackhand-boot",
        ]),
    }
}

fn worked_on(latest: &Event, since: u64) -> Finding {
    const PATIENCE: u64 = 20 * 60;
    if since <= PATIENCE {
        return Finding::new(Stands::Busy, format!("Its installer is at work: {}.", latest.what));
    }
    Finding::new(Stands::Stuck, format!("Its installer is at work and has got no further: {}.", latest.what)).next([
        "Look at its console: `rackhand-diag console`",
        "A disk that takes this long is about to fail: `rackhand-diag bmc` has the log",
    ])
}

/// How many seconds a machine may take from this hop to the next, and what to look at when it takes longer.
fn patience(stage: Option<&Stage>) -> (u64, &'static [&'static str]) {
    const POST: &[&str] = &[
        "Look at its screen or console: a question of its firmware, a failed self-test, an error code",
        "Is the network the first of its boot devices, and is the card it boots from cabled to this network?",
        "A large server tests its memory for ten minutes and more after parts were changed",
    ];
    const LOADER: &[&str] = &[
        "It took an offer from elsewhere, or cannot fetch: is there another DHCP server in this network?",
        "Do TFTP (69/udp) and HTTP (8080/tcp) pass the switch between the machine and this node?",
    ];
    const KERNEL: &[&str] = &[
        "Look at its console for what iPXE or the kernel says",
        "On the node: are `kernel` and `initramfs` in its installer directory? rackhand-agent doctor",
        "Two gigabytes of memory are the least an installer needs",
    ];
    const SYSTEM: &[&str] = &[
        "Look at its console: does the loader find the system, and the kernel its disk?",
        "Does the image start on this firmware? `rackhand image check`",
    ];
    match stage {
        None | Some(Stage::PoweredOn) => (12 * 60, POST),
        Some(Stage::RomDhcp(_) | Stage::Loader(_) | Stage::IpxeDhcp) => (60, LOADER),
        Some(Stage::Script(_) | Stage::Kernel | Stage::Initramfs) => (4 * 60, KERNEL),
        Some(Stage::Installer | Stage::Inventoried | Stage::OrderStarted(_)) => (20 * 60, KERNEL),
        Some(Stage::ImageWritten | Stage::SettingsWritten | Stage::Erased | Stage::Tested) => (5 * 60, KERNEL),
        Some(Stage::Rebooting) => (12 * 60, SYSTEM),
        Some(Stage::OsDhcp) => (10 * 60, SYSTEM),
    }
}

fn hop(evidence: &Evidence<'_>, stage: Option<&Stage>, since: u64) -> Finding {
    let has_order = evidence.wanted.is_some_and(|wanted| wanted.order.is_some());
    let own_disk = evidence.wanted.is_some_and(|wanted| wanted.boot == Boot::Disk);
    match stage {
        Some(Stage::Inventoried) => return present(evidence, since),
        // A system that was installed long ago is not asked to call home again.
        None | Some(Stage::Script(_) | Stage::OsDhcp) if own_disk && !has_order => {
            return Finding::new(Stands::Well, "It is on, and boots its own disk.");
        }
        _ => {}
    }
    let waits = capitalised(stage.map_or("switched on, has not asked for an address", Stage::not_yet));
    let (patience, next) = patience(stage);
    if since <= patience {
        return Finding::new(Stands::Busy, format!("{waits}; that may take {} min.", patience.div_ceil(60)));
    }
    Finding::new(Stands::Stuck, format!("{waits}; that takes longer than it should.")).next(next.iter().copied())
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn bmc(evidence: &Evidence<'_>) -> Option<Finding> {
    let silent = evidence.standing.silent.as_ref()?;
    let facts = evidence.standing.answered.map(|at| format!("it answered last at {at}"));
    Some(Finding::new(Stands::Doubtful, format!("Its BMC does not answer: {silent}.")).because(facts).next([
        "Is the cable of its management port in, and does that port show a link?",
        "Where nothing helps: take the machine's power cords out for half a minute, once nobody uses it",
    ]))
}

fn node_disk(evidence: &Evidence<'_>) -> Option<Finding> {
    let (used, total) = evidence.node?.disk;
    let percent = used.saturating_mul(100).checked_div(total)?;
    (percent >= DISK_FULL_PERCENT).then(|| {
        Finding::new(Stands::Doubtful, format!("The node's state disk is {percent} % full."))
            .next(["Make room on the node: what happens in the rack is kept there until the controller has it"])
    })
}

fn uplink(evidence: &Evidence<'_>) -> Option<Finding> {
    let away = evidence.away?;
    Some(
        Finding::new(Stands::Doubtful, format!("The controller is out of reach: {away}.")).next([
            "Machines that are known boot meanwhile; new orders wait. rackhand-agent doctor looks at the uplink",
        ]),
    )
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;
    use rackhand_common::{
        event::Login,
        health::{self, Verdict},
        id::{CommandId, Epoch, MachineId, RunId},
        intent::{Order, Work},
        machine::{Content, Cpu, Firmware, System},
    };

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn standing(verdict: Option<Verdict>, silent: Option<&str>) -> Standing {
        Standing { machine: "web-1".into(), verdict, answered: None, silent: silent.map(Into::into) }
    }

    /// A machine whose node and BMC are well.
    fn evidence<'a>(wanted: Option<&'a MachineIntent>, events: &'a [Event], seconds: i64) -> Evidence<'a> {
        Evidence {
            machine: "web-1",
            wanted,
            events,
            standing: standing(None, None),
            away: None,
            opened: None,
            boot_heard: Some(Duration::from_secs(3)),
            node: None,
            now: at(seconds),
        }
    }

    fn wanted(boot: Boot, order: bool) -> MachineIntent {
        let order = order.then(|| Order { run: run(), attempt: 1, disks: Vec::new(), work: Work::Erase });
        MachineIntent {
            id: MachineId(uuid::Uuid::nil()),
            name: "web-1".into(),
            macs: Vec::new(),
            address: "10.77.0.9".parse().unwrap(),
            epoch: Epoch(1),
            boot,
            order,
        }
    }

    fn run() -> RunId {
        RunId(uuid::Uuid::nil())
    }

    fn told(happened: impl IntoIterator<Item = (i64, What)>) -> Vec<Event> {
        happened.into_iter().map(|(second, what)| Event { at: at(second), machine: None, what }).collect()
    }

    fn failed(cause: Cause, detail: &str) -> What {
        What::Failed { run: run(), attempt: 1, cause, detail: detail.into() }
    }

    fn connected() -> What {
        let disk = Disk {
            name: "nvme0n1".into(),
            model: "Flash 9".into(),
            serial: "S123".into(),
            wwn: Some("eui.0025".into()),
            size: 1 << 40,
            sector: 512,
            rotational: false,
            content: Content::Blank,
        };
        let inventory = Inventory {
            firmware: Firmware::Uefi,
            system: System { vendor: "V".into(), product: "P".into(), serial: "1".into(), uuid: None },
            cpu: Cpu { model: "C".into(), threads: 8 },
            memory: 1 << 33,
            nics: Vec::new(),
            disks: vec![disk],
        };
        What::Connected { mac: rackhand_common::machine::Mac([2; 6]), address: "10.77.0.9".parse().unwrap(), inventory }
    }

    fn cause(state: State, subject: &str) -> health::Cause {
        health::Cause {
            rule: "fan".into(),
            state,
            subject: subject.into(),
            reading: "0 rpm".into(),
            since: at(0),
            part: Some(format!("replace the fan {subject}")),
        }
    }

    /// What is wanted, what happened at which second, the present second, and what is made of that.
    type Situation<'a> = (&'a MachineIntent, Vec<(i64, What)>, i64, Stands, &'a str);

    #[test]
    fn each_situation_has_its_verdict() {
        use Stage::{Initramfs, PoweredOn, RomDhcp};
        let installer = wanted(Boot::Installer, true);
        let idle = wanted(Boot::Installer, false);
        let disk = wanted(Boot::Disk, false);
        let commanded = |outcome| What::Commanded { command: CommandId(uuid::Uuid::nil()), outcome };
        let progress = What::Progress { run: run(), done: 50 << 20, total: 100 << 20 };
        let login = Login { address: "10.77.0.9".parse().unwrap(), port: 22, host_key: "SHA256:k".into() };
        let rescue = What::Rescue { run: run(), attempt: 1, login };
        let situations: Vec<Situation<'_>> = vec![
            (&installer, vec![], 0, Stands::Stuck, "Nothing was ever heard"),
            (
                &installer,
                vec![(0, What::Stage(PoweredOn))],
                300,
                Stands::Busy,
                "Powered on, has not asked for an address",
            ),
            (
                &installer,
                vec![(0, What::Stage(PoweredOn))],
                900,
                Stands::Stuck,
                "Powered on, has not asked for an address",
            ),
            (
                &installer,
                vec![(0, What::Stage(RomDhcp(Firmware::Uefi)))],
                90,
                Stands::Stuck,
                "never asked for its loader",
            ),
            (&installer, vec![(0, What::Stage(Initramfs))], 30, Stands::Busy, "its installer has not connected"),
            (&installer, vec![(0, connected()), (1, progress.clone())], 60, Stands::Busy, "50 %"),
            (&installer, vec![(0, connected()), (1, progress)], 3600, Stands::Stuck, "got no further"),
            (&installer, vec![(0, connected()), (1, What::Lost)], 60, Stands::Stuck, "no longer heard of"),
            (
                &installer,
                vec![(0, What::Power(Power::Off))],
                60,
                Stands::Stuck,
                "switched off, and its installer is wanted",
            ),
            (&disk, vec![(0, What::Power(Power::Off))], 60, Stands::Well, "nobody wants it on"),
            (&installer, vec![(0, connected())], 60, Stands::Busy, "has its order"),
            (&installer, vec![(0, connected())], 900, Stands::Stuck, "has not begun its order"),
            (&disk, vec![(0, connected()), (9, rescue)], 60, Stands::Well, "in rescue"),
            (&idle, vec![(0, connected())], 60, Stands::Well, "waits to be told what to do"),
            (&disk, vec![(0, What::PhonedHome { run: run() })], 60, Stands::Well, "called home"),
            (&disk, vec![(0, What::Stage(Stage::OsDhcp))], 90_000, Stands::Well, "boots its own disk"),
            (
                &installer,
                vec![(0, commanded(Outcome::Failed("no answer".into())))],
                60,
                Stands::Stuck,
                "could not be switched: no answer",
            ),
            (
                &disk,
                vec![
                    (0, commanded(Outcome::Failed("no answer".into()))),
                    (9, What::Stage(PoweredOn)),
                    (60, What::PhonedHome { run: run() }),
                ],
                61,
                Stands::Well,
                "called home",
            ),
            (
                &installer,
                vec![(0, What::TicketRefused { reason: "used before".into() })],
                60,
                Stands::Stuck,
                "not let in: used before",
            ),
            (
                &installer,
                vec![(0, connected()), (9, failed(Cause::DisksDiffer, "lists [a], has [b]\nlog"))],
                60,
                Stands::Faulty,
                "other parts than were accepted: lists [a], has [b].",
            ),
            (
                &installer,
                vec![(0, failed(Cause::Image, "no chunk")), (9, What::Stage(Stage::OrderStarted(run())))],
                60,
                Stands::Busy,
                "Installer is at work",
            ),
        ];
        for (wanted, happened, seconds, stands, words) in situations {
            let events = told(happened);
            let explained = explain(&evidence(Some(wanted), &events, seconds));
            assert_eq!(explained.stands, stands, "{explained:?}");
            assert!(explained.verdict.contains(words), "{words}: {explained:?}");
        }
    }

    #[test]
    fn a_disk_that_failed_is_named_as_it_is_found() {
        let events = told([(0, connected()), (9, failed(Cause::DiskError, "disk eui.0025: writing failed"))]);
        let explained = explain(&evidence(None, &events, 60));
        assert_eq!(explained.part.as_deref(), Some("replace the disk nvme0n1 (Flash 9, serial number S123)"));
    }

    #[test]
    fn a_machine_that_is_open_says_who_has_it() {
        let open = Evidence { opened: Some("ada replaces disk sda".into()), ..evidence(None, &[], 0) };
        let explained = explain(&open);
        assert_eq!(
            (explained.stands, explained.verdict.as_str()),
            (Stands::Busy, "It is open: ada replaces disk sda.")
        );
        assert!(explained.next[0].contains("`rackhand-diag replace-part web-1`"), "{explained:?}");
    }

    #[test]
    fn what_explains_more_comes_first_and_the_rest_is_told_beside_it() {
        let installer = wanted(Boot::Installer, true);
        let events = told([(0, What::Stage(Stage::PoweredOn))]);
        let verdict = Verdict {
            state: State::Critical,
            since: at(0),
            causes: vec![cause(State::Critical, "FAN2"), cause(State::Warning, "FAN3")],
        };
        let mut evidence = evidence(Some(&installer), &events, 3600);
        evidence.standing = standing(Some(verdict), Some("does not answer within 12 s"));
        evidence.away = Some("not connected for 5 min");
        let explained = explain(&evidence);
        assert_eq!(explained.part.as_deref(), Some("replace the fan FAN2"));
        assert_eq!(explained.because.len(), 2);
        let also = explained.also.join("\n");
        for words in ["has not asked for an address", "BMC does not answer", "controller is out of reach"] {
            assert!(also.contains(words), "{words}: {also}");
        }
        evidence.boot_heard = None;
        assert!(explain(&evidence).verdict.contains("boot process does not run"));
        evidence.boot_heard = Some(Duration::ZERO);
        evidence.standing = standing(None, None);
        evidence.node = Some(&NodeHealth { load: 0, memory: (0, 1), disk: (97, 100), uptime: 1 });
        assert!(explain(&evidence).also.join(" ").contains("97 % full"));
    }

    fn any_what() -> impl Strategy<Value = What> {
        let stages = prop::sample::select(vec![
            Stage::PoweredOn,
            Stage::RomDhcp(Firmware::Bios),
            Stage::Loader("a".into()),
            Stage::IpxeDhcp,
            Stage::Script("disk".into()),
            Stage::Kernel,
            Stage::Initramfs,
            Stage::Installer,
            Stage::Inventoried,
            Stage::OrderStarted(run()),
            Stage::ImageWritten,
            Stage::SettingsWritten,
            Stage::Rebooting,
            Stage::OsDhcp,
            Stage::Erased,
        ]);
        let outcomes = prop::sample::select(vec![
            Outcome::Done,
            Outcome::Unknown,
            Outcome::Refused(String::new()),
            Outcome::Failed("no".into()),
        ]);
        prop_oneof![
            8 => stages.prop_map(What::Stage),
            2 => outcomes.prop_map(|outcome| What::Commanded { command: CommandId(uuid::Uuid::nil()), outcome }),
            1 => Just(What::Lost),
            1 => Just(connected()),
            1 => prop::sample::select(vec![Power::On, Power::Off]).prop_map(What::Power),
            1 => Just(What::PhonedHome { run: run() }),
            1 => (0u64..9, 0u64..9).prop_map(|(done, total)| What::Progress { run: run(), done, total }),
            1 => prop::sample::select(vec![Cause::Image, Cause::Verify, Cause::Internal, Cause::BootOrder, Cause::WrongMachine])
                .prop_map(|cause| failed(cause, "")),
            1 => Just(What::TicketRefused { reason: String::new() }),
        ]
    }

    proptest! {
        /// Whatever happened, also with a clock that was set back: there is one verdict, and whoever
        /// has to act is told how.
        #[test]
        fn there_is_always_something_to_do_about_what_is_wrong(
            happened in prop::collection::vec((0i64..5000, any_what()), 0..12),
            boots_installer in any::<bool>(),
            has_order in any::<bool>(),
            is_away in any::<bool>(),
            seconds in -100i64..10_000,
        ) {
            let wanted = wanted(if boots_installer { Boot::Installer } else { Boot::Disk }, has_order);
            let events = told(happened);
            let mut evidence = evidence(Some(&wanted), &events, seconds);
            evidence.away = is_away.then_some("gone");
            let explained = explain(&evidence);
            prop_assert!(explained.verdict.ends_with('.'), "{:?}", explained);
            prop_assert!(explained.stands < Stands::Doubtful || !explained.next.is_empty(), "{:?}", explained);
            prop_assert!(!explained.also.contains(&explained.verdict), "{:?}", explained);
            let later = Evidence { now: evidence.now + SignedDuration::from_hours(24), ..evidence.clone() };
            prop_assert!(explain(&later).stands != Stands::Busy, "busy for a day: {:?}", explain(&later));
        }
    }
}
