//! The file under a store. A disk that is full, or that refuses a write, is waited for: redb takes
//! the first error for the end and would do nothing more until it is opened anew.
//!
//! Invariants:
//! - A write that fails is tried again until it succeeds; meanwhile whoever wants to write waits,
//!   and whoever reads does not.
//! - A sync that fails ends the process: the kernel may have dropped what it could not write, and
//!   would say yes to a second try. The next start reads what is really there.
//! - The same for a read that fails: a store that cannot be read is not to be acted from.

use std::{
    fs::OpenOptions,
    io,
    ops::Bound,
    path::{Path, PathBuf},
    time::Duration,
};

use redb::{BackendError, DatabaseError, StorageBackend, backends::FileBackend};

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);

/// How the process ends when its disk fails (`EX_IOERR` of `sysexits.h`).
const EX_IOERR: i32 = 74;

/// A file that is patient with its disk.
#[derive(Debug)]
pub(crate) struct PatientFile {
    path: PathBuf,
    file: FileBackend,
}

impl PatientFile {
    /// Opens it; it is made when there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { path: path.to_owned(), file: FileBackend::new(file)? })
    }

    fn patiently<T>(&self, act: impl Fn() -> Result<T, io::Error>) -> T {
        let mut has_failed = false;
        loop {
            match act() {
                Ok(done) => {
                    if has_failed {
                        tracing::warn!(file = %self.path.display(), "the disk takes writes again");
                    }
                    return done;
                }
                Err(error) => {
                    if !has_failed {
                        let file = self.path.display();
                        tracing::error!(%file, %error, "the disk takes no writes: make room; what is to be kept waits");
                    }
                    has_failed = true;
                    std::thread::sleep(AGAIN);
                }
            }
        }
    }

    fn or_end<T>(&self, done: Result<T, io::Error>) -> T {
        done.unwrap_or_else(|error| {
            tracing::error!(file = %self.path.display(), %error, "the disk fails: the next start reads what is there");
            std::process::exit(EX_IOERR)
        })
    }
}

impl StorageBackend for PatientFile {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.or_end(self.file.len()))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.or_end(self.file.read(offset, out));
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.patiently(|| self.file.set_len(len));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.or_end(self.file.sync_data());
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.patiently(|| self.file.write(offset, data));
        Ok(())
    }

    fn close(&self) -> Result<(), io::Error> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
