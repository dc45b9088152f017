//! What a machine of a plan is expected to have in it, part by part, and what one that was looked at
//! has otherwise: findings, each with the slot that somebody goes to.
//!
//! A plan's [`Rules`](crate::plan::Rules) say which machines are of its class; what is expected of
//! them says what each of these must have to be whole. Of machines whose make and model the rules
//! name, each is held against the plan that it comes nearest to: one that lacks a memory module is
//! still one of its class.
//!
//! Invariants:
//! - What was suggested from a machine finds nothing in it, and something once any part of it is gone.
//! - Counts are exact: a part too many is a finding too. Sizes, speeds, lanes and versions are "at least".
//! - What a machine does not tell is not held against it, except that it tells nothing at all.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use rackhand_common::{
    hardware::{Dimm, Hardware},
    machine::{Disk, Inventory},
};
use serde::{Deserialize, Serialize};

use crate::plan::{Kind, Rules};

/// The most entries of one kind.
pub const MAX_ENTRIES: usize = 128;

/// The longest text, in bytes.
pub const MAX_TEXT: usize = 64;

/// What is expected. What is left out is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expects {
    /// A machine with a finding is not deployed.
    #[serde(skip_serializing_if = "is_false")]
    pub strict: bool,
    /// Its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// So many processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processors: Option<u32>,
    /// Its disks, by kind and size.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disks>,
    /// Its network ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
    /// PCI devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Devices>,
    /// Versions of firmware.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub firmware: Vec<Firmware>,
    /// Firmware that it is to have, by the names of what was imported; each at exactly its version.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub baseline: Vec<String>,
}

/// Memory that is expected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Bytes of all modules together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Slots that have a module in them; no others have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<String>,
    /// Bytes of each module, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Megatransfers per second of each, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u32>,
}

/// So many disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disks {
    /// How many.
    pub count: u32,
    /// Of this kind.
    pub kind: Kind,
    /// Bytes of each, at least.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub least: u64,
    /// Bytes of each, at most.
    #[serde(default = "any_size", skip_serializing_if = "is_any_size")]
    pub most: u64,
}

fn any_size() -> u64 {
    u64::MAX
}

fn is_any_size(size: &u64) -> bool {
    *size == any_size()
}

fn is_zero(size: &u64) -> bool {
    *size == 0
}

/// So many network ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// How many.
    pub count: u32,
    /// By this kernel driver.
    pub driver: String,
    /// Megabits per second of each that has a link, at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<u32>,
}

/// So many PCI devices of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// How many.
    pub count: u32,
    /// Vendor and device id, four hexadecimal digits each: `15b3:1017`.
    pub id: String,
    /// Lanes of each one's link, at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<u32>,
}

/// Firmware of at least this version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    /// Whose: `bios`, a kernel driver of network cards, or a disk's model.
    pub of: String,
    /// The version.
    pub version: String,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Kinds of parts that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// A memory module or slot.
    Memory,
    /// A processor or socket.
    Processor,
    /// A disk.
    Disk,
    /// A network port.
    Port,
    /// A PCI device or its link.
    Device,
    /// A version of firmware.
    Firmware,
    /// The machine as a whole.
    Machine,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What kind of part.
    pub component: Component,
    /// Where: a slot's name, a disk's or port's, or empty.
    pub place: String,
    /// What is wrong, for people.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a machine was held against, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examined {
    /// The plan's name; none when no plan expects anything of a machine like this.
    pub plan: Option<String>,
    /// Whether that refuses deploys with a finding.
    pub strict: bool,
    /// What is not as it should be, also what needs no plan to be wrong.
    pub findings: Vec<Finding>,
}

