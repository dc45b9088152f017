//! GUID partition tables (UEFI specification §5.3): enough to bring an image's table to the
//! size of the disk it was written to, and to add one partition behind the others.
//!
//! Entries that are there keep every byte. Both copies are rendered anew, with checksums.

use std::fmt;

/// The partition type of data that no other type says better: "Linux filesystem data" would
/// invite installers and automounters, "Microsoft basic data" is what FAT drives carry.
pub const BASIC_DATA: Guid =
    Guid([0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7]);

/// The partition type of an EFI system partition.
pub const ESP: Guid =
    Guid([0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);

/// A GUID as it stands on the disk: its first three fields little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Place in the table, from 1.
    pub number: u32,
    /// What it is for.
    pub kind: Guid,
    /// Its own name for itself.
    pub id: Guid,
    /// First sector.
    pub first: u64,
    /// Last sector.
    pub last: u64,
}

/// A partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    sector: u64,
    /// Sectors of the disk it describes.
    sectors: u64,
    disk: Guid,
    first_usable: u64,
    entry_len: usize,
    entries: Vec<u8>,
}

/// The bytes are not a GPT.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotATable {
    /// No header where it should be.
    #[error("no GUID partition table")]
    Absent,
    /// A checksum is wrong.
    #[error("the GUID partition table is damaged: {0}")]
    Damaged(&'static str),
}

/// There is no room for what the table should describe.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room in the partition table or on the disk")]
pub struct NoRoom;

const HEADER_LEN: usize = 92;
/// The specification reserves at least this much for the entries.
const MIN_ENTRIES: u64 = 16 << 10;

/// How much of a disk's start to give [`Table::read`]: more than a table of 128 entries.
pub const HEAD: usize = 64 << 10;

impl Table {
    /// The table in the first bytes of a disk with sectors of this length. Its backup is not
    /// looked at: the disk's end may be anywhere.
    pub fn read(head: &[u8], sector: u32) -> Result<Self, NotATable> {
        let sector = u64::from(sector);
        let header = head.get(sector as usize..).and_then(|rest| rest.get(..HEADER_LEN)).ok_or(NotATable::Absent)?;
        if !header.starts_with(b"EFI PART\0\0\x01\0") || u32_at(header, 12) as usize != HEADER_LEN {
            return Err(NotATable::Absent);
        }
        let mut unsummed = header.to_vec();
        unsummed[16..20].fill(0);
        if crc32(&unsummed) != u32_at(header, 16) {
            return Err(NotATable::Damaged("wrong checksum of its header"));
        }
        let (count, entry_len) = (u32_at(header, 80) as usize, u32_at(header, 84) as usize);
        if !(128..=4096).contains(&entry_len) || !entry_len.is_power_of_two() || count > 1024 {
            return Err(NotATable::Damaged("impossible number or size of entries"));
        }
        let start = u64_at(header, 72).checked_mul(sector).and_then(|start| usize::try_from(start).ok());
        let entries = start
            .and_then(|start| head.get(start..)?.get(..count * entry_len))
            .ok_or(NotATable::Damaged("its entries are elsewhere"))?;
        if crc32(entries) != u32_at(header, 88) {
            return Err(NotATable::Damaged("wrong checksum of its entries"));
        }
        let backup = u64_at(header, 32);
        let table = Self {
            sector,
            sectors: backup.checked_add(1).ok_or(NotATable::Damaged("impossible place of its backup"))?,
            disk: Guid(header[56..72].try_into().expect("sixteen bytes were taken")),
            first_usable: u64_at(header, 40),
            entry_len,
            entries: entries.to_vec(),
        };
        if table.sectors < table.entries_sectors() + 3 {
            return Err(NotATable::Damaged("a disk too short for its own table"));
        }
        if table.partitions().any(|partition| partition.first > partition.last || partition.last >= table.sectors) {
            return Err(NotATable::Damaged("a partition beyond the disk, or that ends before it begins"));
        }
        Ok(table)
    }

    /// Describes a disk of `size` bytes from now on.
    pub fn spread(&mut self, size: u64) -> Result<(), NoRoom> {
        let sectors = self.sectors;
        self.sectors = size / self.sector;
        if self.sectors <= self.entries_sectors() + 1 || self.partitions().any(|p| p.last > self.last_usable()) {
            self.sectors = sectors;
            return Err(NoRoom);
        }
        Ok(())
    }

