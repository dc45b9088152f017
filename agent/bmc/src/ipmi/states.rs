//! The standard's words for what discrete sensors and events say (IPMI 2.0 tables 42-2 and 42-3).

use std::borrow::Cow;

use crate::told::{
    SensorKind,
    Severity::{self, Critical as C, Ok as O, Warning as W},
};

/// A state in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The standard's words, or its number.
    pub words: Cow<'static, str>,
    /// How bad it is; absent when the standard does not know it.
    pub severity: Option<Severity>,
}

type Table = &'static [(&'static str, Severity)];

/// Every state that is asserted, by a bit each.
pub fn states(reading: u8, kind: u8, asserted: u16) -> Vec<State> {
    (0..15).filter(|offset| asserted >> offset & 1 != 0).map(|offset| state(reading, kind, offset)).collect()
}

/// One state, by its offset.
pub fn state(reading: u8, kind: u8, offset: u8) -> State {
    let table = match reading {
        SPECIFIC => specific(kind),
        generic_type => generic(generic_type),
    };
    match table.get(usize::from(offset)) {
        Some((words, severity)) if !words.is_empty() => {
            State { words: Cow::Borrowed(words), severity: Some(*severity) }
        }
        _ => State { words: Cow::Owned(format!("state {offset} of type {reading:#04x}")), severity: None },
    }
}

/// The event/reading type whose states belong to the sensor's type.
pub const SPECIFIC: u8 = 0x6f;

/// What a sensor of this type measures.
pub fn kind(sensor_type: u8) -> SensorKind {
    match sensor_type {
        0x01 => SensorKind::Temperature,
        0x02 => SensorKind::Voltage,
        0x03 => SensorKind::Current,
        0x04 => SensorKind::Fan,
        0x05 | 0x06 => SensorKind::Intrusion,
        0x07 => SensorKind::Processor,
        0x08 => SensorKind::PowerSupply,
        0x0c => SensorKind::Memory,
        0x0d => SensorKind::Drive,
        _ => SensorKind::Other,
    }
}

/// What a sensor type is called.
pub fn type_name(sensor_type: u8) -> Option<&'static str> {
    const NAMES: [&str; 0x2d] = [
        "",
        "Temperature",
        "Voltage",
        "Current",
        "Fan",
        "Physical Security",
        "Platform Security",
        "Processor",
        "Power Supply",
        "Power Unit",
        "Cooling Device",
        "Other Units-based Sensor",
        "Memory",
        "Drive Slot",
        "POST Memory Resize",
        "System Firmware",
        "Event Logging Disabled",
        "Watchdog 1",
        "System Event",
        "Critical Interrupt",
        "Button",
        "Module / Board",
        "Microcontroller",
        "Add-in Card",
        "Chassis",
        "Chip Set",
        "Other FRU",
        "Cable / Interconnect",
        "Terminator",
        "System Boot Initiated",
        "Boot Error",
        "OS Boot",
        "OS Critical Stop",
        "Slot / Connector",
        "System ACPI Power State",
        "Watchdog 2",
        "Platform Alert",
        "Entity Presence",
        "Monitor ASIC / IC",
        "LAN",
        "Management Subsystem Health",
        "Battery",
        "Session Audit",
        "Version Change",
        "FRU State",
    ];
    NAMES.get(usize::from(sensor_type)).copied().filter(|name| !name.is_empty())
}

/// Table 42-2.
fn generic(reading: u8) -> Table {
    match reading {
        0x01 => &[
            ("Lower Non-critical going low", W),
            ("Lower Non-critical going high", W),
            ("Lower Critical going low", C),
            ("Lower Critical going high", C),
            ("Lower Non-recoverable going low", C),
            ("Lower Non-recoverable going high", C),
            ("Upper Non-critical going low", W),
            ("Upper Non-critical going high", W),
            ("Upper Critical going low", C),
            ("Upper Critical going high", C),
            ("Upper Non-recoverable going low", C),
            ("Upper Non-recoverable going high", C),
        ],
        0x02 => &[("Transition to Idle", O), ("Transition to Active", O), ("Transition to Busy", O)],
        0x03 => &[("State Deasserted", O), ("State Asserted", O)],
        0x04 => &[("Predictive Failure Deasserted", O), ("Predictive Failure Asserted", W)],
        0x05 => &[("Limit Not Exceeded", O), ("Limit Exceeded", W)],
        0x06 => &[("Performance Met", O), ("Performance Lags", W)],
        0x07 => &[
            ("Transition to OK", O),
            ("Transition to Non-Critical from OK", W),
            ("Transition to Critical from less severe", C),
            ("Transition to Non-recoverable from less severe", C),
            ("Transition to Non-Critical from more severe", W),
            ("Transition to Critical from Non-recoverable", C),
            ("Transition to Non-recoverable", C),
            ("Monitor", O),
            ("Informational", O),
        ],
        0x08 => &[("Device Absent", O), ("Device Present", O)],
        0x09 => &[("Device Disabled", O), ("Device Enabled", O)],
        0x0a => &[
            ("Transition to Running", O),
            ("Transition to In Test", O),
            ("Transition to Power Off", O),
            ("Transition to On Line", O),
            ("Transition to Off Line", O),
            ("Transition to Off Duty", O),
            ("Transition to Degraded", W),
            ("Transition to Power Save", O),
            ("Install Error", W),
        ],
        0x0b => &[
            ("Fully Redundant", O),
            ("Redundancy Lost", W),
            ("Redundancy Degraded", W),
            ("Non-Redundant: Sufficient from Redundant", W),
            ("Non-Redundant: Sufficient from Insufficient", W),
            ("Non-Redundant: Insufficient Resources", C),
            ("Redundancy Degraded from Fully Redundant", W),
            ("Redundancy Degraded from Non-Redundant", W),
        ],
        0x0c => &[("D0 Power State", O), ("D1 Power State", O), ("D2 Power State", O), ("D3 Power State", O)],
        _ => &[],
    }
}