/// Holds a machine against the plan it comes nearest to: of those whose make, model, firmware and
/// processor it has, the one with the fewest findings, and of these the first by name.
pub fn examine<'a>(
    plans: impl IntoIterator<Item = (&'a str, &'a Rules)>,
    inventory: &Inventory,
    hardware: Option<&Hardware>,
) -> Examined {
    let of_its_make = plans.into_iter().filter_map(|(name, rules)| {
        let expects = rules.expects.as_ref()?;
        rules.names(inventory).then(|| (compare(expects, inventory, hardware), name, expects.strict))
    });
    let nearest = of_its_make.min_by(|(a, a_name, _), (b, b_name, _)| (a.len(), a_name).cmp(&(b.len(), b_name)));
    let worn = hardware.map(|hardware| faults(inventory, hardware)).unwrap_or_default();
    let Some((mut findings, name, strict)) = nearest else {
        return Examined { findings: worn, ..Examined::default() };
    };
    findings.extend(worn);
    Examined { plan: Some(name.to_owned()), strict, findings }
}

/// What is wrong whatever a plan says: a link with fewer lanes than both its ends have, memory that
/// could not be corrected, a disk that says it fails.
pub fn faults(inventory: &Inventory, hardware: &Hardware) -> Vec<Finding> {
    let mut found = Finder::default();
    for device in &hardware.devices {
        let (Some(link), Some(most)) = (device.link, device.most) else { continue };
        if link.lanes >= most.lanes {
            continue;
        }
        let slot = device.slot.as_deref().and_then(|name| hardware.slots.iter().find(|slot| slot.name == name));
        let place = device.slot.clone().unwrap_or_else(|| device.address.clone());
        let text = match slot {
            Some(slot) if slot.lanes > 0 => {
                format!("x{} link in the x{} slot {} ({device})", link.lanes, slot.lanes, slot.name)
            }
            Some(slot) => format!("x{} link in slot {}, x{} is possible ({device})", link.lanes, slot.name, most.lanes),
            None => format!("x{} link, x{} is possible ({device})", link.lanes, most.lanes),
        };
        found.note(Component::Device, place, text);
    }
    for ecc in hardware.ecc.iter().filter(|ecc| ecc.uncorrected > 0) {
        let text = format!("memory {} had {} errors that could not be corrected", ecc.label, ecc.uncorrected);
        found.note(Component::Memory, ecc.label.clone(), text);
    }
    for drive in &hardware.drives {
        let Some(health) = drive.health.as_ref().filter(|health| !health.failing.is_empty()) else { continue };
        let disk = inventory.disks.iter().find(|disk| disk.name == drive.name);
        let name = disk.and_then(Disk::identity).unwrap_or_else(|| drive.name.clone());
        found.note(Component::Disk, drive.name.clone(), format!("disk {name} fails: {}", health.failing.join(", ")));
    }
    found.0
}

#[derive(Default)]
struct Finder(Vec<Finding>);

impl Finder {
    fn note(&mut self, component: Component, place: impl Into<String>, text: String) {
        self.0.push(Finding { component, place: place.into(), text });
    }
}

/// What a machine has otherwise than is expected of it.
pub fn compare(expects: &Expects, inventory: &Inventory, hardware: Option<&Hardware>) -> Vec<Finding> {
    let mut found = Finder::default();
    let Some(hardware) = hardware else {
        let text = "its slots are not known: have a current installer look, with `rackhand machine inspect`";
        found.note(Component::Machine, "", text.into());
        return found.0;
    };
    if let Some(memory) = &expects.memory {
        memory.compare(hardware, &mut found);
    }
    if let Some(wanted) = expects.processors
        && !hardware.processors.is_empty()
    {
        let (full, empty): (Vec<_>, Vec<_>) = hardware.processors.iter().partition(|socket| socket.populated);
        let (has, wanted) = (full.len(), wanted as usize);
        let socket = empty.first().map_or("", |socket| &socket.slot);
        match has.cmp(&wanted) {
            Ordering::Less if !socket.is_empty() => {
                found.note(Component::Processor, socket, format!("processor {socket} is missing: {has} of {wanted}"));
            }
            Ordering::Less => {
                found.note(Component::Processor, "", format!("a processor is missing: {has} of {wanted}"))
            }
            Ordering::Equal => {}
            Ordering::Greater => {
                found.note(Component::Processor, "", format!("{has} processors where {wanted} are expected"));
            }
        }
    }
    compare_disks(&expects.disks, inventory, &mut found);
    compare_ports(&expects.ports, inventory, hardware, &mut found);
    compare_devices(&expects.devices, hardware, &mut found);
    for firmware in &expects.firmware {
        firmware.compare(inventory, hardware, &mut found);
    }
    found.0
}

