//! The SDR repository (IPMI 2.0 §33) and its records (§43).
//!
//! Invariants:
//! - A record that has no meaning is an error of its own; the others are used.

use super::{
    packet::{Malformed, Reader, Request},
    sensor::Scale,
    text,
};

/// What the repository says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// How many records there are.
    pub records: u16,
    /// When one was added last, and when it was erased: as long as both stay, so do the records.
    pub changed: (u32, u32),
}

/// Asks what the repository holds.
pub fn info() -> Request {
    Request::new(0x0a, 0x20, &[])
}

/// Reads what the repository holds.
pub fn read_info(data: &[u8]) -> Result<Info, Malformed> {
    let mut reader = Reader::new(data);
    let _version = reader.u8()?;
    let (records, _free) = (reader.u16()?, reader.u16()?);
    Ok(Info { records, changed: (reader.u32()?, reader.u32()?) })
}

/// Reserves the repository: its records do not change their numbers unnoticed.
pub fn reserve() -> Request {
    Request::new(0x0a, 0x22, &[])
}

/// Reads a reservation's number.
pub fn read_reservation(data: &[u8]) -> Result<u16, Malformed> {
    Reader::new(data).u16()
}

/// Asks for so many bytes of a record; 0xff are all of it.
pub fn get(reservation: u16, record: u16, offset: u8, length: u8) -> Request {
    let ([a, b], [c, d]) = (reservation.to_le_bytes(), record.to_le_bytes());
    Request::new(0x0a, 0x23, &[a, b, c, d, offset, length])
}

/// Reads which record comes next, and what came of this one.
pub fn read_get(data: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let mut reader = Reader::new(data);
    Ok((reader.u16()?, reader.rest))
}

/// The number of the first record to ask for, and of none after the last.
pub const FIRST: u16 = 0x0000;
/// No record comes after this one.
pub const END: u16 = 0xffff;
/// Length of the header that every record has.
pub const HEADER: u8 = 5;

/// The whole length of a record, by its header.
pub fn length(header: &[u8]) -> Result<usize, Malformed> {
    let [_, _, _, _, rest]: [u8; 5] = Reader::new(header).array()?;
    Ok(usize::from(HEADER) + usize::from(rest))
}

/// A record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A sensor, or several that share a record.
    Sensors(Vec<Sensor>),
    /// A FRU device.
    Fru(FruLocator),
    /// A management controller.
    Controller {
        /// Its address on IPMB.
        address: u8,
        /// What it is called.
        name: Option<String>,
    },
    /// Of a type that tells nothing here: event-only sensors, associations, OEM records.
    Other(u8),
}

/// A sensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensor {
    /// Address of the controller that has it.
    pub owner: u8,
    /// Logical unit of that controller.
    pub lun: u8,
    /// Its number there.
    pub number: u8,
    /// What it is called.
    pub name: String,
    /// Sensor type (table 42-3).
    pub kind: u8,
    /// Event/reading type (table 42-1): 1 compares with thresholds.
    pub reading: u8,
    /// How a reading becomes a value; absent for a discrete sensor.
    pub scale: Option<Scale>,
    /// Which thresholds can be read, and what they were at first, from lower non-critical up.
    pub thresholds: Raw,
}

/// Thresholds as the BMC writes them, in the order of Get Sensor Thresholds: lower non-critical,
/// critical, non-recoverable, upper non-critical, critical, non-recoverable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Raw(pub [Option<u8>; 6]);

/// Where a FRU device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FruLocator {
    /// Number of the device at the BMC; absent for one that others have, or a bare EEPROM.
    pub device: Option<u8>,
    /// Entity it belongs to (table 43-13).
    pub entity: u8,
    /// What it is called.
    pub name: Option<String>,
}

const BMC: u8 = 0x20;
const THRESHOLD: u8 = 0x01;

