//! Time as cores see it: always an argument.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Monotonic time since an arbitrary start of the process. Durations, leases and deadlines
/// are reckoned on it; it never jumps, and means nothing in another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub Duration);

impl Mono {
    /// The moment `after` from now.
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }

    /// How long until `later`; zero when it has passed.
    pub fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}

/// The present, given to a core by its shell. `wall` is stored and shown, and decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For durations and deadlines.
    pub mono: Mono,
    /// For people and the record.
    pub wall: Timestamp,
}

/// Where a shell gets the present from: the system, or a test's hand.
pub trait Clock: Send + Sync + 'static {
    /// The present.
    fn now(&self) -> Now;
}

/// A deadline as it is stored: what was left of it at a wall-clock moment. After a restart
/// it is re-anchored by [`Remaining::anchor`], which never trusts a clock that jumped: the
/// time that passed meanwhile is counted only between zero and what was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// What was left when it was stored.
    pub left: Duration,
    /// When that was.
    pub stored: Timestamp,
}

impl Remaining {
    /// The stored form of `deadline`.
    pub fn of(now: Now, deadline: Mono) -> Self {
        Self { left: now.mono.until(deadline), stored: now.wall }
    }

    /// The deadline on this process's monotonic time.
    pub fn anchor(self, now: Now) -> Mono {
        let passed = Duration::try_from(now.wall.duration_since(self.stored)).unwrap_or_default();
        now.mono.plus(self.left.saturating_sub(passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono: u64, wall: i64) -> Now {
        Now { mono: Mono(Duration::from_secs(mono)), wall: Timestamp::from_second(wall).unwrap() }
    }

    #[test]
    fn a_stored_deadline_survives_a_restart() {
        let stored = Remaining::of(at(100, 1_000_000), Mono(Duration::from_secs(160)));
        assert_eq!(stored.anchor(at(5, 1_000_020)), Mono(Duration::from_secs(45)));
    }

    #[test]
    fn a_clock_set_back_neither_lengthens_nor_expires_a_deadline() {
        let stored = Remaining::of(at(100, 1_000_000), Mono(Duration::from_secs(160)));
        assert_eq!(stored.anchor(at(5, 3)), Mono(Duration::from_secs(65)));
    }
}
