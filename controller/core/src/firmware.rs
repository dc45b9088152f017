//! Firmware as data: manifests that say what a file is for, which of them are for a machine, and what of
//! a machine's firmware is not at the version that its plan wants.
//!
//! A manifest is TOML of few keys, each at most once, documented in `docs/operator/firmware.md`. What is
//! wrong with one is said with the line that it stands on.
//!
//! Invariants:
//! - A manifest names who it is for: a vendor, a board or a device.
//! - A version is compared as it is written, whole: vendors order theirs by rules of their own.
//! - What a machine does not tell of the parts that a manifest names, it has not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use rackhand_common::{
    firmware::{
        MAX_FILE, Parts, Place, Scripted, Update,
        script::{self, MAX_ARGUMENT, MAX_ARGUMENTS},
    },
    hardware::Hardware,
    machine::Inventory,
};
use serde::{Deserialize, Serialize};

use crate::expects::{Component, Finding};

/// The longest manifest, in bytes.
pub const MAX_MANIFEST: usize = 16 << 10;

/// The longest word in one, in bytes.
const MAX_WORD: usize = 128;

/// The longest name, in bytes.
const MAX_NAME: usize = 63;

/// The most entries of a list in one.
const MAX_LIST: usize = 64;

/// The longest a device may take, and the longest a version may take to show, in seconds.
const MAX_TIMEOUT: u32 = 4 * 3600;
const MAX_SETTLE: u32 = 3600;

/// What a file of firmware is for, and how it is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What it is called: lower case, digits, `.`, `-`, `_`.
    pub name: String,
    /// What it updates: `bmc`, `bios`, `nic`, `nvme`, `raid`, …
    pub component: String,
    /// The version that is there afterwards.
    pub version: String,
    /// Versions that it may be installed over; any when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// How it is installed.
    pub method: Method,
    /// The script that installs it, when one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// What the script is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// What the file is called.
    pub file: String,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: String,
    /// The member of the BMC's firmware inventory that tells the version, by its id; `bmc` and `bios` tell
    /// theirs without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<String>,
    /// What the BMC is told to update; when there are none the file says it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// Whether the machine has to start anew before it is in force.
    #[serde(default)]
    pub restart: bool,
    /// Lower ones are installed first.
    #[serde(default = "middle")]
    pub order: u32,
    /// How long the device may take, in seconds.
    #[serde(default = "half_an_hour")]
    pub timeout: u32,
    /// How long after that the version may take to show, in seconds.
    #[serde(default = "ten_minutes")]
    pub settle: u32,
    /// Which machines it is for.
    #[serde(rename = "match")]
    pub matches: Match,
}

fn middle() -> u32 {
    100
}

fn half_an_hour() -> u32 {
    1800
}

fn ten_minutes() -> u32 {
    600
}

/// How firmware is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The BMC is given the file (DSP0268 UpdateService).
    Redfish,
    /// The machine's installer runs a script with it.
    Script,
}

/// Which machines firmware is for: those that have all of what is said, letters' case aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// The machine's maker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The machine's model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// The mainboard's model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub board: Option<String>,
    /// A PCI device that is in it: vendor and device id, four hexadecimal digits each: `15b3:1017`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The model of a drive that is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// What is wrong with a manifest, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BadManifest {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

impl Manifest {
    /// Reads a manifest.
    pub fn parse(text: &str) -> Result<Self, BadManifest> {
        if text.len() > MAX_MANIFEST {
            return Err(BadManifest { line: 1, why: format!("it is longer than {MAX_MANIFEST} bytes") });
        }
        let manifest: Self = toml::from_str(text).map_err(|error| BadManifest {
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            why: error.message().to_owned(),
        })?;
        match manifest.unsound() {
            None => Ok(manifest),
            Some((key, why)) => Err(BadManifest { line: line_with(text, key), why: format!("`{key}` {why}") }),
        }
    }

