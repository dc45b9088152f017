//! BMCs: how they are reached, and what they tell, in the same words whichever way they were asked.
//! Every field that a BMC may leave out is optional; text is as the BMC gave it, cut to
//! [`MAX_TEXT`].

pub mod baseline;
mod found;
pub mod lease;
mod rotation;
mod shown;
pub mod vendor;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use found::{Found, MAX_FOUND, Met, Stranger};
pub use rotation::{Beside, FRESH, InBandUser, Rotated, Standing, fresh_password};
pub use shown::Rows;

use crate::{
    id::{MachineId, RackId},
    machine::{Mac, Mainboard},
    seal::{NotOpened, Seal},
};

/// The longest text that is kept of a BMC's answer, in bytes.
pub const MAX_TEXT: usize = 256;

/// The most sensors, entries or parts that are kept of one BMC.
pub const MAX_ITEMS: usize = 4096;

/// The longest name of a BMC's account, in bytes (IPMI 2.0 §22.28).
pub const MAX_USER: usize = 16;

/// The longest password of a BMC's account, in bytes (IPMI 2.0 §22.30).
pub const MAX_PASSWORD: usize = 20;

/// How the BMCs of a rack are reached; for the agent alone, never for boot.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmcs {
    /// The revision of the rack's [intent](crate::intent::Intent) that they belong to.
    pub revision: u64,
    /// The rack.
    pub rack: RackId,
    /// At most one of each machine.
    pub bmcs: Vec<Access>,
}

/// How the BMC of a machine is reached.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The machine.
    pub machine: MachineId,
    /// Where its BMC answers.
    pub at: At,
    /// What it speaks.
    pub protocol: Protocol,
    /// Who logs in.
    pub user: String,
    /// The password.
    pub password: String,
    /// SHA-256 of the certificate it has to show, in hexadecimal; `None`: the one it shows first.
    pub fingerprint: Option<String>,
    /// The mainboard that it has to be on, as far as the machine tells.
    pub mainboard: Option<Mainboard>,
}

impl Access {
    /// With its password sealed.
    pub fn sealed(&self, seal: &Seal) -> Self {
        Self { password: seal.seal(&Self::place_of(self.machine), &self.password), ..self.clone() }
    }

    /// With its password opened again.
    pub fn opened(self, seal: &Seal) -> Result<Self, NotOpened> {
        let password = seal.open(&Self::place_of(self.machine), &self.password)?;
        Ok(Self { password, ..self })
    }

    /// What the password of a machine's BMC is sealed for.
    pub fn place_of(machine: MachineId) -> String {
        format!("BMC of {machine}")
    }

    /// What the password is sealed for that a machine's BMC is to have next.
    pub fn place_of_next(machine: MachineId) -> String {
        format!("BMC of {machine}, next")
    }
}

// A log line of a message must not show passwords.
impl fmt::Debug for Bmcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bmcs({} at revision {})", self.bmcs.len(), self.revision)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("machine", &self.machine)
            .field("at", &self.at)
            .field("protocol", &self.protocol)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Where a BMC answers: an address, with a port when it is not its protocol's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct At {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: Option<u16>,
}

impl At {
    /// With this port when it has none of its own.
    pub fn or(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, self.port.unwrap_or(port))
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// The text is no address.
#[derive(Debug, thiserror::Error)]
#[error("not an address of a BMC (`10.0.0.5`, `10.0.0.5:623`, `2001:db8::5` or `[2001:db8::5]:623`)")]
pub struct NotAt;

impl FromStr for At {
    type Err = NotAt;

    fn from_str(text: &str) -> Result<Self, NotAt> {
        let alone = text.parse().map(|address| Self { address, port: None });
        let whole = |_| text.parse::<SocketAddr>().map(|at| Self { address: at.ip(), port: Some(at.port()) });
        alone.or_else(whole).map_err(|_| NotAt)
    }
}

/// What a BMC speaks. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Redfish when it answers to it, else IPMI.
    Either,
    /// Redfish, over HTTPS.
    Redfish,
    /// IPMI 2.0 over RMCP+.
    Ipmi,
}

impl Protocol {
    /// All, as they are chosen from.
    pub const ALL: [Self; 3] = [Self::Either, Self::Redfish, Self::Ipmi];

    /// What it is called.
    pub fn word(self) -> &'static str {
        match self {
            Self::Either => "either",
            Self::Redfish => "redfish",
            Self::Ipmi => "ipmi",
        }
    }
}

