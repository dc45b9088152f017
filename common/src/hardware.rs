//! A machine's hardware in detail, slot by slot: what its installer reads beside the
//! [`Inventory`](crate::machine::Inventory), which says what the machine *is*. Nothing destructive
//! is decided by what stands here: firmware tells most of it, and firmware is often wrong.
//!
//! Stored and sent as JSON, also inside a binary message ([`readable`]): every field is optional,
//! and there will be more of them, which are left out while they are empty.
//!
//! Invariant: what [`Hardware::sound`] gives is within [`MAX_JSON`], has printable texts of at most
//! [`MAX_TEXT`] bytes and at most [`MAX_ITEMS`] of everything.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{bmc::baseline::DATABASES, machine::Mac};

/// The longest text, in bytes.
pub const MAX_TEXT: usize = 64;

/// The most memory modules, processors, slots, devices, cards or disks.
pub const MAX_ITEMS: usize = 128;

/// The longest that all of it is as JSON, in bytes.
pub const MAX_JSON: usize = 64 << 10;

/// What is in a machine, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// Mainboard (SMBIOS type 2).
    pub board: Board,
    /// System firmware (SMBIOS type 0).
    pub bios: Bios,
    /// Chassis (SMBIOS type 3).
    pub chassis: Board,
    /// Processor sockets (SMBIOS type 4), the empty ones too.
    pub processors: Vec<Socket>,
    /// Memory slots (SMBIOS type 17), the empty ones too.
    pub memory: Vec<Dimm>,
    /// What the memory controllers corrected and could not correct, since the installer started.
    pub ecc: Vec<Ecc>,
    /// Expansion slots (SMBIOS type 9), the empty ones too.
    pub slots: Vec<Slot>,
    /// PCI devices that do work: storage, network, display and accelerators. No bridges.
    pub devices: Vec<Device>,
    /// Network ports, by kernel name.
    pub ports: Vec<Port>,
    /// Disks, by kernel name.
    pub drives: Vec<Drive>,
    /// Version of the TPM: `2.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<String>,
    /// Whether UEFI Secure Boot is on; absent on a BIOS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
    /// Digest of what is in each key database of Secure Boot: `PK`, `KEK`, `db`, `dbx`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secure_boot_keys: BTreeMap<String, String>,
    /// Its BMC; absent when the machine has no way to it, or it does not answer there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bmc: Option<Bmc>,
}

/// A machine's BMC as it answers the machine itself, in-band: by IPMI's system interface (IPMI 2.0 §7.3),
/// which nobody else is on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bmc {
    /// Who made it; empty when that is nobody well known.
    pub maker: String,
    /// Version of its firmware.
    pub firmware: String,
    /// System GUID (§22.14).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guid: Option<Uuid>,
    /// Serial number of the machine in its inventory (product area of FRU 0).
    pub serial: String,
    /// Its LAN channels.
    pub lan: Vec<BmcLan>,
}

/// A LAN channel of a BMC (IPMI 2.0 §23.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BmcLan {
    /// Number of the channel.
    pub channel: u8,
    /// Ethernet address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// IP address; absent while it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Whether DHCP gives the address; absent when it is neither DHCP nor static.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_dhcp: Option<bool>,
}

/// A mainboard or chassis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Board {
    /// Manufacturer.
    pub vendor: String,
    /// Product name; of a chassis its form, in words.
    pub product: String,
    /// Version.
    pub version: String,
    /// Serial number.
    pub serial: String,
}

/// A machine's system firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bios {
    /// Who made it.
    pub vendor: String,
    /// Version.
    pub version: String,
    /// Release date, as its maker writes it.
    pub date: String,
}

/// A processor socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Socket {
    /// What is printed beside it.
    pub slot: String,
    /// Whether a processor is in it.
    pub populated: bool,
    /// Its model.
    pub model: String,
    /// Cores.
    pub cores: u32,
    /// Threads.
    pub threads: u32,
}