impl Memory {
    fn compare(&self, hardware: &Hardware, found: &mut Finder) {
        let full: Vec<&Dimm> = hardware.memory.iter().filter(|dimm| dimm.size > 0).collect();
        // Firmware that tells of no module tells nothing of memory at all.
        if full.is_empty() {
            return;
        }
        let has: BTreeSet<_> = full.iter().map(|dimm| dimm.slot.as_str()).collect();
        let wanted: BTreeSet<_> = self.slots.iter().map(String::as_str).collect();
        if !wanted.is_empty() {
            let present = wanted.intersection(&has).count();
            for slot in wanted.difference(&has) {
                found.note(Component::Memory, *slot, format!("DIMM {slot} is missing: {present} of {}", wanted.len()));
            }
            for slot in has.difference(&wanted) {
                found.note(Component::Memory, *slot, format!("DIMM {slot} is not expected there"));
            }
        }
        for dimm in &full {
            let Dimm { slot, size, speed, .. } = dimm;
            if let Some(wanted) = self.size.filter(|wanted| size < wanted) {
                let text = format!("DIMM {slot} has {}, {} is expected", gib(*size), gib(wanted));
                found.note(Component::Memory, slot, text);
            }
            if let Some(wanted) = self.speed.filter(|wanted| *speed != 0 && speed < wanted) {
                let text = format!("DIMM {slot} runs at {speed} MT/s, {wanted} is expected");
                found.note(Component::Memory, slot, text);
            }
        }
        let total: u64 = full.iter().map(|dimm| dimm.size).fold(0, u64::saturating_add);
        // When slots are named, whatever is missing was said.
        if let Some(wanted) = self.total.filter(|wanted| *wanted != total && self.slots.is_empty()) {
            found.note(Component::Memory, "", format!("{} of memory, {} is expected", gib(total), gib(wanted)));
        }
    }
}

/// Bytes in GiB, to a tenth.
fn gib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

impl Disks {
    fn takes(&self, disk: &Disk) -> bool {
        Kind::of(disk) == self.kind && (self.least..=self.most).contains(&disk.size)
    }
}

fn compare_disks(wanted: &[Disks], inventory: &Inventory, found: &mut Finder) {
    if wanted.is_empty() {
        return;
    }
    // Each disk counts for the first entry that takes it and is not full.
    let mut has = vec![0u32; wanted.len()];
    for disk in &inventory.disks {
        let open = |(at, entry): &(usize, &Disks)| entry.takes(disk) && has[*at] < entry.count;
        match wanted.iter().enumerate().find(open) {
            Some((at, _)) => has[at] += 1,
            None => {
                let name = disk.identity().unwrap_or_else(|| disk.name.clone());
                let text = format!("disk {name} is not expected: {} of {}", Kind::of(disk), gib(disk.size));
                found.note(Component::Disk, &disk.name, text);
            }
        }
    }
    for (has, entry) in has.into_iter().zip(wanted) {
        let Disks { count, kind, least, .. } = entry;
        for _ in has..(*count).min(has.saturating_add(MAX_ENTRIES as u32)) {
            let text = format!("a {kind} disk of at least {} is missing: {has} of {count}", gib(*least));
            found.note(Component::Disk, "", text);
        }
    }
}

