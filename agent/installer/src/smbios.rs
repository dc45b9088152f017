//! SMBIOS structures (DSP0134 3.7) as far as they tell what is in a machine and where: firmware,
//! mainboard, chassis, processor sockets, expansion slots, memory slots, TPM.
//!
//! Firmware writes these tables, and much of it is wrong: a structure that is cut or makes no
//! sense is left out, and what follows it is still read. At most [`MAX_STRUCTURES`] are looked at.

use rackhand_common::hardware::{Bios, Board, Dimm, Slot, Socket};

/// The longest table that is read, in bytes: 3.x entry points give 32 bits, real ones have some KiB.
pub const MAX_TABLE: usize = 1 << 20;

/// The most structures of a table.
pub const MAX_STRUCTURES: usize = 4096;

/// What the tables tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Type 0.
    pub bios: Bios,
    /// Type 2, the first.
    pub board: Board,
    /// Type 3, the first; its form as product.
    pub chassis: Board,
    /// Type 4, processors only.
    pub processors: Vec<Socket>,
    /// Type 9.
    pub slots: Vec<Slot>,
    /// Type 17, system memory only.
    pub memory: Vec<Dimm>,
    /// Type 43: the version of the TPM.
    pub tpm: Option<String>,
}

/// Reads a table of structures: `/sys/firmware/dmi/tables/DMI`.
pub fn parse(table: &[u8]) -> Tables {
    let table = &table[..table.len().min(MAX_TABLE)];
    let mut told = Tables::default();
    let mut banks = Vec::new();
    let (mut bios, mut board, mut chassis) = (None, None, None);
    for structure in (Structures { rest: table }).take(MAX_STRUCTURES) {
        match structure.kind {
            0 => drop(bios.get_or_insert_with(|| structure.bios())),
            2 => drop(board.get_or_insert_with(|| structure.board([4, 5, 6, 7]))),
            3 => drop(chassis.get_or_insert_with(|| structure.chassis())),
            4 => told.processors.extend(structure.processor()),
            9 => told.slots.push(structure.slot()),
            17 => {
                told.memory.push(structure.dimm());
                banks.push(structure.text(0x11));
            }
            43 => told.tpm = structure.tpm().or(told.tpm),
            // End of table.
            127 => break,
            _ => {}
        }
    }
    told.bios = bios.unwrap_or_default();
    told.board = board.unwrap_or_default();
    told.chassis = chassis.unwrap_or_default();
    name_apart(&mut told.memory, &banks);
    told
}

/// Boards with several banks call the slots of each alike: the bank tells them apart, or else the order.
fn name_apart(memory: &mut [Dimm], banks: &[String]) {
    let locators: Vec<_> = memory.iter().map(|dimm| dimm.slot.clone()).collect();
    let is_unique = |names: &[String], name: &String| names.iter().filter(|other| *other == name).count() == 1;
    let banked: Vec<_> = locators.iter().zip(banks).map(|(slot, bank)| format!("{bank} {slot}")).collect();
    for (at, dimm) in memory.iter_mut().enumerate() {
        let locator = &locators[at];
        if !locator.is_empty() && is_unique(&locators, locator) {
            continue;
        }
        dimm.slot = match &banked[at] {
            name if !banks[at].is_empty() && is_unique(&banked, name) => name.trim_end().to_owned(),
            _ => format!("{locator} #{}", at + 1).trim_start().to_owned(),
        };
    }
}

/// One structure (§6.1): its formatted area with the header, and the strings behind it.
struct Structure<'a> {
    kind: u8,
    area: &'a [u8],
    strings: &'a [u8],
}

struct Structures<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Structures<'a> {
    type Item = Structure<'a>;

    fn next(&mut self) -> Option<Structure<'a>> {
        let (&kind, &len) = (self.rest.first()?, self.rest.get(1)?);
        let len = usize::from(len);
        // A header is four bytes: what tells fewer has no next either.
        if len < 4 || len > self.rest.len() {
            return None;
        }
        let (area, behind) = self.rest.split_at(len);
        // The strings end with an empty one; a structure without strings has two zeros (§6.1.3).
        let end = behind.windows(2).position(|pair| pair == [0, 0])?;
        self.rest = behind.get(end + 2..).unwrap_or_default();
        Some(Structure { kind, area, strings: &behind[..end] })
    }
}

