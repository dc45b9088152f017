//! The first login to a BMC that belongs to no machine yet: whose it is, is what it says then.
//!
//! Invariants:
//! - A login counts as denied, on disk, before it is tried, until it is known that it was not:
//!   whoever is killed in between has counted it.
//! - A machine's BMC is not logged in to in this way: its own password may be another one.
//! - Nothing is changed.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;

use rackhand_bmc::{BmcError, Credentials, Logins};
use rackhand_common::bmc::{Identity, Met, Stranger};
use tokio::{task::JoinHandle, time::timeout};

use super::{Bmcs, CLOSE, Refused, Stored, guard::Guard, unwritten};

/// How long a first login may take: some BMCs find their own inventory for a minute.
const MEETING: Duration = Duration::from_secs(120);

/// How long the controller is let wait for an answer.
const ANSWER: Duration = Duration::from_secs(8);

/// So many are under way at once.
const AT_ONCE: usize = 16;

/// So many BMCs' denied logins are remembered.
const STRANGERS: usize = 4096;

/// A first login under way, or one whose end nobody was told.
pub(super) struct Meeting {
    stranger: Stranger,
    task: Task,
}

type Task = Arc<tokio::sync::Mutex<JoinHandle<Met>>>;

impl Bmcs {
    /// Logs in to a BMC and asks whose it is. Answers in a while, and goes on.
    pub async fn meet(&self, stranger: Stranger) -> Met {
        let at = stranger.at.address;
        if self.stored().bmcs.values().any(|known| known.access.at.address == at) {
            return Met::Failed("it is the BMC of a machine".to_owned());
        }
        let Some(task) = self.meeting(&stranger) else { return Met::UnderWay };
        let Ok(mut task) = task.try_lock() else { return Met::UnderWay };
        let Ok(ended) = timeout(ANSWER, &mut *task).await else { return Met::UnderWay };
        self.meetings().remove(&at);
        ended.unwrap_or_else(|error| Met::Failed(error.to_string()))
    }

    /// The meeting with this BMC, begun when there is none; none while too many are under way, or
    /// one with other credentials.
    fn meeting(&self, stranger: &Stranger) -> Option<Task> {
        let mut meetings = self.meetings();
        let at = stranger.at.address;
        if let Some(under_way) = meetings.get(&at) {
            if under_way.stranger == *stranger {
                return Some(under_way.task.clone());
            }
            // Nobody asks for its end any more.
            let is_over = under_way.task.try_lock().is_ok_and(|task| task.is_finished());
            if !is_over {
                return None;
            }
        }
        meetings.retain(|_, meeting| !meeting.task.try_lock().is_ok_and(|task| task.is_finished()));
        if meetings.len() >= AT_ONCE {
            return None;
        }
        let (bmcs, whom) = (self.clone(), stranger.clone());
        let task = tokio::spawn(async move {
            let late = || Met::Failed(format!("not done within {} s", MEETING.as_secs()));
            timeout(MEETING, bmcs.first_login(whom)).await.unwrap_or_else(|_| late())
        });
        let task = Arc::new(tokio::sync::Mutex::new(task));
        meetings.insert(at, Meeting { stranger: stranger.clone(), task: task.clone() });
        Some(task)
    }

    /// The login itself; may be given up anywhere, and begun again.
    pub async fn first_login(&self, stranger: Stranger) -> Met {
        let at = stranger.at.address;
        if let Some(until) = self.stranger_rests(at) {
            let (denied, until_words) = (self.stranger(at).denied, until.strftime("%Y-%m-%d %H:%M UTC"));
            let reason = format!("{denied} logins were denied: none is tried before {until_words}");
            return Met::Rests { until, reason };
        }
        match self.identified(stranger).await {
            Ok((identity, fingerprint)) => Met::In { identity, fingerprint },
            Err(BmcError::Denied(reason)) => Met::Denied(reason),
            Err(error) => Met::Failed(error.to_string()),
        }
    }

    async fn identified(&self, stranger: Stranger) -> Result<(Identity, Option<String>), BmcError> {
        let Stranger { at, protocol, user, password, fingerprint } = stranger;
        let address = at.address;
        let before = self.stranger(address);
        self.note_stranger(address, |guard| guard.denied(self.0.clock.now().wall)).await.map_err(unwritten)?;
        let logins = Arc::new(Counted { bmcs: self.clone(), address, is_denied: AtomicBool::new(false) });
        let credentials = Credentials { user, password: password.into() };
        let asked = async {
            let line = self.line(at, protocol, credentials, fingerprint.as_deref(), logins).await?;
            let identity = line.bmc.identity().await;
            // It ends by itself, in a minute or some.
            let _ = timeout(CLOSE, line.bmc.close()).await;
            Ok((identity?, line.fingerprint))
        };
        let told = asked.await;
        match &told {
            Ok(_) => self.note_stranger(address, Guard::taken).await.map_err(unwritten)?,
            Err(BmcError::Denied(_)) => {}
            // It did not come to a login, or that was taken.
            Err(_) => {
                let is_taken = self.stranger(address).denied == 0;
                let after = if is_taken { Guard::default() } else { before };
                self.note_stranger(address, |guard| *guard = after).await.map_err(unwritten)?;
            }
        }
        told
    }

    fn stranger(&self, address: IpAddr) -> Guard {
        self.stored().strangers.get(&address).cloned().unwrap_or_default()
    }

    fn stranger_rests(&self, address: IpAddr) -> Option<Timestamp> {
        self.stranger(address).rests_until(self.0.clock.now().wall)
    }

    /// Writes down what is counted of a BMC that belongs to no machine.
    async fn note_stranger(&self, address: IpAddr, change: impl FnOnce(&mut Guard)) -> Result<(), Refused> {
        let writing = self.0.writing.clone().lock_owned().await;
        let mut stored: Stored = self.stored().clone();
        let mut guard = stored.strangers.remove(&address).unwrap_or_default();
        change(&mut guard);
        if guard != Guard::default() {
            // Whoever was denied longest ago has forgotten it.
            if stored.strangers.len() >= STRANGERS
                && let Some(oldest) = stored.strangers.iter().min_by_key(|(_, guard)| guard.last()).map(|(at, _)| *at)
            {
                stored.strangers.remove(&oldest);
            }
            stored.strangers.insert(address, guard);
        }
        if stored.strangers == self.stored().strangers {
            return Ok(());
        }
        self.write(stored, writing).await.map(drop)
    }

    fn meetings(&self) -> MutexGuard<'_, HashMap<IpAddr, Meeting>> {
        self.0.meetings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One login, which counts as denied until it is taken.
struct Counted {
    bmcs: Bmcs,
    address: IpAddr,
    /// Whether it was denied: it is tried once.
    is_denied: AtomicBool,
}

impl Logins for Counted {
    fn may(&self) -> Result<(), String> {
        let is_denied = self.is_denied.load(Ordering::Relaxed);
        (!is_denied).then_some(()).ok_or_else(|| "its login was denied".to_owned())
    }

    fn ended(&self, is_taken: bool) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if !is_taken {
                self.is_denied.store(true, Ordering::Relaxed);
                return;
            }
            if let Err(error) = self.bmcs.note_stranger(self.address, Guard::taken).await {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(bmc = %self.address, error, "a login at a BMC cannot be written down");
            }
        })
    }
}
