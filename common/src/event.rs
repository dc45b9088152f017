//! What happened in a rack. Events travel from boot to agent to controller through on-disk
//! spools: at least once, in order, acknowledged. A spool that must drop says how many.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    bmc::{Found, lease::Management},
    commission::Tested,
    erasure::DriveErasure,
    firmware::Updated,
    hardware::{self, Hardware},
    health::Verdict,
    id::{CommandId, MachineId, RunId},
    machine::{Firmware, Inventory, Mac, Power},
    replacement::PartReplaced,
};

/// The longest text an event carries, in bytes; longer ones are cut by whoever makes them.
pub const MAX_TEXT: usize = 8 << 10;

/// Something that happened, with the time by the clock of the node where it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the node's wall clock.
    pub at: Timestamp,
    /// The machine it is about; `None` for the node itself.
    pub machine: Option<MachineId>,
    /// What.
    pub what: What,
}

/// The kinds of events. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A machine moved along its way to a running system.
    Stage(Stage),
    /// An installer proved its ticket: a machine that boot did not know, or one it did. The
    /// inventory follows the connection, so `Connected` always means both are here.
    Connected {
        /// The card it booted from.
        mac: Mac,
        /// Its address on the provisioning network.
        address: Ipv4Addr,
        /// What it found in itself.
        inventory: Inventory,
    },
    /// An installer has not been heard of for as long as boot waits.
    Lost,
    /// Work on an order goes on. Coalesced: at most one per machine in two seconds.
    Progress {
        /// Whose order.
        run: RunId,
        /// Bytes done.
        done: u64,
        /// Bytes to do.
        total: u64,
    },
    /// An order is done.
    Done {
        /// Whose order.
        run: RunId,
        /// Which try.
        attempt: u32,
        /// What was done, per disk.
        disks: Vec<DiskWork>,
    },
    /// An order was refused or failed; the installer stays connected.
    Failed {
        /// Whose order.
        run: RunId,
        /// Which try.
        attempt: u32,
        /// Why, for programs.
        cause: Cause,
        /// Why, for people: the error and the last lines of the installer's log.
        detail: String,
    },
    /// The installed system called home.
    PhonedHome {
        /// The run that installed it.
        run: RunId,
    },
    /// A ticket was presented that does not belong to whoever presented it.
    TicketRefused {
        /// Why, for people.
        reason: String,
    },
    /// A power driver did, or did not do, what a command asked.
    Commanded {
        /// The command.
        command: CommandId,
        /// How it ended.
        outcome: Outcome,
    },
    /// Chassis power as read back.
    Power(Power),
    /// The node's own health, about once a minute.
    Node(NodeHealth),
    /// The spool had to drop this many events that stood here.
    Gap {
        /// How many.
        lost: u64,
    },
    /// New machines asked for an address and none of the delegated range could be given.
    RangeFull {
        /// How many requests were not answered since this was last told.
        unanswered: u64,
    },
    /// What the agent's rules make of a machine: when that changes, and again from time to time.
    Health(Verdict),
    /// A disk was erased in a release, or not: the record of it.
    Erased {
        /// Whose order.
        run: RunId,
        /// Which try.
        attempt: u32,
        /// What was done.
        drive: Box<DriveErasure>,
    },
    /// What an installer found in detail, after it connected.
    Hardware {
        /// The card it booted from.
        mac: Mac,
        /// What is in the machine.
        #[serde(with = "hardware::readable")]
        hardware: Box<Hardware>,
    },
    /// A BMC answers on the management network: when it is new or says something else of itself, and
    /// again from time to time.
    BmcFound(Box<Found>),
    /// A BMC that was found is not heard of any more.
    BmcGone {
        /// Where it was.
        address: IpAddr,
    },
    /// A test of a machine is over.
    Tested {
        /// Whose order.
        run: RunId,
        /// Which try.
        attempt: u32,
        /// What it showed.
        tested: Box<Tested>,
    },
    /// A rescue system lets its people log in.
    Rescue {
        /// Whose order.
        run: RunId,
        /// Which try.
        attempt: u32,
        /// Where it is reached.
        login: Login,
    },
    /// A technician replaces a part of a machine at its node, has, or does not after all.
    PartReplaced(Box<PartReplaced>),
    /// Something on the management network, whose DHCP the node is.
    Management(Box<Management>),
    /// An update of firmware by a script is over.
    Updated {
        /// Whose order.
        run: RunId,
        /// Which try.
        attempt: u32,
        /// What became of it.
        updated: Box<Updated>,
    },
}

