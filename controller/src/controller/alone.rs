//! A controller's data is one process's: the directory, and the database where a server has that.

use std::{fs, os::unix::fs::OpenOptionsExt as _};

use anyhow::{Context as _, Result, bail};

use super::Config;
use crate::store::Sole;

/// Nobody else uses the data, until it is dropped.
#[derive(Debug)]
pub(crate) struct Alone {
    /// The database's lock, to be kept by whoever runs for long.
    pub(super) database: Option<Sole>,
    _directory: fs::File,
}

impl Alone {
    /// Waits a few seconds for whoever has the database; fails when it stays theirs.
    pub(crate) async fn on(config: &Config) -> Result<Self> {
        let directory = lock(config)?;
        let place = config.place()?;
        let database = Sole::take(&place).await.with_context(|| format!("cannot use the database {place}"))?;
        Ok(Self { database, _directory: directory })
    }
}

/// Forbids a second process on the same directory, until the file is dropped.
fn lock(config: &Config) -> Result<fs::File> {
    let path = config.data.join("lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => bail!("another controller runs on {}", config.data.display()),
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}
