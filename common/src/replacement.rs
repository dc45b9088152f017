//! A part of a machine is replaced by a technician at its node: which parts there are, whether what
//! the installer finds afterwards is the machine as it was but for that part, and what the node tells of it.
//!
//! A core without IO. What is compared is what an installer saw before and after; what was typed or
//! scanned is shown where it differs, and decides nothing.
//!
//! Invariants:
//! - [`judge`] finds nothing wrong only if exactly the named part is another one.
//! - A part that tells no serial number of itself is never said to be another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    hardware::Hardware,
    machine::{Inventory, Mac},
};

/// The longest name of a technician or serial number that is taken, in bytes.
pub const MAX_TYPED: usize = 128;

/// The most parts of a machine that are looked at.
const MAX_PARTS: usize = 256;

/// Kinds of parts that are replaced this way. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Known by [`Disk::identity`](crate::machine::Disk::identity), wherever it is plugged in.
    Disk,
    /// Known by its slot.
    Memory,
    /// Known by its slot, or by its PCI address where nothing tells the slot.
    NetworkCard,
}

impl Kind {
    /// The tests that a new one is given, by [name](crate::commission::Script::name).
    pub fn tests(self) -> &'static [&'static str] {
        match self {
            Self::Disk => &["smart", "nvme", "disk-read"],
            Self::Memory => &["memory"],
            Self::NetworkCard => &["nic"],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Memory => "memory module",
            Self::NetworkCard => "network card",
        })
    }
}

/// A part as an installer found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What it is.
    pub kind: Kind,
    /// Where: what is printed beside the slot; of a disk its kernel name, which may change.
    pub slot: String,
    /// What tells it from all others: a disk's identity, a module's serial number, a card's Ethernet
    /// addresses with spaces between them. Empty when it tells nothing.
    pub identity: String,
    /// What is printed on it: a serial number, or a card's first Ethernet address.
    pub serial: String,
    /// Maker, model and size, for people.
    pub about: String,
    /// Bytes of a disk or module; of a card how many of its ports have a link.
    pub amount: u64,
    /// What it says is wrong with it; empty when nothing is.
    pub fault: String,
}

impl Part {
    /// By what it is found again: another part of the same name is in its place.
    fn place(&self) -> (Kind, &str) {
        match self.kind {
            Kind::Disk => (self.kind, &self.identity),
            Kind::Memory | Kind::NetworkCard => (self.kind, &self.slot),
        }
    }

    /// Whether somebody means this one: by its slot or by what is printed on it.
    pub fn is_meant_by(&self, wanted: &str) -> bool {
        let wanted = plain(wanted);
        !wanted.is_empty() && [&self.slot, &self.identity, &self.serial].into_iter().any(|name| plain(name) == wanted)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, slot, serial, about, .. } = self;
        write!(f, "{kind} {slot}")?;
        match (about.as_str(), serial.as_str()) {
            ("", "") => Ok(()),
            ("", serial) => write!(f, " ({serial})"),
            (about, "") => write!(f, " ({about}, tells no serial number)"),
            (about, serial) => write!(f, " ({about}, {serial})"),
        }
    }
}

/// What was found once the part was said to be another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What is in its place.
    pub new: Option<Part>,
    /// What is not as it should be; empty when exactly that part is another one, and does its work.
    pub problems: Vec<String>,
    /// What somebody should know all the same.
    pub notes: Vec<String>,
}

/// A part of a machine was replaced at its node, or somebody is about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReplaced {
    /// Names the replacement.
    pub id: Uuid,
    /// Who does it.
    pub by: String,
    /// When it began, by the node's clock, in whole seconds.
    pub began: Timestamp,
    /// The part that goes.
    pub old: Part,
    /// How far it is.
    pub step: Step,
}

/// How far a replacement is. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The machine is not to be touched by anybody else from now on.
    Begun,
    /// Exactly that part is another one, and nothing speaks against it.
    Done {
        /// What is in its place.
        new: Part,
        /// The serial number that was typed or scanned; empty when none was.
        typed: String,
        /// What somebody should know all the same.
        notes: Vec<String>,
    },
    /// The technician went away from it.
    Abandoned,
}

