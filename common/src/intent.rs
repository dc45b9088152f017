//! What the controller wants of a rack. Pushed whole, as numbered revisions; the agent stores
//! each durably before it acknowledges, never goes back to an older one, and acts from it
//! alone while the controller is away.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{
    firmware,
    id::{Epoch, MachineId, RackId, RunId},
    image::Digest,
    machine::{Mac, Mainboard},
};

/// The most machines one rack's intent may list.
pub const MAX_MACHINES: usize = 1024;

/// What the controller wants of one rack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Counts up by at least one at every change.
    pub revision: u64,
    /// The rack this is for; a node of another rack refuses it.
    pub rack: RackId,
    /// The rack's name, for people.
    pub name: String,
    /// The provisioning network.
    pub network: Network,
    /// Every machine the controller knows in this rack, adopted or not.
    pub machines: Vec<MachineIntent>,
}

/// The provisioning network of a rack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The subnet, with the node's own address in it: `10.77.0.1/24`.
    pub node: Ipv4Net,
    /// Default route told to machines; `None` tells none.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers told to installed systems.
    pub dns: Vec<Ipv4Addr>,
    /// First and last address of the range delegated to the node for machines nobody knows
    /// yet. A machine keeps the address it was discovered with.
    pub delegated: (Ipv4Addr, Ipv4Addr),
}

/// What the controller wants of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineIntent {
    /// Which machine.
    pub id: MachineId,
    /// The operator's name for it.
    pub name: String,
    /// Its network cards; the first is the one it boots from.
    pub macs: Vec<Mac>,
    /// Its address on the provisioning network, the same through ROM, iPXE, installer and OS.
    pub address: Ipv4Addr,
    /// The allocation epoch of everything said here.
    pub epoch: Epoch,
    /// What it boots when it asks the network.
    pub boot: Boot,
    /// What the installer shall do, if anything.
    pub order: Option<Order>,
}

/// What a machine is told when it asks the network for a boot program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// Our installer, in RAM.
    Installer,
    /// The system on its own disk.
    Disk,
}

/// Work for the installer, made by one run of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The run that waits for it.
    pub run: RunId,
    /// Counts the run's tries; a failed order is done again only under a higher number.
    pub attempt: u32,
    /// [`Disk::identity`](crate::machine::Disk::identity) of every disk the machine is known
    /// to have. The installer compares before its first write: a disk that is not listed
    /// stops the work.
    pub disks: Vec<String>,
    /// What to do.
    pub work: Work,
}

/// What an order asks for. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Write an image to one disk, with this machine's settings.
    Deploy(Deploy),
    /// Overwrite every disk listed in the order and read back.
    Erase,
    /// [`Work::Deploy`], on a machine with this mainboard only.
    DeployOn(Mainboard, Deploy),
    /// [`Work::Erase`], on a machine with this mainboard only.
    EraseOn(Mainboard),
    /// Run tests.
    Test(Test),
    /// Let these people log in to the installer over SSH; nothing is written.
    Rescue(Rescue),
    /// Update firmware by a script.
    Firmware(Box<firmware::Order>),
    /// Set the next password of the machine's BMC, and its user where that is gone, in-band.
    RegainBmc(RegainBmc),
}

/// Whose BMC is regained. The password is in no intent: the installer asks its node for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegainBmc {
    /// The mainboard of the machine that is meant, as far as it is known.
    pub mainboard: Option<Mainboard>,
}

/// Which tests are run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    /// Their [names](crate::commission::Script::name).
    pub scripts: Vec<String>,
    /// The mainboard of the machine that is meant, as far as it is known.
    pub mainboard: Option<Mainboard>,
}

impl Work {
    /// A deploy, on this mainboard when it is known.
    pub fn deploying(deploy: Deploy, mainboard: Option<Mainboard>) -> Self {
        match mainboard {
            Some(mainboard) => Self::DeployOn(mainboard, deploy),
            None => Self::Deploy(deploy),
        }
    }

    /// An erasure, on this mainboard when it is known.
    pub fn erasing(mainboard: Option<Mainboard>) -> Self {
        mainboard.map_or(Self::Erase, Self::EraseOn)
    }

    /// The deploy; `None` when it is something else.
    pub fn deploy(&self) -> Option<&Deploy> {
        match self {
            Self::Deploy(deploy) | Self::DeployOn(_, deploy) => Some(deploy),
            Self::Erase
            | Self::EraseOn(_)
            | Self::Test(_)
            | Self::Rescue(_)
            | Self::Firmware(_)
            | Self::RegainBmc(_) => None,
        }
    }

    /// The update of firmware; `None` when it is something else.
    pub fn firmware(&self) -> Option<&firmware::Order> {
        match self {
            Self::Firmware(update) => Some(update),
            _ => None,
        }
    }

    /// The rescue; `None` when it is something else.
    pub fn rescue(&self) -> Option<&Rescue> {
        match self {
            Self::Rescue(rescue) => Some(rescue),
            _ => None,
        }
    }

    /// The tests; `None` when it is something else.
    pub fn test(&self) -> Option<&Test> {
        match self {
            Self::Test(test) => Some(test),
            _ => None,
        }
    }

    /// Whether it is to regain the machine's BMC.
    pub fn regains_bmc(&self) -> bool {
        matches!(self, Self::RegainBmc(_))
    }

    /// Whether it is an erasure.
    pub fn erases(&self) -> bool {
        matches!(self, Self::Erase | Self::EraseOn(_))
    }

    /// The mainboard of the machine that is meant, as far as it is known.
    pub fn mainboard(&self) -> Option<&Mainboard> {
        match self {
            Self::DeployOn(mainboard, _) | Self::EraseOn(mainboard) => Some(mainboard),
            Self::Test(test) => test.mainboard.as_ref(),
            Self::Rescue(rescue) => rescue.mainboard.as_ref(),
            Self::Firmware(update) => update.mainboard.as_ref(),
            Self::RegainBmc(regain) => regain.mainboard.as_ref(),
            Self::Deploy(_) | Self::Erase => None,
        }
    }
}

/// An image and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    /// Digest of the signed manifest.
    pub manifest: Digest,
    /// How to choose the disk.
    pub disk: DiskRule,
    /// What the installed system is told.
    pub host: Host,
}

/// Who may log in to a machine's installer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescue {
    /// Public keys, in `authorized_keys` form, of root.
    pub ssh_keys: Vec<String>,
    /// The mainboard of the machine that is meant, as far as it is known.
    pub mainboard: Option<Mainboard>,
}

/// How the system disk is chosen among a machine's disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRule {
    /// The smallest one that holds the image; of equals the one whose identity sorts first.
    Smallest,
    /// The disk with this identity.
    Identity(String),
}

/// What an installed system is told about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Host name (RFC 1123 label).
    pub name: String,
    /// Public keys, in `authorized_keys` form, of the first user and of root.
    pub ssh_keys: Vec<String>,
    /// The tenant's own cloud-init user data, handed through as a further part.
    pub user_data: Option<String>,
}
