//! The partitions of a disk: GPT (UEFI 2.10 §5.3), or the four of an MBR (§5.2).

use super::{super::layout::ESP, disk::Part};

/// The most partitions that are looked at.
const MOST: usize = 128;

/// What table there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// With its sector size.
    Gpt(u32),
    Mbr,
    None,
}

/// One partition.
pub(super) struct Partition {
    pub(super) part: Part,
    /// An EFI system partition.
    pub(super) esp: bool,
}

/// The disk's table and the partitions in it that lie within the disk.
pub(super) fn read(disk: &Part) -> std::io::Result<(Table, Vec<Partition>)> {
    let head = disk.head(64 << 10)?;
    for sector in [512u32, 4096] {
        if let Some(found) = gpt(disk, &head, sector) {
            return Ok((Table::Gpt(sector), found));
        }
    }
    let mut found = Vec::new();
    if head.get(510..512) == Some(&[0x55, 0xaa]) {
        for entry in head[446..510].as_chunks::<16>().0.iter().filter(|entry| entry[4] != 0) {
            let sectors =
                |at: usize| u64::from(u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]));
            let part = disk.part(sectors(8) * 512, sectors(12) * 512);
            found.push(Partition { part, esp: entry[4] == 0xef });
        }
    }
    found.retain(|partition| partition.part.len > 0 && partition.part.start > 0);
    // A file system may begin with such a signature, and then what follows is no table.
    Ok(if found.is_empty() { (Table::None, found) } else { (Table::Mbr, found) })
}

fn gpt(disk: &Part, head: &[u8], sector: u32) -> Option<Vec<Partition>> {
    let header = head.get(sector as usize..)?.get(..92)?;
    let u64_at = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let u32_at = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if &header[..8] != b"EFI PART" || u64_at(header, 24)? != 1 {
        return None;
    }
    let start = usize::try_from(u64_at(header, 72)?).ok()?.checked_mul(sector as usize)?;
    let (count, size) = (u32_at(header, 80)? as usize, u32_at(header, 84)? as usize);
    if size < 128 {
        return Some(Vec::new());
    }
    let entries = head.get(start..).unwrap_or_default().chunks_exact(size).take(count.min(MOST));
    let mut found = Vec::new();
    for entry in entries.filter(|entry| entry[..16] != [0; 16]) {
        let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        let Some(sectors) = last.checked_sub(first).and_then(|sectors| sectors.checked_add(1)) else { continue };
        let bytes = |sectors: u64| sectors.saturating_mul(u64::from(sector));
        let part = disk.part(bytes(first), bytes(sectors));
        if part.len > 0 {
            found.push(Partition { part, esp: entry[..16] == ESP });
        }
    }
    Some(found)
}
