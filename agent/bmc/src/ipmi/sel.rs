//! The system event log (IPMI 2.0 §31, §32, §42).
//!
//! Invariants:
//! - It is cleared only under a reservation taken before its last entry was looked at.

use jiff::Timestamp;

use super::{
    packet::{Malformed, Reader, Request},
    sdr::Sensor,
    states::{self, SPECIFIC},
};
use crate::told::{LogEntry, Severity};

/// What the log says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// How many entries there are.
    pub entries: u16,
    /// Whether entries were lost for want of room.
    pub has_overflowed: bool,
    /// Whether it takes reservations.
    pub has_reservations: bool,
}

/// Asks what the log holds.
pub fn info() -> Request {
    Request::new(0x0a, 0x40, &[])
}

/// Reads what the log holds.
pub fn read_info(data: &[u8]) -> Result<Info, Malformed> {
    let mut reader = Reader::new(data);
    let _version = reader.u8()?;
    let entries = reader.u16()?;
    let _free_added_erased: [u8; 10] = reader.array()?;
    let support = reader.u8()?;
    Ok(Info { entries, has_overflowed: support & 0x80 != 0, has_reservations: support & 0x02 != 0 })
}

/// Reserves the log.
pub fn reserve() -> Request {
    Request::new(0x0a, 0x42, &[])
}

/// Reads a reservation's number.
pub fn read_reservation(data: &[u8]) -> Result<u16, Malformed> {
    Reader::new(data).u16()
}

/// The first entry.
pub const FIRST: u16 = 0x0000;
/// The last entry; and, as the next one, that there is none.
pub const LAST: u16 = 0xffff;

/// Asks for an entry.
pub fn get(entry: u16) -> Request {
    let [low, high] = entry.to_le_bytes();
    Request::new(0x0a, 0x43, &[0, 0, low, high, 0x00, 0xff])
}

/// Reads which entry comes next, and this one's record.
pub fn read_get(data: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let mut reader = Reader::new(data);
    Ok((reader.u16()?, reader.rest))
}

/// Begins to erase the log.
pub fn clear(reservation: u16) -> Request {
    erase(reservation, 0xaa)
}

/// Asks whether the log is erased.
pub fn clear_progress(reservation: u16) -> Request {
    erase(reservation, 0x00)
}

fn erase(reservation: u16, action: u8) -> Request {
    let [low, high] = reservation.to_le_bytes();
    Request::new(0x0a, 0x47, &[low, high, b'C', b'L', b'R', action])
}

/// Reads whether the log is erased.
pub fn read_is_cleared(data: &[u8]) -> Result<bool, Malformed> {
    Ok(Reader::new(data).u8()? & 0x0f == 1)
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub id: u16,
    /// When, by the BMC's clock; absent before that was set.
    pub at: Option<Timestamp>,
    /// What it says.
    pub event: Event,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something of a sensor's.
    System {
        /// Address of the controller, or id of the software, that told it.
        generator: u8,
        /// Sensor's type.
        kind: u8,
        /// Sensor's number.
        sensor: u8,
        /// Whether something is over.
        is_over: bool,
        /// Event/reading type.
        reading: u8,
        /// Event data.
        data: [u8; 3],
    },
    /// Something only its vendor understands.
    Oem {
        /// Record's type.
        kind: u8,
        /// IANA number of the vendor, when the record tells it.
        manufacturer: Option<u32>,
        /// The rest.
        data: Vec<u8>,
    },
}

/// Reads a record.
pub fn record(bytes: &[u8]) -> Result<Record, Malformed> {
    let mut reader = Reader::new(bytes);
    let (id, kind) = (reader.u16()?, reader.u8()?);
    match kind {
        0x02 => {
            let at = at(reader.u32()?);
            let [generator, _, _, sensor_type, sensor, how] = reader.array()?;
            let (is_over, reading) = (how & 0x80 != 0, how & 0x7f);
            let event = Event::System { generator, kind: sensor_type, sensor, is_over, reading, data: reader.array()? };
            Ok(Record { id, at, event })
        }
        0xc0..=0xdf => {
            let at = at(reader.u32()?);
            let [a, b, c]: [u8; 3] = reader.array()?;
            let data = reader.take(6)?.to_vec();
            Ok(Record {
                id,
                at,
                event: Event::Oem { kind, manufacturer: Some(u32::from_le_bytes([a, b, c, 0])), data },
            })
        }
        0xe0..=0xff => {
            Ok(Record { id, at: None, event: Event::Oem { kind, manufacturer: None, data: reader.take(13)?.to_vec() } })
        }
        _ => Err(Malformed("a record of unknown type")),
    }
}

/// Up to 0x20000000 it counts from the BMC's start (§37).
fn at(seconds: u32) -> Option<Timestamp> {
    (seconds > 0x2000_0000 && seconds != u32::MAX).then(|| Timestamp::from_second(seconds.into()).ok()).flatten()
}