/// A memory slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dimm {
    /// What is printed beside it; unique in the machine.
    pub slot: String,
    /// Bytes; zero when the slot is empty.
    pub size: u64,
    /// `DDR4`, `DDR5`; empty when it does not tell.
    pub kind: String,
    /// Megatransfers per second it runs at; zero when it does not tell.
    pub speed: u32,
    /// Manufacturer.
    pub vendor: String,
    /// Part number.
    pub part: String,
    /// Serial number.
    pub serial: String,
}

/// Errors of one memory module or channel, as the kernel counts them (EDAC).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ecc {
    /// The kernel's name for it, which may not be the slot's.
    pub label: String,
    /// Corrected.
    pub corrected: u64,
    /// Not corrected.
    pub uncorrected: u64,
}

/// An expansion slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slot {
    /// What is printed beside it.
    pub name: String,
    /// PCI Express lanes of its connector; zero when it does not tell.
    pub lanes: u32,
    /// Whether something is in it; absent when it does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_use: Option<bool>,
    /// Its PCI address: `0000:3b:00.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A PCI Express link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Megatransfers per second per lane: 2500, 5000, 8000, 16000, 32000, 64000.
    pub speed: u32,
    /// Lanes.
    pub lanes: u32,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x{} at {}.{} GT/s", self.lanes, self.speed / 1000, self.speed % 1000 / 100)
    }
}

/// A PCI device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// `0000:3b:00.0`.
    pub address: String,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class code, three bytes: class, subclass, interface.
    pub class: u32,
    /// Kernel driver, when it has one.
    pub driver: String,
    /// The slot it is in, by the name of [`Slot`]; absent when it is on the board or nothing tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Its link as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// The most that it and the port it is on can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<Link>,
    /// Errors on its link that were corrected (Advanced Error Reporting).
    pub corrected: u64,
    /// Errors on its link that were not.
    pub uncorrected: u64,
}

impl Device {
    /// Its maker, where that is one of those often met, else the number.
    pub fn maker(&self) -> String {
        match VENDORS.iter().find(|(id, _)| *id == self.vendor) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("vendor {:04x}", self.vendor),
        }
    }

    /// What it is for.
    pub fn purpose(&self) -> &'static str {
        match self.class >> 8 {
            0x0108 => "NVMe controller",
            0x0104 => "RAID controller",
            0x0100..=0x01ff => "storage controller",
            0x0207 => "InfiniBand card",
            0x0200..=0x02ff => "network card",
            0x0300..=0x03ff => "GPU",
            0x1200..=0x12ff => "accelerator",
            _ => "device",
        }
    }

    /// Whether it draws or computes: PCI classes 03h and 12h.
    pub fn is_gpu(&self) -> bool {
        matches!(self.class >> 16, 0x03 | 0x12)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {} {:04x}:{:04x}", self.address, self.maker(), self.purpose(), self.vendor, self.device)
    }
}

const VENDORS: [(u16, &str); 18] = [
    (0x1000, "Broadcom/LSI"),
    (0x1002, "AMD"),
    (0x1022, "AMD"),
    (0x103c, "HPE"),
    (0x1077, "QLogic"),
    (0x10de, "NVIDIA"),
    (0x1344, "Micron"),
    (0x144d, "Samsung"),
    (0x14e4, "Broadcom"),
    (0x15b3, "Mellanox"),
    (0x1924, "Solarflare"),
    (0x1af4, "virtio"),
    (0x1b36, "QEMU"),
    (0x1b4b, "Marvell"),
    (0x1bb1, "Seagate"),
    (0x1dd8, "Pensando"),
    (0x8086, "Intel"),
    (0x9005, "Adaptec/Microchip"),
];

/// A network port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    /// Kernel name in the installer.
    pub name: String,
    /// Address it was made with; absent when its driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permanent: Option<Mac>,
    /// Whether it has a link.
    pub link: bool,
    /// Megabits per second; absent without a link, and when its driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<u32>,
    /// Firmware version, as its driver tells it.
    pub firmware: String,
    /// PCI address of its card.
    pub address: String,
    /// The transceiver plugged into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optics: Option<Optics>,
    /// Frames received with a wrong checksum, since the installer started.
    pub crc_errors: u64,
}

