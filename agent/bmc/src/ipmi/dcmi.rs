//! DCMI: the power the whole machine draws (DCMI 1.5 §6.6.1).

use super::packet::{Malformed, Reader, Request};

/// Asks for the machine's power draw.
pub fn power_reading() -> Request {
    Request::new(0x2c, 0x02, &[0xdc, 0x01, 0x00, 0x00])
}

/// Reads the power draw in watts; absent while it is not measured.
pub fn read_power_reading(data: &[u8]) -> Result<Option<u16>, Malformed> {
    let mut reader = Reader::new(data);
    if reader.u8()? != 0xdc {
        return Err(Malformed("not an answer of DCMI"));
    }
    let watts = reader.u16()?;
    let _least_most_average: [u8; 6] = reader.array()?;
    let _stamp_and_period: [u8; 8] = reader.array()?;
    let is_active = reader.u8()? & 0x40 != 0;
    Ok(is_active.then_some(watts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_counts_only_while_power_is_measured() {
        let mut data = hex::decode("dc980014001b01a2009e5a8a64e803000040").unwrap();
        assert_eq!(read_power_reading(&data), Ok(Some(152)));
        data[17] = 0;
        assert_eq!(read_power_reading(&data), Ok(None));
        assert!(read_power_reading(&data[..17]).is_err());
    }
}
