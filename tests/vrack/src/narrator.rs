//! Tells what happens in a rack while it happens, from what the node's own tool and the
//! controller say: if it says "DHCP", a boot ROM sent it.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::bail;
use jiff::Timestamp;
use rackhand_common::{
    event::{Event, Stage, What},
    machine::Power,
};

use crate::{
    machine::Machine,
    operator::{COLUMNS, Operator},
    rack::Rack,
    run::output,
};

const LOOK: Duration = Duration::from_millis(300);

/// How long after something happened everything before it is known too.
const SETTLED: Duration = Duration::from_millis(1500);

/// Percents between two lines of progress: at most five lines a disk.
const STEP: u64 = 20;

/// Tells each thing once.
#[derive(Debug)]
pub(crate) struct Narrator {
    /// When the present chapter began: what times are counted from.
    since: Timestamp,
    machines: BTreeMap<String, Told>,
    /// Seen, and not told yet: what happened before it may still be on its way.
    pending: Vec<Line>,
}

#[derive(Debug, Default)]
struct Told {
    /// What was told, by its debug form: two things may have happened in one microsecond.
    events: HashSet<String>,
    lifecycle: String,
    percent: u64,
}

/// Something to tell, and when it happened.
type Line = (Timestamp, String);

impl Narrator {
    /// One that counts from now on.
    pub(crate) fn new() -> Self {
        Self { since: Timestamp::now(), machines: BTreeMap::new(), pending: Vec::new() }
    }

    /// A new chapter of the story; times count from here.
    pub(crate) fn chapter(&mut self, title: &str) {
        self.since = Timestamp::now();
        for told in self.machines.values_mut() {
            told.percent = 0;
        }
        println!("\n── {title}");
    }

    /// Tells the machines' stories until `done`.
    pub(crate) fn until(
        &mut self,
        rack: &Rack,
        machines: &[Machine],
        patience: Duration,
        done: impl Fn(&Operator) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + patience;
        loop {
            // Asked before the telling, so that what led to it is told too.
            let finished = done(&rack.operator).unwrap_or(false);
            for machine in machines {
                let news = self.news(rack, machine);
                self.pending.extend(news);
            }
            self.tell(if finished { None } else { Timestamp::now().checked_sub(SETTLED).ok() });
            if finished {
                return Ok(());
            }
            rack.check()?;
            if Instant::now() > end {
                bail!("not done after {patience:?}; logs are in {}", rack.files.directory.join("logs").display());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Tells in their order what happened before `until`, or all.
    fn tell(&mut self, until: Option<Timestamp>) {
        self.pending.sort();
        let ripe = self.pending.iter().take_while(|(at, _)| until.is_none_or(|until| *at < until)).count();
        for (at, line) in self.pending.drain(..ripe) {
            let seconds = at.duration_since(self.since).as_secs_f64();
            let line: String = format!("{seconds:>6.1} s  {line}").chars().take(COLUMNS).collect();
            println!("{line}");
        }
    }

    /// What was not seen yet. Node and controller may be between two starts: the next look
    /// sees what this one missed.
    fn news(&mut self, rack: &Rack, machine: &Machine) -> Vec<Line> {
        let told = self.machines.entry(machine.label.serial.clone()).or_default();
        let mut lines = Vec::new();
        let mut say = |at, what: String| {
            lines.push((at, format!("{} {:4}  {what}", machine.label.serial, machine.label.firmware)));
        };
        for event in node_timeline(rack, machine).unwrap_or_default() {
            if told.events.insert(format!("{event:?}"))
                && let Some(what) = told.words(&event.what)
            {
                say(event.at, what);
            }
        }
        if let Ok(Some(seen)) = rack.operator.machine(machine.label.mac) {
            let lifecycle = seen["lifecycle"].as_str().unwrap_or_default();
            if lifecycle != told.lifecycle {
                told.lifecycle = lifecycle.to_owned();
                say(Timestamp::now(), format!("══ {}: {lifecycle}", seen["name"].as_str().unwrap_or("?")));
            }
        }
        lines
    }
}

impl Told {
    /// What an event is to whoever watches, if anything.
    fn words(&mut self, what: &What) -> Option<String> {
        Some(match what {
            told @ (What::Erased { .. }
            | What::Tested { .. }
            | What::Rescue { .. }
            | What::PartReplaced(_)
            | What::Updated { .. }) => told.to_string(),
            What::Progress { done, total, .. } => {
                let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(100);
                if percent < self.percent {
                    // Begun again, after a reset.
                    self.percent = 0;
                }
                if percent < self.percent + STEP || percent >= 100 {
                    return None;
                }
                self.percent = percent / STEP * STEP;
                format!("disk: {percent} % of {} MiB", total >> 20)
            }
            What::Stage(stage) => match stage {
                Stage::PoweredOn => "power: switched on by the node".into(),
                Stage::RomDhcp(firmware) => format!("DHCP: its {firmware} boot ROM has an address"),
                Stage::Loader(file) => format!("loader: fetched {file} by TFTP"),
                Stage::IpxeDhcp => "DHCP: iPXE has the same address".into(),
                Stage::Script(target) => format!("script: iPXE is told to start {target}"),
                Stage::Kernel => "kernel: fetched by HTTP".into(),
                Stage::Initramfs => "kernel: fetched its initial RAM disk".into(),
                Stage::Installer => "installer: runs from RAM and has proven its ticket".into(),
                Stage::OrderStarted(_) => "installer: begins its work".into(),
                Stage::ImageWritten => "disk: image written and flushed".into(),
                Stage::SettingsWritten => "disk: settings and boot order written".into(),
                Stage::Rebooting => "reboot: into its own disk".into(),
                Stage::OsDhcp => "DHCP: the installed system has the same address".into(),
                Stage::Erased => "disk: overwritten and read back".into(),
                Stage::Tested => "installer: its tests are over".into(),
                Stage::Inventoried => return None,
            },
            What::Connected { inventory, .. } => {
                let disks: Vec<_> = inventory
                    .disks
                    .iter()
                    .map(|disk| format!("{} GiB {}", disk.size >> 30, disk.identity().unwrap_or_default()))
                    .collect();
                format!("inventory: {} MiB memory, disks: {}", inventory.memory >> 20, disks.join(", "))
            }
            What::PhonedHome { .. } => "cloud-init: done, the system called home".into(),
            What::Lost => "installer: is not heard of any more".into(),
            What::Power(Power::Off) => "power: switched off by the node".into(),
            What::Failed { cause, detail, .. } => {
                format!("failed: {cause:?}: {}", detail.lines().next().unwrap_or_default())
            }
            What::TicketRefused { .. } | What::Gap { .. } | What::Health(_) => what.to_string(),
            What::Power(Power::On)
            | What::Done { .. }
            | What::Commanded { .. }
            | What::Node(_)
            | What::Hardware { .. }
            | What::RangeFull { .. }
            | What::BmcFound(_)
            | What::BmcGone { .. }
            | What::Management(_) => {
                return None;
            }
        })
    }
}

/// What the node knows of a machine: the technician's view, without the controller.
pub(crate) fn node_timeline(rack: &Rack, machine: &Machine) -> anyhow::Result<Vec<Event>> {
    let mac = machine.label.mac.to_string();
    let text = output(&mut rack.technician(&["timeline", &mac, "--output", "json"]))?;
    Ok(serde_json::from_str(&text)?)
}