/// A transceiver (SFF-8472, SFF-8636).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Optics {
    /// Manufacturer.
    pub vendor: String,
    /// Part number.
    pub part: String,
    /// Serial number.
    pub serial: String,
}

/// What a disk tells of itself beyond the inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drive {
    /// Kernel name in the installer, as in the inventory.
    pub name: String,
    /// Firmware version.
    pub firmware: String,
    /// Physical sector size in bytes.
    pub physical_sector: u32,
    /// How it fares; absent when it does not tell: virtual disks, volumes of RAID controllers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<DriveHealth>,
}

/// How a disk says it fares: the SMART log of NVMe (Base Specification 2.0 §5.16.1.3), SMART of
/// ATA (ACS-3 §7.48), the informational exceptions page of SCSI (SPC-5 §7.3.7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DriveHealth {
    /// Why it says that it fails or is about to; empty when it does not.
    pub failing: Vec<String>,
    /// Per cent of its rated life that is used; may be over 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<u8>,
    /// Per cent of its spare blocks that are left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spare: Option<u8>,
    /// Degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<i16>,
    /// Hours it was powered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<u64>,
    /// Blocks it could not read or had to give up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_blocks: Option<u64>,
}

impl Hardware {
    /// Within its bounds: longer lists and texts are cut, the least telling first.
    #[must_use]
    pub fn sound(mut self) -> Self {
        for board in [&mut self.board, &mut self.chassis] {
            bound([&mut board.vendor, &mut board.product, &mut board.version, &mut board.serial]);
        }
        bound([&mut self.bios.vendor, &mut self.bios.version, &mut self.bios.date]);
        bound(&mut self.tpm);
        self.secure_boot_keys.retain(|name, digest| DATABASES.contains(&name.as_str()) && digest.len() == 64);
        each(&mut self.processors, |socket| bound([&mut socket.slot, &mut socket.model]));
        each(&mut self.memory, |dimm| {
            bound([&mut dimm.slot, &mut dimm.kind, &mut dimm.vendor, &mut dimm.part, &mut dimm.serial]);
        });
        each(&mut self.ecc, |ecc| bound([&mut ecc.label]));
        each(&mut self.slots, |slot| {
            bound([&mut slot.name].into_iter().chain(&mut slot.address));
        });
        each(&mut self.devices, |device| {
            bound([&mut device.address, &mut device.driver].into_iter().chain(&mut device.slot));
        });
        each(&mut self.ports, |port| {
            bound([&mut port.name, &mut port.firmware, &mut port.address]);
            if let Some(optics) = &mut port.optics {
                bound([&mut optics.vendor, &mut optics.part, &mut optics.serial]);
            }
        });
        if let Some(bmc) = &mut self.bmc {
            bound([&mut bmc.maker, &mut bmc.firmware, &mut bmc.serial]);
            bmc.lan.truncate(MAX_CHANNELS);
        }
        each(&mut self.drives, |drive| {
            bound([&mut drive.name, &mut drive.firmware]);
            if let Some(health) = &mut drive.health {
                health.failing.truncate(MAX_REASONS);
                bound(&mut health.failing);
            }
        });
        while self.json_len() > MAX_JSON {
            let longest = [
                self.ecc.len(),
                self.slots.len(),
                self.devices.len(),
                self.ports.len(),
                self.drives.len(),
                self.memory.len(),
                self.processors.len(),
            ];
            let most = longest.iter().max().copied().unwrap_or_default();
            let keep = most * 3 / 4;
            match longest.iter().position(|len| *len == most) {
                Some(0) => self.ecc.truncate(keep),
                Some(1) => self.slots.truncate(keep),
                Some(2) => self.devices.truncate(keep),
                Some(3) => self.ports.truncate(keep),
                Some(4) => self.drives.truncate(keep),
                Some(5) => self.memory.truncate(keep),
                _ => self.processors.truncate(keep),
            }
        }
        self
    }

    /// How long it is as JSON, in bytes.
    fn json_len(&self) -> usize {
        serde_json::to_vec(self).map_or(0, |json| json.len())
    }
}

