//! Overwriting a disk with zeros and reading back samples: the first and last MiB and places
//! chosen by a seed. Whoever sells the disk as sanitized wants more (NIST SP 800-88 purge);
//! this is its *clear*.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use rackhand_fail_points::fail_point;
use tokio_util::sync::CancellationToken;

use crate::disk::{Buffer, Disk};

/// Why a disk is not known to be empty.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// Writing failed.
    #[error("overwriting at {at} failed")]
    Write {
        /// Byte offset.
        at: u64,
        /// How.
        #[source]
        error: io::Error,
    },
    /// Reading back failed.
    #[error("reading back at {at} failed")]
    Read {
        /// Byte offset.
        at: u64,
        /// How.
        #[source]
        error: io::Error,
    },
    /// Something else than zeros came back.
    #[error("after overwriting, the MiB at {0} is not zeros")]
    NotZeros(u64),
    /// The order was withdrawn.
    #[error("the order was withdrawn")]
    Withdrawn,
}

const STEP: u64 = 64 << 20;
const SAMPLE: u64 = 1 << 20;
/// Together with both ends: a remnant of a hundredth of the disk is found with near certainty
/// by a few hundred; 64 bound the time on spinning disks to about a second.
const SAMPLES: u64 = 64;

/// Overwrites the disk, flushes, and reads back; the bytes that were read. `done` counts bytes
/// overwritten.
pub fn erase(disk: &dyn Disk, seed: u64, done: &AtomicU64, withdrawn: &CancellationToken) -> Result<u64, EraseError> {
    let size = disk.size();
    let mut at = 0;
    while at < size {
        if withdrawn.is_cancelled() {
            return Err(EraseError::Withdrawn);
        }
        let len = STEP.min(size - at);
        let overwrite = || fail_point!("erase.overwrite", disk.zero(at, len));
        overwrite().map_err(|error| EraseError::Write { at, error })?;
        done.fetch_add(len, Ordering::Relaxed);
        at += len;
    }
    disk.flush().map_err(|error| EraseError::Write { at, error })?;

    let mut bytes = Buffer::zeroed(SAMPLE as usize);
    let mut verified = 0;
    for at in samples(size, u64::from(disk.sector()), seed) {
        bytes.set_len(SAMPLE.min(size - at) as usize);
        // Whatever the device does not write must not look like zeros.
        bytes.fill(0xff);
        let mut read = || fail_point!("erase.verify", disk.read_at(at, &mut bytes));
        read().map_err(|error| EraseError::Read { at, error })?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(EraseError::NotZeros(at));
        }
        verified += bytes.len() as u64;
    }
    Ok(verified)
}

/// Where to read back: both ends, and places between; all of a small disk.
fn samples(size: u64, sector: u64, seed: u64) -> Vec<u64> {
    if size <= SAMPLE * (SAMPLES + 2) {
        return (0..size).step_by(SAMPLE as usize).collect();
    }
    let last = (size - SAMPLE) / sector * sector;
    let mut state = seed;
    let between = (0..SAMPLES).map(|_| splitmix(&mut state) % (last / sector) * sector);
    let mut places: Vec<_> = [0, last].into_iter().chain(between).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// SplitMix64: good enough to be unforeseen by a disk, and the same for the same seed.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileDisk;

    fn file(size: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0xaa; size]).unwrap();
        file
    }

    #[test]
    fn an_erased_disk_is_all_zeros() {
        let file = file((3 << 20) + 512);
        let disk = FileDisk::open(file.path()).unwrap();
        let done = AtomicU64::new(0);
        let verified = erase(&disk, 1, &done, &CancellationToken::new()).unwrap();
        assert_eq!((verified, done.into_inner()), (disk.size(), disk.size()));
        assert!(std::fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0));
    }

    /// Says that it wrote.
    struct Liar(FileDisk);

    impl Disk for Liar {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn sector(&self) -> u32 {
            512
        }
        fn read_at(&self, at: u64, bytes: &mut Buffer) -> io::Result<()> {
            self.0.read_at(at, bytes)
        }
        fn write_at(&self, _: u64, _: &Buffer) -> io::Result<()> {
            Ok(())
        }
        fn zero(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) {}
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_did_not_write_is_found_out() {
        let file = file(1 << 20);
        let liar = Liar(FileDisk::open(file.path()).unwrap());
        let outcome = erase(&liar, 1, &AtomicU64::new(0), &CancellationToken::new());
        assert!(matches!(outcome, Err(EraseError::NotZeros(0))));
    }

    #[test]
    fn samples_lie_on_the_disk_and_include_both_ends() {
        for size in [1 << 20, 3 << 30, (500 << 30) + 4096 * 3] {
            let places = samples(size, 4096, 42);
            assert_eq!(places[0], 0);
            assert!(places.iter().all(|at| at % 4096 == 0 && *at < size));
            assert!(places.last().unwrap() + SAMPLE >= size);
        }
    }
}
