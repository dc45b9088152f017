//! What a raw image's first sectors tell: the sector size it was made for, and how it boots.
//! GPT as in UEFI 2.10 §5.3, protective and classic MBR as in §5.2.
//!
//! Only what is there is believed. An image whose layout says nothing about booting must be
//! imported with the operator's word for it.

use rackhand_common::machine::Firmware;

/// How much of the image [`look`] wants to see: the MBR, and a GPT with 128 entries in
/// sectors of either size.
pub(super) const HEAD: usize = 64 << 10;

/// What an image's layout tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The logical sector size; absent where no GPT says it.
    pub(super) sector: Option<u32>,
    /// Firmware modes it can boot in.
    pub(super) firmware: Vec<Firmware>,
    /// The bytes the image must have by its own account; zero when it gives none.
    pub(super) needs: u64,
}

/// Reads the beginning of a raw image.
pub(super) fn look(head: &[u8]) -> Layout {
    let signed = head.get(510..512) == Some(&[0x55, 0xaa]);
    // The boot code of a protective MBR is empty unless a BIOS loader was installed there.
    let boots_by_mbr = signed && head.get(..440).is_some_and(|code| code.iter().any(|&byte| byte != 0));
    let mbr = if signed { Mbr::read(head) } else { Mbr::default() };
    let gpt = [512u32, 4096].into_iter().find_map(|sector| Gpt::read(head, sector));

    let uefi = gpt.as_ref().map_or(mbr.efi, |gpt| gpt.efi);
    let bios = boots_by_mbr || gpt.as_ref().is_some_and(|gpt| gpt.bios);
    let modes = [(bios, Firmware::Bios), (uefi, Firmware::Uefi)];
    Layout {
        sector: gpt.as_ref().map(|gpt| gpt.sector),
        firmware: modes.into_iter().filter_map(|(can, mode)| can.then_some(mode)).collect(),
        needs: gpt.map_or(mbr.needs, |gpt| gpt.needs),
    }
}

#[derive(Default)]
struct Mbr {
    efi: bool,
    needs: u64,
}

impl Mbr {
    fn read(head: &[u8]) -> Self {
        let mut mbr = Self::default();
        for entry in head.get(446..510).into_iter().flat_map(|table| table.chunks_exact(16)) {
            let kind = entry[4];
            // 0xee only says that a GPT follows; its length is not to be believed.
            if kind == 0 || kind == 0xee {
                continue;
            }
            let end = u64::from(u32_at(entry, 8)) + u64::from(u32_at(entry, 12));
            mbr.efi |= kind == 0xef;
            mbr.needs = mbr.needs.max(end * 512);
        }
        mbr
    }
}

struct Gpt {
    sector: u32,
    efi: bool,
    bios: bool,
    needs: u64,
}

impl Gpt {
    fn read(head: &[u8], sector: u32) -> Option<Self> {
        let header = head.get(sector as usize..)?.get(..92)?;
        // The header says of itself that it is at LBA 1: else a stale one of another size.
        if &header[..8] != b"EFI PART" || u64_at(header, 24) != 1 {
            return None;
        }
        let last_usable = u64_at(header, 48);
        let mut gpt = Self {
            sector,
            efi: false,
            bios: false,
            // The backup header is the last sector. Some tools cut it off, which we repair by
            // writing a new one; what is within the usable range must be there.
            needs: last_usable.saturating_add(1).saturating_mul(u64::from(sector)),
        };
        let start = usize::try_from(u64_at(header, 72)).ok()?.checked_mul(sector as usize)?;
        let (count, size) = (u32_at(header, 80) as usize, u32_at(header, 84) as usize);
        if size < 128 {
            return Some(gpt);
        }
        let entries = head.get(start..).unwrap_or_default().chunks_exact(size).take(count);
        let mut last_used = 0;
        for entry in entries {
            gpt.efi |= entry[..16] == ESP;
            gpt.bios |= entry[..16] == BIOS_BOOT;
            if entry[..16] != [0; 16] {
                last_used = last_used.max(u64_at(entry, 40));
            }
        }
        if last_used > 0 {
            gpt.needs = last_used.saturating_add(1).saturating_mul(u64::from(sector));
        }
        Some(gpt)
    }
}

/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B as it stands on the disk.
pub(super) const ESP: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

/// 21686148-6449-6E6F-744E-656564454649 as it stands on the disk.
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disk of `sectors` with a GPT that holds one partition of each of these types.
    pub(crate) fn gpt(sector: usize, sectors: u64, kinds: &[[u8; 16]]) -> Vec<u8> {
        let mut disk = vec![0; sector * sectors as usize];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[446 + 4] = 0xee;
        let header = &mut disk[sector..2 * sector];
        header[..8].copy_from_slice(b"EFI PART");
        header[24..32].copy_from_slice(&1u64.to_le_bytes());
        header[48..56].copy_from_slice(&(sectors - 2).to_le_bytes());
        header[72..80].copy_from_slice(&2u64.to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        for (index, kind) in kinds.iter().enumerate() {
            let entry = &mut disk[2 * sector + index * 128..][..128];
            entry[..16].copy_from_slice(kind);
            entry[40..48].copy_from_slice(&(sectors - 2).to_le_bytes());
        }
        disk
    }

    #[test]
    fn the_sector_size_is_where_the_header_stands() {
        assert_eq!(look(&gpt(512, 64, &[ESP])).sector, Some(512));
        assert_eq!(look(&gpt(4096, 64, &[ESP])).sector, Some(4096));
        assert_eq!(look(&[0; HEAD]), Layout::default());
    }

    #[test]
    fn firmware_modes_are_only_those_the_layout_shows() {
        let mut loader = gpt(512, 64, &[]);
        loader[0] = 0xeb;
        assert_eq!(look(&loader).firmware, [Firmware::Bios]);
        assert_eq!(look(&gpt(512, 64, &[BIOS_BOOT])).firmware, [Firmware::Bios]);
        assert_eq!(look(&gpt(512, 64, &[ESP])).firmware, [Firmware::Uefi]);
        assert_eq!(look(&gpt(4096, 64, &[BIOS_BOOT, ESP])).firmware, [Firmware::Bios, Firmware::Uefi]);
        assert_eq!(look(&gpt(512, 64, &[[7; 16]])).firmware, []);
    }

    #[test]
    fn a_classic_mbr_tells_its_end_and_its_loader() {
        let mut disk = vec![0; 512];
        disk[0] = 0xfa;
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        disk[450] = 0x83;
        disk[454..458].copy_from_slice(&2048u32.to_le_bytes());
        disk[458..462].copy_from_slice(&1000u32.to_le_bytes());
        assert_eq!(look(&disk), Layout { sector: None, firmware: vec![Firmware::Bios], needs: 3048 * 512 });
    }

    proptest! {
        #[test]
        fn no_bytes_stop_the_parser(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..6000),
            header: bool,
        ) {
            if header && bytes.len() > 1024 {
                bytes[512..520].copy_from_slice(b"EFI PART");
                bytes[536..544].copy_from_slice(&1u64.to_le_bytes());
            }
            look(&bytes);
        }
    }
}