impl fmt::Display for PartReplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, old, step, .. } = self;
        match step {
            Step::Begun => write!(f, "{by} replaces {old}"),
            Step::Done { new, notes, .. } => {
                write!(f, "{by} has replaced {old} by {new}")?;
                notes.iter().try_for_each(|note| write!(f, "; {note}"))
            }
            Step::Abandoned => write!(f, "{by} does not replace {old} after all"),
        }
    }
}

/// What a technician asks of a replacement; as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// How it stands.
    Show,
    /// This part is to go.
    Begin {
        /// Its slot, or what is printed on it.
        part: String,
        /// Who does it.
        by: String,
    },
    /// Another part is in its place.
    Swapped {
        /// The new one's serial number, when it was typed or scanned.
        typed: Option<String>,
    },
    /// Something is not as it should be: switch the machine off again.
    Again,
    /// It is over, whatever is in the machine now.
    Abandon,
}

/// How a machine stands for somebody who replaces a part of it; as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The machine's name.
    pub machine: String,
    /// Its parts as last seen, and what speaks against each.
    pub parts: Vec<Part>,
    /// The replacement that is under way, or was the latest.
    pub replacement: Option<Shown>,
}

/// A replacement as its technician sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Who does it.
    pub by: String,
    /// When it began.
    pub began: Timestamp,
    /// The part that goes.
    pub old: Part,
    /// How far it is.
    pub stage: Stage,
}

/// How far a replacement is at its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The machine is being switched off.
    SwitchingOff,
    /// The part can be swapped.
    Swap {
        /// Why the node did not do its part, if it did not.
        why: Option<String>,
    },
    /// The machine is being started into its installer, which is waited for.
    Starting {
        /// Since when.
        since: Timestamp,
        /// Why the node could not start it, if it could not.
        why: Option<String>,
    },
    /// The installer told what it found, and not all is as it should be.
    Doubtful(Found),
    /// It is done.
    Done(Found),
    /// It was given up.
    Abandoned,
}

impl Stage {
    /// Whether somebody may have their hands in the machine.
    pub fn is_under_way(&self) -> bool {
        !matches!(self, Self::Done(_) | Self::Abandoned)
    }
}

/// The parts that can be replaced this way, in order of kind and slot.
pub fn parts(inventory: &Inventory, hardware: &Hardware) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for disk in &inventory.disks {
        let health = hardware.drives.iter().find(|drive| drive.name == disk.name);
        let failing = health.and_then(|drive| drive.health.as_ref()).map(|health| health.failing.join(", "));
        parts.push(Part {
            kind: Kind::Disk,
            slot: disk.name.clone(),
            identity: disk.identity().unwrap_or_default(),
            serial: disk.serial.clone(),
            about: words([&disk.model, &size(disk.size)]),
            amount: disk.size,
            fault: failing.unwrap_or_default(),
        });
    }
    for dimm in hardware.memory.iter().filter(|dimm| dimm.size > 0) {
        let wrong = hardware.ecc.iter().find(|ecc| ecc.label == dimm.slot && ecc.uncorrected > 0);
        parts.push(Part {
            kind: Kind::Memory,
            slot: dimm.slot.clone(),
            identity: dimm.serial.clone(),
            serial: dimm.serial.clone(),
            about: words([&dimm.vendor, &dimm.part, &size(dimm.size)]),
            amount: dimm.size,
            fault: wrong.map_or_else(String::new, |ecc| format!("{} errors not corrected", ecc.uncorrected)),
        });
    }
    let mut cards: BTreeMap<String, (BTreeSet<Mac>, u64, String)> = BTreeMap::new();
    for nic in &inventory.nics {
        let port = hardware.ports.iter().find(|port| port.name == nic.name);
        // The functions of one card differ behind the dot.
        let address = port.and_then(|port| port.address.rsplit_once('.')).map(|(card, _)| card.to_owned());
        let is_on =
            |at: &str| address.as_ref().is_some_and(|card| at.rsplit_once('.').is_some_and(|(of, _)| of == card));
        let device = hardware.devices.iter().find(|device| is_on(&device.address));
        let slot = device.and_then(|device| device.slot.clone()).filter(|slot| !slot.is_empty());
        let about =
            device.map_or_else(|| nic.driver.clone(), |device| format!("{} {}", device.maker(), device.purpose()));
        let card = cards.entry(slot.or(address).unwrap_or_else(|| nic.name.clone())).or_default();
        card.0.insert(nic.mac);
        card.1 += u64::from(nic.link);
        card.2 = about;
    }
    parts.extend(cards.into_iter().map(|(slot, (macs, links, about))| {
        let macs: Vec<_> = macs.iter().map(Mac::to_string).collect();
        Part {
            kind: Kind::NetworkCard,
            slot,
            serial: macs.first().cloned().unwrap_or_default(),
            identity: macs.join(" "),
            about,
            amount: links,
            fault: String::new(),
        }
    }));
    parts.sort_by(|one, other| (one.kind, &one.slot).cmp(&(other.kind, &other.slot)));
    parts.truncate(MAX_PARTS);
    parts
}

