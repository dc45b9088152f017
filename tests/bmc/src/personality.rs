//! What makes one BMC differ from another, as data. The presets are in the style of what is
//! found in the field; none claims to be a vendor's product.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A BMC and its machine as they come from the factory.
#[derive(Clone, Debug)]
pub struct Personality {
    /// Manufacturer of the machine.
    pub vendor: String,
    /// Its IANA enterprise number.
    pub enterprise: u32,
    /// Product name of the machine.
    pub model: String,
    /// What the BMC itself is called.
    pub manager: String,
    /// Serial number of the machine.
    pub serial: String,
    /// Serial number of its mainboard.
    pub board_serial: String,
    /// Number to order the machine by.
    pub part_number: String,
    /// System UUID of the machine.
    pub uuid: Uuid,
    /// Version of the BMC's firmware: major below 128, minor below 100.
    pub firmware: (u8, u8),
    /// Version of the machine's firmware.
    pub bios: String,
    /// Its sensors, numbered from 1 in this order.
    pub sensors: Vec<SensorSpec>,
    /// Its memory modules.
    pub dimms: Vec<Dimm>,
    /// Its drives.
    pub drives: Vec<Drive>,
    /// Its network ports.
    pub nics: Vec<Nic>,
    /// Who may log in at first.
    pub users: Vec<UserSpec>,
    /// The BMC's own network.
    pub lan: Lan,
    /// IPMI cipher suites it accepts, of 1, 2, 3, 15, 16 and 17.
    pub suites: Vec<u8>,
    /// Whether it speaks IPMI.
    pub has_ipmi: bool,
    /// Whether it speaks Redfish.
    pub has_redfish: bool,
    /// Which generation of Redfish's thermal and power resources it has.
    pub thermal: ThermalSchema,
    /// Names in the paths of its Redfish resources.
    pub ids: Ids,
    /// Where it departs from what is common.
    pub quirks: Quirks,
}

/// Names in the paths of Redfish resources.
#[derive(Clone, Debug)]
pub struct Ids {
    /// Of the system.
    pub system: String,
    /// Of the chassis.
    pub chassis: String,
    /// Of the manager.
    pub manager: String,
}

/// Which generation of Redfish's thermal and power resources a BMC has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThermalSchema {
    /// `Thermal` and `Power`.
    Old,
    /// `ThermalSubsystem`, `PowerSubsystem` and `Sensors`.
    New,
    /// Both.
    Both,
}

/// In which order the bytes of a GUID come over IPMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuidOrder {
    /// Least significant first, as IPMI 2.0 §20.8 says.
    Ipmi,
    /// As in SMBIOS: the first three fields least significant first.
    Smbios,
    /// As RFC 4122 has it.
    Rfc4122,
}

/// Where a BMC departs from what is common.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// In which order it gives the GUID's bytes.
    pub guid: GuidOrder,
    /// Whether boot flags lapse 60 s after they were set over IPMI (IPMI 2.0 §28.12, parameter 3).
    pub boot_flags_lapse: bool,
    /// The longest record or FRU area part it reads at once.
    pub longest_read: u8,
    /// Whether a PATCH without `If-Match` is refused where there is an ETag.
    pub needs_etag: bool,
    /// Where the log hangs: under the manager (true) or under the system (false).
    pub log_under_manager: bool,
    /// Name of the log in its path.
    pub log: String,
    /// Settings of the machine's firmware, with what each may be.
    pub bios_attributes: Vec<(String, String, Vec<String>)>,
}

/// A sensor as it comes from the factory.
#[derive(Clone, Debug)]
pub struct SensorSpec {
    /// What it is called, at most 16 bytes.
    pub name: String,
    /// What it measures.
    pub kind: Kind,
    /// IPMI entity it belongs to: id and instance.
    pub entity: (u8, u8),
    /// What it reads at first; for a discrete one, the states that are asserted as bits.
    pub reading: Reading,
    /// Whether it reads nothing while the machine is off.
    pub needs_power: bool,
}

/// What a sensor measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Degrees Celsius.
    Temperature,
    /// Revolutions per minute.
    Fan,
    /// Volts.
    Voltage,
    /// Amperes.
    Current,
    /// Watts.
    Power,
    /// Discrete: a power supply.
    PowerSupply,
    /// Discrete: the chassis' safety.
    Intrusion,
    /// Discrete: memory.
    Memory,
    /// Discrete: a processor.
    Processor,
    /// Discrete: a drive's slot.
    DriveSlot,
}

