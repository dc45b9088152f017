//! `cargo xtask bench boot`: how long a machine takes from power-on to a connected installer
//! and from a deploy call to a login, stage by stage, and what writing the image costs beside
//! `curl | zstd -d | dd` in the same virtual machine. Prints what `docs/performance.md` shows.

use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use rackhand_common::{
    event::{Event, Stage, What},
    machine::Firmware,
};

use crate::{
    machine::Machine,
    narrator::node_timeline,
    rack::{Care, DISK, Parts, Rack},
    reference,
    story::{address, name},
};

const PATIENCE: Duration = Duration::from_secs(900);

/// Whose time a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Firmware, kernel and installed system.
    Theirs,
    /// What this project serves or does.
    Ours,
}

/// A stretch of a machine's way: it ends with the first event that fits.
pub(crate) struct Stretch {
    name: &'static str,
    owner: Owner,
    ends: fn(&What) -> bool,
}

pub(crate) const TO_INSTALLER: &[Stretch] = &[
    Stretch {
        name: "firmware until its first DHCP",
        owner: Owner::Theirs,
        ends: |what| matches!(what, What::Stage(Stage::RomDhcp(_) | Stage::IpxeDhcp)),
    },
    Stretch {
        name: "DHCP, loader, script",
        owner: Owner::Theirs,
        ends: |what| matches!(what, What::Stage(Stage::Script(_))),
    },
    Stretch {
        name: "fetch kernel and initramfs",
        owner: Owner::Ours,
        ends: |what| matches!(what, What::Stage(Stage::Initramfs)),
    },
    Stretch {
        name: "kernel starts, installer connects",
        owner: Owner::Theirs,
        ends: |what| matches!(what, What::Stage(Stage::Installer)),
    },
    Stretch { name: "inventory", owner: Owner::Ours, ends: |what| matches!(what, What::Connected { .. }) },
];

const TO_DISK: &[Stretch] = &[
    Stretch {
        name: "API call to installer's first write",
        owner: Owner::Ours,
        ends: |what| matches!(what, What::Stage(Stage::OrderStarted(_))),
    },
    Stretch {
        name: "image written and flushed",
        owner: Owner::Ours,
        ends: |what| matches!(what, What::Stage(Stage::ImageWritten)),
    },
    Stretch { name: "settings, boot order", owner: Owner::Ours, ends: |what| matches!(what, What::Done { .. }) },
    Stretch {
        name: "hand-over to reboot",
        owner: Owner::Ours,
        ends: |what| matches!(what, What::Stage(Stage::Rebooting)),
    },
    Stretch {
        name: "firmware and kernel until DHCP",
        owner: Owner::Theirs,
        ends: |what| matches!(what, What::Stage(Stage::OsDhcp)),
    },
    Stretch {
        name: "cloud-init until it phones home",
        owner: Owner::Theirs,
        ends: |what| matches!(what, What::PhonedHome { .. }),
    },
];

/// Measures every kind of boot `repeat` times.
pub(crate) fn run(parts: &Parts, repeat: usize) -> anyhow::Result<()> {
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        let mut rack = Rack::build("bench", 3, parts, &vec![firmware; repeat], Care::Strict, |_| {})?;
        rack.import()?;
        let mut table = Table::default();
        for machine in rack.machines.clone() {
            measure(&mut rack, &machine, &mut table)?;
        }
        println!("\n### {firmware}, {repeat} machines one after the other\n");
        table.print();
        if firmware == Firmware::Bios {
            beside_reference(&rack, parts, repeat, &table)?;
        }
        rack.tear_down();
    }
    Ok(())
}

fn measure(rack: &mut Rack, machine: &Machine, table: &mut Table) -> anyhow::Result<()> {
    let mac = machine.label.mac;
    let start = Timestamp::now();
    machine.power_on()?;
    rack.operator.wait_for_lifecycle(mac, "discovered", PATIENCE)?;
    table.add("power-on → installer connected", TO_INSTALLER, start, &node_timeline(rack, machine)?);

    let known = rack.operator.machine(mac)?.context("the machine is gone")?;
    rack.operator.ask(&["machine", "adopt", name(&known)?])?;
    rack.operator.wait_for_lifecycle(mac, "ready", PATIENCE)?;
    deploy(rack, machine, "deploy of a waiting machine → login", &[], table)?;

    rack.operator.ask(&["machine", "release", name(&known)?])?;
    rack.operator.wait_for_lifecycle(mac, "ready", PATIENCE)?;
    machine.power_off()?;
    // The controller has to learn that the installer is gone before the next deploy.
    rack.operator.wait_for(mac, "disconnected", PATIENCE, |seen| seen["installer"] == false)?;
    deploy(rack, machine, "deploy of a machine that is off → login", TO_INSTALLER, table)?;
    machine.power_off()
}

