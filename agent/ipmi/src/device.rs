//! What a BMC is: Get Device ID (IPMI 2.0 §20.1) and Get System GUID (§22.14).

use uuid::Uuid;

use crate::packet::{Malformed, Reader, Request};

/// What a BMC says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Version of its firmware.
    pub firmware: String,
    /// IANA number of who made it.
    pub manufacturer: u32,
    /// Number of the product, by its manufacturer.
    pub product: u16,
    /// Whether it keeps the FRU of the machine.
    pub has_fru: bool,
}

/// Asks for the device id.
pub fn device_id() -> Request {
    Request::new(0x06, 0x01, &[])
}

/// Reads the device id.
pub fn read_device_id(data: &[u8]) -> Result<Device, Malformed> {
    let mut reader = Reader::new(data);
    let [_id, _revision, major, minor, _version, support] = reader.array()?;
    let [a, b, c] = reader.array()?;
    Ok(Device {
        // The second part is two decimal digits.
        firmware: format!("{}.{minor:02x}", major & 0x7f),
        manufacturer: u32::from_le_bytes([a, b, c & 0x0f, 0]),
        product: reader.u16()?,
        has_fru: support & 0x08 != 0,
    })
}

/// The name of a manufacturer of BMCs, of those that are met most.
pub fn manufacturer(number: u32) -> Option<&'static str> {
    Some(match number {
        2 => "IBM",
        11 => "HPE",
        42 => "Sun Microsystems",
        111 => "Oracle",
        343 => "Intel",
        674 => "Dell",
        2623 => "ASUS",
        5771 => "Cisco",
        7154 => "IPMI forum",
        7244 => "Quanta",
        10368 => "Fujitsu",
        10876 => "Supermicro",
        15370 => "Gigabyte",
        19046 => "Lenovo",
        20301 => "Lenovo",
        20974 => "American Megatrends",
        49622 => "ASRock Rack",
        49769 => "IEIT",
        2011 => "Huawei",
        _ => return None,
    })
}

/// Asks for the machine's GUID.
pub fn system_guid() -> Request {
    Request::new(0x06, 0x37, &[])
}

/// Reads the machine's GUID. Most BMCs send it in SMBIOS order, whose first three fields are least
/// significant byte first; the standard's own order is the reverse of the text's, and is known by
/// the version it would have. Absent when it is all zeros or all ones.
pub fn read_system_guid(data: &[u8]) -> Result<Option<Uuid>, Malformed> {
    let bytes: [u8; 16] = Reader::new(data).array()?;
    if bytes == [0x00; 16] || bytes == [0xff; 16] {
        return Ok(None);
    }
    let smbios = Uuid::from_bytes_le(bytes);
    let mut reversed = bytes;
    reversed.reverse();
    let standard = Uuid::from_bytes(reversed);
    let is_plausible = |uuid: &Uuid| (1..=5).contains(&uuid.get_version_num()) && uuid.as_bytes()[8] & 0xc0 == 0x80;
    Ok(Some(if !is_plausible(&smbios) && is_plausible(&standard) { standard } else { smbios }))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_device_id_is_read() {
        let data = hex::decode("20010203029fd7110002000f00000000").unwrap();
        expect![[r#"
            Ok(
                Device {
                    firmware: "2.03",
                    manufacturer: 4567,
                    product: 2,
                    has_fru: true,
                },
            )
        "#]]
        .assert_debug_eq(&read_device_id(&data));
        assert!(read_device_id(&data[..8]).is_err());
    }

    #[test]
    fn a_guid_is_read_in_either_order_and_none_when_it_was_never_set() {
        let uuid: Uuid = "4c4c4544-0051-4810-8052-b4c04f4c4d32".parse().unwrap();
        assert_eq!(read_system_guid(&uuid.to_bytes_le()).unwrap(), Some(uuid));
        let mut reversed = *uuid.as_bytes();
        reversed.reverse();
        assert_eq!(read_system_guid(&reversed).unwrap(), Some(uuid));
        assert_eq!(read_system_guid(&[0xff; 16]).unwrap(), None);
    }
}