    /// The first key whose value cannot be meant, and why.
    fn unsound(&self) -> Option<(&'static str, String)> {
        let is_name = self.name.len() <= MAX_NAME
            && self.name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if !is_name {
            let why = format!("is of lower-case letters, digits, `.`, `-` and `_`, at most {MAX_NAME}");
            return Some(("name", why));
        }
        let Match { vendor, product, board, device, model } = &self.matches;
        let words = [
            ("component", Some(&self.component)),
            ("version", Some(&self.version)),
            ("file", Some(&self.file)),
            ("inventory", self.inventory.as_ref()),
            ("vendor", vendor.as_ref()),
            ("product", product.as_ref()),
            ("board", board.as_ref()),
            ("model", model.as_ref()),
        ];
        let lists = [("from", &self.from), ("targets", &self.targets)];
        let listed = lists.into_iter().flat_map(|(key, list)| list.iter().map(move |word| (key, word)));
        let all = words.into_iter().filter_map(|(key, word)| Some((key, word?))).chain(listed);
        for (key, word) in all {
            if word.trim().is_empty() || word.len() > MAX_WORD || word.chars().any(char::is_control) {
                return Some((key, format!("is a word of at most {MAX_WORD} bytes")));
            }
        }
        if let Some((key, _)) = lists.into_iter().find(|(_, list)| list.len() > MAX_LIST) {
            return Some((key, format!("has at most {MAX_LIST} entries")));
        }
        if self.file.contains(['/', '\\', '"']) {
            return Some(("file", "is a name, without directories".into()));
        }
        if let Some(id) = self.inventory.as_ref().filter(|id| id.contains(['/', '?', '#', '%'])) {
            return Some(("inventory", format!("is the id of one member, and {id:?} is none")));
        }
        if self.targets.iter().any(|target| !target.starts_with("/redfish/")) {
            return Some(("targets", "are links that begin with `/redfish/`".into()));
        }
        if !(1..=MAX_FILE).contains(&self.size) {
            return Some(("size", format!("is of 1 to {MAX_FILE} bytes")));
        }
        if self.sha256.len() != 64 || !self.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Some(("sha256", "is of 64 digits in lower-case hexadecimal, as `sha256sum` prints them".into()));
        }
        if !(1..=MAX_TIMEOUT).contains(&self.timeout) {
            return Some(("timeout", format!("is of 1 to {MAX_TIMEOUT} seconds")));
        }
        if self.settle > MAX_SETTLE {
            return Some(("settle", format!("is of at most {MAX_SETTLE} seconds")));
        }
        if let Some(unsound) = self.unsound_method() {
            return Some(unsound);
        }
        if self.from.contains(&self.version) {
            return Some(("from", "has the very version that is to be there afterwards".into()));
        }
        if self.place().is_none() {
            let why = format!("is needed: nothing else tells the version of a {}", self.component);
            return Some(("inventory", why));
        }
        if let Some(device) = device.as_ref().filter(|device| !is_device(device)) {
            return Some((
                "device",
                format!("is of two ids of four hexadecimal digits (`15b3:1017`), and {device:?} is none"),
            ));
        }
        if vendor.is_none() && board.is_none() && device.is_none() && model.is_none() {
            let why = "names a vendor, a board, a device or a model: firmware is for nobody else's";
            return Some(("match", why.into()));
        }
        None
    }

    /// The first key whose value does not go with how it is installed, and why.
    fn unsound_method(&self) -> Option<(&'static str, String)> {
        if self.method == Method::Redfish {
            let why = "goes with the method `script`";
            let is_named = |is: bool, key| is.then(|| (key, why.to_owned()));
            return is_named(self.script.is_some(), "script").or(is_named(!self.arguments.is_empty(), "arguments"));
        }
        let names = || script::scripts().iter().map(|script| script.name.as_str()).collect::<Vec<_>>().join(", ");
        match &self.script {
            None => return Some(("method", format!("`script` needs a `script`: one of {}", names()))),
            Some(name) if script::script(name).is_none() => {
                return Some(("script", format!("is one of {}, and {name:?} is none", names())));
            }
            Some(_) => {}
        }
        let is_argument =
            |text: &String| !text.is_empty() && text.len() <= MAX_ARGUMENT && !text.chars().any(char::is_control);
        if self.arguments.len() > MAX_ARGUMENTS || !self.arguments.iter().all(is_argument) {
            let why = format!("are at most {MAX_ARGUMENTS} words of at most {MAX_ARGUMENT} bytes");
            return Some(("arguments", why));
        }
        if self.inventory.is_some() {
            return Some(("inventory", "is a BMC's, and a script's versions are read by the installer".into()));
        }
        if !self.targets.is_empty() {
            return Some(("targets", "are a BMC's, and goes with the method `redfish`".into()));
        }
        match (&self.matches.device, &self.matches.model) {
            (Some(_), None) | (None, Some(_)) => None,
            _ => Some((
                "match",
                "names the parts that a script updates: either `device`, of a network card, or `model`, of a drive"
                    .into(),
            )),
        }
    }

    /// Whose version is read.
    pub fn place(&self) -> Option<Place> {
        if self.method == Method::Script {
            return self.parts().map(Place::Parts);
        }
        match (&self.inventory, self.component.as_str()) {
            (Some(id), _) => Some(Place::Inventory(id.clone())),
            (None, "bmc") => Some(Place::Bmc),
            (None, "bios") => Some(Place::Bios),
            (None, _) => None,
        }
    }

    /// Which parts a script updates.
    fn parts(&self) -> Option<Parts> {
        let Match { device, model, .. } = &self.matches;
        let cards = device.clone().map(|ids| Parts::Cards(ids.to_ascii_lowercase()));
        model.clone().map(Parts::Drives).or(cards)
    }

    /// Why it is not for this machine, when it is not.
    pub fn unfit(&self, machine: &Inventory, hardware: Option<&Hardware>) -> Option<String> {
        let Match { vendor, product, board, device, model } = &self.matches;
        let boards = hardware.map(|hardware| hardware.board.product.as_str()).unwrap_or_default();
        let words = [
            ("vendor", vendor, machine.system.vendor.as_str()),
            ("product", product, machine.system.product.as_str()),
            ("board", board, boards),
        ];
        for (key, wanted, found) in words {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| !wanted.trim().eq_ignore_ascii_case(found.trim())) {
                return Some(format!("it is for machines with {key} {wanted:?}, and this one has {found:?}"));
            }
        }
        if let Some(wanted) = model {
            let is_it = |model: &str| model.trim().eq_ignore_ascii_case(wanted.trim());
            if !machine.disks.iter().any(|disk| is_it(&disk.model)) {
                return Some(format!("it is for machines with a drive {wanted}, and this one has none"));
            }
        }
        let wanted = device.as_ref()?;
        let mut devices = hardware.iter().flat_map(|hardware| &hardware.devices);
        let is_there =
            devices.any(|found| format!("{:04x}:{:04x}", found.vendor, found.device).eq_ignore_ascii_case(wanted));
        (!is_there).then(|| format!("it is for machines with the device {wanted}, and this one tells of none"))
    }

    /// What is done to a machine with it.
    pub fn update(&self) -> Option<Update> {
        Some(Update {
            name: self.name.clone(),
            place: self.place()?,
            version: self.version.clone(),
            from: self.from.clone(),
            file: self.file.clone(),
            size: self.size,
            sha256: self.sha256.clone(),
            targets: self.targets.clone(),
            restart: self.restart,
            timeout: self.timeout,
            settle: self.settle,
            script: match self.method {
                Method::Redfish => None,
                Method::Script => Some(Scripted {
                    script: self.script.clone()?,
                    arguments: self.arguments.clone(),
                    parts: self.parts()?,
                }),
            },
        })
    }
}

