//! A machine that is adopted while it runs: what is known of it before any installer looked into it, told by
//! operators, by its own system and by its BMC.
//!
//! Invariants:
//! - What an operator said is never replaced by what a BMC says; only what nobody said is filled in.
//! - The address that is chosen for it is one that no rack node gives to strangers.

use std::{collections::BTreeSet, net::Ipv4Addr};

use rackhand_common::{
    bmc::{Part, PartKind, Parts},
    intent::Network,
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, System},
};
use uuid::Uuid;

/// The most network cards, or disks, that one machine is said to have.
pub const MAX_PARTS: usize = 64;

/// What is on a disk that no installer has seen, in words.
const NOT_LOOKED_INTO: &str = "not looked into";

/// What is said of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Who made it, what it is called, serial number and UUID of its mainboard.
    pub system: System,
    /// How its firmware boots.
    pub firmware: Option<Firmware>,
    /// Its processors.
    pub cpu: Cpu,
    /// Bytes of memory.
    pub memory: u64,
    /// Its network cards; the first is the one it boots from.
    pub macs: Vec<Mac>,
    /// Its disks.
    pub disks: Vec<ToldDisk>,
}

/// What is said of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToldDisk {
    /// What its system calls it.
    pub name: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// World-wide name.
    pub wwn: Option<String>,
    /// Bytes.
    pub size: u64,
}

impl Told {
    /// As an installer would tell it. How its firmware boots is a guess where nobody said it: look at
    /// [`Told::firmware`].
    pub fn inventory(&self) -> Inventory {
        Inventory {
            firmware: self.firmware.unwrap_or(Firmware::Uefi),
            system: self.system.clone(),
            cpu: self.cpu.clone(),
            memory: self.memory,
            nics: self.macs.iter().copied().map(nic).collect(),
            disks: self.disks.iter().cloned().map(disk).collect(),
        }
    }
}

/// The inventory with what its BMC says of what nobody else spoke of. Cores stand for threads: a BMC counts those.
pub fn with_parts(inventory: &Inventory, parts: &Parts) -> Inventory {
    let mut known = inventory.clone();
    let of = |kind| parts.parts.iter().filter(move |part| part.kind == kind);
    if known.cpu.model.is_empty() {
        known.cpu.model = of(PartKind::Processor).find_map(|part| part.model.clone()).unwrap_or_default();
    }
    if known.cpu.threads == 0 {
        known.cpu.threads = u32::try_from(sizes(of(PartKind::Processor))).unwrap_or(u32::MAX);
    }
    if known.memory == 0 {
        known.memory = sizes(of(PartKind::Memory));
    }
    let mut macs: BTreeSet<_> = known.nics.iter().map(|nic| nic.mac).collect();
    for mac in of(PartKind::Nic).flat_map(|part| &part.macs) {
        if known.nics.len() < MAX_PARTS && macs.insert(*mac) {
            known.nics.push(nic(*mac));
        }
    }
    let mut serials: BTreeSet<_> = known.disks.iter().map(|disk| disk.serial.clone()).collect();
    for part in of(PartKind::Drive) {
        let serial = part.serial.clone().unwrap_or_default();
        if !serial.is_empty() && known.disks.len() < MAX_PARTS && serials.insert(serial.clone()) {
            let model = part.model.clone().unwrap_or_default();
            let size = part.size.unwrap_or_default();
            known.disks.push(disk(ToldDisk { name: part.slot.clone(), model, serial, wwn: None, size }));
        }
    }
    known
}

fn sizes<'a>(parts: impl Iterator<Item = &'a Part>) -> u64 {
    parts.filter_map(|part| part.size).fold(0, u64::saturating_add)
}

fn nic(mac: Mac) -> Nic {
    Nic { name: String::new(), mac, driver: String::new(), link: false }
}

fn disk(told: ToldDisk) -> Disk {
    let ToldDisk { name, model, serial, wwn, size } = told;
    let content = Content::Data(NOT_LOOKED_INTO.to_owned());
    Disk { name, model, serial, wwn, size, sector: 512, rotational: false, content }
}

/// Why a machine cannot have an address on the provisioning network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// It is no host's there.
    #[error("{0} is no machine's address on the rack's network {1}")]
    NotThere(Ipv4Addr, String),
    /// Somebody has it.
    #[error("{0} is taken on the rack's network")]
    Taken(Ipv4Addr),
    /// There is none outside of the range that the node gives to strangers.
    #[error(
        "no address of the rack's network {0} is free outside of the range that its node gives to strangers; say one"
    )]
    None(String),
}

