//! The header of a qcow2 file (QEMU's docs/interop/qcow2.txt), read before any tool may open
//! the file: one that names a backing or data file would make the converter read other files
//! of this host into the image.

/// The first bytes of every qcow2 file.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// How much of the file [`check`] wants to see.
pub(super) const HEADER: usize = 104;

const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;

/// Why a qcow2 file is not converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unacceptable {
    #[error("the file ends within its qcow2 header")]
    Short,
    #[error("qcow2 version {0} is not known")]
    Version(u32),
    #[error("the file names a backing file; flatten it first (qemu-img convert)")]
    BackingFile,
    #[error("the file keeps its data in another file; flatten it first (qemu-img convert)")]
    DataFile,
    #[error("the file is encrypted")]
    Encrypted,
    #[error("the file is marked as corrupt; see qemu-img check")]
    Corrupt,
}

/// The virtual size of the disk in a qcow2 file that stands by itself.
pub(super) fn check(header: &[u8]) -> Result<u64, Unacceptable> {
    let u32_at = |at: usize| header.get(at..at + 4).map(|b| u32::from_be_bytes(b.try_into().expect("four bytes")));
    let u64_at = |at: usize| header.get(at..at + 8).map(|b| u64::from_be_bytes(b.try_into().expect("eight bytes")));
    let version = u32_at(4).ok_or(Unacceptable::Short)?;
    if !matches!(version, 2 | 3) {
        return Err(Unacceptable::Version(version));
    }
    if u64_at(8).ok_or(Unacceptable::Short)? != 0 {
        return Err(Unacceptable::BackingFile);
    }
    let size = u64_at(24).ok_or(Unacceptable::Short)?;
    if u32_at(32).ok_or(Unacceptable::Short)? != 0 {
        return Err(Unacceptable::Encrypted);
    }
    if version == 3 {
        let incompatible = u64_at(72).ok_or(Unacceptable::Short)?;
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return Err(Unacceptable::DataFile);
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(Unacceptable::Corrupt);
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(version: u32, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut header = vec![0; HEADER];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&version.to_be_bytes());
        header[24..32].copy_from_slice(&4096u64.to_be_bytes());
        change(&mut header);
        header
    }

    #[test]
    fn only_files_that_stand_by_themselves_are_accepted() {
        assert_eq!(check(&header(2, |_| ())), Ok(4096));
        assert_eq!(check(&header(3, |_| ())), Ok(4096));
        assert_eq!(check(&header(3, |h| h[15] = 200)), Err(Unacceptable::BackingFile));
        assert_eq!(check(&header(2, |h| h[8] = 1)), Err(Unacceptable::BackingFile));
        assert_eq!(check(&header(3, |h| h[79] = 4)), Err(Unacceptable::DataFile));
        assert_eq!(check(&header(3, |h| h[79] = 2)), Err(Unacceptable::Corrupt));
        assert_eq!(check(&header(3, |h| h[35] = 2)), Err(Unacceptable::Encrypted));
        assert_eq!(check(&header(4, |_| ())), Err(Unacceptable::Version(4)));
        assert_eq!(check(&header(3, |_| ())[..70]), Err(Unacceptable::Short));
    }

    proptest! {
        #[test]
        fn no_bytes_stop_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
        }
    }
}
