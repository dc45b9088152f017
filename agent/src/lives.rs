//! Where the rack's machines are in their lives, on this node's disk: which of them are nobody's is known
//! here while the controller is away.
//!
//! Invariant: what is stored never goes back to an earlier revision.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rackhand_common::{
    id::{MachineId, RackId},
    life::{Life, Lives},
};
use tokio::sync::watch;

use crate::intent::{Refused, replace};

/// Name of the file in the state directory.
const FILE: &str = "lives.json";

/// A handle to what is stored.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    rack: RackId,
    current: watch::Sender<Option<Arc<Lives>>>,
    /// Held while the file is being replaced.
    writing: tokio::sync::Mutex<()>,
}

impl Store {
    /// What a node that serves `rack` stored in this directory. What cannot be read, or is another
    /// rack's, is as if it were not there: the controller tells it at its next connection.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be opened.
    pub fn open(dir: &Path, rack: RackId) -> io::Result<Self> {
        let file = dir.join(FILE);
        let found = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok().filter(|lives: &Lives| lives.rack == rack),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let current = watch::Sender::new(found.map(Arc::new));
        Ok(Self(Arc::new(Inner { file, rack, current, writing: tokio::sync::Mutex::new(()) })))
    }

    /// Of this machine; `None` when nobody has told.
    pub fn of(&self, machine: MachineId) -> Option<Life> {
        self.0.current.borrow().as_ref()?.of(machine)
    }

    /// Stores these, unless newer ones are here already; gives the revision that is now on disk.
    ///
    /// # Errors
    ///
    /// They are another rack's, or the disk does not take them.
    pub async fn store(&self, lives: Lives) -> Result<u64, Refused> {
        let _writing = self.0.writing.lock().await;
        if lives.rack != self.0.rack {
            return Err(Refused::OtherRack { wanted: lives.rack, ours: self.0.rack });
        }
        let current = self.0.current.borrow().clone();
        if let Some(current) = current.filter(|current| current.revision > lives.revision || **current == lives) {
            return Ok(current.revision);
        }
        let (path, revision) = (self.0.file.clone(), lives.revision);
        let bytes = serde_json::to_vec(&lives).expect("lives always serialize");
        let written = tokio::task::spawn_blocking(move || replace(&path, &bytes)).await.map_err(io::Error::other);
        written.flatten().map_err(|source| Refused::Disk { path: self.0.file.clone(), source })?;
        self.0.current.send_replace(Some(Arc::new(lives)));
        Ok(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_told_survives_a_restart_and_never_goes_back() {
        let (dir, rack, machine) = (tempfile::tempdir().unwrap(), RackId::fresh(), MachineId::fresh());
        let lives = |revision, rack, life| Lives { revision, rack, machines: vec![(machine, life)] };
        let store = Store::open(dir.path(), rack).unwrap();
        assert_eq!(store.of(machine), None);
        assert_eq!(store.store(lives(5, rack, Life::Ready)).await.unwrap(), 5);
        assert_eq!(store.store(lives(4, rack, Life::Active)).await.unwrap(), 5);
        assert!(matches!(store.store(lives(9, RackId::fresh(), Life::Active)).await, Err(Refused::OtherRack { .. })));
        assert_eq!(Store::open(dir.path(), rack).unwrap().of(machine), Some(Life::Ready));
        assert_eq!(Store::open(dir.path(), RackId::fresh()).unwrap().of(machine), None);
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Store::open(dir.path(), rack).unwrap().of(machine), None);
    }
}