fn deploy(
    rack: &mut Rack,
    machine: &Machine,
    title: &'static str,
    before: &[Stretch],
    table: &mut Table,
) -> anyhow::Result<()> {
    let known = rack.operator.machine(machine.label.mac)?.context("the machine is gone")?;
    let key = rack.ssh_key()?.with_extension("pub");
    let (start, clock) = (Timestamp::now(), Instant::now());
    rack.operator.ask(&[
        "machine",
        "deploy",
        name(&known)?,
        "--image",
        "debian-12",
        "--ssh-key",
        &key.to_string_lossy(),
    ])?;
    rack.ssh(&format!("debian@{}", address(&known)?), "true", PATIENCE)?;
    let login = clock.elapsed();
    rack.operator.wait_for_lifecycle(machine.label.mac, "active", PATIENCE)?;
    let events = node_timeline(rack, machine)?;
    let split = before.iter().chain(TO_DISK);
    table.add_all(title, split, start, &events);
    table.put(title, "login over SSH answered", None, login);
    Ok(())
}

/// Figures by title and stretch, in the order they were first put.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

struct Row {
    title: &'static str,
    name: &'static str,
    owner: Option<Owner>,
    times: Vec<Duration>,
}

impl Table {
    pub(crate) fn add(&mut self, title: &'static str, stretches: &[Stretch], start: Timestamp, events: &[Event]) {
        self.add_all(title, stretches.iter(), start, events);
    }

    fn add_all<'a>(
        &mut self,
        title: &'static str,
        stretches: impl Iterator<Item = &'a Stretch>,
        start: Timestamp,
        events: &[Event],
    ) {
        let mut from = start;
        for stretch in stretches {
            let Some(end) = events.iter().find(|event| event.at >= from && (stretch.ends)(&event.what)) else {
                continue;
            };
            self.put(title, stretch.name, Some(stretch.owner), between(from, end.at));
            from = end.at;
        }
        self.put(title, "all of it", None, between(start, from));
    }

    fn put(&mut self, title: &'static str, name: &'static str, owner: Option<Owner>, time: Duration) {
        match self.0.iter_mut().find(|row| row.title == title && row.name == name) {
            Some(row) => row.times.push(time),
            None => self.0.push(Row { title, name, owner, times: vec![time] }),
        }
    }

    fn median(&self, title: &str, name: &str) -> Option<Duration> {
        self.0.iter().find(|row| row.title == title && row.name == name).map(|row| median(&row.times))
    }

    pub(crate) fn print(&self) {
        let mut titles: Vec<&str> = self.0.iter().map(|row| row.title).collect();
        titles.dedup();
        for title in titles {
            println!("| {title} | whose | median s | min–max s |\n|---|---|---:|---:|");
            for row in self.0.iter().filter(|row| row.title == title) {
                let owner = match row.owner {
                    Some(Owner::Ours) => "ours",
                    Some(Owner::Theirs) => "theirs",
                    None => "",
                };
                println!(
                    "| {} | {owner} | {:.2} | {} |",
                    row.name,
                    median(&row.times).as_secs_f64(),
                    spread(&row.times)
                );
            }
            let ours = self.0.iter().filter(|row| row.title == title && row.owner == Some(Owner::Ours));
            let ours: f64 = ours.map(|row| median(&row.times).as_secs_f64()).sum();
            let all = self.median(title, "all of it").unwrap_or_default().as_secs_f64();
            println!("| share that is ours | | {:.0} % | |\n", 100.0 * ours / all.max(0.001));
        }
    }
}

fn beside_reference(rack: &Rack, parts: &Parts, repeat: usize, table: &Table) -> anyhow::Result<()> {
    let directory = &rack.files.directory;
    let initramfs = reference::initramfs(&parts.installer, directory)?;
    let mut times = Vec::new();
    for _ in 0..repeat {
        let seconds = reference::write(&rack.cabling, &parts.installer, &initramfs, directory, &parts.image, DISK)?;
        times.push(Duration::from_secs_f64(seconds));
    }
    let ours = table
        .median("deploy of a waiting machine → login", "image written and flushed")
        .context("no image was written")?;
    println!("| writing the image in the same virtual machine | median s | min–max s |\n|---|---:|---:|");
    println!("| Rackhand's installer, chunks verified before decoding | {:.2} | |", ours.as_secs_f64());
    println!(
        "| `curl \\| zstd -dc \\| dd bs=4M oflag=direct` | {:.2} | {} |",
        median(&times).as_secs_f64(),
        spread(&times)
    );
    Ok(())
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn spread(times: &[Duration]) -> String {
    let (least, most) = (times.iter().min(), times.iter().max());
    format!("{:.2}–{:.2}", least.map_or(0.0, Duration::as_secs_f64), most.map_or(0.0, Duration::as_secs_f64))
}