/// Whether what is found is what was, but for `old`, and what is in its place.
pub fn judge(old: &Part, was: &[Part], is: &[Part], typed: Option<&str>) -> Found {
    let mut found = Found::default();
    let before: BTreeMap<_, _> = was.iter().map(|part| (part.place(), part)).collect();
    let after: BTreeMap<_, _> = is.iter().map(|part| (part.place(), part)).collect();
    let fresh: Vec<_> = is.iter().filter(|part| !before.contains_key(&part.place())).collect();
    let like_it: Vec<_> = fresh.iter().copied().filter(|part| part.kind == old.kind).collect();
    let candidate = match (after.get(&old.place()).copied(), like_it.as_slice()) {
        (Some(same), _) if same.identity == old.identity && !same.identity.is_empty() => {
            found.problems.push(format!("{same} is still there: it is the old one"));
            None
        }
        (Some(same), _) if old.kind == Kind::Disk => {
            found.problems.push(format!("{same} tells no serial number: it cannot be told from the old one"));
            None
        }
        (Some(other), _) => Some(other),
        (None, []) => {
            found.problems.push(format!("{old} is gone, and no new one is found: does it sit well?"));
            None
        }
        (None, [only]) => Some(*only),
        (None, _) => {
            found.problems.push(format!("{old} is gone, and more than one is new"));
            None
        }
    };
    for part in was.iter().filter(|part| part.place() != old.place()) {
        match after.get(&part.place()) {
            None => found.problems.push(format!("{part} is gone, too: does it sit well?")),
            Some(now) if now.identity != part.identity => {
                found.problems.push(format!("{part} is another one, too: {now}"));
            }
            Some(_) => {}
        }
    }
    let is_it = |part: &Part| candidate.is_some_and(|new| new.place() == part.place());
    found.problems.extend(fresh.iter().filter(|part| !is_it(part)).map(|part| format!("{part} is new, too")));
    if let Some(new) = candidate {
        examine(old, new, &mut found);
        if let Some(typed) = typed.filter(|typed| !typed.trim().is_empty() && !new.is_meant_by(typed)) {
            found.notes.push(format!(
                "{:?} was typed, and the new one says that it is {:?}",
                printable(typed),
                new.serial
            ));
        }
        found.new = Some(new.clone());
    }
    found
}

/// What speaks against the new part.
fn examine(old: &Part, new: &Part, found: &mut Found) {
    if new.identity.is_empty() {
        found.problems.push(format!("{new}: it cannot be told from the old one"));
    } else if new.identity == old.identity {
        found.problems.push(format!("{new} is the old one, in another slot"));
    }
    if !new.fault.is_empty() {
        found.problems.push(format!("{new} says that it is failing: {}", new.fault));
    }
    if new.amount >= old.amount {
        return;
    }
    found.problems.push(match new.kind {
        Kind::NetworkCard => {
            format!("{new} has a link on {} ports, the old one had on {}: look at its cables", new.amount, old.amount)
        }
        Kind::Disk | Kind::Memory => format!("{new} is smaller than the old one, which had {}", size(old.amount)),
    });
}

/// A name or serial number as it was typed, fit for terminals and files.
pub fn printable(typed: &str) -> String {
    let printable: String = typed.trim().chars().filter(|c| !c.is_control()).collect();
    printable[..printable.floor_char_boundary(MAX_TYPED)].to_owned()
}

fn plain(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

fn words<const N: usize>(words: [&str; N]) -> String {
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Disks are sold by powers of ten, memory by powers of two; both read well in GiB.
fn size(bytes: u64) -> String {
    if bytes >= 1 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

#[cfg(test)]
mod tests;