/// Reads a record.
pub fn record(bytes: &[u8]) -> Result<Record, Malformed> {
    let length = length(bytes)?;
    let bytes = bytes.get(..length).ok_or(Malformed("a record that is cut short"))?;
    match bytes[3] {
        0x01 => full(bytes),
        0x02 => compact(bytes),
        0x11 => {
            let [access, device, how]: [u8; 3] = Reader::new(&bytes[5..]).array()?;
            let entity = *bytes.get(12).ok_or(SHORT)?;
            let is_bmcs = access & 0xfe == BMC && how & 0x80 != 0;
            Ok(Record::Fru(FruLocator { device: is_bmcs.then_some(device), entity, name: name(bytes, 15)? }))
        }
        0x12 => Ok(Record::Controller { address: bytes[5..].first().copied().ok_or(SHORT)?, name: name(bytes, 15)? }),
        other => Ok(Record::Other(other)),
    }
}

const SHORT: Malformed = Malformed("a record that is cut short");

fn name(bytes: &[u8], at: usize) -> Result<Option<String>, Malformed> {
    let kind = *bytes.get(at).ok_or(SHORT)?;
    let rest = &bytes[at + 1..];
    // Some BMCs count one byte more than they send.
    let length = usize::from(kind & 0x1f).min(rest.len());
    Ok(match kind >> 6 {
        0 => text::utf_16(&rest[..length]),
        code => text::decode(code, &rest[..length], true),
    })
}

fn full(bytes: &[u8]) -> Result<Record, Malformed> {
    let fixed: &[u8; 47] = bytes.first_chunk().ok_or(SHORT)?;
    let mut sensor = sensor(bytes, 47)?;
    let scale = Scale {
        units: [fixed[20], fixed[21], fixed[22]],
        linearization: fixed[23] & 0x7f,
        m: ten_bits(fixed[24], fixed[25]),
        b: ten_bits(fixed[26], fixed[27]),
        result_exponent: nibble(fixed[29] >> 4),
        b_exponent: nibble(fixed[29]),
    };
    sensor.scale = (scale.units[0] >> 6 != 3).then_some(scale);
    if sensor.reading == THRESHOLD && sensor.scale.is_some() {
        // In the record they stand from upper non-recoverable down.
        let [unr, uc, unc, lnr, lc, lnc] = [fixed[36], fixed[37], fixed[38], fixed[39], fixed[40], fixed[41]];
        let readable = if fixed[11] >> 2 & 0x03 == 0 { 0 } else { fixed[18] };
        sensor.thresholds = Raw::of(readable, [lnc, lc, lnr, unc, uc, unr]);
    }
    Ok(Record::Sensors(vec![sensor]))
}

fn compact(bytes: &[u8]) -> Result<Record, Malformed> {
    let first = sensor(bytes, 31)?;
    let (sharing, offset) = (bytes[23], bytes[24] & 0x7f);
    let count = (sharing & 0x0f).max(1);
    if count == 1 {
        return Ok(Record::Sensors(vec![first]));
    }
    let shared = (0..count).map(|index| {
        let modifier = offset.saturating_add(index);
        let modifier = match sharing >> 4 & 0x03 {
            0 => modifier.to_string(),
            _ => char::from(b'A'.saturating_add(modifier % 26)).to_string(),
        };
        Sensor { number: first.number.wrapping_add(index), name: format!("{}{modifier}", first.name), ..first.clone() }
    });
    Ok(Record::Sensors(shared.collect()))
}

fn sensor(bytes: &[u8], name_at: usize) -> Result<Sensor, Malformed> {
    let number = *bytes.get(7).ok_or(SHORT)?;
    let name = name(bytes, name_at)?.unwrap_or_else(|| format!("sensor {number:#04x}"));
    Ok(Sensor {
        owner: bytes[5],
        lun: bytes[6] & 0x03,
        number,
        name,
        kind: bytes[12],
        reading: bytes[13] & 0x7f,
        scale: None,
        thresholds: Raw::default(),
    })
}

impl Sensor {
    /// Whether the BMC itself has it: others would have to be asked through it.
    pub fn is_bmcs(&self) -> bool {
        self.owner == BMC
    }

    /// Whether it compares with thresholds.
    pub fn has_thresholds(&self) -> bool {
        self.reading == THRESHOLD
    }
}

