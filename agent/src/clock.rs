//! The system's clock and timers, for shells.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rackhand_common::time::{Clock, Mono, Now};

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { mono: Mono(self.start.elapsed()), wall: Timestamp::now() }
    }
}

/// How a shell waits: by the system's timers, or by a simulation's.
pub trait Timer: Send + Sync + 'static {
    /// Time passed since an arbitrary start; it never jumps.
    fn now(&self) -> Mono;

    /// Returns when this much has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The runtime's timers.
#[derive(Debug)]
pub struct SystemTimer {
    start: tokio::time::Instant,
}

impl Default for SystemTimer {
    fn default() -> Self {
        Self { start: tokio::time::Instant::now() }
    }
}

impl Timer for SystemTimer {
    fn now(&self) -> Mono {
        Mono(self.start.elapsed())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
