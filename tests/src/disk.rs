//! Disks of simulated machines: files of 512-byte sectors that lose power with their machine,
//! count what is written to them, and can be made to hold a writer up at a place of the
//! test's choosing.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rackhand_common::{image::CHUNK, machine};
use rackhand_installer::{
    disk::{Buffer, Disk, FileDisk},
    inventory,
};

use crate::wait;

/// A disk as it lies on a table or sits in a machine; clones are the same disk.
#[derive(Clone, Debug)]
pub struct Drive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    serial: String,
    size: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Writers at or behind this offset wait.
    hold: Option<u64>,
    /// One waits now.
    held: bool,
    /// How often data was written to each chunk's range, by the range's offset.
    writes: BTreeMap<u64, u32>,
}

const MODEL: &str = "SIMDISK";

impl Drive {
    /// A disk that was never written.
    pub fn blank(directory: &Path, serial: &str, size: u64) -> io::Result<Self> {
        let path = directory.join(format!("{serial}.disk"));
        fs::File::create_new(&path)?.set_len(size)?;
        let serial = serial.to_owned();
        Ok(Self(Arc::new(Inner { path, serial, size, state: Mutex::default(), changed: Condvar::new() })))
    }

    /// A disk that is there: this file.
    pub fn found(path: &Path, serial: &str) -> io::Result<Self> {
        let size = fs::metadata(path)?.len();
        let (path, serial) = (path.to_owned(), serial.to_owned());
        Ok(Self(Arc::new(Inner { path, serial, size, state: Mutex::default(), changed: Condvar::new() })))
    }

    /// Writes to it from outside the machine.
    pub fn scribble(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        fs::OpenOptions::new().write(true).open(&self.0.path)?.write_all_at(bytes, at)
    }

    /// All of it.
    pub fn contents(&self) -> io::Result<Vec<u8>> {
        fs::read(&self.0.path)
    }

    /// The file behind it.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What the installer finds.
    pub fn facts(&self, name: &str) -> machine::Disk {
        let content = FileDisk::open(&self.0.path).and_then(|disk| inventory::look(&disk));
        machine::Disk {
            name: name.to_owned(),
            model: MODEL.to_owned(),
            serial: self.0.serial.clone(),
            wwn: None,
            size: self.0.size,
            sector: 512,
            rotational: false,
            content: content.unwrap_or_else(|error| machine::Content::Data(format!("cannot be read: {error}"))),
        }
    }

    /// Opens it for a machine that draws power as long as `power` says so.
    pub fn open(&self, power: Supply) -> io::Result<Arc<dyn Disk>> {
        Ok(Arc::new(Powered { drive: self.clone(), file: FileDisk::open(&self.0.path)?, power }))
    }

    /// From now on, whoever writes at or behind `at` waits.
    pub fn hold_from(&self, at: u64) {
        self.lock().hold = Some(at);
    }

    /// Returns when a writer waits.
    pub async fn held(&self, patience: Duration) {
        let wanted = format!("a writer of disk {} is held up", self.0.serial);
        wait::until(&wanted, patience, async || {
            let state = self.lock();
            if state.held { Ok(()) } else { Err(format!("written so far: {:?}", state.writes)) }
        })
        .await;
    }

    /// Lets writers go on.
    pub fn let_go(&self) {
        self.lock().hold = None;
        self.0.changed.notify_all();
    }

    /// How often data was written to each chunk's range of it, in order; holes not counted.
    pub fn writes(&self) -> Vec<(u64, u32)> {
        self.lock().writes.iter().map(|(at, times)| (at / CHUNK, *times)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A power supply's output: counts how often it was cut.
#[derive(Clone, Debug, Default)]
pub struct Supply {
    cuts: Arc<AtomicU64>,
    since: u64,
}

impl Supply {
    /// The output from now on, until the next cut.
    pub fn now(&self) -> Self {
        Self { cuts: self.cuts.clone(), since: self.cuts.load(Ordering::SeqCst) }
    }

    /// Cuts it, for all who draw it now.
    pub fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether it still is on; an error when it was cut.
    pub fn check(&self) -> io::Result<()> {
        if self.cuts.load(Ordering::SeqCst) == self.since { Ok(()) } else { Err(io::Error::other("no power")) }
    }
}

struct Powered {
    drive: Drive,
    file: FileDisk,
    power: Supply,
}

impl Powered {
    /// Waits while the test holds writers up; an error when the power goes meanwhile.
    fn admit(&self, at: u64) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.drive.lock();
        while state.hold.is_some_and(|from| at >= from) {
            self.power.check()?;
            state.held = true;
            let waited = self.drive.0.changed.wait_timeout(state, Duration::from_millis(20));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.held = false;
        self.power.check()?;
        Ok(state)
    }
}

impl Disk for Powered {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_at(&self, at: u64, bytes: &mut Buffer) -> io::Result<()> {
        self.power.check()?;
        self.file.read_at(at, bytes)
    }

    fn write_at(&self, at: u64, bytes: &Buffer) -> io::Result<()> {
        // The lock is held through the write: a cut comes before it or after it.
        let mut state = self.admit(at)?;
        *state.writes.entry(at / CHUNK * CHUNK).or_default() += 1;
        self.file.write_at(at, bytes)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        let _state = self.admit(at)?;
        self.file.zero(at, len)
    }

    fn discard(&self, _: u64, _: u64) {}

    fn flush(&self) -> io::Result<()> {
        self.power.check()?;
        self.file.flush()
    }
}
