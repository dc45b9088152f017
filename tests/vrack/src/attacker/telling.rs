//! Machines that tell more than anybody wants to know: each with a ticket of its own, and
//! inventories and reports that are always others, as long as they may be.

use std::{
    fs,
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rackhand_common::{
    channel::{News, Report},
    event::{Cause, DiskWork},
    id::RunId,
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, System},
};

use super::{
    client::{Installer, ask_from, obtain, until},
    intruder::any_mac,
    range::{LEASE, Machine, PATIENCE, Range},
    wire::Card,
};
use crate::{run::run, services::Service};

/// How long one machine tells what it can.
const LASTS: Duration = Duration::from_secs(8);

/// What one machine may bring into the spool in that time: two inventories, and twenty reports
/// of which a third are as long.
const ONE: u64 = 2 << 20;

/// What the spool takes, of all of them: bytes of events.
const MAX_BYTES: u64 = 64 << 20;

/// How long its file may become with that.
const ALL: u64 = 160 << 20;

/// So many machines have more to tell than the spool takes.
const CROWD: u64 = 95;

/// What somebody tells: how, where and what.
type Told = (&'static str, &'static str, String);

/// A session of the intruder's own, and what became of what it told.
struct Teller {
    installer: Installer,
    kept: u64,
    bytes: u64,
    refused: u64,
}

impl Teller {
    /// A card of this number on its way from an address to a session.
    fn admitted(number: u64) -> anyhow::Result<Self> {
        let mac = any_mac(number);
        let card = Card::open("net0")?;
        // The addresses of the attacks before may have to come back first.
        let own = obtain(&card, mac, Instant::now() + LEASE + PATIENCE)?.context("it is given no address")?;
        run("ip", &["-n", Machine::Intruder.namespace(), "addr", "replace", &format!("{own}/24"), "dev", "net0"])?;
        let script = until(Instant::now() + PATIENCE, || script(own, mac))?;
        let installer = Installer::fresh(&script)?;
        let (status, said) = installer.present(&script)?;
        ensure!(status == 200, "it is refused: {status} {said}");
        Ok(Self { installer, kept: 0, bytes: 0, refused: 0 })
    }

    fn tells(&mut self, (method, path, body): Told) -> anyhow::Result<()> {
        match self.installer.ask(method, path, &body)? {
            (204, _) => (self.kept, self.bytes) = (self.kept + 1, self.bytes + body.len() as u64),
            (429, _) => self.refused += 1,
            (status, said) => bail!("{method} {path}: {status} {said}"),
        }
        Ok(())
    }
}

fn report(news: News) -> Told {
    let report = Report { run: RunId::fresh(), attempt: 1, news };
    ("POST", "/v1/report", serde_json::to_string(&report).expect("reports always serialize"))
}

/// As many digits for every number: what is told next is as long as this.
fn digits(number: u64) -> u64 {
    1000 + number % 9000
}

/// The longest report that is kept whole.
fn done(number: u64) -> Told {
    let number = digits(number);
    let work = |disk| {
        let (disk, method) = (format!("disk {number}-{disk}"), "overwrite".into());
        DiskWork { disk, method, bytes: u64::MAX, verified: number }
    };
    report(News::Done { disks: (0..700).map(work).collect() })
}

fn script(own: Ipv4Addr, mac: Mac) -> anyhow::Result<String> {
    let (status, script) = ask_from(own, "GET", &format!("/boot.ipxe?mac={mac}"))?;
    ensure!(status == 200 && script.contains("rackhand.ticket="), "{status} {script}");
    Ok(script)
}

/// As long as it may be, and another for every number.
fn inventory(number: u64) -> Told {
    let number = digits(number);
    let disk = |disk| Disk {
        name: format!("sd{disk}"),
        model: "m".repeat(100),
        serial: format!("{number}-{disk}"),
        wwn: None,
        size: number,
        sector: 512,
        rotational: false,
        content: Content::Data("d".repeat(100)),
    };
    let inventory = Inventory {
        firmware: Firmware::Uefi,
        system: System { vendor: String::new(), product: String::new(), serial: number.to_string(), uuid: None },
        cpu: Cpu { model: String::new(), threads: 1 },
        memory: number,
        nics: vec![],
        disks: (0..190).map(disk).collect(),
    };
    ("PUT", "/v1/inventory", serde_json::to_string(&inventory).expect("inventories always serialize"))
}

fn spool(range: &Range) -> anyhow::Result<u64> {
    Ok(fs::metadata(range.files.state(Service::Boot).join("events.redb"))?.len())
}

/// One machine, as fast as it is answered.
pub(super) fn one(range: &mut Range) -> anyhow::Result<String> {
    let before = spool(range)?;
    let said = range.boots_during(LASTS, |over| {
        let mut teller = Teller::admitted(0x300_0000)?;
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            number += 1;
            let failed = News::Failed { cause: Cause::Internal, detail: "x".repeat(900_000) };
            teller.tells(inventory(number))?;
            for news in [failed, News::Started, News::ImageWritten] {
                teller.tells(report(news))?;
            }
            teller.tells(done(number))?;
            teller.tells(report(News::Progress { done: number, total: 0 }))?;
        }
        let Teller { kept, refused, .. } = teller;
        ensure!(refused > 10, "it was only refused {refused} times, and {kept} things were taken");
        Ok(format!("{kept} things told, {refused} refused"))
    })?;
    let grown = spool(range)?.saturating_sub(before);
    ensure!(grown <= ONE, "the spool has grown by {} MiB ({said})", grown >> 20);
    Ok(format!("{said}; {} KiB more of spool", grown >> 10))
}

/// More machines than the spool has room for.
pub(super) fn many(range: &mut Range) -> anyhow::Result<String> {
    // What was declined in an attack before is forgotten, and the range is whole again.
    range.restart()?;
    let (numbers, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let tells = || -> anyhow::Result<()> {
        loop {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            if number >= CROWD {
                return Ok(());
            }
            let mut teller = Teller::admitted(0x310_0000 + number)?;
            teller.tells(inventory(number))?;
            for _ in 0..32 {
                if teller.refused == 0 {
                    teller.tells(done(number))?;
                }
            }
            ensure!(teller.refused > 0, "all that a machine told was kept");
            bytes.fetch_add(teller.bytes, Ordering::Relaxed);
        }
    };
    let said = range.boots_during(LASTS, |_| {
        thread::scope(|scope| {
            let crowd: Vec<_> = (0..4).map(|_| scope.spawn(|| Machine::Intruder.acts(tells))).collect();
            crowd.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| bail!("panicked")))
        })?;
        let told = bytes.load(Ordering::Relaxed);
        ensure!(told > MAX_BYTES + (MAX_BYTES >> 2), "only {} MiB were told", told >> 20);
        Ok(format!("{} MiB told by {CROWD} machines", told >> 20))
    })?;
    let spool = spool(range)?;
    ensure!(spool <= ALL, "the spool has {} MiB ({said})", spool >> 20);
    Ok(format!("{said}; {} MiB of spool", spool >> 20))
}