/// The word names no protocol.
#[derive(Debug, thiserror::Error)]
#[error("is `either`, `redfish` or `ipmi`")]
pub struct NoProtocol;

impl FromStr for Protocol {
    type Err = NoProtocol;

    fn from_str(word: &str) -> Result<Self, NoProtocol> {
        Self::ALL.into_iter().find(|protocol| protocol.word() == word).ok_or(NoProtocol)
    }
}

/// What can be asked of a BMC at any time. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// [`Identity`], and the machine's power.
    Identity,
    /// [`Sensors`].
    Sensors,
    /// [`Log`].
    Log,
    /// [`Parts`].
    Parts,
}

/// Answers to a [`Look`]. Travels as JSON, so that it may grow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// To `Identity`.
    Identity {
        /// What and whose it is.
        identity: Identity,
        /// Chassis power.
        power: Option<crate::machine::Power>,
        /// What it is asked in: `redfish` or `ipmi`.
        protocol: Protocol,
        /// SHA-256 of the certificate it shows, in hexadecimal.
        fingerprint: Option<String>,
    },
    /// To `Sensors`.
    Sensors(Sensors),
    /// To `Log`.
    Log(Log),
    /// To `Parts`.
    Parts(Parts),
}

/// What and whose a BMC is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Manufacturer of the machine.
    pub vendor: Option<String>,
    /// Product name of the machine.
    pub model: Option<String>,
    /// Serial number of the machine.
    pub serial: Option<String>,
    /// System UUID of the machine, absent when it is all zeros or all ones.
    pub uuid: Option<Uuid>,
    /// Version of the BMC's own firmware.
    pub firmware: Option<String>,
    /// What the BMC itself is called, as far as it says: "iDRAC", "AST2500".
    pub manager: Option<String>,
}

impl Identity {
    /// Whether it is on another mainboard than this one: when something can be compared, and
    /// nothing is the same. BMCs tell the UUID in either order of its bytes (SMBIOS, RFC 4122).
    pub fn is_other(&self, mainboard: &Mainboard) -> bool {
        let serials = self.serial.as_deref().filter(|_| !mainboard.serial.is_empty());
        let uuids = self.uuid.zip(mainboard.uuid);
        let is_same = serials.is_some_and(|serial| serial == mainboard.serial)
            || uuids.is_some_and(|(told, known)| told == known || told == Uuid::from_bytes(known.to_bytes_le()));
        !is_same && (serials.is_some() || uuids.is_some())
    }
}

/// What a machine boots from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootSource {
    /// The network, by PXE.
    Network,
    /// The network, by UEFI HTTP boot; from this address when the BMC can be told one.
    Http(Option<String>),
    /// Its disk.
    Disk,
    /// A CD drive, also a virtual one.
    Cd,
    /// The firmware's setup.
    Setup,
}

/// An override of the boot order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOverride {
    /// What to boot from; `None` takes an override back.
    pub source: Option<BootSource>,
    /// For every start from now on, not only for the next.
    pub is_lasting: bool,
    /// Start in UEFI mode rather than as a legacy BIOS; `None` leaves it as it is.
    pub uefi: Option<bool>,
}

/// What a BMC says of the next start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The override that is set.
    pub set: BootOverride,
    /// Why what is set may not be what happens: a source that has no name here.
    pub doubt: Option<String>,
}

/// Every sensor of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sensors {
    /// What they read, in the BMC's order.
    pub readings: Vec<Reading>,
    /// What was not understood, and is not among them.
    pub skipped: Vec<Skipped>,
}

/// One sensor as it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// What the BMC calls it: "CPU1 Temp".
    pub name: String,
    /// What it measures.
    pub kind: SensorKind,
    /// Its value in the unit of its kind; absent for a discrete sensor, and for one that has
    /// none just now.
    pub value: Option<f64>,
    /// The states that a discrete sensor asserts, in the standard's words.
    pub states: Vec<String>,
    /// What the BMC itself thinks of it.
    pub severity: Option<Severity>,
    /// Where the BMC draws the line.
    pub thresholds: Thresholds,
}

/// What a sensor measures, and in which unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SensorKind {
    /// Degrees Celsius.
    Temperature,
    /// Revolutions per minute.
    Fan,
    /// Percent of a fan's most.
    FanPercent,
    /// Volts.
    Voltage,
    /// Amperes.
    Current,
    /// Watts.
    Power,
    /// Joules.
    Energy,
    /// Percent.
    Percent,
    /// A processor.
    Processor,
    /// Memory: ECC and the like.
    Memory,
    /// A power supply.
    PowerSupply,
    /// A drive or its slot.
    Drive,
    /// The chassis was opened, or something else that concerns its safety.
    Intrusion,
    /// Anything else.
    Other,
}