/// What a sensor reads.
#[derive(Clone, Debug)]
pub enum Reading {
    /// A value, with how it becomes a byte and where the lines are drawn.
    Analog {
        /// In the kind's unit.
        value: f64,
        /// How it becomes a byte.
        scale: Scale,
        /// Where the lines are drawn.
        thresholds: Thresholds,
    },
    /// The states that are asserted, as bits by the sensor-specific offsets of IPMI 2.0 table 42-3.
    Discrete(u16),
}

/// `value = (m × raw + b × 10^b_exponent) × 10^exponent` (IPMI 2.0 §36.3).
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Factor, ten bits signed.
    pub m: i16,
    /// Offset, ten bits signed.
    pub b: i16,
    /// Exponent of the offset, four bits signed.
    pub b_exponent: i8,
    /// Exponent of the result, four bits signed.
    pub exponent: i8,
    /// Whether the raw byte is two's complement.
    pub is_signed: bool,
}

/// Where the lines are drawn, in the sensor's unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Lower non-critical.
    pub lower_warning: Option<f64>,
    /// Lower critical.
    pub lower_critical: Option<f64>,
    /// Lower non-recoverable.
    pub lower_fatal: Option<f64>,
    /// Upper non-critical.
    pub upper_warning: Option<f64>,
    /// Upper critical.
    pub upper_critical: Option<f64>,
    /// Upper non-recoverable.
    pub upper_fatal: Option<f64>,
}

/// A memory module.
#[derive(Clone, Debug)]
pub struct Dimm {
    /// Where it is.
    pub slot: String,
    /// Who made it.
    pub vendor: String,
    /// Number to order it by.
    pub part_number: String,
    /// Serial number.
    pub serial: String,
    /// Its size in MiB.
    pub mebibytes: u64,
}

/// A drive.
#[derive(Clone, Debug)]
pub struct Drive {
    /// What it is called.
    pub name: String,
    /// Who made it.
    pub vendor: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Version of its firmware.
    pub firmware: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it is NVMe rather than SATA.
    pub is_nvme: bool,
}

/// A port of a network card.
#[derive(Clone, Debug)]
pub struct Nic {
    /// What it is called.
    pub name: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its speed in Mbit/s.
    pub speed: u64,
}

/// Who may log in at first.
#[derive(Clone, Debug)]
pub struct UserSpec {
    /// Name, at most 16 bytes.
    pub name: String,
    /// Password, at most 20 bytes.
    pub password: String,
    /// What it may do.
    pub role: Role,
}

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing.
    None,
    /// Read: user privilege, `ReadOnly`.
    User,
    /// Power and boot too: operator privilege, `Operator`.
    Operator,
    /// Everything: administrator privilege, `Administrator`.
    Administrator,
}

/// A BMC's own network, IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its address.
    pub address: [u8; 4],
    /// Its netmask.
    pub netmask: [u8; 4],
    /// Its default router.
    pub gateway: [u8; 4],
    /// Whether a DHCP server gives its address.
    pub is_dhcp: bool,
    /// Its VLAN.
    pub vlan: Option<u16>,
}

impl Personality {
    /// The preset of this name: `generic`, `dell-like`, `hpe-like` or `supermicro-like`. `number`
    /// tells machines apart: their serial numbers, UUIDs and Ethernet addresses come of it.
    pub fn preset(name: &str, number: u16) -> Option<Self> {
        match name {
            "generic" => Some(Self::generic(number)),
            "dell-like" => Some(Self::dell_like(number)),
            "hpe-like" => Some(Self::hpe_like(number)),
            "supermicro-like" => Some(Self::supermicro_like(number)),
            _ => None,
        }
    }

    /// Names of the presets.
    pub const PRESETS: [&str; 4] = ["generic", "dell-like", "hpe-like", "supermicro-like"];