/// LAN channels that are kept of a BMC: numbers 1 to 11 can be one.
const MAX_CHANNELS: usize = 11;

/// Reasons that are kept of one failing disk.
const MAX_REASONS: usize = 8;

fn each<T>(items: &mut Vec<T>, bound: impl FnMut(&mut T)) {
    items.truncate(MAX_ITEMS);
    items.iter_mut().for_each(bound);
}

fn bound<'a>(texts: impl IntoIterator<Item = &'a mut String>) {
    for text in texts {
        let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let trimmed = printable.trim();
        *text = trimmed[..trimmed.floor_char_boundary(MAX_TEXT)].trim_end().to_owned();
    }
}

/// As it is in JSON, and as JSON in a text where the encoding knows no optional fields.
pub mod readable {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

    use super::Hardware;

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(hardware: &Hardware, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return hardware.serialize(serializer);
        }
        let json = serde_json::to_string(hardware).map_err(ser::Error::custom)?;
        serializer.serialize_str(&json)
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    ///
    /// Those of the deserializer, or what is wrong with the JSON inside.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<Hardware>, D::Error> {
        if deserializer.is_human_readable() {
            return Box::<Hardware>::deserialize(deserializer);
        }
        let json = String::deserialize(deserializer)?;
        serde_json::from_str(&json).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dimm(slot: &str) -> Dimm {
        Dimm { slot: slot.into(), size: 16 << 30, part: "x".repeat(999), ..Dimm::default() }
    }

    #[test]
    fn what_a_machine_tells_is_cut_to_its_bounds() {
        let hostile = Hardware {
            board: Board { vendor: "Dell\u{1b}[2J Inc.\0".into(), ..Board::default() },
            memory: (0..9999).map(|number| dimm(&format!("A{number}"))).collect(),
            devices: vec![Device { driver: "ü".repeat(500), slot: Some("\n".repeat(99)), ..Device::default() }; 5000],
            drives: vec![
                Drive {
                    health: Some(DriveHealth { failing: vec!["y".repeat(5000); 500], ..DriveHealth::default() }),
                    ..Drive::default()
                };
                400
            ],
            bmc: Some(Bmc { serial: "z".repeat(999), lan: vec![BmcLan::default(); 500], ..Bmc::default() }),
            ..Hardware::default()
        };
        let sound = hostile.sound();
        let bmc = sound.bmc.as_ref().unwrap();
        assert_eq!((bmc.serial.len(), bmc.lan.len()), (MAX_TEXT, MAX_CHANNELS));
        assert!(sound.json_len() <= MAX_JSON, "{}", sound.json_len());
        assert_eq!(sound.board.vendor, "Dell [2J Inc.");
        assert!(sound.memory.len() > 20 && sound.memory.len() <= MAX_ITEMS, "{}", sound.memory.len());
        assert_eq!(sound.memory[0].part.len(), MAX_TEXT);
        assert_eq!(sound.devices[0].slot.as_deref(), Some(""));
        assert!(sound.devices[0].driver.len() <= MAX_TEXT);
        assert_eq!(sound.clone().sound(), sound);
    }

    #[test]
    fn what_is_told_by_another_version_is_read() {
        let later = r#"{"memory":[{"slot":"A1","size":1,"colour":"green"}],"fans":[]}"#;
        let read: Hardware = serde_json::from_str(later).unwrap();
        assert_eq!(read.memory[0].slot, "A1");
        assert_eq!(serde_json::from_str::<Hardware>("{}").unwrap(), Hardware::default());
    }

    #[test]
    fn a_link_and_a_device_read_well() {
        let device = Device {
            address: "0000:3b:00.0".into(),
            vendor: 0x15b3,
            device: 0x1017,
            class: 0x02_0000,
            ..Device::default()
        };
        assert_eq!(device.to_string(), "0000:3b:00.0, Mellanox network card 15b3:1017");
        assert_eq!(Link { speed: 8000, lanes: 8 }.to_string(), "x8 at 8.0 GT/s");
        assert_eq!(Link { speed: 2500, lanes: 1 }.to_string(), "x1 at 2.5 GT/s");
    }
}
