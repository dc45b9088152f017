//! The clock on the wall of a rack, which a test sets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use jiff::{SignedDuration, Timestamp};
use rackhand_common::time::{Clock, Mono, Now};

/// A clock that goes like the system's and shows another time; clones are the same clock.
#[derive(Clone, Debug)]
pub struct Wall {
    /// Seconds.
    ahead: Arc<AtomicI64>,
    start: Instant,
}

impl Default for Wall {
    fn default() -> Self {
        Self { ahead: Arc::default(), start: Instant::now() }
    }
}

impl Wall {
    /// Shows the time that was so long ago.
    pub fn ago(behind: SignedDuration) -> Self {
        let wall = Self::default();
        wall.forward(-behind);
        wall
    }

    /// Is put forward by so much.
    pub fn forward(&self, by: SignedDuration) {
        self.ahead.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}

impl Clock for Wall {
    fn now(&self) -> Now {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::SeqCst));
        Now { mono: Mono(self.start.elapsed()), wall: Timestamp::now() + ahead }
    }
}
