//! FRU inventory: reading it (IPMI 2.0 §34) and its areas (Platform Management FRU Information
//! Storage Definition 1.0, revision 1.3).
//!
//! Invariants:
//! - An area whose checksum is wrong is not used, and said to be wrong; the others are.

use crate::{
    packet::{self, Malformed, Reader, Request},
    text,
};

/// Asks how much a FRU device holds.
pub fn info(device: u8) -> Request {
    Request::new(0x0a, 0x10, &[device])
}

/// How much a FRU device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// In bytes.
    pub size: u16,
    /// Whether offsets and counts are in words of two bytes.
    pub is_by_words: bool,
}

/// Reads how much a FRU device holds.
pub fn read_info(data: &[u8]) -> Result<Info, Malformed> {
    let mut reader = Reader::new(data);
    Ok(Info { size: reader.u16()?, is_by_words: reader.u8()? & 1 != 0 })
}

/// Asks for so many bytes, or words.
pub fn read(device: u8, offset: u16, count: u8) -> Request {
    let [low, high] = offset.to_le_bytes();
    Request::new(0x0a, 0x11, &[device, low, high, count])
}

/// Reads what was asked for, which may be less.
pub fn read_data(data: &[u8]) -> Result<&[u8], Malformed> {
    data.get(1..).ok_or(Malformed("an answer that is cut short"))
}

/// A FRU device's inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fru {
    /// The chassis.
    pub chassis: Option<Chassis>,
    /// The board.
    pub board: Option<Board>,
    /// The product as it was sold.
    pub product: Option<Product>,
    /// Areas that are wrong, and why.
    pub faults: Vec<(&'static str, Malformed)>,
}

/// Chassis info area.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chassis {
    /// Number to order it by.
    pub part_number: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
}

/// Board info area.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// Who made it.
    pub vendor: Option<String>,
    /// What it is called.
    pub name: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Number to order it by.
    pub part_number: Option<String>,
}

/// Product info area.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Product {
    /// Who made it.
    pub vendor: Option<String>,
    /// What it is called.
    pub name: Option<String>,
    /// Number to order it by.
    pub part_number: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// What its owner calls it.
    pub asset_tag: Option<String>,
}

/// Reads an inventory.
pub fn parse(bytes: &[u8]) -> Result<Fru, Malformed> {
    let header: [u8; 8] = Reader::new(bytes).array()?;
    let [version, _internal, chassis, board, product, ..] = header;
    if version & 0x0f != 1 {
        return Err(Malformed("a FRU that was never written, or of a version unheard of"));
    }
    if packet::sum(&header) != 0 {
        return Err(Malformed("a FRU header with a wrong checksum"));
    }
    let mut fru = Fru::default();
    if let Some(mut fields) = fru.fields("chassis area", bytes, chassis) {
        let _type = fields.skip(1);
        fru.chassis = Some(Chassis { part_number: fields.english(), serial: fields.english() });
    }
    if let Some(mut fields) = fru.fields("board area", bytes, board) {
        fields.language();
        let _manufactured = fields.skip(3);
        fru.board = Some(Board {
            vendor: fields.next(),
            name: fields.next(),
            serial: fields.english(),
            part_number: fields.english(),
        });
    }
    if let Some(mut fields) = fru.fields("product area", bytes, product) {
        fields.language();
        fru.product = Some(Product {
            vendor: fields.next(),
            name: fields.next(),
            part_number: fields.english(),
            version: fields.english(),
            serial: fields.english(),
            asset_tag: fields.next(),
        });
    }
    Ok(fru)
}

impl Fru {
    fn fields<'a>(&mut self, name: &'static str, bytes: &'a [u8], offset: u8) -> Option<Fields<'a>> {
        if offset == 0 {
            return None;
        }
        match area(bytes, usize::from(offset) * 8) {
            Ok(rest) => Some(Fields { rest, is_english: true }),
            Err(malformed) => {
                self.faults.push((name, malformed));
                None
            }
        }
    }
}

/// What stands in an area, between its length and its checksum.
fn area(bytes: &[u8], start: usize) -> Result<&[u8], Malformed> {
    let area = bytes.get(start..).ok_or(Malformed("an area beyond the end"))?;
    let [version, length]: [u8; 2] = Reader::new(area).array()?;
    let area = area.get(..usize::from(length) * 8).ok_or(Malformed("an area beyond the end"))?;
    if version & 0x0f != 1 || area.is_empty() {
        return Err(Malformed("an area of a version unheard of"));
    }
    if packet::sum(area) != 0 {
        return Err(Malformed("an area with a wrong checksum"));
    }
    Ok(&area[2..area.len() - 1])
}