impl Structure<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.area.get(at).copied()
    }

    fn word(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.area.get(at..at + 2)?.try_into().ok()?))
    }

    fn double(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.area.get(at..at + 4)?.try_into().ok()?))
    }

    /// The string whose number stands there; empty when there is none, or one that makers put in for none.
    fn text(&self, at: usize) -> String {
        let number = usize::from(self.byte(at).unwrap_or(0));
        let found = number.checked_sub(1).and_then(|index| self.strings.split(|byte| *byte == 0).nth(index));
        let text = String::from_utf8_lossy(found.unwrap_or_default());
        let text = text.trim();
        let said = !FILLERS.iter().any(|filler| text.eq_ignore_ascii_case(filler));
        if said { text.to_owned() } else { String::new() }
    }

    /// §7.1.
    fn bios(&self) -> Bios {
        Bios { vendor: self.text(4), version: self.text(5), date: self.text(8) }
    }

    /// §7.3.
    fn board(&self, [vendor, product, version, serial]: [usize; 4]) -> Board {
        let text = |at| self.text(at);
        Board { vendor: text(vendor), product: text(product), version: text(version), serial: text(serial) }
    }

    /// §7.4.
    fn chassis(&self) -> Board {
        // The highest bit says that it can be locked.
        let form = match self.byte(5).unwrap_or(0) & 0x7f {
            0x03 => "desktop",
            0x07 => "tower",
            0x11 => "main server chassis",
            0x17 => "rack mount chassis",
            0x19 => "multi-system chassis",
            0x1c => "blade",
            0x1d => "blade enclosure",
            0x01 => "other",
            _ => "",
        };
        Board { vendor: self.text(4), product: form.into(), version: self.text(6), serial: self.text(7) }
    }

    /// §7.5; none for what is no central processor.
    fn processor(&self) -> Option<Socket> {
        if self.byte(5) != Some(3) {
            return None;
        }
        // Bit 6: the socket is populated.
        let populated = self.byte(0x18)? & 0x40 != 0;
        // More than 254 stand in fields of version 3.0.
        let count = |small: usize, large: usize| match self.byte(small).unwrap_or(0) {
            0xff => self.word(large).filter(|count| *count != 0xffff).map_or(0xff, u32::from),
            count => count.into(),
        };
        let told = |count| if populated { count } else { 0 };
        Some(Socket {
            slot: self.text(4),
            populated,
            model: if populated { self.text(0x10) } else { String::new() },
            cores: told(count(0x23, 0x2a)),
            threads: told(count(0x25, 0x2e)),
        })
    }

    /// §7.10.
    fn slot(&self) -> Slot {
        let lanes = match self.byte(6).unwrap_or(0) {
            0x08 => 1,
            0x09 => 2,
            0x0a => 4,
            0x0b => 8,
            0x0c => 12,
            0x0d => 16,
            0x0e => 32,
            _ => 0,
        };
        let in_use = match self.byte(7) {
            Some(3) => Some(false),
            Some(4) => Some(true),
            _ => None,
        };
        let address = match (self.word(0x0d), self.byte(0x0f), self.byte(0x10)) {
            (Some(segment), Some(bus), Some(function)) if (segment, bus, function) != (0xffff, 0xff, 0xff) => {
                Some(format!("{segment:04x}:{bus:02x}:{:02x}.{}", function >> 3, function & 7))
            }
            _ => None,
        };
        Slot { name: self.text(4), lanes, in_use, address }
    }

    /// §7.18.
    fn dimm(&self) -> Dimm {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let size = match self.word(0x0c) {
            None | Some(0 | 0xffff) => 0,
            Some(0x7fff) => u64::from(self.double(0x1c).unwrap_or(0) & 0x7fff_ffff) * MIB,
            Some(size) if size & 0x8000 != 0 => u64::from(size & 0x7fff) * KIB,
            Some(size) => u64::from(size) * MIB,
        };
        let slot = self.text(0x10);
        if size == 0 {
            return Dimm { slot, ..Dimm::default() };
        }
        let speed = |short: usize, long: usize| match self.word(short).unwrap_or(0) {
            0xffff => self.double(long).unwrap_or(0) & 0x7fff_ffff,
            speed => speed.into(),
        };
        // What it is configured to, else what it could.
        let speed = Some(speed(0x20, 0x58)).filter(|speed| *speed > 0).unwrap_or_else(|| speed(0x15, 0x54));
        let kind = match self.byte(0x12).unwrap_or(0) {
            0x07 => "RAM",
            0x13 => "DDR2",
            0x18 => "DDR3",
            0x1a => "DDR4",
            0x1e => "LPDDR4",
            0x20 => "HBM",
            0x21 => "HBM2",
            0x22 => "DDR5",
            0x23 => "LPDDR5",
            0x24 => "HBM3",
            _ => "",
        };
        let (vendor, serial, part) = (self.text(0x17), self.text(0x18), self.text(0x1a));
        Dimm { slot, size, kind: kind.into(), speed, vendor, part, serial }
    }

    /// §7.44.
    fn tpm(&self) -> Option<String> {
        let (major, minor) = (self.byte(8)?, self.byte(9)?);
        (major != 0).then(|| format!("{major}.{minor}"))
    }
}

