//! Facts about a machine, as its firmware and the installer report them. They are evidence
//! of which machine it is, not its name: that is [`MachineId`](crate::id::MachineId).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An Ethernet address (EUI-48).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six hexadecimal octets.
#[derive(Debug, thiserror::Error)]
#[error("not an Ethernet address (six hexadecimal octets, as in 52:54:00:12:34:56)")]
pub struct NotAMac;

impl FromStr for Mac {
    type Err = NotAMac;

    /// Accepts `:` and `-` between octets: iPXE writes the second form in file names.
    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(NotAMac)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| NotAMac)?;
        }
        parts.next().is_none().then_some(Self(octets)).ok_or(NotAMac)
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 6]>::deserialize(deserializer).map(Self)
        }
    }
}

/// How a machine's firmware boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// Legacy BIOS: boots the first sector of a disk, or a PXE ROM.
    Bios,
    /// UEFI: boots an EFI program from a disk's system partition or from the network.
    Uefi,
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
        })
    }
}

/// Chassis power, as a power driver reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// The machine runs.
    On,
    /// The machine is off.
    Off,
}

/// What the installer found in a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// How the machine was booted this time.
    pub firmware: Firmware,
    /// SMBIOS type 1 (DSP0134 §7.2).
    pub system: System,
    /// Processors, as the kernel counts them.
    pub cpu: Cpu,
    /// Installed memory in bytes, as the kernel sees it.
    pub memory: u64,
    /// Network cards with an Ethernet address.
    pub nics: Vec<Nic>,
    /// Whole disks; neither partitions nor removable media.
    pub disks: Vec<Disk>,
}

/// SMBIOS system information. Vendors leave any of it empty, wrong or duplicated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Manufacturer.
    pub vendor: String,
    /// Product name.
    pub product: String,
    /// Serial number.
    pub serial: String,
    /// System UUID in its usual text form, absent when it is all zeros or all ones.
    pub uuid: Option<uuid::Uuid>,
}

/// What tells one mainboard from another, as far as its vendor filled it in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mainboard {
    /// Serial number; empty when it tells none.
    pub serial: String,
    /// System UUID.
    pub uuid: Option<uuid::Uuid>,
}

impl System {
    /// The mainboard, when it tells anything of itself.
    pub fn mainboard(&self) -> Option<Mainboard> {
        let told = !self.serial.is_empty() || self.uuid.is_some();
        told.then(|| Mainboard { serial: self.serial.clone(), uuid: self.uuid })
    }
}

impl Mainboard {
    /// Whether another one was found. Vendors leave any of it empty, and firmware updates lose
    /// it: what is empty on one side tells nothing.
    pub fn is_other(&self, found: &Self) -> bool {
        let serials = !self.serial.is_empty() && !found.serial.is_empty() && self.serial != found.serial;
        let uuids = self.uuid.is_some() && found.uuid.is_some() && self.uuid != found.uuid;
        serials || uuids
    }
}

impl fmt::Display for Mainboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uuid = self.uuid.map_or("no UUID".to_owned(), |uuid| uuid.to_string());
        match self.serial.as_str() {
            "" => write!(f, "without serial number ({uuid})"),
            serial => write!(f, "{serial} ({uuid})"),
        }
    }
}

/// Processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Model name as the processor tells it.
    pub model: String,
    /// Logical processors.
    pub threads: u32,
}

/// A network card's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Kernel name in the installer; may differ in the installed system.
    pub name: String,
    /// Permanent address.
    pub mac: Mac,
    /// Kernel driver.
    pub driver: String,
    /// Whether it had a carrier.
    pub link: bool,
}

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Kernel name in the installer (`vda`, `nvme0n1`); may differ at the next boot.
    pub name: String,
    /// Model, empty when the disk tells none.
    pub model: String,
    /// Serial number, empty when the disk tells none.
    pub serial: String,
    /// World-wide name, when it has one.
    pub wwn: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Logical sector size in bytes: 512 or 4096.
    pub sector: u32,
    /// Whether it is a spinning disk.
    pub rotational: bool,
    /// What the first look found on it.
    pub content: Content,
}

/// What a disk holds, as far as its partition table and first blocks tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Nothing but zeros at the sampled places.
    Blank,
    /// Something, in the words of the finder: "GPT, 3 partitions".
    Data(String),
}

impl Disk {
    /// The strongest name the disk has for itself: WWN, else model and serial number. Absent
    /// for disks that tell neither; those are never written without an operator's word.
    pub fn identity(&self) -> Option<String> {
        match (&self.wwn, self.serial.as_str()) {
            (Some(wwn), _) => Some(wwn.clone()),
            (None, "") => None,
            (None, serial) => Some(format!("{}/{serial}", self.model)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_in_both_notations_and_nothing_else() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!("52:54:00:12:34:56".parse::<Mac>().unwrap(), mac);
        assert_eq!("52-54-00-12-34-56".parse::<Mac>().unwrap(), mac);
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:5", "x"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