/// Table 42-3.
fn specific(sensor_type: u8) -> Table {
    match sensor_type {
        0x05 => &[
            ("General Chassis intrusion", W),
            ("Drive Bay intrusion", W),
            ("I/O Card area intrusion", W),
            ("Processor area intrusion", W),
            ("LAN Leash Lost", W),
            ("Unauthorized dock", W),
            ("Fan area intrusion", W),
        ],
        0x06 => &[
            ("Secure mode violation attempt", W),
            ("Pre-boot password violation - user password", W),
            ("Pre-boot password violation - setup password", W),
            ("Pre-boot password violation - network boot password", W),
            ("Other pre-boot password violation", W),
            ("Out-of-band access password violation", W),
        ],
        0x07 => &[
            ("IERR", C),
            ("Thermal Trip", C),
            ("FRB1/BIST failure", C),
            ("FRB2/Hang in POST failure", C),
            ("FRB3/Processor startup/init failure", C),
            ("Configuration Error", C),
            ("Uncorrectable CPU complex error", C),
            ("Presence detected", O),
            ("Disabled", W),
            ("Terminator presence detected", O),
            ("Throttled", W),
            ("Uncorrectable machine check exception", C),
            ("Correctable machine check error", W),
        ],
        0x08 => &[
            ("Presence detected", O),
            ("Power Supply Failure detected", C),
            ("Predictive failure", W),
            ("Power Supply AC lost", C),
            ("AC lost or out-of-range", C),
            ("AC out-of-range, but present", W),
            ("Configuration error", C),
            ("Power Supply Inactive", O),
        ],
        0x09 => &[
            ("Power off/down", O),
            ("Power cycle", O),
            ("240VA power down", C),
            ("Interlock power down", W),
            ("AC lost", C),
            ("Soft-power control failure", C),
            ("Failure detected", C),
            ("Predictive failure", W),
        ],
        0x0c => &[
            ("Correctable ECC", W),
            ("Uncorrectable ECC", C),
            ("Parity", C),
            ("Memory Scrub Failed", C),
            ("Memory Device Disabled", W),
            ("Correctable ECC logging limit reached", W),
            ("Presence Detected", O),
            ("Configuration Error", C),
            ("Spare", O),
            ("Throttled", W),
            ("Critical Overtemperature", C),
        ],
        0x0d => &[
            ("Drive Present", O),
            ("Drive Fault", C),
            ("Predictive Failure", W),
            ("Hot Spare", O),
            ("Parity Check In Progress", O),
            ("In Critical Array", W),
            ("In Failed Array", C),
            ("Rebuild In Progress", W),
            ("Rebuild Aborted", W),
        ],
        0x0f => &[("System Firmware Error", C), ("System Firmware Hang", C), ("System Firmware Progress", O)],
        0x10 => &[
            ("Correctable memory error logging disabled", W),
            ("Event logging disabled", W),
            ("Log area reset/cleared", O),
            ("All event logging disabled", W),
            ("Log full", W),
            ("Log almost full", W),
            ("Correctable machine check error logging disabled", W),
        ],
        0x11 => &[
            ("BIOS Reset", W),
            ("OS Reset", W),
            ("OS Shut Down", W),
            ("OS Power Down", W),
            ("OS Power Cycle", W),
            ("OS NMI/Diag Interrupt", W),
            ("OS Expired", W),
            ("OS pre-timeout Interrupt", W),
        ],
        0x12 => &[
            ("System Reconfigured", O),
            ("OEM System boot event", O),
            ("Undetermined system hardware failure", C),
            ("Entry added to auxiliary log", O),
            ("PEF Action", O),
            ("Timestamp Clock Sync", O),
        ],
        0x13 => &[
            ("NMI/Diag Interrupt", C),
            ("Bus Timeout", C),
            ("I/O Channel check NMI", C),
            ("Software NMI", C),
            ("PCI PERR", C),
            ("PCI SERR", C),
            ("EISA failsafe timeout", C),
            ("Bus Correctable error", W),
            ("Bus Uncorrectable error", C),
            ("Fatal NMI", C),
            ("Bus Fatal Error", C),
            ("Bus Degraded", W),
        ],
        0x14 => &[
            ("Power Button pressed", O),
            ("Sleep Button pressed", O),
            ("Reset Button pressed", O),
            ("FRU Latch", O),
            ("FRU Service", O),
        ],
        0x19 => &[("Soft Power Control Failure", C), ("Thermal Trip", C)],
        0x1b => &[("Cable/Interconnect is connected", O), ("Configuration Error", W)],
        0x1d => &[
            ("Initiated by power up", O),
            ("Initiated by hard reset", O),
            ("Initiated by warm reset", O),
            ("User requested PXE boot", O),
            ("Automatic boot to diagnostic", O),
            ("OS initiated hard reset", O),
            ("OS initiated warm reset", O),
            ("System Restart", O),
        ],
        0x1e => &[
            ("No bootable media", C),
            ("Non-bootable disk in drive", W),
            ("PXE server not found", W),
            ("Invalid boot sector", C),
            ("Timeout waiting for selection", W),
        ],
        0x1f => &[
            ("A: boot completed", O),
            ("C: boot completed", O),
            ("PXE boot completed", O),
            ("Diagnostic boot completed", O),
            ("CD-ROM boot completed", O),
            ("ROM boot completed", O),
            ("boot completed - device not specified", O),
            ("Installation started", O),
            ("Installation completed", O),
            ("Installation aborted", W),
            ("Installation failed", W),
        ],
        0x20 => &[
            ("Error during system startup", C),
            ("Run-time critical stop", C),
            ("OS graceful stop", O),
            ("OS graceful shutdown", O),
            ("PEF initiated soft shutdown", O),
            ("Agent not responding", W),
        ],
        0x21 => &[
            ("Fault Status", C),
            ("Identify Status", O),
            ("Device Installed", O),
            ("Ready for Device Installation", O),
            ("Ready for Device Removal", O),
            ("Slot Power is Off", O),
            ("Device Removal Request", O),
            ("Interlock", O),
            ("Slot is Disabled", O),
            ("Spare Device", O),
        ],
        0x22 => &[
            ("S0/G0: working", O),
            ("S1: sleeping with system hw & processor context maintained", O),
            ("S2: sleeping, processor context lost", O),
            ("S3: sleeping, processor & hw context lost, memory retained", O),
            ("S4: non-volatile sleep/suspend-to-disk", O),
            ("S5/G2: soft-off", O),
            ("S4/S5: soft-off", O),
            ("G3: mechanical off", O),
            ("Sleeping in S1/S2/S3 state", O),
            ("G1: sleeping", O),
            ("S5: entered by override", O),
            ("Legacy ON state", O),
            ("Legacy OFF state", O),
        ],
        0x23 => &[
            ("Timer expired", W),
            ("Hard reset", W),
            ("Power down", W),
            ("Power cycle", W),
            ("", O),
            ("", O),
            ("", O),
            ("", O),
            ("Timer interrupt", W),
        ],
        0x25 => &[("Present", O), ("Absent", O), ("Disabled", O)],
        0x27 => &[("LAN Heartbeat Lost", W), ("LAN Heartbeat", O)],
        0x28 => &[
            ("Sensor access degraded or unavailable", W),
            ("Controller access degraded or unavailable", W),
            ("Management controller off-line", W),
            ("Management controller unavailable", W),
            ("Sensor failure", W),
            ("FRU failure", W),
        ],
        0x29 => &[("Low", W), ("Failed", C), ("Presence Detected", O)],
        0x2a => &[
            ("Session Activated", O),
            ("Session Deactivated", O),
            ("Invalid Username or Password", W),
            ("Invalid password disable", W),
        ],
        0x2b => &[
            ("Hardware change detected", O),
            ("Firmware or software change detected", O),
            ("Hardware incompatibility detected", W),
            ("Firmware or software incompatibility detected", W),
            ("Invalid or unsupported hardware version", W),
            ("Invalid or unsupported firmware or software version", W),
            ("Hardware change success", O),
            ("Firmware or software change success", O),
        ],
        0x2c => &[
            ("Not Installed", O),
            ("Inactive", O),
            ("Activation Requested", O),
            ("Activation in Progress", O),
            ("Active", O),
            ("Deactivation Requested", O),
            ("Deactivation in Progress", O),
            ("Communication lost", W),
        ],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_words() {
        for reading in 0..=u8::MAX {
            for kind in 0..=u8::MAX {
                assert!(states(reading, kind, u16::MAX).iter().all(|state| !state.words.is_empty()));
            }
        }
    }

    #[test]
    fn states_are_the_standards() {
        assert_eq!(state(SPECIFIC, 0x0c, 1).words, "Uncorrectable ECC");
        assert_eq!(state(0x0b, 0x08, 1).words, "Redundancy Lost");
        assert_eq!(state(0x70, 0x08, 1).words, "state 1 of type 0x70");
    }
}