    /// As the standards have it: both generations of Redfish's resources, both mandatory suites.
    pub fn generic(number: u16) -> Self {
        let mac = |last: u8| [0x02, 0xbc, 0x00, (number >> 8) as u8, number as u8, last];
        Self {
            vendor: "Acme".into(),
            enterprise: 0,
            model: "Bench 1U".into(),
            manager: "Bench BMC".into(),
            serial: format!("SN{number:06}"),
            board_serial: format!("MB{number:06}"),
            part_number: "B1U-2200".into(),
            uuid: Uuid::from_u128(0x6d2f_1c70_93a4_4b5e_8c11_0000_0000_0000 + u128::from(number) + 1),
            firmware: (2, 17),
            bios: "1.4.2".into(),
            sensors: sensors(),
            dimms: (0..4)
                .map(|slot| Dimm {
                    slot: format!("DIMM A{}", slot + 1),
                    vendor: "Memco".into(),
                    part_number: "M393A4K40DB3".into(),
                    serial: format!("{:08X}", 0x5100_0000 + u32::from(number) * 16 + slot),
                    mebibytes: 32768,
                })
                .collect(),
            drives: vec![
                Drive {
                    name: "Drive 0".into(),
                    vendor: "Diskco".into(),
                    model: "NV960".into(),
                    serial: format!("NV{number:06}A"),
                    firmware: "EDA7".into(),
                    bytes: 960_197_124_096,
                    is_nvme: true,
                },
                Drive {
                    name: "Drive 1".into(),
                    vendor: "Diskco".into(),
                    model: "SA480".into(),
                    serial: format!("SA{number:06}B"),
                    firmware: "1.02".into(),
                    bytes: 480_103_981_056,
                    is_nvme: false,
                },
            ],
            nics: (0..2u8)
                .map(|port| Nic { name: format!("NIC {}", port + 1), mac: mac(port + 1), speed: 25_000 })
                .collect(),
            users: vec![UserSpec { name: "admin".into(), password: "calvin-0".into(), role: Role::Administrator }],
            lan: Lan {
                mac: mac(0),
                address: [10, 20, (number >> 8) as u8, number as u8],
                netmask: [255, 255, 0, 0],
                gateway: [10, 20, 255, 254],
                is_dhcp: true,
                vlan: None,
            },
            suites: vec![3, 17],
            has_ipmi: true,
            has_redfish: true,
            thermal: ThermalSchema::Both,
            ids: Ids { system: "1".into(), chassis: "1".into(), manager: "1".into() },
            quirks: Quirks {
                guid: GuidOrder::Ipmi,
                boot_flags_lapse: true,
                longest_read: 64,
                needs_etag: false,
                log_under_manager: false,
                log: "SEL".into(),
                bios_attributes: vec![
                    ("BootMode".into(), "Uefi".into(), vec!["Uefi".into(), "Bios".into()]),
                    ("SriovGlobalEnable".into(), "Disabled".into(), vec!["Enabled".into(), "Disabled".into()]),
                    ("ProcVirtualization".into(), "Enabled".into(), vec!["Enabled".into(), "Disabled".into()]),
                ],
            },
        }
    }

    /// Old resources with long names in their paths, the log under the manager, GUID as in SMBIOS.
    pub fn dell_like(number: u16) -> Self {
        let generic = Self::generic(number);
        Self {
            vendor: "Dell-like".into(),
            enterprise: 674,
            model: "Rack R650".into(),
            manager: "Remote Access Controller".into(),
            serial: format!("7G{number:05}"),
            firmware: (6, 10),
            users: vec![UserSpec { name: "root".into(), password: "calvin".into(), role: Role::Administrator }],
            thermal: ThermalSchema::Old,
            ids: Ids {
                system: "System.Embedded.1".into(),
                chassis: "System.Embedded.1".into(),
                manager: "Embedded.1".into(),
            },
            quirks: Quirks {
                guid: GuidOrder::Smbios,
                boot_flags_lapse: false,
                log_under_manager: true,
                log: "Sel".into(),
                ..generic.quirks
            },
            ..generic
        }
    }

    /// New resources only, changes need the ETag, IPMI with SHA-256 only.
    pub fn hpe_like(number: u16) -> Self {
        let generic = Self::generic(number);
        Self {
            vendor: "HPE-like".into(),
            enterprise: 47196,
            model: "Line DL360".into(),
            manager: "Lights-Out".into(),
            serial: format!("CZ{number:08}"),
            firmware: (3, 8),
            users: vec![UserSpec {
                name: "Administrator".into(),
                password: "A1B2C3D4".into(),
                role: Role::Administrator,
            }],
            suites: vec![17],
            thermal: ThermalSchema::New,
            quirks: Quirks {
                guid: GuidOrder::Rfc4122,
                needs_etag: true,
                log: "IML".into(),
                longest_read: 24,
                ..generic.quirks
            },
            ..generic
        }
    }

