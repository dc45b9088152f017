//! Virtual time: it passes only when the world says so. Every process has a monotonic clock of
//! its own, which begins at its start, and a wall clock that may be wrong.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use rackhand_agent::clock::Timer;
use rackhand_common::time::{Clock, Mono, Now};

/// The world's time, and when somebody who sleeps wants to be woken.
#[derive(Clone, Debug, Default)]
pub struct Time(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    micros: AtomicU64,
    sleepers: Mutex<BTreeSet<u64>>,
}

impl Time {
    /// Time passed since the world began.
    pub fn passed(&self) -> Duration {
        Duration::from_micros(self.0.micros.load(Ordering::Relaxed))
    }

    /// Has it be this late.
    pub fn advance_to(&self, at: Duration) {
        self.0.micros.fetch_max(at.as_micros() as u64, Ordering::Relaxed);
    }

    /// When the next sleeper wants to be woken.
    pub fn next_wake(&self) -> Option<Duration> {
        self.sleepers().first().map(|micros| Duration::from_micros(*micros))
    }

    /// Forgets those whose time has come: whoever calls this polls them.
    pub fn woken(&self) {
        let now = self.0.micros.load(Ordering::Relaxed);
        self.sleepers().retain(|until| *until > now);
    }

    fn sleepers(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.0.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Timer for Time {
    fn now(&self) -> Mono {
        Mono(self.passed())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let until = (self.passed() + duration).as_micros() as u64;
        Box::pin(Sleep { time: self.clone(), until })
    }
}

struct Sleep {
    time: Time,
    until: u64,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.time.0.micros.load(Ordering::Relaxed) >= self.until {
            return Poll::Ready(());
        }
        self.time.sleepers().insert(self.until);
        Poll::Pending
    }
}

/// How wrong a node's wall clock is, in milliseconds; it outlives the node's processes.
pub type Skew = Arc<AtomicI64>;

/// A process's clock.
#[derive(Debug)]
pub struct ProcessClock {
    time: Time,
    started: Duration,
    skew: Skew,
}

impl ProcessClock {
    /// The clock of a process that starts now.
    pub fn start(time: &Time, skew: &Skew) -> Arc<Self> {
        Arc::new(Self { time: time.clone(), started: time.passed(), skew: skew.clone() })
    }
}

/// What a right clock shows when the world begins.
const BEGINNING: i64 = 1_750_000_000;

impl Clock for ProcessClock {
    fn now(&self) -> Now {
        let passed = self.time.passed();
        let wall = Timestamp::from_second(BEGINNING).expect("in range")
            + SignedDuration::try_from(passed).expect("in range")
            + SignedDuration::from_millis(self.skew.load(Ordering::Relaxed));
        Now { mono: Mono(passed - self.started), wall }
    }
}
