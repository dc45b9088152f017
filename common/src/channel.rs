//! What boot and the installer say to each other: JSON over HTTP/1.1 over TLS 1.3 with raw
//! public keys (RFC 7250) on both sides.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/ticket` | [`Present`] | [`Admitted`], 403 when refused |
//! | `PUT /v1/inventory` | [`Found`] | 204 |
//! | `PUT /v1/hardware` | [`Hardware`], after the inventory | 204 |
//! | `GET /v1/assignment?after=N` | | [`Assignment`]; held open up to [`HOLD`] while its serial is N |
//! | `GET /v1/manifests/{digest}` | | [`SignedManifest`](crate::image::SignedManifest) |
//! | `GET /v1/drives/{settings}` | | [`Drive`] |
//! | `GET /v1/bmc-user` | | [`InBandUser`](crate::bmc::InBandUser), 409 when no order is to regain the BMC |
//! | `GET /v1/toolbox` | | [`ToolboxFile`], 404 when the node has none |
//! | `GET /v1/firmware/{offset}` | | a piece of the file of the machine's [`FirmwareTask`], at most [`MAX_PIECE`]; 404 when there is none |
//! | `POST /v1/report` | [`Report`] | 204 once it is on the node's disk |
//!
//! Chunks come by plain HTTP from `GET /chunks/{digest}` and are checked against the manifest; the
//! toolbox comes from `GET /toolbox` and is checked against what this channel says it is.
//! The installer's key is fresh at every start; a ticket binds to the first key that presents
//! it. A session is that key: the same key again, also after boot restarted, is a retry.
//!
//! The kernel command line tells the installer where to go, in these parameters:
//! `rackhand.boot=ADDRESS:PORT` (TLS), `rackhand.http=ADDRESS:PORT` (chunks),
//! `rackhand.pin=HEX` (SHA-256 of boot's public key), `rackhand.ticket=HEX`,
//! `rackhand.mac=MAC` (the card it booted from), `rackhand.address=ADDRESS/LENGTH` and
//! optionally `rackhand.gateway=ADDRESS`.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    commission::Tested,
    erasure::{DriveErasure, Method},
    event::{Cause, DiskWork},
    firmware::{self, Updated},
    hardware::Hardware,
    id::{Epoch, MachineId, RunId},
    image::Digest,
    intent::DiskRule,
    machine::{Inventory, Mac, Mainboard},
};

/// How long boot holds a request for an assignment that has not changed. An installer that
/// has not asked for three times this long is lost.
pub const HOLD: Duration = Duration::from_secs(20);

/// The longest body of any message here, in bytes, manifests aside.
pub const MAX_BODY: usize = 1 << 20;

/// The longest piece of a file of firmware, in bytes. Only the last is shorter.
pub const MAX_PIECE: usize = 1 << 20;

/// The longest [`Drive`], in bytes: more would not fit onto a config drive.
pub const MAX_DRIVE: usize = 4 << 20;

/// The longest signed manifest, in bytes: an image of about 1 TiB.
pub const MAX_MANIFEST: usize = 64 << 20;

/// A ticket and the evidence of whoever presents it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Present {
    /// From the kernel command line: 32 hexadecimal digits.
    pub ticket: String,
    /// The card it booted from.
    pub mac: Mac,
    /// SMBIOS UUID, when it has one.
    pub uuid: Option<uuid::Uuid>,
}

/// The ticket was good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Who you are.
    pub machine: MachineId,
    /// What time it is: the machine's own clock may say 1970.
    pub time: Timestamp,
}

/// What an installer found in its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What the machine is.
    #[serde(flatten)]
    pub inventory: Inventory,
    /// What is in it in detail, by installers that tell it with the inventory and not by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
}

/// What the installer is to do now. The serial changes whenever the work does, also across
/// restarts of boot, and is compared for equality only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Names this assignment.
    pub serial: u64,
    /// The work.
    pub task: Task,
}

/// An assignment's work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Nothing: stay connected.
    Wait,
    /// Write an image.
    Deploy(DeployTask),
    /// Overwrite disks.
    Erase(EraseTask),
    /// Restart: into the disk after a deploy, or into a newer installer.
    Reboot,
    /// Run tests.
    Test(TestTask),
    /// Let people log in over SSH, until another assignment comes.
    Rescue(RescueTask),
    /// Update firmware by a script.
    Firmware(Box<FirmwareTask>),
    /// Give the machine's BMC its user and password.
    RegainBmc(RegainBmcTask),
}

