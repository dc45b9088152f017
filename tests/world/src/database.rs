//! The controller's database: SQLite on a real file, in which the controller dies before or after
//! a commit, and under which the disk fills, fails and loses power.
//!
//! That the disk is full is SQLite's own word: it may take no further page. That it was mounted
//! read-only is, too. A disk that fails refuses a commit, or has it and says that it has not. A
//! power cut is met in the middle of a commit: what the commit changed in the files is there in
//! parts, and SQLite opens what is left. The interface between SQLite and the operating system is
//! not simulated: that would need unsafe code.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use anyhow::{Context as _, Result};
use futures_util::future::BoxFuture;
use rackhand_common::seal::Seal;
use rackhand_controller::store::{Gate, Space, Store, StoreError};
use tokio::sync::Notify;

use crate::rng::Rng;

/// Where the controller can die: before and after every commit and every command.
#[derive(Debug, Default)]
pub struct DeathGate {
    countdown: Mutex<Option<u64>>,
    died: Notify,
}

impl DeathGate {
    /// Has the process die at this point, counted from now.
    pub fn arm(&self, point: u64) {
        *self.countdown() = Some(point);
    }

    /// Nothing is planned any more.
    pub fn disarm(&self) {
        *self.countdown() = None;
    }

    /// Returns when the process has died.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    /// Comes back unless this is the point.
    pub async fn pass(&self) {
        let dies = {
            let mut countdown = self.countdown();
            let dies = *countdown == Some(0);
            *countdown = countdown.and_then(|left| left.checked_sub(1));
            dies
        };
        if dies {
            self.die().await;
        }
    }

    async fn die(&self) {
        self.died.notify_one();
        std::future::pending::<()>().await;
    }

    fn countdown(&self) -> MutexGuard<'_, Option<u64>> {
        self.countdown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The disk of the database, with the gate before it.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    gate: Arc<DeathGate>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Spells that stand.
    troubles: Troubles,
    /// The power goes in this commit, counted from now.
    cut: Option<u64>,
    /// What was there before the commit in which the power goes.
    before: Option<Files>,
    /// Where what the power left is.
    left: Option<PathBuf>,
    /// Counts databases, each in a file of its own.
    files: u64,
    /// It says that it has flushed, and has not: what it will have after a power cut, when so.
    lies: Option<Files>,
    /// Whether the commit that is under way fails at its end.
    fails_after: bool,
    rng: Rng,
}

/// How often a trouble stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Troubles {
    /// No room.
    pub full: u32,
    /// Mounted read-only.
    pub read_only: u32,
    /// Commits fail.
    pub failing: u32,
}

impl Troubles {
    /// Whether any stands.
    pub fn any(self) -> bool {
        self.full + self.read_only + self.failing > 0
    }
}

impl Disk {
    /// A sound disk with a database that has its schema, copied from one made once per process.
    pub async fn new(dir: &Path, gate: Arc<DeathGate>, rng: Rng) -> Result<(Arc<Self>, Store)> {
        static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
        let path = dir.join("controller-0.db");
        match TEMPLATE.get() {
            Some(template) => fs::write(&path, template)?,
            None => {
                open(&path).await?.close().await;
                let _ = TEMPLATE.set(fs::read(&path)?);
            }
        }
        let inner = Inner {
            troubles: Troubles::default(),
            cut: None,
            before: None,
            left: None,
            files: 0,
            lies: None,
            fails_after: false,
            rng,
        };
        let store = open(&path).await?;
        Ok((Arc::new(Self { dir: dir.to_owned(), gate, inner: Mutex::new(inner) }), store))
    }

    /// What stands in its way.
    pub fn troubles(&self) -> Troubles {
        self.lock().troubles
    }

    /// Changes what stands in its way.
    pub fn trouble(&self, change: impl FnOnce(&mut Troubles)) {
        change(&mut self.lock().troubles);
    }

    /// Has the power go in the n-th commit from now.
    pub fn cut_at_commit(&self, number: Option<u64>) {
        self.lock().cut = number;
    }

    /// From here on it says that it has flushed, and has not.
    pub fn lie(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.lies = Some(Files::read(&self.path(inner.files))?);
        Ok(())
    }

    /// The database as the power left it, when it went.
    pub async fn reopened(&self) -> Option<Result<Store>> {
        let path = self.lock().left.take()?;
        Some(open(&path).await)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("controller-{number}.db"))
    }
}