fn compare_ports(wanted: &[Ports], inventory: &Inventory, hardware: &Hardware, found: &mut Finder) {
    for Ports { count, driver, speed } in wanted {
        let nics: Vec<_> = inventory.nics.iter().filter(|nic| nic.driver == *driver).collect();
        let has = nics.len();
        if has != *count as usize {
            found.note(Component::Port, "", format!("{has} network ports by {driver}, {count} are expected"));
        }
        for nic in nics {
            let told = hardware.ports.iter().find(|port| port.name == nic.name).and_then(|port| port.speed);
            if let (Some(wanted), Some(told)) = (speed, told)
                && told < *wanted
            {
                let text = format!("port {} ({}) runs at {told} Mb/s, {wanted} is expected", nic.name, nic.mac);
                found.note(Component::Port, &nic.name, text);
            }
        }
    }
}

fn compare_devices(wanted: &[Devices], hardware: &Hardware, found: &mut Finder) {
    for Devices { count, id, lanes } in wanted {
        let is_one = |vendor: u16, device: u16| id.eq_ignore_ascii_case(&format!("{vendor:04x}:{device:04x}"));
        let devices: Vec<_> = hardware.devices.iter().filter(|one| is_one(one.vendor, one.device)).collect();
        let has = devices.len();
        if has != *count as usize {
            found.note(Component::Device, "", format!("{has} devices {id}, {count} are expected"));
        }
        for device in devices {
            let (Some(wanted), Some(link)) = (lanes, device.link) else { continue };
            // A link that could be wider was told without a plan.
            let told = device.most.is_some_and(|most| link.lanes < most.lanes);
            if link.lanes < *wanted && !told {
                let place = device.slot.clone().unwrap_or_else(|| device.address.clone());
                let text = format!("x{} link in {place}, x{wanted} is expected ({device})", link.lanes);
                found.note(Component::Device, place, text);
            }
        }
    }
}

impl Firmware {
    fn compare(&self, inventory: &Inventory, hardware: &Hardware, found: &mut Finder) {
        let Self { of, version } = self;
        let mut check = |place: &str, has: &str| {
            if !has.is_empty() && by_version(has, version) == Ordering::Less {
                let text = format!("firmware of {place} is {has}, at least {version} is expected");
                found.note(Component::Firmware, place, text);
            }
        };
        if of == "bios" {
            check("the BIOS", &hardware.bios.version);
        }
        for nic in inventory.nics.iter().filter(|nic| nic.driver == *of) {
            let port = hardware.ports.iter().find(|port| port.name == nic.name);
            check(&nic.name, port.map_or("", |port| &port.firmware));
        }
        for disk in inventory.disks.iter().filter(|disk| disk.model == *of) {
            let drive = hardware.drives.iter().find(|drive| drive.name == disk.name);
            check(&disk.name, drive.map_or("", |drive| &drive.firmware));
        }
    }
}

/// Compares versions as their makers mean them: runs of digits by their numbers, all else by its
/// letters; of two that are alike so far the longer one is later.
pub fn by_version(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(a), Some(b)) => match a.cmp(&b) {
                Ordering::Equal => {}
                other => return other,
            },
        }
    }
}

/// A run of letters, or of digits without their leading zeros: the longer number is the larger.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Letters(String),
    Number(usize, String),
}

fn parts(version: &str) -> impl Iterator<Item = Part> {
    let mut rest = version.trim();
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_digit = rest.chars().next()?.is_ascii_digit();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() || c.is_ascii_digit() != is_digit);
        let (run, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind;
        let digits = run.trim_start_matches('0');
        Some(if is_digit { Part::Number(digits.len(), digits.into()) } else { Part::Letters(run.to_lowercase()) })
    })
}

