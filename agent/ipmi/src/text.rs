//! Type/length-coded text of SDRs (IPMI 2.0 §43.15) and FRU data (FRU storage definition §13).

/// Text of so many bytes in one of the four codes; `None` when nothing is left of it.
pub fn decode(code: u8, bytes: &[u8], is_english: bool) -> Option<String> {
    let raw = match code & 0x03 {
        0x00 => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        0x01 => bytes.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]).map(bcd_plus).collect(),
        0x02 => six_bit(bytes),
        _ if is_english => bytes.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect(),
        _ => return utf_16(bytes),
    };
    rackhand_common::bmc::text(&raw)
}

fn bcd_plus(digit: u8) -> char {
    char::from(b"0123456789 -.:,_"[usize::from(digit & 0x0f)])
}

fn six_bit(bytes: &[u8]) -> String {
    let bits = |index: usize| bytes.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 != 0);
    (0..bytes.len() * 8 / 6)
        .map(|at| (0..6).fold(0, |code, bit| code | u8::from(bits(at * 6 + bit)) << bit))
        .map(|code| char::from(0x20 + code))
        .collect()
}

/// UTF-16, least significant byte first (FRU storage definition §13, language codes).
pub fn utf_16(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let raw: String = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    rackhand_common::bmc::text(&raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_read() {
        // The standard's own example of six-bit ASCII.
        assert_eq!(decode(2, &[0x29, 0xdc, 0xa6], true).as_deref(), Some("IPMI"));
        assert_eq!(decode(1, &[0x12, 0xcb, 0x3a], true).as_deref(), Some("12.-3"));
        assert_eq!(decode(3, b"CPU1 Temp\0junk", true).as_deref(), Some("CPU1 Temp"));
        assert_eq!(decode(3, &[0x42, 0x04, 0x41, 0x00], false).as_deref(), Some("тA"));
        assert_eq!(decode(0, &[0xde, 0xad], true).as_deref(), Some("dead"));
        assert_eq!(decode(3, b"   ", true), None);
    }
}