    /// Old resources, small reads, GUID as in SMBIOS, a name and password in capitals.
    pub fn supermicro_like(number: u16) -> Self {
        let generic = Self::generic(number);
        Self {
            vendor: "Supermicro-like".into(),
            enterprise: 10876,
            model: "SYS-1029".into(),
            manager: "AST2500-like".into(),
            serial: format!("S{number:07}X"),
            firmware: (1, 73),
            users: vec![UserSpec { name: "ADMIN".into(), password: "ADMIN".into(), role: Role::Administrator }],
            thermal: ThermalSchema::Old,
            quirks: Quirks {
                guid: GuidOrder::Smbios,
                longest_read: 16,
                log_under_manager: true,
                log: "Log1".into(),
                ..generic.quirks
            },
            ..generic
        }
    }
}

/// One byte is one unit.
const ONE: Scale = Scale { m: 1, b: 0, b_exponent: 0, exponent: 0, is_signed: false };

/// Sensors of an ordinary machine.
fn sensors() -> Vec<SensorSpec> {
    let analog = |name: &str, kind, entity, value, scale, thresholds, needs_power| SensorSpec {
        name: name.into(),
        kind,
        entity,
        reading: Reading::Analog { value, scale, thresholds },
        needs_power,
    };
    let hot = |warning, critical, fatal| Thresholds {
        lower_warning: Some(5.0),
        lower_critical: Some(0.0),
        upper_warning: Some(warning),
        upper_critical: Some(critical),
        upper_fatal: Some(fatal),
        ..Thresholds::default()
    };
    let signed = Scale { is_signed: true, ..ONE };
    let slow = Thresholds { lower_warning: Some(1120.0), lower_critical: Some(560.0), ..Thresholds::default() };
    let about = |volts: f64| Thresholds {
        lower_warning: Some(volts * 0.93),
        lower_critical: Some(volts * 0.9),
        upper_warning: Some(volts * 1.07),
        upper_critical: Some(volts * 1.1),
        ..Thresholds::default()
    };
    let rpm = Scale { m: 14, exponent: 1, ..ONE };
    let volts = |m| Scale { m, exponent: -3, ..ONE };
    let discrete = |name: &str, kind, entity, states| SensorSpec {
        name: name.into(),
        kind,
        entity,
        reading: Reading::Discrete(states),
        needs_power: false,
    };
    vec![
        analog("Inlet Temp", Kind::Temperature, (0x37, 1), 23.0, signed, hot(38.0, 42.0, 47.0), false),
        analog("CPU1 Temp", Kind::Temperature, (3, 1), 52.0, signed, hot(85.0, 95.0, 100.0), true),
        analog("CPU2 Temp", Kind::Temperature, (3, 2), 49.0, signed, hot(85.0, 95.0, 100.0), true),
        analog("Fan1", Kind::Fan, (0x1d, 1), 8400.0, rpm, slow, true),
        analog("Fan2", Kind::Fan, (0x1d, 2), 8540.0, rpm, slow, true),
        analog("Fan3", Kind::Fan, (0x1d, 3), 8260.0, rpm, slow, true),
        analog("12V", Kind::Voltage, (7, 1), 12.096, volts(63), about(12.0), true),
        analog("5V", Kind::Voltage, (7, 2), 5.049, volts(27), about(5.0), true),
        // With an offset, so that every part of the formula matters.
        analog(
            "VBAT",
            Kind::Voltage,
            (7, 3),
            3.02,
            Scale { m: 1, b: 15, b_exponent: 1, exponent: -2, is_signed: false },
            Thresholds { lower_warning: Some(2.5), lower_critical: Some(2.2), ..Thresholds::default() },
            false,
        ),
        analog(
            "PS1 Current",
            Kind::Current,
            (0x0a, 1),
            1.2,
            Scale { m: 1, exponent: -1, ..ONE },
            Thresholds::default(),
            false,
        ),
        analog(
            "System Power",
            Kind::Power,
            (7, 4),
            264.0,
            Scale { m: 4, ..ONE },
            Thresholds { upper_warning: Some(800.0), upper_critical: Some(900.0), ..Thresholds::default() },
            false,
        ),
        discrete("PS1 Status", Kind::PowerSupply, (0x0a, 1), 1),
        discrete("PS2 Status", Kind::PowerSupply, (0x0a, 2), 1),
        discrete("Intrusion", Kind::Intrusion, (0x17, 1), 0),
        discrete("ECC", Kind::Memory, (0x20, 1), 0),
        discrete("CPU1 Status", Kind::Processor, (3, 1), 0x80),
        discrete("Drive 0", Kind::DriveSlot, (4, 1), 1),
    ]
}