fn is_device(text: &str) -> bool {
    let is_id = |id: &str| id.len() == 4 && id.bytes().all(|b| b.is_ascii_hexdigit());
    text.split_once(':').is_some_and(|(vendor, device)| is_id(vendor) && is_id(device))
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The line on which a key is set, or its table begins; the last when there is none.
fn line_with(text: &str, key: &str) -> usize {
    let sets = |line: &str| {
        let line = line.trim_start();
        let rest = line.strip_prefix(key).or_else(|| line.strip_prefix('[')?.trim_start().strip_prefix(key));
        rest.is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
    };
    text.lines().position(sets).map_or_else(|| text.lines().count().max(1), |line| line + 1)
}

/// A version as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Whose.
    pub place: Place,
    /// The version.
    pub version: String,
    /// When.
    pub at: Timestamp,
}

/// Firmware that is not at the version that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The manifest that would put it right.
    pub name: String,
    /// What it is the firmware of; empty when nothing of that name was imported.
    pub component: String,
    /// The version that was read last; `None` when none ever was.
    pub present: Option<String>,
    /// The version that is wanted.
    pub wanted: String,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, component, present, wanted } = self;
        match present {
            _ if component.is_empty() => write!(f, "firmware {name} of the plan is not imported"),
            Some(present) => write!(f, "firmware of {component} is {present}, {wanted} is wanted ({name})"),
            None => write!(f, "firmware of {component} was never read, {wanted} is wanted ({name})"),
        }
    }
}