impl Record {
    /// The sensor it concerns, of these.
    pub fn sensor<'a>(&self, sensors: &'a [Sensor]) -> Option<&'a Sensor> {
        let Event::System { generator, sensor, .. } = self.event else { return None };
        sensors.iter().find(|known| known.number == sensor && known.owner == generator)
    }

    /// It in words, with the sensor it concerns when that is known.
    pub fn entry(&self, sensor: Option<&Sensor>) -> LogEntry {
        let id = format!("{:04x}", self.id);
        match &self.event {
            Event::Oem { kind, manufacturer, data } => LogEntry {
                id,
                at: self.at,
                severity: None,
                subject: manufacturer.and_then(super::device::manufacturer).map(str::to_owned),
                message: format!("OEM record {kind:02x}: {}", spelt(data)),
                is_over: false,
            },
            Event::System { kind, sensor: number, is_over, reading, data, .. } => {
                let state = states::state(*reading, *kind, data[0] & 0x0f);
                let mut message = state.words.into_owned();
                if *reading == 0x01 {
                    message += &compared(*data, sensor);
                } else {
                    message += &detail(*reading, *kind, *data);
                }
                let subject = match (sensor, states::type_name(*kind)) {
                    (Some(sensor), _) => sensor.name.clone(),
                    (None, Some(name)) => format!("{name} #{number:#04x}"),
                    (None, None) => format!("sensor {number:#04x} of type {kind:#04x}"),
                };
                LogEntry {
                    id,
                    at: self.at,
                    severity: if *is_over { state.severity.map(|_| Severity::Ok) } else { state.severity },
                    subject: Some(subject),
                    message,
                    is_over: *is_over,
                }
            }
        }
    }
}

/// The reading and the threshold of a comparison, as far as they are told (table 29-6).
fn compared([how, reading, threshold]: [u8; 3], sensor: Option<&Sensor>) -> String {
    let value = |raw: u8| sensor.and_then(|sensor| sensor.scale).and_then(|scale| scale.value(raw));
    let reading = (how >> 6 == 1).then(|| value(reading)).flatten();
    let threshold = (how >> 4 & 0x03 == 1).then(|| value(threshold)).flatten();
    match (reading, threshold) {
        (Some(reading), Some(threshold)) => format!(": reading {reading:.3}, threshold {threshold:.3}"),
        (Some(reading), None) => format!(": reading {reading:.3}"),
        _ => String::new(),
    }
}

/// What the other bytes of a discrete event tell.
fn detail(reading: u8, kind: u8, [how, second, third]: [u8; 3]) -> String {
    let is_memory = reading == SPECIFIC && kind == 0x0c;
    let told: Vec<u8> = [(how >> 6, second), (how >> 4 & 0x03, third)]
        .into_iter()
        .filter(|(what, byte)| *what != 0 && *byte != 0xff)
        .map(|(_, byte)| byte)
        .collect();
    match told[..] {
        [] => String::new(),
        // Table 42-3: with memory the third byte is the module's number.
        _ if is_memory && how >> 4 & 0x03 == 3 => format!(": memory module {third}"),
        _ => format!(" (event data {})", spelt(&told)),
    }
}

fn spelt(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(records: &[&str], expected: Expect) {
        let told = records.iter().map(|hex| match record(&hex::decode(hex).unwrap()) {
            Ok(record) => {
                let entry = record.entry(None);
                let at = entry.at.map_or("-".to_owned(), |at| at.to_string());
                let over = if entry.is_over { " (over)" } else { "" };
                format!("{} {at} {:?} {:?}: {}{over}\n", entry.id, entry.severity, entry.subject, entry.message)
            }
            Err(malformed) => format!("{malformed}\n"),
        });
        expected.assert_eq(&told.collect::<String>());
    }

    #[test]
    fn records_are_told_in_words() {
        check(
            &[
                "01000200e1f5052000040130015957555a00",
                "0100023c8be05f2000040130015957555a",
                "02000260a3e15f20000408516f00ffff00",
                "0300023c8be15f2000040c80ef21ff03",
                "0400023c8be15f200004 0c206fb1ff07".replace(' ', "").as_str(),
                "0500c0e0c2e35fa2020001020304050600",
                "0600e00102030405060708090a0b0c0d",
                "070001",
                "08000200000000200004233f6fc001ff",
            ],
            expect![[r#"
                0001 - Some(Critical) Some("Temperature #0x30"): Upper Critical going high
                0001 2020-12-21T11:47:08Z Some(Critical) Some("Temperature #0x30"): Upper Critical going high
                0002 2020-12-22T07:42:24Z Some(Ok) Some("Power Supply #0x51"): Presence detected
                0003 2020-12-22T05:59:24Z Some(Ok) Some("Memory #0x80"): Uncorrectable ECC (event data 03) (over)
                0004 2020-12-22T05:59:24Z Some(Critical) Some("Memory #0x20"): Uncorrectable ECC: memory module 7
                0005 2020-12-23T22:21:20Z None Some("Dell"): OEM record c0: 01 02 03 04 05 06
                0006 - None None: OEM record e0: 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d
                a record of unknown type
                0008 - Some(Warning) Some("Watchdog 2 #0x3f"): Timer expired (event data 01)
            "#]],
        );
    }

    #[test]
    fn clearing_names_the_reservation() {
        assert_eq!(clear(0x1234).data, *b"\x34\x12CLR\xaa");
        assert_eq!(read_is_cleared(&[0x01]), Ok(true));
        assert_eq!(read_is_cleared(&[0x00]), Ok(false));
    }

    #[test]
    fn overflow_is_told() {
        let data = hex::decode("51020000f0000000000000000082").unwrap();
        let info = read_info(&data).unwrap();
        assert_eq!(info, Info { entries: 2, has_overflowed: true, has_reservations: true });
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(kind: u8, mut bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Some(byte) = bytes.get_mut(2) {
                *byte = if kind & 1 == 0 { 0x02 } else { kind };
            }
            if let Ok(record) = record(&bytes) {
                prop_assert!(!record.entry(None).message.is_empty());
            }
        }
    }
}