impl Expects {
    /// What a machine like this one has; nothing is left out that it tells.
    pub fn suggest(inventory: &Inventory, hardware: &Hardware) -> Self {
        let full: Vec<_> = hardware.memory.iter().filter(|dimm| dimm.size > 0).collect();
        let populated = hardware.processors.iter().filter(|socket| socket.populated).count();
        let memory = (!full.is_empty()).then(|| Memory {
            total: Some(full.iter().map(|dimm| dimm.size).fold(0, u64::saturating_add)),
            slots: full.iter().map(|dimm| dimm.slot.clone()).collect(),
            size: full.iter().map(|dimm| dimm.size).min(),
            speed: full.iter().map(|dimm| dimm.speed).filter(|speed| *speed > 0).min(),
        });
        // Disks within a twentieth of each other are of one size: makers differ by as much.
        let mut disks: Vec<Disks> = Vec::new();
        for disk in &inventory.disks {
            match disks.iter_mut().find(|entry| entry.takes(disk)) {
                Some(entry) => entry.count += 1,
                None => disks.push(Disks {
                    count: 1,
                    kind: Kind::of(disk),
                    least: disk.size - disk.size / 20,
                    most: disk.size.saturating_add(disk.size / 20),
                }),
            }
        }
        let mut ports: BTreeMap<&str, (u32, Option<u32>)> = BTreeMap::new();
        for nic in &inventory.nics {
            let told = hardware.ports.iter().find(|port| port.name == nic.name).and_then(|port| port.speed);
            let (count, speed) = ports.entry(&nic.driver).or_default();
            *count += 1;
            *speed = speed.map_or(told, |speed| Some(told.map_or(speed, |told| told.min(speed))));
        }
        let mut devices: BTreeMap<String, (u32, Option<u32>)> = BTreeMap::new();
        for device in &hardware.devices {
            let id = format!("{:04x}:{:04x}", device.vendor, device.device);
            // What it could have: a machine to be copied may have a fault of its own.
            let told = device.most.or(device.link).map(|link| link.lanes);
            let (count, lanes) = devices.entry(id).or_default();
            *count += 1;
            *lanes = lanes.map_or(told, |lanes| Some(told.map_or(lanes, |told| told.min(lanes))));
        }
        let bios = Some(&hardware.bios.version).filter(|version| !version.is_empty());
        Self {
            strict: false,
            memory,
            processors: (populated > 0).then_some(populated as u32),
            disks,
            ports: ports
                .into_iter()
                .map(|(driver, (count, speed))| Ports { count, driver: driver.into(), speed })
                .collect(),
            devices: devices.into_iter().map(|(id, (count, lanes))| Devices { count, id, lanes }).collect(),
            firmware: bios
                .map(|version| Firmware { of: "bios".into(), version: version.clone() })
                .into_iter()
                .collect(),
            baseline: Vec::new(),
        }
    }

    /// What is not sound about it: more than is looked at, or an id that is none.
    pub fn unsound(&self) -> Option<String> {
        let slots = self.memory.as_ref().map_or(0, |memory| memory.slots.len());
        let counts =
            [slots, self.disks.len(), self.ports.len(), self.devices.len(), self.firmware.len(), self.baseline.len()];
        if counts.into_iter().any(|count| count > MAX_ENTRIES) {
            return Some(format!("at most {MAX_ENTRIES} entries of one kind"));
        }
        let slots = self.memory.iter().flat_map(|memory| &memory.slots);
        let drivers = self.ports.iter().map(|ports| &ports.driver);
        let firmware = self.firmware.iter().flat_map(|firmware| [&firmware.of, &firmware.version]);
        if slots
            .chain(drivers)
            .chain(firmware)
            .chain(&self.baseline)
            .any(|text| text.len() > MAX_TEXT || text.chars().any(char::is_control))
        {
            return Some(format!("a text has at most {MAX_TEXT} printable bytes"));
        }
        let is_id = |id: &str| {
            let halves = id.split_once(':');
            halves.is_some_and(|(vendor, device)| {
                [vendor, device].iter().all(|half| half.len() == 4 && half.bytes().all(|byte| byte.is_ascii_hexdigit()))
            })
        };
        let wrong = self.devices.iter().find(|devices| !is_id(&devices.id))?;
        Some(format!("`{}` is no PCI id, as in 15b3:1017", wrong.id))
    }
}

#[cfg(test)]
mod tests;