/// How bad something is, in the BMC's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// To be looked at.
    Warning,
    /// To be acted upon.
    Critical,
}

/// Where a BMC draws the line, in the unit of the sensor's kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Below it lies a warning.
    pub lower_warning: Option<f64>,
    /// Below it the machine is in danger.
    pub lower_critical: Option<f64>,
    /// Above it lies a warning.
    pub upper_warning: Option<f64>,
    /// Above it the machine is in danger.
    pub upper_critical: Option<f64>,
}

/// Something a BMC told that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Where it was: a record's number, a resource's path.
    pub place: String,
    /// What was wrong with it.
    pub why: String,
}

/// The hardware's event log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Oldest first.
    pub entries: Vec<LogEntry>,
    /// Whether the BMC says that it had no room for all of them.
    pub has_overflowed: bool,
    /// What was not understood, and is not among them.
    pub skipped: Vec<Skipped>,
}

/// One entry of the hardware's event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The BMC's name for it, unique in the log until that is cleared.
    pub id: String,
    /// When, by the BMC's clock; absent when that was not set.
    pub at: Option<Timestamp>,
    /// How bad it is.
    pub severity: Option<Severity>,
    /// The sensor or part it concerns.
    pub subject: Option<String>,
    /// What happened, in words.
    pub message: String,
    /// Whether it tells that something is over.
    pub is_over: bool,
}

/// What a machine is made of, as its BMC knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The parts.
    pub parts: Vec<Part>,
    /// What was not understood, and is not among them.
    pub skipped: Vec<Skipped>,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// Where it is, or what the BMC calls it: "DIMM A3", "PCIe Slot 2".
    pub slot: String,
    /// Who made it.
    pub vendor: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Number to order it by.
    pub part_number: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Version of its firmware.
    pub firmware: Option<String>,
    /// Its size: bytes of memory or of a drive; cores of a processor.
    pub size: Option<u64>,
    /// Ethernet addresses of a network card's ports.
    pub macs: Vec<Mac>,
    /// What the BMC thinks of it.
    pub severity: Option<Severity>,
}

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// The chassis.
    Chassis,
    /// The mainboard.
    Mainboard,
    /// A processor.
    Processor,
    /// A memory module.
    Memory,
    /// A drive.
    Drive,
    /// A network card.
    Nic,
    /// Another card.
    Card,
    /// A power supply.
    PowerSupply,
    /// A fan.
    Fan,
    /// Firmware that can be updated.
    Firmware,
    /// Anything else.
    Other,
}

/// Who may log in to a BMC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// The accounts that have a name, and those without one that may log in.
    pub accounts: Vec<Account>,
    /// What was not understood, and is not among them.
    pub skipped: Vec<Skipped>,
}

/// An account of a BMC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The BMC's number or name for its place.
    pub id: String,
    /// Who logs in with it.
    pub user: String,
    /// Whether it may log in.
    pub is_enabled: bool,
    /// Whether it may do everything.
    pub is_administrator: bool,
    /// What it may do, in the BMC's word for it.
    #[serde(default)]
    pub role: Option<String>,
}

/// The settings of a machine's firmware.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bios {
    /// As they are.
    pub attributes: BTreeMap<String, baseline::Attribute>,
    /// Those that will be another after the next start.
    pub pending: BTreeMap<String, baseline::Attribute>,
    /// What was not understood.
    pub skipped: Vec<Skipped>,
}

/// A BMC's own network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lan {
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its addresses with the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Its default router.
    pub gateway: Option<IpAddr>,
    /// Whether a DHCP server gave its address.
    pub is_dhcp: Option<bool>,
    /// Its VLAN.
    pub vlan: Option<u16>,
}

/// Text of a BMC made fit to keep and to print: no control characters, no space around it, cut to
/// [`MAX_TEXT`]; `None` when nothing is left.
pub fn text(raw: &str) -> Option<String> {
    let printable: String = raw.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let trimmed = printable.trim();
    let cut = trimmed.floor_char_boundary(MAX_TEXT);
    (!trimmed.is_empty()).then(|| trimmed[..cut].to_owned())
}