/// Where a rescue system is reached over SSH, and how it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Its address on the provisioning network.
    pub address: Ipv4Addr,
    /// TCP port.
    pub port: u16,
    /// Fingerprint of its host key, as `ssh-keygen -l` prints it: `SHA256:` and 43 characters of base64.
    pub host_key: String,
}

impl Login {
    /// Whether this is a fingerprint as [`Self::host_key`] has it.
    pub fn is_fingerprint(text: &str) -> bool {
        let digest = text.strip_prefix("SHA256:");
        digest.is_some_and(|digest| {
            digest.len() == 43 && digest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte))
        })
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "root@{} port {}, host key {}", self.address, self.port, self.host_key)
    }
}

/// Hops on a machine's way from power to a running system, in their usual order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A power driver switched it on, or restarted it.
    PoweredOn,
    /// Its firmware's network ROM was offered an address.
    RomDhcp(Firmware),
    /// It fetched its first-stage loader.
    Loader(String),
    /// iPXE, once loaded, was given its address.
    IpxeDhcp,
    /// It fetched its boot script: which target it was given, in words.
    Script(String),
    /// It fetched a kernel.
    Kernel,
    /// It fetched an initial RAM disk.
    Initramfs,
    /// The installer in it proved its ticket.
    Installer,
    /// The installer sent its inventory.
    Inventoried,
    /// The installer began to work on an order.
    OrderStarted(RunId),
    /// The image is written and flushed.
    ImageWritten,
    /// Config drive, partition table and boot order are written.
    SettingsWritten,
    /// The machine restarts into its own disk.
    Rebooting,
    /// The installed system was given its address.
    OsDhcp,
    /// Every disk was overwritten and read back.
    Erased,
    /// Every test that was asked for is over.
    Tested,
}

impl Stage {
    /// What a machine has not done yet whose latest hop this is, in words.
    pub fn not_yet(&self) -> &'static str {
        match self {
            Self::PoweredOn => "powered on, has not asked for an address",
            Self::RomDhcp(_) => "got an offer, never asked for its loader",
            Self::Loader(_) => "fetched its loader, which has not asked for an address",
            Self::IpxeDhcp => "iPXE has its address, has not fetched its boot script",
            Self::Script(_) => "fetched its boot script, has not fetched the kernel",
            Self::Kernel => "fetched the kernel, has not fetched the initial RAM disk",
            Self::Initramfs => "fetched the initial RAM disk, its installer has not connected",
            Self::Installer | Self::Inventoried => "installer connected, its inventory has not arrived",
            Self::OrderStarted(_) | Self::ImageWritten | Self::SettingsWritten | Self::Erased | Self::Tested => {
                "installer is at work, has not asked what is next"
            }
            Self::Rebooting => "restarts into its own disk, system has not asked for an address",
            Self::OsDhcp => "system has its address, has not called home",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOn => f.write_str("powered on"),
            Self::RomDhcp(firmware) => write!(f, "{firmware} boot ROM asked for an address"),
            Self::Loader(file) => write!(f, "fetched loader {file}"),
            Self::IpxeDhcp => f.write_str("iPXE has its address"),
            Self::Script(target) => write!(f, "fetched boot script: {target}"),
            Self::Kernel => f.write_str("fetched kernel"),
            Self::Initramfs => f.write_str("fetched initial RAM disk"),
            Self::Installer => f.write_str("installer connected"),
            Self::Inventoried => f.write_str("inventory taken"),
            Self::OrderStarted(_) => f.write_str("installer started its order"),
            Self::ImageWritten => f.write_str("image written"),
            Self::SettingsWritten => f.write_str("settings and boot order written"),
            Self::Rebooting => f.write_str("restarting into its own disk"),
            Self::OsDhcp => f.write_str("installed system has its address"),
            Self::Erased => f.write_str("disks erased and read back"),
            Self::Tested => f.write_str("tests are over"),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => stage.fmt(f),
            Self::Connected { mac, address, .. } => write!(f, "installer connected from {mac} at {address}"),
            Self::Lost => f.write_str("installer no longer heard of"),
            Self::Progress { done, total, .. } => {
                let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(100);
                write!(f, "{percent} % ({} of {} MiB)", done >> 20, total >> 20)
            }
            Self::Done { attempt, disks, .. } => {
                write!(f, "order done (attempt {attempt})")?;
                if !disks.is_empty() {
                    f.write_str(": ")?;
                }
                for (index, work) in disks.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{} {}, {} MiB", work.method, work.disk, work.bytes >> 20)?;
                }
                Ok(())
            }
            Self::Failed { attempt, detail, .. } => {
                write!(f, "order failed (attempt {attempt}): {}", detail.lines().next().unwrap_or_default())
            }
            Self::PhonedHome { .. } => f.write_str("installed system called home"),
            Self::TicketRefused { reason } => write!(f, "ticket refused: {reason}"),
            Self::Commanded { outcome, .. } => write!(f, "power command: {outcome}"),
            Self::Power(Power::On) => f.write_str("power is on"),
            Self::Power(Power::Off) => f.write_str("power is off"),
            Self::Node(health) => write!(f, "node health: load {}.{:02}", health.load / 100, health.load % 100),
            Self::Health(verdict) => verdict.fmt(f),
            Self::Gap { lost } => write!(f, "{lost} events were dropped here: the spool was full"),
            Self::RangeFull { unanswered } => {
                write!(f, "no delegated address is free: {unanswered} requests of new machines were not answered")
            }
            Self::Hardware { hardware, .. } => {
                let populated = hardware.memory.iter().filter(|dimm| dimm.size > 0).count();
                let (devices, drives) = (hardware.devices.len(), hardware.drives.len());
                write!(f, "hardware told: {populated} memory modules, {devices} devices, {drives} disks")
            }
            Self::BmcFound(found) => found.fmt(f),
            Self::BmcGone { address } => write!(f, "no BMC answers at {address} any more"),
            Self::Tested { tested, .. } => tested.fmt(f),
            Self::Erased { drive, .. } => match (&drive.method, &drive.reason) {
                (Some(method), None) => write!(f, "disk {} erased by {method} ({})", drive.disk, drive.class),
                (_, reason) => {
                    write!(f, "disk {} is not erased: {}", drive.disk, reason.as_deref().unwrap_or("no reason is told"))
                }
            },
            Self::Rescue { login, .. } => write!(f, "rescue system takes logins: {login}"),
            Self::PartReplaced(told) => told.fmt(f),
            Self::Management(told) => told.fmt(f),
            Self::Updated { updated, .. } => updated.fmt(f),
        }
    }
}