    /// Adds a partition of `len` bytes as far back as it fits, on a boundary of 1 MiB.
    pub fn append(&mut self, len: u64, kind: Guid, id: Guid, name: &str) -> Result<Partition, NoRoom> {
        let sectors = len.div_ceil(self.sector);
        let boundary = (1 << 20) / self.sector;
        let first = (self.last_usable() + 1).checked_sub(sectors).ok_or(NoRoom)? / boundary * boundary;
        let last = first + sectors - 1;
        if first < self.first_usable || self.partitions().any(|p| p.last >= first) {
            return Err(NoRoom);
        }
        let after_all = self.partitions().map(|p| p.number as usize).max().unwrap_or(0);
        let entry = self.entries.chunks_exact_mut(self.entry_len).nth(after_all).ok_or(NoRoom)?;
        entry.fill(0);
        entry[..16].copy_from_slice(&kind.0);
        entry[16..32].copy_from_slice(&id.0);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (place, unit) in entry[56..128].chunks_exact_mut(2).zip(name.encode_utf16()) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
        Ok(Partition { number: after_all as u32 + 1, kind, id, first, last })
    }

    /// The partitions, in the order of their entries.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> + '_ {
        self.entries.chunks_exact(self.entry_len).zip(1..).filter(|(entry, _)| entry[..16] != [0; 16]).map(
            |(entry, number)| Partition {
                number,
                kind: Guid(entry[..16].try_into().expect("sixteen bytes were taken")),
                id: Guid(entry[16..32].try_into().expect("sixteen bytes were taken")),
                first: u64_at(entry, 32),
                last: u64_at(entry, 40),
            },
        )
    }

    /// The first copy: all bytes from the protective MBR to the entries, keeping the boot code
    /// in `mbr`. To be written at 0.
    pub fn primary(&self, mbr: &[u8; 440]) -> Vec<u8> {
        let sector = self.sector as usize;
        let mut bytes = vec![0; sector * 2];
        bytes[..440].copy_from_slice(mbr);
        // One entry over the whole disk, of type 0xEE (§5.2.3).
        let protective = &mut bytes[446..462];
        protective[1..5].copy_from_slice(&[0x00, 0x02, 0x00, 0xee]);
        protective[5..8].fill(0xff);
        protective[8..12].copy_from_slice(&1u32.to_le_bytes());
        protective[12..16].copy_from_slice(&u32::try_from(self.sectors - 1).unwrap_or(u32::MAX).to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes[sector..sector + HEADER_LEN].copy_from_slice(&self.header(1, self.sectors - 1, 2));
        bytes.extend(self.padded_entries());
        bytes
    }

    /// The second copy, entries before header, and where it is to be written.
    pub fn backup(&self) -> (u64, Vec<u8>) {
        let entries = self.last_usable() + 1;
        let mut bytes = self.padded_entries();
        let header = bytes.len();
        bytes.resize(header + self.sector as usize, 0);
        bytes[header..header + HEADER_LEN].copy_from_slice(&self.header(self.sectors - 1, 1, entries));
        (entries * self.sector, bytes)
    }

    /// The last sector that a partition may have.
    pub fn last_usable(&self) -> u64 {
        self.sectors - self.entries_sectors() - 2
    }

    fn entries_sectors(&self) -> u64 {
        (self.entries.len() as u64).max(MIN_ENTRIES).div_ceil(self.sector)
    }

    fn padded_entries(&self) -> Vec<u8> {
        let mut bytes = self.entries.clone();
        bytes.resize((self.entries_sectors() * self.sector) as usize, 0);
        bytes
    }

    fn header(&self, own: u64, other: u64, entries: u64) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
        header[12..16].copy_from_slice(&(HEADER_LEN as u32).to_le_bytes());
        header[24..32].copy_from_slice(&own.to_le_bytes());
        header[32..40].copy_from_slice(&other.to_le_bytes());
        header[40..48].copy_from_slice(&self.first_usable.to_le_bytes());
        header[48..56].copy_from_slice(&self.last_usable().to_le_bytes());
        header[56..72].copy_from_slice(&self.disk.0);
        header[72..80].copy_from_slice(&entries.to_le_bytes());
        header[80..84].copy_from_slice(&((self.entries.len() / self.entry_len) as u32).to_le_bytes());
        header[84..88].copy_from_slice(&(self.entry_len as u32).to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&self.entries).to_le_bytes());
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        header
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = &self.0;
        write!(f, "{:08X}-", u32_at(g, 0))?;
        write!(f, "{:02X}{:02X}-{:02X}{:02X}-", g[5], g[4], g[7], g[6])?;
        write!(f, "{:02X}{:02X}-", g[8], g[9])?;
        g[10..].iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
}