impl Raw {
    /// Those that can be read, by a bit each.
    pub fn of(readable: u8, values: [u8; 6]) -> Self {
        let mut index = 0..6;
        Self(values.map(|value| index.next().filter(|bit| readable >> bit & 1 != 0).map(|_| value)))
    }
}

fn ten_bits(low: u8, high: u8) -> i16 {
    let value = i16::from(low) | i16::from(high >> 6) << 8;
    if value & 0x200 != 0 { value - 0x400 } else { value }
}

fn nibble(value: u8) -> i8 {
    let value = i8::try_from(value & 0x0f).expect("four bits");
    if value > 7 { value - 16 } else { value }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn temperature() -> Vec<u8> {
        let mut bytes = hex::decode(
            "0100510133200001030167680101ff7aff7a3f3f00010000 0100 0000 00 00 00 000000ff00".replace(' ', ""),
        )
        .unwrap();
        bytes.truncate(36);
        bytes.extend([90, 85, 80, 1, 5, 10, 0, 0, 0, 0, 0, 0xc9]);
        bytes.extend(b"CPU1 Temp");
        bytes[4] = u8::try_from(bytes.len() - 5).unwrap();
        bytes
    }

    #[test]
    fn a_full_record_is_read() {
        let mut seen = record(&temperature()).unwrap();
        let Record::Sensors(sensors) = &mut seen else { panic!("{seen:?}") };
        assert_eq!(sensors[0].name, "CPU1 Temp");
        assert_eq!(sensors[0].thresholds, Raw([Some(10), Some(5), Some(1), Some(80), Some(85), Some(90)]));
        expect![[r#"
            Some(
                Scale {
                    units: [
                        0,
                        1,
                        0,
                    ],
                    linearization: 0,
                    m: 1,
                    b: 0,
                    result_exponent: 0,
                    b_exponent: 0,
                },
            )
        "#]]
        .assert_debug_eq(&sensors[0].scale);
    }

    #[test]
    fn a_compact_record_may_be_several_sensors() {
        let mut bytes =
            hex::decode("020051022020003008010067086f000000000000c0000003010000000000000000c3505355".replace(' ', ""))
                .unwrap();
        bytes.truncate(31);
        bytes.extend(b"\xc3PSU");
        bytes[23..25].copy_from_slice(&[0x03, 0x01]);
        bytes[4] = u8::try_from(bytes.len() - 5).unwrap();
        let Record::Sensors(sensors) = record(&bytes).unwrap() else { panic!() };
        let seen: Vec<_> = sensors.iter().map(|sensor| (sensor.number, sensor.name.as_str())).collect();
        assert_eq!(seen, [(0x30, "PSU1"), (0x31, "PSU2"), (0x32, "PSU3")]);
    }

    #[test]
    fn a_fru_that_others_have_has_no_number_here() {
        let mut bytes = hex::decode("03005111002001800000100008 0100 c4".replace(' ', "")).unwrap();
        bytes.extend(b"DIMM");
        bytes[4] = u8::try_from(bytes.len() - 5).unwrap();
        let locator = FruLocator { device: Some(1), entity: 8, name: Some("DIMM".to_owned()) };
        assert_eq!(record(&bytes), Ok(Record::Fru(locator.clone())));
        bytes[5] = 0x82;
        assert_eq!(record(&bytes), Ok(Record::Fru(FruLocator { device: None, ..locator })));
    }

    #[test]
    fn a_record_that_is_cut_anywhere_is_malformed() {
        let whole = temperature();
        for length in 0..whole.len() {
            assert!(record(&whole[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(kind in 0_u8..0x20, mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let length = bytes.len();
            if length > 5 {
                bytes[3] = kind;
                bytes[4] = u8::try_from(length - 5).unwrap();
            }
            if let Ok(Record::Sensors(sensors)) = record(&bytes) {
                for scale in sensors.iter().filter_map(|sensor| sensor.scale) {
                    let _ = scale.value(bytes[0]);
                }
            }
        }
    }
}