impl Task {
    /// The right to do it, where it is an order.
    pub fn warrant(&self) -> Option<&Warrant> {
        match self {
            Self::Deploy(deploy) => Some(&deploy.warrant),
            Self::Erase(erase) => Some(&erase.warrant),
            Self::Test(test) => Some(&test.warrant),
            Self::Rescue(rescue) => Some(&rescue.warrant),
            Self::Firmware(update) => Some(&update.warrant),
            Self::RegainBmc(regain) => Some(&regain.warrant),
            Self::Wait | Self::Reboot => None,
        }
    }
}

/// What every destructive task is checked against before the first write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warrant {
    /// The run this is for.
    pub run: RunId,
    /// Which try.
    pub attempt: u32,
    /// The machine it is for.
    pub machine: MachineId,
    /// The allocation epoch it was made in.
    pub epoch: Epoch,
    /// Identities of all disks the machine is known to have.
    pub disks: Vec<String>,
    /// Its mainboard, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mainboard: Option<Mainboard>,
}

/// Write an image to one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployTask {
    /// The right to do it.
    pub warrant: Warrant,
    /// How to choose the disk.
    pub disk: DiskRule,
    /// Digest of the signed manifest.
    pub manifest: Digest,
    /// Files of the config drive for an image that takes [`Settings::Cidata`](crate::image::Settings),
    /// by name. Those for other images are asked for, in the format that the manifest names.
    pub files: BTreeMap<String, String>,
}

/// The files of a config drive, by their paths in it.
pub type Drive = BTreeMap<String, String>;

/// The toolbox that a node has: programs that the installer runs, as one squashfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolboxFile {
    /// BLAKE3 of the file: of all of it, before any of it is mounted.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// Erase all disks of the warrant and read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EraseTask {
    /// The right to do it.
    pub warrant: Warrant,
    /// Disks that an earlier installer proved clean in the same run and try.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<Kept>,
    /// What one began on others and did not end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<Begun>,
}

/// Run tests in the toolbox and tell what each shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestTask {
    /// The right to do it.
    pub warrant: Warrant,
    /// [Names](crate::commission::Script::name) of the tests.
    pub scripts: Vec<String>,
    /// Those that an earlier installer told the outcome of, in the same run and try.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<String>,
    /// Those that one began and told nothing of: the machine restarted meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<String>,
}

/// Update firmware by a script in the toolbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareTask {
    /// The right to do it.
    pub warrant: Warrant,
    /// What is updated, and how.
    pub order: firmware::Order,
    /// Whether an earlier installer may have begun it, in the same run and try: it is not run again.
    #[serde(default)]
    pub begun: bool,
}

/// Let people log in to the installer, as root, over SSH by their keys. Nothing is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RescueTask {
    /// Whose machine it is for. Disks are not compared: a dead one is what a rescue is for.
    pub warrant: Warrant,
    /// Public keys, in `authorized_keys` form.
    pub ssh_keys: Vec<String>,
}

/// Give the machine's BMC the user and password that boot tells when it is asked for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegainBmcTask {
    /// Whose BMC. Disks are not compared: nothing is written to them.
    pub warrant: Warrant,
}

/// A disk that was proven clean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its identity.
    pub disk: String,
    /// How it was erased.
    pub method: Method,
    /// [`Samples::digest`](crate::erasure::Samples) of what was read back: it still has to be so.
    pub digest: String,
}

/// A method that was begun on a disk, after a pattern was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Its identity.
    pub disk: String,
    /// Which.
    pub method: Method,
}

/// How the work goes. Reports of one run come in order; a repeated one changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whose work.
    pub run: RunId,
    /// Which try.
    pub attempt: u32,
    /// How it goes.
    pub news: News,
}

/// News of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// Checks passed; the first write comes next.
    Started,
    /// Bytes done of bytes to do.
    Progress {
        /// Done so far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// The image is on the disk and flushed.
    ImageWritten,
    /// Everything is done and flushed. After a deploy the machine restarts when told to.
    Done {
        /// What was done, per disk.
        disks: Vec<DiskWork>,
    },
    /// It was refused or failed.
    Failed {
        /// Why, for programs.
        cause: Cause,
        /// Why, for people, with the last lines of the log.
        detail: String,
    },
    /// A method is begun on a disk that the drive goes on with when this machine is reset.
    Begun(Begun),
    /// A disk is erased, or not: the record of it.
    Erased(Box<DriveErasure>),
    /// The test with this name begins.
    TestBegun(String),
    /// A test is over.
    Tested(Box<Tested>),
    /// The script of an update of firmware begins.
    UpdateBegun,
    /// An update of firmware is over, and the order with it.
    Updated(Box<Updated>),
    /// People can log in. Told again, with another key, after each restart of the machine.
    Rescue {
        /// TCP port of the SSH server, on the address that boot gave.
        port: u16,
        /// Fingerprint of its host key, which was made in memory for this start:
        /// [`Login::host_key`](crate::event::Login).
        host_key: String,
    },
}