/// The fields of an area, in their order.
struct Fields<'a> {
    rest: &'a [u8],
    is_english: bool,
}

impl Fields<'_> {
    fn skip(&mut self, count: usize) -> bool {
        let rest = self.rest.get(count..);
        self.rest = rest.unwrap_or_default();
        rest.is_some()
    }

    fn language(&mut self) {
        self.is_english = matches!(self.rest.first(), None | Some(0 | 25));
        self.skip(1);
    }

    fn next(&mut self) -> Option<String> {
        self.field(self.is_english)
    }

    /// Numbers are English in every language.
    fn english(&mut self) -> Option<String> {
        self.field(true)
    }

    fn field(&mut self, is_english: bool) -> Option<String> {
        const END: u8 = 0xc1;
        let (kind, rest) = self.rest.split_first()?;
        if *kind == END {
            self.rest = &[];
            return None;
        }
        let Some((field, rest)) = rest.split_at_checked(usize::from(kind & 0x3f)) else {
            self.rest = &[];
            return None;
        };
        self.rest = rest;
        text::decode(kind >> 6, field, is_english)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn area_of(head: &[u8], fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![1, 0];
        bytes.extend(head);
        for (code, field) in fields {
            bytes.push(code << 6 | u8::try_from(field.len()).unwrap());
            bytes.extend(*field);
        }
        bytes.push(0xc1);
        bytes.resize((bytes.len() + 1).next_multiple_of(8) - 1, 0);
        bytes[1] = u8::try_from((bytes.len() + 1) / 8).unwrap();
        bytes.push(packet::checksum(&bytes));
        bytes
    }

    fn whole() -> Vec<u8> {
        let chassis = area_of(&[0x17], &[(3, b"CH-1"), (2, &[0x29, 0xdc, 0xa6])]);
        let board = area_of(&[0, 1, 2, 3], &[(3, b"Acme"), (3, b"X11"), (1, &[0x12, 0x34]), (3, b"PN-9"), (3, b"")]);
        let product = area_of(&[30], &[(3, &[0x42, 0x04]), (3, b"R\0"), (3, b"P"), (3, b"1"), (3, b"SN7"), (3, b"")]);
        let mut header = vec![1, 0, 1, 1 + chassis[1], 1 + chassis[1] + board[1], 0, 0];
        header.push(packet::checksum(&header));
        [header, chassis, board, product].concat()
    }

    #[test]
    fn areas_are_read() {
        expect![[r#"
            Fru {
                chassis: Some(
                    Chassis {
                        part_number: Some(
                            "CH-1",
                        ),
                        serial: Some(
                            "IPMI",
                        ),
                    },
                ),
                board: Some(
                    Board {
                        vendor: Some(
                            "Acme",
                        ),
                        name: Some(
                            "X11",
                        ),
                        serial: Some(
                            "1234",
                        ),
                        part_number: Some(
                            "PN-9",
                        ),
                    },
                ),
                product: Some(
                    Product {
                        vendor: Some(
                            "т",
                        ),
                        name: Some(
                            "R",
                        ),
                        part_number: None,
                        version: None,
                        serial: None,
                        asset_tag: None,
                    },
                ),
                faults: [],
            }
        "#]]
        .assert_debug_eq(&parse(&whole()).unwrap());
    }

    #[test]
    fn an_area_with_a_wrong_checksum_is_not_used_and_the_others_are() {
        let mut bytes = whole();
        bytes[12] ^= 1;
        let fru = parse(&bytes).unwrap();
        assert_eq!((fru.chassis, fru.faults.len()), (None, 1));
        assert!(fru.board.is_some() && fru.product.is_some());
    }

    #[test]
    fn an_inventory_that_was_never_written_is_malformed() {
        assert!(parse(&[0xff; 64]).is_err());
        assert!(parse(&[0; 64]).is_err());
        assert!(parse(&[]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(flips in prop::collection::vec((any::<usize>(), any::<u8>()), 0..20), cut: usize) {
            let mut bytes = whole();
            for (at, value) in flips {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            // Make the checksums right again, so that what is behind them is reached.
            bytes[7] = packet::checksum(&bytes[..7]);
            bytes.truncate(cut % (bytes.len() + 1));
            let _ = parse(&bytes);
        }
    }
}
