//! The header and the descriptor of a vmdk file (VMware's Virtual Disk Format 5.0), read before
//! any tool may open the file. Two kinds stand by themselves, `monolithicSparse` and
//! `streamOptimized`; the others are texts that name files, and a converter would read those
//! into the image.
//!
//! What QEMU goes by is looked at where QEMU looks: the descriptor behind the first sector
//! whatever the header says of its place, a header without a capacity as one of a text, and the
//! copy of the header at the end of the file in place of the first one.

/// The first bytes of a sparse vmdk file.
pub(super) const MAGIC: [u8; 4] = *b"KDMV";

/// First bytes of files that are vmdk, and name others or are of another age.
pub(super) const OTHERS: [&[u8]; 2] = [b"# Disk DescriptorFile", b"COWD"];

/// How much of the file's beginning [`check`] wants to see: the header and 20 sectors of
/// descriptor, which is as much as QEMU reads.
pub(super) const HEAD: usize = SECTOR * 21;

/// How much of its end: a marker, the header again, and the end-of-stream marker.
pub(super) const TAIL: usize = SECTOR * 3;

const SECTOR: usize = 512;

/// Where the grain directory is when only the header at the end knows.
const AT_END: u64 = u64::MAX;

/// Why a vmdk file is not converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unacceptable {
    #[error("the file ends within its vmdk header")]
    Short,
    #[error("vmdk version {0} is not known")]
    Version(u32),
    #[error("the file only describes a disk that lies in other files; convert it first (qemu-img convert -O qcow2)")]
    Descriptor,
    #[error("its descriptor is not where a file that stands by itself has it")]
    Elsewhere,
    #[error("createType `{0}` is not taken: monolithicSparse and streamOptimized are")]
    Kind(String),
    #[error("the file is a snapshot and names its parent; convert it first (qemu-img convert -O qcow2)")]
    Parent,
    #[error("its descriptor names other files: {0}")]
    Extents(String),
    #[error("its two headers contradict each other")]
    Contradiction,
}

/// The virtual size of the disk in a vmdk file that stands by itself.
pub(super) fn check(head: &[u8], tail: &[u8]) -> Result<u64, Unacceptable> {
    let first = Header::read(head).ok_or(Unacceptable::Short)?;
    if !matches!(first.version, 1..=3) {
        return Err(Unacceptable::Version(first.version));
    }
    if first.capacity == 0 {
        return Err(Unacceptable::Descriptor);
    }
    if first.descriptor != 1 || first.descriptor_len == 0 || first.descriptor_len > 20 {
        return Err(Unacceptable::Elsewhere);
    }
    if first.directory == AT_END {
        let last = tail.get(SECTOR..).and_then(Header::read).filter(|_| tail[SECTOR..].starts_with(&MAGIC));
        let last = last.ok_or(Unacceptable::Short)?;
        if (last.capacity, last.version) != (first.capacity, first.version) {
            return Err(Unacceptable::Contradiction);
        }
    }
    // All that QEMU would read of it, also what the header does not count in.
    let text = head.get(SECTOR..).filter(|text| !text.is_empty()).ok_or(Unacceptable::Short)?;
    descriptor(&text[..text.len().min(SECTOR * 20)])?;
    Ok(first.capacity.saturating_mul(SECTOR as u64))
}

/// A text that describes one extent, which is this file.
fn descriptor(text: &[u8]) -> Result<(), Unacceptable> {
    let text = String::from_utf8_lossy(text).to_lowercase();
    // Anywhere, behind a NUL too: nothing here relies on how others split lines.
    if text.contains("parentfilenamehint") {
        return Err(Unacceptable::Parent);
    }
    let text = text.split('\0').next().unwrap_or_default();
    let mut kind = None;
    let mut extents = Vec::new();
    for line in text.lines().map(str::trim) {
        let value = |value: &str| value.trim().trim_matches('"').to_owned();
        match line.split_once('=') {
            Some((key, set)) if key.trim() == "createtype" => kind = Some(value(set)),
            Some((key, set)) if key.trim() == "parentcid" && value(set) != "ffffffff" => {
                return Err(Unacceptable::Parent);
            }
            _ if ["rw ", "rdonly ", "noaccess "].iter().any(|access| line.starts_with(access)) => extents.push(line),
            _ => {}
        }
    }
    let kind = kind.unwrap_or_default();
    if !matches!(kind.as_str(), "monolithicsparse" | "streamoptimized") {
        return Err(Unacceptable::Kind(kind.chars().take(40).collect()));
    }
    let [extent] = extents.as_slice() else {
        return Err(Unacceptable::Extents(format!("{} extents", extents.len())));
    };
    let words: Vec<_> = extent.splitn(4, ' ').collect();
    let own = |name: &str| !name.contains(['/', '\\']);
    match words.as_slice() {
        ["rw", _, "sparse", name] if own(name) => Ok(()),
        _ => Err(Unacceptable::Extents(extent.chars().take(80).collect())),
    }
}

