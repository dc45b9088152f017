//! A machine: ROM, iPXE, installer, system; what it asks the network and what is on its disk.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use rackhand_common::{
    channel::{News, Task},
    event::Cause,
    id::{Epoch, MachineId, RunId},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, System},
    pki::KeyPin,
};

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// `r1m1`.
    pub name: String,
    /// Its card.
    pub mac: Mac,
    /// What is on its disk.
    pub disk: OnDisk,
    /// That disk's serial number.
    pub serial: String,
    /// Whether somebody is about to put another disk in: when its next order comes.
    pub swaps: bool,
    /// Where it is.
    pub phase: Phase,
    /// Counts its starts: what was planned for an earlier one does not happen.
    pub start: u64,
    /// Its address, as long as it runs.
    pub address: Option<Ipv4Addr>,
    /// Since when it tries to boot.
    pub trying: Option<Trying>,
    /// Spells that stand in which its installer does nothing.
    pub hangs: u32,
    /// Spells that stand in which its disk fails.
    pub disk_fails: u32,
}

/// A boot that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Trying {
    /// Since when.
    pub since: Duration,
    /// Whether something else than the controller was in its way.
    pub hindered: bool,
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnDisk {
    /// Zeros.
    Blank,
    /// Part of a system.
    Part,
    /// A system.
    System {
        /// The run that wrote it.
        run: RunId,
        /// Where it calls home, until it has or gave up.
        home: Option<Home>,
    },
}

/// Where a system calls home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The path.
    pub path: String,
    /// Tries left.
    pub tries: u32,
}

/// Where a machine is.
#[derive(Debug)]
pub enum Phase {
    /// Without power.
    Off,
    /// Testing itself.
    SelfTest,
    /// Its ROM asks for an address.
    Rom(u32),
    /// iPXE asks for an address.
    Ipxe(u32),
    /// iPXE asks for its script.
    Script,
    /// The installer's kernel starts, with this ticket.
    Kernel(String),
    /// The installer runs.
    Installer(Box<Installer>),
    /// Its system starts and asks for an address.
    System(u32),
    /// Its system runs.
    Running,
}

/// An installer.
#[derive(Debug)]
pub struct Installer {
    /// Its key.
    pub key: KeyPin,
    /// Its ticket.
    pub ticket: String,
    /// How often boot has refused that.
    pub refusals: u32,
    /// Who it is, once it was admitted.
    pub admitted: Option<MachineId>,
    /// Whether its inventory was taken.
    pub inventoried: bool,
    /// The highest epoch of any order.
    pub epoch: Epoch,
    /// How orders ended.
    pub told: BTreeMap<(RunId, u32), News>,
    /// The order under way.
    pub work: Option<Work>,
}

/// An order under way.
#[derive(Debug)]
pub struct Work {
    /// Run and attempt.
    pub order: (RunId, u32),
    /// Its epoch.
    pub epoch: Epoch,
    /// What to do.
    pub task: Task,
    /// How far it is.
    pub stage: WorkStage,
}

/// How far an order is.
#[derive(Debug)]
pub enum WorkStage {
    /// Nothing is written yet.
    Begins,
    /// Steps done of [`STEPS`].
    Writes(u64),
    /// Its end is to be told.
    Ends(News),
}

/// Refusals of a ticket after which an installer restarts its machine.
pub const REFUSALS: u32 = 8;

/// Steps of an order, each some seconds long.
pub const STEPS: u64 = 6;

/// Bytes of its disk.
pub const DISK: u64 = 8 << 30;

impl Machine {
    /// A machine without power and with a disk that is blank.
    pub fn new(rack: usize, number: usize) -> Self {
        Self {
            name: format!("r{}m{}", rack + 1, number + 1),
            mac: Mac([0x52, 0x54, 0, 0x77, rack as u8, number as u8 + 1]),
            disk: OnDisk::Blank,
            serial: format!("S-r{}m{}", rack + 1, number + 1),
            swaps: false,
            phase: Phase::Off,
            start: 0,
            address: None,
            trying: None,
            hangs: 0,
            disk_fails: 0,
        }
    }

    /// Whether there is something to boot from its disk.
    pub fn boots_disk(&self) -> bool {
        matches!(self.disk, OnDisk::System { .. })
    }

    /// What an installer finds in it.
    pub fn inventory(&self) -> Inventory {
        let disk = Disk {
            name: "vda".into(),
            model: "disk".into(),
            serial: self.serial.clone(),
            wwn: None,
            size: DISK,
            sector: 512,
            rotational: false,
            content: match self.disk {
                OnDisk::Blank => Content::Blank,
                _ => Content::Data("GPT, 1 partition".into()),
            },
        };
        Inventory {
            firmware: Firmware::Bios,
            system: System::default(),
            cpu: Cpu::default(),
            memory: 1 << 30,
            nics: vec![Nic { name: "eth0".into(), mac: self.mac, driver: "virtio_net".into(), link: true }],
            disks: vec![disk],
        }
    }

    /// Its installer, when that runs.
    pub fn installer(&mut self) -> Option<&mut Installer> {
        match &mut self.phase {
            Phase::Installer(installer) => Some(installer),
            _ => None,
        }
    }

    /// Whether nothing is under way in it.
    pub fn rests(&self) -> bool {
        match &self.phase {
            Phase::Off => true,
            Phase::Installer(installer) => installer.inventoried && installer.work.is_none(),
            Phase::Running => !matches!(&self.disk, OnDisk::System { home: Some(_), .. }),
            _ => false,
        }
    }
}

/// The order failed.
pub fn failed(cause: Cause, detail: &str) -> News {
    News::Failed { cause, detail: detail.into() }
}

/// Which program asks for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A BIOS's PXE ROM.
    Rom,
    /// iPXE.
    Ipxe,
    /// A system.
    System,
}

/// A DHCPDISCOVER, or with an address a DHCPREQUEST for it.
pub fn dhcp(mac: Mac, asker: Asker, server: Ipv4Addr, wanted: Option<Ipv4Addr>) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    bytes[28..34].copy_from_slice(&mac.0);
    bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    let mut option = |code: u8, value: &[u8]| {
        bytes.extend_from_slice(&[code, value.len() as u8]);
        bytes.extend_from_slice(value);
    };
    match wanted {
        None => option(53, &[1]),
        Some(address) => {
            option(53, &[3]);
            option(54, &server.octets());
            option(50, &address.octets());
        }
    }
    match asker {
        Asker::Rom => {
            option(93, &[0, 0]);
            option(94, &[1, 2, 1]);
            option(60, b"PXEClient:Arch:00000:UNDI:002001");
        }
        Asker::Ipxe => {
            option(93, &[0, 0]);
            option(60, b"PXEClient:Arch:00000:UNDI:002001");
            option(77, b"iPXE");
            option(175, &[0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0x13, 1, 1]);
        }
        Asker::System => {
            option(61, &[1, 2, 3, 4]);
            option(12, b"host");
        }
    }
    bytes
}

/// A DHCPOFFER is 2, a DHCPACK 5, a DHCPNAK 6; and the address.
pub fn answer(bytes: &[u8]) -> Option<(u8, Ipv4Addr)> {
    let kind = *bytes.get(242)?;
    let address: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
    Some((kind, Ipv4Addr::from(address)))
}
