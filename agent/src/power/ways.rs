//! What was changed of machines' boot order and not put back: on disk before a BMC is told, and gone from
//! there only when it was put back.
//!
//! Invariants:
//! - Whatever ends this process, the next one finds what it has to put back.
//! - It is put back when the installer came, when the machine is to start its own disk, when its run
//!   says so, and after [`LASTS`] whatever is said: a node whose controller is away does it too.
//! - What is changed of one machine's boot order is changed by one at a time.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use rackhand_common::{
    event::{Event, What},
    id::MachineId,
    intent::Boot,
    time::Clock,
};

use super::{Drivers, Way};
use crate::{intent, timeline::Timelines};

/// How long a change may stand: longer than a run waits for an installer.
const LASTS: Duration = Duration::from_secs(45 * 60);

/// How long a machine may be told to start its own disk before that ends a way into the installer: the
/// intent that says installer comes about when the command does.
const INTENT_FOLLOWS: Duration = Duration::from_secs(120);

/// How often it is looked whether something is to be put back.
const LOOK: Duration = Duration::from_secs(5);

/// After how long a BMC that did not put it back is asked again.
const AGAIN: Duration = Duration::from_secs(60);

/// What was changed of one machine's boot order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The way it was to start; absent: from the network, once.
    pub way: Option<Way>,
    /// The address it was told, of a loader or of an image.
    pub url: Option<String>,
    /// When, by the node's clock.
    pub since: Timestamp,
}

impl Changed {
    /// Whether it has had its time: `boot` is what the machine is to start, if it is ours still.
    fn is_over(&self, now: Timestamp, boot: Option<Boot>, came: bool) -> bool {
        let age = Duration::try_from(now.duration_since(self.since)).unwrap_or_default();
        // A clock that was put back far makes it none the younger.
        let is_odd = self.since.duration_since(now).as_secs() > 60;
        came || is_odd || age > LASTS || (boot != Some(Boot::Installer) && age > INTENT_FOLLOWS)
    }
}

/// What stands; clones are the same.
#[derive(Clone)]
pub struct Ways(Arc<Inner>);

struct Inner {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    changed: Mutex<BTreeMap<MachineId, Changed>>,
    turns: Mutex<BTreeMap<MachineId, Arc<tokio::sync::Mutex<()>>>>,
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Ways {
    /// What stands by this file, which may not be there yet. One that cannot be read is named and begun anew:
    /// machines are started all the same.
    pub fn open(path: PathBuf, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let changed = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            read => serde_json::from_slice(&read?).unwrap_or_else(|error| {
                tracing::error!(file = %path.display(), %error, "what machines were told to boot from cannot be read");
                BTreeMap::new()
            }),
        };
        let (turns, writing) = (Mutex::default(), Arc::default());
        Ok(Self(Arc::new(Inner { path, clock, changed: Mutex::new(changed), turns, writing })))
    }

    /// The present.
    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now().wall
    }

    /// Waits until nobody else changes this machine's boot order.
    pub(super) async fn turn(&self, machine: MachineId) -> Turn {
        let lock = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(machine).or_default().clone();
        Turn { ways: self.clone(), machine, _alone: lock.lock_owned().await }
    }

    /// The machines of which something stands.
    fn standing(&self) -> Vec<(MachineId, Changed)> {
        self.changed().iter().map(|(machine, changed)| (*machine, changed.clone())).collect()
    }

    fn changed(&self) -> MutexGuard<'_, BTreeMap<MachineId, Changed>> {
        self.0.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts back what has had its time, until `shutdown`.
    pub async fn run(self, drivers: Drivers, intent: intent::Store, timelines: Timelines, shutdown: CancellationToken) {
        let mut rests: BTreeMap<MachineId, Timestamp> = BTreeMap::new();
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            for (machine, _) in self.standing() {
                let now = self.now();
                if rests.get(&machine).is_some_and(|until| now < *until && *until < now + AGAIN) {
                    continue;
                }
                let mut turn = self.turn(machine).await;
                // Somebody may have had the turn before.
                let Some(changed) = turn.changed() else { continue };
                let is_to_boot = intent.current().and_then(|intent| {
                    intent.machines.iter().find(|known| known.id == machine).map(|known| known.boot)
                });
                if !changed.is_over(now, is_to_boot, has_come(&timelines.events(machine), changed.since)) {
                    continue;
                }
                let Some(reached) = drivers.bmcs.of(machine) else {
                    tracing::warn!(%machine, ?changed, "its BMC is not reached any more: its boot order stays changed");
                    let _ = turn.set(None).await;
                    continue;
                };
                match drivers.put_back(&reached, &mut turn).await {
                    Ok(()) => {
                        tracing::info!(%machine, ?changed, "its boot order is its own again");
                        rests.remove(&machine);
                    }
                    Err(error) => {
                        tracing::warn!(%machine, ?changed, %error, "its boot order cannot be put back; tried again");
                        rests.insert(machine, now + AGAIN);
                    }
                }
            }
        }
    }
}

/// Whether an installer has connected since.
fn has_come(events: &[Event], since: Timestamp) -> bool {
    events.iter().rev().any(|event| event.at >= since && matches!(event.what, What::Connected { .. }))
}

/// The right to change one machine's boot order, until it is dropped.
pub(super) struct Turn {
    ways: Ways,
    machine: MachineId,
    _alone: OwnedMutexGuard<()>,
}

impl Turn {
    /// What stands of it.
    pub(super) fn changed(&self) -> Option<Changed> {
        self.ways.changed().get(&self.machine).cloned()
    }

    /// Writes down what stands of it from now on.
    pub(super) async fn set(&mut self, changed: Option<Changed>) -> io::Result<()> {
        let _writing = self.ways.0.writing.clone().lock_owned().await;
        let mut all = self.ways.changed().clone();
        match changed {
            Some(changed) => drop(all.insert(self.machine, changed)),
            None => drop(all.remove(&self.machine)),
        }
        let (path, bytes) = (self.ways.0.path.clone(), serde_json::to_vec(&all).expect("they always serialize"));
        tokio::task::spawn_blocking(move || intent::replace(&path, &bytes)).await.map_err(io::Error::other)??;
        *self.ways.changed() = all;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_change_is_over_when_it_has_served_or_nobody_wants_it_or_its_time_is_up() {
        let changed = Changed { way: Some(Way::Media), url: None, since: at(1000) };
        let installer = Some(Boot::Installer);
        for (now, boot, came, is_over) in [
            (1010, installer, false, false),
            (1010, installer, true, true),
            (1010, Some(Boot::Disk), false, false),
            (1200, Some(Boot::Disk), false, true),
            (1200, None, false, true),
            (1200, installer, false, false),
            (1000 + 46 * 60, installer, false, true),
            // The clock was put back.
            (100, installer, false, true),
        ] {
            assert_eq!(changed.is_over(at(now), boot, came), is_over, "{now} {boot:?} {came}");
        }
    }

    #[tokio::test]
    async fn what_stands_outlives_the_process_until_it_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Ways::open(dir.path().join("ways.json"), Arc::new(SystemClock::default())).unwrap();
        let machine = MachineId::fresh();
        let changed = Changed { way: Some(Way::LastingNetwork), url: None, since: at(5) };
        open().turn(machine).await.set(Some(changed.clone())).await.unwrap();
        let again = open();
        assert_eq!(again.standing(), [(machine, changed)]);
        again.turn(machine).await.set(None).await.unwrap();
        assert_eq!(open().standing(), []);
    }
}