struct Header {
    version: u32,
    /// Sectors of the disk.
    capacity: u64,
    /// The sector in which the descriptor begins.
    descriptor: u64,
    descriptor_len: u64,
    /// The sector of the grain directory.
    directory: u64,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Self {
            version: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
            capacity: u64_at(12)?,
            descriptor: u64_at(28)?,
            descriptor_len: u64_at(36)?,
            directory: u64_at(56)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "# Disk DescriptorFile\nversion=1\nCID=6d6e7f3a\nparentCID=ffffffff\n\
        createType=\"monolithicSparse\"\n\n# Extent description\nRW 2048 SPARSE \"disk.vmdk\"\n\nddb.adapterType = \"ide\"\n";

    fn file(text: &str, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut file = vec![0; HEAD];
        file[..4].copy_from_slice(&MAGIC);
        file[4] = 1;
        file[12..20].copy_from_slice(&2048u64.to_le_bytes());
        file[28] = 1;
        file[36] = 20;
        file[56] = 21;
        file[SECTOR..SECTOR + text.len()].copy_from_slice(text.as_bytes());
        change(&mut file);
        file
    }

    #[test]
    fn only_files_that_stand_by_themselves_are_accepted() {
        let said = |from: &str, to: &str| check(&file(&GOOD.replacen(from, to, 1), |_| ()), &[]);
        assert_eq!(said("", ""), Ok(1 << 20));
        assert_eq!(said("monolithicSparse", "streamOptimized"), Ok(1 << 20));
        assert_eq!(said("monolithicSparse", "monolithicFlat"), Err(Unacceptable::Kind("monolithicflat".into())));
        assert_eq!(said("parentCID=ffffffff", "parentCID=1234abcd"), Err(Unacceptable::Parent));
        assert_eq!(said("version=1", "parentFileNameHint=\"/etc/shadow\""), Err(Unacceptable::Parent));
        for extent in [
            "RW 2048 FLAT \"/etc/shadow\" 0",
            "RW 2048 SPARSE \"/etc/shadow\"",
            "RW 2048 SPARSE \"disk.vmdk\"\nRW 2048 FLAT \"shadow\" 0",
            "RDONLY 2048 SPARSE \"disk.vmdk\"",
            "",
        ] {
            let refused = said("RW 2048 SPARSE \"disk.vmdk\"", extent);
            assert!(matches!(refused, Err(Unacceptable::Extents(_))), "{extent}: {refused:?}");
        }
        let broken = |change: fn(&mut [u8])| check(&file(GOOD, change), &[]).unwrap_err();
        assert_eq!(broken(|file| file[12..20].fill(0)), Unacceptable::Descriptor);
        assert_eq!(broken(|file| file[28] = 9), Unacceptable::Elsewhere);
        assert_eq!(broken(|file| file[4] = 9), Unacceptable::Version(9));
        assert_eq!(broken(|file| file[4000..4018].copy_from_slice(b"parentFileNameHint")), Unacceptable::Parent);
        assert_eq!(check(&file(GOOD, |_| ())[..50], &[]), Err(Unacceptable::Short));
    }

    #[test]
    fn a_header_at_the_end_says_the_same_as_the_first() {
        let head = file(GOOD, |file| file[56..64].fill(0xff));
        let mut tail = vec![0; TAIL];
        assert_eq!(check(&head, &tail), Err(Unacceptable::Short));
        tail[SECTOR..SECTOR * 2].copy_from_slice(&head[..SECTOR]);
        assert_eq!(check(&head, &tail), Ok(1 << 20));
        tail[SECTOR + 12] = 1;
        assert_eq!(check(&head, &tail), Err(Unacceptable::Contradiction));
    }

    proptest! {
        #[test]
        fn no_bytes_stop_the_parser(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..12_000),
            tail in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let _ = check(&bytes, &tail);
            if bytes.len() > 1000 {
                bytes[..80].copy_from_slice(&file(GOOD, |_| ())[..80]);
                let _ = check(&bytes, &tail);
            }
        }
    }
}