/// CRC-32 as in ISO 3309, bit by bit: a table is 16 KiB.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn sgdisk(arguments: &[&str], path: &std::path::Path) -> String {
        let output = Command::new("sgdisk").args(arguments).arg(path).output().expect("gdisk is installed");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// An image of 8 MiB with two partitions, and the boot code `BOOT`.
    fn image(path: &std::path::Path) -> Vec<u8> {
        fs::write(path, vec![0; 8 * MIB as usize]).unwrap();
        sgdisk(&["-n", "1:2048:4095", "-t", "1:ef00", "-n", "2:4096:+2M", "-t", "2:8304", "-c", "2:root"], path);
        let mut bytes = fs::read(path).unwrap();
        bytes[..4].copy_from_slice(b"BOOT");
        bytes
    }

    #[test]
    fn sgdisk_finds_no_fault_with_a_table_spread_over_a_larger_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut disk = image(file.path());
        let size = 37 * MIB + 512 * 7;
        let mut table = Table::read(&disk[..HEAD], 512).unwrap();
        let before: Vec<_> = table.partitions().collect();
        table.spread(size).unwrap();
        let drive = table.append(4 * MIB, BASIC_DATA, Guid([7; 16]), "cidata").unwrap();
        assert_eq!((drive.number, drive.first * 512 % MIB), (3, 0));

        disk.resize(size as usize, 0);
        let primary = table.primary(disk[..440].try_into().unwrap());
        disk[..primary.len()].copy_from_slice(&primary);
        let (at, backup) = table.backup();
        disk[at as usize..].copy_from_slice(&backup);
        fs::write(file.path(), &disk).unwrap();

        assert!(sgdisk(&["-v"], file.path()).contains("No problems found."));
        let information = sgdisk(&["-i", "3"], file.path());
        assert!(information.contains("Partition name: 'cidata'"), "{information}");
        assert!(information.contains(&drive.id.to_string()), "{information}");
        assert_eq!(&disk[..4], b"BOOT");
        assert_eq!(Table::read(&disk[..HEAD], 512).unwrap().partitions().take(2).collect::<Vec<_>>(), before);
    }

    #[test]
    fn a_disk_smaller_than_the_partitions_is_refused_and_the_table_stays() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut table = Table::read(&image(file.path())[..HEAD], 512).unwrap();
        let before = table.clone();
        assert_eq!(table.spread(3 * MIB), Err(NoRoom));
        assert_eq!(table, before);
        assert_eq!(table.append(8 * MIB, BASIC_DATA, Guid([7; 16]), "x"), Err(NoRoom));
    }

    #[test]
    fn a_table_with_right_checksums_that_describes_no_disk_is_damaged() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let good = image(file.path());
        let with = |change: &dyn Fn(&mut [u8])| {
            let mut head = good[..HEAD].to_vec();
            change(&mut head);
            let entries = crc32(&head[1024..1024 + 128 * 128]);
            head[512 + 88..512 + 92].copy_from_slice(&entries.to_le_bytes());
            head[512 + 16..512 + 20].fill(0);
            let header = crc32(&head[512..512 + HEADER_LEN]);
            head[512 + 16..512 + 20].copy_from_slice(&header.to_le_bytes());
            Table::read(&head, 512)
        };
        assert!(with(&|_| ()).is_ok());
        // The first partition ends before it begins, and beyond everything; the backup is at once.
        assert!(matches!(with(&|head| head[1024 + 40..1024 + 48].fill(0)), Err(NotATable::Damaged(_))));
        assert!(matches!(with(&|head| head[1024 + 40..1024 + 48].fill(0xff)), Err(NotATable::Damaged(_))));
        assert!(matches!(with(&|head| head[512 + 32..512 + 40].fill(0)), Err(NotATable::Damaged(_))));
    }

    #[test]
    fn damage_anywhere_in_the_table_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = image(file.path());
        assert_eq!(Table::read(&[0; HEAD], 512), Err(NotATable::Absent));
        assert_eq!(Table::read(&disk[..600], 512), Err(NotATable::Absent));
        for at in [512 + 24, 512 + 90, 1024, 1024 + 128 * 128 - 1] {
            let mut damaged = disk[..HEAD].to_vec();
            damaged[at] ^= 1;
            assert!(matches!(Table::read(&damaged, 512), Err(NotATable::Damaged(_))), "byte {at}");
        }
    }
}
