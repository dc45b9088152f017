//! A disk under a store: what was not synced is lost when the power goes, in parts; it fills,
//! it fails, and it may lie.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{Database, StorageBackend};

use crate::rng::Rng;

/// A disk with one file on it.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// What is there after the power went.
    durable: Vec<u8>,
    /// What whoever reads now finds.
    current: Vec<u8>,
    unsynced: Vec<Change>,
    /// Counts openings: whoever opened an earlier one reaches nothing any more.
    opening: u64,
    full: bool,
    failing: bool,
    /// It says that it has synced, and has not.
    lies: bool,
    /// The power goes at this sync, counted from now.
    cut: Option<u64>,
    is_cut: bool,
    rng: Rng,
}

#[derive(Debug)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length, 0),
            Self::Bytes(at, written) => {
                let end = at + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(written);
            }
        }
    }
}

impl Disk {
    /// An empty disk.
    pub fn new(rng: Rng) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            durable: Vec::new(),
            current: Vec::new(),
            unsynced: Vec::new(),
            opening: 0,
            full: false,
            failing: false,
            lies: false,
            cut: None,
            is_cut: false,
            rng,
        })))
    }

    /// The store on it.
    pub fn open(&self) -> Result<Arc<Database>, redb::DatabaseError> {
        let opening = {
            let mut inner = self.lock();
            inner.opening += 1;
            inner.opening
        };
        let backend = Backend { disk: self.clone(), opening };
        Ok(Arc::new(redb::Builder::new().set_cache_size(4 << 20).create_with_backend(backend)?))
    }

    /// The process is killed: what it wrote is with the kernel.
    pub fn killed(&self) {
        let mut inner = self.lock();
        inner.opening += 1;
        inner.cut = None;
        if inner.is_cut {
            inner.is_cut = false;
        } else if !inner.lies {
            inner.durable = inner.current.clone();
            inner.unsynced.clear();
        }
        inner.current = inner.durable.clone();
        inner.unsynced.clear();
    }

    /// The power goes: of what was not synced, any part may be there.
    pub fn power_cut(&self) {
        let mut inner = self.lock();
        inner.lose();
        inner.is_cut = false;
        inner.cut = None;
        inner.opening += 1;
        inner.current = inner.durable.clone();
    }

    /// Has the power go at the n-th sync from now.
    pub fn cut_at_sync(&self, number: u64) {
        self.lock().cut = Some(number);
    }

    /// Whether the power went.
    pub fn is_cut(&self) -> bool {
        self.lock().is_cut
    }

    /// Whether nothing more fits.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Whether every access fails.
    pub fn set_failing(&self, failing: bool) {
        self.lock().failing = failing;
    }

    /// Whether it says that it synced, and has not.
    pub fn set_lying(&self, lies: bool) {
        self.lock().lies = lies;
    }

    /// A new disk in its place.
    pub fn replace(&self) {
        let mut inner = self.lock();
        inner.opening += 1;
        inner.durable.clear();
        inner.current.clear();
        inner.unsynced.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn lose(&mut self) {
        let unsynced = std::mem::take(&mut self.unsynced);
        if self.lies {
            return;
        }
        // All, nothing, or any of it.
        let kept = self.rng.below(4);
        for change in unsynced {
            if kept == 0 || (kept > 1 && self.rng.percent(50)) {
                change.apply(&mut self.durable);
            }
        }
    }

    fn check(&self, opening: u64, writes: bool) -> io::Result<()> {
        // ENOENT, EIO, ENOSPC
        let errno = match () {
            () if opening != self.opening || self.is_cut => 2,
            () if self.failing => 5,
            () if writes && self.full => 28,
            () => return Ok(()),
        };
        Err(io::Error::from_raw_os_error(errno))
    }
}

#[derive(Debug)]
struct Backend {
    disk: Disk,
    opening: u64,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let inner = self.disk.lock();
        inner.check(self.opening, false)?;
        Ok(inner.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.lock();
        inner.check(self.opening, false)?;
        let at = offset as usize;
        let found = inner.current.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let grows = len as usize > inner.current.len();
        inner.check(self.opening, grows)?;
        let change = Change::Length(len as usize);
        change.apply(&mut inner.current);
        inner.unsynced.push(change);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.check(self.opening, false)?;
        if let Some(left) = inner.cut {
            inner.cut = Some(left.saturating_sub(1));
            if left == 0 {
                inner.lose();
                inner.is_cut = true;
                inner.cut = None;
                return inner.check(self.opening, true);
            }
        }
        if inner.lies {
            return Ok(());
        }
        let Inner { unsynced, durable, .. } = &mut *inner;
        for change in unsynced.drain(..) {
            change.apply(durable);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.check(self.opening, true)?;
        let change = Change::Bytes(offset as usize, data.to_vec());
        change.apply(&mut inner.current);
        inner.unsynced.push(change);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redb::{ReadableDatabase, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("t");

    fn put(database: &Database, value: u64) -> Result<(), redb::Error> {
        let tx = database.begin_write()?;
        tx.open_table(TABLE)?.insert(1, value)?;
        tx.commit()?;
        Ok(())
    }

    fn found(disk: &Disk) -> Option<u64> {
        let database = disk.open().unwrap();
        let tx = database.begin_read().unwrap();
        let table = tx.open_table(TABLE).ok()?;
        table.get(1).unwrap().map(|value| value.value())
    }

    #[test]
    fn what_was_committed_is_there_after_the_power_went_and_the_rest_is_whole() {
        for seed in 0..50 {
            let disk = Disk::new(Rng::new(seed, 0));
            put(&disk.open().unwrap(), 1).unwrap();
            let database = disk.open().unwrap();
            disk.cut_at_sync(seed % 3);
            let mut last = 1;
            while put(&database, last + 1).is_ok() {
                last += 1;
            }
            assert!(disk.is_cut());
            disk.power_cut();
            drop(database);
            let found = found(&disk).unwrap();
            assert!(found == last || found == last + 1, "{found} after {last}");
        }
    }

    #[test]
    fn a_disk_that_lies_forgets() {
        let disk = Disk::new(Rng::new(1, 0));
        put(&disk.open().unwrap(), 1).unwrap();
        disk.set_lying(true);
        put(&disk.open().unwrap(), 2).unwrap();
        disk.power_cut();
        disk.set_lying(false);
        assert_eq!(found(&disk), Some(1));
    }

    #[test]
    fn a_full_disk_refuses_and_keeps_what_it_has() {
        let disk = Disk::new(Rng::new(1, 0));
        put(&disk.open().unwrap(), 1).unwrap();
        disk.set_full(true);
        // Opening it may want room already.
        assert!(disk.open().map_err(redb::Error::from).and_then(|database| put(&database, 2)).is_err());
        disk.set_full(false);
        disk.killed();
        assert_eq!(found(&disk), Some(1));
    }
}