impl Gate for Disk {
    fn space(&self) -> Space {
        match self.troubles() {
            Troubles { read_only: 1.., .. } => Space::ReadOnly,
            Troubles { full: 1.., .. } => Space::Full,
            _ => Space::Room,
        }
    }

    fn before(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            self.gate.pass().await;
            let mut inner = self.lock();
            if inner.troubles.failing > 0 {
                inner.fails_after = inner.rng.percent(50);
                if !inner.fails_after {
                    return Err(input_output());
                }
            }
            let goes = inner.cut == Some(0);
            inner.cut = inner.cut.and_then(|left| left.checked_sub(1));
            if goes {
                inner.before = Some(Files::read(&self.path(inner.files)).map_err(StoreError::from)?);
            }
            Ok(())
        })
    }

    fn after(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            let went = {
                let mut inner = self.lock();
                if std::mem::take(&mut inner.fails_after) {
                    return Err(input_output());
                }
                match inner.before.take() {
                    None => false,
                    Some(before) => {
                        let after = Files::read(&self.path(inner.files)).map_err(StoreError::from)?;
                        inner.files += 1;
                        let path = self.path(inner.files);
                        let torn = inner.lies.take().unwrap_or_else(|| before.torn(&after, &mut inner.rng));
                        torn.write(&path).map_err(StoreError::from)?;
                        inner.left = Some(path);
                        true
                    }
                }
            };
            if went {
                self.gate.die().await;
            }
            self.gate.pass().await;
            Ok(())
        })
    }
}

async fn open(path: &Path) -> Result<Store> {
    Store::open(path, Seal::new(&[0; 32])).await.context("the controller's database")
}

/// EIO.
fn input_output() -> StoreError {
    StoreError::from(io::Error::from_raw_os_error(5))
}

/// The bytes of the database and of its log.
#[derive(Debug)]
struct Files {
    database: Vec<u8>,
    log: Vec<u8>,
}

/// What a disk writes as a whole.
const SECTOR: usize = 512;

impl Files {
    fn read(path: &Path) -> io::Result<Self> {
        let log = match fs::read(log_of(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        Ok(Self { database: fs::read(path)?, log })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, &self.database)?;
        fs::write(log_of(path), &self.log)
    }

    /// What is there when the power goes while a commit turns these files into `after`: nothing
    /// of it, all of it, or some of its sectors. The log is flushed before the database is
    /// touched: once that has changed, the log is whole.
    fn torn(self, after: &Self, rng: &mut Rng) -> Self {
        let how = rng.below(4);
        let mut rng = Rng::new(rng.draw(), 0);
        if self.database != after.database {
            return Self { database: mixed(&self.database, &after.database, &mut rng), log: after.log.clone() };
        }
        match how {
            0 => self,
            1 => Self { database: after.database.clone(), log: after.log.clone() },
            _ => {
                let mut log = mixed(&self.log, &after.log, &mut rng);
                // Never the last, so that one seed has one history: it is part of the commit.
                if let Some(last) = sectors(after.log.len()).rev().find(|at| differs(&self.log, &after.log, *at)) {
                    let end = (last + SECTOR).min(log.len());
                    log[last..end].iter_mut().enumerate().for_each(|(at, byte)| {
                        *byte = self.log.get(last + at).copied().unwrap_or(0);
                    });
                }
                Self { database: self.database, log }
            }
        }
    }
}

fn log_of(path: &Path) -> PathBuf {
    path.with_extension("db-wal")
}

fn sectors(length: usize) -> impl DoubleEndedIterator<Item = usize> {
    (0..length.div_ceil(SECTOR)).map(|number| number * SECTOR)
}

fn differs(before: &[u8], after: &[u8], at: usize) -> bool {
    let sector = |bytes: &[u8]| bytes.get(at..(at + SECTOR).min(bytes.len())).map(<[u8]>::to_vec);
    sector(before) != sector(after)
}

/// Each sector as it was or as it became; what the file grew by is zeros where it was not written.
fn mixed(before: &[u8], after: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut mixed = before.to_vec();
    mixed.resize(after.len().max(before.len()), 0);
    for at in sectors(after.len()) {
        if rng.percent(50) {
            let end = (at + SECTOR).min(after.len());
            mixed[at..end].copy_from_slice(&after[at..end]);
        }
    }
    mixed
}