/// The address a machine has on the provisioning network from now on: the one that is wanted, or the first that
/// is neither `taken` nor given to strangers.
pub fn address(network: &Network, taken: &BTreeSet<Ipv4Addr>, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, NoAddress> {
    let (subnet, node) = (network.node.trunc(), network.node.addr());
    let is_host = |address: Ipv4Addr| {
        subnet.contains(&address)
            && ![subnet.network(), subnet.broadcast(), node].contains(&address)
            && network.gateway != Some(address)
    };
    if let Some(wanted) = wanted {
        return match (is_host(wanted), taken.contains(&wanted)) {
            (false, _) => Err(NoAddress::NotThere(wanted, subnet.to_string())),
            (true, true) => Err(NoAddress::Taken(wanted)),
            (true, false) => Ok(wanted),
        };
    }
    let (first, last) = network.delegated;
    let is_strangers = |address: Ipv4Addr| (first..=last).contains(&address);
    let mut free = subnet.hosts().filter(|it| is_host(*it) && !is_strangers(*it) && !taken.contains(it));
    free.next().ok_or_else(|| NoAddress::None(subnet.to_string()))
}

/// What was said and found of one mainboard, when that is not the same.
pub fn is_other(told: &System, serial: Option<&str>, uuid: Option<Uuid>) -> bool {
    let serials = serial.is_some_and(|serial| !told.serial.is_empty() && told.serial != serial);
    let same = |one: Uuid, other: Uuid| one == other || one == Uuid::from_bytes(other.to_bytes_le());
    // Beside the same serial number another UUID says nothing: over IPMI many BMCs tell one of their own.
    let is_known = serial.is_some_and(|serial| !serial.is_empty() && told.serial == serial);
    serials || !is_known && told.uuid.zip(uuid).is_some_and(|(told, found)| !same(told, found))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(kind: PartKind, serial: &str, size: u64, macs: Vec<Mac>) -> Part {
        Part {
            kind,
            slot: "slot 1".into(),
            vendor: None,
            model: Some("told by the BMC".into()),
            part_number: None,
            serial: Some(serial.to_owned()).filter(|serial| !serial.is_empty()),
            firmware: None,
            size: Some(size),
            macs,
            severity: None,
        }
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn a_bmc_fills_in_what_nobody_said_and_replaces_nothing() {
        let told = Told {
            cpu: Cpu { model: "said".into(), threads: 0 },
            macs: vec![mac(1)],
            disks: vec![ToldDisk { serial: "D1".into(), ..ToldDisk::default() }],
            ..Told::default()
        };
        let parts = vec![
            part(PartKind::Processor, "", 8, Vec::new()),
            part(PartKind::Processor, "", 8, Vec::new()),
            part(PartKind::Memory, "m", 1 << 30, Vec::new()),
            part(PartKind::Nic, "n", 0, vec![mac(1), mac(2)]),
            part(PartKind::Drive, "D1", 5, Vec::new()),
            part(PartKind::Drive, "D2", 5, Vec::new()),
            part(PartKind::Drive, "", 5, Vec::new()),
        ];
        let known = with_parts(&told.inventory(), &Parts { parts, skipped: Vec::new() });
        assert_eq!((known.cpu.model.as_str(), known.cpu.threads, known.memory), ("said", 16, 1 << 30));
        assert_eq!(known.nics.iter().map(|nic| nic.mac).collect::<Vec<_>>(), [mac(1), mac(2)]);
        let disks: Vec<_> = known.disks.iter().map(|disk| (disk.model.as_str(), disk.serial.as_str())).collect();
        assert_eq!(disks, [("", "D1"), ("told by the BMC", "D2")]);
        assert!(crate::identity::contradictions(&told.inventory(), &known).is_empty());
    }

    #[test]
    fn a_bmc_of_another_board_is_noticed_and_a_uuid_of_its_own_is_not() {
        let uuid = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let told = System { serial: "S1".into(), uuid: Some(uuid), ..System::default() };
        assert!(is_other(&told, Some("S2"), Some(uuid)));
        assert!(!is_other(&told, Some("S1"), Some(Uuid::from_u128(9))));
        assert!(is_other(&told, None, Some(Uuid::from_u128(9))));
        assert!(!is_other(&told, None, Some(Uuid::from_bytes(uuid.to_bytes_le()))));
        assert!(!is_other(&System::default(), Some("S2"), Some(uuid)));
    }

    fn network() -> Network {
        Network {
            node: "10.77.0.1/28".parse().unwrap(),
            gateway: Some("10.77.0.14".parse().unwrap()),
            dns: Vec::new(),
            delegated: ("10.77.0.4".parse().unwrap(), "10.77.0.12".parse().unwrap()),
        }
    }

    fn host(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, last)
    }

    #[test]
    fn an_address_is_one_that_nobody_has_and_no_stranger_is_given() {
        let taken = |all: &[u8]| all.iter().copied().map(host).collect();
        assert_eq!(address(&network(), &taken(&[]), None), Ok(host(2)));
        assert_eq!(address(&network(), &taken(&[2, 3]), None), Ok(host(13)));
        assert!(matches!(address(&network(), &taken(&[2, 3, 13]), None), Err(NoAddress::None(_))));
        assert_eq!(address(&network(), &taken(&[2]), Some(host(5))), Ok(host(5)));
        assert_eq!(address(&network(), &taken(&[2]), Some(host(2))), Err(NoAddress::Taken(host(2))));
        for last in [0, 1, 14, 15, 16] {
            assert!(
                matches!(address(&network(), &taken(&[]), Some(host(last))), Err(NoAddress::NotThere(..))),
                "{last}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_machine_gets_the_address_of_another(taken in proptest::collection::btree_set(0u8..20, 0..16)) {
            let taken: BTreeSet<_> = taken.into_iter().map(host).collect();
            if let Ok(given) = address(&network(), &taken, None) {
                prop_assert!(!taken.contains(&given) && ![host(0), host(1), host(14), host(15)].contains(&given));
                prop_assert!(!(host(4)..=host(12)).contains(&given));
            }
        }
    }
}