/// What makers write where they should write nothing.
const FILLERS: [&str; 9] = [
    "Not Specified",
    "Not Available",
    "Not Provided",
    "To Be Filled By O.E.M.",
    "Default string",
    "NO DIMM",
    "None",
    "Unknown",
    "N/A",
];

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    /// A structure: its kind, its area behind the header, and its strings.
    fn structure(kind: u8, area: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![kind, area.len() as u8 + 4, 0, 0];
        bytes.extend(area);
        for text in strings {
            bytes.extend(text.bytes());
            bytes.push(0);
        }
        bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        bytes
    }

    /// A memory device of version 2.8, whose strings are locator, bank and part number.
    fn memory(size: u16, extended: u32, kind: u8, strings: &[&str]) -> Vec<u8> {
        let mut area = vec![0; 0x28 - 4];
        let mut put = |at: usize, bytes: &[u8]| area[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
        put(0x0c, &size.to_le_bytes());
        put(0x10, &[1, 2, kind]);
        put(0x15, &3200u16.to_le_bytes());
        put(0x1a, &[3]);
        put(0x1c, &extended.to_le_bytes());
        put(0x20, &2933u16.to_le_bytes());
        structure(17, &area, strings)
    }

    #[test]
    fn memory_slots_are_told_with_the_empty_ones() {
        let table = [
            memory(16384, 0, 0x1a, &["A1", "NODE 0", "M393A2K43DB3-CWE"]),
            memory(0x7fff, 65536, 0x22, &["A2", "NODE 0", "M321R8GA0BB0-CQK"]),
            memory(0, 0, 0x02, &["A3", "NODE 0", "NO DIMM"]),
            memory(0x8000 | 512, 0, 0x07, &["A4", "NODE 0", "x"]),
            // After the end nothing is read.
            structure(127, &[], &[]),
            memory(16384, 0, 0x1a, &["B1", "NODE 0", "x"]),
        ]
        .concat();
        let lines = parse(&table).memory.into_iter().map(|dimm| {
            let Dimm { slot, size, kind, speed, part, .. } = dimm;
            format!("{slot}: {} KiB {kind} {speed} {part}\n", size >> 10)
        });
        expect![[r#"
            A1: 16777216 KiB DDR4 2933 M393A2K43DB3-CWE
            A2: 67108864 KiB DDR5 2933 M321R8GA0BB0-CQK
            A3: 0 KiB  0 
            A4: 512 KiB RAM 2933 x
        "#]]
        .assert_eq(&lines.collect::<String>());
    }

    /// QEMU 7.2's table for `-m 20G -smp 4,sockets=2` with `-smbios` of types 0, 2, 3, 4 and 17, and what
    /// dmidecode 3.4 says of it.
    #[test]
    fn a_table_is_read_as_dmidecode_reads_it() {
        let told = parse(&include_bytes!("../../../tests/fuzz/corpus/hardware/smbios_qemu")[1..]);
        let bios = Bios { vendor: "rackhand".into(), version: "2.10.2".into(), date: "02/24/2021".into() };
        assert_eq!(told.bios, bios);
        let board = ["Boards", "B1", "A02", "BS-1"].map(str::to_owned);
        assert_eq!([told.board.vendor, told.board.product, told.board.version, told.board.serial], board);
        assert_eq!((&*told.chassis.vendor, &*told.chassis.product, &*told.chassis.serial), ("Chassis", "other", "C-1"));
        let sockets: Vec<_> =
            told.processors.iter().map(|cpu| (&*cpu.slot, &*cpu.model, cpu.cores, cpu.threads)).collect();
        assert_eq!(sockets, [("CPU 0", "Xeon", 2, 2), ("CPU 1", "Xeon", 2, 2)]);
        let dimm = |slot: &str, gib: u64| Dimm {
            slot: slot.into(),
            size: gib << 30,
            kind: "RAM".into(),
            speed: 3200,
            vendor: "Mem".into(),
            part: "PN17".into(),
            serial: "M1".into(),
        };
        assert_eq!(told.memory, [dimm("DIMM_A 0", 16), dimm("DIMM_A 1", 4)]);
    }

    #[test]
    fn slots_that_are_called_alike_are_told_apart() {
        let named = |names: &[(&str, &str)]| {
            let table = names.iter().map(|(slot, bank)| memory(1024, 0, 0x1a, &[slot, bank, "p"])).collect::<Vec<_>>();
            parse(&table.concat()).memory.into_iter().map(|dimm| dimm.slot).collect::<Vec<_>>()
        };
        assert_eq!(named(&[("DIMM 0", "P0"), ("DIMM 0", "P1"), ("A1", "P1")]), ["P0 DIMM 0", "P1 DIMM 0", "A1"]);
        assert_eq!(named(&[("DIMM", "P0"), ("DIMM", "P0")]), ["DIMM #1", "DIMM #2"]);
    }

    #[test]
    fn sockets_slots_and_the_rest_are_told() {
        let mut cpu = vec![0; 0x30 - 4];
        let mut put = |at: usize, bytes: &[u8]| cpu[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
        put(0x04, &[1, 3]);
        put(0x10, &[2]);
        put(0x18, &[0x41]);
        put(0x23, &[0xff, 0, 0xff]);
        put(0x2a, &[0, 1, 0, 0, 0, 2]);
        let mut empty = cpu.clone();
        empty[0x18 - 4] = 0;
        let slot = |usage, address: [u8; 4]| {
            let [s0, s1, bus, function] = address;
            structure(9, &[1, 0xb5, 0x0d, usage, 4, 0, 0, 0, 0, s0, s1, bus, function], &["PCIE2"])
        };
        let table = [
            structure(0, &[1, 2, 0, 0, 3], &["Dell Inc.", "2.10.2", "02/24/2021"]),
            structure(2, &[1, 2, 3, 4], &["Dell Inc.", "08D89F", "A02", "CNFCP0"]),
            structure(3, &[1, 0x97, 0, 2], &["Dell Inc.", "7XK"]),
            structure(4, &cpu, &["CPU1", "AMD EPYC 9754"]),
            structure(4, &empty, &["CPU2", "AMD EPYC 9754"]),
            slot(4, [0, 0, 0x3b, 0x08]),
            slot(3, [0xff; 4]),
            structure(43, &[0, 0, 0, 0, 2, 0], &[]),
        ]
        .concat();
        let told = parse(&table);
        expect![[r#"
            Bios { vendor: "Dell Inc.", version: "2.10.2", date: "02/24/2021" }
            Board { vendor: "Dell Inc.", product: "08D89F", version: "A02", serial: "CNFCP0" }
            Board { vendor: "Dell Inc.", product: "rack mount chassis", version: "", serial: "7XK" }
            [Socket { slot: "CPU1", populated: true, model: "AMD EPYC 9754", cores: 256, threads: 512 }, Socket { slot: "CPU2", populated: false, model: "", cores: 0, threads: 0 }]
            [Slot { name: "PCIE2", lanes: 16, in_use: Some(true), address: Some("0000:3b:01.0") }, Slot { name: "PCIE2", lanes: 16, in_use: Some(false), address: None }]
            Some("2.0")
        "#]]
        .assert_eq(&format!(
            "{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n",
            told.bios, told.board, told.chassis, told.processors, told.slots, told.tpm
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Wherever a table is cut, what stood whole before that is still told, and nothing else.
        #[test]
        fn a_cut_table_tells_what_is_before_the_cut(count in 1usize..20, cut in any::<prop::sample::Index>()) {
            let one: Vec<_> = (0..count).map(|n| memory(1024, 0, 0x1a, &[&format!("A{n}"), "B", "P"])).collect();
            let table = one.concat();
            let cut = cut.index(table.len() + 1);
            let mut whole = 0;
            let mut end = 0;
            for structure in &one {
                end += structure.len();
                whole += usize::from(end <= cut);
            }
            let told = parse(&table[..cut]);
            prop_assert_eq!(told.memory.len(), whole);
            prop_assert_eq!(&told.memory[..whole], &parse(&table).memory[..whole]);
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let told = parse(&bytes);
            prop_assert!(told.memory.len() + told.slots.len() <= MAX_STRUCTURES);
        }
    }
}