/// What was done to one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskWork {
    /// [`Disk::identity`](crate::machine::Disk::identity).
    pub disk: String,
    /// `image`, or the word of an [erasure's method](crate::erasure::Method::word).
    pub method: String,
    /// Bytes written or discarded.
    pub bytes: u64,
    /// Bytes read back and compared.
    pub verified: u64,
}

/// Why the installer did not carry out an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The order is for another machine or another epoch.
    WrongMachine,
    /// The disks found are not the disks listed in the order.
    DisksDiffer,
    /// No disk satisfies the rule, or the image does not fit.
    NoSuitableDisk,
    /// The image was made for another sector size or firmware.
    ImageUnsuitable,
    /// A chunk could not be fetched, or never had the right digest.
    Image,
    /// Reading or writing a disk failed.
    DiskError,
    /// A disk did not read back as written.
    Verify,
    /// The firmware's boot order could not be set.
    BootOrder,
    /// Anything else; the detail says what.
    Internal,
    /// The mainboard found is not the one the order is for.
    MainboardDiffers,
    /// The TPM is not known to be cleared.
    Tpm,
    /// The BMC could not be given its user and password in-band.
    Bmc,
}

/// How a hardware command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, and read back where it can be.
    Done,
    /// Not done: its deadline had passed, or its epoch was not the machine's.
    Refused(String),
    /// Tried and failed.
    Failed(String),
    /// The agent stopped between starting and recording it: look at the machine first.
    Unknown,
    /// The machine cannot be started in this way; it was not restarted.
    Unsupported(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
            Self::Unknown => f.write_str("outcome unknown: the agent stopped in the middle of it"),
            Self::Unsupported(reason) => write!(f, "not possible: {reason}"),
        }
    }
}

/// How the rack node itself fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// Load over one minute, in hundredths.
    pub load: u32,
    /// Memory in use and in total, bytes.
    pub memory: (u64, u64),
    /// Space in use and in total of the state directory's file system, bytes.
    pub disk: (u64, u64),
    /// Seconds since the node started.
    pub uptime: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_what_ssh_keygen_prints_and_nothing_else() {
        let good = format!("SHA256:{}", "aZ9+/".repeat(9).split_at(43).0);
        assert!(Login::is_fingerprint(&good));
        for bad in ["", "SHA256:", &good[7..], &good[..49], &format!("{good}A"), &good.replace('9', "\n")] {
            assert!(!Login::is_fingerprint(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_event_reads_well_as_json() {
        let event =
            Event { at: Timestamp::UNIX_EPOCH, machine: None, what: What::Stage(Stage::RomDhcp(Firmware::Uefi)) };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"at":"1970-01-01T00:00:00Z","machine":null,"what":{"stage":{"rom_dhcp":"uefi"}}}"#
        );
    }
}