impl From<Drift> for Finding {
    fn from(drift: Drift) -> Self {
        Self { component: Component::Firmware, place: drift.component.clone(), text: drift.to_string() }
    }
}

/// The version of a place that was read last.
pub fn present<'a>(place: &Place, readings: &'a [Reading]) -> Option<&'a str> {
    let of_it = readings.iter().filter(|reading| reading.place == *place);
    of_it.max_by_key(|reading| reading.at).map(|reading| reading.version.as_str())
}

/// The versions that parts tell, each once; `None` when one tells none, or there are no such parts.
fn versions(parts: &Parts, machine: &Inventory, hardware: &Hardware) -> Option<String> {
    let versions: BTreeSet<String> = parts.found(machine, hardware).into_values().collect();
    let is_told = !versions.is_empty() && !versions.contains("");
    is_told.then(|| versions.into_iter().collect::<Vec<_>>().join(" and "))
}

/// What of a machine's firmware is not as its plan's `baseline`, names of manifests, has it. Those that are
/// for other machines say nothing of this one.
pub fn drift(
    baseline: &[String],
    manifests: &BTreeMap<String, Manifest>,
    machine: &Inventory,
    hardware: Option<&Hardware>,
    readings: &[Reading],
) -> Vec<Drift> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for name in baseline.iter().filter(|name| seen.insert(name.as_str())) {
        let Some(manifest) = manifests.get(name) else {
            let (component, wanted) = (String::new(), String::new());
            found.push(Drift { name: name.clone(), component, present: None, wanted });
            continue;
        };
        let Some(place) = manifest.place().filter(|_| manifest.unfit(machine, hardware).is_none()) else { continue };
        let present = match &place {
            Place::Parts(parts) => hardware.and_then(|hardware| versions(parts, machine, hardware)),
            place => present(place, readings).map(ToOwned::to_owned),
        };
        if present.as_deref() != Some(manifest.version.as_str()) {
            found.push(Drift {
                name: name.clone(),
                component: manifest.component.clone(),
                present,
                wanted: manifest.version.clone(),
            });
        }
    }
    found
}

/// In the order in which they are installed: by `order`, then by name.
pub fn in_order(manifests: &mut [Manifest]) {
    manifests.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
}

#[cfg(test)]
mod tests;
